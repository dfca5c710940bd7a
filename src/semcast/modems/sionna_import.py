"""The one place where modems import Sionna: late, since it takes seconds, and without disturbing anybody's randomness."""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import Any

import torch


def sionna_phy(module: str) -> Any:
    """Return ``sionna.phy.<module>``.

    Sionna's configuration reseeds torch's default generators when it is first imported; they are put back.
    """
    name = f"sionna.phy.{module}"
    if name in sys.modules:
        return sys.modules[name]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)
