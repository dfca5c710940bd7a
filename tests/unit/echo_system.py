"""A system for tests, where it does not matter which: shrunken frames as analog symbols, one weight, any rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from semcast.errors import BudgetError
from semcast.systems import SYSTEMS
from semcast.systems.base import Side, System, SystemSpec
from semcast.types import Analog, Aux, Budget, Csi, Decoded, Format, Payload, Received, RxAnalog, Step, as_complex, as_real


@dataclass(frozen=True)
class EchoConfig:
    """How strongly the receiver amplifies."""

    gain: float = 0.25


class Echo(System):
    """Every frame is one analog stream ``pixels``."""

    name = "echo"

    def __init__(self, config: EchoConfig, preset: str) -> None:
        super().__init__()
        self.config, self.preset = config, preset
        self.gain = nn.Parameter(torch.full((1,), config.gain))

    @staticmethod
    def grid(fmt: Format) -> tuple[int, int]:
        """Rows and columns of the shrunken frame; raises BudgetError."""
        side = math.isqrt(int(2 * fmt.cbr * fmt.height * fmt.width)) // 2 * 2
        if side < 4:
            raise BudgetError(f"echo cannot send {fmt.width}x{fmt.height} at CBR {fmt.cbr:g}; raise --cbr")
        return side, side

    def start(self, fmt: Format, side: Side) -> Format:
        self.grid(fmt)
        return fmt

    def encode(
        self, step: Step, state: Format, csi: Csi, budget: Budget, *, generator: torch.Generator
    ) -> tuple[Payload, Format, Aux]:
        small = F.adaptive_avg_pool2d(step.frames[0], self.grid(state))
        return {"pixels": Analog(as_complex(small.reshape(1, -1) - 0.5))}, state, {}

    def decode(
        self, received: Received, state: Format, n_frames: int, *, generator: torch.Generator
    ) -> tuple[Decoded, Format, Aux]:
        rx = received["pixels"]
        assert isinstance(rx, RxAnalog)
        small = as_real(rx.equalised()[0]).reshape(n_frames, 3, *self.grid(state)) * self.gain + 0.5
        return Decoded(frames=F.interpolate(small, (state.height, state.width)).clamp(0, 1)[None]), state, {}


PRESETS = {"small": EchoConfig(), "paper": EchoConfig(0.3)}
SPEC = SystemSpec(
    "echo", "a system for tests", "analog", lambda preset, condition: Echo(PRESETS[preset], preset),
    presets=tuple(PRESETS), trained=True, picture=True,
)  # fmt: skip


@contextmanager
def registered() -> Iterator[None]:
    """Have ``echo`` in the registry for a while."""
    SYSTEMS.register("echo")(SPEC)
    try:
        yield
    finally:
        del SYSTEMS._items["echo"]
