"""Maps of small integers as bytes: range-coded under static tables that are stored with the model.

The probability of an index depends on the mean of its left and upper neighbour; the table that says how is counted in training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from semcast.layers.block_classes import contexts

COUNTS = 60000


class IndexTable(nn.Module):
    """Probabilities of the indices 0 .. size - 1 in each context.

    Args:
        size: of the alphabet; with one letter nothing is coded. memory: how slowly counts of training batches are forgotten.
    """

    def __init__(self, size: int, memory: float = 0.99) -> None:
        super().__init__()
        self.size, self.memory = size, memory
        self.register_buffer("probability", torch.full((size, size), 1 / size))

    probability: Tensor

    @torch.no_grad()
    def observe(self, maps: Tensor) -> None:
        """Move the table towards maps (B, h, w) of a training batch."""
        counts = np.zeros((self.size, self.size))
        for one in maps.cpu().numpy():
            np.add.at(counts, (contexts(one), one), 1)
        total = torch.from_numpy(counts).sum(1, keepdim=True)
        seen = (torch.from_numpy(counts) / total.clamp_min(1)).to(self.probability)
        weight = (1 - self.memory) * (total > 0).to(self.probability)
        self.probability.lerp_(seen, weight)

    def table(self) -> np.ndarray:
        """(size, size) float64 of probabilities made from integers: every index stays possible in every context."""
        whole = 1 + np.floor(self.probability.detach().cpu().double().clamp(0, 1).numpy() * COUNTS)
        return whole / whole.sum(1, keepdims=True)

    def bits(self, one: np.ndarray) -> float:
        """Ideal code length of a map (h, w)."""
        return float(-np.log2(self.table()[contexts(one), one]).sum())


def encode_maps(maps: Sequence[np.ndarray], tables: Sequence[IndexTable]) -> bytes:
    """Maps (h, w), each under its own table, as one string of bytes."""
    import constriction

    encoder = constriction.stream.queue.RangeEncoder()
    model = constriction.stream.model.Categorical(perfect=False)
    for one, table in zip(maps, tables, strict=True):
        if table.size > 1 and one.size:
            encoder.encode(one.reshape(-1).astype(np.int32), model, table.table()[contexts(one).reshape(-1)])
    return encoder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")  # the decoder puts zeros back


def decode_maps(data: bytes, shapes: Sequence[tuple[int, int]], tables: Sequence[IndexTable]) -> list[np.ndarray] | None:
    """The inverse of :func:`encode_maps`; None where the bytes cannot be such maps."""
    import constriction

    words = np.frombuffer(data + bytes(-len(data) % 4 + 8), dtype="<u4").astype(np.uint32)
    decoder = constriction.stream.queue.RangeDecoder(words)
    maps = []
    try:
        for (h, w), table in zip(shapes, tables, strict=True):
            out = np.zeros((h, w), dtype=np.int64)
            models = (
                [constriction.stream.model.Categorical(row, perfect=False) for row in table.table()] if table.size > 1 else []
            )
            for i in range(h if models else 0):
                for j in range(w):
                    left = out[i, j - 1] if j else (out[i - 1, j] if i else 0)
                    up = out[i - 1, j] if i else left
                    out[i, j] = decoder.decode(models[(left + up + 1) // 2])
            maps.append(out)
    except (AssertionError, ValueError):
        return None
    return maps
