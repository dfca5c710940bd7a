"""A burst of OFDM symbols with pilots in it, and what a receiver makes of these pilots."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor


def spread(count: int, every: int) -> Tensor:
    """Return ceil(count / every) positions in 0 .. count - 1, evenly spread, no end far from the nearest, (K,) int64."""
    k = -(-count // every)
    return torch.div((2 * torch.arange(k) + 1) * count, 2 * k, rounding_mode="floor")


class Window(NamedTuple):
    """OFDM symbols that are estimated together.

    Attributes:
        start: first symbol within the burst. length: symbols. pilot_symbols: (Kt,) which of them carry pilots.
    """

    start: int
    length: int
    pilot_symbols: Tensor


@dataclass(frozen=True)
class Grid:
    """The resource grid of a burst: data fills it symbol by symbol, frequency first, around a lattice of pilots.

    Attributes:
        subcarriers: F. prefix_uses: cyclic prefix of one OFDM symbol in channel uses.
        pilot_subcarriers, pilot_symbols: a pilot on one in so many subcarriers, in one of so many symbols.
        window: most symbols that are estimated together; longer bursts are cut, which bounds the receiver's delay.
    """

    subcarriers: int
    prefix_uses: int
    pilot_subcarriers: int
    pilot_symbols: int
    window: int = 112

    @property
    def symbol_uses(self) -> int:
        """Channel uses of one OFDM symbol with its prefix."""
        return self.subcarriers + self.prefix_uses

    def windows(self, symbols: int) -> list[Window]:
        """Cut a burst of OFDM symbols into full windows and a rest."""
        lengths = [min(self.window, symbols - start) for start in range(0, symbols, self.window)]
        return [Window(i * self.window, length, spread(length, self.pilot_symbols)) for i, length in enumerate(lengths)]

    def capacity(self, symbols: int) -> int:
        """Return the data uses that fit into a burst of so many OFDM symbols; never less for more symbols."""
        full, rest = divmod(symbols, self.window)
        with_pilots = full * -(-self.window // self.pilot_symbols) - (-rest // self.pilot_symbols)
        return symbols * self.subcarriers - with_pilots * -(-self.subcarriers // self.pilot_subcarriers)

    def symbols_for(self, n: int) -> int:
        """Return the fewest OFDM symbols that hold ``n`` data uses."""
        low, high = 0, 1
        while self.capacity(high) < n:
            low, high = high, 2 * high
        while low < high:
            middle = (low + high) // 2
            if self.capacity(middle) < n:
                low = middle + 1
            else:
                high = middle
        return high

    def data_mask(self, window: Window) -> Tensor:
        """Return (length, F) bool: resource elements of a window that carry data."""
        mask = torch.ones(window.length, self.subcarriers, dtype=torch.bool)
        mask[window.pilot_symbols[:, None], spread(self.subcarriers, self.pilot_subcarriers)[None]] = False
        return mask


class Statistics(NamedTuple):
    """Second-order statistics of a channel that a receiver may know.

    Attributes:
        delays_s, powers: (L,) float64 diffuse taps; powers sum to 1 - los_power. los_power: of a path at delay 0.
        omega: largest Doppler shift, rad/s. los_omega: that of the line of sight, rad/s.
    """

    delays_s: Tensor
    powers: Tensor
    los_power: float
    omega: float
    los_omega: float

    def frequency(self, hertz: Tensor) -> Tensor:
        """Covariance of the diffuse part across (...) Hz, complex128; its power at 0."""
        angle = -2 * torch.pi * hertz[..., None] * self.delays_s
        return (self.powers * torch.exp(1j * angle)).sum(-1)

    def time(self, seconds: Tensor) -> Tensor:
        """Correlation of the diffuse part across (...) seconds, float64: J0 of Jakes' spectrum."""
        return torch.special.bessel_j0(self.omega * seconds)


class Lattice(NamedTuple):
    """Where gains are known and wanted: (F,) Hz and (M,) s of all resource elements; (Kf,), (Kt,) indices of pilots."""

    hertz: Tensor
    seconds: Tensor
    comb: Tensor
    pilot_symbols: Tensor


def linear_weights(points: int, pilots: Tensor) -> Tensor:
    """Return (points, K) float64 weights of linear interpolation between pilot positions, held outside them."""
    at = torch.arange(points, dtype=torch.float64)
    known = pilots.double()
    right = torch.searchsorted(known, at).clamp(1, max(len(pilots) - 1, 1)).clamp_max(len(pilots) - 1)
    left = (right - 1).clamp_min(0)
    gap = (known[right] - known[left]).clamp_min(1.0)
    share = ((at - known[left]) / gap).clamp(0.0, 1.0)
    share = torch.where(right == left, torch.zeros_like(share), share)
    weights = torch.zeros(points, len(pilots), dtype=torch.float64)
    rows = torch.arange(points)
    weights[rows, left] += 1 - share
    weights[rows, right] += share
    return weights


