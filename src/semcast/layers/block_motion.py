"""Motion of 16x16 blocks: estimated against a reference, compensated, and coded into bytes.

Vectors are in quarter pixels, (h, w, 2) int64 as (x, y): a block at p looks like the reference at p + vector / 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semcast.layers.block_classes import BLOCK

PER_PIXEL = 4
LIMIT = 255
"""Longest component, in quarter pixels."""
SPAN = 32
"""Differences to the prediction up to this size have a symbol of their own; the last symbol is an escape."""
SYMBOLS = 2 * SPAN + 2
CONTEXTS = 4
FLAG_CONTEXTS = 8
"""Of the flag that a vector departs from its prediction."""
SWEEPS = 2


def estimate(current: Tensor, reference: Tensor, before: Tensor | None = None, bit_price: float = 0.0) -> Tensor:
    """Vectors (h, w, 2) of one frame (3, H, W) against another, sides multiples of 16.

    Dense flow (DIS, Kroeger et al. 2016) proposes the median of every block; beside it stand no motion, the neighbours'
    proposals and the block's last vector. The least of squared difference and priced bits wins, by iterated conditional modes.

    Args:
        before: (h, w, 2) vectors of the frame before, or None. bit_price: squared difference of a block (sum over its values
            in [0, 1]) that a bit is worth.
    """
    import cv2

    luma = [_luma(frame) for frame in (current, reference)]
    dense = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)  # type: ignore[attr-defined]  # not in its stubs
    flow = dense.calc(luma[0], luma[1], None)
    h, w = luma[0].shape[0] // BLOCK, luma[0].shape[1] // BLOCK
    grid = flow.reshape(h, BLOCK, w, BLOCK, 2).transpose(0, 2, 1, 3, 4).reshape(h, w, -1, 2)
    own = np.rint(np.median(grid[:, :, ::3], 2) * PER_PIXEL).astype(np.int64).clip(-LIMIT, LIMIT)
    zero = np.zeros_like(own)
    candidates = [own, zero, *_neighbours(own)] + ([before.cpu().numpy()] if before is not None else [])
    errors = np.stack([_block_error(luma[0], _moved(luma[1], one)) for one in candidates], -1)
    choices = np.stack(candidates, 2)  # (h, w, K, 2)
    now = choices[np.arange(h)[:, None], np.arange(w), errors.argmin(-1)]
    for turn in range(2 * SWEEPS):
        bits = _bits(choices - predictions(now)[0][:, :, None])
        best = choices[np.arange(h)[:, None], np.arange(w), (errors + bit_price * bits).argmin(-1)]
        odd = np.add.outer(np.arange(h), np.arange(w)) % 2 == turn % 2
        now = np.where(odd[..., None], best, now)
    return torch.from_numpy(now)


def _neighbours(vectors: np.ndarray) -> list[np.ndarray]:
    """Left, upper, right and lower neighbour's vector of every block, its own at the edges."""
    padded = np.pad(vectors, ((1, 1), (1, 1), (0, 0)), mode="edge")
    return [padded[1:-1, :-2], padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1]]


def _bits(difference: np.ndarray) -> np.ndarray:
    """About what a difference (..., 2) to the prediction costs; differences of nothing are cheap."""
    magnitude = np.abs(difference).astype(np.float32)
    return np.where(magnitude.any(-1), 3.0 + (2 * np.log2(1 + magnitude)).sum(-1), 0.3)


