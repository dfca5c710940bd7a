"""Index maps as packets: slices of rows, each range-coded on its own under tables that come with the weights.

Two models. *Static*: how often a codeword occurs. *Context*: how often it occurs beside the codewords to the left and above,
which are told apart in groups. The static one smooths the other where little was seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

GROUPS = 12
SLICE_INDICES, MAX_SLICES = 1024, 250
SCALE = 1024.0  # of stored shares, so that half precision holds small ones
SMOOTHING = 5e-5  # share of all indices that the static model counts for in every context
WHOLE = 1 << 20
HEAD_BYTES = 2

Model = Literal["static", "context"]


class IndexCounts(nn.Module):
    """How often indices occur, counted in training: ``alone`` (P, K), and ``beside`` (P, GROUPS^2, K) by context.

    Args:
        codewords: K. planes: P; every plane has its own counts. memory: how slowly batches are forgotten.
    """

    alone: Tensor
    beside: Tensor
    seen: Tensor

    def __init__(self, codewords: int, planes: int = 1, memory: float = 0.99) -> None:
        super().__init__()
        self.codewords, self.planes, self.memory = codewords, planes, memory
        contexts = GROUPS**2
        self.register_buffer("alone", torch.full((planes, codewords), SCALE / codewords))
        self.register_buffer("beside", torch.full((planes, contexts, codewords), SCALE / codewords / contexts))
        self.register_buffer("seen", torch.zeros(()))

    @torch.no_grad()
    def observe(self, maps: Tensor, vectors: Tensor) -> None:
        """Count maps (B, h, w) of a training batch; ``vectors`` (K, D) are the codewords."""
        group = groups(vectors)
        one = maps.cpu().numpy()
        index = np.concatenate([contexts(m, group, self.planes) for m in one]) * self.codewords + np.concatenate(list(one))
        counts = np.bincount(index.reshape(-1), minlength=self.beside.numel()).reshape(self.beside.shape)
        beside = torch.from_numpy(counts).to(self.beside) * (SCALE * self.planes / max(index.size, 1))
        weight = max(1 - self.memory, 1 / (float(self.seen) + 1))
        self.beside.lerp_(beside, weight)
        self.alone.lerp_(beside.sum(1), weight)
        self.seen += 1

    def bits(self, maps: Tensor) -> Tensor:
        """(B,) ideal length of maps (B, h, w) under the static model, without gradient."""
        p = (self.alone + 1e-3) / (self.alone + 1e-3).sum(1, keepdim=True)
        plane = torch.arange(maps.shape[1], device=maps.device) % self.planes
        return -p[plane[:, None], maps].log2().flatten(1).sum(1)


def groups(vectors: Tensor) -> np.ndarray:
    """(K,) group of every codeword (K, D): equally many in each, in the order of the first component.

    Only comparisons, so that all machines agree.
    """
    first = vectors[:, 0].detach().float().cpu().numpy()
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank * GROUPS // len(first)


def contexts(one: np.ndarray, group: np.ndarray, planes: int) -> np.ndarray:
    """Context of every index of a map (h, w), whose first row is the first of a slice. Rows of ``planes`` planes alternate."""
    own = group[one]
    left, up = np.empty_like(own), np.empty_like(own)
    left[:, 1:], up[planes:] = own[:, :-1], own[:-planes]
    left[planes:, 0], left[:planes, 0] = up[planes:, 0], GROUPS // 2
    up[:planes] = left[:planes]
    plane = np.arange(len(one))[:, None] % planes
    return np.asarray((plane * GROUPS + left) * GROUPS + up)


def slice_rows(h: int, w: int, planes: int = 1) -> int:
    """Rows of a slice: about a thousand indices, all planes of a place in one, not too many slices."""
    return planes * max(1, round(SLICE_INDICES / (w * planes)), -(-h // planes // MAX_SLICES))


class Slice(NamedTuple):
    """What a packet says: the picture's scale step, the slice's number, and its coded indices."""

    scale: int
    number: int
    data: bytes

    def pack(self) -> bytes:
        """As it crosses the air."""
        return bytes([self.scale, self.number]) + self.data


def unpack(packet: bytes | None) -> Slice | None:
    """The inverse of :meth:`Slice.pack`; None where the packet was lost or is too short."""
    return None if packet is None or len(packet) < HEAD_BYTES else Slice(packet[0], packet[1], packet[2:])


class IndexCoder:
    """Codes slices of index maps; both ends make the same one from the weights.

    Args:
        counts: of training. vectors: (K, D) codewords.
    """

    def __init__(self, counts: IndexCounts, vectors: Tensor) -> None:
        import constriction

        self.group, self.planes = groups(vectors), counts.planes
        alone = counts.alone.detach().cpu().double().numpy().clip(0) + 1e-9
        alone /= alone.sum(1, keepdims=True)
        beside = counts.beside.detach().cpu().double().numpy().clip(0) / SCALE + SMOOTHING * alone[:, None]
        self.table = {"static": whole(alone), "context": whole(beside.reshape(-1, counts.codewords))}
        make = constriction.stream.model.Categorical
        self.models = {name: [make(row, perfect=False) for row in table] for name, table in self.table.items()}

    def _contexts(self, one: np.ndarray, model: Model) -> np.ndarray:
        if model == "context":
            return contexts(one, self.group, self.planes)
        return np.broadcast_to(np.arange(len(one))[:, None] % self.planes, one.shape)

    def ideal_bits(self, one: np.ndarray, model: Model = "context") -> float:
        """-log2 of the model's probability of a slice (h, w)."""
        return float(-np.log2(self.table[model][self._contexts(one, model), one]).sum())

    def encode(self, one: np.ndarray, model: Model = "context") -> bytes:
        """A slice (h, w) of indices -> bytes."""
        import constriction

        encoder, models = constriction.stream.queue.RangeEncoder(), self.models[model]
        for index, context in zip(one.reshape(-1).tolist(), self._contexts(one, model).reshape(-1).tolist(), strict=True):
            encoder.encode(index, models[context])
        data: bytes = encoder.get_compressed().astype("<u4").tobytes()
        return data.rstrip(b"\0")  # the decoder puts zeros back

    def decode(self, data: bytes, h: int, w: int, model: Model = "context") -> np.ndarray | None:
        """The inverse of :meth:`encode`; None where the bytes cannot be such a slice."""
        import constriction

        words = np.frombuffer(data + bytes(-len(data) % 4 + 8), dtype="<u4").astype(np.uint32)
        decoder, models, planes = constriction.stream.queue.RangeDecoder(words), self.models[model], self.planes
        group = self.group.tolist()
        out: list[list[int]] = []
        try:
            for i in range(h):
                row: list[int] = []
                above = [group[k] for k in out[i - planes]] if i >= planes else None
                left = above[0] if above else GROUPS // 2
                for j in range(w):
                    context = i % planes
                    if model == "context":
                        context = (context * GROUPS + left) * GROUPS + (above[j] if above else left)
                    index = int(decoder.decode(models[context]))
                    left = group[index]
                    row.append(index)
                out.append(row)
        except (AssertionError, ValueError):
            return None
        return np.array(out, dtype=np.int64)

    def slices(self, one: np.ndarray, scale: int, model: Model = "context") -> list[bytes]:
        """A map (h, w) as packets."""
        rows = slice_rows(one.shape[0], one.shape[1], self.planes)
        parts = [one[at : at + rows] for at in range(0, len(one), rows)]
        return [Slice(scale, number, self.encode(part, model)).pack() for number, part in enumerate(parts)]

    def gather(self, arrived: Sequence[Slice], h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
        """Map (h, w) from the slices that arrived, and which rows of it are known (h,)."""
        rows = slice_rows(h, w, self.planes)
        one, known = np.zeros((h, w), dtype=np.int64), np.zeros(h, dtype=bool)
        for piece in arrived:
            at = piece.number * rows
            if at < h and (part := self.decode(piece.data, min(rows, h - at), w)) is not None:
                one[at : at + rows], known[at : at + rows] = part, True
        return one, known


def whole(share: np.ndarray) -> np.ndarray:
    """(n, K) shares -> float64 probabilities made from whole numbers: both ends get the same, and nothing is impossible."""
    number = 1 + np.floor(share / share.sum(1, keepdims=True) * WHOLE)
    return number / number.sum(1, keepdims=True)
