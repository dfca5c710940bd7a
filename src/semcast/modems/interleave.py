"""Where the symbols of a burst stand on the air: spread over all of it, so that every block meets all of its fading.

    blocks 0 1 2      c . . c . . c . . .      c: control, every ``stride`` uses
                        0 2   1 0   2 1 0      one symbol of each block per column, in an order that looks random

A plain row-column interleaver would leave a block on one subcarrier for good where the number of blocks and that of the
subcarriers agree; an order of its own per column does not.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


class Burst(NamedTuple):
    """Places in a burst: ``control`` (control uses,) of the control block, ``data`` (blocks, block uses) of each block."""

    control: Places
    data: Places


def control_stride(uses: int, total: int) -> int:
    """Distance between control symbols in a burst of ``total`` uses: the largest power of two at which ``uses`` of them fit."""
    return 1 << max((total // uses).bit_length() - 1, 0)


def _hash(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): the same on every machine and in every version of a library."""
    with np.errstate(over="ignore"):
        values = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=8)
def burst(control_uses: int, blocks: int, block_uses: int) -> Burst:
    """The interleaver of a burst; a function of three numbers that both ends know once the control block is read."""
    total = control_uses + blocks * block_uses
    control = np.arange(control_uses, dtype=np.int64)
    if control_uses:
        control *= control_stride(control_uses, total)
    free = np.delete(np.arange(total, dtype=np.int64), control)
    keys = _hash(np.arange(blocks * block_uses, dtype=np.uint64)).reshape(block_uses, blocks)
    order = keys.argsort(axis=1, kind="stable")
    data = np.take_along_axis(free.reshape(block_uses, blocks), order, axis=1).T
    return Burst(control, np.ascontiguousarray(data))
