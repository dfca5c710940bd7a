"""What a goal is: the output it asks for, the distance that training lowers, the metrics that reports show."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from semcast.types import Decoded, Step


@dataclass(frozen=True)
class TaskModelSpec:
    """A registry entry: a network of the receiver's, trained by itself and frozen before anything is judged by it.

    Attributes:
        name: public name. summary: one line. presets: the first is the default.
        make: preset -> module with fresh weights; it has ``name``, ``preset`` and ``config``, as checkpoints want.
    """

    name: str
    summary: str
    make: Callable[[str], nn.Module]
    presets: tuple[str, ...] = ("small",)


class Goal(ABC):
    """A use of the received video.

    Attributes:
        name: as registered. summary: one line. output: the field of ``Decoded`` that it reads; a goal that reads frames serves
            every system that delivers frames.
        metrics: names in ``METRICS``, the first is the one that a system is judged by.
        truth: the ground truth that it needs, a key of ``Step.labels``, or "".
        classes: names of the classes of that ground truth, in the order of the labels. ignore_index: the label that counts for
            nothing, or None.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    output: ClassVar[Literal["frames", "labels", "scores"]]
    metrics: ClassVar[tuple[str, ...]]
    truth: ClassVar[str] = ""
    classes: ClassVar[tuple[str, ...]] = ()
    ignore_index: ClassVar[int | None] = None

    @abstractmethod
    def distortion(self, step: Step, decoded: Decoded) -> Tensor:
        """Differentiable distance between what was meant and what came out, one per batch element; (B,).

        Raises:
            ContractError: the system does not produce what the goal reads.
        """

    def perceive(self, decoded: Decoded) -> Decoded:
        """``decoded`` with what the receiver's task model reads from it; as it is, where the goal has no task model."""
        return decoded