def _luma(frame: Tensor) -> np.ndarray:
    weights = frame.new_tensor([0.299, 0.587, 0.114])
    return ((frame * weights[:, None, None]).sum(0).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def _moved(luma: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """A rough compensation, bilinear, to choose vectors by."""
    import cv2

    height, width = luma.shape
    dense = (vectors.astype(np.float32) / PER_PIXEL).repeat(BLOCK, 0).repeat(BLOCK, 1)
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(luma, x + dense[..., 0], y + dense[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _block_error(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared difference of every block of luma, three times its sum over values in [0, 1], as for RGB: (h, w) float32."""
    import cv2

    h, w = a.shape[0] // BLOCK, a.shape[1] // BLOCK
    squares = np.square(cv2.absdiff(a, b), dtype=np.float32)
    return cv2.resize(squares, (w, h), interpolation=cv2.INTER_AREA) * np.float32(3 * BLOCK**2 / 255**2)


def compensate(reference: Tensor, vectors: Tensor) -> Tensor:
    """Move references (N, 3, H, W) by vectors (N, h, w, 2) -> (N, 3, H, W), bicubic, edges repeated."""
    height, width = reference.shape[-2:]
    dense = vectors.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2).to(reference) / PER_PIXEL
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([x, y], -1).to(reference) + dense
    scale = reference.new_tensor([2 / width, 2 / height])
    return F.grid_sample(
        reference, (place + 0.5) * scale - 1, mode="bicubic", padding_mode="border", align_corners=False
    )  # fmt: skip


# -- coding ------------------------------------------------------------------------------------------------------------------


def predictions(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Prediction (h, w, 2) and context (h, w) of every vector from its left, upper and upper right neighbours."""
    h, w, _ = vectors.shape
    padded = np.zeros((h + 1, w + 2, 2), dtype=np.int64)
    padded[1:, 1:-1] = vectors
    left, up, corner = padded[1:, :-2], padded[:-1, 1:-1], padded[:-1, 2:]
    spread = np.abs(np.stack([left - up, up - corner])).sum((0, 3))
    return np.median(np.stack([left, up, corner]), 0).astype(np.int64), np.digitize(spread, [1, 8, 32])


def symbols_of(difference: np.ndarray) -> np.ndarray:
    """Symbol of every difference: its value, or the escape."""
    return np.where(np.abs(difference) <= SPAN, difference + SPAN, SYMBOLS - 1).astype(np.int32)


def _flag_contexts(moved: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    """Context of a block's flag: how many of left, upper and earlier block depart from their predictions."""
    left, up = np.zeros_like(moved), np.zeros_like(moved)
    left[:, 1:], up[1:] = moved[:, :-1], moved[:-1]
    total = left.astype(np.int64) + up
    return total if before is None else 3 + total + 2 * before.astype(np.int64)


def count(vectors: np.ndarray, before: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often flags and differences occur, (FLAG_CONTEXTS, 2) and (CONTEXTS, SYMBOLS); and the flags.

    Args:
        vectors: (h, w, 2). before: (h, w) flags of the frame before in the same packet, or None.
    """
    flags, table = np.zeros((FLAG_CONTEXTS, 2), dtype=np.int64), np.zeros((CONTEXTS, SYMBOLS), dtype=np.int64)
    prediction, context = predictions(vectors)
    difference = vectors - prediction
    moved = difference.any(-1)
    np.add.at(flags, (_flag_contexts(moved, before), moved.astype(np.int64)), 1)
    np.add.at(table, (context[..., None].repeat(2, -1)[moved], symbols_of(difference)[moved]), 1)
    return flags, table, moved


def bits_of(vectors: np.ndarray, flags: np.ndarray, frequencies: np.ndarray) -> float:
    """Ideal code length in bits of the first frame of a packet."""
    counts = count(vectors, None)[:2]
    lengths = (-np.log2(table / table.sum(1, keepdims=True)) for table in (flags, frequencies))
    return float(sum((c * length).sum() for c, length in zip(counts, lengths, strict=True)))


def _models(frequencies: np.ndarray) -> list[Any]:
    import constriction

    family = constriction.stream.model.Categorical
    return [family(row / row.sum(), perfect=False) for row in frequencies.astype(np.float64)]


def encode(
    encoder: Any, vectors: np.ndarray, before: np.ndarray | None, flags: np.ndarray, frequencies: np.ndarray
) -> np.ndarray:
    """Append vectors to a range coder of ``constriction`` under static integer frequencies; returns the flags (h, w)."""
    import constriction

    flag_models, models = _models(flags), _models(frequencies)
    escape = constriction.stream.model.Uniform(2 * LIMIT + 1)
    prediction, context = predictions(vectors)
    difference = vectors - prediction
    symbols, moved = symbols_of(difference), difference.any(-1)
    flag_context = _flag_contexts(moved, before)
    for i, j in np.ndindex(context.shape):
        encoder.encode(int(moved[i, j]), flag_models[flag_context[i, j]])
        for k in (0, 1) if moved[i, j] else ():
            encoder.encode(int(symbols[i, j, k]), models[context[i, j]])
            if symbols[i, j, k] == SYMBOLS - 1:
                encoder.encode(int(vectors[i, j, k]) + LIMIT, escape)
    return moved


def decode(
    decoder: Any, h: int, w: int, before: np.ndarray | None, flags: np.ndarray, frequencies: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of :func:`encode`, vectors and flags; whatever the bytes are, vectors within the limits come out."""
    import constriction

    flag_models, models = _models(flags), _models(frequencies)
    escape = constriction.stream.model.Uniform(2 * LIMIT + 1)
    moved = np.zeros((h, w), dtype=bool)
    rows: list[list[tuple[int, int]]] = []
    still = (0, 0)
    for i in range(h):
        row: list[tuple[int, int]] = []
        above = rows[-1] if rows else [still] * w
        for j in range(w):
            left, up, corner = row[-1] if j else still, above[j], above[j + 1] if j + 1 < w else still
            vector = [sorted((left[k], up[k], corner[k]))[1] for k in (0, 1)]
            total = (int(moved[i, j - 1]) if j else 0) + (int(moved[i - 1, j]) if i else 0)
            context = total if before is None else 3 + total + 2 * int(before[i, j])
            if decoder.decode(flag_models[context]):
                moved[i, j] = True
                spread = sum(abs(left[k] - up[k]) + abs(up[k] - corner[k]) for k in (0, 1))
                model = models[(spread >= 1) + (spread >= 8) + (spread >= 32)]
                for k in (0, 1):
                    symbol = decoder.decode(model)
                    value = decoder.decode(escape) - LIMIT if symbol == SYMBOLS - 1 else vector[k] + symbol - SPAN
                    vector[k] = max(-LIMIT, min(LIMIT, value))
            row.append((vector[0], vector[1]))
        rows.append(row)
    return np.array(rows, dtype=np.int64).reshape(h, w, 2), moved
