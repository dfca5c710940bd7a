"""A picture in two scales: what 16x16 blocks have beside their means, and the means, four by four of them a block of their own.

    frame ─┬─▶ means of blocks ─┬─▶ tiles of 4x4 ─▶ KLT ─▶ rows of their own classes
           │                    └─▶ smooth picture with the same means
           └──────────────(-)◀──┘
                           └─▶ detail ─▶ blocks of 16x16 ─▶ KLT ─▶ rows of theirs

Means of neighbouring blocks resemble one another, and how they change tells much of the slopes within blocks. Sent block by
block, means would be the strongest coefficients by far, each worth more channel uses than the curves of
:mod:`semcast.layers.expansion` have. The smooth picture is linear in the means of a block and its eight neighbours, the least
squares estimate of the picture; being an estimate from what is sent anyway, it costs nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from semcast.layers.block_classes import BLOCK, DIMS, BlockClasses, Grid
from semcast.layers.block_code import BlockCode

TILE = 4
"""Blocks on a side of a tile."""
TILE_DIMS = 3 * TILE**2
NEIGHBOURS = 27
"""Means that a block is told from: three colours of three by three blocks."""
GREY = 0.5
CALM = 3e-4
"""Variance, in squared pixel values of [0, 1], below which a block counts as much as one of it for the smooth picture."""


class TwoScaleCode(BlockCode):
    """A :class:`BlockCode` for details and tiles of means together: rows of one picture are its details', whole and in
    quarters, then its tiles'. The classes of tiles come last.

    Args:
        classes, tile_classes: of details and of tiles. latents, rotated, quarters, weighed: as of :class:`BlockCode`; at least
            as many latents as a tile has coefficients, 48.
    """

    smooth: Tensor
    tile_basis: Tensor

    def __init__(
        self, classes: int, tile_classes: int, latents: int, rotated: int, quarters: int = 0, weighed: bool = False
    ) -> None:
        if latents < TILE_DIMS:
            raise ValueError(f"a tile has {TILE_DIMS} coefficients, and latents is {latents}")
        super().__init__(classes, latents, rotated, quarters, weighed, [(tile_classes, TILE_DIMS, min(rotated, TILE_DIMS))])
        self.register_buffer("smooth", flat())
        self.register_buffer("tile_basis", torch.eye(TILE_DIMS))  # rows: eigenvectors, strongest first

    def grids(self, h: int, w: int) -> list[Grid]:
        """Maps of a picture of (h, w) blocks: of details, their quarters, and tiles."""
        tiles = self.blocks.kinds[-1]
        return [*super().grids(h, w), Grid(-(-h // TILE), -(-w // TILE), tiles.first, tiles.last)]

    # -- transform -------------------------------------------------------------------------------------------------------

    @staticmethod
    def means(frames: Tensor) -> Tensor:
        """Frames (N, 3, H, W) -> mean of every block less grey, at unit gain, (N, 3, H / 16, W / 16)."""
        return (F.avg_pool2d(frames, BLOCK) - GREY) * BLOCK

    def smoothed(self, means: Tensor) -> Tensor:
        """The picture (N, 3, 16 h, 16 w) that means (N, 3, h, w) are the means of; beyond the edge they go on."""
        n, _, h, w = means.shape
        return F.pixel_shuffle((self.smooth.T @ around(means)).reshape(n, DIMS, h, w), BLOCK) + GREY

    def analyse(self, frames: Tensor) -> Tensor:
        """Frames (N, 3, H, W), sides multiples of 16 -> rows (N, rows, L), of details and quarters, then of tiles."""
        means = self.means(frames)
        details = super().analyse(frames - self.smoothed(means))
        tiles = tiled(means) @ self.tile_basis.T
        return torch.cat([details, F.pad(tiles, (0, self.blocks.latents - TILE_DIMS))], 1)

    def synthesise(self, rows: Tensor, h: int, w: int) -> Tensor:
        """The inverse but for what the bases leave out: rows of pictures of (h, w) blocks -> (N, 3, 16 h, 16 w)."""
        tiles = tiled_count(h, w)
        details, means = rows[:, :-tiles], rows[:, -tiles:, :TILE_DIMS]
        return super().synthesise(details, h, w) + self.smoothed(untiled(means @ self.tile_basis, h, w))

    def features(self, frames: Tensor) -> Tensor:
        """What a network looks at: coefficients of details' basis and means, (N, L + 3, h, w), of frames (N, 3, H, W)."""
        return torch.cat([self.blocks.analyse(frames), self.means(frames)], 1)

    # -- statistics ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit(self, frames: Tensor, iterations: int = 15) -> None:
        """Fit smooth pictures, then the classes of both, to frames (N, 3, H, W), sides multiples of 16."""
        self._fit_smooth(frames)
        means = self.means(frames)
        super().fit(frames - self.smoothed(means), iterations)
        own, (first, last, _, rotated) = self.blocks, self.blocks.kinds[-1]
        whole = [max(side // TILE * TILE, 1) for side in means.shape[2:]]  # tiles that lie within the pictures
        tiles = tiled(means[:, :, : whole[0], : whole[1]])
        rows = tiles.flatten(0, 1)
        _, vectors = torch.linalg.eigh((rows.T @ rows).double())
        self.tile_basis.copy_(vectors.flip(1).T)
        tile = BlockClasses(last - first, TILE_DIMS, rotated)
        classes = tile.cluster(rows @ self.tile_basis.T, iterations)
        tile.count(classes.reshape(len(frames), -(-whole[0] // TILE), -(-whole[1] // TILE)).numpy())
        own.std[first:last, :TILE_DIMS] = tile.std
        own.rotations_of(len(own.kinds) - 1).copy_(tile.rotations_of(0))
        own.frequencies[first:last, first:last] = tile.frequencies
        self.settle()

    def _fit_smooth(self, frames: Tensor) -> None:
        """Weighed least squares: a block counts the more the calmer it is, as it does for rates."""
        means = self.means(frames)
        near = around(means).movedim(1, 2).reshape(-1, 3, 9)
        slopes = (near - near[:, :, 4:5]).flatten(1)
        blocks = F.pixel_unshuffle(frames - GREY, BLOCK).movedim(1, -1).reshape(-1, 3, BLOCK**2)
        blocks = (blocks - blocks.mean(2, keepdim=True)).flatten(1)
        weight = (blocks.square().mean(1, keepdim=True) + CALM).rsqrt()
        gram = ((slopes * weight).T @ slopes).double()
        gram += 1e-3 * gram.diag().mean() * torch.eye(NEIGHBOURS)
        told = torch.linalg.solve(gram, ((slopes * weight).T @ blocks).double()).float()
        told = told.reshape(3, 9, DIMS)
        told[:, 4] -= told.sum(1)
        self.smooth.copy_(told.reshape(NEIGHBOURS, DIMS) + flat())


def around(means: Tensor) -> Tensor:
    """Means (N, 3, h, w) -> those of every block and its neighbours, colour by colour, (N, 27, h w); edges are repeated."""
    return F.unfold(F.pad(means, (1, 1, 1, 1), mode="replicate"), 3)


def flat() -> Tensor:
    """(27, 768): blocks as flat as their means, whatever their neighbours' are."""
    out = torch.zeros(3, 9, 3, BLOCK**2)
    for colour in range(3):
        out[colour, 4, colour] = 1 / BLOCK
    return out.reshape(NEIGHBOURS, DIMS)


def tiled_count(h: int, w: int) -> int:
    """Tiles of a picture of (h, w) blocks."""
    return -(-h // TILE) * -(-w // TILE)


def tiled(means: Tensor) -> Tensor:
    """Means (N, 3, h, w) -> tiles (N, n, 48), row by row; beyond the edge means go on."""
    n, _, h, w = means.shape
    means = F.pad(means, (0, -w % TILE, 0, -h % TILE), mode="replicate")
    return F.pixel_unshuffle(means, TILE).flatten(2).movedim(1, 2).reshape(n, -1, TILE_DIMS)


def untiled(tiles: Tensor, h: int, w: int) -> Tensor:
    """The inverse for a picture of (h, w) blocks: (N, n, 48) -> (N, 3, h, w)."""
    grid = tiles.movedim(1, 2).unflatten(2, (-(-h // TILE), -(-w // TILE)))
    return F.pixel_shuffle(grid, TILE)[:, :, :h, :w]
