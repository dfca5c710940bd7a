"""Which class every block gets: the least of what it costs to send and of the priced length of what says so."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def lengths(table: Tensor) -> Tensor:
    """Ideal code lengths in bits under rows of frequencies."""
    often = table.double()
    return -(often / often.sum(1, keepdim=True)).log2().float()


def mean_context(left: Tensor, up: Tensor) -> Tensor:
    """Context of a class in a picture: the mean of left and upper neighbour, rounded up, as for the coder of maps."""
    return torch.div(left + up + 1, 2, rounding_mode="floor")


def refine(
    cost: Tensor,
    bits: Tensor,
    classes: Tensor,
    context: Callable[[Tensor, Tensor], Tensor] = mean_context,
    earlier: Tensor | None = None,
    sweeps: int = 2,
) -> Tensor:
    """Classes (h, w) that lower the sum of cost (h, w, C) and priced code length, by iterated conditional modes.

    Args:
        bits: (contexts, C) priced length of a class in a context. classes: where to start. context: of a class, from those of
            its left and its upper neighbour. earlier: (h, w) is added to contexts; where it is given, neighbours beyond the
            edge are class 0, else the one that there is stands for the other.
    """
    now = classes.clone()
    h, w, C = cost.shape
    odd = (torch.arange(h)[:, None] + torch.arange(w)) % 2
    every = torch.arange(C)
    offset = torch.zeros(h, w, dtype=torch.int64) if earlier is None else earlier
    for turn in range(2 * sweeps):
        left, up = F.pad(now[:, :-1], (1, 0)), F.pad(now[:-1], (0, 0, 1, 0))
        if earlier is None:
            left, up = torch.cat([up[:, :1], left[:, 1:]], 1), torch.cat([left[:1], up[1:]], 0)
        total = cost + bits[context(left, up) + offset]
        # What the choice makes of the contexts of the right and the lower neighbour, away from the edges.
        if w > 1 and h > 1:
            right = context(every, up[1:, 1:, None]) + offset[1:, 1:, None]
            total[1:, :-1] += bits[right, now[1:, 1:, None]]
            lower = context(left[1:, 1:, None], every) + offset[1:, 1:, None]
            total[:-1, 1:] += bits[lower, now[1:, 1:, None]]
        now = torch.where(odd == turn % 2, total.argmin(-1), now)
    return now


def choose_quarters(cost: Tensor, bits: Tensor, sweeps: int = 1) -> tuple[Tensor, Tensor]:
    """Classes (n, 4) of the quarters of blocks, counted from 0, that lower the sum of cost (n, 4, Q) and priced code length,
    and that sum, (n,).

    Args:
        bits: (contexts, Q) priced length of a class in a context (:func:`~semcast.layers.block_classes.quarter_contexts`).
    """
    Q = cost.shape[2]
    alone, told, last = bits[0], bits[1 : 1 + Q], bits[1 + Q :].reshape(Q, Q, Q)  # last: (right, below, own)
    upper = (cost[:, 0] + alone).argmin(1)
    right, below = ((cost[:, k] + told[upper]).argmin(1) for k in (1, 2))
    lower = (cost[:, 3] + last[right, below]).argmin(1)
    for _ in range(sweeps):
        upper = (cost[:, 0] + alone + told.T[right] + told.T[below]).argmin(1)
        right = (cost[:, 1] + told[upper] + last[:, below, lower].T).argmin(1)
        below = (cost[:, 2] + told[upper] + last[right, :, lower]).argmin(1)
        lower = (cost[:, 3] + last[right, below]).argmin(1)
    found = torch.stack([upper, right, below, lower], 1)
    paid = alone[upper] + told[upper, right] + told[upper, below] + last[right, below, lower]
    return found, cost.gather(2, found[..., None])[..., 0].sum(1) + paid
