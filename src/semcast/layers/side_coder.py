"""What a run of P-frames tells in bytes, as two range-coded strings: the motion of its blocks, and their classes.

Each is one packet. A run's first frame is coded on its own; a later one sees what stands before it in the same string.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from semcast.layers import block_motion
from semcast.layers.block_classes import decode_quarters, models_of, quarter_contexts

GROUPS = 5
"""Classes are told apart in groups of like activity by those that they are the context of; blocks that are split are one."""
CLASS_CONTEXTS = GROUPS * GROUPS * (GROUPS + 1)


class Tables(NamedTuple):
    """Static whole frequencies: of motion; of classes (CLASS_CONTEXTS, C + 1), the last of which says that a block is split;
    and of classes of quarters in their contexts, (contexts, Q)."""

    motion: block_motion.Counts
    classes: np.ndarray
    quarters: np.ndarray

    @property
    def split(self) -> int:
        """The class of blocks that are split, and of the quarters of those that are not; quarters' own classes follow on it."""
        return self.classes.shape[1] - 1


def groups(classes: int) -> np.ndarray:
    """(C + 1,) group of every class of blocks: the calmest alone, the others by thirds, and those that are split."""
    whole = np.minimum(1 + 3 * np.arange(-1, classes - 1) // max(classes - 1, 1), GROUPS - 2) * (np.arange(classes) > 0)
    return np.append(whole, GROUPS - 1)


def earlier_context(before: np.ndarray | None, shape: tuple[int, ...], group: np.ndarray) -> np.ndarray:
    """What the frame before adds to contexts, (h, w)."""
    return np.full(shape, GROUPS, dtype=np.int64) if before is None else group[before]


def spatial_context(left: Any, up: Any) -> Any:
    """What the groups of left and upper neighbour add: of arrays, tensors or numbers."""
    return (left * GROUPS + up) * (GROUPS + 1)


def class_contexts(classes: np.ndarray, before: np.ndarray | None, group: np.ndarray) -> np.ndarray:
    """Context (h, w) of every class of a map (h, w)."""
    own = group[classes]
    left, up = np.zeros_like(own), np.zeros_like(own)
    left[:, 1:], up[1:] = own[:, :-1], own[:-1]
    return spatial_context(left, up) + earlier_context(before, classes.shape, group)


class RunEncoder:
    """Codes a run frame by frame; what it takes so far can be asked, and classes be taken back."""

    def __init__(self, tables: Tables) -> None:
        import constriction

        self._motion_coder, self._coder = (constriction.stream.queue.RangeEncoder() for _ in range(2))
        self._model = constriction.stream.model.Categorical(perfect=False)
        self._motion, self._split, self._group = tables.motion, tables.split, groups(tables.split)
        self._classes, self._quarters = (table / table.sum(1, keepdims=True) for table in tables[1:])
        self._moved: np.ndarray | None = None
        self._before: np.ndarray | None = None

    def add_motion(self, motion: block_motion.Motion) -> None:
        """The motion of the next frame."""
        self._moved = block_motion.encode(self._motion_coder, motion, self._moved, self._motion)

    def with_classes(self, classes: np.ndarray, shape: tuple[int, ...]) -> RunEncoder:
        """This and the classes of the frame, of its (h, w) blocks, then their quarters, (5 h w,); this one stays as it is."""
        more = copy.copy(self)
        more._coder = self._coder.clone()
        blocks = shape[0] * shape[1]
        whole, quarters = classes[:blocks].reshape(shape), classes[blocks:].reshape(-1, 4)
        rows = self._classes[class_contexts(whole, self._before, self._group).reshape(-1)]
        more._coder.encode(whole.reshape(-1).astype(np.int32), self._model, rows)
        own = quarters[whole.reshape(-1) == self._split] - self._split - 1
        if len(own):
            rows = self._quarters[quarter_contexts(own, self._quarters.shape[1]).reshape(-1)]
            more._coder.encode(own.reshape(-1).astype(np.int32), self._model, rows)
        more._before = whole
        return more

    def motion(self) -> bytes:
        """All motion that was added, as bytes; zeros at the end are left out."""
        return _bytes_of(self._motion_coder)

    def classes(self) -> bytes:
        """All classes that were added, likewise."""
        return _bytes_of(self._coder)


def _bytes_of(coder: Any) -> bytes:
    coded: bytes = coder.get_compressed().astype("<u4").tobytes()
    return coded.rstrip(b"\0")


def _decoder_of(data: bytes) -> Any:
    import constriction

    padded = data + b"\0" * (-len(data) % 4)
    return constriction.stream.queue.RangeDecoder(np.frombuffer(padded, dtype="<u4").astype(np.uint32))


def encode_run(frames: Sequence[tuple[block_motion.Motion, np.ndarray]], tables: Tables) -> tuple[bytes, bytes]:
    """Motion and classes (5 h w,) of consecutive frames -> bytes of either."""
    coder = RunEncoder(tables)
    for motion, classes in frames:
        coder.add_motion(motion)
        coder = coder.with_classes(classes, motion.split.shape)
    return coder.motion(), coder.classes()


def decode_motion(data: bytes, count: int, h: int, w: int, tables: Tables) -> list[block_motion.Motion] | None:
    """Motion of so many frames of (h, w) blocks; None where the bytes cannot be such a string."""
    decoder, out = _decoder_of(data), []
    moved: np.ndarray | None = None
    try:
        for _ in range(count):
            motion, moved = block_motion.decode(decoder, h, w, moved, tables.motion)
            out.append(motion)
    except (AssertionError, ValueError):
        return None
    return out


def decode_maps(data: bytes, count: int, h: int, w: int, tables: Tables) -> list[np.ndarray] | None:
    """Classes (5 h w,) of so many frames; None where the bytes cannot be such a string."""
    decoder, out = _decoder_of(data), []
    models = models_of(tables.classes)
    group = groups(tables.split)
    members = group.tolist()
    before: np.ndarray | None = None
    try:
        for _ in range(count):
            rows: list[list[int]] = []
            above = [0] * w
            for earlier in earlier_context(before, (h, w), group).tolist():
                row, left = [], 0
                for up, more in zip(above, earlier, strict=True):
                    row.append(decoder.decode(models[spatial_context(left, up) + more]))
                    left = members[row[-1]]
                rows.append(row)
                above = [members[one] for one in row]
            before = np.array(rows, dtype=np.int64)
            quarters = np.full((h * w, 4), tables.split)
            split = before.ravel() == tables.split
            quarters[split] = tables.split + 1 + decode_quarters(decoder, tables.quarters, int(split.sum()))
            out.append(np.concatenate([before.ravel(), quarters.ravel()]))
    except (AssertionError, ValueError):
        return None
    return out
