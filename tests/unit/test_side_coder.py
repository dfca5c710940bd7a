"""Side information of runs of P-frames: bytes there and back, and nothing worse than None from bytes that are none of ours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semcast.layers import block_motion
from semcast.layers.block_motion import LIMIT, SPAN, Motion
from semcast.layers.side_coder import (
    CLASS_CONTEXTS,
    GROUPS,
    Tables,
    class_contexts,
    decode_maps,
    decode_motion,
    encode_run,
    groups,
)

CLASSES = 8
H, W = 5, 7
QUARTERS = 3
Run = list[tuple[Motion, np.ndarray]]


def tables(classes: int = CLASSES, seed: int = 0) -> Tables:
    rng = np.random.default_rng(seed)
    motion = block_motion.Counts(
        *(rng.integers(1, 60000, shape.shape).astype(np.int32) for shape in block_motion.Counts.zeros())
    )
    own = rng.integers(1, 60000, (CLASS_CONTEXTS, classes + 1)), rng.integers(1, 60000, (1 + QUARTERS + QUARTERS**2, QUARTERS))
    return Tables(motion, *(table.astype(np.int32) for table in own))


TABLES = tables()


def any_run(count: int, h: int = H, w: int = W, seed: int = 0, classes: int = CLASSES) -> Run:
    rng = np.random.default_rng(seed)
    run = []
    for _ in range(count):
        base = rng.integers(-LIMIT, LIMIT + 1, (h, w, 2)) * (rng.random((h, w, 1)) < 0.3)
        own = np.where(rng.random((h, w, 1, 1)) < 0.3, rng.integers(-SPAN, SPAN + 1, (h, w, 4, 2)), 0)
        quarters = (base[:, :, None] + own).clip(-LIMIT, LIMIT)
        motion = Motion(base, (quarters != base[:, :, None]).any((2, 3)), quarters)
        whole = rng.integers(0, classes + 1, h * w)
        quarters = np.where(whole[:, None] == classes, classes + 1 + rng.integers(0, QUARTERS, (h * w, 4)), classes)
        run.append((motion, np.concatenate([whole, quarters.ravel()])))
    return run


def decode_run(data: tuple[bytes, bytes], count: int, h: int, w: int, own: Tables) -> Run | None:
    """Both strings; nothing where either is none."""
    motion, maps = decode_motion(data[0], count, h, w, own), decode_maps(data[1], count, h, w, own)
    return None if motion is None or maps is None else list(zip(motion, maps, strict=True))


def check_same(found: Run | None, run: Run) -> None:
    assert found is not None
    assert len(found) == len(run)
    for (motion, classes), (other, others) in zip(found, run, strict=True):
        assert np.array_equal(classes, others)
        assert all(np.array_equal(a, b) for a, b in zip(motion, other, strict=True))


def check_valid(found: Run | None, count: int) -> None:
    if found is None:
        return
    assert len(found) == count
    for motion, classes in found:
        assert classes.shape == (5 * H * W,)
        whole, quarters = classes[: H * W], classes[H * W :].reshape(-1, 4)
        assert 0 <= whole.min() <= whole.max() <= CLASSES
        assert bool((quarters[whole < CLASSES] == CLASSES).all())
        own = quarters[whole == CLASSES]
        assert not own.size or CLASSES < own.min() <= own.max() <= CLASSES + QUARTERS
        assert motion.field().shape == (2 * H, 2 * W, 2)
        assert np.abs(motion.quarters).max() <= LIMIT


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.sampled_from([2, 4, CLASSES]), st.integers(0, 10**6))
def test_any_run_comes_back(count: int, h: int, w: int, classes: int, seed: int) -> None:
    run, own = any_run(count, h, w, seed, classes), tables(classes)
    check_same(decode_run(encode_run(run, own), count, h, w, own), run)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=80), st.integers(1, 4))
def test_garbage_is_a_run_or_nothing(data: bytes, count: int) -> None:
    check_valid(decode_run((data, data), count, H, W, TABLES), count)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 255), st.integers(0, 400), st.integers(1, 4))
def test_a_damaged_run_is_a_run_or_nothing(position: int, flip: int, cut: int, count: int) -> None:
    damaged = []
    for string in encode_run(any_run(2, seed=7), TABLES):
        data = bytearray(string)
        data[position % len(data)] ^= flip
        damaged.append(bytes(data[: len(data) - cut % len(data)]))
    check_valid(decode_run((damaged[0], damaged[1]), count, H, W, TABLES), count)


def test_nothing_received_is_no_exception() -> None:
    for data in (b"", b"\0", b"\0" * 4, b"\xff" * 9):
        check_valid(decode_run((data, data), 4, H, W, TABLES), 4)


def test_zeros_at_the_end_are_not_sent() -> None:
    """And are put back: of many runs every one is whole, whatever its last words are."""
    lengths = set()
    for seed in range(300):
        run = any_run(1, 1, 2, seed)
        data = encode_run(run, TABLES)
        lengths |= {len(string) % 4 for string in data}
        assert not any(string.endswith(b"\0") for string in data)
        check_same(decode_run(data, 1, 1, 2, TABLES), run)
    assert len(lengths) > 1


def test_later_frames_lean_on_earlier_ones() -> None:
    """Under tables that say so, a map that stays as it was costs next to nothing; alone it costs what it costs."""
    often = np.ones((CLASS_CONTEXTS, CLASSES + 1), dtype=np.int32)
    group = groups(CLASSES)
    for context in range(CLASS_CONTEXTS):
        earlier = context % (GROUPS + 1)
        often[context, group == earlier] = 20000
    own = TABLES._replace(classes=often)
    run = any_run(1, seed=3)
    motion = Motion(*(np.zeros_like(part) for part in run[0][0]))
    classes = np.concatenate([(np.arange(H * W) % 2) * (CLASSES - 1), np.full(4 * H * W, CLASSES)])
    alone, twice = (len(encode_run([(motion, classes)] * count, own)[1]) for count in (1, 2))
    assert twice - alone < 0.75 * alone
    check_same(decode_run(encode_run([(motion, classes)] * 2, own), 2, H, W, own), [(motion, classes)] * 2)


@pytest.mark.parametrize("classes", [1, 2, 3, 8, 32])
def test_groups_follow_activity(classes: int) -> None:
    group = groups(classes)
    assert group.shape == (classes + 1,)
    assert group[0] == 0
    assert bool((np.diff(group) >= 0).all())
    assert group.max() < GROUPS
    assert classes < 4 or len(np.unique(group)) == GROUPS
    assert bool((group[1:] > 0).all())
    assert bool((group[:-1] < group[-1]).all())  # blocks that are split are like no others


def test_contexts_tell_neighbours_and_the_frame_before_apart() -> None:
    group = groups(CLASSES)
    classes = np.array([[0, 7], [3, 5]])
    alone = class_contexts(classes, None, group)
    assert alone[0, 0] == GROUPS  # nothing left, nothing above, nothing before
    assert alone[1, 1] == (group[3] * GROUPS + group[7]) * (GROUPS + 1) + GROUPS
    after = class_contexts(classes, np.array([[7, 7], [7, 7]]), group)
    assert bool((after == alone - GROUPS + group[7]).all())
    assert 0 <= after.min() <= alone.max() < CLASS_CONTEXTS
