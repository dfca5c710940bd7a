"""Block classes: what both ends derive from a map of classes, and the map on the air."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from semcast.layers.block_classes import (
    BLOCK,
    DIMS,
    BlockClasses,
    Grid,
    contexts,
    decode_classes,
    encode_classes,
    maps,
    side_margin_db,
    water_fill,
)

# -- the map on the air ------------------------------------------------------------------------------------------------------


def table(classes: int, seed: int = 0) -> np.ndarray:
    """Frequencies that favour staying in the context's class."""
    rng = np.random.default_rng(seed)
    near = np.exp(-np.abs(np.subtract.outer(np.arange(classes), np.arange(classes))))
    return (1 + near * rng.integers(1, 60000, (classes, classes))).astype(np.int32)


def drawn(h: int, w: int, frequencies: np.ndarray, seed: int) -> np.ndarray:
    """A map drawn from the table itself."""
    rng = np.random.default_rng(seed)
    out = np.zeros((h, w), dtype=np.int64)
    for i in range(h):
        for j in range(w):
            row = frequencies[contexts(out[: i + 1, : j + 1])[i, j]]
            out[i, j] = rng.choice(len(row), p=row / row.sum())
    return out


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 2, 4, 32]), st.integers(0, 2**32 - 1))
def test_any_map_comes_back(h: int, w: int, classes: int, seed: int) -> None:
    """Also one that the table thinks unlikely: no class is impossible."""
    frequencies = table(classes)
    found, grids = np.random.default_rng(seed).integers(0, classes, h * w), [Grid(h, w, 0, classes)]
    decoded = decode_classes(encode_classes(found, grids, frequencies), grids, frequencies)
    assert decoded is not None
    assert np.array_equal(decoded, found)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_maps_of_different_classes_come_back_from_one_stream(h: int, w: int, first: int, seed: int) -> None:
    """Contexts stay within a map, and each has classes of its own: those of another are not taken for it."""
    frequencies, random = table(8), np.random.default_rng(seed)
    grids = [Grid(h, w, 0, first), Grid(2, 3, first, 8)]
    found = np.concatenate([random.integers(0, first, h * w), random.integers(first, 8, 6)])
    data = encode_classes(found, grids, frequencies)
    decoded = decode_classes(data, grids, frequencies)
    assert decoded is not None
    assert np.array_equal(decoded, found)
    assert [one.shape for one in maps(decoded, grids)] == [(h, w), (2, 3)]
    other = decode_classes(data, [Grid(h, w, 0, first), Grid(2, 3, 0, first)], frequencies)
    assert other is None or int(other.max()) < first


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60))
def test_garbage_is_a_map_or_nothing(data: bytes) -> None:
    frequencies = table(8)
    decoded = decode_classes(data, [Grid(5, 7, 0, 8)], frequencies)
    if decoded is not None:
        assert decoded.shape == (35,)
        assert decoded.min() >= 0
        assert decoded.max() < 8


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255), st.integers(0, 40))
def test_a_damaged_map_is_a_map_or_nothing(position: int, flip: int, cut: int) -> None:
    frequencies, grids = table(8), [Grid(6, 9, 0, 8)]
    data = bytearray(encode_classes(drawn(6, 9, frequencies, 1).ravel(), grids, frequencies))
    data[position % len(data)] ^= flip
    decoded = decode_classes(bytes(data[: len(data) - cut % len(data)]), grids, frequencies)
    assert decoded is None or (decoded.shape == (54,) and 0 <= decoded.min() <= decoded.max() < 8)


def test_one_class_costs_nothing() -> None:
    frequencies, grids = table(1), [Grid(3, 4, 0, 1)]
    assert encode_classes(np.zeros(12, dtype=np.int64), grids, frequencies) == b""
    assert decode_classes(b"", grids, frequencies).tolist() == [0] * 12  # type: ignore[union-attr]
    assert decode_classes(b"1234", grids, frequencies) is None


def test_bytes_are_worth_their_bits() -> None:
    """A map drawn from the table takes its ideal code length, and at most a word and a half of 32 bits more."""
    blocks = BlockClasses(8, 16)
    frequencies = table(8)
    blocks.frequencies.copy_(torch.from_numpy(frequencies))
    found, grids = drawn(30, 40, frequencies, 2).ravel(), blocks.grids(30, 40)
    ideal, real = blocks.class_bits(found, grids), 8 * len(encode_classes(found, grids, frequencies))
    assert ideal < 0.75 * 3 * found.size  # the context is worth something
    assert ideal - 1 <= real <= ideal + 48


