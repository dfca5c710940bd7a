"""3GPP tapped delay lines TDL-A to TDL-E (TR 38.901, table 7.7.2) over OFDM with pilots."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from semcast.channels.base import Channel, Fading, clip_peaks, complex_normal
from semcast.channels.fading import SumOfSinusoids, draw_seed
from semcast.channels.ofdm import Grid, PilotReceiver, Statistics
from semcast.channels.options import ChannelOptions, option
from semcast.channels.pathloss import SPEED_OF_LIGHT
from semcast.errors import ContractError, SpecError

MAX_SUBCARRIERS = 16384
TYPICAL_ELEMENTS = 4_000_000  # gains drawn at a time by ``typical``: bounds memory, not the result


@dataclass(frozen=True)
class TdlOptions(ChannelOptions):
    """Options of a tapped delay line over OFDM."""

    delay_spread_ns: float = option(100.0, "RMS delay spread; 30 short, 100 nominal, 300 long", unit="ns", at_least=0.0)
    speed_mps: float = option(3.0, "speed of the terminal", unit="m/s", at_least=0.0)
    carrier_ghz: float = option(3.5, "carrier frequency", unit="GHz", above=0.0)
    subcarriers: int | None = option(None, "without it, as many as fit into the band", at_least=1, at_most=MAX_SUBCARRIERS)
    subcarrier_spacing_khz: float | None = option(
        None, "without it, bandwidth over subcarriers, or 15 where neither is given", unit="kHz", above=0.0
    )
    pilot_subcarriers: int = option(4, "one in so many subcarriers of a pilot symbol is a pilot", at_least=1)
    pilot_symbols: int = option(7, "one in so many OFDM symbols carries pilots", at_least=1, at_most=112)
    prefix_fraction: float = option(
        0.0703125, "cyclic prefix over OFDM symbol; 144/2048 is normal in 5G", at_least=0.0, at_most=1.0
    )
    estimator: Literal["lmmse", "ls", "perfect"] = option(
        "lmmse", "channel estimate from the noisy pilots: LMMSE over frequency and time, or LS with linear interpolation"
    )
    csi_age: int = option(
        0, "with estimator=perfect: gains of so many uses ago are known", unit="uses", at_least=0, at_most=1e12
    )
    csi_error_var: float = option(0.0, "with estimator=perfect: h_hat = h + e with this variance", at_least=0.0)

    def validate(self) -> None:
        """Refuse grids without data, and two sources of estimation error at once."""
        if self.pilot_subcarriers == 1 and self.pilot_symbols == 1:
            raise SpecError("pilot_subcarriers=1,pilot_symbols=1 leaves no room for data; raise one of them")
        if self.estimator != "perfect" and (self.csi_age or self.csi_error_var):
            raise SpecError("csi_age and csi_error_var need estimator=perfect: otherwise the error comes from the pilots")


class TdlCsi(NamedTuple):
    """Per window (B, Kf, Kt) complex64 true gains at the pilots and its length; (B, n) gains of ``csi_age`` uses ago."""

    windows: list[tuple[Tensor, int]]
    n: int
    old: Tensor | None


class Tdl(Channel):
    """Frequency- and time-selective fading: one gain per resource element of an OFDM grid, ``y = h x + n`` each.

    Delays, powers and the line of sight come from Sionna's tables of TR 38.901; taps fade by a sum of sinusoids (the same
    that Sionna uses) whose phases belong to the session, so that the channel is *continuous in the clock* across sends and
    within one. A send is a burst of whole OFDM symbols, with pilots of unit power and a cyclic prefix; both, and the padding
    of the last symbol, are charged through ``pilot_uses``. Estimates come from these pilots, received with noise.

    Left out: interference between subcarriers and symbols. ``configure`` refuses numerologies where they would matter
    (Doppler above 5 % of the spacing, or more than -30 dB of the power arriving after the prefix). At speed 0 the channel
    is constant over a session. Peaks are clipped on the time signal of the data subcarriers.
    """

    Options: ClassVar[type[ChannelOptions]] = TdlOptions
    options: TdlOptions
    profile: ClassVar[str]
    is_fading: ClassVar[bool] = True

    def __init__(self, options: ChannelOptions | None = None) -> None:
        super().__init__(options)
        self._seed: int | None = None
        o = self.options
        self.stats = self._load_statistics()
        if o.subcarriers is not None and o.subcarrier_spacing_khz is not None:
            self.configure(o.subcarriers * o.subcarrier_spacing_khz * 1e3)
        else:
            self.configure(self.bandwidth_hz)

    def _load_statistics(self) -> Statistics:
        # Importing Sionna reseeds torch's global generator at random; a user's own seed has to survive that.
        with torch.random.fork_rng(devices=[]):
            from sionna.phy.channel.tr38901 import TDL

            o = self.options
            table = TDL(self.profile, o.delay_spread_ns * 1e-9, o.carrier_ghz * 1e9, precision="double", device="cpu")
        powers = table.mean_powers.clone()
        los_power = float(table.mean_power_los) if table.los else 0.0
        powers[0] -= los_power
        omega = 2 * torch.pi * o.speed_mps / SPEED_OF_LIGHT * o.carrier_ghz * 1e9
        # TR 38.901, 7.7.2: the line of sight is shifted by 0.7 of the largest Doppler shift.
        return Statistics(table.delays.clone(), powers, los_power, omega, 0.7 * omega)

    def configure(self, bandwidth_hz: float) -> Tdl:
        """Fit the grid to the link's bandwidth; raises :class:`SpecError` where it can't be, or the model would not hold."""
        super().configure(bandwidth_hz)
        o = self.options
        spacing_hz = (o.subcarrier_spacing_khz or 15.0) * 1e3
        count = o.subcarriers or max(1, round(self.bandwidth_hz / spacing_hz))
        if o.subcarriers and o.subcarrier_spacing_khz and abs(count * spacing_hz / self.bandwidth_hz - 1) > 0.01:
            raise SpecError(
                f"{self.spec}: {count} subcarriers of {spacing_hz / 1e3:g} kHz fill {count * spacing_hz / 1e6:g} MHz, but the "
                f"link has {self.bandwidth_hz / 1e6:g} MHz; give only one of the two, and the other follows"
            )
        if count > MAX_SUBCARRIERS:
            raise SpecError(f"{self.spec}: {count} subcarriers are more than {MAX_SUBCARRIERS}; widen subcarrier_spacing_khz")
        self.spacing_hz = self.bandwidth_hz / count
        prefix = math.ceil(o.prefix_fraction * count - 1e-9)
        self._check_model(prefix / self.bandwidth_hz)
        self.grid = Grid(count, prefix, min(o.pilot_subcarriers, count), o.pilot_symbols)
        if self.grid.pilot_subcarriers == 1 and o.pilot_symbols == 1:
            raise SpecError(f"{self.spec}: {count} subcarrier(s) leave no room for data; make pilots rarer or the band wider")
        self.receiver = PilotReceiver(self.grid, self.stats, self.spacing_hz, self.bandwidth_hz)
        return self

    def _check_model(self, prefix_s: float) -> None:
        doppler_hz = self.stats.omega / (2 * torch.pi)
        if doppler_hz > 0.05 * self.spacing_hz:
            raise SpecError(
                f"{self.spec}: a Doppler shift of {doppler_hz:.0f} Hz exceeds 5 % of the spacing of {self.spacing_hz:.0f} Hz "
                "and this model leaves out the interference that follows; widen the subcarriers or slow down"
            )
        late = self.stats.delays_s > prefix_s + 1e-12
        if float(self.stats.powers[late].sum()) > 1e-3:
            raise SpecError(
                f"{self.spec}: echoes of up to {float(self.stats.delays_s.max()) * 1e6:.2f} us outlast the cyclic prefix of "
                f"{prefix_s * 1e6:.2f} us; lengthen prefix_fraction, narrow the subcarriers or reduce delay_spread_ns"
            )

    def reset(self, generator: torch.Generator) -> None:
        """Begin a session with new fading."""
        self._seed = draw_seed(generator)

    def _windows(self, seed: int, batch: int, n: int, clock: int) -> list[tuple[Tensor, Tensor, int]]:
        """Return per window of a burst: (B, data) gains, (B, Kf, Kt) gains at pilots, and its length in symbols."""
        generator = torch.Generator().manual_seed(seed)
        process = SumOfSinusoids(generator, batch, len(self.stats.powers))
        los_phase = torch.rand(batch, 1, generator=generator, dtype=torch.float64) * 2 * torch.pi
        steer = torch.exp(-2j * torch.pi * self.receiver.hertz[:, None] * self.stats.delays_s)
        steer = (steer * self.stats.powers.sqrt()).to(torch.complex64)  # (F, L)
        windows = []
        for window in self.grid.windows(self.grid.symbols_for(n)):
            symbols = torch.arange(window.start, window.start + window.length, dtype=torch.float64)
            times = (clock + symbols * self.grid.symbol_uses) / self.bandwidth_hz
            h = steer @ process.gains(self.stats.omega, times)  # (B, F, M)
            if self.stats.los_power:
                angle = (self.stats.los_omega * times + los_phase).remainder(2 * torch.pi)
                h = h + self.stats.los_power**0.5 * torch.exp(1j * angle).to(h.dtype)[:, None]
            data = h.mT[:, self.grid.data_mask(window)]
            windows.append((data, h[:, self.receiver.comb][:, :, window.pilot_symbols], window.length))
        return windows

    def _data(self, windows: list[tuple[Tensor, Tensor, int]], batch: int, n: int) -> Tensor:
        empty = torch.zeros(batch, 0, dtype=torch.complex64)
        return torch.cat([empty, *(data for data, _, _ in windows)], -1)[:, :n]

    def sample(self, n: int, clock: int, *, batch: int = 1, generator: torch.Generator) -> Fading:
        """Return the gains of a burst that begins at ``clock``; the generator serves only a session not yet reset."""
        if self._seed is None:
            self.reset(generator)
        assert self._seed is not None
        windows = self._windows(self._seed, batch, n, clock)
        h, age = self._data(windows, batch, n), self.options.csi_age
        old = self._data(self._windows(self._seed, batch, n, clock - age), batch, n) if age else None
        return Fading(h, TdlCsi([(pilots, length) for _, pilots, length in windows], n, old))

    def typical(self, n: int, draws: int, *, generator: torch.Generator) -> Tensor:
        """Draw (draws, n) gains of bursts of independent sessions."""
        step = max(1, TYPICAL_ELEMENTS // max(1, n))
        parts = []
        for start in range(0, draws, step):
            batch = min(step, draws - start)
            parts.append(self._data(self._windows(draw_seed(generator), batch, n, 0), batch, n))
        return torch.cat(parts) if parts else torch.zeros(0, n, dtype=torch.complex64)

    def estimate(self, fading: Fading, noise_var: Tensor | float, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return estimates from noisy pilots and their error variance (B, n); with per-use noise the pilots see its mean."""
        if not isinstance(fading.pilots, TdlCsi):
            raise ContractError(f"{self.name}.estimate needs the Fading of its own sample, pilots included")
        csi: TdlCsi = fading.pilots
        if self.options.estimator == "perfect":
            return self._perfect(fading, csi, generator)
        noise = torch.as_tensor(noise_var, dtype=torch.float64).cpu()
        noise = noise.reshape(1, 1, 1) if noise.dim() == 0 else noise.mean(-1).reshape(-1, 1, 1)
        hats, errors = [fading.h[:, :0]], [torch.zeros(fading.h.shape[0], 0)]
        for pilots, length in csi.windows:
            y = pilots + noise.sqrt().float() * complex_normal(tuple(pilots.shape), generator, pilots)
            h_hat, error = self.receiver.estimate(y.to(torch.complex128), noise, length, self.options.estimator)
            (window,) = self.grid.windows(length)
            mask = self.grid.data_mask(window)
            hats.append(h_hat.mT[:, mask].to(torch.complex64))
            errors.append(error.mT[:, mask].float().expand(fading.h.shape[0], -1))
        return torch.cat(hats, -1)[:, : csi.n], torch.cat(errors, -1)[:, : csi.n]

    def _perfect(self, fading: Fading, csi: TdlCsi, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the gains of ``csi_age`` uses ago plus e; the age costs E|h(t) - h(t - age)|^2 of the process."""
        h = fading.h if csi.old is None else csi.old
        seconds = torch.tensor(self.options.csi_age / self.bandwidth_hz, dtype=torch.float64)
        kept = float(self.stats.powers.sum()) * self.stats.time(seconds)
        kept = kept + self.stats.los_power * torch.cos(self.stats.los_omega * seconds)
        error_var = float(2 * (1 - kept).clamp_min(0)) + self.options.csi_error_var
        if self.options.csi_error_var:
            h = h + self.options.csi_error_var**0.5 * complex_normal(tuple(h.shape), generator, h)
        return h, torch.full((1, 1), error_var)

    def pilot_uses(self, n: int) -> int:
        """Return pilots, cyclic prefixes and the padding of the last OFDM symbol of a burst of ``n`` data uses."""
        return self.grid.symbols_for(n) * self.grid.symbol_uses - n

    def waveform(self, x: Tensor) -> Tensor:
        """Return the time signal (B, n up to whole OFDM symbols) of the data subcarriers, at the symbol rate."""
        width = self.grid.subcarriers
        padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % width))
        return torch.fft.ifft(padded.reshape(x.shape[0], -1, width), norm="ortho").reshape(x.shape[0], -1)

    def clip(self, x: Tensor) -> Tensor:
        """Clip the time signal; what that does to a subcarrier is noise from all others."""
        limit = self.options.clip_papr_db
        if limit is None or x.numel() == 0:
            return x
        time = clip_peaks(self.waveform(x), limit).reshape(x.shape[0], -1, self.grid.subcarriers)
        return torch.fft.fft(time, norm="ortho").reshape(x.shape[0], -1)[:, : x.shape[-1]]


class TdlA(Tdl):
    """TDL-A: no line of sight, 23 taps."""

    profile: ClassVar[str] = "A"
    name: ClassVar[str] = "tdl-a"
    summary: ClassVar[str] = "3GPP TDL-A over OFDM with pilots: no line of sight"
    example: ClassVar[str] = "tdl-a:delay_spread_ns=100,speed_mps=3"


class TdlB(Tdl):
    """TDL-B: no line of sight, 23 taps, short echoes."""

    profile: ClassVar[str] = "B"
    name: ClassVar[str] = "tdl-b"
    summary: ClassVar[str] = "3GPP TDL-B over OFDM with pilots: no line of sight, power close together"
    example: ClassVar[str] = "tdl-b:delay_spread_ns=100,speed_mps=30,estimator=ls"


class TdlC(Tdl):
    """TDL-C: no line of sight, 24 taps, long echoes."""

    profile: ClassVar[str] = "C"
    name: ClassVar[str] = "tdl-c"
    summary: ClassVar[str] = "3GPP TDL-C over OFDM with pilots: no line of sight, long echoes"
    example: ClassVar[str] = "tdl-c:delay_spread_ns=300,speed_mps=3"


class TdlD(Tdl):
    """TDL-D: line of sight, K = 13.3 dB on the first tap."""

    profile: ClassVar[str] = "D"
    name: ClassVar[str] = "tdl-d"
    summary: ClassVar[str] = "3GPP TDL-D over OFDM with pilots: line of sight, 13.3 dB over the first tap"
    example: ClassVar[str] = "tdl-d:delay_spread_ns=30,carrier_ghz=28"


class TdlE(Tdl):
    """TDL-E: line of sight, K = 22 dB on the first tap."""

    profile: ClassVar[str] = "E"
    name: ClassVar[str] = "tdl-e"
    summary: ClassVar[str] = "3GPP TDL-E over OFDM with pilots: line of sight, 22 dB over the first tap"
    example: ClassVar[str] = "tdl-e:delay_spread_ns=100,estimator=perfect"
