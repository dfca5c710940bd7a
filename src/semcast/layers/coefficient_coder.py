"""Transform coefficients as whole numbers and as bytes: uniform quantisation, and range coding under Laplace models.

    z / step ─▶ q, the cheapest of distortion + price x bits ─▶ those likely to be large first ─▶ range coder ─▶ bytes

The variance of a coefficient over the squared step, its *depth*, counts in quarters of a decibel and is a whole number that
both ends know. Tables of frequencies follow from it by decimal arithmetic, which rounds correctly, and integers alone: every
machine reads the same numbers out of the same bytes.
"""

from __future__ import annotations

import math
from decimal import Context, Decimal, localcontext
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from semcast.layers.allocation import STEPS_PER_DB

LEAST_DEPTH, MOST_DEPTH = -32, 320
"""Coefficients of less depth are not worth a bit; of more there are none."""
BIT_PRICE = 0.14
"""What a bit costs in squared steps: ln 2 / 6 = 0.116 where steps are fine, more where most numbers are 0."""
DEAD_ZONE = Decimal("0.15")
"""By how much more than half a step a value exceeds a number that becomes the next, in the models."""
REACH = 7
"""Standard deviations that a table reaches; larger numbers are cut off."""
_DECIMALS = Context(prec=40)


@lru_cache(maxsize=1024)
def frequencies(depth: int) -> np.ndarray:
    """(2 K + 1,) int64 frequencies of -K..K: a Laplace variable of this depth, as :func:`quantise` leaves it."""
    with localcontext(_DECIMALS):
        fall = -Decimal(2).sqrt() / _sigma(depth)  # P(|z| > x) = exp(fall x)
        tail, ratio = int((fall * (DEAD_ZONE + Decimal("0.5"))).exp() * 2**64), int(fall.exp() * 2**64)
    centre, side = 2**64 - tail, []
    for _ in range(largest(depth)):
        less = tail * ratio >> 64
        side.append((tail - less) // 2)
        tail = less
    return np.array([1 + (often >> 42) for often in (*side[::-1], centre, *side)], dtype=np.int64)


def largest(depth: int) -> int:
    """K of :func:`frequencies`."""
    with localcontext(_DECIMALS):
        return 2 + int(REACH * _sigma(depth))


def _sigma(depth: int) -> Decimal:
    return (Decimal(depth) / (20 * STEPS_PER_DB) * Decimal(10).ln()).exp()


def quantise(u: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """The number that is cheapest, and its price in squared steps, distortion and bits, for values of these depths.

    Args:
        u: values over the step. depth: as many, or as broadcasts; below ``LEAST_DEPTH`` the number is 0 and costs no bits.
    """
    row = depth.clamp(LEAST_DEPTH - 1, MOST_DEPTH) - LEAST_DEPTH + 1
    zero, one, slope, reach = (table[row] for table in _lengths())
    size = u.abs()
    # Bits grow by ``slope`` from number to number, so that the cheapest lies a little below the nearest.
    number = torch.minimum((size - BIT_PRICE / 2 * slope).round().clamp_min(1), reach)
    price = (size - number).square() + BIT_PRICE * (one + slope * (number - 1))
    nothing = size.square() + BIT_PRICE * zero
    return torch.where(price < nothing, number, 0) * u.sign(), torch.minimum(price, nothing)


@lru_cache(maxsize=1)
def _lengths() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For depths below the least, then one by one: bits of 0 and of 1, bits from number to number, and the largest number."""
    depth = torch.arange(LEAST_DEPTH, MOST_DEPTH + 1, dtype=torch.float64)
    fall = -math.sqrt(2) / 10 ** (depth / (20 * STEPS_PER_DB))
    tail = (fall * (0.5 + float(DEAD_ZONE))).exp()
    zero, one, slope = -(1 - tail).log2(), 1 - (tail * (1 - fall.exp())).log2(), -fall / math.log(2)
    reach = torch.tensor([largest(each) for each in range(LEAST_DEPTH, MOST_DEPTH + 1)])
    below = (zero, 0.0), (one, torch.inf), (slope, 0.0), (reach, 1.0)
    a, b, c, d = (torch.cat([torch.tensor([value]), table.float()]) for table, value in below)
    return a, b, c, d


class Layout(NamedTuple):
    """Which coefficients of a picture's blocks may be coded, those likely to be large first: places and depths, both (n,)."""

    places: np.ndarray
    depths: np.ndarray


def layout(depth: Tensor) -> Layout:
    """The order that follows from depths (N, L) of coefficients."""
    flat = depth.flatten().cpu().numpy()
    places = np.flatnonzero(flat >= LEAST_DEPTH)
    places = places[np.argsort(-flat[places], kind="stable")]
    return Layout(places, np.minimum(flat[places], MOST_DEPTH))


def code_lengths(numbers: np.ndarray, depths: np.ndarray) -> np.ndarray:
    """Ideal code lengths in bits of numbers (n,) in falling order of depths (n,)."""
    lengths = np.empty(len(numbers))
    for depth, begin, end in _stretches(depths):
        table = frequencies(depth)
        lengths[begin:end] = -np.log2(table / table.sum())[numbers[begin:end] + len(table) // 2]
    return lengths


def encode(numbers: np.ndarray, depths: np.ndarray) -> bytes:
    """Range-code numbers (n,) int64 in falling order of depths (n,)."""
    import constriction

    encoder = constriction.stream.queue.RangeEncoder()
    for depth, begin, end in _stretches(depths):
        table = frequencies(depth)
        model = constriction.stream.model.Categorical(table / table.sum(), perfect=False)
        encoder.encode((numbers[begin:end] + len(table) // 2).astype(np.int32), model)
    data: bytes = encoder.get_compressed().astype("<u4").tobytes()
    return data.rstrip(b"\0")


def decode(data: bytes, depths: np.ndarray) -> np.ndarray | None:
    """The inverse of :func:`encode`: (n,) int64; None where the bytes cannot be such a string."""
    import constriction

    padded = data + b"\0" * (-len(data) % 4)
    decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(padded, dtype="<u4").astype(np.uint32))
    numbers = np.empty(len(depths), dtype=np.int64)
    try:
        for depth, begin, end in _stretches(depths):
            table = frequencies(depth)
            model = constriction.stream.model.Categorical(table / table.sum(), perfect=False)
            numbers[begin:end] = decoder.decode(model, end - begin) - len(table) // 2
    except (AssertionError, ValueError):
        return None
    return numbers


def _stretches(depths: np.ndarray) -> list[tuple[int, int, int]]:
    """Depth, begin and end of every stretch of like depths."""
    ends = [*(np.flatnonzero(np.diff(depths)) + 1).tolist(), len(depths)] if len(depths) else []
    return [(int(depths[begin]), begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
