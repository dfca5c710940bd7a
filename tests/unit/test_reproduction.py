"""The cards of reproduction follow from rows and bounds alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from semcast.studies.rows import Row, write_json

CBRS = (0.01, 0.02, 0.04, 0.08)


@pytest.fixture
def bench(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("reproduction")


def make(system: str, cbr: float, psnr_db: float, **values: object) -> Row:
    base: dict[str, object] = {
        "clip": "a",
        "frames": 8,
        "height": 64,
        "width": 96,
        "channel": "awgn",
        "condition": "dvst-paper",
    }
    base |= {"snr_db": 10.0, "csi_snr_db": 10.0, "cbr_target": cbr, "cbr": cbr, "gop": 4, "channel_uses": 1000, "seed": 0}
    frames = [psnr_db + 1.5, psnr_db - 0.5, psnr_db - 0.5, psnr_db - 0.5] * 2
    base |= {"per_frame": {"psnr_rgb_db": frames}, "ms_ssim_rgb_db": psnr_db / 2}
    name, _, preset = system.partition(":")
    return Row.model_validate(base | {"system": name, "preset": preset or None, "psnr_rgb_db": psnr_db} | values)


def ladder(system: str, gain: float, **values: object) -> list[Row]:
    """3 dB per doubling; ``gain`` is the factor of channel that the system needs."""
    return [make(system, cbr * gain, 28 + 3 * i, **({"cbr_target": cbr} | values)) for i, cbr in enumerate(CBRS)]


@pytest.fixture
def rd() -> list[Row]:
    """Two clips; dvst needs 0.7 and 0.95 of the channel of H.264, H.265 0.8 of it on both."""
    rows = []
    for clip, gain in (("BasketballPass", 0.7), ("b", 0.95)):
        rows += ladder(
            "dvst:small", gain, clip=clip, streams={"motion": 100, "motion/control": 50, "latent": 850}, weights="00" * 8
        )
        rows += ladder("h264-ldpc", 1.0, clip=clip) + ladder("h265-ldpc", 0.8, clip=clip)
    return rows


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ([], "not attempted"),
        ([None, None], "not attempted"),
        ([2, 2], "reproduced"),
        ([2, None], "partly"),
        ([2, 0], "partly"),
        ([1, 1], "partly"),
        ([0, 0], "not"),
        ([0, None], "not"),
    ],
)
def test_status_by_the_rule(bench: ModuleType, marks: list[int | None], expected: str) -> None:
    assert bench.status(marks) == expected


def test_bounds_count_in_their_direction(bench: ModuleType) -> None:
    lower = bench.Check(what="w", value="v", better="lower", full=-20, partly=0)
    assert [lower.mark({"v": v}) for v in (-25, -20, -1, 0, 0.1, None)] == [2, 2, 1, 1, 0, None]
    higher = bench.Check(what="w", value="v", better="higher", full=1.5)
    assert [higher.mark({"v": v}) for v in (1.5, 1.4)] == [2, 0]
    assert higher.outcome({"v": 1.4}) == "not reached"
    assert (higher.bounds(), lower.bounds()) == ("≥ 1.5; –", "≤ -20; ≤ 0")


def test_bd_rate_by_clip_and_table(bench: ModuleType, rd: list[Row]) -> None:
    deltas = bench.bd_by_clip(rd, "h264-ldpc", "dvst", bench.PSNR)
    assert {clip: delta.value for clip, delta in deltas.items()} == pytest.approx({"BasketballPass": -30.0, "b": -5.0})
    assert bench.mean_delta(deltas) == pytest.approx(-17.5)
    lines = bench.bd_table(rd, "dvst", ("h264-ldpc", "h265-ldpc")).splitlines()
    assert lines[2].startswith("| BasketballPass | -30.0 | -30.0 |")
    assert lines[4].startswith("| mean | -17.5 |")
    missing = bench.bd_table([row for row in rd if row.cbr_target != 0.01], "dvst", ("h264-ldpc",))
    assert missing == ""  # three points are no curve, and nothing is made up


def test_frames_apart(bench: ModuleType, rd: list[Row]) -> None:
    assert bench.fall(rd[0]) == pytest.approx(2.0)
    assert bench.motion_share(bench.select(rd, "dvst:small")) == (15.0, 15.0)


def test_drift_is_the_gap_of_both_ends(bench: ModuleType) -> None:
    shown, clean = [30.0] * 64, [31.0] * 32 + [30.5] * 16 + [33.0] * 16
    row = make("dvst:small", 0.015, 30, gop=64, per_frame={"psnr_rgb_db": shown, "reference_psnr_rgb_db": clean})
    assert [bench.drift_gap(row, at, at + 16) for at in (0, 16, 32, 48)] == [1.0, 1.0, 0.5, 3.0]
    assert "| 10 | 64 | 30.00 | 1.00 | 1.00 | 0.50 | 3.00 |" in bench.drift_table([row])


def test_told_another_snr_is_a_curve_of_its_own(bench: ModuleType) -> None:
    rows = [make("dvst:small", 0.015, 20 + snr, snr_db=snr, csi_snr_db=snr) for snr in (2.0, 10.0)]
    rows += [make("dvst:small", 0.015, 19, snr_db=2.0, csi_snr_db=10.0)]
    text = bench.quality_table(rows, "psnr_rgb_db", "snr_db")
    assert "| `dvst:small` | 22.00 | 30.00 |" in text
    assert "| `dvst:small`, told 10 dB | 19.00 | 30.00 |" in text
    assert bench.at_point(rows, "dvst:small", 2.0, 10.0) == 19


def test_cards_from_canned_rows(bench: ModuleType, rd: list[Row], tmp_path: Path) -> None:
    trained = [row.model_copy(update={"preset": "ms-ssim", "cbr": 0.5 * (row.cbr or 0)}) for row in rd if row.system == "dvst"]
    write_json(tmp_path / "rd.json", [*rd, *trained])
    entry = {"seed": 0, "deployed_cbr": 0.0202, "training_cbr": 0.02, "deployed_psnr_db": 30.0, "training_psnr_db": 30.02}
    (tmp_path / "agree.json").write_text(json.dumps([entry]))
    text = bench.cards(tmp_path)["dvst"]
    assert "| Fig. 6: PSNR against channel use | partly |" in text  # below H.264 in the mean, not by 20 %
    assert "| Fig. 9: PSNR against SNR, Rayleigh | not attempted |" in text
    assert "| mean BD-rate against `h264-ldpc`, PSNR | -17.50 % |" in text
    assert "| `dvst:ms-ssim`: mean BD-rate against `h264-ldpc`, MS-SSIM | -58.75 % |" in text
    assert "| clips on which it saves more than `h265-ldpc` | 50.00 % |" in text
    assert "deployed path against training forward: CBR | 1.00 % | ≤ 2; ≤ 2 | held |" in text
    assert "deployed path against training forward: PSNR | 0.02 dB | ≤ 0.05; ≤ 0.05 | held |" in text
    assert "None" not in text
    assert "nan" not in text


def test_without_rows_nothing_is_claimed(bench: ModuleType, tmp_path: Path) -> None:
    for text in bench.cards(tmp_path).values():
        assert "nothing was measured yet" in text
        states = [
            line.rpartition("| ")[2].rstrip(" |") for line in text.split("| --- | --- |\n")[1].split("\n\n")[0].splitlines()
        ]
        assert set(states) == {"not attempted"}


def test_figures_beside_rate_and_snr(bench: ModuleType, tmp_path: Path) -> None:
    """Ablations at equal clip and CBR, what is not measured said to be so; machine's eyes, times in one run, pictures."""
    whole = ladder("dvst:small", 1.0)
    still = [row.model_copy(update={"preset": "no-motion", "ms_ssim_rgb_db": row.ms_ssim_rgb_db - 1.5}) for row in whole]
    fixed = [row.model_copy(update={"preset": "constant-rate", "ms_ssim_rgb_db": 9.0}) for row in whole]
    write_json(tmp_path / "ablations.json", [*whole, *still, *fixed])
    seen = [make("dvst:small", 0.01, 28, miou=0.5, miou_clean=0.7), make("dvst:segment", 0.01, 28, miou=0.52, miou_clean=0.7)]
    seen += [make(name, 0.01, 27, miou=0.45, miou_clean=0.7) for name in ("h264-ldpc", "h265-ldpc")]
    write_json(tmp_path / "segment.json", seen)
    write_json(tmp_path / "pictures.json", [row.model_copy(update={"miou": None}) for row in seen])
    shared = {"size": "96x64", "frames": 8, "precision": "fp32", "threads": 1}
    times = {"dvst:small": 300.0, "dcvc-ldpc": 400.0, "h265-ldpc": 100.0}
    (tmp_path / "time.json").write_text(json.dumps([shared | {"system": k, "encode_ms": v} for k, v in times.items()]))
    text = bench.cards(tmp_path)["dvst"]
    assert "| no motion link: loss of MS-SSIM, mean over CBRs | 1.50 dB |" in text
    assert "| constant rate: loss at the highest CBR over that at the lowest | 4.50 dB |" in text
    assert "| training without whole groups: loss of MS-SSIM | – |" in text
    assert "training without whole groups: loss of MS-SSIM: not measured" in text
    assert "| Fig. 14: ablations | partly |" in text
    assert "| Fig. 15: segmentation | reproduced |" in text
    assert "| the source | 0.700 |" in text
    assert "| time to encode a frame over that of `h265-ldpc` | 3.00 |" in text
    assert "| time to encode a frame over that of `dcvc-ldpc` | 0.75 |" in text
    assert "![One moment of a rendered scene" in text
