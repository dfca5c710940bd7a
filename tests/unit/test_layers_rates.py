"""Rates of tokens: choosing them, layers that obey them, symbols on the air, and indices as bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from semcast.layers.index_table import IndexTable, decode_maps, encode_maps
from semcast.layers.rate_choice import Choice, RateLayers, TokenDecoder, TokenEncoder, choose, largest_scale, sent_mask
from semcast.layers.symbols import amplitude_of, amplitude_steps, pack, unpack
from semcast.types import as_real

V = (0, 2, 5, 8)
VALUES = torch.tensor(V, dtype=torch.float32)


def test_nearest_value_and_a_straight_gradient() -> None:
    k = torch.tensor([[[-3.0, 0.9, 1.1, 3.4, 3.6, 7.0, 90.0]]], requires_grad=True)
    choice = choose(k, VALUES)
    assert choice.rates.flatten().tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert choice.value.flatten().tolist() == [0, 0, 2, 2, 5, 8, 8]
    choice.value.sum().backward()
    assert k.grad is not None
    assert bool((k.grad == 1).all())


def test_one_value_is_always_chosen() -> None:
    assert choose(torch.rand(1, 2, 2) * 99, torch.tensor([7.0])).value.unique().tolist() == [7]


def test_largest_scale_spends_what_it_may() -> None:
    assert largest_scale(lambda s: round(100 * s), 250) == pytest.approx(2.5, rel=0.01)
    assert largest_scale(lambda s: 10, 9) is None
    assert largest_scale(lambda s: 10, 11) == 2.0**20


@pytest.mark.parametrize("reading", [False, True])
def test_a_layer_serves_the_tokens_of_its_rate_only(reading: bool) -> None:
    """Each row of the matrix gets a gradient only if its rate occurs."""
    torch.manual_seed(0)
    layers = RateLayers(6, V, reading)
    index = torch.tensor([[1, 3, 1], [0, 1, 3]])
    x = torch.randn(2, 3, max(V) if reading else 6)
    out = layers(x, index)
    out.square().sum().backward()
    assert layers.weight.grad is not None
    used = (layers.weight.grad != 0).any(1)
    assert used.tolist() == [True] * 2 + [False] * 5 + [True] * 8
    if not reading:
        assert not bool(out[0, 0, 2:].any())
        assert not bool(out[1, 0].any())
        torch.testing.assert_close(out[0, 1], x[0, 1] @ layers.weight[7:].T)


def test_tokens_through_symbols_and_back() -> None:
    torch.manual_seed(0)
    encoder, decoder = TokenEncoder(8, V, 2, 2, 4), TokenDecoder(8, V, 2, 2, 4)
    k = (9 * torch.rand(2, 3, 5)).requires_grad_()
    choice = choose(k, VALUES)
    symbols = encoder(torch.randn(2, 8, 3, 5), choice)
    assert symbols.shape == (2, 15, 8)
    assert not bool(symbols[~sent_mask(choice.rates, VALUES)].any())
    out = decoder(symbols, choice.rates)
    assert out.shape == (2, 8, 3, 5)
    out.square().sum().backward()
    for module in (encoder, decoder):
        assert [name for name, p in module.named_parameters() if p.grad is None or not bool((p.grad != 0).any())] == []
    assert k.grad is not None
    assert bool((k.grad != 0).any()), "distortion has no say in the rate"


def test_soft_edge_changes_nothing_forward() -> None:
    torch.manual_seed(0)
    encoder, tokens = TokenEncoder(8, V, 1, 2, 4), torch.randn(1, 8, 2, 2)
    k = torch.tensor([[[0.0, 2.0], [5.0, 8.0]]], requires_grad=True)
    choice = choose(k, VALUES)
    torch.testing.assert_close(encoder(tokens, choice), encoder(tokens, Choice(choice.rates, choice.value.detach())))


def test_what_goes_on_the_air_has_unit_power_and_comes_back() -> None:
    torch.manual_seed(0)
    index = torch.tensor([[[1, 3], [0, 2]], [[1, 0], [0, 2]]])
    sent = sent_mask(index, VALUES)
    symbols = 5 * torch.randn(2, 4, 8) * sent
    stream, amplitude = pack(symbols, sent)
    assert stream is not None
    assert stream.active is not None
    assert stream.active.sum(1).tolist() == [8, 4]  # ceil(15 / 2), ceil(7 / 2)
    power = (stream.x.abs().square() * stream.active).sum(1) / stream.active.sum(1)
    torch.testing.assert_close(power, torch.ones(2))
    torch.testing.assert_close(unpack(stream.x, sent, amplitude), symbols)
    assert unpack(stream.x[:, :-1], sent, amplitude) is None
    loose = unpack(stream.x[:, :-1], sent, amplitude, exact=False)
    assert loose is not None
    torch.testing.assert_close(loose[1], symbols[1])


def test_nothing_sent_is_no_stream() -> None:
    sent = torch.zeros(1, 4, 8, dtype=torch.bool)
    stream, amplitude = pack(torch.zeros(1, 4, 8), sent)
    assert stream is None
    assert torch.equal(unpack(None, sent, amplitude), torch.zeros(1, 4, 8))  # type: ignore[arg-type]


def test_two_real_symbols_are_one_use() -> None:
    sent = torch.ones(1, 1, 8, dtype=torch.bool)
    symbols = torch.arange(1.0, 9.0).reshape(1, 1, 8)
    stream, amplitude = pack(symbols, sent)
    assert stream is not None
    assert stream.active is None
    torch.testing.assert_close(as_real(stream.x) * amplitude, symbols[0])


def test_amplitude_keeps_a_hundredth_of_a_decibel() -> None:
    amplitude = torch.tensor([1e-4, 0.37, 1.0, 52.0])
    back = amplitude_of(amplitude_steps(amplitude))
    torch.testing.assert_close(back, amplitude, rtol=6e-4, atol=0)
    assert int(amplitude_steps(torch.tensor([1e12])).max()) < 65536


# -- bytes -------------------------------------------------------------------------------------------------------------------


def smooth(size: int, h: int, w: int, seed: int) -> np.ndarray:
    x = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
    x = torch.nn.functional.interpolate(x, (h, w), mode="bilinear")[0, 0]
    return (x * size).long().clamp(0, size - 1).numpy()


def test_maps_come_back_and_a_learned_table_saves_bytes() -> None:
    tables = [IndexTable(8, memory=0.5), IndexTable(4, memory=0.5)]
    maps = [smooth(8, 12, 17, 100), smooth(4, 5, 6, 101)]
    shapes = [one.shape for one in maps]
    flat = encode_maps(maps, tables)
    for seed in range(20):
        for table, one in zip(tables, maps, strict=True):
            table.observe(torch.from_numpy(smooth(table.size, *one.shape, seed))[None])
    data = encode_maps(maps, tables)
    assert len(data) < 0.6 * len(flat)
    bits = sum(table.bits(one) for table, one in zip(tables, maps, strict=True))
    assert bits / 8 - 4 <= len(data) <= bits / 8 + 8
    back = decode_maps(data, shapes, tables)
    assert back is not None
    for a, b in zip(back, maps, strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_letter_needs_no_bytes() -> None:
    table = IndexTable(1)
    assert encode_maps([np.zeros((4, 4), dtype=np.int64)], [table]) == b""
    back = decode_maps(b"", [(4, 4)], [table])
    assert back is not None
    assert not back[0].any()


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, b"\0" * 9, bytes(range(50))])
def test_garbage_is_a_map_or_none(data: bytes) -> None:
    maps = decode_maps(data, [(6, 6)], [IndexTable(5)])
    assert maps is None or bool(((maps[0] >= 0) & (maps[0] < 5)).all())
