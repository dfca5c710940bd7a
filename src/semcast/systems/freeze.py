"""The trivial rival of every video code: the best picture of a clip's first frame, then the same picture for ever.

All channel uses of a GOP go into one ``linear-jscc`` picture. Whoever does not beat it has shown that the clip does not move,
not that the code is good.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from semcast.systems.base import Side, System, SystemSpec
from semcast.types import Aux, Budget, Csi, Decoded, Format, Payload, Received, State, Step


class FreezeState(NamedTuple):
    """State of the key-frame system."""

    key: State


class Freeze(System):
    """Sends the first frame of every step with all of its budget, by the key-frame system, and repeats it.

    Args:
        key: a system for pictures. frames_per_step: how long a picture stays.
    """

    name = "freeze"
    key_name = "linear-jscc"

    def __init__(self, key: System, frames_per_step: int = 32) -> None:
        super().__init__()
        self.key = key
        self.frames_per_step = frames_per_step

    def start(self, fmt: Format, side: Side) -> FreezeState:
        return FreezeState(self.key.start(fmt, side))

    def encode(
        self, step: Step, state: FreezeState, csi: Csi, budget: Budget, *, generator: torch.Generator
    ) -> tuple[Payload, FreezeState, Aux]:
        # More uses than source values buy nothing for one picture.
        height, width = step.frames.shape[-2:]
        granted = replace(budget, uses=min(budget.uses, 3 * height * width))
        labels = {name: x[:, :1] for name, x in step.labels.items() if name == "segmentation"}  # a key frame may send its map
        first = Step(step.frames[:, :1], labels, step.index, step.last)
        payload, key, aux = self.key.encode(first, state.key, csi, granted, generator=generator)
        return payload, FreezeState(key), aux

    def decode(
        self, received: Received, state: FreezeState, n_frames: int, *, generator: torch.Generator
    ) -> tuple[Decoded, FreezeState, Aux]:
        decoded, key, aux = self.key.decode(received, state.key, 1, generator=generator)
        assert decoded.frames is not None
        frames = decoded.frames.expand(-1, n_frames, -1, -1, -1).contiguous()
        return Decoded(frames=frames, concealed=n_frames if decoded.concealed else 0), FreezeState(key), aux


def make(preset: str, condition: str) -> Freeze:
    """Build it around the key-frame system of the preset."""
    from semcast.systems import SYSTEMS

    key_spec = SYSTEMS.get("linear-jscc")
    return Freeze(key_spec.make(key_spec.presets[0], condition))


SPEC = SystemSpec(
    name="freeze",
    summary="the first frame of every 32 with the whole budget, then repeated: what a clip is worth without motion",
    kind="hybrid",
    make=make,
)
