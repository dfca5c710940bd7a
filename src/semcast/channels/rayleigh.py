"""Rayleigh fading: diffuse paths only."""

from __future__ import annotations

from typing import ClassVar

from semcast.channels.fading import Scatter


class Rayleigh(Scatter):
    """``h ~ CN(0, 1)``: a new gain every use, or constant over blocks that follow the clock."""

    name: ClassVar[str] = "rayleigh"
    summary: ClassVar[str] = "Rayleigh fading, complex: per symbol (fast) or per block of the clock"
    example: ClassVar[str] = "rayleigh:block,coherence=512,csi_error_var=0.01"
