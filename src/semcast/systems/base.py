"""What every system is: a transmitter and a receiver that may only talk through a Link.

    Step -> System.encode -> Payload -> Link.send -> Received -> System.decode -> Decoded

``start`` makes one state for each side. They are separate on purpose: a transmitter never uses what only the receiver heard.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from semcast.types import Aux, Budget, Csi, Decoded, Format, Payload, Received, State, Step, StepResult

Side = Literal["tx", "rx"]


@dataclass(frozen=True)
class SystemSpec:
    """A registry entry: what a system is, and how to make one.

    Attributes:
        name: public name. summary: one line. paper: citation, or "" for what is no paper's.
        kind: "digital", "analog" or "hybrid". goals: names of goals it serves: who delivers frames serves all
            that read frames. presets: the first is the default.
        make: (preset, condition name) -> System, with fresh weights where it has any.
        trained: whether it has weights that must be loaded before it is of use. picture: codes every frame on its own.
        lenders: presets that run on the weights of another one where they are given none of their own, and whose.
    """

    name: str
    summary: str
    kind: Literal["digital", "analog", "hybrid"]
    make: Callable[[str, str], System]
    paper: str = ""
    goals: tuple[str, ...] = ("watch", "segment")
    presets: tuple[str, ...] = ("default",)
    trained: bool = False
    picture: bool = False
    lenders: Mapping[str, str] = field(default_factory=dict, hash=False)


class System(nn.Module, ABC):
    """One transmitter and receiver.

    Attributes:
        name, preset: as registered. frames_per_step: 1 for low delay, or one GOP or clip.
        follows_scenes: whether a step, up to ``frames_per_step`` frames, is also to begin where a scene does.
        modem_kind: "ldpc" (the link's physical layer as asked for) or "capacity" (the ideal bound).
        key_name: "system:preset" of the system that it holds in the attribute ``key`` for key frames, whose weights stand in a
            checkpoint of their own; "" for none, or one whose weights are part of its own checkpoint.
        batched: whether training takes several examples at a time.
        adapted: how names of tensors begin that :meth:`adapt` fits, whatever weights training begins with.
        free_streams: names of streams that the paper gets for free; only honoured under ``assumed_free=True``.
        task: what a stage of training lowers that serves another goal than watching, beside the distance of frames: the goal's
            own distance, (B,).
        maps: where a transmitter that sends segmentation maps has them from, "" where it sends none. segmenter: what predicts
            them, (N, 3, H, W) in [0, 1] -> (N, H, W) int64.
    """

    name: str = ""
    preset: str = "default"
    frames_per_step: int = 1
    follows_scenes: bool = False
    modem_kind: Literal["ldpc", "capacity"] = "ldpc"
    key_name: str = ""
    batched: bool = True
    adapted: tuple[str, ...] = ()
    free_streams: frozenset[str] = frozenset()
    task: Callable[[Step, Decoded], Tensor] | None = None
    maps: Literal["", "predicted", "truth"] = ""
    segmenter: Callable[[Tensor], Tensor] | None = None

    @abstractmethod
    def start(self, fmt: Format, side: Side) -> State:
        """State of one side at the beginning of a session, from the session header alone."""

    @abstractmethod
    def encode(
        self, step: Step, state: State, csi: Csi, budget: Budget, *, generator: torch.Generator
    ) -> tuple[Payload, State, Aux]:
        """Turn a step into streams; sees the source and the transmitter's own past only."""

    @abstractmethod
    def decode(
        self, received: Received, state: State, n_frames: int, *, generator: torch.Generator
    ) -> tuple[Decoded, State, Aux]:
        """Turn what arrived into ``n_frames`` frames (or labels, scores); sees the air and the receiver's own past only.

        ``n_frames`` is the play-out clock: how many frame times have passed. Whatever was lost, as many frames come out.
        """

    def loss(self, run: Sequence[StepResult], goal: str, stage: Mapping[str, Any]) -> dict[str, Tensor]:
        """Training losses over a run, ``"loss"`` being the one to minimise; systems without parameters have none."""
        raise TypeError(f"{self.name or type(self).__name__} has nothing to train")

    def begin(self, options: Mapping[str, Any]) -> None:  # most systems train in one way throughout
        """A stage of training begins: its options, which decide what runs do until the next one begins."""

    def adapt(self, clips: Tensor) -> None:  # most have nothing to adapt
        """Fit to clips (N, t, 3, H, W) what the weights that training begins with, borrowed or fresh, do not have."""

    def lr_scale(self, parameter: str) -> float:
        """Factor on the learning rate of a parameter, by name; closed-form starts are best moved slowly."""
        return 1.0
