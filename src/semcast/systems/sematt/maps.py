"""Class maps on the latent grid, and how they become bytes: the smallest of three lossless coders, and a byte that says which.

labels (H, W) ─▶ majority of every G x G cell ─▶ map (H/G, W/G) ─▶ range coder | PNG | WebP ─▶ the shortest
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from semcast.layers.blocks import pad_to

CODERS = ("range", "png", "webp")
"""By the number that the first byte of a coded map holds."""
COUNTS = 60000
Map = NDArray[np.int64]


def class_map(labels: Tensor, cell: int, multiple: int, classes: int) -> Tensor:
    """The commonest class of every cell.

    Args:
        labels: (B, H, W) int64; what is not in [0, classes - 1) is unknown. cell: G. multiple: pixels that both sides are
            padded to, by repeating the edge. classes: M; the last one is the unknown.

    Returns:
        (B, H' / G, W' / G) int64 in [0, M).
    """
    unknown = classes - 1
    known = labels.where((labels >= 0) & (labels < unknown), torch.full_like(labels, unknown))
    padded = pad_to(known[:, None].float(), multiple)[:, 0].long()
    return torch.stack([F.avg_pool2d((padded == m).float(), cell) for m in range(classes)], 1).argmax(1)


class MapCoder(nn.Module):
    """Codes maps of small whole numbers without loss.

    The range coder's model is static: frequencies of a class given its left, upper and upper right neighbours, counted in
    training maps. At the edges a neighbour that is there stands in; the first cell follows the unknown class.

    Args:
        classes: M.
    """

    frequencies: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("frequencies", torch.ones(classes**3, classes, dtype=torch.int32))

    @torch.no_grad()
    def fit(self, maps: Tensor) -> None:
        """Count the frequencies in maps (N, h, w); contexts that are rare lean on coarser ones."""
        rows = np.concatenate([self.contexts(one).reshape(-1) for one in maps.numpy()])
        self.frequencies.copy_(torch.from_numpy(counted(rows, maps.numpy().reshape(-1), self.classes)))

    def contexts(self, one: Map) -> Map:
        """Row of the table for every cell of a map (h, w)."""
        left, up, right = np.empty_like(one), np.empty_like(one), np.empty_like(one)
        left[:, 1:], up[1:], right[1:, :-1] = one[:, :-1], one[:-1], one[:-1, 1:]
        right[1:, -1] = one[:-1, -1]
        left[1:, 0], left[0, 0] = one[:-1, 0], self.classes - 1
        up[0] = right[0] = left[0]
        return (left * self.classes + up) * self.classes + right

    def bits(self, one: Map) -> float:
        """Ideal length of a map in bits, as the range coder approaches it, with the byte that names the coder."""
        table = self.frequencies.cpu().numpy().astype(np.float64)
        rows = self.contexts(one)
        return 8.0 + float(-np.log2(table[rows, one] / table.sum(1)[rows]).sum())

    def candidates(self, one: Map) -> dict[str, bytes]:
        """A map (h, w) as every coder writes it."""
        return {"range": self._range_encode(one), "png": _png(one), "webp": _webp(one)}

    def encode(self, one: Map) -> bytes:
        """The shortest of :meth:`candidates`, after a byte that says which it is."""
        found = self.candidates(one)
        best = min(CODERS, key=lambda name: len(found[name]))
        return bytes([CODERS.index(best)]) + found[best]

    def decode(self, data: bytes, h: int, w: int) -> Map | None:
        """The inverse of :meth:`encode`; None where the bytes cannot be a map of this size."""
        if not data or data[0] >= len(CODERS):
            return None
        name = CODERS[data[0]]
        if name == "range":
            return self._range_decode(data[1:], h, w)
        found = _picture(data[1:], name.upper(), h, w)
        return None if found is None else np.minimum(found, self.classes - 1)

    def _range_encode(self, one: Map) -> bytes:
        return range_encode(one, self.contexts(one), self.frequencies)

    def _range_decode(self, data: bytes, h: int, w: int) -> Map | None:
        M = self.classes

        def row(out: Map, i: int, j: int) -> int:
            left = out[i, j - 1] if j else (out[i - 1, 0] if i else M - 1)
            up = out[i - 1, j] if i else left
            right = out[i - 1, min(j + 1, w - 1)] if i else left
            return int((left * M + up) * M + right)

        return range_decode(data, (h, w), row, self.frequencies)


def counted(rows: Map, values: Map, M: int) -> NDArray[np.int32]:
    """Frequencies (M^3, M) of values, given rows (a M + b) M + c of neighbours; rare contexts lean on (a, b), then on a."""
    table = np.zeros((M**3, M))
    np.add.at(table, (rows, values), 1)
    pairs = np.repeat(table.reshape(M * M, M, M).sum(1), M, 0)
    firsts = np.repeat(table.reshape(M, M * M, M).sum(1), M * M, 0)
    p = np.full((M**3, M), 1 / M)
    for seen, trust in ((firsts, 1.0), (pairs, 1.0), (table, 2.0)):
        p = (seen + trust * p) / (seen.sum(1, keepdims=True) + trust)
    return (1 + np.floor(p * COUNTS)).astype(np.int32)


def range_encode(values: Map, rows: Map, frequencies: Tensor) -> bytes:
    """Values in their order, each under its row of the frequencies (rows, symbols)."""
    import constriction

    table = frequencies.cpu().numpy().astype(np.float64)[rows.reshape(-1)]
    encoder = constriction.stream.queue.RangeEncoder()
    model = constriction.stream.model.Categorical(perfect=False)
    encoder.encode(values.reshape(-1).astype(np.int32), model, table / table.sum(1, keepdims=True))
    data: bytes = encoder.get_compressed().astype("<u4").tobytes()
    return data.rstrip(b"\0")  # the decoder puts zeros back


def range_decode(data: bytes, shape: tuple[int, int], row: Callable[[Map, int, int], int], frequencies: Tensor) -> Map | None:
    """The inverse of :func:`range_encode` for an array of two dimensions; None where the bytes are none of it.

    ``row`` is told the array as far as it is decoded, and the place that comes next.
    """
    import constriction

    words = np.frombuffer(data + bytes(-len(data) % 4 + 8), dtype="<u4").astype(np.uint32)
    decoder = constriction.stream.queue.RangeDecoder(words)
    table = frequencies.cpu().numpy().astype(np.float64)

    @cache
    def model(index: int) -> Any:
        return constriction.stream.model.Categorical(table[index] / table[index].sum(), perfect=False)

    out = np.zeros(shape, dtype=np.int64)
    try:
        for i in range(shape[0]):
            for j in range(shape[1]):
                out[i, j] = decoder.decode(model(row(out, i, j)))
    except (AssertionError, ValueError):
        return None
    return out


def _written(write: Callable[[io.BytesIO], None]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _png(one: Map) -> bytes:
    from PIL import Image

    image = Image.fromarray(one.astype(np.uint8)).convert("P")
    image.putdata(one.reshape(-1).tolist())
    image.putpalette([0] * 48)  # colours do not matter; sixteen of them make 4 bits a cell
    return _written(lambda file: image.save(file, "PNG", optimize=True, bits=4))


def _webp(one: Map) -> bytes:
    from PIL import Image

    plane = Image.fromarray(one.astype(np.uint8))
    image = Image.merge("RGB", [plane] * 3)
    return _written(lambda file: image.save(file, "WEBP", lossless=True, quality=100, method=6))


def _picture(data: bytes, kind: str, h: int, w: int) -> Map | None:
    """First channel of a coded picture of this kind and size, or None."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            if image.size != (w, h):
                return None
            plane = np.asarray(image)
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError):
        return None
    return (plane if plane.ndim == 2 else plane[..., 0]).astype(np.int64)
