"""What a goal is: the output it asks for, the distance that training lowers, the metrics that reports show."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor

from semcast.types import Decoded, Step


class Goal(ABC):
    """A use of the received video.

    Attributes:
        name: as registered. summary: one line. output: the field of ``Decoded`` that it reads.
        metrics: names in ``METRICS``, the first is the one that a system is judged by.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    output: ClassVar[Literal["frames", "labels", "scores"]]
    metrics: ClassVar[tuple[str, ...]]

    @abstractmethod
    def distortion(self, step: Step, decoded: Decoded) -> Tensor:
        """Differentiable distance between what was meant and what came out, one per batch element; (B,).

        Raises:
            ContractError: the system does not produce what the goal reads.
        """
