"""Numbers and tables of reproduction cards, from the rows of `dvst_study.py`; nothing is measured here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from study_rows import read_list

from semcast.studies.rows import Row
from semcast.studies.stats import BdDelta, bd_psnr, bd_rate, points

REFERENCE = "reference_psnr_rgb_db"
Quality = Callable[[Row], float | None]


def number(value: float | None, unit: str = "", digits: int = 2) -> str:
    """``12.3 dB``, or a dash."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}{' ' + unit if unit else ''}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, or "" without lines."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)) + "\n" if lines else ""


def select(rows: Sequence[Row], name: str, **equal: Any) -> list[Row]:
    """Rows of a system (any preset where the name has none) whose keys have these values."""
    mine = [row for row in rows if name in (row.system, row.name)]
    return [row for row in mine if all(getattr(row, key) == value for key, value in equal.items())]


def metric(key: str) -> Quality:
    """Reads a key of a row."""
    return lambda row: getattr(row, key)


def grouped(row: Row, key: str = "psnr_rgb_db") -> list[list[float | None]]:
    """Values of a metric in groups of frames; [] where the clip is no whole number of groups, whose tail is shared out."""
    values = row.per_frame.get(key, [])
    whole = row.gop and len(values) % row.gop == 0
    return [values[at : at + row.gop] for at in range(0, len(values), row.gop)] if row.gop and whole else []


def frames_mean(intra: bool, key: str = "psnr_rgb_db") -> Quality:
    """Mean of a metric over the first frames of groups, or over all others."""
    return lambda row: average([v for group in grouped(row, key) for v in (group[:1] if intra else group[1:])])


