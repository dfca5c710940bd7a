"""Motion of 16x16 blocks: estimated against a reference, compensated, and coded into bytes.

Vectors are in quarter pixels, int64 as (x, y): a block at p looks like the reference at p + vector / 4.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semcast.layers.block_classes import BLOCK
from semcast.layers.motion import inverse_search, luma_levels

PER_PIXEL = 4
LIMIT = 255
"""Longest component, in quarter pixels."""
SPAN = 32
"""Differences to the prediction up to this size have a symbol of their own; the last symbol is an escape."""
SYMBOLS = 2 * SPAN + 2
CONTEXTS = 4
FLAG_CONTEXTS = 8
"""Of the flag that a vector departs from its prediction."""
SPLIT_CONTEXTS = 6
SWEEPS = 2


class Motion(NamedTuple):
    """Motion of one frame on a grid of 16x16 blocks, any of which may be split into four.

    Attributes:
        base: (h, w, 2) int64 vectors, which predict their neighbours. split: (h, w) bool. quarters: (h, w, 4, 2) int64
            vectors of the four 8x8 blocks of a block, upper left, upper right, lower left, lower right; the base where it is
            not split.
    """

    base: np.ndarray
    split: np.ndarray
    quarters: np.ndarray

    @classmethod
    def still(cls, h: int, w: int) -> Motion:
        """No motion anywhere."""
        return cls(*(np.zeros(shape, dtype) for shape, dtype in (((h, w, 2), int), ((h, w), bool), ((h, w, 4, 2), int))))

    def field(self) -> Tensor:
        """(2 h, 2 w, 2) vectors of 8x8 blocks."""
        h, w = self.split.shape
        return torch.from_numpy(self.quarters.reshape(h, w, 2, 2, 2).transpose(0, 2, 1, 3, 4).reshape(2 * h, 2 * w, 2))


class Counts(NamedTuple):
    """How often symbols occur: flags (FLAG_CONTEXTS, 2), differences (CONTEXTS, SYMBOLS), splits (SPLIT_CONTEXTS, 2), and
    differences of quarters to their block (1, SYMBOLS). The same shapes hold the tables that are made of them."""

    flags: np.ndarray
    differences: np.ndarray
    splits: np.ndarray
    quarters: np.ndarray

    @classmethod
    def zeros(cls) -> Counts:
        """Nothing seen yet."""
        shapes = (FLAG_CONTEXTS, 2), (CONTEXTS, SYMBOLS), (SPLIT_CONTEXTS, 2), (1, SYMBOLS)
        return cls(*(np.zeros(shape) for shape in shapes))

    @classmethod
    def rough(cls) -> Counts:
        """About how symbols are distributed, to begin with: small differences, few departures, fewer splits."""
        flags, differences, splits, quarters = cls.zeros()
        shape = 60000.0 / (1.0 + np.abs(np.arange(SYMBOLS) - SPAN)) ** 2 + 1
        flags[:], splits[:] = (50000, 10000), (57000, 3000)
        differences[:], quarters[:] = shape, shape
        return cls(flags, differences, splits, quarters)


def estimate(
    current: Tensor, reference: Tensor, tables: Counts, before: Motion | None = None, bit_price: float = 0.0
) -> Motion:
    """Motion of one frame (3, H, W) against another, sides multiples of 16.

    Dense flow (DIS, Kroeger et al. 2016) proposes the median of every block; beside it stand no motion, the frame's median,
    the neighbours' proposals and the block's last vector. The least of squared difference and priced bits wins, by iterated
    conditional modes; then a block is split where its quarters' own medians save more than they cost.

    Args:
        tables: that the motion will be coded under. before: of the frame before, or None. bit_price: squared difference of a
            block (sum over its values in [0, 1]) that a bit is worth.
    """
    luma = [luma_levels(frame) for frame in (current, reference)]
    flow = inverse_search(luma[0], luma[1])
    fine = _medians(flow, BLOCK // 2)
    own = _medians(flow, BLOCK)
    h, w = own.shape[:2]
    zero = np.zeros_like(own)
    common = np.broadcast_to(np.median(own, (0, 1)).astype(np.int64), own.shape)
    candidates = [own, zero, common, *_neighbours(own)] + ([before.base] if before is not None else [])
    halves = [_block_error(luma[0], _moved(luma[1], one, BLOCK)) for one in candidates]  # (2 h, 2 w) each
    errors = np.stack([one.reshape(h, 2, w, 2).sum((1, 3)) for one in halves], -1)
    choices = np.stack(candidates, 2)  # (h, w, K, 2)
    lengths = _lengths(tables.differences), _lengths(tables.flags)
    rows, columns = np.arange(h)[:, None], np.arange(w)
    # From a field that is cheap to tell: from the best of every block on its own, none would ever join its neighbours.
    pick = (errors + bit_price * _bits(choices, common, *lengths)).argmin(-1)
    for turn in range(2 * SWEEPS):
        bits = _bits(choices, choices[rows, columns, pick], *lengths)
        odd = np.add.outer(np.arange(h), np.arange(w)) % 2 == turn % 2
        pick = np.where(odd, (errors + bit_price * bits).argmin(-1), pick)
    base = choices[rows, columns, pick]
    split_error = _block_error(luma[0], _moved(luma[1], fine, BLOCK // 2)).reshape(h, 2, w, 2).transpose(0, 2, 1, 3)
    whole_error = np.stack(halves, -1).reshape(h, 2, w, 2, -1).transpose(0, 2, 1, 3, 4)[rows, columns, :, :, pick]
    quarters = fine.reshape(h, 2, w, 2, 2).transpose(0, 2, 1, 3, 4).reshape(h, w, 4, 2)
    quarters = base[:, :, None] + (quarters - base[:, :, None]).clip(-SPAN, SPAN)
    # A quarter that gains too little keeps the block's vector.
    length = _lengths(tables.quarters)[0]
    still, cost = 2 * length[SPAN], length[symbols_of(quarters - base[:, :, None])].sum(-1)
    saved = (whole_error - split_error).reshape(h, w, 4) - bit_price * (cost - still)
    quarters = np.where((saved > 0)[..., None], quarters, base[:, :, None])
    flag = _lengths(tables.splits.sum(0, keepdims=True))[0]
    split = np.maximum(saved, 0).sum(-1) > bit_price * (4 * still + flag[1] - flag[0])
    quarters = np.where(split[..., None, None], quarters, base[:, :, None])
    return Motion(base, (quarters != base[:, :, None]).any((2, 3)), quarters.clip(-LIMIT, LIMIT))


def _medians(flow: np.ndarray, block: int) -> np.ndarray:
    """Median of a flow (H, W, 2) in every block, in quarter pixels (H / block, W / block, 2)."""
    h, w = flow.shape[0] // block, flow.shape[1] // block
    grid = flow.reshape(h, block, w, block, 2).transpose(0, 2, 4, 1, 3).reshape(h, w, 2, -1)
    return np.rint(np.median(grid[..., :: block // 4 - 1], -1) * PER_PIXEL).astype(np.int64).clip(-LIMIT, LIMIT)


def _neighbours(vectors: np.ndarray) -> list[np.ndarray]:
    """Left, upper, right and lower neighbour's vector of every block, its own at the edges."""
    padded = np.pad(vectors, ((1, 1), (1, 1), (0, 0)), mode="edge")
    return [padded[1:-1, :-2], padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1]]


