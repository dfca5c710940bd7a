"""Fast convolutions make what plain ones make, and step aside where something is learned."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from semcast.layers.winograd import convolve


@pytest.mark.parametrize(("inputs", "outputs", "h", "w", "batch"), [(96, 96, 30, 52, 1), (8, 5, 3, 4, 2), (1, 1, 1, 1, 1)])
@torch.no_grad()
def test_the_same_to_float_rounding(inputs: int, outputs: int, h: int, w: int, batch: int) -> None:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    x = torch.randn(batch, inputs, h, w)
    exact = nn.functional.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)  # type: ignore[union-attr]
    assert torch.allclose(convolve(conv, x).double(), exact, atol=1e-4)


def test_gradients_pass() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    convolve(conv, torch.randn(1, 4, 6, 6)).sum().backward()  # type: ignore[no-untyped-call]
    assert conv.weight.grad is not None
    assert bool(conv.weight.grad.any())


@torch.no_grad()
def test_low_precision_stays_low() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert convolve(conv, torch.randn(1, 4, 6, 6)).dtype == torch.bfloat16
