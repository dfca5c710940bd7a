"""The card of SemAttJSCC follows from rows alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from semcast.studies.rows import Row, write_json


@pytest.fixture
def bench(script: Callable[[str], ModuleType]) -> tuple[ModuleType, ModuleType]:
    return script("reproduction"), script("sematt_numbers")


def row(system: str, snr_db: float, psnr_db: float, lpips: float, hits: int, **values: object) -> Row:
    """One picture of 200 pixels of two classes, ``hits`` of each right."""
    base: dict[str, object] = {"clip": "a", "frames": 1, "height": 64, "width": 96, "channel": "awgn", "goal": "segment"}
    base |= {"snr_db": snr_db, "csi_snr_db": snr_db, "cbr_target": 1 / 12, "cbr": 1 / 12, "channel_uses": 1000, "seed": 0}
    counts = {"hits": [hits, hits], "truth": [100, 100], "predicted": [100, 100]}
    base |= {"ssim_rgb": 0.8, "label_counts": {"received": counts}, "assumed_free_uses": 0, "weights": system[:4]}
    return Row.model_validate(base | {"system": system, "psnr_rgb_db": psnr_db, "lpips_squeeze": lpips} | values)


@pytest.fixture
def rows() -> list[Row]:
    """At 0 and 5 dB: SemAttJSCC 2 % ahead in PSNR and 10 % in LPIPS where maps are free, level where they are charged."""
    found = []
    for snr_db, psnr_db in ((0.0, 25.0), (5.0, 30.0)):
        found.append(row("dynamicjscc", snr_db, psnr_db, 0.40, 50))
        found.append(row("sematt-jscc", snr_db, 1.02 * psnr_db, 0.36, 60, maps="truth", assumed_free_uses=300))
        found.append(row("sematt-jscc", snr_db, psnr_db, 0.40, 50, maps="truth"))
    return found


def test_gains_are_those_of_the_rows(bench: tuple[ModuleType, ModuleType], rows: list[Row]) -> None:
    _, numbers = bench
    assert numbers.gain_percent(rows, "psnr_rgb_db", 0.0, free=True) == pytest.approx(2)
    assert numbers.gain_percent(rows, "lpips_squeeze", 5.0, free=True) == pytest.approx(-10)
    assert numbers.gain_percent(rows, "lpips_squeeze", 5.0, free=False) == pytest.approx(0)
    # 60 hits of 140 in the union against 50 of 150, in points
    assert numbers.gain_percent(rows, "miou", 5.0, free=True) == pytest.approx(100 * (60 / 140 - 50 / 150))
    assert numbers.gain_percent(rows, "psnr_rgb_db", 10.0, free=True) is None


def test_gains_are_averaged_over_trainings(bench: tuple[ModuleType, ModuleType], rows: list[Row]) -> None:
    _, numbers = bench
    second = list(rows)
    second[1] = second[1].model_copy(update={"psnr_rgb_db": 26.0})
    text, values = numbers.seed_table([rows, second])
    assert values["psnr_rgb_db free at 0"] == pytest.approx((2 + 4) / 2)
    assert values["psnr_rgb_db paid at 0"] == pytest.approx(0)
    assert "+3.00 ± 12.71" in text  # Student's t with one degree of freedom


def test_the_card_says_what_was_measured_and_what_was_not(
    bench: tuple[ModuleType, ModuleType], rows: list[Row], tmp_path: Path
) -> None:
    reproduction, _ = bench
    empty = reproduction.make_card("sematt-jscc", tmp_path)
    assert empty.count("not attempted") >= 7
    write_json(tmp_path / "jscc.json", rows)
    text = reproduction.make_card("sematt-jscc", tmp_path)
    assert "| Fig. 3: PSNR against SNR | partly |" in text
    assert "| Fig. 8: mIoU beside conventional coding | not attempted |" in text
    assert "python benchmarks/sematt_study.py jscc --out out/sematt" in text
    assert "`sematt-jscc`, truth maps free" in text
    assert "`sematt-jscc`, truth maps counted" in text
