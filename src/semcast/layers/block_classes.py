"""Blocks of a picture as a mixture of Gaussians: the statistics that a code can start from.

Every 16x16 block is a zero-mean Gaussian in the KLT basis, with the variances of one of a few classes. The class decides how
many channel uses a block gets and how power is shared out (water-filling); its index is what a transmitter has to tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 16
DIMS = 3 * BLOCK**2
HALF = BLOCK // 2
QUARTER_DIMS = DIMS // 4
NOTHING = 1e-6
"""Standard deviation of a coefficient that a class does not have."""


class Kind(NamedTuple):
    """Classes of blocks of one size, from ``first`` to before ``last``, their coefficients, and how many of these are turned
    into a class's own KLT."""

    first: int
    last: int
    latents: int
    rotated: int


class Grid(NamedTuple):
    """A map of classes: its height and width in blocks, and the classes that may occur, from ``first`` to before ``last``.

    In a map of ``quarters`` every block has four: upper left, upper right, lower left, lower right. It follows on the map whose
    last class says that a block is split; the quarters of all others have that class as well, and are not told.
    """

    height: int
    width: int
    first: int
    last: int
    quarters: bool = False

    @property
    def blocks(self) -> int:
        """How many rows of coefficients they have."""
        return self.height * self.width * (4 if self.quarters else 1)


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
            differences between classes do not count, in squared pixel values of [0, 1]. more: kinds of other sizes, whose
            classes follow: how many, and ``latents`` and ``rotated`` of each; no more latents than here. Their bases are the
            caller's.
    """

    basis: Tensor
    mean: Tensor
    std: Tensor
    frequencies: Tensor

    def __init__(
        self,
        classes: int,
        latents: int = DIMS,
        rotated: int = 0,
        floor: float = 3e-4,
        more: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        super().__init__()
        self.kinds: list[Kind] = []
        for count, length, turned in ((classes, latents, rotated), *more):
            first = self.kinds[-1].last if self.kinds else 0
            if turned:  # rows: a class's own eigenvectors
                self.register_buffer(_rotations(len(self.kinds)), torch.eye(turned).repeat(count, 1, 1))
            self.kinds.append(Kind(first, first + count, length, turned))
        self.classes, self.latents, self.floor = self.kinds[-1].last, latents, floor
        self._order: tuple[Tensor, Tensor] | None = None
        self.register_buffer("basis", torch.eye(DIMS)[:latents].clone())  # rows: eigenvectors, strongest first
        self.register_buffer("mean", torch.full((DIMS,), 0.5))
        std = torch.full((self.classes, latents), NOTHING)
        for kind in self.kinds:
            std[kind.first : kind.last, : kind.latents] = 1
        self.register_buffer("std", std)
        counts = torch.ones(self.classes, self.classes, dtype=torch.int32)
        self.register_buffer("frequencies", counts)  # of a class, given its context

    def rotations_of(self, kind: int) -> Tensor:
        """(C, rotated, rotated) of the classes of a kind; rows: a class's own eigenvectors."""
        own = self.kinds[kind]
        rotations: Tensor = getattr(self, _rotations(kind)) if own.rotated else self.std.new_zeros(own.last - own.first, 0, 0)
        return rotations

    def grids(self, h: int, w: int) -> list[Grid]:
        """The one map of a picture of (h, w) blocks, for the coder of maps."""
        return [Grid(h, w, 0, self.classes)]

    def analyse(self, frames: Tensor) -> Tensor:
        """(N, 3, H, W), sides multiples of 16 -> (N, L, H / 16, W / 16) KLT coefficients."""
        blocks = F.pixel_unshuffle(frames, BLOCK) - self.mean[:, None, None]
        return (self.basis @ blocks.flatten(2)).unflatten(2, blocks.shape[2:])

    def pixels(self, frames: Tensor) -> Tensor:
        """Blocks of pictures (N, 3, 16 h, 16 w), less the mean block: (N, h w, 768)."""
        return blocked(frames) - self.mean

    def classify(self, coefficients: Tensor) -> Tensor:
        """(N, L, h, w) -> (N, h, w) int64, the likeliest class."""
        if self.classes == 1:
            return torch.zeros_like(coefficients[:, 0], dtype=torch.int64)
        rows = coefficients.movedim(1, -1)
        return self.classify_rows(rows.flatten(0, -2)).reshape(rows.shape[:-1])

    def classify_rows(self, rows: Tensor, kind: int = 0) -> Tensor:
        """(N, L) -> (N,), the likeliest class of a kind: of its own variances in its own basis."""
        first, last, latents, _ = self.kinds[kind]
        variance = self.std[first:last, :latents].square() + self.floor
        energies = self.energies(rows, kind)
        return first + self.weighed(rows[:, :latents], energies, 1 / variance, variance.log().sum(1)).argmin(1)

    def energies(self, rows: Tensor, kind: int = 0) -> Tensor:
        """Squares of the rotated coefficients of blocks (N, L) in every own basis of a kind's classes, (N, C rotated)."""
        M = self.kinds[kind].rotated
        return F.linear(rows[:, :M], self.rotations_of(kind).flatten(0, 1)).square_() if M else rows[:, :0]

    @staticmethod
    def weighed(rows: Tensor, energies: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Sums of weighed squares of blocks (N, L), given their energies in classes of one kind, in each of them, plus biases
        (C,): (N, C)."""
        M = energies.shape[1] // len(weight)
        score = rows[:, M:].square() @ weight[:, M:].T + bias
        return score + (energies.unflatten(1, (-1, M)).movedim(1, 0) @ weight[:, :M, None])[..., 0].T if M else score

    def rotate(self, rows: Tensor, classes: Tensor, *, back: bool = False) -> Tensor:
        """Turn (N, L) coefficients of blocks of these classes (N,) into their classes' own bases, or back."""
        if not any(kind.rotated for kind in self.kinds):
            return rows
        order = classes.argsort()
        counts = torch.bincount(classes, minlength=self.classes).tolist()
        pieces, turned, at = rows[order].split(counts), [], 0
        for number, kind in enumerate(self.kinds):
            M = kind.rotated
            for R in self.rotations_of(number):
                x = pieces[at]
                turned.append(torch.cat([x[:, :M] @ (R if back else R.T), x[:, M:]], 1) if M and len(x) else x)
                at += 1
        return torch.cat(turned)[order.argsort()]

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
        C, L, M = self.classes, self.latents, self.kinds[0].rotated
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
                    self._turn(index, rows[classes == old], 0)
            classes = self.classify_rows(rows)
        return classes

    @torch.no_grad()
    def estimate(self, rows: Tensor, classes: Tensor, kind: int) -> None:
        """Take variances and bases of a kind from blocks (N, L) of these classes (N,), from 0 on; what few blocks tell of leans
        on all."""
        first, last, latents, rotated = self.kinds[kind]
        squares = rows.square()
        total = torch.zeros(last - first, latents).index_add_(0, classes, squares)
        count = torch.bincount(classes, minlength=last - first)[:, None]
        self.std[first:last, :latents] = ((total + 8 * squares.mean(0).clamp_min(1e-9)) / (count + 8)).sqrt()
        for index in range(last - first) if rotated else ():
            self._turn(index, rows[classes == index], kind)

    def _turn(self, index: int, rows: Tensor, kind: int) -> None:
        """The KLT of a class of a kind that has its variances, from its blocks (n, L)."""
        first, _, _, M = self.kinds[kind]
        own = rows[:, :M].double()
        prior = 60 * self.std[first + index, :M].double().square().diag()
        values, vectors = torch.linalg.eigh((own.T @ own + prior) / (len(own) + 60))
        self.rotations_of(kind)[index] = vectors.flip(1).T
        self.std[first + index, :M] = values.flip(0).clamp_min(1e-9).sqrt()

    def count(self, maps: np.ndarray) -> None:
        """Take frequencies of classes in their contexts from maps (N, h, w)."""
        self.frequencies.copy_(torch.from_numpy(pair_counts(maps, self.classes)))

    def class_bits(self, classes: np.ndarray, grids: Sequence[Grid], of_quarters: np.ndarray | None = None) -> float:
        """Ideal code length of maps in bits, as :func:`encode_classes` approaches it."""
        tables = self.frequencies.cpu().numpy(), of_quarters
        return float(sum(-np.log2(rows[range(len(rows)), symbols]).sum() for symbols, rows in _coded(classes, grids, *tables)))


def blocked(frames: Tensor) -> Tensor:
    """Pictures (N, 3, 16 h, 16 w) -> their blocks (N, h w, 768), colour by colour, row by row."""
    n, _, height, width = frames.shape
    blocks = frames.reshape(n, 3, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, DIMS)


def unblocked(blocks: Tensor, h: int, w: int) -> Tensor:
    """The inverse for pictures of (h, w) blocks: (N, h w, 768) -> (N, 3, 16 h, 16 w)."""
    return blocks.reshape(-1, h, w, 3, BLOCK, BLOCK).permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, h * BLOCK, w * BLOCK)


