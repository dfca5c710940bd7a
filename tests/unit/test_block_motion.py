"""Motion of blocks: found where it is known, compensated exactly, coded into bytes and back whatever they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import constriction
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_systems import scene
from torch import Tensor

from semcast.layers import block_motion
from semcast.layers.block_motion import LIMIT, PER_PIXEL, SPAN, SYMBOLS, Counts, Motion, compensate, estimate, predictions

Clip = Callable[..., Tensor]


def tables(seed: int = 0) -> Counts:
    """Static whole frequencies, every symbol possible."""
    rng = np.random.default_rng(seed)
    return Counts(*(rng.integers(1, 60000, table.shape).astype(np.int32) for table in Counts.zeros()))


TABLES = tables()
ROUGH = Counts.rough()


def detailed(height: int, width: int, seed: int = 0) -> Tensor:
    """(3, H, W) with detail at a few pixels everywhere, which a flow can hold on to."""
    random = torch.Generator().manual_seed(seed)
    coarse, fine = (
        F.interpolate(torch.rand(1, 3, height // by, width // by, generator=random), (height, width), mode="bicubic")[0]
        for by in (16, 5)
    )
    return (0.5 * coarse + 0.5 * fine).clamp(0, 1)


def moved(picture: Tensor, x: float, y: float) -> Tensor:
    """What stands at p of the result stands at p + (x, y) of the picture; a Fourier shift, on a torus."""
    height, width = picture.shape[-2:]
    phase = torch.fft.fftfreq(height)[:, None] * y + torch.fft.fftfreq(width) * x
    return torch.fft.ifft2(torch.fft.fft2(picture) * torch.exp(2j * torch.pi * phase)).real.clamp(0, 1)


def inner(vectors: np.ndarray) -> np.ndarray:
    """Vectors of the blocks that have all their neighbours."""
    return vectors[1:-1, 1:-1].reshape(-1, 2)


def still(h: int, w: int) -> Motion:
    return Motion(np.zeros((h, w, 2), np.int64), np.zeros((h, w), bool), np.zeros((h, w, 4, 2), np.int64))


def psnr_db(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean()))


# -- found -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("x", "y"), [(3, 0), (-2, 5), (0, -4), (1.25, 0), (-0.75, 2.5), (0.5, -0.25)])
def test_a_shift_is_found(x: float, y: float) -> None:
    """Of whole pixels and of quarters: to a quarter in 9 of 10 inner blocks, and the picture is there again."""
    reference = detailed(128, 160)
    current = moved(reference, x, y)
    motion = estimate(current, reference, ROUGH, bit_price=0.02)
    off = np.abs(inner(motion.base) - PER_PIXEL * np.array([x, y])).max(-1)
    assert (off <= 1).mean() > 0.9
    back = compensate(reference[None], motion.field()[None])[0]
    middle = (slice(None), slice(16, -16), slice(16, -16))
    assert psnr_db(back[middle], current[middle]) > psnr_db(reference[middle], current[middle]) + 8


def test_nothing_moves_in_a_still_picture() -> None:
    picture = detailed(96, 112)
    motion = estimate(picture, picture, ROUGH, bit_price=0.02)
    assert not motion.base.any()
    assert not motion.split.any()


def test_dear_bits_buy_simpler_motion(clip: Clip) -> None:
    """Of noise no motion is true: the dearer a bit, the fewer are spent."""
    random = torch.Generator().manual_seed(0)
    frames = clip(2, 96, 128)
    frames = (frames + 0.1 * torch.randn(frames.shape, generator=random)).clamp(0, 1)
    spent = [block_motion.bits_of(estimate(frames[1], frames[0], ROUGH, bit_price=price), ROUGH) for price in (0.0, 0.05, 1e3)]
    assert spent[0] > spent[1] > spent[2]


def test_the_last_frame_s_vectors_are_candidates(clip: Clip) -> None:
    """In a flat picture any vector is as good: with free bits nothing speaks against the one before, nor for it."""
    flat = torch.full((3, 64, 64), 0.5)
    before = still(4, 4)._replace(base=np.full((4, 4, 2), 40))
    assert set(np.unique(estimate(flat, flat, ROUGH, before).base)) <= {0, 40}


def two_motions() -> tuple[Tensor, Tensor]:
    """The left part moves by +3, the right by -3 pixels, with the border in the middle of a column of blocks."""
    reference = detailed(96, 160)
    return torch.cat([moved(reference, 3, 0)[..., :72], moved(reference, -3, 0)[..., 72:]], -1), reference


def test_blocks_are_split_where_two_motions_share_them() -> None:
    current, reference = two_motions()
    motion = estimate(current, reference, ROUGH, bit_price=0.05)
    split = motion.split[1:-1]
    assert split[:, 4].mean() > 0.7  # pixels 64 to 79
    assert np.delete(split, (0, 3, 4, 5, 9), axis=1).mean() < 0.1
    own = motion.quarters[1:-1, 4][split[:, 4]]  # (blocks, 4, 2): left and right quarters
    assert np.abs(own[:, [0, 2], 0] - 12).max() <= 4 or np.abs(np.median(own[:, [0, 2], 0]) - 12) <= 1
    assert np.abs(np.median(own[:, [1, 3], 0]) + 12) <= 1
    whole = motion._replace(quarters=motion.base[:, :, None].repeat(4, 2), split=np.zeros_like(motion.split))
    with_split, without = (
        (compensate(reference[None], one.field()[None])[0] - current)[..., 64:80].square().sum() for one in (motion, whole)
    )
    assert float(with_split) < 0.6 * float(without)
    assert not estimate(current, reference, ROUGH, bit_price=1e3).split.any()


def test_quarters_are_the_base_where_a_block_is_whole() -> None:
    current, reference = two_motions()
    motion = estimate(current, reference, ROUGH, bit_price=0.05)
    assert motion.split.any()
    assert not motion.split.all()
    assert np.array_equal(motion.quarters[~motion.split], motion.base[~motion.split][:, None].repeat(4, 1))
    assert bool((motion.quarters != motion.base[:, :, None]).any((2, 3))[motion.split].all())
    assert np.abs(motion.quarters - motion.base[:, :, None]).max() <= SPAN


# -- compensated -------------------------------------------------------------------------------------------------------------


def test_no_motion_changes_nothing(clip: Clip) -> None:
    frames = clip(2, 64, 80)
    assert torch.allclose(compensate(frames, torch.zeros(2, 8, 10, 2, dtype=torch.int64)), frames, atol=1e-5)


def test_whole_pixels_are_moved_exactly_and_edges_repeat(clip: Clip) -> None:
    frame = clip(1, 64, 80)
    field = torch.tensor([3, -2]).mul(PER_PIXEL).expand(1, 8, 10, 2)
    padded = F.pad(frame, (3, 3, 3, 3), mode="replicate")
    assert torch.allclose(compensate(frame, field), padded[..., 1:65, 6:86], atol=1e-4)


def test_what_gradients_pass_through_is_the_same_picture(clip: Clip) -> None:
    frames = clip(2, 64, 80)
    field = torch.from_numpy(np.random.default_rng(0).integers(-30, 31, (2, 8, 10, 2)))
    learning = compensate(frames.clone().requires_grad_(), field)
    assert learning.requires_grad
    assert torch.allclose(compensate(frames, field), learning, atol=1e-4)


def test_between_two_blocks_what_both_point_to_is_mixed() -> None:
    """Two halves of a picture move apart: in the middle of a block its own vector holds, at its edge either counts for half."""
    frame = detailed(32, 64)[None]
    field = torch.zeros(1, 4, 8, 2, dtype=torch.int64)
    field[:, :, 4:, 0] = 3 * PER_PIXEL
    left, right = (compensate(frame, torch.full_like(field, 0) + torch.tensor([x, 0])) for x in (0, 3 * PER_PIXEL))
    mixed = compensate(frame, field)
    for column in range(28, 36):  # from the middle of the last block on the left to that of the first one on the right
        share = (column + 0.5 - 28) / 8
        wanted = (1 - share) * left[..., column] + share * right[..., column]
        assert torch.allclose(mixed[..., column], wanted, atol=1e-4)
    assert torch.allclose(mixed[..., :28], left[..., :28], atol=1e-4)
    assert torch.allclose(mixed[..., 36:], right[..., 36:], atol=1e-4)


def test_weights_of_overlapping_blocks_add_up() -> None:
    total = sum(weight for _, _, weight in block_motion._overlaps(48, 80))
    assert np.allclose(total, 1, atol=1e-6)


def test_overlapping_blocks_leave_less_than_blocks_alone() -> None:
    """Of a zoom, whose motion changes everywhere, at least 10 % of the squared error goes; noise in the reference as well."""
    frames = scene("rocket-zoom", 4, 160, 128)
    reference = frames[0] + 0.02 * torch.randn(frames[0].shape, generator=torch.Generator().manual_seed(0))
    motion = estimate(frames[3], reference.clamp(0, 1), ROUGH, bit_price=0.02)
    dense = torch.from_numpy(motion.field().numpy().repeat(8, 0).repeat(8, 1)) / PER_PIXEL
    places = torch.from_numpy(block_motion._places(128, 160)) + dense + 0.5
    grid = places * torch.tensor([2 / 160, 2 / 128]) - 1
    alone = F.grid_sample(reference[None], grid[None], mode="bicubic", padding_mode="border", align_corners=False)[0]
    errors = [float((one - frames[3]).square().mean()) for one in (compensate(reference[None], motion.field()[None])[0], alone)]
    assert errors[0] < 0.9 * errors[1]


def test_quarters_lie_where_they_should() -> None:
    """Row by row over the picture: upper left, upper right, lower left, lower right of every block."""
    motion = still(2, 3)
    motion.quarters[1, 2] = [[1, 2], [3, 4], [5, 6], [7, 8]]
    field = motion.field()
    assert field.shape == (4, 6, 2)
    assert field[2:, 4:].tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert not bool(field[:2].any())


# -- coded -------------------------------------------------------------------------------------------------------------------


def any_motion(h: int, w: int, seed: int, wild: float) -> Motion:
    """Calm, or with jumps beyond what has a symbol; some blocks split."""
    rng = np.random.default_rng(seed)
    small, large = rng.integers(-6, 7, (h, w, 2)), rng.integers(-LIMIT, LIMIT + 1, (h, w, 2))
    base = np.where(rng.random((h, w, 1)) < wild, large, small * (rng.random((h, w, 1)) < 0.5))
    split = rng.random((h, w)) < 0.3
    own = np.where(split[..., None, None], rng.integers(-SPAN, SPAN + 1, (h, w, 4, 2)), 0)
    quarters = (base[:, :, None] + own).clip(-LIMIT, LIMIT)
    return Motion(base, (quarters != base[:, :, None]).any((2, 3)), quarters)


def to_words(run: list[Motion]) -> np.ndarray:
    encoder = constriction.stream.queue.RangeEncoder()
    flags = None
    for one in run:
        flags = block_motion.encode(encoder, one, flags, TABLES)
    return np.asarray(encoder.get_compressed())


def from_words(words: np.ndarray, h: int, w: int, count: int) -> list[Motion]:
    decoder = constriction.stream.queue.RangeDecoder(words)
    flags, out = None, []
    for _ in range(count):
        motion, flags = block_motion.decode(decoder, h, w, flags, TABLES)
        out.append(motion)
    return out


def same(a: Motion, b: Motion) -> bool:
    return all(np.array_equal(one, two) for one, two in zip(a, b, strict=True))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 3), st.sampled_from([0.0, 0.2, 1.0]), st.integers(0, 10**6))
def test_any_motion_comes_back(h: int, w: int, count: int, wild: float, seed: int) -> None:
    run = [any_motion(h, w, seed + i, wild) for i in range(count)]
    assert all(same(a, b) for a, b in zip(run, from_words(to_words(run), h, w, count), strict=True))


def test_what_is_found_comes_back() -> None:
    run = [estimate(*pair, ROUGH, bit_price=0.05) for pair in (two_motions(), two_motions()[::-1])]
    assert all(one.split.any() for one in run)
    assert all(same(a, b) for a, b in zip(run, from_words(to_words(run), 6, 10, 2), strict=True))


def test_jumps_take_the_escape() -> None:
    symbols = block_motion.symbols_of(np.array([-SPAN - 1, -SPAN, 0, SPAN, SPAN + 1, 2 * LIMIT]))
    assert symbols.tolist() == [SYMBOLS - 1, 0, SPAN, 2 * SPAN, SYMBOLS - 1, SYMBOLS - 1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), max_size=12), st.integers(1, 2))
def test_whatever_the_bytes_are_vectors_keep_to_the_limits(words: list[int], count: int) -> None:
    """Or the coder finds out: it says so by the exceptions that the packet's decoder expects."""
    try:
        found = from_words(np.array(words, dtype=np.uint32), 4, 5, count)
    except (AssertionError, ValueError):
        return
    for motion in found:
        assert motion.base.shape == (4, 5, 2)
        assert np.abs(motion.base).max() <= LIMIT
        assert np.abs(motion.quarters).max() <= LIMIT
        assert np.array_equal(motion.quarters[~motion.split], motion.base[~motion.split][:, None].repeat(4, 1))


