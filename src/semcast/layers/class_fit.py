"""Statistics of a :class:`~semcast.layers.block_code.BlockCode`, fitted to pictures: classes of blocks and of their quarters.

Both kinds are clustered on their own first. Then blocks choose, at a usual price and with side information charged, whether to
stay whole, and each kind is estimated anew from those that chose it, a few times over (Lloyd's iteration at a fixed slope).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from semcast.layers.block_classes import BlockClasses, pair_counts, quarter_contexts, quartered
from semcast.layers.class_choice import lengths

if TYPE_CHECKING:
    from semcast.layers.block_code import BlockCode

SNR_DB = 10.0
PRICES = (-120, -100, -80, -60)
"""Quarter decibels of squared pixel values, in turn from picture to picture."""
BITS_PER_USE = 1.0
ROUNDS = 3
MOST = 60_000
"""Rows that are clustered at most."""


def fit_classes(code: BlockCode, frames: Tensor, iterations: int) -> None:
    """Fit blocks, and quarters where the code has any, to frames (N, 3, H, W), sides multiples of 16."""
    kind = code.blocks.kinds[0]
    whole = BlockClasses(kind.last, kind.latents, kind.rotated)
    whole.fit(frames, iterations)
    own, C = code.blocks, kind.last
    own.basis.copy_(whole.basis)
    own.mean.copy_(whole.mean)
    own.std[:C] = whole.std
    own.rotations_of(0).copy_(whole.rotations_of(0))
    own.frequencies.fill_(1)
    own.frequencies[:C, :C] = whole.frequencies
    code.settle()
    if code.quarters:
        fit_quarters(code, frames, iterations)


def fit_quarters(code: BlockCode, frames: Tensor, iterations: int) -> None:
    """Fit quarters to frames (N, 3, H, W), and blocks to what is left of them where they are not split."""
    own = code.blocks
    first, last, latents, rotated = own.kinds[2]
    pixels = own.pixels(frames)
    quarters = quartered(pixels.flatten(0, 1))
    loudness = quarters.square().sum(1)
    loud = quarters[loudness > loudness.median()]
    _, vectors = torch.linalg.eigh((loud.T @ loud).double())
    code.quarter_basis.copy_(vectors.flip(1).T[: len(code.quarter_basis)])
    part = BlockClasses(last - first, latents, rotated)
    part.cluster(loud[:: -(-len(loud) // MOST)] @ code.quarter_basis.T, iterations)
    own.std[first:last, :latents] = part.std
    own.rotations_of(2).copy_(part.rotations_of(0))
    code.settle()
    shape = frames.shape[2] // 16, frames.shape[3] // 16
    for turn in range(ROUNDS):
        told, maps, of_quarters = code.told_index(SNR_DB), [], []
        for number, one in enumerate(pixels):
            price = PRICES[number % len(PRICES)]
            a_bit = code.bit_price(price, BITS_PER_USE)
            cost, found = code._costs_at(one, price, told, a_bit)
            assert found is not None
            often = own.frequencies[: cost.shape[1], : cost.shape[1]].double().sum(0, keepdim=True)
            maps.append((cost + (0.8 * a_bit * lengths(often)[0] if turn else 0)).argmin(1))
            of_quarters.append(found)
        classes, split = torch.stack(maps), torch.stack(maps).flatten() == code.split
        chosen = torch.cat(of_quarters)[split]
        members = quartered(pixels.flatten(0, 1)[split]) @ code.quarter_basis.T
        own.estimate(members, chosen.flatten() - first, 2)
        whole = pixels.flatten(0, 1)[~split] @ own.basis.T
        own.estimate(whole, classes.flatten()[~split], 0)
        table = pair_counts(classes.reshape(-1, *shape).numpy(), code.split + 1)
        own.frequencies[: code.split + 1, : code.split + 1] = torch.from_numpy(table)
        code.often_quarters.copy_(torch.from_numpy(quarter_counts((chosen - first).numpy(), code.quarters)))
        code.settle()


def quarter_counts(quarters: np.ndarray, count: int) -> np.ndarray:
    """Frequencies (contexts, Q) of 16 bits of quarters (n, 4) from 0 on. The last one's context is two classes, most pairs of
    which are rare: its frequencies are the product of what each of the two says, to the power :data:`BOTH`."""
    table = np.zeros((1 + count + count**2, count))
    contexts = quarter_contexts(quarters, count)
    np.add.at(table, (contexts, quarters), 1)
    pairs = table[1 + count :].reshape(count, count, count)
    overall = (table[0] + 1) / (table[0] + 1).sum()
    right, below = ((one + 8 * overall) / (one.sum(1, keepdims=True) + 8) for one in (pairs.sum(1), pairs.sum(0)))
    table[1 + count :] = ((right[:, None] * below[None]) ** BOTH).reshape(-1, count)
    table[: 1 + count] += 4 * overall
    scaled: np.ndarray = (1 + np.floor(table / table.sum(1, keepdims=True) * 60000)).astype(np.int32)
    return scaled


BOTH = 0.8
"""Two neighbours that resemble each other say less than one after the other would."""
