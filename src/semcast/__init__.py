"""Semcast: video over a radio, by digital chains and by deep joint source-channel coding, on one honest link.

The public names below are resolved on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "Channel": "channels.base",
    "make_channel": "channels",
    "describe_channels": "channels.spec",
    "CHANNELS": "channels",
    "SYSTEMS": "systems",
    "METRICS": "metrics",
    "GOALS": "goals",
    "System": "systems.base",
    "SystemSpec": "systems.base",
    "make_system": "checkpoint",
    "Link": "link",
    "Ledger": "ledger",
    "Charge": "ledger",
    "run": "transmit",
    "Step": "types",
    "Format": "types",
    "Csi": "types",
    "Budget": "types",
    "Analog": "types",
    "Packet": "types",
    "Digital": "types",
    "RxAnalog": "types",
    "Decoded": "types",
    "StepResult": "types",
    "Row": "studies.rows",
    "SemcastError": "errors",
    "InputError": "errors",
    "open_clips": "video.io",
    "VideoWriter": "video.writer",
}
__all__ = sorted([*_WHERE, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
