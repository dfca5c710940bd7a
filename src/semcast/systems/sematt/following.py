"""What is told about a frame between key frames: its map, coded against the key frame's, and, where asked, a mesh of motion.

    packet = head | [length, mesh] | map

The head is one byte: which frame of the group is the key frame that this one follows, itself included, the grid of the map, and
whether the motion of the maps is to be taken. All maps follow that of the key frame, which both ends have; so a lost packet
takes one frame with it and no other.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from semcast.systems.sematt.maps import COUNTS, Map, class_map, counted, range_decode, range_encode

GRIDS = (8, 16, 32)
"""Pixels along a side of a cell of the maps that may be sent, by the number in the head."""
NO_MAP = len(GRIDS)
MOST_FRAMES = 32  # of a group, since the head has five bits for a place in it
PER_PIXEL = 2
SPAN = 31
SYMBOLS = 2 * SPAN + 1
LIMIT = 255
"""Longest component of a vector of the mesh, in half pixels."""


def coarser(one: Tensor, times: int, classes: int) -> Tensor:
    """The commonest class of ``times`` x ``times`` cells of maps (B, h, w), edges repeated: (B, ceil(h / times), ...)."""
    return one if times == 1 else class_map(one, times, times, classes)


def finer(one: Tensor, times: int, size: tuple[int, int]) -> Tensor:
    """Every cell of maps (B, h, w) as ``times`` x ``times`` cells, cut to ``size``."""
    return one.repeat_interleave(times, 1).repeat_interleave(times, 2)[:, : size[0], : size[1]]


class FollowingMapCoder(nn.Module):
    """Codes maps without loss, given the map of another frame: a static model of what was there, left and upper neighbour.

    Args:
        classes: M.
    """

    frequencies: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("frequencies", torch.ones(len(GRIDS), classes**3, classes, dtype=torch.int32))

    @torch.no_grad()
    def fit(self, maps: Tensor, before: Tensor) -> None:
        """Count the frequencies of every grid in maps (N, h, w) of cells of 8x8 pixels, and those that they follow."""
        for level, grid in enumerate(GRIDS):
            now, past = (coarser(x, grid // GRIDS[0], self.classes).numpy() for x in (maps, before))
            rows = np.concatenate([self.contexts(a, b).reshape(-1) for a, b in zip(now, past, strict=True)])
            self.frequencies[level].copy_(torch.from_numpy(counted(rows, now.reshape(-1), self.classes)))

    def contexts(self, one: Map, before: Map) -> Map:
        """Row of the table for every cell of a map (h, w)."""
        left, up = np.empty_like(one), np.empty_like(one)
        left[:, 1:], left[:, 0] = one[:, :-1], before[:, 0]
        up[1:], up[0] = one[:-1], before[0]
        return (before * self.classes + left) * self.classes + up

    def bits(self, one: Map, before: Map, level: int) -> float:
        """Ideal length of a map in bits."""
        table = self.frequencies[level].cpu().numpy().astype(np.float64)
        rows = self.contexts(one, before)
        return float(-np.log2(table[rows, one] / table.sum(1)[rows]).sum())

    def encode(self, one: Map, before: Map, level: int) -> bytes:
        """A map (h, w) on the grid of this number, given the one that it follows."""
        return range_encode(one, self.contexts(one, before), self.frequencies[level])

    def decode(self, data: bytes, before: Map, level: int) -> Map | None:
        """The inverse of :meth:`encode`; None where the bytes cannot be a map of this size."""
        M = self.classes

        def row(out: Map, i: int, j: int) -> int:
            left = out[i, j - 1] if j else before[i, 0]
            up = out[i - 1, j] if i else before[0, j]
            return int((before[i, j] * M + left) * M + up)

        return range_decode(data, (before.shape[0], before.shape[1]), row, self.frequencies[level])


class MeshCoder(nn.Module):
    """Codes vectors on a coarse mesh, in half pixels: differences to what left and upper neighbours say, by a static model."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        falling = COUNTS / (1.0 + torch.arange(-SPAN, SPAN + 1).abs()) ** 2
        self.register_buffer("frequencies", (1 + falling.floor()).to(torch.int32).repeat(3, 1))

    @torch.no_grad()
    def fit(self, meshes: list[Map]) -> None:
        """Count the frequencies in meshes (h, w, 2)."""
        table = np.full((3, SYMBOLS), 0.2)
        for mesh in meshes:
            symbols = self.symbols(mesh)
            np.add.at(table, (_activity(symbols), symbols), 1)
        p = table / table.sum(1, keepdims=True)
        self.frequencies.copy_(torch.from_numpy((1 + np.floor(p * COUNTS)).astype(np.int32)))

    def symbols(self, mesh: Map) -> Map:
        """(h, 2 w) of a mesh (h, w, 2); a difference that is too large is cut short, and the next one makes up for it."""
        h, w = mesh.shape[:2]
        out, made = np.zeros((h, 2 * w), dtype=np.int64), np.zeros_like(mesh)
        for i in range(h):
            for j in range(w):
                expected = _expected(made, i, j)
                difference = (mesh[i, j] - expected).clip(-SPAN, SPAN)
                made[i, j] = (expected + difference).clip(-LIMIT, LIMIT)
                out[i, 2 * j : 2 * j + 2] = difference + SPAN
        return out

    def mesh(self, symbols: Map) -> Map:
        """(h, w, 2) of the symbols (h, 2 w): what the receiver has."""
        h, w = symbols.shape[0], symbols.shape[1] // 2
        made = np.zeros((h, w, 2), dtype=np.int64)
        for i in range(h):
            for j in range(w):
                made[i, j] = (_expected(made, i, j) + symbols[i, 2 * j : 2 * j + 2] - SPAN).clip(-LIMIT, LIMIT)
        return made

    def encode(self, mesh: Map) -> bytes:
        """A mesh (h, w, 2)."""
        symbols = self.symbols(mesh)
        return range_encode(symbols, _activity(symbols), self.frequencies)

    def decode(self, data: bytes, h: int, w: int) -> Map | None:
        """The mesh (h, w, 2) as the receiver has it, or None."""

        def row(out: Map, i: int, j: int) -> int:
            left = abs(out[i, j - 2] - SPAN) if j > 1 else 0
            up = abs(out[i - 1, j] - SPAN) if i else 0
            return _level(int(left + up))

        symbols = range_decode(data, (h, 2 * w), row, self.frequencies)
        return None if symbols is None else self.mesh(symbols)