def estimate_ls(y: Tensor, noise_var: Tensor, lattice: Lattice, stats: Statistics) -> tuple[Tensor, Tensor]:
    """Least squares at the pilots, linear interpolation in frequency and time.

    Args:
        y: (B, Kf, Kt) complex128, received pilots divided by what was sent. noise_var: (B, 1, 1) float64.
        lattice: where. stats: used only to *report* the error, interpolation error included, not to estimate.

    Returns:
        (B, F, M) complex128 estimates, (B, F, M) float64 E|h_hat - h|^2.
    """
    wf = linear_weights(len(lattice.hertz), lattice.comb)
    wt = linear_weights(len(lattice.seconds), lattice.pilot_symbols)
    h_hat = wf.to(y) @ y @ wt.T.to(y)
    pf, pt = lattice.hertz[lattice.comb], lattice.seconds[lattice.pilot_symbols]
    cross_f = (wf * stats.frequency(lattice.hertz[:, None] - pf).conj()).sum(-1)
    cross_t = (wt * stats.time(lattice.seconds[:, None] - pt)).sum(-1)
    power_f = ((wf.to(cross_f) @ stats.frequency(pf[:, None] - pf)) * wf).sum(-1).real
    power_t = ((wt @ stats.time(pt[:, None] - pt)) * wt).sum(-1)
    diffuse = float(stats.powers.sum())
    error = diffuse - 2 * torch.outer(cross_f.real, cross_t) + torch.outer(power_f, power_t)
    los = torch.exp(1j * stats.los_omega * lattice.seconds)
    error = error + stats.los_power * (los - wt.to(los) @ los[lattice.pilot_symbols]).abs().square()
    noise = torch.outer(wf.square().sum(-1), wt.square().sum(-1))
    return h_hat, error.clamp_min(0) + noise_var * noise


class _Basis(NamedTuple):
    """Eigenbases of the pilots' covariance in frequency and in time, and all resource elements' covariance with them."""

    lf: Tensor
    uf: Tensor
    af: Tensor
    lt: Tensor
    ut: Tensor
    at: Tensor


def _basis(lattice: Lattice, stats: Statistics) -> _Basis:
    pf, pt = lattice.hertz[lattice.comb], lattice.seconds[lattice.pilot_symbols]
    lf, uf = torch.linalg.eigh(stats.frequency(pf[:, None] - pf))
    lt, ut = torch.linalg.eigh(stats.time(pt[:, None] - pt))
    af = stats.frequency(lattice.hertz[:, None] - pf) @ uf
    at = stats.time(lattice.seconds[:, None] - pt) @ ut
    return _Basis(lf.clamp_min(0), uf, af, lt.clamp_min(0), ut, at)


def estimate_lmmse(
    y: Tensor, noise_var: Tensor, lattice: Lattice, stats: Statistics, basis: _Basis | None = None
) -> tuple[Tensor, Tensor]:
    """Linear minimum mean square error over frequency and time *jointly*, from all pilots of a window.

    The diffuse part's covariance is a Kronecker product, so the inverse is diagonal in the product of two small eigenbases;
    a line of sight adds a rank-one term, handled as an unknown phasor (Kay, Estimation Theory, ch. 10 and 12).

    Args and returns as of :func:`estimate_ls`; the reported error is exact for these statistics.
    """
    b = _basis(lattice, stats) if basis is None else basis
    gain = 1 / (b.lf[:, None] * b.lt + noise_var.clamp_min(1e-9))  # (B, Kf, Kt)
    ut, at = b.ut.to(y), b.at.to(y)
    z = b.uf.mH @ y @ ut
    error = float(stats.powers.sum()) - b.af.abs().square() @ gain @ b.at.square().T
    if not stats.los_power:
        return b.af @ (gain * z) @ at.T, error.clamp_min(0)
    los = torch.exp(1j * stats.los_omega * lattice.seconds)
    v = torch.outer(b.uf.mH.sum(-1), los[lattice.pilot_symbols] @ ut)
    scale = stats.los_power / (1 + stats.los_power * (gain * v.abs().square()).sum((-2, -1), keepdim=True))
    phasor = scale * (gain * v.conj() * z).sum((-2, -1), keepdim=True)
    unexplained = los - b.af @ (gain * v) @ at.T
    h_hat = los * phasor + b.af @ (gain * (z - v * phasor)) @ at.T
    return h_hat, error.clamp_min(0) + scale * unexplained.abs().square()


Estimator = Literal["lmmse", "ls", "perfect"]


class PilotReceiver:
    """Estimates windows of one grid; what depends on a window's length alone is computed once.

    Args:
        grid: the grid. stats: the channel's statistics. spacing_hz: between subcarriers. bandwidth_hz: channel uses per second.
    """

    def __init__(self, grid: Grid, stats: Statistics, spacing_hz: float, bandwidth_hz: float) -> None:
        self.grid, self.stats, self.bandwidth_hz = grid, stats, bandwidth_hz
        self.hertz = (torch.arange(grid.subcarriers, dtype=torch.float64) - grid.subcarriers // 2) * spacing_hz
        self.comb = spread(grid.subcarriers, grid.pilot_subcarriers)
        self._cached = lru_cache(maxsize=8)(self._prepare)

    def _prepare(self, length: int) -> tuple[Lattice, _Basis]:
        seconds = torch.arange(length, dtype=torch.float64) * (self.grid.symbol_uses / self.bandwidth_hz)
        lattice = Lattice(self.hertz, seconds, self.comb, spread(length, self.grid.pilot_symbols))
        return lattice, _basis(lattice, self.stats)

    def estimate(self, y: Tensor, noise_var: Tensor, length: int, estimator: Estimator) -> tuple[Tensor, Tensor]:
        """Return (B, F, length) estimates and their error variance from (B, Kf, Kt) pilots of a window."""
        lattice, basis = self._cached(length)
        if estimator == "ls":
            return estimate_ls(y, noise_var, lattice, self.stats)
        return estimate_lmmse(y, noise_var, lattice, self.stats, basis)
