"""Which presets the contract holds by default: the first, the published one, and what ships; variants of these are slow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from semcast import checkpoint
from semcast.systems import SYSTEMS
from semcast.systems.base import SystemSpec

SPECS: list[SystemSpec] = [SYSTEMS.get(name) for name in SYSTEMS]


def is_main(spec: SystemSpec, preset: str) -> bool:
    """Whether a preset is tested by default."""
    return preset in (spec.presets[0], "paper") or checkpoint.shipped(spec.name, preset) is not None


def cases(wanted: Callable[[SystemSpec], bool] = lambda spec: True) -> list[Any]:
    """Parameters (spec, preset) of the systems that are wanted."""
    return [
        pytest.param(spec, preset, id=f"{spec.name}:{preset}", marks=[] if is_main(spec, preset) else pytest.mark.slow)
        for spec in SPECS
        if wanted(spec)
        for preset in spec.presets
    ]
