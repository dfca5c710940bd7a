"""Which presets the contract holds by default: the first, the published one, and what ships; variants of these are slow.

Published networks are large. What takes sessions of its own is slow for them where another preset of the system ships.
"""

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


def is_light(spec: SystemSpec, preset: str) -> bool:
    """Whether a preset is tested by default where a test runs sessions of its own."""
    ships = any(checkpoint.shipped(spec.name, other) for other in spec.presets)
    return is_main(spec, preset) and not (preset.startswith("paper") and ships)


def cases(
    wanted: Callable[[SystemSpec], bool] = lambda spec: True, default: Callable[[SystemSpec, str], bool] = is_main
) -> list[Any]:
    """Parameters (spec, preset) of the systems that are wanted; slow but for those that ``default`` names."""
    return [
        pytest.param(spec, preset, id=f"{spec.name}:{preset}", marks=[] if default(spec, preset) else pytest.mark.slow)
        for spec in SPECS
        if wanted(spec)
        for preset in spec.presets
    ]