def test_bytes_are_worth_their_bits() -> None:
    """A frame under the tables that it was counted for takes its ideal length, at most a word and a half more."""
    motion = any_motion(20, 24, 3, 0.02)
    counts = Counts.zeros()
    flags = block_motion.count(motion, None, counts)
    assert flags.sum() == counts.flags[:, 1].sum() == counts.differences.sum() / 2
    assert counts.splits[:, 1].sum() == motion.split.sum() == counts.quarters.sum() / 8
    own = Counts(*((1 + 50000 * table / table.sum(1, keepdims=True).clip(1)).astype(np.int32) for table in counts))
    encoder = constriction.stream.queue.RangeEncoder()
    block_motion.encode(encoder, motion, None, own)
    escapes = int(counts.differences[:, SYMBOLS - 1].sum())
    ideal = block_motion.bits_of(motion, own) + escapes * np.log2(2 * LIMIT + 1)
    assert ideal - 1 <= 32 * len(encoder.get_compressed()) <= ideal + 64
    assert block_motion.bits_of(still(20, 24), own) < 0.5 * ideal


def test_predictions_are_medians_of_what_is_decoded_already() -> None:
    vectors = np.zeros((2, 3, 2), np.int64)
    vectors[..., 0] = [[1, 5, 9], [2, 0, 0]]
    prediction, context = predictions(vectors)
    assert prediction[1, 1, 0] == 5  # left 2, up 5, upper right 9
    assert prediction[0, 0].tolist() == [0, 0]
    assert context[1, 1] == 1  # |2 - 5| + |5 - 9| = 7
    changed: Any = vectors.copy()
    changed[1, 1:] = 77
    assert np.array_equal(predictions(changed)[0][1, 1], prediction[1, 1])