def quartered(blocks: Tensor) -> Tensor:
    """Blocks (n, 768) -> their quarters (4 n, 192), upper left, upper right, lower left, lower right."""
    return blocks.reshape(-1, 3, 2, HALF, 2, HALF).permute(0, 2, 4, 1, 3, 5).reshape(-1, QUARTER_DIMS)


def joined_quarters(quarters: Tensor) -> Tensor:
    """The inverse: (4 n, 192) -> (n, 768)."""
    return quarters.reshape(-1, 2, 2, 3, HALF, HALF).permute(0, 3, 1, 4, 2, 5).reshape(-1, DIMS)


def _rotations(kind: int) -> str:
    """Name of a buffer."""
    return f"rotations_{kind}".removesuffix("_0")


def contexts(classes: np.ndarray, first: int = 0) -> np.ndarray:
    """Context of every class of a map (h, w): the mean of left and upper neighbour, rounded up; at the edge the one it has, in
    the corner the first class."""
    left, up = np.full_like(classes, first), np.full_like(classes, first)
    left[:, 1:], up[1:] = classes[:, :-1], classes[:-1]
    up[0], left[:, 0] = left[0], up[:, 0]
    return (left + up + 1) // 2


def pair_counts(maps: np.ndarray, classes: int) -> np.ndarray:
    """Frequencies (classes, classes) of 16 bits of classes in their contexts, from maps (N, h, w)."""
    table = np.zeros((classes, classes), dtype=np.int64)
    for one in maps:
        np.add.at(table, (contexts(one), one), 1)
    # Every class stays possible in every context.
    scaled: np.ndarray = (1 + np.floor(table / np.maximum(table.sum(1, keepdims=True), 1) * 60000)).astype(np.int32)
    return scaled


