"""The command line: bad input gets one sentence and exit code 2, good input what was promised."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from echo_system import SPEC, registered

from semcast import checkpoint
from semcast.app import options
from semcast.app.cli import main
from semcast.errors import ContractError, SpecError
from semcast.systems import SYSTEMS
from semcast.video.io import open_clips

ROW_KEYS = """system preset weights clip frames height width goal channel condition phy mcs gop snr_db csi_snr_db cbr_target cbr
channel_uses analog_uses digital_uses feedback_uses info_bits packets_sent packets_lost assumed_free_uses airtime_s energy_j
psnr_rgb_db psnr_y_db ssim_rgb ms_ssim_rgb lpips_squeeze vmaf miou top1 encode_fps decode_fps seed version per_frame"""
TINY = ["scene:demo", "--size", "80x64", "--max-frames", "3", "--metrics", "psnr_rgb_db", "--precision", "fp32"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint of the test system, which is registered meanwhile."""
    with registered():
        yield checkpoint.save(SPEC.make("small", "strong"), tmp_path_factory.mktemp("weights") / "w", {"data": ["none"]})


@pytest.fixture
def deep(weights: Path) -> list[str]:
    return ["--system", "echo", "--weights", str(weights)]


@pytest.fixture
def air(tmp_path: Path, deep: list[str], capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "sent.air"
    assert main(["send", *TINY, *deep, "--air", str(path)]) == 0
    capsys.readouterr()
    return path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused; returns the sentence."""

    def run(*args: str | Path) -> str:
        code = main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        assert code == 2, (code, err)
        assert err.startswith("error: "), err
        assert err.count("\n") == 1, err
        assert "Traceback" not in out + err
        return err

    return run


# bad input ------------------------------------------------------------------------------------------------------------------


def test_inputs_that_are_no_video(tmp_path: Path, deep: list[str], refused: Callable[..., str]) -> None:
    text, empty, header = tmp_path / "text.mp4", tmp_path / "empty.mp4", tmp_path / "header.y4m"
    text.write_text("this is no video\n" * 50)
    empty.touch()
    header.write_bytes(b"YUV4MPEG2 W80 H64 F25:1 Ip A1:1 C420jpeg\n")
    small = tmp_path / "small.y4m"
    small.write_bytes(b"YUV4MPEG2 W48 H64 F25:1 Ip A1:1 C420jpeg\nFRAME\n" + bytes(48 * 64 * 3 // 2))
    assert "no such file" in refused("transmit", tmp_path / "absent.mp4", *deep)
    assert "text.mp4" in refused("transmit", text, *deep)
    assert "empty" in refused("transmit", empty, *deep)
    assert "frames" in refused("transmit", header, *deep)
    assert "at least 64x64" in refused("transmit", small, *deep)
    assert "at least 64x64" in refused("compare", "scene:demo", "--size", "32x32", "--systems", "deepjscc")
    assert "did you mean 'scene'" in refused("transmit", "scenes:demo", *deep)
    assert "--size" in refused("transmit", "scene:demo", "--size", "big", *deep)


def test_names_that_do_not_exist(deep: list[str], weights: Path, refused: Callable[..., str]) -> None:
    assert "did you mean 'deepjscc'" in refused("transmit", *TINY, "--system", "depjscc")
    assert "did you mean 'deepjscc'" in refused("compare", *TINY, "--systems", "deepjsc")
    assert "did you mean 'small'" in refused("transmit", *TINY, "--system", "deepjscc:smal")
    assert "did you mean 'awgn'" in refused("transmit", *TINY, *deep, "--channel", "agwn")
    assert "did you mean 'strong'" in refused("transmit", *TINY, *deep, "--condition", "stronk")
    assert "did you mean 'watch'" in refused("transmit", "scene:demo", *deep, "--goal", "wach")
    assert "did you mean 'psnr_rgb_db'" in refused("transmit", "scene:demo", *deep, "--metrics", "psnr_rgb")
    assert "No such option" in refused("transmit", *TINY, *deep, "--snrs", "10")
    assert "No such command" in refused("transmitt")
    assert "Missing argument" in refused("compare")


@pytest.mark.parametrize(
    "channel", ["rayleigh:blok", "awgn:", "", "rayleigh:coherence=", "erasure:plr=2", "rayleigh:block,block"]
)
def test_malformed_channels(channel: str, deep: list[str], refused: Callable[..., str]) -> None:
    refused("transmit", *TINY, *deep, "--channel", channel)


@pytest.mark.parametrize("cbr", ["0", "-1", "9", "x", "1/0", "0.00001", "0.01,0.02", "nan"])
def test_impossible_rates(cbr: str, deep: list[str], refused: Callable[..., str]) -> None:
    assert "cbr" in refused("transmit", *TINY, *deep, "--cbr", cbr).lower()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--snr", "ten"), ("--snr", ""), ("--snr", "inf"), ("--snr", "1e9"), ("--seed", "-1"), ("--seed", "99999999999"),
        ("--phy", "slow"), ("--precision", "fp64"), ("--threads", "0"), ("--max-frames", "0"), ("--bandwidth", "0"),
        ("--power", "-1"), ("--mcs", "64qam"), ("--metrics", ","), ("--fps", "-3"), ("--harq", "-1"),
    ],
)  # fmt: skip
def test_numbers_out_of_range(option: str, value: str, deep: list[str], refused: Callable[..., str]) -> None:
    refused("transmit", "scene:demo", "--size", "80x64", *deep, option, value)


def test_outputs_that_cannot_be_written(tmp_path: Path, deep: list[str], refused: Callable[..., str]) -> None:
    (tmp_path / "file").touch()
    clip = tmp_path / "clip.y4m"
    clip.write_bytes(b"YUV4MPEG2 W80 H64 F25:1 Ip A1:1 C420jpeg\nFRAME\n" + bytes(80 * 64 * 3 // 2))
    assert "input itself" in refused("transmit", clip, clip, *deep)
    assert "ending" in refused("transmit", clip, tmp_path / "out.gif", *deep)
    assert "cannot be written" in refused("transmit", clip, "--json", tmp_path / "file" / "x.json", *deep)
    assert "folder" in refused("transmit", clip, "--json", tmp_path, *deep)
    assert "--report" in refused("compare", clip, "--systems", "deepjscc", "--report", tmp_path / "file")
    assert "--air" in refused("send", clip, *deep, "--air", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.y4m", "file"]


def test_weights_that_do_not_fit(tmp_path: Path, weights: Path, refused: Callable[..., str]) -> None:
    assert "no checkpoint" in refused("transmit", *TINY, "--system", "echo", "--weights", tmp_path)
    assert "belong to echo:small" in refused("transmit", *TINY, "--system", "echo:paper", "--weights", weights)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name in ("config.json", "model.safetensors"):
        (damaged / name).write_bytes((weights / name).read_bytes()[: 60 if name == "model.safetensors" else 1000])
    assert "damaged" in refused("transmit", *TINY, "--system", "echo", "--weights", damaged)
    assert "not among" in refused("compare", *TINY, "--systems", "echo:paper", "--weights", weights)


def test_air_files_that_are_none(air: Path, tmp_path: Path, weights: Path, refused: Callable[..., str]) -> None:
    out = tmp_path / "out.mkv"
    whole = air.read_bytes()
    alien, cut = tmp_path / "alien.air", tmp_path / "cut.air"
    alien.write_bytes(b"\x00" * 500)
    cut.write_bytes(whole[: len(whole) // 2])
    assert "no such air file" in refused("receive", tmp_path / "absent.air", out)
    assert "not a Semcast air file" in refused("receive", alien, out, "--weights", weights)
    assert not out.exists()
    sentence = refused("receive", cut, out, "--weights", weights, "--precision", "fp32")
    assert "truncated after 1 frames" in sentence
    assert "the 1 frames before that are in" in sentence
    assert len(list(open_clips(out)[0].frames())) == 1
    system = SPEC.make("small", "strong")
    with torch.no_grad():
        next(system.parameters()).mul_(2)
    strange = checkpoint.save(system, tmp_path / "strange", {})
    assert "pass the matching --weights" in refused("receive", air, out, "--weights", strange)


# faults of ours, and interruptions ---------------------------------------------------------------------------------------


def test_a_fault_of_ours_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, deep: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from semcast.app import commands

    for error, said in (
        (ContractError("the contract is broken"), "the contract"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError"),
    ):

        def fail(*args: object, error: Exception = error, **kwargs: object) -> None:
            raise error

        monkeypatch.setattr(commands, "transmit_clip", fail)
        assert main(["transmit", *TINY, *deep]) == 1
        err = capsys.readouterr().err
        assert said in err
        assert "SEMCAST_DEBUG=1" in err
        assert err.count("\n") == 1
    monkeypatch.setenv("SEMCAST_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["transmit", *TINY, *deep])


def test_an_interrupted_comparison_keeps_its_rows(
    monkeypatch: pytest.MonkeyPatch, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from semcast.studies import compare

    real, calls = compare.transmit_clip, []

    def second_time_interrupted(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(compare, "transmit_clip", second_time_interrupted)
    report = tmp_path / "report"
    args = ["compare", *TINY, "--systems", "echo", "--weights", str(weights), "--snr", "0,10", "--report", str(report)]
    assert main(args) == 130
    assert "interrupted after 1 of 2" in capsys.readouterr().err
    assert len((report / "rows.jsonl").read_text().splitlines()) == 1
    assert (report / "report.html").is_file()


# good input -------------------------------------------------------------------------------------------------------------------


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys\nfrom semcast.app.cli import main\ncode = main(['--help'])\n"
        "heavy = {'torch', 'numpy', 'av', 'cv2', 'rich', 'plotly', 'sionna', 'pydantic', 'skimage'} & set(sys.modules)\n"
        "assert not heavy, heavy\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("compare", "transmit", "send", "receive", "train", "systems", "channels"):
        assert f"\n  {command} " in done.stdout


def test_the_module_says_one_sentence_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "semcast", "receive", str(tmp_path / "none.air"), str(tmp_path / "out.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_transmit_writes_rows_and_the_video(
    tmp_path: Path, deep: list[str], capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    video, rows = tmp_path / "out" / "got.mp4", tmp_path / "rows" / "got.json"
    assert main(["transmit", *TINY, str(video), *deep, "--snr", "7", "--cbr", "1/12", "--json", str(rows), "--seed", "4"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    (row,) = json.loads(rows.read_text())
    assert set(row) >= set(ROW_KEYS.split())
    assert (row["system"], row["preset"], row["frames"], row["snr_db"], row["seed"]) == ("echo", "small", 3, 7.0, 4)
    assert row["channel_uses"] == sum(row["streams"].values())
    assert row["cbr"] == pytest.approx(row["channel_uses"] / (3 * 80 * 64 * 3))
    assert len(row["per_frame"]["psnr_rgb_db"]) == 3
    assert len(list(open_clips(video)[0].frames())) == 3


def test_send_and_receive_give_what_transmit_gives(
    air: Path, tmp_path: Path, weights: Path, deep: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    direct, later = tmp_path / "direct.y4m", tmp_path / "later.y4m"
    assert main(["transmit", *TINY, str(direct), *deep]) == 0
    assert main(["receive", str(air), str(later), "--weights", str(weights), "--precision", "fp32"]) == 0
    assert direct.read_bytes() == later.read_bytes()
    assert not list(tmp_path.glob("*.part"))


def test_compare_writes_a_report_and_notes_what_is_impossible(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    report, rows = tmp_path / "report", tmp_path / "rows.json"
    args = ["compare", *TINY, "--systems", "echo:small", "--weights", str(weights), "--snr", "0,10", "--cbr", "0.0001,0.05"]
    assert main([*args, "--seeds", "2", "--report", str(report), "--json", str(rows)]) == 0
    out = capsys.readouterr().out
    assert "note: echo:small is left out of" in out
    found = json.loads(rows.read_text())
    assert [(row["snr_db"], row["seed"]) for row in found] == [(0, 0), (0, 1), (10, 0), (10, 1)]
    assert [json.loads(line) for line in (report / "rows.jsonl").read_text().splitlines()] == found
    page = (report / "report.html").read_text()
    assert "is left out of" in page
    assert (report / "summary.png").is_file()


def test_a_comparison_in_which_nothing_is_possible_is_bad_input(weights: Path, refused: Callable[..., str]) -> None:
    assert "raise --cbr" in refused("compare", *TINY, "--systems", "echo", "--weights", weights, "--cbr", "0.0001")


def test_the_same_seed_gives_the_same_noise(deep: list[str], tmp_path: Path) -> None:
    seen = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        path = tmp_path / f"{name}.json"
        assert main(["transmit", *TINY, *deep, "--seed", seed, "--json", str(path)]) == 0
        seen.append(json.loads(path.read_text())[0]["psnr_rgb_db"])
    assert seen[0] == seen[1] != seen[2]


def test_stills_go_to_a_folder(tmp_path: Path, deep: list[str]) -> None:
    import cv2

    (tmp_path / "in").mkdir()
    for i in range(2):
        cv2.imwrite(str(tmp_path / "in" / f"{i}.png"), np.full((64, 80, 3), 90 * i + 40, np.uint8))
    args = ["transmit", str(tmp_path / "in"), str(tmp_path / "out"), "--stills", "--metrics", "psnr_rgb_db", *deep]
    assert main(args) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png"]


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["channels"]) == 0
    out = capsys.readouterr().out
    assert "rayleigh" in out
    assert "--channel" in out
    assert main(["systems"]) == 0
    out = capsys.readouterr().out
    for name in SYSTEMS:
        assert f"\n{name}  " in f"\n{out}"


def test_numbers() -> None:
    assert options.numbers("0, 5,-10,1/4,5", "--snr") == [0.0, 5.0, -10.0, 0.25]
    for text in ("", "1,,2", "a", "1/0", "1/2/3", "nan", "1e400"):
        with pytest.raises(SpecError, match="--snr"):
            options.numbers(text, "--snr")
    with pytest.raises(SpecError, match="compare"):
        options.one_number("1,2", "--snr", "transmit")
    assert options.names(" a, b:c ,a", "--systems") == ["a", "b:c"]
    assert options.frame_size("416x240") == (416, 240)
