"""Golden values hold; ``make golden`` writes them again."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
WANTED: dict[str, Any] = json.loads((HERE / "golden.json").read_text())


@pytest.fixture(scope="module")
def made() -> Any:
    """The script that makes the values."""
    spec = importlib.util.spec_from_file_location("golden_regenerate", HERE / "regenerate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ledger_to_the_symbol(made: Any) -> None:
    assert made.ledger_of_a_session() == WANTED["ledger"]


def test_headers_to_the_byte(made: Any) -> None:
    from semcast.link import unpack_header

    for name, text in WANTED["headers"].items():
        assert unpack_header(bytes.fromhex(text)) == unpack_header(bytes.fromhex(made.headers()[name]))


def test_block_error_tables(made: Any) -> None:
    """Look-ups to 0.1 %; choices and sizes exactly."""
    found, wanted = made.block_error_rates(), WANTED["tables"]
    assert found["bler"] == pytest.approx(wanted["bler"], rel=1e-3)
    assert found["threshold_db"] == pytest.approx(wanted["threshold_db"], abs=1e-3)
    assert found["selected"] == wanted["selected"]
    assert found["uses_for_bytes"] == wanted["uses_for_bytes"]


def test_scenes_to_a_level(made: Any) -> None:
    """Means to half a level of 255: machines round differently, photographs and motion do not."""
    found = made.scenes()
    assert set(found) == set(WANTED["scenes"])
    for name, values in found.items():
        assert values == pytest.approx(WANTED["scenes"][name], abs=0.5 / 255), name


def test_fading_gains(made: Any) -> None:
    """Mean powers of fixed draws, to 0.1 %."""
    found = made.gains()
    assert set(found) == set(WANTED["gains"])
    for name, values in found.items():
        assert values == pytest.approx(WANTED["gains"][name], rel=1e-3), name
