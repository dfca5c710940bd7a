"""Blocks of a picture as a mixture of Gaussians: the statistics that a code can start from.

Every 16x16 block is a zero-mean Gaussian in the KLT basis, with the variances of one of a few classes. The class decides how
many channel uses a block gets and how power is shared out (water-filling); its index is what a transmitter has to tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 16
DIMS = 3 * BLOCK**2


class Grid(NamedTuple):
    """A map of classes: its height and width in blocks, and the classes that may occur, from ``first`` to before ``last``."""

    height: int
    width: int
    first: int
    last: int

    @property
    def blocks(self) -> int:
        """How many there are."""
        return self.height * self.width


class Allocation(NamedTuple):
    """Which coefficients of every block are sent and how.

    Attributes:
        sent: (N, L) bool, exactly twice as many as channel uses. gain: (N, L) amplitude per coefficient, 0 where nothing is
            sent. variance: (N, L) of the coefficients' classes.
    """

    sent: Tensor
    gain: Tensor
    variance: Tensor


def water_fill(variance: Tensor, count: Tensor, noise_var: float) -> Tensor:
    """Powers, mean 1 over ``count``, that minimise the LMMSE error sum of v n / (p + n) (Lee and Petersen 1976).

    Args:
        variance: (K,) of the components. count: (K,) how often each occurs. noise_var: noise power per component.
    """
    v, c = variance.double(), count.double()
    descending = v.argsort(descending=True, stable=True)
    root = (v[descending] * noise_var).sqrt()
    filled, weighted = c[descending].cumsum(0), (c[descending] * root).cumsum(0)
    # p = root / s - n over the strongest k components, where s makes the mean over all of them 1; the last must stay above 0.
    scale = weighted / (filled[-1] + noise_var * filled)
    active = int((root > noise_var * scale).sum())
    power = torch.zeros_like(v)
    power[descending[:active]] = root[:active] / scale[active - 1] - noise_var
    return power.float()


class BlockClasses(nn.Module):
    """KLT basis, class variances and class frequencies, fitted to training material and then fixed.

    Args:
        classes: number of classes. latents: coefficients per block that may be sent (L). rotated: the first so many
            coefficients are turned into every class's own KLT (0: all classes share one). floor: variance below which
            differences between classes do not count, in squared pixel values of [0, 1].
    """

    basis: Tensor
    mean: Tensor
    std: Tensor
    frequencies: Tensor
    rotations: Tensor

    def __init__(self, classes: int, latents: int = DIMS, rotated: int = 0, floor: float = 3e-4) -> None:
        super().__init__()
        self.classes, self.latents, self.rotated, self.floor = classes, latents, rotated, floor
        self._order: tuple[Tensor, Tensor] | None = None
        self.register_buffer("basis", torch.eye(DIMS)[:latents].clone())  # rows: eigenvectors, strongest first
        self.register_buffer("mean", torch.full((DIMS,), 0.5))
        self.register_buffer("std", torch.ones(classes, latents))
        if rotated:
            self.register_buffer("rotations", torch.eye(rotated).repeat(classes, 1, 1))  # rows: a class's own eigenvectors
        self.register_buffer("frequencies", torch.ones(classes, classes, dtype=torch.int32))  # of a class, given its context

    def grids(self, h: int, w: int) -> list[Grid]:
        """The one map of a picture of (h, w) blocks, for the coder of maps."""
        return [Grid(h, w, 0, self.classes)]

    def analyse(self, frames: Tensor) -> Tensor:
        """(N, 3, H, W), sides multiples of 16 -> (N, L, H / 16, W / 16) KLT coefficients."""
        blocks = F.pixel_unshuffle(frames, BLOCK) - self.mean[:, None, None]
        return (self.basis @ blocks.flatten(2)).unflatten(2, blocks.shape[2:])

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """The inverse of :meth:`analyse` but for what the basis leaves out: (N, L, h, w) -> (N, 3, 16 h, 16 w)."""
        blocks = (self.basis.T @ coefficients.flatten(2)).unflatten(2, coefficients.shape[2:]) + self.mean[:, None, None]
        return F.pixel_shuffle(blocks, BLOCK)

    def analyse_rows(self, pixels: Tensor, count: int) -> Tensor:
        """The first so many coefficients of blocks (n, 768), as :meth:`pixels` makes them: (n, count)."""
        return pixels @ self.basis[:count].T

    def pixels(self, frame: Tensor) -> Tensor:
        """Blocks of a picture (3, 16 h, 16 w), less the mean block: (h w, 768)."""
        h, w = frame.shape[1] // BLOCK, frame.shape[2] // BLOCK
        return frame.reshape(3, h, BLOCK, w, BLOCK).permute(1, 3, 0, 2, 4).reshape(h * w, DIMS) - self.mean

    def synthesise_rows(self, rows: Tensor, index: Tensor, h: int, w: int) -> Tensor:
        """A picture (1, 3, 16 h, 16 w) whose blocks at these indices (n,) have coefficients (n, L), all others none."""
        blocks = self.mean.repeat(h * w, 1).index_add(0, index, rows @ self.basis)
        return blocks.reshape(h, w, 3, BLOCK, BLOCK).permute(2, 0, 3, 1, 4).reshape(1, 3, h * BLOCK, w * BLOCK)

    def classify(self, coefficients: Tensor) -> Tensor:
        """(N, L, h, w) -> (N, h, w) int64, the likeliest class."""
        if self.classes == 1:
            return torch.zeros_like(coefficients[:, 0], dtype=torch.int64)
        rows = coefficients.movedim(1, -1)
        return self.classify_rows(rows.flatten(0, -2)).reshape(rows.shape[:-1])

    def classify_rows(self, rows: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """(N, L) -> (N,), the likeliest class, from ``first`` to before ``last``: of its own variances in its own basis."""
        variance = self.std[first:last].square() + self.floor
        energies = self.energies(rows, first, last)
        return first + self.weighed(rows, energies, 1 / variance, variance.log().sum(1)).argmin(1)

    def energies(self, rows: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Squares of the rotated coefficients of blocks (N, L) in every class's own basis, class by class: (N, C rotated)."""
        M = self.rotated
        return F.linear(rows[:, :M], self.rotations[first:last].flatten(0, 1)).square_() if M else rows[:, :0]

    def weighed(self, rows: Tensor, energies: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Sums of weighed squares of blocks (N, L), given their energies, in every class, plus biases (C,): (N, C)."""
        M = self.rotated
        score = rows[:, M:].square() @ weight[:, M:].T + bias
        return score + (energies.unflatten(1, (-1, M)).movedim(1, 0) @ weight[:, :M, None])[..., 0].T if M else score

    def rotate(self, rows: Tensor, classes: Tensor, *, back: bool = False) -> Tensor:
        """Turn (N, L) coefficients of blocks of these classes (N,) into their classes' own bases, or back."""
        M = self.rotated
        if not M:
            return rows
        order = classes.argsort()
        counts = torch.bincount(classes, minlength=self.classes).tolist()
        pieces = rows[order, :M].split(counts)
        turned = torch.cat([x @ (R if back else R.T) for x, R in zip(pieces, self.rotations, strict=True)])
        return torch.cat([turned[order.argsort()], rows[:, M:]], 1)

    def _strongest_first(self) -> Tensor:
        """Indices of (class, coefficient) by falling variance; kept while the statistics stay the same."""
        if self._order is None or not torch.equal(self._order[0], self.std):
            self._order = (self.std.clone(), self.std.flatten().argsort(descending=True, stable=True))
        return self._order[1]

    def allocate(self, classes: Tensor, uses: int, snr_db: float) -> Allocation:
        """Share ``uses`` channel uses out over the blocks of one picture, the strongest coefficients first.

        Args:
            classes: (N,) class of every block. uses: complex symbols. snr_db: that the power is water-filled for.
        """
        variance = self.std.square()
        blocks = torch.bincount(classes, minlength=self.classes)
        wanted = min(2 * uses, int(blocks.sum()) * self.latents // 2 * 2)
        # Few distinct values, sorted stably: both ends choose the same coefficients on any machine.
        order = self._strongest_first()
        owner = order // self.latents
        filled = blocks[owner].cumsum(0)
        last = int(torch.searchsorted(filled, wanted))
        table = torch.zeros(self.classes * self.latents, dtype=torch.bool)
        table[order[:last]] = True
        sent = table.reshape(self.classes, self.latents)[classes]
        rest = wanted - (int(filled[last - 1]) if last else 0)
        if rest:  # the marginal coefficient goes to the first blocks of its class only
            members = (classes == owner[last]).nonzero().flatten()[:rest]
            sent[members, int(order[last]) % self.latents] = True
            table[order[last]] = True
        chosen = table.nonzero().flatten()
        power = torch.zeros_like(variance).flatten()
        power[chosen] = water_fill(variance.flatten()[chosen], blocks[chosen // self.latents], 10 ** (-snr_db / 10))
        gain = (power.reshape_as(variance) / variance.clamp_min(1e-12)).sqrt()
        return Allocation(sent, gain[classes] * sent, variance[classes])

    @torch.no_grad()
    def fit(self, frames: Tensor, iterations: int = 15) -> None:
        """Fit everything to frames (N, 3, H, W), sides multiples of 16: KLT, then classes."""
        grids = F.pixel_unshuffle(frames, BLOCK)
        blocks = grids.movedim(1, -1).reshape(-1, DIMS)
        self.mean.copy_(blocks.mean(0))
        _, vectors = torch.linalg.eigh(torch.cov((blocks - self.mean).T).double())
        self.basis.copy_(vectors.flip(1).T[: self.latents])
        classes = self.cluster((blocks - self.mean) @ self.basis.T, iterations)
        self.count(classes.reshape(len(frames), *grids.shape[-2:]).numpy())

    @torch.no_grad()
    def cluster(self, rows: Tensor, iterations: int = 15) -> Tensor:
        """Hard EM: fit the classes, the calmest first, to blocks (N, L), and return theirs (N,)."""
        C, L, M = self.classes, self.latents, self.rotated
        squares = rows.square()
        overall = squares.mean(0).clamp_min(1e-9)
        classes = torch.empty(len(rows), dtype=torch.long)
        classes[squares[:, 3:].sum(1).argsort()] = torch.arange(len(rows)) * C // len(rows)
        turning = 4 if M else 0
        for iteration in range(iterations + turning):
            total = torch.zeros(C, L).index_add_(0, classes, squares)
            count = torch.bincount(classes, minlength=C)[:, None]
            variance = (total + 8 * overall) / (count + 8)
            order = variance[:, 3:].sum(1).argsort()
            self.std.copy_(variance[order].sqrt())
            if iteration >= iterations:
                for index, old in enumerate(order.tolist()):
                    own = rows[classes == old, :M].double()
                    prior = 60 * self.std[index, :M].double().square().diag()
                    values, vectors = torch.linalg.eigh((own.T @ own + prior) / (len(own) + 60))
                    self.rotations[index] = vectors.flip(1).T
                    self.std[index, :M] = values.flip(0).clamp_min(1e-9).sqrt()
            classes = self.classify_rows(rows)
        return classes

    def count(self, maps: np.ndarray) -> None:
        """Take frequencies of classes in their contexts from maps (N, h, w)."""
        table = np.zeros((self.classes, self.classes), dtype=np.int64)
        for one in maps:
            np.add.at(table, (contexts(one), one), 1)
        # Counts of 16 bits; every class stays possible in every context.
        scaled = 1 + np.floor(table / np.maximum(table.sum(1, keepdims=True), 1) * 60000)
        self.frequencies.copy_(torch.from_numpy(scaled.astype(np.int32)))

    def class_bits(self, classes: np.ndarray, grids: Sequence[Grid]) -> float:
        """Ideal code length of maps in bits, as :func:`encode_classes` approaches it."""
        table = self.frequencies.cpu().numpy().astype(np.float64)
        table /= table.sum(1, keepdims=True)
        return float(-np.log2(table[all_contexts(classes, grids), classes]).sum())


def contexts(classes: np.ndarray, first: int = 0) -> np.ndarray:
    """Context of every class of a map (h, w): the mean of left and upper neighbour, rounded up; at the edge the one it has, in
    the corner the first class."""
    left, up = np.full_like(classes, first), np.full_like(classes, first)
    left[:, 1:], up[1:] = classes[:, :-1], classes[:-1]
    up[0], left[:, 0] = left[0], up[:, 0]
    return (left + up + 1) // 2


def all_contexts(classes: np.ndarray, grids: Sequence[Grid]) -> np.ndarray:
    """Contexts of the classes (n,) of maps, one after the other."""
    return np.concatenate([contexts(one, grid.first).ravel() for one, grid in zip(maps(classes, grids), grids, strict=True)])


def maps(classes: np.ndarray, grids: Sequence[Grid]) -> list[np.ndarray]:
    """Classes (n,) as the maps (h, w) that stand in them one after the other."""
    parts = np.split(classes, np.cumsum([grid.blocks for grid in grids])[:-1])
    return [part.reshape(grid.height, grid.width) for part, grid in zip(parts, grids, strict=True)]


def encode_classes(classes: np.ndarray, grids: Sequence[Grid], frequencies: np.ndarray) -> bytes:
    """Range-code maps of classes, (n,) in all, under the static table (classes, classes) of integer frequencies."""
    if len(frequencies) == 1:
        return b""
    import constriction

    table = frequencies / frequencies.sum(1, keepdims=True)
    encoder = constriction.stream.queue.RangeEncoder()
    model = constriction.stream.model.Categorical(perfect=False)
    encoder.encode(classes.astype(np.int32), model, table[all_contexts(classes, grids)])
    return encoder.get_compressed().astype("<u4").tobytes()


def decode_classes(data: bytes, grids: Sequence[Grid], frequencies: np.ndarray) -> np.ndarray | None:
    """The inverse of :func:`encode_classes`, (n,); None where the bytes cannot be such maps."""
    count = sum(grid.blocks for grid in grids)
    if len(frequencies) == 1:
        return np.zeros(count, dtype=np.int64) if not data else None
    import constriction

    if len(data) % 4:
        return None
    decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, dtype="<u4").astype(np.uint32))
    models = [constriction.stream.model.Categorical(row / row.sum(), perfect=False) for row in frequencies]
    out = np.zeros(count, dtype=np.int64)
    try:
        for grid, one in zip(grids, maps(out, grids), strict=True):
            for i in range(grid.height):
                for j in range(grid.width):
                    left = one[i, j - 1] if j else (one[i - 1, j] if i else grid.first)
                    up = one[i - 1, j] if i else left
                    one[i, j] = decoder.decode(models[(left + up + 1) // 2])
                    if not grid.first <= one[i, j] < grid.last:
                        return None
    except (AssertionError, ValueError):
        return None
    return out


def side_margin_db(told_snr_db: float) -> float:
    """How much worse than told the channel may be before the packet of classes is lost: down to 0 dB, by 2 to 8 dB.

    A picture degrades where its SNR is overestimated; without the classes it would be lost. Below 0 dB such caution costs more
    channel uses than it saves.
    """
    return min(8.0, max(2.0, told_snr_db))