def _expected(made: Map, i: int, j: int) -> Map:
    """Median of the left vector, the upper one, and the plane through both."""
    if not i or not j:
        found: Map = made[i, j - 1] if j else (made[i - 1, j] if i else np.zeros_like(made[0, 0]))
        return found
    left, up = made[i, j - 1], made[i - 1, j]
    median: Map = np.median(np.stack([left, up, left + up - made[i - 1, j - 1]]), 0).astype(np.int64)
    return median


def _level(activity: int) -> int:
    return 0 if activity < 2 else 1 if activity < 6 else 2


def _activity(symbols: Map) -> Map:
    """Row of the table for every symbol (h, 2 w): how much its neighbours differed from what was expected."""
    size = np.abs(symbols - SPAN)
    around = np.zeros_like(size)
    around[:, 2:] += size[:, :-2]
    around[1:] += size[:-1]
    return np.digitize(around, (2, 6))


class Following(NamedTuple):
    """A packet, taken apart.

    Attributes:
        key: place of the key frame in its group. level: number of the grid. mesh, map: their bytes. moves: whether the motion
            of the maps brings the key picture closer to the frame than motion that goes on as it went.
    """

    key: int
    level: int
    mesh: bytes = b""
    map: bytes = b""
    moves: bool = False


def pack(found: Following, with_mesh: bool) -> bytes:
    """One packet; the place of the key frame is below ``MOST_FRAMES``."""
    length = struct.pack("<H", len(found.mesh)) if with_mesh else b""
    return bytes([found.key | found.level << 5 | found.moves << 7]) + length + found.mesh + found.map


def unpack(data: bytes, with_mesh: bool) -> Following | None:
    """The inverse of :func:`pack`; None where it is damaged."""
    if not data or (with_mesh and len(data) < 3):
        return None
    begin = 3 if with_mesh else 1
    end = begin + (struct.unpack_from("<H", data, 1)[0] if with_mesh else 0)
    if end > len(data):
        return None
    return Following(data[0] & (MOST_FRAMES - 1), data[0] >> 5 & 3, data[begin:end], data[end:], bool(data[0] >> 7))
