"""Side information of a run of P-frames in one range-coded string: per frame the motion of its blocks, then their classes.

A run is one packet. Its first frame is coded on its own; a later one sees what stands before it in the same packet.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from semcast.layers import block_motion

GROUPS = 4
"""Classes are told apart in groups of like activity by those that they are the context of."""
CLASS_CONTEXTS = GROUPS * GROUPS * (GROUPS + 1)


class Tables(NamedTuple):
    """Static whole frequencies: of motion, and of classes (CLASS_CONTEXTS, C)."""

    motion: block_motion.Counts
    classes: np.ndarray


def groups(classes: int) -> np.ndarray:
    """(C,) group of every class: the calmest alone, the others by thirds."""
    return np.minimum(1 + 3 * np.arange(-1, classes - 1) // max(classes - 1, 1), GROUPS - 1) * (np.arange(classes) > 0)


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
    """Codes a run frame by frame, motion then classes; what it takes so far can be asked, and classes be taken back."""

    def __init__(self, tables: Tables) -> None:
        import constriction

        self._coder = constriction.stream.queue.RangeEncoder()
        self._model = constriction.stream.model.Categorical(perfect=False)
        self._motion, self._group = tables.motion, groups(tables.classes.shape[1])
        self._classes = tables.classes / tables.classes.sum(1, keepdims=True)
        self._moved: np.ndarray | None = None
        self._before: np.ndarray | None = None

    def add_motion(self, motion: block_motion.Motion) -> None:
        """The motion of the next frame."""
        self._moved = block_motion.encode(self._coder, motion, self._moved, self._motion)

    def with_classes(self, classes: np.ndarray) -> RunEncoder:
        """This and the classes (h, w) of the frame; this one stays as it is."""
        more = copy.copy(self)
        more._coder = self._coder.clone()
        rows = self._classes[class_contexts(classes, self._before, self._group).reshape(-1)]
        more._coder.encode(classes.reshape(-1).astype(np.int32), self._model, rows)
        more._before = classes
        return more

    def data(self) -> bytes:
        """All that was added, as bytes; zeros at the end are left out."""
        coded: bytes = self._coder.get_compressed().astype("<u4").tobytes()
        return coded.rstrip(b"\0")


def encode_run(frames: Sequence[tuple[block_motion.Motion, np.ndarray]], tables: Tables, *, moving: bool = True) -> bytes:
    """Motion and classes (h, w) of consecutive frames -> bytes; without motion where it is known that nothing moves."""
    coder = RunEncoder(tables)
    for motion, classes in frames:
        if moving:
            coder.add_motion(motion)
        coder = coder.with_classes(classes)
    return coder.data()


def decode_run(
    data: bytes, count: int, h: int, w: int, tables: Tables, *, moving: bool = True
) -> list[tuple[block_motion.Motion, np.ndarray]] | None:
    """The inverse of :func:`encode_run`; None where the bytes cannot be such a string."""
    import constriction

    padded = data + b"\0" * (-len(data) % 4)
    decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(padded, dtype="<u4").astype(np.uint32))
    models = [constriction.stream.model.Categorical(row / row.sum(), perfect=False) for row in tables.classes]
    group = groups(tables.classes.shape[1]).tolist()
    moved: np.ndarray | None = None
    before: np.ndarray | None = None
    out = []
    try:
        for _ in range(count):
            motion = block_motion.Motion.still(h, w)
            if moving:
                motion, moved = block_motion.decode(decoder, h, w, moved, tables.motion)
            rows: list[list[int]] = []
            above = [0] * w
            for earlier in earlier_context(before, (h, w), np.array(group)).tolist():
                row, left = [], 0
                for up, more in zip(above, earlier, strict=True):
                    row.append(decoder.decode(models[spatial_context(left, up) + more]))
                    left = group[row[-1]]
                rows.append(row)
                above = [group[one] for one in row]
            before = np.array(rows, dtype=np.int64)
            out.append((motion, before))
    except (AssertionError, ValueError):
        return None
    return out
