"""What every channel is: ``y = h x + n`` with ``n ~ CN(0, noise_var)``; no SNR and no power normalisation inside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from semcast.channels.options import ChannelOptions, format_options
from semcast.errors import ContractError, SpecError


class Fading(NamedTuple):
    """Gains of one send.

    Attributes:
        h: (B, n) complex64 gain of every data channel use.
        pilots: whatever ``estimate`` of the same channel needs; opaque to everybody else. None: nothing.
    """

    h: Tensor
    pilots: Any = None


def papr_db(x: Tensor) -> Tensor:
    """Return the peak-to-average power ratio of (B, n) complex symbols in dB, (B,); 0 for silence."""
    power = x.abs().square()
    mean, peak = power.mean(-1), power.amax(-1)
    ratio = torch.where(mean > 0, peak / mean.clamp_min(torch.finfo(power.dtype).tiny), torch.ones_like(mean))
    return 10 * torch.log10(ratio)


def clip_peaks(x: Tensor, papr_limit_db: float) -> Tensor:
    """Limit the power of (B, n) complex symbols to ``papr_limit_db`` above the mean power of the row; phases stay.

    Soft-limiter model of a power amplifier. The mean is that of the input: what comes out is weaker, nothing rescales it.
    """
    amplitude = x.abs()
    limit = (amplitude.square().mean(-1, keepdim=True) * 10 ** (papr_limit_db / 10)).sqrt()
    return x * (limit / amplitude.clamp_min(torch.finfo(amplitude.dtype).tiny)).clamp_max(1.0)


def complex_normal(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Draw CN(0, 1), total variance 1, with the dtype and device of ``like`` from a CPU generator."""
    return torch.randn(shape, dtype=like.dtype, generator=generator).to(like.device)


C = TypeVar("C", bound="Channel")


class Channel(nn.Module, ABC):
    """A channel with a clock: gains follow the link's count of channel uses, also within one send.

    Mean ``|h|^2`` is 1 unless a subclass says otherwise (path loss, a trace of gains). Between two calls of ``reset`` a
    fading channel is a fixed function of the clock: asking twice for the same uses gives the same gains, and two sends
    within one coherence block see the same fade. Training therefore has to let the clock run on or ``reset``.

    Args:
        options: an instance of the class's ``Options``; None for the defaults.

    Attributes:
        bandwidth_hz: symbol rate in complex symbols per second; the link sets it through ``configure``.
        is_fading: whether ``|h|`` varies. is_ideal: whether noise is zero whatever ``noise_var``.
        erasure_packet_uses: analog symbols that are lost together over an erasure channel; 0 elsewhere.
    """

    Options: ClassVar[type[ChannelOptions]] = ChannelOptions
    name: ClassVar[str]
    summary: ClassVar[str]
    example: ClassVar[str]
    is_fading: ClassVar[bool] = False
    is_ideal: ClassVar[bool] = False
    erasure_packet_uses: int = 0

    def __init__(self, options: ChannelOptions | None = None) -> None:
        super().__init__()
        self.options = self.Options() if options is None else options
        if not isinstance(self.options, self.Options):
            raise ContractError(f"{type(self).__name__} takes {self.Options.__name__}, got {type(options).__name__}")
        self.bandwidth_hz = 1e6

    @property
    def spec(self) -> str:
        """The canonical specification string; ``make_channel(channel.spec)`` builds the same channel."""
        text = format_options(self.options)
        return f"{self.name}:{text}" if text else self.name

    @property
    def mean_gain(self) -> float:
        """E|h|^2, linear."""
        return 1.0

    def extra_repr(self) -> str:
        """Show the specification string."""
        return self.spec

    def configure(self: C, bandwidth_hz: float) -> C:
        """Set the symbol rate, which turns the clock into seconds; raises :class:`SpecError` where it can't be."""
        if not bandwidth_hz > 0 or bandwidth_hz == float("inf"):
            raise SpecError(f"the link's bandwidth is {bandwidth_hz} Hz; it must be a positive number")
        self.bandwidth_hz = float(bandwidth_hz)
        return self

    def reset(self, generator: torch.Generator) -> None:
        """Forget the past: a new session, with new fading."""

    @abstractmethod
    def sample(self, n: int, clock: int, *, batch: int = 1, generator: torch.Generator) -> Fading:
        """Return the gains of ``n`` data uses of a send that begins at ``clock`` (channel uses since ``reset``)."""

    def air(self, n: int, clock: int, *, batch: int = 1, generator: torch.Generator) -> Fading:
        """As ``sample``, without what the network drops: for packets, whose loss ``erasures`` decides."""
        return self.sample(n, clock, batch=batch, generator=generator)

    @abstractmethod
    def typical(self, n: int, draws: int, *, generator: torch.Generator) -> Tensor:
        """Draw (draws, n) gains from the stationary law without touching any state, packet drops left out."""

    def waveform(self, x: Tensor) -> Tensor:
        """Return the samples that the amplifier sees for (B, n) symbols: of these ``papr_db`` is to be reported."""
        return x

    def clip(self, x: Tensor) -> Tensor:
        """Return (B, n) symbols after the amplifier: unchanged without the option ``clip_papr_db``."""
        limit = self.options.clip_papr_db
        return x if limit is None else clip_peaks(x, limit)

    def apply(  # type: ignore[override]  # nn.Module.apply(fn) is of no use to a module without parameters
        self, x: Tensor, h: Tensor, noise_var: Tensor | float, *, generator: torch.Generator
    ) -> Tensor:
        """Return ``y = h clip(x) + n``, differentiable in ``x``.

        Args:
            x: (B, n) complex. h: (B, n) or (1, n) complex, from ``sample``.
            noise_var: noise power per complex symbol: scalar, (B, 1) or (B, n).
            generator: CPU generator of the noise.

        Returns:
            (B, n) complex, on the device of ``x``.

        Raises:
            ContractError: ``x`` is not complex (B, n), or ``h`` does not fit it.
        """
        if x.dim() != 2 or not x.is_complex():
            raise ContractError(f"a channel takes complex (B, n) symbols, got {x.dtype} {tuple(x.shape)}")
        if h.shape[-1] != x.shape[-1] or h.shape[0] not in (1, x.shape[0]):
            raise ContractError(f"gains {tuple(h.shape)} do not fit symbols {tuple(x.shape)}")
        y = h.to(x) * self.clip(x)
        if self.is_ideal:
            return y
        scale = torch.as_tensor(noise_var, dtype=x.real.dtype, device=x.device).sqrt()
        return y + scale * complex_normal(tuple(y.shape), generator, x)

    def estimate(self, fading: Fading, noise_var: Tensor | float, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the receiver's ``(h_hat, error_var)``: (B, n) complex and E|h_hat - h|^2, broadcastable to it."""
        return fading.h, torch.zeros(1, 1)

    def pilot_uses(self, n: int) -> int:
        """Return the channel uses that pilots, cyclic prefix and padding take for a send of ``n`` data uses."""
        return 0

    def data_uses(self, total: int) -> int:
        """Return the most data uses of one send whose overhead still fits into ``total`` channel uses."""
        low, high = 0, total
        while low < high:
            middle = (low + high + 1) // 2
            if middle + self.pilot_uses(middle) <= total:
                low = middle
            else:
                high = middle - 1
        return low

    def erasures(self, count: int, clock: int, *, generator: torch.Generator) -> Tensor:
        """Return (count,) bool: which of the next ``count`` packets the network drops."""
        return torch.zeros(count, dtype=torch.bool)
