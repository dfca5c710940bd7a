"""Numbers as bytes: models that are the same everywhere, a coder that comes back, and quantisation that pays."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semcast.layers import coefficient_coder as coder
from semcast.layers.coefficient_coder import BIT_PRICE, DEAD_ZONE, LEAST_DEPTH


def laplace(depth: int, count: int, seed: int = 0) -> torch.Tensor:
    """(count,) values over the step."""
    scale = 10 ** (depth / 80) / math.sqrt(2)
    return torch.from_numpy(np.random.default_rng(seed).laplace(scale=scale, size=count))


def test_models_are_the_same_numbers_everywhere() -> None:
    """Every frequency of every depth in use, digested: a machine that computes another one could not read our bytes."""
    tables = np.concatenate([coder.frequencies(depth) for depth in range(LEAST_DEPTH, 161)])
    assert tables.dtype == np.int64
    digest = hashlib.sha256(tables.astype("<i8").tobytes()).hexdigest()
    assert digest == "4c383e465c069897e067e635747070a62576bf44810b5822ca89f0c773702e97"


@pytest.mark.parametrize("depth", [LEAST_DEPTH, -7, 0, 33, 90, 170])
def test_models_are_laplace_with_a_dead_zone(depth: int) -> None:
    table = coder.frequencies(depth)
    assert (table > 0).all()
    assert (table == table[::-1]).all()
    centre = len(table) // 2
    fall, dead = -math.sqrt(2) / 10 ** (depth / 80), 0.5 + float(DEAD_ZONE)
    expected = [1 - math.exp(fall * dead), *(math.exp(fall * (k + dead)) * (1 - math.exp(fall)) / 2 for k in range(3))]
    assert table[centre : centre + 4] / table.sum() == pytest.approx(expected, rel=2e-3, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(LEAST_DEPTH, 120), max_size=60), st.integers(0, 2**32 - 1))
def test_numbers_come_back(depths: list[int], seed: int) -> None:
    order = np.array(sorted(depths, reverse=True), dtype=np.int64)
    random = np.random.default_rng(seed)
    reach = [coder.largest(int(depth)) for depth in order]
    numbers = np.array([random.integers(-most, most + 1) for most in reach], dtype=np.int64)
    back = coder.decode(coder.encode(numbers, order), order)
    assert back is not None
    assert (back == numbers).all()


@pytest.mark.parametrize("depth", [-24, 0, 40, 100])
def test_bytes_are_what_the_model_says_and_that_is_the_entropy(depth: int) -> None:
    """20 000 Laplace numbers: bytes within 0.5 % of the model's code length, that within 2 % of their own entropy."""
    depths = np.full(20000, depth)
    numbers = coder.quantise(laplace(depth, len(depths)), torch.from_numpy(depths))[0].long().numpy()
    bits, ideal = 8 * len(coder.encode(numbers, depths)), coder.code_lengths(numbers, depths).sum()
    share = np.unique(numbers, return_counts=True)[1] / len(numbers)
    entropy = -(share * np.log2(share)).sum() * len(numbers)
    assert bits == pytest.approx(ideal, rel=0.005, abs=64)
    assert entropy <= ideal < 1.02 * entropy


@pytest.mark.parametrize("depth", [LEAST_DEPTH, -10, 10, 60])
def test_no_other_number_is_cheaper(depth: int) -> None:
    """Against every number of the table, by the code lengths of the coder itself."""
    u = laplace(depth, 300, seed=1).clamp(-30, 30)
    numbers, price = coder.quantise(u, torch.full((300,), depth))
    reach = coder.largest(depth)
    every = np.arange(-reach, reach + 1)
    lengths = torch.from_numpy(coder.code_lengths(every, np.full(len(every), depth)))
    prices = (u[:, None] - torch.from_numpy(every)).square() + BIT_PRICE * lengths
    assert torch.allclose(price.double(), prices.min(1).values, atol=1e-3)
    assert int(numbers.abs().max()) <= reach


def test_what_is_not_worth_a_bit_is_zero() -> None:
    numbers, price = coder.quantise(torch.tensor([0.3, -9.0]), torch.tensor([LEAST_DEPTH - 1, -300]))
    assert numbers.tolist() == [0, 0]
    assert price.tolist() == pytest.approx([0.09, 81.0])


def test_no_number_leaves_its_table() -> None:
    depths = torch.arange(LEAST_DEPTH, 201)
    numbers, _ = coder.quantise(torch.full((len(depths),), 1e6), depths)
    assert numbers.tolist() == [len(coder.frequencies(depth)) // 2 for depth in depths.tolist()]


def test_order_is_by_depth_then_place() -> None:
    order = coder.layout(torch.tensor([[5, -100, 7], [7, 5, LEAST_DEPTH]]))
    assert order.places.tolist() == [2, 3, 0, 4, 5]
    assert order.depths.tolist() == [7, 7, 5, 5, LEAST_DEPTH]


@pytest.mark.parametrize("data", [b"", b"\0", b"abc", b"\xff" * 7, bytes(range(64))])
def test_forged_bytes_never_raise(data: bytes) -> None:
    depths = np.repeat([100, 20, -30], 50)
    back = coder.decode(data, depths)
    assert back is None or len(back) == 150
