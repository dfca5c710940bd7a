"""Fading that is a fixed function of session seed and clock, and what a receiver knows of it.

Nothing evolves step by step: the gain of any channel use can be asked for in any order and as often as one likes, so
two sends in one coherence block agree, and an outdated estimate is the gain of an earlier use.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from semcast.channels.base import Channel, Fading, complex_normal
from semcast.channels.options import ChannelOptions, option
from semcast.errors import SpecError

PAGE = 256  # blocks drawn at a time
CHUNK = 2_000_000  # sinusoid terms evaluated at a time: bounds memory, not the result


def draw_seed(generator: torch.Generator) -> int:
    """Draw the seed of a session."""
    return int(torch.randint(0, 2**62, (), generator=generator))


def white_gains(seed: int, batch: int, blocks: Tensor) -> Tensor:
    """Return independent CN(0, 1) gains (batch, n) complex64 of numbered blocks (n,), the same for number and batch size.

    Counter-based (Philox, keyed by seed and page of blocks), so that any block can be drawn without the ones before it.
    """
    pages = torch.div(blocks, PAGE, rounding_mode="floor")
    numbers, which = pages.unique(return_inverse=True)
    within = blocks - pages * PAGE
    # A large batch of short sends needs only the head of a single page.
    rows = int(within.max()) + 1 if len(numbers) == 1 else PAGE
    table = np.empty((len(numbers), rows, batch, 2), dtype=np.float32)
    for page, number in zip(table, numbers.tolist(), strict=True):
        random = np.random.Generator(np.random.Philox(key=np.array([seed, number % 2**64], dtype=np.uint64)))
        random.standard_normal(dtype=np.float32, out=page)
    gains = torch.view_as_complex(torch.from_numpy(table) * 0.5**0.5)
    return gains[which, within].T.contiguous()


class SumOfSinusoids:
    """Jakes fading of independent taps as a sum of sinusoids: unit power, autocorrelation J0(w t).

    Xiao, Zheng, Beaulieu, "Novel sum-of-sinusoids simulation models for Rayleigh and Rician fading channels", 2006,
    eq. (6); drawn in the order of Sionna's ``TDL``, against which it is tested, but with a clock that need not start at 0.

    Args:
        generator: CPU generator. batch: independent channels B. taps: independent taps L of each.
        sinusoids: terms per tap.
    """

    def __init__(self, generator: torch.Generator, batch: int, taps: int, sinusoids: int = 20) -> None:
        shape = (batch, taps, sinusoids)
        theta = (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1) * torch.pi / sinusoids
        self.phase = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 * torch.pi - torch.pi
        angle = 2 * torch.pi / sinusoids * torch.arange(1, sinusoids + 1, dtype=torch.float64) + theta
        self.cos_angle = angle.cos()

    def gains(self, omega: float, times: Tensor) -> Tensor:
        """Return (B, L, T) complex64 at (T,) float64 seconds; ``omega``: largest Doppler shift in rad/s."""
        batch, taps, terms = self.phase.shape
        step = max(1, CHUNK // (batch * taps * terms))
        parts = []
        for some in times.split(step):
            # float64 until the angle is reduced: after minutes at GHz carriers float32 has no phase left.
            angle = omega * some[None, None, :, None] * self.cos_angle[:, :, None] + self.phase[:, :, None]
            angle = angle.remainder(2 * torch.pi).float()
            parts.append(torch.complex(angle.cos().sum(-1), angle.sin().sum(-1)) / terms**0.5)
        return torch.cat(parts, -1) if parts else torch.zeros(batch, taps, 0, dtype=torch.complex64)


@dataclass(frozen=True)
class CsiOptions(ChannelOptions):
    """What the receiver knows of a flat fading channel."""

    csi: Literal["perfect", "estimated"] = option(
        "perfect", "the receiver's channel state; an error variance or an age alone implies csi=estimated"
    )
    csi_error_var: float | None = option(
        None,
        "variance of the estimation error relative to the mean gain, h_hat = h + e; "
        "0.01 where csi=estimated is all that is said, 0 beside an age",
        at_least=0.0,
    )
    csi_age: int = option(0, "the estimate is the gain of so many uses ago", unit="uses", at_least=0, at_most=1e12)
    pilot_overhead: float = option(
        0.0, "pilots per data use, charged; 0 assumes the estimate free", unit="uses/use", at_least=0.0
    )

    @property
    def is_estimated(self) -> bool:
        """Whether the receiver's estimate differs from the channel."""
        return self.csi == "estimated" or self.csi_error_var is not None or self.csi_age > 0

    @property
    def error_var(self) -> float:
        """Relative variance of e."""
        if self.csi_error_var is not None:
            return self.csi_error_var
        return 0.01 if self.is_estimated and not self.csi_age else 0.0


@dataclass(frozen=True)
class ScatterOptions(CsiOptions):
    """How diffuse paths fade in time."""

    mode: Literal["fast", "block"] = option("fast", "fast: a new gain every use; block: constant over coherence uses")
    coherence: int | None = option(None, "length of a block; 1024 if only block is said", unit="uses", at_least=1, at_most=1e12)
    doppler_hz: float = option(
        0.0, "Jakes correlation J0(2 pi f t) between blocks; 0: blocks are independent", unit="Hz", at_least=0.0
    )

    def validate(self) -> None:
        """Refuse a coherence of fast fading."""
        if self.mode == "fast" and self.coherence not in (None, 1):
            raise SpecError(f"coherence={self.coherence} belongs to block fading: write block,coherence={self.coherence}")

    @property
    def block_uses(self) -> int:
        """Uses over which the gain is constant."""
        return 1 if self.mode == "fast" else self.coherence or 1024