def _bits(choices: np.ndarray, now: np.ndarray, lengths: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """What each of the vectors (h, w, K, 2) costs where the neighbours have the vectors ``now`` (h, w, 2): (h, w, K) bits,
    given the lengths of differences and of flags."""
    prediction, context = predictions(now)
    difference = choices - prediction[:, :, None]
    explicit = lengths[context[:, :, None, None], symbols_of(difference)].sum(-1)
    flag_context = _flag_contexts((now != prediction).any(-1), None)[:, :, None]
    return np.where(difference.any(-1), flags[flag_context, 1] + explicit, flags[flag_context, 0])


def _lengths(table: np.ndarray) -> np.ndarray:
    """Ideal code lengths in bits under rows of frequencies, float32."""
    lengths: np.ndarray = -np.log2(table / table.sum(1, keepdims=True)).astype(np.float32)
    return lengths


def _moved(luma: np.ndarray, vectors: np.ndarray, block: int) -> np.ndarray:
    """A rough compensation, bilinear, to choose vectors of blocks by."""
    import cv2

    place = _dense_places(luma.shape, vectors, block)
    return cv2.remap(luma, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]


def _dense_places(shape: tuple[int, ...], vectors: np.ndarray, block: int) -> np.ndarray:
    """(H, W, 2) float32: where in the reference every pixel comes from."""
    return _places(*shape) + (vectors.astype(np.float32) / PER_PIXEL).repeat(block, 0).repeat(block, 1)


@lru_cache(maxsize=4)
def _places(height: int, width: int) -> np.ndarray:
    """(H, W, 2) float32: x and y of every pixel."""
    return np.stack(np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)), -1)