def quarter_contexts(quarters: np.ndarray, count: int) -> np.ndarray:
    """Contexts (n, 4) of the quarters of blocks, classes (n, 4) counted from 0 to before ``count``: the first has none, the two
    beside it have the first, the last has these two."""
    first, right, below, _ = quarters.T
    return np.stack([0 * first, 1 + first, 1 + first, 1 + count + right * count + below], 1)


def quarter_context_count(count: int) -> int:
    """How many contexts :func:`quarter_contexts` tells apart."""
    return 1 + count + count**2


def maps(classes: np.ndarray, grids: Sequence[Grid]) -> list[np.ndarray]:
    """Classes (n,) as the maps (h, w), of quarters (h w, 4), that stand in them one after the other."""
    parts = np.split(classes, np.cumsum([grid.blocks for grid in grids])[:-1])
    shapes = [(-1, 4) if grid.quarters else (grid.height, grid.width) for grid in grids]
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _coded(
    classes: np.ndarray, grids: Sequence[Grid], frequencies: np.ndarray, of_quarters: np.ndarray | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Symbols (n,) of every map and the probabilities (n, S) that they are coded under."""
    table = frequencies / frequencies.sum(1, keepdims=True)
    out = []
    for grid, one in zip(grids, maps(classes, grids), strict=True):
        if grid.quarters:
            assert of_quarters is not None
            own, rows = one[one[:, 0] >= grid.first] - grid.first, of_quarters / of_quarters.sum(1, keepdims=True)
            out.append((own.ravel(), rows[quarter_contexts(own, grid.last - grid.first).ravel()]))
        else:
            out.append((one.ravel(), table[contexts(one, grid.first).ravel()]))
    return out


def encode_classes(
    classes: np.ndarray, grids: Sequence[Grid], frequencies: np.ndarray, of_quarters: np.ndarray | None = None
) -> bytes:
    """Range-code maps of classes, (n,) in all, under static tables of integer frequencies: (classes, classes), and of quarters
    (contexts, quarters' classes)."""
    if len(frequencies) == 1:
        return b""
    import constriction

    encoder = constriction.stream.queue.RangeEncoder()
    model = constriction.stream.model.Categorical(perfect=False)
    for symbols, rows in _coded(classes, grids, frequencies, of_quarters):
        if len(symbols):
            encoder.encode(symbols.astype(np.int32), model, rows)
    return encoder.get_compressed().astype("<u4").tobytes()


def decode_classes(
    data: bytes, grids: Sequence[Grid], frequencies: np.ndarray, of_quarters: np.ndarray | None = None
) -> np.ndarray | None:
    """The inverse of :func:`encode_classes`, (n,); None where the bytes cannot be such maps."""
    count = sum(grid.blocks for grid in grids)
    if len(frequencies) == 1:
        return np.zeros(count, dtype=np.int64) if not data else None
    import constriction

    if len(data) % 4:
        return None
    decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, dtype="<u4").astype(np.uint32))
    models = models_of(frequencies)
    out = np.zeros(count, dtype=np.int64)
    before = out
    try:
        for grid, one in zip(grids, maps(out, grids), strict=True):
            if grid.quarters:
                assert of_quarters is not None
                one[:] = grid.first - 1
                split = before.ravel() == grid.first - 1
                one[split] = grid.first + decode_quarters(decoder, of_quarters, int(split.sum()))
                continue
            for i in range(grid.height):
                for j in range(grid.width):
                    left = one[i, j - 1] if j else (one[i - 1, j] if i else grid.first)
                    up = one[i - 1, j] if i else left
                    one[i, j] = decoder.decode(models[(left + up + 1) // 2])
                    if not grid.first <= one[i, j] < grid.last:
                        return None
            before = one
    except (AssertionError, ValueError):
        return None
    return out


def models_of(frequencies: np.ndarray) -> list[Any]:
    """A model of ``constriction`` for every row of frequencies."""
    import constriction

    return [constriction.stream.model.Categorical(row / row.sum(), perfect=False) for row in frequencies]


def decode_quarters(decoder: Any, frequencies: np.ndarray, blocks: int) -> np.ndarray:
    """Classes (blocks, 4) of quarters from 0 on, out of a range decoder, under frequencies (contexts, Q)."""
    count = frequencies.shape[1]
    models: dict[int, Any] = {}  # most contexts never come

    def read(context: int) -> int:
        if context not in models:
            (models[context],) = models_of(frequencies[context : context + 1])
        return int(decoder.decode(models[context]))

    out = np.zeros((blocks, 4), dtype=np.int64)
    for own in out:
        own[0] = read(0)
        own[1], own[2] = read(1 + own[0]), read(1 + own[0])
        own[3] = read(1 + count + own[1] * count + own[2])
    return out


def side_margin_db(told_snr_db: float) -> float:
    """How much worse than told the channel may be before the packet of classes is lost: down to 0 dB, by 2 to 8 dB.

    A picture degrades where its SNR is overestimated; without the classes it would be lost. Below 0 dB such caution costs more
    channel uses than it saves.
    """
    return min(8.0, max(2.0, told_snr_db))
