"""A measured course of the SNR, read from a CSV file."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from semcast.channels.fading import CsiOptions, FlatFading
from semcast.channels.options import ChannelOptions, option
from semcast.errors import SpecError


def read_trace(path: str) -> tuple[Tensor, Tensor, bool]:
    """Read columns ``time_s`` and ``snr_db`` or ``gain_db`` of a CSV file with a header.

    Returns:
        (K,) float64 seconds from the first row on, strictly increasing; (K,) float64 dB; whether these are SNRs.

    Raises:
        SpecError: no such file, no such columns, or a row that is not a number or not later than the one before.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"trace file {path!r} cannot be read ({type(error).__name__}); give a CSV file") from None
    rows = csv.DictReader(text.splitlines())
    columns = [c.strip() for c in rows.fieldnames or []]
    rows.fieldnames = columns
    value = next((c for c in ("snr_db", "gain_db") if c in columns), None)
    if "time_s" not in columns or value is None:
        raise SpecError(f"trace file {path!r} has columns {columns}; it needs time_s and one of snr_db, gain_db")
    times: list[float] = []
    levels: list[float] = []
    for row in rows:
        try:
            time, level = float(row["time_s"]), float(row[value])
        except (TypeError, ValueError):
            time = level = math.nan
        if not (math.isfinite(time) and math.isfinite(level)):
            raise SpecError(f"trace file {path!r}, line {rows.line_num}: time_s and {value} must be finite numbers")
        if times and time <= times[-1]:
            raise SpecError(f"trace file {path!r}, line {rows.line_num}: time_s must increase from row to row")
        times.append(time)
        levels.append(level)
    if not times:
        raise SpecError(f"trace file {path!r} has a header but no rows")
    seconds = torch.tensor(times, dtype=torch.float64)
    return seconds - seconds[0], torch.tensor(levels, dtype=torch.float64), value == "snr_db"


@dataclass(frozen=True)
class TraceOptions(CsiOptions):
    """Options of :class:`Trace`."""

    path: str = option("", "CSV file with a header, columns time_s and snr_db or gain_db")
    end: Literal["loop", "hold"] = option("loop", "after the last row: begin anew, or keep its level")

    def validate(self) -> None:
        """Refuse a trace without a file."""
        if not self.path:
            raise SpecError("path=FILE is required")


class Trace(FlatFading):
    """Gains follow a CSV file by the link's clock: each row holds until the next, the last for as long as the one before.

    With a column ``snr_db`` the gain is relative to the trace's mean SNR (mean power over its duration), so that the
    link's SNR is the mean of what is sent through one loop. A column ``gain_db`` is taken as it is: mean ``|h|^2`` is
    then ``mean_gain``. The gain is real and positive; a trace of levels says nothing of phases.
    """

    Options: ClassVar[type[ChannelOptions]] = TraceOptions
    options: TraceOptions
    name: ClassVar[str] = "trace"
    summary: ClassVar[str] = "the SNR follows a CSV file in time; the link's SNR is its mean"
    example: ClassVar[str] = "trace:path=drive.csv,end=loop"

    def __init__(self, options: ChannelOptions | None = None) -> None:
        super().__init__(options)
        self._times, level_db, is_snr = read_trace(self.options.path)
        steps = self._times.diff()
        holds = torch.cat([steps, steps[-1:] if len(steps) else torch.ones(1, dtype=torch.float64)])
        self.duration_s = float(holds.sum())
        power = 10 ** (level_db / 10)
        mean = float((power * holds).sum() / self.duration_s)
        self._power = power / mean if is_snr else power
        self._mean_gain = 1.0 if is_snr else mean

    @property
    def mean_gain(self) -> float:
        """E|h|^2 over the trace: 1 for a column ``snr_db``."""
        return self._mean_gain

    def power_at(self, seconds: Tensor) -> Tensor:
        """Return |h|^2 at (n,) float64 seconds since the session began; before it, that of its first row."""
        # A use that falls on a row's time belongs to that row, also where clock / bandwidth rounds just below it.
        seconds = seconds.clamp_min(0.0) + 1e-9
        if self.options.end == "loop":
            seconds = seconds.remainder(self.duration_s)
        return self._power[torch.searchsorted(self._times, seconds, right=True).sub(1).clamp_min(0)]

    def gains(self, seed: int, batch: int, uses: Tensor) -> Tensor:
        """Return the gains of the trace; every batch element sees the same."""
        power = self.power_at(uses.double() / self.bandwidth_hz)
        return power.sqrt().to(torch.complex64)[None].expand(batch, -1)

    def change_var(self, uses: Tensor, age: int) -> Tensor:
        """Return the mean of ``|h(t) - h(t - age)|^2`` over one run of the trace."""
        points = torch.arange(4096, dtype=torch.float64) * (self.duration_s / 4096)
        now, before = points + self.duration_s, points + self.duration_s - age / self.bandwidth_hz
        mean = (self.power_at(now).sqrt() - self.power_at(before).sqrt()).square().mean()
        return mean.expand(uses.numel())

    def typical(self, n: int, draws: int, *, generator: torch.Generator) -> Tensor:
        """Draw (draws, n) stretches of the trace that begin at random times."""
        start = torch.rand(draws, 1, generator=generator, dtype=torch.float64) * self.duration_s
        seconds = start + torch.arange(n, dtype=torch.float64) / self.bandwidth_hz
        return self.power_at(seconds.flatten()).sqrt().to(torch.complex64).reshape(draws, n)