def average(values: Sequence[float | None]) -> float | None:
    """Mean of what is known, or None."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def minus(a: float | None, b: float | None) -> float | None:
    """Difference, where both are known."""
    return None if a is None or b is None else a - b


def curve(rows: Sequence[Row], quality: Quality) -> list[tuple[float, float]]:
    """(CBR, quality) of rows."""
    pairs = [(row.cbr, quality(row)) for row in rows]
    return sorted((cbr, value) for cbr, value in pairs if cbr is not None and value is not None)


def bd_by_clip(
    rows: Sequence[Row], anchor: str, test: str, quality: Quality, delta: Callable[..., BdDelta] = bd_rate
) -> dict[str, BdDelta]:
    """Bjontegaard delta of ``test`` against ``anchor`` for every clip that either was measured on."""
    both = select(rows, anchor), select(rows, test)
    clips = dict.fromkeys(row.clip for part in both for row in part)
    return {clip: delta(*(curve([row for row in part if row.clip == clip], quality) for part in both)) for clip in clips}


def mean_delta(deltas: Mapping[str, BdDelta]) -> float | None:
    """Mean over clips where it is known."""
    return average([delta.value for delta in deltas.values()])


def bd_table(rows: Sequence[Row], test: str, anchors: Sequence[str]) -> str:
    """BD-rates of ``test`` per clip, in PSNR and MS-SSIM; and of I- and P-frames apart at equal CBR of the stream."""
    columns: list[tuple[str, dict[str, BdDelta]]] = []
    for anchor in anchors:
        for label, key in (("PSNR", "psnr_rgb_db"), ("MS-SSIM", "ms_ssim_rgb_db")):
            columns.append((f"{label}, against {anchor}, %", bd_by_clip(rows, anchor, test, metric(key))))
        for label, intra in (("I-frames", True), ("P-frames", False)):
            columns.append((f"{label}, against {anchor}, dB", bd_by_clip(rows, anchor, test, frames_mean(intra), bd_psnr)))
    clips = list(dict.fromkeys(clip for _, deltas in columns for clip in deltas))
    known = [clip for clip in clips if any(deltas[clip].value is not None for _, deltas in columns if clip in deltas)]
    if not known:
        return ""
    lines = [[clip, *(number(deltas[clip].value, digits=1) for _, deltas in columns)] for clip in clips]
    lines.append(["mean", *(number(mean_delta(deltas), digits=1) for _, deltas in columns)])
    return table(["clip", *(label for label, _ in columns)], lines)


def quality_table(rows: Sequence[Row], key: str, by: Literal["cbr_target", "snr_db"]) -> str:
    """Means over clips: a line per system (and what it was told), a column per CBR or SNR."""
    at = sorted({value for row in rows if (value := getattr(row, by)) is not None})
    found: dict[str, dict[float, list[float | None]]] = {}
    for row in rows:
        truth = row.csi_snr_db == row.snr_db
        labels = [f"`{row.name}`"] if truth else []
        labels += [f"`{row.name}`, told {row.csi_snr_db:g} dB"] if not truth or _is_told(row, rows) else []
        for label in labels:
            found.setdefault(label, {}).setdefault(getattr(row, by), []).append(getattr(row, key))
    lines = [[name, *(number(average(cells.get(value, []))) for value in at)] for name, cells in found.items()]
    return table(["", *(f"{value:g}" for value in at)], lines)


def _is_told(row: Row, rows: Sequence[Row]) -> bool:
    """Whether other rows of the system were told this SNR where it was wrong: then this is a point of that curve too."""
    return any(r.name == row.name and r.csi_snr_db == row.csi_snr_db != r.snr_db for r in rows)


def gaps(rows: Sequence[Row], test: str, anchor: str, low: float, high: float) -> list[float]:
    """PSNR of ``test`` over ``anchor`` at every SNR of a range at which both were told the truth."""
    out = []
    for snr_db in sorted({row.snr_db for row in rows if row.snr_db is not None and low <= row.snr_db <= high}):
        pair = [average([r.psnr_rgb_db for r in select(rows, n, snr_db=snr_db, csi_snr_db=snr_db)]) for n in (test, anchor)]
        gap = minus(*pair)
        out += [] if gap is None else [gap]
    return out


def at_point(rows: Sequence[Row], name: str, snr_db: float, told: float | None = None) -> float | None:
    """PSNR of a system at an SNR, told the truth or another."""
    return average([r.psnr_rgb_db for r in select(rows, name, snr_db=snr_db, csi_snr_db=snr_db if told is None else told)])


def share(row: Row) -> float | None:
    """Side information, headers and control blocks over all channel uses; what a motion link sends is none of it."""
    return ((row.digital_uses or 0) - uses_of(row, "motion")) / row.channel_uses if row.channel_uses else None


def rate_error(row: Row) -> float | None:
    """|CBR / CBR asked for - 1|."""
    return abs(row.cbr / row.cbr_target - 1) if row.cbr and row.cbr_target else None


def interpolate(pairs: Sequence[tuple[float, float]], cbr: float) -> float | None:
    """Quality at a CBR by straight lines over log CBR, within what was measured."""
    for (a, low), (b, high) in pairwise(pairs):
        if a <= cbr <= b and b > a:
            return low + (high - low) * math.log(cbr / a) / math.log(b / a)
    return None


def mean_curve(rows: Sequence[Row], name: str, key: str) -> list[tuple[float, float]]:
    """(mean CBR, mean quality) over clips at every CBR asked for."""
    found = points(select(rows, name), key)
    return sorted((p.cbr, p.quality.mean) for p in found if p.cbr and p.quality)


def drift_gap(row: Row, first: int, last: int) -> float | None:
    """How far the receiver lies below the transmitter's reference, mean over frames first <= t < last, in dB."""
    pairs = zip(row.per_frame.get(REFERENCE, []), row.per_frame.get("psnr_rgb_db", []), strict=False)
    return average([minus(clean, shown) for clean, shown in list(pairs)[first:last]])


def drift_table(rows: Sequence[Row]) -> str:
    """The gap between both ends over stretches of 16 frames."""
    lines = []
    for row in sorted(rows, key=lambda row: (row.snr_db or 0, row.gop or 0)):
        stretches = [number(drift_gap(row, at, at + 16)) for at in range(0, 64, 16)]
        lines.append([number(row.snr_db, digits=0), str(row.gop), number(row.psnr_rgb_db), *stretches])
    return table(["SNR, dB", "GOP", "PSNR, dB", *(f"gap, frames {at}–{at + 15}, dB" for at in range(0, 64, 16))], lines)


def rate_table(rows: Sequence[Row]) -> str:
    """Met CBR and side information over the CBR asked for."""
    lines = []
    for condition in dict.fromkeys(row.condition for row in rows):
        for target in sorted({row.cbr_target for row in rows if row.condition == condition and row.cbr_target}):
            here = [row for row in rows if (row.condition, row.cbr_target) == (condition, target)]
            errors, shares = ([100 * v for row in here if (v := f(row)) is not None] for f in (rate_error, share))
            cells = [f"{max(errors):.1f} %" if errors else "–", f"{min(shares):.1f}–{max(shares):.1f} %" if shares else "–"]
            lines.append([str(condition), f"{target:g}", str(len(here)), *cells, number(average(shares), "%", 1)])
    return table(["condition", "CBR asked", "clips", "worst error", "side information", "mean"], lines)


