"""Mutated air files against ``semcast receive``: a sample by default, thousands with ``make fuzz``."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_air import fuzz


def test_fuzz_a_sample_of_mutated_air_files(tmp_path: Path) -> None:
    outcomes = fuzz(60, seed=1, folder=tmp_path)
    assert sum(outcomes.values()) == 60
    assert outcomes["refused"] > 30


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fuzz_thousands_of_mutated_air_files(tmp_path: Path) -> None:
    outcomes = fuzz(2500, seed=2, folder=tmp_path)
    assert sum(outcomes.values()) == 2500
    assert outcomes["refused"] > 1200
