"""Side information of one P-frame in one range-coded string: motion of the blocks, then their classes."""

from __future__ import annotations

import numpy as np

from semcast.layers import block_motion
from semcast.layers.block_classes import contexts


def encode_frame(vectors: np.ndarray, classes: np.ndarray, motion: np.ndarray, frequencies: np.ndarray) -> bytes:
    """Vectors (h, w, 2) and classes (h, w) under static integer tables -> bytes."""
    import constriction

    encoder = constriction.stream.queue.RangeEncoder()
    block_motion.encode(encoder, vectors, motion)
    table = frequencies / frequencies.sum(1, keepdims=True)
    model = constriction.stream.model.Categorical(perfect=False)
    encoder.encode(classes.reshape(-1).astype(np.int32), model, table[contexts(classes).reshape(-1)])
    data: bytes = encoder.get_compressed().astype("<u4").tobytes()
    return data.rstrip(b"\0")


def decode_frame(
    data: bytes, h: int, w: int, motion: np.ndarray, frequencies: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """The inverse of :func:`encode_frame`; None where the bytes cannot be such a string."""
    import constriction

    padded = data + b"\0" * (-len(data) % 4)
    decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(padded, dtype="<u4").astype(np.uint32))
    try:
        vectors = block_motion.decode(decoder, h, w, motion)
        models = [constriction.stream.model.Categorical(row / row.sum(), perfect=False) for row in frequencies]
        out = np.zeros((h, w), dtype=np.int64)
        for i in range(h):
            for j in range(w):
                left = out[i, j - 1] if j else (out[i - 1, j] if i else 0)
                up = out[i - 1, j] if i else left
                out[i, j] = decoder.decode(models[(left + up + 1) // 2])
    except (AssertionError, ValueError):
        return None
    return vectors, out