def stream_table(rows: Sequence[Row]) -> str:
    """Shares of streams, mean over clips."""
    streams = list(dict.fromkeys(stream for row in rows for stream in row.streams))
    lines = []
    for condition, target in sorted({(row.condition or "", row.cbr_target or 0.0) for row in rows}):
        here = [row for row in rows if (row.condition or "", row.cbr_target) == (condition, target) and row.channel_uses]
        cells = [average([100 * row.streams.get(name, 0) / (row.channel_uses or 1) for row in here]) for name in streams]
        lines.append([condition, f"{target:g}", *(number(cell, "%", 1) for cell in cells)])
    return table(["condition", "CBR", *(f"`{name}`" for name in streams)], lines)


def refused_table(folder: Path, part: str) -> str:
    """Operating points that a system could not serve."""
    keys = ("system", "condition", "clip", "snr_db", "cbr_target")
    refused = read_list(folder / f"{part}-left-out.json")
    return table(["left out", *keys[1:]], [[str(entry[key]) for key in keys] for entry in refused])


def positions_table(rows: Sequence[Row], shown: int = 4) -> str:
    """PSNR by place in the group, the first few places."""
    lines = []
    for row in sorted(rows, key=lambda row: (row.cbr_target or 0, row.name)):
        places = [average([v for group in grouped(row) for v in group[at : at + 1]]) for at in range(shown)]
        lines.append([f"`{row.name}`", number(row.cbr, digits=4), *(number(place) for place in places)])
    return table(["system", "CBR", *(f"frame {at} of the group, dB" for at in range(shown))], lines)


def fall(row: Row) -> float | None:
    """PSNR of first frames of groups less that of last ones, in dB."""
    return minus(frames_mean(True)(row), average([group[-1] for group in grouped(row)]))


def both_fps(entry: Mapping[str, Any]) -> float:
    """Frames per second of encoder and decoder one after the other."""
    return float(1 / (1 / entry["encode_fps"] + 1 / entry["decode_fps"]))


def speed_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Frames per second, and time over pixels."""
    lines = []
    for e in entries:
        width, height = (int(side) for side in e["size"].split("x"))
        cells = [e["condition"], e["precision"], str(e["threads"]), e["size"], str(e["frames"])]
        values = (e["encode_fps"], e["decode_fps"], both_fps(e), 1e9 / both_fps(e) / width / height)
        lines.append([*cells, *(number(value, digits=1) for value in values), number(e["peak_mb"], digits=0)])
    head = [
        "condition",
        "arithmetic",
        "threads",
        "size",
        "frames",
        "encode, fps",
        "decode, fps",
        "both, fps",
        "ns a pixel",
        "peak, MB",
    ]
    return table(head, lines)


def agreement(entries: Sequence[Mapping[str, float]]) -> tuple[float | None, float | None]:
    """How far means over noise seeds differ between deployed path and training forward: CBR in percent, PSNR in dB."""
    if not entries:
        return None, None
    keys = ("deployed_cbr", "training_cbr", "deployed_psnr_db", "training_psnr_db")
    cbr, trained, psnr_db, trained_db = (math.fsum(entry[key] for entry in entries) / len(entries) for key in keys)
    return 100 * abs(cbr / trained - 1), abs(psnr_db - trained_db)


def agreement_table(entries: Sequence[Mapping[str, float]]) -> str:
    """One line per noise seed."""
    keys = ("deployed_cbr", "training_cbr", "deployed_psnr_db", "training_psnr_db")
    lines = [[str(e["seed"]), *(number(e[key], digits=5 if key.endswith("cbr") else 3) for key in keys)] for e in entries]
    return table(["seed", "CBR, deployed", "CBR, training", "PSNR, deployed", "PSNR, training"], lines)


def motion_share(rows: Sequence[Row]) -> tuple[float | None, float | None]:
    """The motion link over all uses, in percent, at the lowest and at the highest CBR."""
    targets = sorted({row.cbr_target for row in rows if row.cbr_target})
    at = [
        [100 * uses_of(row, "motion") / row.channel_uses for row in rows if row.cbr_target == target and row.channel_uses]
        for target in targets
    ]
    return (average(at[0]), average(at[-1])) if len(at) > 1 else (None, None)


def uses_of(row: Row, stream: str) -> int:
    """Channel uses of a stream, its control blocks included."""
    return sum(uses for name, uses in row.streams.items() if name.split("/")[0] == stream)


def percent_below_zero(deltas: Mapping[str, BdDelta]) -> float | None:
    """Share of clips, among those with a delta, on which it is negative."""
    known = [delta.value < 0 for delta in deltas.values() if delta.value is not None]
    return 100 * sum(known) / len(known) if known else None