def test_contexts_come_from_what_is_decoded_already() -> None:
    found = np.array([[3, 1, 4], [2, 6, 5]])
    assert contexts(found).tolist() == [[0, 3, 1], [3, 2, 5]]
    changed = found.copy()
    changed[1, 1:] = 0
    assert np.array_equal(contexts(changed).reshape(-1)[:5], contexts(found).reshape(-1)[:5])


def test_the_packet_survives_2_to_8_db() -> None:
    assert [side_margin_db(told) for told in (-10.0, 0.0, 5.0, 8.0, 20.0)] == [2, 2, 5, 8, 8]


# -- power -------------------------------------------------------------------------------------------------------------------


def lmmse_error(variance: Tensor, power: Tensor, count: Tensor, noise_var: float) -> float:
    """Sum over components of v n / (p + n): what LMMSE leaves."""
    return float((count * variance * noise_var / (power + noise_var)).sum())


@pytest.mark.parametrize("noise_var", [0.01, 0.3, 2.0])
def test_water_filling_is_what_an_optimiser_finds(noise_var: float) -> None:
    """Against SLSQP of scipy over the powers directly: the same error to 1e-4 of it."""
    from scipy.optimize import minimize

    rng = np.random.default_rng(3)
    v, c = 10 ** rng.uniform(-3, 1, 9), rng.integers(1, 40, 9).astype(float)

    def error(p: np.ndarray) -> float:
        return float((c * v * noise_var / (p + noise_var)).sum())

    def slope(p: np.ndarray) -> np.ndarray:
        return -c * v * noise_var / (p + noise_var) ** 2

    best = min(
        (
            minimize(
                error,
                start,
                jac=slope,
                bounds=[(0, None)] * 9,
                constraints={"type": "eq", "fun": lambda p: (c @ p) / c.sum() - 1, "jac": lambda p: c / c.sum()},
                method="SLSQP",
                options={"maxiter": 500, "ftol": 1e-12},
            )
            for start in (np.ones(9), v / v.mean())
        ),
        key=lambda result: float(result.fun),
    )
    variance, count = torch.from_numpy(v), torch.from_numpy(c)
    power = water_fill(variance, count, noise_var)
    assert float((power * count).sum() / count.sum()) == pytest.approx(1, abs=1e-5)
    assert bool((power >= 0).all())
    assert lmmse_error(variance, power, count, noise_var) == pytest.approx(float(best.fun), rel=1e-4)
    assert lmmse_error(variance, torch.ones(9), count, noise_var) > 1.02 * float(best.fun)  # equal shares are worse


def test_water_filling_leaves_the_weak_dry() -> None:
    power = water_fill(torch.tensor([4.0, 1.0, 1e-4]), torch.tensor([1, 1, 1]), 0.5)
    assert float(power[0]) > float(power[1]) > 0
    assert float(power[2]) == 0


# -- who sends what ------------------------------------------------------------------------------------------------------------


def fitted(classes: int = 4, latents: int = 24) -> BlockClasses:
    blocks = BlockClasses(classes, latents)
    fall = 10 ** torch.linspace(0, -1.5, latents)
    blocks.std.copy_(torch.linspace(0.3, 3, classes)[:, None] * fall)
    return blocks


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 900), st.integers(0, 1000), st.sampled_from([-5.0, 10.0, 20.0]))
def test_every_channel_use_is_filled(n: int, uses: int, seed: int, snr_db: float) -> None:
    """Two coefficients per use, never more than there are; unit mean power; nothing where nothing is sent."""
    blocks = fitted()
    classes = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, n))
    plan = blocks.allocate(classes, uses, snr_db)
    wanted = min(2 * uses, n * blocks.latents)
    assert int(plan.sent.sum()) == wanted
    assert bool((plan.gain[~plan.sent] == 0).all())
    assert torch.equal(plan.variance, blocks.std.square()[classes])


def test_power_is_one_per_coefficient() -> None:
    blocks = fitted()
    classes = torch.arange(40) % 4
    plan = blocks.allocate(classes, 200, 10.0)
    assert float((plan.gain.square() * plan.variance).sum() / plan.sent.sum()) == pytest.approx(1, rel=0.01)