def _block_error(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared difference of luma in every 8x8 block, three times its sum over values in [0, 1]: (2 h, 2 w) float32."""
    import cv2

    half = BLOCK // 2
    squares = np.square(cv2.absdiff(a, b), dtype=np.float32)
    mean = cv2.resize(squares, (a.shape[1] // half, a.shape[0] // half), interpolation=cv2.INTER_AREA)
    return mean * np.float32(3 * half**2 / 255**2)


def compensate(reference: Tensor, field: Tensor) -> Tensor:
    """Move references (N, 3, H, W) by vectors (N, H / 8, W / 8, 2) of 8x8 blocks -> (N, 3, H, W), bicubic, edges repeated.

    Blocks overlap (Orchard and Sullivan 1994): a pixel is the mean of what the vectors of the four nearest blocks point to,
    weighed by how near their middles are. That leaves less than one vector alone, and no edges between blocks.
    """
    height, width = reference.shape[-2:]
    if not reference.requires_grad and reference.device.type == "cpu":  # half of the time
        pairs = zip(reference.float().numpy(), field.numpy(), strict=True)
        return torch.from_numpy(np.stack([_moved_colours(picture, vectors) for picture, vectors in pairs]))
    scale = reference.new_tensor([2 / width, 2 / height])
    places = torch.from_numpy(_places(height, width)).to(reference) + 0.5
    out = torch.zeros_like(reference)
    for rows, columns, weight in _overlaps(height, width):
        dense = field[:, rows][:, :, columns].to(reference) / PER_PIXEL
        grid = (places + dense) * scale - 1
        moved = F.grid_sample(reference, grid, mode="bicubic", padding_mode="border", align_corners=False)
        out = out + torch.from_numpy(weight).to(reference) * moved
    return out


def _moved_colours(picture: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The same of one picture (3, H, W); no gradients pass."""
    import cv2

    height, width = picture.shape[1:]
    colours = np.ascontiguousarray(picture.transpose(1, 2, 0))
    steps = vectors.astype(np.float32) / PER_PIXEL
    alike = bool((vectors == vectors[0, 0]).all())
    out = np.zeros_like(colours)
    for rows, columns, weight in _overlaps(height, width):
        place = _places(height, width) + steps[rows][:, columns]
        moved = cv2.remap(colours, place, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]  # its stubs want two maps
        if alike:
            return moved.transpose(2, 0, 1)
        moved *= weight[:, :, None]
        out += moved
    return out.transpose(2, 0, 1)


@lru_cache(maxsize=4)
def _overlaps(height: int, width: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The four nearest 8x8 blocks of every pixel: their rows (H,), columns (W,) and weights (H, W), which add up to 1."""
    axes = []
    for length in (height, width):
        place = (np.arange(length) + 0.5) / (BLOCK // 2) - 0.5
        first = np.floor(place).astype(np.int64)
        part, last = (place - first).astype(np.float32), length // (BLOCK // 2) - 1
        axes.append(((first.clip(0, last), 1 - part), ((first + 1).clip(0, last), part)))
    return [(rows, columns, up[:, None] * left) for rows, up in axes[0] for columns, left in axes[1]]


# -- coding ------------------------------------------------------------------------------------------------------------------


def predictions(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Prediction (h, w, 2) and context (h, w) of every vector from its left, upper and upper right neighbours."""
    h, w, _ = vectors.shape
    padded = np.zeros((h + 1, w + 2, 2), dtype=np.int64)
    padded[1:, 1:-1] = vectors
    left, up, corner = padded[1:, :-2], padded[:-1, 1:-1], padded[:-1, 2:]
    spread = (np.abs(left - up) + np.abs(up - corner)).sum(2)
    middle: np.ndarray = np.maximum(np.minimum(left, up), np.minimum(np.maximum(left, up), corner))
    return middle, (spread >= 1).astype(np.int64) + (spread >= 8) + (spread >= 32)


def symbols_of(difference: np.ndarray) -> np.ndarray:
    """Symbol of every difference: its value, or the escape."""
    return np.where(np.abs(difference) <= SPAN, difference + SPAN, SYMBOLS - 1).astype(np.int32)


def _flag_contexts(moved: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    """Context of a block's flag: how many of left, upper and earlier block depart from their predictions."""
    left, up = np.zeros_like(moved), np.zeros_like(moved)
    left[:, 1:], up[1:] = moved[:, :-1], moved[:-1]
    total = left.astype(np.int64) + up
    return total if before is None else 3 + total + 2 * before.astype(np.int64)


def _split_contexts(split: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Context of a block's split: how many of left and upper neighbour are split, and whether it departs itself."""
    left, up = np.zeros_like(split), np.zeros_like(split)
    left[:, 1:], up[1:] = split[:, :-1], split[:-1]
    return left.astype(np.int64) + up + 3 * moved


def count(motion: Motion, before: np.ndarray | None, into: Counts) -> np.ndarray:
    """Add one frame's symbols to counts; returns its flags (h, w).

    Args:
        before: (h, w) flags of the frame before in the same packet, or None.
    """
    prediction, context = predictions(motion.base)
    difference = motion.base - prediction
    moved: np.ndarray = difference.any(-1)
    np.add.at(into.flags, (_flag_contexts(moved, before), moved.astype(np.int64)), 1)
    np.add.at(into.differences, (context[..., None].repeat(2, -1)[moved], symbols_of(difference)[moved]), 1)
    np.add.at(into.splits, (_split_contexts(motion.split, moved), motion.split.astype(np.int64)), 1)
    own = (motion.quarters - motion.base[:, :, None])[motion.split]
    np.add.at(into.quarters[0], symbols_of(own), 1)
    return moved


def bits_of(motion: Motion, tables: Counts) -> float:
    """Ideal code length in bits of the first frame of a packet."""
    counts = Counts.zeros()
    count(motion, None, counts)
    return float(sum((c * _lengths(table)).sum() for c, table in zip(counts, tables, strict=True)))


def _models(frequencies: np.ndarray) -> list[Any]:
    import constriction

    family = constriction.stream.model.Categorical
    return [family(row / row.sum(), perfect=False) for row in frequencies.astype(np.float64)]


def encode(encoder: Any, motion: Motion, before: np.ndarray | None, tables: Counts) -> np.ndarray:
    """Append motion to a range coder of ``constriction`` under static whole frequencies; returns the flags (h, w)."""
    import constriction

    flag_models, models, split_models, (quarter_model,) = (_models(table) for table in tables)
    escape = constriction.stream.model.Uniform(2 * LIMIT + 1)
    prediction, context = predictions(motion.base)
    difference = motion.base - prediction
    symbols, moved = symbols_of(difference), difference.any(-1)
    flag_context, split_context = _flag_contexts(moved, before), _split_contexts(motion.split, moved)
    own = symbols_of(motion.quarters - motion.base[:, :, None]).reshape(*moved.shape, 8)
    columns = [one.reshape(moved.size, -1).tolist() for one in (moved, flag_context, context, symbols, motion.base, own)]
    splits = zip(motion.split.flatten().tolist(), split_context.flatten().tolist(), strict=True)
    for (flag,), (of_flag,), (of_vector,), pair, vector, eight, (split, of_split) in zip(*columns, splits, strict=True):
        encoder.encode(int(flag), flag_models[of_flag])
        for symbol, value in zip(pair, vector, strict=True) if flag else ():
            encoder.encode(symbol, models[of_vector])
            if symbol == SYMBOLS - 1:
                encoder.encode(value + LIMIT, escape)
        encoder.encode(int(split), split_models[of_split])
        for symbol in eight if split else ():
            encoder.encode(symbol, quarter_model)
    return moved


def decode(decoder: Any, h: int, w: int, before: np.ndarray | None, tables: Counts) -> tuple[Motion, np.ndarray]:
    """The inverse of :func:`encode`, motion and flags; whatever the bytes are, vectors within the limits come out."""
    import constriction

    flag_models, models, split_models, (quarter_model,) = (_models(table) for table in tables)
    escape = constriction.stream.model.Uniform(2 * LIMIT + 1)
    base: list[list[list[int]]] = [[[0, 0]] * (w + 1)]  # rows, one above the picture first; each with a column to its right
    moved, split = [[False] * w], [[False] * w]
    quarters: list[list[int]] = []
    for i in range(h):
        left, departs, halved = [0, 0], False, False
        row, flags, splits = [], [], []
        for j, (up, corner) in enumerate(pairwise(base[-1])):
            vector = [sorted(three)[1] for three in zip(left, up, corner, strict=True)]
            total = departs + moved[-1][j]
            departs = bool(decoder.decode(flag_models[total if before is None else 3 + total + 2 * int(before[i, j])]))
            if departs:
                spread = sum(abs(a - b) + abs(b - c) for a, b, c in zip(left, up, corner, strict=True))
                model = models[(spread >= 1) + (spread >= 8) + (spread >= 32)]
                for k in (0, 1):
                    symbol = decoder.decode(model)
                    value = decoder.decode(escape) - LIMIT if symbol == SYMBOLS - 1 else vector[k] + symbol - SPAN
                    vector[k] = max(-LIMIT, min(LIMIT, value))
            halved = bool(decoder.decode(split_models[halved + split[-1][j] + 3 * departs]))
            own = [decoder.decode(quarter_model) - SPAN for _ in range(8)] if halved else [0] * 8
            quarters.append([max(-LIMIT, min(LIMIT, value + more)) for value, more in zip(vector * 4, own, strict=True)])
            left = vector
            row.append(vector)
            flags.append(departs)
            splits.append(halved)
        base.append([*row, [0, 0]])
        moved.append(flags)
        split.append(splits)
    vectors = np.array([row[:w] for row in base[1:]], dtype=np.int64)
    motion = Motion(vectors, np.array(split[1:]), np.array(quarters, dtype=np.int64).reshape(h, w, 4, 2))
    return motion, np.array(moved[1:])