class FlatCsi(NamedTuple):
    """What the estimate of a flat channel needs: (B, n) gains of ``csi_age`` uses ago, and (n,) the send's uses."""

    old: Tensor
    uses: Tensor


class FlatFading(Channel):
    """A frequency-flat channel whose gain is a function of session seed and clock.

    A subclass gives ``gains`` and ``change_var``; sampling, CSI error and age follow from them.
    """

    Options: ClassVar[type[ChannelOptions]] = CsiOptions
    options: CsiOptions
    is_fading: ClassVar[bool] = True

    def __init__(self, options: ChannelOptions | None = None) -> None:
        super().__init__(options)
        self._seed: int | None = None

    @abstractmethod
    def gains(self, seed: int, batch: int, uses: Tensor) -> Tensor:
        """Return (batch, n) complex64 gains of numbered channel uses (n,) int64; a pure function."""

    @abstractmethod
    def change_var(self, uses: Tensor, age: int) -> Tensor:
        """Return (n,) E|h(u) - h(u - age)|^2 of the process, which is what an outdated estimate costs."""

    def error_blocks(self, uses: Tensor) -> Tensor:
        """Return (n,) which uses share one estimation error: those of one coherence block."""
        return uses

    def reset(self, generator: torch.Generator) -> None:
        """Begin a session with new fading."""
        self._seed = draw_seed(generator)

    def sample(self, n: int, clock: int, *, batch: int = 1, generator: torch.Generator) -> Fading:
        """Return the gains of uses ``clock`` to ``clock + n - 1``; the generator serves only a session not yet reset."""
        if self._seed is None:
            self.reset(generator)
        assert self._seed is not None
        uses = torch.arange(clock, clock + n)
        h = self.gains(self._seed, batch, uses)
        if not self.options.is_estimated:
            return Fading(h)
        age = self.options.csi_age
        return Fading(h, FlatCsi(self.gains(self._seed, batch, uses - age) if age else h, uses))

    def typical(self, n: int, draws: int, *, generator: torch.Generator) -> Tensor:
        """Draw (draws, n) gains of sessions of their own."""
        return self.gains(draw_seed(generator), draws, torch.arange(n))

    def estimate(self, fading: Fading, noise_var: Tensor | float, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return ``h_hat = h(u - age) + e``; its error variance adds what the process changed meanwhile to that of e."""
        if fading.pilots is None:
            return super().estimate(fading, noise_var, generator=generator)
        csi: FlatCsi = fading.pilots
        variance = self.options.error_var * self.mean_gain
        error_var = self.change_var(csi.uses, self.options.csi_age).float() + variance
        _, shared = self.error_blocks(csi.uses).unique(return_inverse=True)
        count = int(shared.max()) + 1 if shared.numel() else 0
        error = complex_normal((csi.old.shape[0], count), generator, csi.old)[:, shared]
        return csi.old + variance**0.5 * error, error_var[None]

    def pilot_uses(self, n: int) -> int:
        """Return ``pilot_overhead`` of ``n``, rounded up."""
        return int(np.ceil(self.options.pilot_overhead * n - 1e-9))


class Scatter(FlatFading):
    """Diffuse paths (Rayleigh), fast or in blocks, plus a constant component that a subclass may set.

    ``h = sqrt(mean_gain) (sqrt(los_power) + sqrt(1 - los_power) g)``, g ~ CN(0, 1).
    """

    Options: ClassVar[type[ChannelOptions]] = ScatterOptions
    options: ScatterOptions

    @property
    def los_power(self) -> float:
        """Share of the mean power that does not fade."""
        return 0.0

    def error_blocks(self, uses: Tensor) -> Tensor:
        """Return the coherence block of each use."""
        return torch.div(uses, self.options.block_uses, rounding_mode="floor")

    def gains(self, seed: int, batch: int, uses: Tensor) -> Tensor:
        """Return the gains of the blocks in which the uses lie."""
        blocks, where = self.error_blocks(uses).unique(return_inverse=True)
        if self.options.doppler_hz:
            process = SumOfSinusoids(torch.Generator().manual_seed(seed), batch, 1)
            times = blocks.double() * (self.options.block_uses / self.bandwidth_hz)
            g = process.gains(2 * torch.pi * self.options.doppler_hz, times)[:, 0]
        else:
            g = white_gains(seed, batch, blocks)
        h = self.los_power**0.5 + (1 - self.los_power) ** 0.5 * g
        return self.mean_gain**0.5 * h[:, where]

    def change_var(self, uses: Tensor, age: int) -> Tensor:
        """Return 2 (1 - correlation) of the diffuse power between the blocks of ``u`` and ``u - age``."""
        apart = (self.error_blocks(uses) - self.error_blocks(uses - age)).double()
        if self.options.doppler_hz:
            seconds = apart * (self.options.block_uses / self.bandwidth_hz)
            correlation = torch.special.bessel_j0(2 * torch.pi * self.options.doppler_hz * seconds)
        else:
            correlation = (apart == 0).double()
        return self.mean_gain * (1 - self.los_power) * 2 * (1 - correlation)