def test_the_strongest_coefficients_go_and_busy_blocks_get_more() -> None:
    blocks = fitted()
    classes = torch.arange(40) % 4
    plan = blocks.allocate(classes, 150, 10.0)
    assert float(plan.variance[plan.sent].min()) >= float(plan.variance[~plan.sent].max())
    share = torch.zeros(4).index_add_(0, classes, plan.sent.sum(1).float())
    assert share.tolist() == sorted(share.tolist())
    assert share[3] > 2 * share[0]


def test_both_ends_plan_alike() -> None:
    blocks, again = fitted(), fitted()
    classes = torch.from_numpy(np.random.default_rng(0).integers(0, 4, 77))
    one, two = blocks.allocate(classes, 123, 9.5), again.allocate(classes.clone(), 123, 9.5)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# -- fitting -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixture() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Frames of blocks from two zero-mean Gaussians on one orthonormal basis: frames, classes, basis (6, 768), variances."""
    random = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(DIMS, 6, generator=random)).Q.T
    variances = torch.tensor([[0.5, 0.3, 0.16, 0.06, 0.03, 0.015], [4.0, 2.4, 1.28, 0.96, 0.8, 0.64]])
    classes = (torch.rand(40, 8, 8, generator=random) < 0.4).long()
    coefficients = torch.randn(40, 8, 8, 6, generator=random) * variances[classes].sqrt()
    blocks = (coefficients @ basis + 0.5).movedim(-1, 1)
    return F.pixel_shuffle(blocks, BLOCK), classes, basis, variances


@pytest.mark.parametrize("rotated", [0, 6])
def test_fitting_finds_the_mixture(mixture: tuple[Tensor, Tensor, Tensor, Tensor], rotated: int) -> None:
    """1,500 and 1,060 blocks: variances come back within 15 % (5 sigma of a variance is 16 to 22 %), classes to 97 %."""
    frames, classes, basis, variances = mixture
    blocks = BlockClasses(2, 6, rotated)
    blocks.fit(frames)
    assert torch.allclose(blocks.basis @ blocks.basis.T, torch.eye(6), atol=1e-4)
    aligned = (blocks.basis @ basis.T).abs().max(1).values
    assert float(aligned.min()) > 0.98
    assert torch.allclose(blocks.std.square(), variances, rtol=0.15)
    found = blocks.classify(blocks.analyse(frames))
    assert float((found == classes).float().mean()) > 0.97
    shares = blocks.frequencies.float() / blocks.frequencies.sum(1, keepdim=True)
    assert shares[:, 1].tolist() == pytest.approx([0.4, 0.4], abs=0.07)  # blocks are independent: contexts tell nothing


def test_rotations_turn_and_turn_back(mixture: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    frames, _, _, _ = mixture
    blocks = BlockClasses(2, 6, 4)
    blocks.fit(frames)
    coefficients = blocks.analyse(frames)
    rows, classes = coefficients.movedim(1, -1).flatten(0, -2), blocks.classify(coefficients).flatten()
    turned = blocks.rotate(rows, classes)
    assert torch.allclose(blocks.rotate(turned, classes, back=True), rows, atol=1e-4)
    assert torch.allclose(turned.square().sum(1), rows.square().sum(1), rtol=1e-3)
    assert torch.equal(turned[:, 4:], rows[:, 4:])


def test_own_bases_find_what_one_basis_cannot() -> None:
    """Two classes with the same variances along different directions: with rotations each is decorrelated."""
    random = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(DIMS, 4, generator=random)).Q.T
    turns = torch.linalg.qr(torch.randn(2, 4, 4, generator=random)).Q
    classes = (torch.rand(30, 8, 8, generator=random) < 0.5).long()
    scale = torch.tensor([[0.9, 0.2, 0.1, 0.05], [9.0, 0.6, 0.3, 0.2]]).sqrt()
    own = torch.randn(30, 8, 8, 4, generator=random) * scale[classes]
    frames = F.pixel_shuffle(((own[..., None, :] @ turns[classes])[..., 0, :] @ basis + 0.5).movedim(-1, 1), BLOCK)
    left = []
    for rotated in (0, 4):
        blocks = BlockClasses(2, 4, rotated)
        blocks.fit(frames)
        coefficients = blocks.analyse(frames)
        rows, found = coefficients.movedim(1, -1).flatten(0, -2), blocks.classify(coefficients).flatten()
        turned = blocks.rotate(rows, found)
        left.append(sum(float((turned[found == k].T @ turned[found == k]).fill_diagonal_(0).abs().sum()) for k in range(2)))
    assert left[1] < 0.4 * left[0]
