"""Why a curve is flat or falls, in sentences made from the rows."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from semcast.studies.rows import Row
from semcast.studies.stats import Point, main_cbr, points

Kind = Literal["crossover", "cliff", "floor", "adapts", "graceful", "saturates", "concealed", "off-target"]

CLIFF_DB = 3.0  # a fall of the clip's PSNR over one step of SNR that nobody calls graceful
FLAT_DB = 0.3  # less than this over a step is flat
FEW, MANY = 0.01, 0.05  # shares of lost packets


class Finding(NamedTuple):
    """One observation: which series it is about ("" for several), of what kind, and the sentence."""

    series: str
    kind: Kind
    text: str


class _Curve(NamedTuple):
    """Quality over SNR of one series at one CBR on one channel."""

    series: str
    channel: str
    cbr_key: float | None
    points: tuple[Point, ...]
    label: str

    def quality(self, i: int) -> float:
        interval = self.points[i].quality
        assert interval is not None
        return interval.mean

    def snr(self, i: int) -> float:
        snr_db = self.points[i].snr_db
        assert snr_db is not None
        return snr_db

    @property
    def analog(self) -> bool:
        return all(row.is_analog for row in self.points[0].rows)

    def lost(self, i: int) -> float:
        sent = sum(row.packets_sent or 0 for row in self.points[i].rows)
        return sum(row.packets_lost or 0 for row in self.points[i].rows) / sent if sent else 0.0

    def mcs(self, i: int) -> str:
        names = Counter(row.mcs for row in self.points[i].rows if row.mcs)
        return names.most_common(1)[0][0] if names else ""


def explain(rows: Sequence[Row]) -> list[str]:
    """Sentences with numbers on cliffs, floors, graceful degradation and crossovers; empty where the rows show none."""
    return [finding.text for finding in findings(rows)]


def findings(rows: Sequence[Row]) -> list[Finding]:
    """What :func:`explain` says, with the series and the kind of each observation; crossovers first."""
    curves = _main_curves(rows)
    out = _crossovers(curves)
    for curve in curves:
        out += _of_analog(curve) if curve.analog else _of_digital(curve)
    return out + _off_target(rows)


def _main_curves(rows: Sequence[Row]) -> list[_Curve]:
    """One curve per series and channel, at the CBR that the page shows first or the nearest one; none for ``freeze``."""
    grouped: dict[tuple[str, str, float | None], list[Point]] = defaultdict(list)
    for point in points(rows):
        if point.quality is not None and point.snr_db is not None and point.rows[0].system != "freeze":
            grouped[point.series, point.channel, point.cbr_key].append(point)
    usable = {key: found for key, found in grouped.items() if len(found) > 1}
    first = main_cbr(rows)
    ranked = sorted({cbr_key for _, _, cbr_key in usable}, key=lambda cbr: abs(math.log((cbr or 1) / (first or 1))))
    channels = {channel for _, channel, _ in usable}
    curves: dict[tuple[str, str], _Curve] = {}
    for cbr_key in ranked:
        for (series, channel, key), found in usable.items():
            if key == cbr_key and (series, channel) not in curves:
                label = f"{series} over {channel}" if len(channels) > 1 else series
                curves[series, channel] = _Curve(series, channel, key, tuple(found), label)
    order = list(dict.fromkeys((series, channel) for series, channel, _ in usable))
    return [curves[key] for key in order]


def _db(value: float) -> str:
    return f"{value:.1f} dB"


def _at(value: float) -> str:
    return f"{value:g} dB"


def _percent(share: float) -> str:
    if share == 0:
        return "none"
    return "less than 1 %" if share < 0.01 else f"{100 * share:.0f} %"


def _of_digital(curve: _Curve) -> list[Finding]:
    out, last = [], len(curve.points) - 1
    quality = [curve.quality(i) for i in range(last + 1)]
    lost = [curve.lost(i) for i in range(last + 1)]
    name = curve.label
    steps = [
        i for i in range(last) if quality[i + 1] - quality[i] >= CLIFF_DB and lost[i] >= MANY and lost[i + 1] <= lost[i] / 2
    ]
    if steps:
        low, high = steps[0], steps[-1] + 1
        out.append(
            Finding(
                curve.series,
                "cliff",
                f"{name} falls off a cliff between {_at(curve.snr(high))} and {_at(curve.snr(low))}: lost packets go from "
                f"{_percent(lost[high])} to {_percent(lost[low])}, and PSNR from {_db(quality[high])} to {_db(quality[low])}. "
                "A code block passes its check or is lost whole; there is nothing in between.",
            )
        )
    dead = [i for i in range(last + 1) if lost[i] >= 0.5]
    if len(dead) > 1 and max(quality[i] for i in dead) - min(quality[i] for i in dead) < FLAT_DB:
        out.append(
            Finding(
                curve.series,
                "concealed",
                f"{name} is flat from {_at(curve.snr(dead[0]))} to {_at(curve.snr(dead[-1]))} "
                f"(about {_db(quality[dead[0]])}): "
                "most packets are lost, and what is seen is concealment.",
            )
        )
    whole = [i for i in range(last + 1) if lost[i] <= FEW]
    flat = _flat_tail(quality, whole)
    if flat:
        low, high = flat
        same = "the same bits are decoded" if curve.mcs(low) == curve.mcs(high) else "the budget no longer limits the encoder"
        out.append(
            Finding(
                curve.series,
                "floor",
                f"{name} is flat from {_at(curve.snr(low))} to {_at(curve.snr(high))} "
                f"({_db(quality[low])} and {_db(quality[high])}): block errors have vanished, {same}, and "
                "what is left is the encoder's quantisation. A better channel cannot remove it; only more bits can.",
            )
        )
    start = whole[0] if whole else last
    stop = flat[0] if flat else last
    if stop > start and quality[stop] - quality[start] >= FLAT_DB and all(share <= FEW for share in lost[start : stop + 1]):
        modes = [mode for mode in (curve.mcs(start), curve.mcs(stop)) if mode]
        how = f" (from {modes[0]} to {modes[1]})" if len(modes) == 2 and modes[0] != modes[1] else ""
        out.append(
            Finding(
                curve.series,
                "adapts",
                f"{name} climbs from {_db(quality[start])} at {_at(curve.snr(start))} to {_db(quality[stop])} at "
                f"{_at(curve.snr(stop))} with hardly a packet lost: the link spends the better channel on a faster modulation "
                f"and code{how}, so the same channel uses carry more bits.",
            )
        )
    return out


def _flat_tail(quality: Sequence[float], whole: Sequence[int]) -> tuple[int, int] | None:
    """The longest run of points up to the highest SNR that differ by less than ``FLAT_DB`` and lose nothing."""
    last = len(quality) - 1
    low = last
    while low - 1 in whole and last in whole and abs(quality[low - 1] - quality[last]) < FLAT_DB:
        low -= 1
    return (low, last) if low < last else None


def _of_analog(curve: _Curve) -> list[Finding]:
    out, last = [], len(curve.points) - 1
    quality = [curve.quality(i) for i in range(last + 1)]
    slopes = [(quality[i + 1] - quality[i]) / (curve.snr(i + 1) - curve.snr(i)) for i in range(last)]
    name = curve.label
    span = quality[last] - quality[0]
    if span >= FLAT_DB and max(slopes) <= 1.5:
        mean = span / (curve.snr(last) - curve.snr(0))
        out.append(
            Finding(
                curve.series,
                "graceful",
                f"{name} degrades gracefully: {_db(quality[last])} at {_at(curve.snr(last))}, {_db(quality[0])} at "
                f"{_at(curve.snr(0))}, that is {mean:.2f} dB of PSNR per dB of SNR and never more than {max(slopes):.2f}. "
                "Noise moves the received symbols a little, and the picture with them.",
            )
        )
    if slopes[-1] < 0.15:
        low = next((i for i in range(last) if all(slope < 0.15 for slope in slopes[i:])), last - 1)
        out.append(
            Finding(
                curve.series,
                "saturates",
                f"{name} levels off from {_at(curve.snr(low))} on ({_db(quality[low])}, {_db(quality[last])} at "
                f"{_at(curve.snr(last))}): noise hardly matters any more, and what is left is the error of putting the picture "
                "into so few channel uses.",
            )
        )
    return out


def _crossovers(curves: Sequence[_Curve]) -> list[Finding]:
    """The best analog series against the best digital one, per channel."""
    out = []
    channels = list(dict.fromkeys(curve.channel for curve in curves))
    for channel in channels:
        here = [curve for curve in curves if curve.channel == channel]
        pairs = [(a, d) for a in here if a.analog for d in here if not d.analog and a.cbr_key == d.cbr_key]
        pairs = [(a, d) for a, d in pairs if len(_shared(a, d)) > 1]
        if not pairs:
            continue
        analog, digital = max(pairs, key=lambda pair: sum(sum(q) for _, *q in _shared(*pair)))
        shared = _shared(analog, digital)
        text = _who_leads(analog.series, digital.series, shared, f" over {channel}" if len(channels) > 1 else "")
        out.append(Finding("", "crossover", text))
    return out


def _shared(a: _Curve, b: _Curve) -> list[tuple[float, float, float]]:
    """(SNR, quality of a, quality of b) where both have a point."""
    of_b = {b.snr(i): b.quality(i) for i in range(len(b.points))}
    return [(a.snr(i), a.quality(i), of_b[a.snr(i)]) for i in range(len(a.points)) if a.snr(i) in of_b]


def _who_leads(a: str, b: str, shared: Sequence[tuple[float, float, float]], where: str) -> str:
    leads = [(snr, qa - qb) for snr, qa, qb in shared]
    if min(lead for _, lead in leads) >= 0 or max(lead for _, lead in leads) <= 0:
        ahead, behind = (a, b) if leads[0][1] + leads[-1][1] > 0 else (b, a)
        least, most = (min(leads, key=lambda x: abs(x[1])), max(leads, key=lambda x: abs(x[1])))
        return (
            f"{ahead} is ahead of {behind} at every SNR{where}: by {_db(abs(most[1]))} at {_at(most[0])}, "
            f"by {_db(abs(least[1]))} at {_at(least[0])}."
        )
    crossings = [
        (s1 + (s2 - s1) * l1 / (l1 - l2), l1)
        for (s1, l1), (s2, l2) in pairwise(leads)
        if l1 * l2 < 0 and math.isfinite(l1 / (l1 - l2))
    ]
    first, final = leads[0], leads[-1]
    below, above = (a, b) if first[1] > 0 else (b, a)
    if len(crossings) == 1:
        return (
            f"{below} is ahead below about {_at(round(crossings[0][0]))}, {above} above it{where}: at {_at(first[0])} {below} "
            f"leads by {_db(abs(first[1]))}, at {_at(final[0])} {above} leads by {_db(abs(final[1]))}."
        )
    best = max(leads, key=lambda x: x[1])
    worst = min(leads, key=lambda x: x[1])
    return (
        f"{a} and {b} trade places{where}: {a} leads by {_db(best[1])} at {_at(best[0])}, "
        f"{b} by {_db(-worst[1])} at {_at(worst[0])}."
    )


def _off_target(rows: Sequence[Row], tolerance: float = 0.05) -> list[Finding]:
    """Series whose channel use, averaged over a clip, is more than 5 % off what was asked for."""
    worst: dict[str, tuple[float, Point]] = {}
    for point in points(rows, "cbr"):
        targets = [row.cbr_target for row in point.rows if row.cbr_target]
        if targets and point.cbr is not None:
            miss = point.cbr / targets[0] - 1
            if abs(miss) > tolerance and abs(miss) > abs(worst.get(point.series, (0.0, point))[0]):
                worst[point.series] = (miss, point)
    out = []
    for series, (miss, point) in worst.items():
        word = "over" if miss > 0 else "under"
        at = f" at {_at(point.snr_db)}" if point.snr_db is not None else ""
        text = (
            f"{series} is {abs(miss):.0%} {word} its channel budget{at}: CBR {point.cbr:.4f} where {point.cbr_key:g} was asked "
            "for. Compare it at the CBR it used."
        )
        out.append(Finding(series, "off-target", text))
    return out
