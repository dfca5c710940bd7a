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


def estimate(current: Tensor, reference: Tensor, *, bits_price: float = 0.02) -> Tensor:
    """Vectors of one frame (3, H, W) against another, sides multiples of 16.

    Dense flow (DIS, Kroeger et al. 2016) proposes the median of every block; beside it stand no motion and the neighbours'
    proposals, and the least absolute difference wins, a vector unlike its prediction paying ``bits_price`` per bit and pixel row.
    """
    import cv2

    luma = [_luma(frame) for frame in (current, reference)]
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(luma[0], luma[1], None)
    h, w = luma[0].shape[0] // BLOCK, luma[0].shape[1] // BLOCK
    grid = flow.reshape(h, BLOCK, w, BLOCK, 2).transpose(0, 2, 1, 3, 4).reshape(h, w, -1, 2)
    own = torch.from_numpy(np.rint(np.median(grid, 2) * PER_PIXEL)).long().clamp(-LIMIT, LIMIT)
    zero = torch.zeros_like(own)
    left, up = torch.cat([zero[:, :1], own[:, :-1]], 1), torch.cat([zero[:1], own[:-1]], 0)
    candidates = torch.stack([zero, own, left, up])
    errors = np.stack([_block_error(luma[0], _moved(luma[1], one.numpy())) for one in candidates])
    smooth = torch.stack([zero, left, up]).median(0).values
    bits = (candidates - smooth).abs().float().add(1).log2().mul(2).sum(-1) + (candidates != smooth).any(-1) * 2.0
    choice = (torch.from_numpy(errors) + bits_price * bits).argmin(0)
    return candidates.gather(0, choice[None, :, :, None].expand(-1, -1, -1, 2))[0]


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
    """Mean absolute difference of every block in [0, 1], times its rows: (h, w) float32."""
    import cv2

    h, w = a.shape[0] // BLOCK, a.shape[1] // BLOCK
    mean = cv2.absdiff(a, b).reshape(h, BLOCK, w, BLOCK).mean((1, 3), dtype=np.float32)
    return mean * (BLOCK / 255)


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


def count(vectors: np.ndarray) -> np.ndarray:
    """How often symbols occur per context, (CONTEXTS, SYMBOLS): what tables are made of."""
    table = np.zeros((CONTEXTS, SYMBOLS), dtype=np.int64)
    prediction, context = predictions(vectors)
    np.add.at(table, (context[..., None].repeat(2, -1), symbols_of(vectors - prediction)), 1)
    return table


def encode(encoder: Any, vectors: np.ndarray, frequencies: np.ndarray) -> None:
    """Append vectors to a range coder of ``constriction`` under static integer frequencies (CONTEXTS, SYMBOLS)."""
    from constriction import stream

    models = [stream.model.Categorical(row / row.sum(), perfect=False) for row in frequencies.astype(np.float64)]
    prediction, context = predictions(vectors)
    symbols = symbols_of(vectors - prediction)
    for i, j in np.ndindex(context.shape):
        for k in (0, 1):
            encoder.encode(int(symbols[i, j, k]), models[context[i, j]])
            if symbols[i, j, k] == SYMBOLS - 1:
                encoder.encode(int(vectors[i, j, k]) + LIMIT, stream.model.Uniform(2 * LIMIT + 1))


def decode(decoder: Any, h: int, w: int, frequencies: np.ndarray) -> np.ndarray:
    """The inverse of :func:`encode`; whatever the bytes are, vectors within the limits come out."""
    from constriction import stream

    models = [stream.model.Categorical(row / row.sum(), perfect=False) for row in frequencies.astype(np.float64)]
    out = np.zeros((h, w, 2), dtype=np.int64)
    for i in range(h):
        for j in range(w):
            left = out[i, j - 1] if j else (0, 0)
            up = out[i - 1, j] if i else (0, 0)
            corner = out[i - 1, j + 1] if i and j + 1 < w else (0, 0)
            spread = sum(abs(int(a) - int(b)) + abs(int(b) - int(c)) for a, b, c in zip(left, up, corner, strict=True))
            model = models[(spread >= 1) + (spread >= 8) + (spread >= 32)]
            for k in (0, 1):
                symbol = decoder.decode(model)
                if symbol == SYMBOLS - 1:
                    value = decoder.decode(stream.model.Uniform(2 * LIMIT + 1)) - LIMIT
                else:
                    value = sorted((int(left[k]), int(up[k]), int(corner[k])))[1] + symbol - SPAN
                out[i, j, k] = max(-LIMIT, min(LIMIT, value))
    return out
