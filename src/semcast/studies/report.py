"""The page that a comparison ends in: one self-contained ``report.html``, and the rows it was made from.

rows ── points ──▶ charts, Bjontegaard table, explanations ─┐
media ───────────▶ the same moment of all systems ──────────┼──▶ report.html (no network), rows.json, summary.png
meta ────────────▶ command, versions ───────────────────────┘
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semcast.errors import InputError
from semcast.studies.explain import explain, findings
from semcast.studies.figures import (
    Media,
    common_gain,
    contact_sheet,
    data_uri,
    error_map,
    lowest_middle_highest,
    scale_colours,
)
from semcast.studies.plots import BdRow, bd_table, frame_chart, quality_charts, stream_chart, styles
from semcast.studies.rows import Row, write_json
from semcast.studies.stats import main_cbr, series_names

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["Media", "explain", "headline", "write_report"]

# (key, head, digits after the point, "higher" or "lower" where one is better, unit of the tooltip)
COLUMNS: tuple[tuple[str, str, int, str, str], ...] = (
    ("clip", "clip", 0, "", "clip"),
    ("channel", "channel", 0, "", "channel"),
    ("snr_db", "SNR", 1, "", "Es/N0 per complex symbol, dB"),
    ("csi_snr_db", "told SNR", 1, "", "SNR that the transmitter was told, dB"),
    ("cbr_target", "CBR asked", 4, "", "channel uses per source value asked for"),
    ("cbr", "CBR", 4, "", "channel uses per source value, measured"),
    ("psnr_rgb_db", "PSNR", 2, "higher", "PSNR over RGB, dB, mean over frames"),
    ("psnr_y_db", "PSNR Y", 2, "higher", "PSNR of BT.601 luma, dB, mean over frames"),
    ("ssim_rgb", "SSIM", 4, "higher", "SSIM over RGB, mean over frames"),
    ("ms_ssim_rgb_db", "MS-SSIM dB", 2, "higher", "-10 log10(1 - MS-SSIM), mean over frames"),
    ("lpips_squeeze", "LPIPS", 4, "lower", "LPIPS with a SqueezeNet trunk; lower is better"),
    ("vmaf", "VMAF", 1, "higher", "VMAF, 0 to 100"),
    ("miou", "mIoU", 3, "higher", "mean intersection over union"),
    ("pixel_accuracy", "pixel acc.", 3, "higher", "share of pixels with the right label"),
    ("miou_clean", "mIoU clean", 3, "", "mean intersection over union of the task model on the source itself"),
    ("top1", "top-1", 3, "higher", "share of clips with the right class"),
    ("loss", "lost", 0, "", "packets lost / packets sent"),
    ("concealed_frames", "concealed", 0, "", "frames that were concealed, not decoded"),
    ("outage", "outage", 2, "", "share of frames below the PSNR threshold"),
    ("mcs", "MCS", 0, "", "modulation and coding scheme"),
    ("goodput_bps", "goodput kbit/s", 0, "", "information bits that arrived per second of airtime, in thousands"),
    ("papr_db", "PAPR", 1, "", "peak-to-average power ratio, dB"),
    ("airtime_s", "airtime s", 3, "", "seconds on the air"),
    ("energy_j", "energy J", 4, "", "transmit energy, joules"),
    ("encode_fps", "enc. fps", 0, "", "frames per second of the encoder"),
    ("decode_fps", "dec. fps", 0, "", "frames per second of the decoder"),
    ("seed", "seed", 0, "", "noise seed"),
)
MAX_CHOICES = 6


def write_report(out_dir: Path | str, rows: Sequence[Row], media: Sequence[Media], meta: Mapping[str, Any]) -> Path:
    """Write ``report.html``, ``rows.json`` and, with media, ``summary.png`` into ``out_dir``; returns the page's path.

    Args:
        rows: at least one. media: the same moment of every series at some operating points; may be empty.
        meta: ``command`` (str) and ``versions`` (name -> version) have places of their own, everything else is listed.

    Raises:
        InputError: no rows, or ``out_dir`` cannot be written.
    """
    if not rows:
        raise InputError("there is nothing to report: no transmission was run; give at least one system, SNR and CBR")
    out_dir = Path(out_dir)
    page = render(rows, media, meta)
    path = out_dir / "report.html"
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the report to {out_dir}: {error.strerror or error}; choose another folder") from error
    write_json(out_dir / "rows.json", rows)
    if media:
        import cv2

        cv2.imwrite(str(out_dir / "summary.png"), contact_sheet(media)[..., ::-1])
    return path


def render(rows: Sequence[Row], media: Sequence[Media], meta: Mapping[str, Any]) -> str:
    """The page as one string of HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    names = series_names(rows)
    series = list(dict.fromkeys(names[id(row)] for row in rows))
    look = styles([*series, *(item.series for item in media)])
    charts = quality_charts(rows)
    others = [chart for chart in (stream_chart(rows), frame_chart(rows)) if chart]
    found = findings(rows)
    lead = next((finding.text for finding in found if finding.kind == "crossover"), found[0].text if found else "")
    environment = Environment(
        loader=PackageLoader("semcast.studies"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    deltas = bd_table(rows)
    listed = {key: value for key, value in meta.items() if key not in ("command", "versions")}
    return environment.get_template("report.html.j2").render(
        headline=headline(rows),
        title=_unbroken(headline(rows), series),
        lead=lead,
        facts=_facts(rows),
        series=[{"name": name, "colour": look[name].colour, "kind": _kind(rows, names, name)} for name in series],
        scenes=_scenes(rows, media, series, {name: style.colour for name, style in look.items()}),
        colours=scale_colours(),
        gain=common_gain(media),
        charts=charts,
        others=others,
        figures={chart.key: [figure for _, figure in chart.views] for chart in [*charts, *others]},
        max_choices=MAX_CHOICES,
        findings=[finding for finding in found if finding.text != lead],
        look={name: style.colour for name, style in look.items()},
        table=_table(rows, names),
        bd=[line for line in deltas if line.rate.value is not None or line.psnr.value is not None],
        no_bd=_without_delta(deltas),
        footnotes=_footnotes(rows, names),
        conventions=_conventions(rows, names),
        measures=_measures(rows),
        command=str(meta.get("command", "")),
        versions={str(key): str(value) for key, value in dict(meta.get("versions") or {}).items()},
        listed={str(key).replace("_", " "): str(value) for key, value in listed.items()},
        plotly=Markup(get_plotlyjs()) if charts or others else "",
    )


def _listed(items: Sequence[str], most: int = 6) -> str:
    if len(items) > most:
        items = [*items[: most - 1], f"{len(items) - most + 1} more"]
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def _numbers(values: Sequence[float | None], unit: str = "") -> str:
    known = sorted({value for value in values if value is not None})
    if not known:
        return ""
    text = [f"{value:g}" for value in known]
    return f"{_listed(text)}{unit}" if len(text) <= 5 else f"{text[0]} to {text[-1]}{unit} ({len(text)} values)"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def headline(rows: Sequence[Row]) -> str:
    """One sentence on what was compared: systems, clip, channel, SNR, channel use, seeds."""
    names = list(dict.fromkeys(series_names(rows).values()))
    clips = list(dict.fromkeys(row.clip for row in rows))
    channels = list(dict.fromkeys(row.channel for row in rows))
    what = clips[0] if len(clips) == 1 else _plural(len(clips), "clip")
    text = f"{_listed(names)} {'send' if len(names) > 1 else 'sends'} {what} over {_listed(channels)}"
    snrs = _numbers([row.snr_db for row in rows], " dB SNR")
    return f"{text} at {snrs}." if snrs else f"{text}."


def _unbroken(text: str, names: Sequence[str]) -> Markup:
    """The text as HTML in which no name is broken at its hyphens."""
    from markupsafe import Markup, escape

    pattern = "|".join(re.escape(str(escape(name))) for name in sorted(names, key=len, reverse=True))
    return Markup(re.sub(pattern, lambda found: f'<span class="whole">{found[0]}</span>', str(escape(text))))


def _facts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Small labelled facts under the headline; what is not known is left out."""
    sizes = list(dict.fromkeys(f"{row.width}×{row.height}" for row in rows))
    lengths = sorted({row.frames for row in rows})
    span = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
    seeds = len({row.seed for row in rows})
    facts = [
        ("clip", _listed(list(dict.fromkeys(row.clip for row in rows)), 4)),
        ("frames", f"{span} of {_listed(sizes, 3)}"),
        ("channel", _listed(list(dict.fromkeys(row.channel for row in rows)), 4)),
        ("channel uses per source value", _numbers([row.cbr_key for row in rows])),
        ("condition", _listed(list(dict.fromkeys(row.condition for row in rows if row.condition)) or [""], 4)),
        ("physical layer", _listed(list(dict.fromkeys(row.phy for row in rows if row.phy)) or [""], 4)),
        ("goal", _listed(list(dict.fromkeys(row.goal for row in rows)), 4)),
        ("noise", _plural(seeds, "seed")),
    ]
    return [(label, value) for label, value in facts if value]


def _kind(rows: Sequence[Row], names: Mapping[int, str], name: str) -> str:
    mine = [row for row in rows if names[id(row)] == name]
    analog = any(row.analog_uses for row in mine)
    digital = any(row.digital_uses and not row.is_analog for row in mine)
    if analog and digital:
        return "hybrid"
    return "analog" if analog else "digital" if digital else ""


def _snr(value: float | None) -> str:
    return "no noise" if value is None else f"{value:g} dB"


def _scenes(
    rows: Sequence[Row], media: Sequence[Media], series: Sequence[str], colours: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One scene per clip, channel, CBR and frame; in it a row per SNR (lowest, middle, highest) and a cell per series."""
    gain = common_gain(media)
    grouped: dict[tuple[str, str, float | None, int], list[Media]] = defaultdict(list)
    for item in media:
        grouped[item.clip, item.channel, item.cbr, item.frame].append(item)
    first = min(grouped, key=lambda key: abs(math.log((key[2] or 1) / (main_cbr(rows) or 1))), default=None)
    scenes: list[dict[str, Any]] = []
    for (clip, channel, cbr, frame), members in grouped.items():
        at = {(item.series, item.snr_db): item for item in members}
        shown = [name for name in series if any(item.series == name for item in members)]
        shown += [name for name in dict.fromkeys(item.series for item in members) if name not in shown]
        lines = []
        for snr_db in lowest_middle_highest([item.snr_db for item in members]):
            present = [at[name, snr_db] for name in shown if (name, snr_db) in at]
            best = max(item.psnr_rgb_db for item in present)
            cells = [
                {
                    "series": item.series,
                    "colour": colours[item.series],
                    "picture": data_uri(item.received),
                    "error": data_uri(error_map(item, gain), quality=80),
                    "psnr": f"{item.psnr_rgb_db:.1f}",
                    "best": len(present) > 1 and item.psnr_rgb_db >= best - 0.05,
                    "note": item.note,
                }
                if item is not None
                else {"series": name, "colour": colours[name], "picture": ""}
                for name in shown
                for item in [at.get((name, snr_db))]
            ]
            lines.append({"snr": _snr(snr_db), "cells": cells})
        extra = [f"CBR {cbr:g}" if cbr is not None else "", channel, clip, f"frame {frame}"]
        original = data_uri(members[0].original)
        label = ", ".join(part for part in extra if part)
        start = (clip, channel, cbr, frame) == first
        scenes.append({"label": label, "original": original, "shown": shown, "lines": lines, "first": start})
    return scenes


def _table(rows: Sequence[Row], names: Mapping[int, str]) -> dict[str, Any]:
    """Heads and cells of the table; columns without any value are left out, the best of each operating point is marked."""

    def value(row: Row, key: str) -> Any:
        if key == "loss":
            return row.loss_share
        got = getattr(row, key)
        return got / 1000 if key == "goodput_bps" and got is not None else got

    kept = [column for column in COLUMNS if any(value(row, column[0]) is not None for row in rows)]
    same = [key for key in ("clip", "channel", "csi_snr_db", "seed") if len({value(row, key) for row in rows}) == 1]
    if all(row.csi_snr_db in (None, row.snr_db) for row in rows):
        same.append("csi_snr_db")
    kept = [column for column in kept if column[0] not in same]
    best: dict[tuple[Any, ...], float] = {}
    for row in rows:
        for key, _, digits, better, _ in kept:
            got = value(row, key)
            if better and got is not None:
                spot = (key, row.clip, row.channel, row.snr_db, row.cbr_key, row.seed)
                pick = max if better == "higher" else min
                best[spot] = pick(best.get(spot, round(got, digits)), round(got, digits))
    lines = []
    for row in rows:
        cells = [{"text": names[id(row)], "sort": names[id(row)], "best": False, "name": True}]
        for key, _, digits, better, _ in kept:
            got = value(row, key)
            spot = (key, row.clip, row.channel, row.snr_db, row.cbr_key, row.seed)
            top = bool(better) and got is not None and round(got, digits) == best[spot] and len(set(names.values())) > 1
            cells.append({"text": _cell(row, key, got, digits), "sort": "" if got is None else got, "best": top, "name": False})
        lines.append(cells)
    heads = [{"text": "system", "hint": "system and preset"}]
    heads += [{"text": head, "hint": hint} for _, head, _, _, hint in kept]
    return {"heads": heads, "lines": lines}


def _cell(row: Row, key: str, got: Any, digits: int) -> str:
    if got is None:
        return "–"
    if key == "loss":
        return f"{row.packets_lost or 0} / {row.packets_sent}"
    if isinstance(got, str):
        return got
    if key in ("snr_db", "csi_snr_db", "cbr_target"):
        return f"{got:g}"
    return f"{got:,.{digits}f}" if math.isfinite(got) else "–"


def _footnotes(rows: Sequence[Row], names: Mapping[int, str]) -> list[tuple[str, str]]:
    """(series, sentence); sentences that differ in their numbers only are merged."""
    merged: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        for note in row.footnotes:
            merged[names[id(row)], re.sub(r"\d[\d.,]*", "#", note)].append(note)
        if row.assumed_free_uses and not row.footnotes:
            merged[names[id(row)], "free"].append(f"{row.assumed_free_uses} channel uses are assumed free and not in the CBR")
    out = []
    for (name, _), notes in merged.items():
        different = len(set(notes))
        out.append((name, notes[0] + (f" (and alike in {different - 1} more)" if different > 1 else "")))
    return out


def _without_delta(deltas: Sequence[BdRow]) -> list[str]:
    """One sentence per reason for the pairs that have no delta at all."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for line in deltas:
        if line.rate.value is None and line.psnr.value is None:
            reasons[line.rate.reason].append(f"{line.series} at {line.where}")
    return [f"No delta for {_listed(pairs)}: {reason}." for reason, pairs in reasons.items()]


def _conventions(rows: Sequence[Row], names: Mapping[int, str]) -> dict[str, Any]:
    """The rate of every series as the papers count it: first row of each series."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(names[id(row)], row)
    keys = list(dict.fromkeys(key for row in first.values() for key in row.paper_conventions))
    lines = []
    for name, row in first.items():
        if row.paper_conventions:
            got = [row.paper_conventions.get(key) for key in keys]
            lines.append((name, ["–" if v is None else v if isinstance(v, str) else f"{v:.4g}" for v in got]))
    return {"heads": [key.replace("_", " ") for key in keys], "lines": lines}


def _measures(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(name, convention) of the metrics that occur in the rows."""
    from semcast.metrics import METRICS

    return [
        (name, METRICS.get(name).convention) for name in METRICS if any(getattr(row, name, None) is not None for row in rows)
    ]
