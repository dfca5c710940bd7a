"""How many symbols a token gets, chosen from a set of values V, and the layers that make and read just so many.

NTSCC (Dai et al. 2022) and DVST (Wang et al. 2023): a light fully connected layer per rate, invoked for the tokens of that rate
only, and a learned rate token per rate. Symbols are real; two of them make one channel use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast.layers.swin import SwinStack


class Choice(NamedTuple):
    """Which value every token got: its number in V (B, h, w) int64, and the value (B, h, w), whose slope is that of k."""

    rates: Tensor
    value: Tensor


def choose(k: Tensor, values: Tensor) -> Choice:
    """Q(k): the nearest of the rising ``values`` (V,), with the identity for its gradient (straight through)."""
    middles = (values[1:] + values[:-1]) / 2
    index = torch.bucketize(k.detach().float(), middles)
    return Choice(index, k + (values[index] - k).detach())


def largest_scale(cost: Callable[[float], int], limit: int, octaves: float = 20.0, turns: int = 18) -> float | None:
    """The largest factor within ``octaves`` of one whose cost is at most ``limit``, by bisection; None if the least costs more.

    ``cost`` need only rise in the large.
    """
    low, high = -octaves, octaves
    if cost(2.0**low) > limit:
        return None
    if cost(2.0**high) <= limit:
        return 2.0**high
    for _ in range(turns):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(2.0**middle) <= limit else (low, middle)
    return 2.0**low


def sent_mask(index: Tensor, values: Tensor) -> Tensor:
    """Which of the most symbols that a token can have are sent: indices (B, h, w) -> (B, h w, V_max) bool."""
    most = int(values.max())
    return torch.arange(most, device=index.device) < values[index].flatten(1)[..., None]


class RateLayers(nn.Module):
    """One fully connected layer per rate, kept in one matrix: rows ``start[q]`` to ``start[q + 1]`` are the layer of rate q.

    Args:
        width: of a token. values: V, real symbols. reading: from symbols to tokens, instead of from tokens to symbols.
    """

    def __init__(self, width: int, values: tuple[int, ...], reading: bool = False) -> None:
        super().__init__()
        self.width, self.values, self.reading = width, values, reading
        self.start = [sum(values[:q]) for q in range(len(values) + 1)]
        self.weight = nn.Parameter(torch.empty(self.start[-1], width))
        # A rate token follows on the symbols' way back, and is bias enough there.
        self.bias = None if reading else nn.Parameter(torch.zeros(self.start[-1]))
        for q, value in enumerate(values):
            rows = self.weight.data[self.start[q] : self.start[q + 1]]
            # As much power comes out as goes in.
            rows.normal_(0, (max(value, 1) if reading else width) ** -0.5)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """Tokens (B, n, width) -> symbols (B, n, V_max), zero past a token's own; or back, where ``reading``. index (B, n)."""
        out = x.new_zeros(*x.shape[:2], self.width if self.reading else max(self.values))
        for q, value in enumerate(self.values):
            where = index == q
            if value == 0 or not bool(where.any()):
                continue
            rows = slice(self.start[q], self.start[q + 1])
            if self.bias is None:
                y = F.linear(x[where][:, :value], self.weight[rows].T)
            else:
                y = F.pad(F.linear(x[where], self.weight[rows], self.bias[rows]), (0, out.shape[2] - value))
            out = out.masked_scatter(where[..., None], y.to(out.dtype))
        return out


class TokenEncoder(nn.Module):
    """f_e's backbone: token + rate token -> Swin blocks -> the fully connected layer of its rate.

    Args:
        width: of a token. values: V. depth, heads, window: of the Swin blocks. slope: over how many symbols the edge of what is
            sent is blurred for the gradient of k.
    """

    def __init__(self, width: int, values: tuple[int, ...], depth: int, heads: int, window: int, slope: float = 4.0) -> None:
        super().__init__()
        self.slope = slope
        self.register_buffer("values", torch.tensor(values, dtype=torch.float32), persistent=False)
        self.rate_tokens = nn.Parameter(0.02 * torch.randn(len(values), width))
        self.blocks = SwinStack(width, depth, heads, window)
        self.layers = RateLayers(width, values)

    values: Tensor

    def forward(self, tokens: Tensor, choice: Choice) -> Tensor:
        """(B, width, h, w) -> symbols (B, h w, V_max), zero past a token's own."""
        x = self.blocks(tokens + self.rate_tokens[choice.rates].movedim(-1, 1))
        symbols = self.layers(x.flatten(2).transpose(1, 2), choice.rates.flatten(1)).float()
        if not choice.value.requires_grad:
            return symbols
        # Forward one where sent; backward the slope of a soft edge at k, so that distortion has a say in the rate.
        places = torch.arange(symbols.shape[-1], device=symbols.device) + 0.5
        soft = torch.sigmoid((choice.value.flatten(1)[..., None] - places) / self.slope)
        return symbols * (1 + soft - soft.detach())


class TokenDecoder(nn.Module):
    """f_d's backbone: the fully connected layer of its rate -> token + rate token -> Swin blocks."""

    def __init__(self, width: int, values: tuple[int, ...], depth: int, heads: int, window: int) -> None:
        super().__init__()
        self.register_buffer("values", torch.tensor(values, dtype=torch.float32), persistent=False)
        self.rate_tokens = nn.Parameter(0.02 * torch.randn(len(values), width))
        self.layers = RateLayers(width, values, reading=True)
        self.blocks = SwinStack(width, depth, heads, window)

    values: Tensor

    def forward(self, symbols: Tensor, index: Tensor) -> Tensor:
        """Symbols (B, h w, V_max) and indices (B, h, w) -> (B, width, h, w)."""
        x = self.layers(symbols, index.flatten(1)).transpose(1, 2).unflatten(2, index.shape[1:])
        return self.blocks(x + self.rate_tokens[index].movedim(-1, 1))
