"""Means with confidence, Bjontegaard deltas, outage, goodput, and the grouping that plots stand on."""

from __future__ import annotations

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from semcast.errors import InputError
from semcast.studies.rows import Row


class Interval(NamedTuple):
    """A mean, its two-sided confidence limits (None below two values) and how many values stand behind it."""

    mean: float
    low: float | None
    high: float | None
    n: int


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean and Student-t interval of independent values, e.g. one per noise seed.

    Raises:
        InputError: no values, or a confidence outside (0, 1).
    """
    if not values or not 0 < confidence < 1:
        raise InputError("a confidence interval needs at least one value and a confidence between 0 and 1")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, None, 1)
    from scipy.special import stdtrit

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


class BdDelta(NamedTuple):
    """A Bjontegaard delta and the share of the range that both curves cover, or None and the reason."""

    value: float | None
    overlap: float
    reason: str = ""


RatePoints = Sequence[tuple[float, float]]
MIN_BD_POINTS = 4
ON_LABELS = ("miou", "pixel_accuracy", "miou_clean", "pixel_accuracy_clean")
COUNTS = ("hits", "truth", "predicted")


def bd_rate(anchor: RatePoints, test: RatePoints) -> BdDelta:
    """Bjontegaard delta rate in percent: how much more channel ``test`` needs for equal quality; negative is better.

    Args:
        anchor, test: at least four (CBR, quality) points each, quality rising with CBR; joined by Akima splines over log CBR.
    """
    return _bd(anchor, test, rate=True)


def bd_psnr(anchor: RatePoints, test: RatePoints) -> BdDelta:
    """Bjontegaard delta of quality (dB for PSNR) at equal channel use; positive is better. Arguments as of :func:`bd_rate`."""
    return _bd(anchor, test, rate=False)


def _bd(anchor: RatePoints, test: RatePoints, *, rate: bool) -> BdDelta:
    for label, points in (("reference", anchor), ("tested", test)):
        if len(points) < MIN_BD_POINTS:
            return BdDelta(None, 0.0, f"the {label} curve has {len(points)} points; four are needed")
        ordered = sorted(points)
        if any(cbr <= 0 for cbr, _ in points):
            return BdDelta(None, 0.0, f"the {label} curve has a CBR that is not positive")
        if any(b[1] <= a[1] or b[0] <= a[0] for a, b in pairwise(ordered)):
            return BdDelta(None, 0.0, f"quality of the {label} curve does not rise with CBR all along")
    anchor, test = sorted(anchor), sorted(test)
    axis = 1 if rate else 0
    ends = [(points[0][axis], points[-1][axis]) for points in (anchor, test)]
    if not rate:
        ends = [(math.log10(low), math.log10(high)) for low, high in ends]
    shared = min(ends[0][1], ends[1][1]) - max(ends[0][0], ends[1][0])
    if shared <= 0:
        return BdDelta(None, 0.0, f"the curves share no {'quality' if rate else 'CBR'}")
    overlap = shared / (max(ends[0][1], ends[1][1]) - min(ends[0][0], ends[1][0]))
    from bjontegaard import bd_psnr as psnr_delta
    from bjontegaard import bd_rate as rate_delta

    delta = rate_delta if rate else psnr_delta
    columns = [[point[i] for point in points] for points in (anchor, test) for i in (0, 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a small overlap is reported as a number, not as a warning
        value = float(delta(*columns, method="akima", require_matching_points=False, min_overlap=0))
    return BdDelta(value, overlap) if math.isfinite(value) else BdDelta(None, overlap, "the interpolation failed")


def outage(psnr_db: Iterable[float | None], threshold_db: float) -> float | None:
    """Share of frames below ``threshold_db``, or None without frames."""
    values = [value for value in psnr_db if value is not None]
    return sum(value < threshold_db for value in values) / len(values) if values else None


def goodput_bps(delivered_bits: float, airtime_s: float | None) -> float | None:
    """Information bits of packets that arrived, per second of airtime; None where there was no airtime."""
    return delivered_bits / airtime_s if airtime_s else None


def pooled(rows: Sequence[Row], metric: str) -> float | None:
    """``miou``, ``pixel_accuracy`` or either with ``_clean``, over the pixels of all rows; None where a row has no counts.

    The mean over clips is no mIoU: a picture without a pedestrian would count as much as one with ten.
    """
    whose = "clean" if metric.endswith("_clean") else "received"
    found = [row.label_counts.get(whose) for row in rows]
    if not found or not all(found):
        return None
    hits, truth, predicted = ([sum(c) for c in zip(*(f[key] for f in found if f), strict=True)] for key in COUNTS)
    if metric.startswith("pixel_accuracy"):
        return sum(hits) / sum(truth)
    unions = [t + p - h for h, t, p in zip(hits, truth, predicted, strict=True)]
    ratios = [h / u for h, u in zip(hits, unions, strict=True) if u]
    return math.fsum(ratios) / len(ratios)


def _of_clips(rows: Sequence[Row], metric: str) -> float:
    if metric in ON_LABELS and (together := pooled(rows, metric)) is not None:
        return together
    return math.fsum(float(getattr(row, metric)) for row in rows) / len(rows)


class Point(NamedTuple):
    """One operating point of one series: the mean over clips, then over noise seeds, with the interval over seeds alone.

    What is measured on labels is pooled instead: of the pixels of all clips, not the mean of the clips' values.

    Attributes:
        series: name for legends. channel, snr_db, cbr_key: the operating point. cbr: mean measured CBR.
        quality: the metric asked for. rows: what stands behind it.
    """

    series: str
    channel: str
    snr_db: float | None
    cbr_key: float | None
    cbr: float | None
    quality: Interval | None
    rows: tuple[Row, ...]


def series_names(rows: Sequence[Row]) -> dict[int, str]:
    """Legend name of every row (by ``id``): system and preset, and whatever else tells apart rows that share them.

    A series whose transmitter was told another SNR than the channel's is always marked.
    """
    by_name: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_name[row.name].append(row)
    names = {}
    for name, mine in by_name.items():
        told = {row.csi_snr_db for row in mine if row.csi_snr_db != row.snr_db}
        sweeps = any(row.csi_snr_db == row.snr_db and row.csi_snr_db not in told for row in mine)
        tails = {id(row): [row.condition, row.phy, "side information free" if row.assumed_free_uses else None] for row in mine}
        varies = [len({tail[i] for tail in tails.values()}) > 1 for i in range(3)]
        for row in mine:
            extra = [str(tail) for tail, differs in zip(tails[id(row)], varies, strict=True) if differs and tail]
            # In mismatch curves the point at which the told SNR happens to be right belongs to its curve too.
            if row.csi_snr_db is not None and row.csi_snr_db in told and (row.csi_snr_db != row.snr_db or not sweeps):
                extra.append(f"told {row.csi_snr_db:g} dB")
            names[id(row)] = f"{name} ({', '.join(extra)})" if extra else name
    return names


def main_cbr(rows: Sequence[Row]) -> float | None:
    """The CBR that a page shows first: the one with most rows, the middle one of several."""
    count = Counter(row.cbr_key for row in rows if row.cbr_key is not None)
    if not count:
        return None
    most = max(count.values())
    equal = sorted(cbr for cbr, n in count.items() if n == most)
    return equal[len(equal) // 2]


def points(rows: Sequence[Row], metric: str = "psnr_rgb_db") -> list[Point]:
    """Group rows into operating points, in order of series (as first met), channel, CBR and SNR.

    Noise seeds are the independent repeats, so clips are averaged within a seed first.

    Raises:
        InputError: ``metric`` is no numeric key of a row.
    """
    if metric not in Row.model_fields:
        raise InputError(f"rows have no key {metric!r}")
    names = series_names(rows)
    groups: dict[tuple[str, str, float | None, float | None], list[Row]] = defaultdict(list)
    for row in rows:
        groups[names[id(row)], row.channel, row.cbr_key, row.snr_db].append(row)
    order = {name: i for i, name in enumerate(dict.fromkeys(names[id(row)] for row in rows))}

    def place(key: tuple[str, str, float | None, float | None]) -> tuple[int, str, float, float]:
        return order[key[0]], key[1], key[2] or 0.0, -math.inf if key[3] is None else key[3]

    out = []
    for key in sorted(groups, key=place):
        members = groups[key]
        cbrs = [row.cbr for row in members if row.cbr is not None]
        by_seed: dict[int | None, list[Row]] = defaultdict(list)
        for row in members:
            if getattr(row, metric) is not None:
                by_seed[row.seed].append(row)
        means = [_of_clips(clips, metric) for clips in by_seed.values()]
        series, channel, cbr_key, snr_db = key
        cbr = math.fsum(cbrs) / len(cbrs) if cbrs else cbr_key
        out.append(Point(series, channel, snr_db, cbr_key, cbr, mean_interval(means) if means else None, tuple(members)))
    return out
