"""Rate control: the quality at which a group of pictures just fits its bytes, in a few trial encodings.

Size falls about exponentially with quality, so a secant on the logarithm of the size, held inside a bracket, needs two or
three trials; the state of the last group gives the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from semcast.systems.digital.codec import Fine
from semcast.systems.digital.packets import Unit

CLOSE_ENOUGH = 0.98
NEAR = 0.10  # natural log of the size: from here the finer knob takes over
MAX_TRIALS = 8


@dataclass(frozen=True)
class Trial:
    """One encoding: its quality and finer knob, its units, its packets, and their bytes."""

    quality: float
    fine: float | None
    units: list[Unit]
    packets: list[bytes]
    size: int


@dataclass(frozen=True)
class Outcome:
    """What the search ended with: the best trial that fits (None: nothing does), trials made, and why it stopped short."""

    trial: Trial | None
    trials: int
    note: str = ""
    smallest: int = 0


Attempt = Callable[[float, float | None], Trial]
FineKnob = Callable[[float, Sequence[Unit]], Fine | None]


class _Search:
    """A bracketed secant on log(size) over one knob; remembers the largest trial that fits."""

    def __init__(self, run: Callable[[float], Trial], target: int, low: float, high: float, slope: float, step: float) -> None:
        self.run, self.target, self.low, self.high, self.slope, self.step = run, target, low, high, slope, step
        self.too_big: tuple[float, float] | None = None  # (knob, log size / target)
        self.fits: tuple[float, float] | None = None
        self.told = 0

    def tell(self, knob: float, size: int) -> None:
        error = math.log(max(size, 1) / self.target)
        self.told += 1
        if error > 0:
            if self.too_big is None or knob > self.too_big[0]:
                self.too_big = (knob, error)
        elif self.fits is None or knob < self.fits[0]:
            self.fits = (knob, error)

    def snapped(self, knob: float) -> float:
        """The nearest knob that there is."""
        return min(max(self.low + round((knob - self.low) / self.step) * self.step, self.low), self.high)

    def next(self) -> float | None:
        """The next knob to try, or None when nothing is left between too big and fitting."""
        aim = math.log(0.5 + 0.5 * CLOSE_ENOUGH)
        if self.too_big and self.fits:
            (a, ea), (b, eb) = self.too_big, self.fits
            if b - a <= self.step:
                return None
            guess = a + (b - a) * (ea - aim) / max(ea - eb, 1e-9)
            margin = max(0.08 * (b - a), self.step)
            guess = min(max(guess, a + margin), b - margin)
        else:
            at, error = self.too_big or self.fits or (self.low, 0.0)
            away = (aim - error) / self.slope * 2 ** max(0, self.told - 2)  # twice as far, until the bracket closes
            guess = max(at + away, at + self.step) if self.too_big else min(at + away, at - self.step)
        guess = self.snapped(guess)
        if (self.too_big and guess <= self.too_big[0]) or (self.fits and guess >= self.fits[0]):
            return None
        return guess


def meet_target(
    attempt: Attempt,
    fine_knob: FineKnob,
    target: int,
    *,
    start: float,
    best: float,
    worst: float,
    slope: float,
    step: float = 0.05,
    max_trials: int = MAX_TRIALS,
) -> Outcome:
    """Find the largest encoding of at most ``target`` bytes.

    Args:
        attempt: encodes and packs at a quality and a setting of the finer knob. fine_knob: of the encoder.
        target: bytes that may not be exceeded. start: quality to begin with. best, worst: ends of the scale.
        slope: natural log of the size per unit of quality, to begin with. step: smallest difference in quality that the encoder
            knows. max_trials: encodings at most, but for one last at the worst quality where nothing fitted.
    """
    found: Trial | None = None
    trials, smallest = 0, 0

    def keep(trial: Trial) -> Trial:
        nonlocal found, trials, smallest
        trials += 1
        smallest = min(smallest or trial.size, trial.size)
        if trial.size <= target and (found is None or trial.size > found.size):
            found = trial
        return trial

    def done() -> bool:
        return found is not None and found.size >= CLOSE_ENOUGH * target

    def seek(search: _Search, knob: float | None, run: Callable[[float], Trial], *, until_near: bool = False) -> Trial | None:
        """Try knob after knob; returns the trial that the finer knob can go on from, if that is asked for."""
        while knob is not None and trials < max_trials and not done():
            trial = keep(run(knob))
            search.tell(knob, trial.size)
            if until_near and abs(math.log(trial.size / target)) < NEAR:
                return trial
            knob = search.next()
        return None

    def coarse(quality: float) -> Trial:
        return attempt(quality, None)

    search = _Search(coarse, target, best, worst, slope, step)
    near = seek(search, search.snapped(start), coarse, until_near=True)
    if near is not None and not done():
        quality = near.quality
        fine = fine_knob(quality, near.units)
        if fine is not None:
            narrow = _Search(lambda f: attempt(quality, f), target, fine.low, fine.high, fine.slope, fine.step)
            narrow.tell(fine.value, near.size)
            seek(narrow, narrow.next(), narrow.run)
        if not done():  # the finer knob may not reach as far as was hoped: on with the coarse one
            seek(search, search.next(), coarse)
    note = ""
    if found is None and trials >= max_trials:  # unlucky, not impossible: the worst quality settles it
        keep(attempt(worst, None))
    if found is not None and not done() and found.quality <= best:
        note = "the best quality of the codec takes less than the budget"
    return Outcome(found, trials, note, smallest)
