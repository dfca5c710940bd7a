"""Charts of the report, as plain Plotly figures: what is drawn is decided here, how it looks in light and dark by the page."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from semcast.studies.rows import Row
from semcast.studies.stats import BdDelta, Point, bd_psnr, bd_rate, main_cbr, points, series_names

# Okabe and Ito's colours, then Tol's: told apart under the common colour deficiencies, and legible on white and on near-black.
COLOURS = {
    "h265-ldpc": "#0072B2",
    "h264-ldpc": "#56B4E9",
    "av1-ldpc": "#AA4499",
    "mjpeg-ldpc": "#999933",
    "jpeg-ldpc": "#999933",
    "jpeg2000-ldpc": "#44AA99",
    "hevc-intra-ldpc": "#117733",
    "deepjscc": "#D55E00",
    "linear-jscc": "#E69F00",
    "freeze": "#888888",
    "dvst": "#009E73",
}
SPARE = ("#CC79A7", "#44AA99", "#AA4499", "#009E73", "#999933", "#56B4E9", "#DDAA33", "#0072B2")
STREAM_COLOURS = ("#5B7FA6", "#E0A458", "#7FB08A", "#B08BB3", "#9AA5B1", "#C9B458", "#6FB1B8", "#C98474")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star")
LABELS = {
    "psnr_rgb_db": "PSNR, RGB (dB)",
    "ms_ssim_rgb_db": "MS-SSIM, RGB (dB)",
    "miou": "mIoU",
    "top1": "top-1 accuracy",
    "cbr": "channel uses per source value (CBR)",
    "snr_db": "SNR, E<sub>s</sub>/N<sub>0</sub> (dB)",
}


@dataclass(frozen=True)
class Style:
    """How a series is drawn everywhere on the page."""

    colour: str
    dash: str
    symbol: str


@dataclass(frozen=True)
class Chart:
    """One chart with a choice of views.

    Attributes:
        key: unique, for the page. title, caption: shown around it. views: (label of the choice, Plotly figure).
        start: index of the view shown first.
    """

    key: str
    title: str
    caption: str
    views: list[tuple[str, dict[str, Any]]]
    start: int = 0


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A colour fixed per system, whatever else is compared; its presets, conditions and capacity bound differ by dash."""
    names = list(dict.fromkeys(names))
    families = [_family(name) for name in names]
    taken: dict[str, str] = {family: COLOURS[family] for family in families if family in COLOURS}
    for family in sorted(set(families) - set(taken)):
        first = zlib.crc32(family.encode()) % len(SPARE)
        ring = [SPARE[(first + i) % len(SPARE)] for i in range(len(SPARE))]
        taken[family] = next((colour for colour in ring if colour not in taken.values()), ring[0])
    order = sorted(set(families), key=lambda family: (list(COLOURS).index(family) if family in COLOURS else 99, family))
    count: dict[str, int] = defaultdict(int)
    out = {}
    for name, family in zip(names, families, strict=True):
        out[name] = Style(taken[family], DASHES[count[family] % len(DASHES)], SYMBOLS[order.index(family) % len(SYMBOLS)])
        count[family] += 1
    return out


def _family(name: str) -> str:
    base = name.split(" (")[0].split(":")[0]
    return base.removesuffix("-capacity") + "-ldpc" if base.endswith("-capacity") else base


def _rgba(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def _r(value: float | None, digits: int = 4) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def _figure(data: list[dict[str, Any]], x: str, y: str, **axes: dict[str, Any]) -> dict[str, Any]:
    layout: dict[str, Any] = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    for axis, extra in axes.items():
        layout[axis] |= extra
    return {"data": data, "layout": layout}


def _line(name: str, style: Style, xs: Sequence[float], found: Sequence[Point], unit: str) -> list[dict[str, Any]]:
    """A line with markers and, where several seeds stand behind all points, the band of their confidence intervals."""
    intervals = [point.quality for point in found if point.quality is not None]
    traces: list[dict[str, Any]] = []
    if all(interval.low is not None for interval in intervals) and len(xs) > 1:
        edges = [(x, interval.low) for x, interval in zip(xs, intervals, strict=True)]
        edges += [(x, interval.high) for x, interval in reversed(list(zip(xs, intervals, strict=True)))]
        band = {"x": [x for x, _ in edges], "y": [_r(y) for _, y in edges], "fill": "toself", "mode": "lines"}
        shade = {"fillcolor": _rgba(style.colour, 0.16), "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        traces.append({"type": "scatter", "name": name, "legendgroup": name, **band, **shade})
    notes = []
    for point, interval in zip(found, intervals, strict=True):
        spread = "" if interval.low is None or interval.high is None else f" ± {(interval.high - interval.low) / 2:.2f}"
        lost, sent = (sum(getattr(row, key) or 0 for row in point.rows) for key in ("packets_lost", "packets_sent"))
        mcs = ", ".join(sorted({row.mcs for row in point.rows if row.mcs}))
        parts = [f"<b>{interval.mean:.2f}{spread}</b> {unit}", f"CBR {point.cbr:.4f}" if point.cbr is not None else ""]
        parts += [f"{lost} of {sent} packets lost" if sent else "", mcs]
        notes.append("<br>".join(part for part in parts if part))
    traces.append(
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "legendgroup": name,
            "x": list(xs),
            "y": [_r(interval.mean) for interval in intervals],
            "text": notes,
            "hovertemplate": "%{text}<extra>" + name + "</extra>",
            "line": {"color": style.colour, "dash": style.dash, "width": 2.5},
            "marker": {"color": style.colour, "symbol": style.symbol, "size": 8},
        }
    )
    return traces


def _where(channels: set[str], channel: str, rest: str) -> str:
    return f"{channel}, {rest}" if len(channels) > 1 else rest


def _curves(
    rows: Sequence[Row], metric: str, x_of: Callable[[Point], float | None], view_of: Callable[[Point], float | None], fmt: str
) -> list[tuple[str, list[dict[str, Any]], bool]]:
    """(label, traces, whether shown first) per channel and value of ``view_of``; those without a curve are left out."""
    look = styles(series_names(rows).values())
    grouped: dict[tuple[str, float | None], dict[str, list[tuple[float, Point]]]] = defaultdict(lambda: defaultdict(list))
    for point in points(rows, metric):
        x = x_of(point)
        if point.quality is not None and x is not None:
            grouped[point.channel, view_of(point)][point.series].append((x, point))
    channels = {channel for channel, _ in grouped}
    first = main_cbr(rows)
    unit = "dB" if metric.endswith("_db") else ""
    out = []
    for (channel, value), by_series in sorted(grouped.items(), key=lambda item: (item[0][0], _low(item[0][1]))):
        longest = max(len({x for x, _ in found}) for found in by_series.values())
        if longest < 2:
            continue
        traces: list[dict[str, Any]] = []
        for name, found in by_series.items():
            found.sort(key=lambda pair: pair[0])
            traces += _line(name, look[name], [x for x, _ in found], [point for _, point in found], unit)
        label = fmt.format(value) if value is not None else "all"
        out.append((_where(channels, channel, label), traces, value == first))
    return out


def _low(value: float | None) -> float:
    return -math.inf if value is None else value


def _chart(
    key: str, metric: str, title: str, caption: str, x: str, views: list[tuple[str, list[dict[str, Any]], bool]]
) -> Chart:
    start = next((i for i, view in enumerate(views) if view[2]), len(views) // 2)
    figures = [(label, _figure(traces, x, LABELS[metric])) for label, traces, _ in views]
    return Chart(key, title, caption, figures, start)


def quality_charts(rows: Sequence[Row]) -> list[Chart]:
    """PSNR and MS-SSIM (dB), or what else was measured, against SNR (a view per CBR) and against CBR (a view per SNR)."""
    seeds = len({row.seed for row in rows})
    clips = len({row.clip for row in rows})
    caption = f"Mean over {clips} clips. " if clips > 1 else ""
    caption += f"Bands: 95 % confidence of the mean over {seeds} noise seeds." if seeds > 1 else "One noise seed."
    out = []
    for metric in ("psnr_rgb_db", "ms_ssim_rgb_db", "miou", "top1"):
        short = LABELS[metric].split(",")[0].split(" (")[0]
        by_snr = _curves(rows, metric, lambda p: p.snr_db, lambda p: p.cbr_key, "CBR {:g}")
        out.append(_chart(f"{metric}-snr", metric, f"{short} against SNR", caption, LABELS["snr_db"], by_snr))
        by_cbr = _curves(rows, metric, lambda p: _r(p.cbr), lambda p: p.snr_db, "{:g} dB")
        out.append(_chart(f"{metric}-cbr", metric, f"{short} against channel use", caption, LABELS["cbr"], by_cbr))
    return [chart for chart in out if chart.views]


def _views(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by operating point, labelled; SNR first, since that is what one looks for."""
    channels = {row.channel for row in rows}
    cbrs = {row.cbr_key for row in rows}
    keyed = sorted({(row.channel, _low(row.snr_db), _low(row.cbr_key)) for row in rows})
    out: dict[str, list[Row]] = {}
    for channel, snr_db, cbr in keyed:
        here = [row for row in rows if (row.channel, _low(row.snr_db), _low(row.cbr_key)) == (channel, snr_db, cbr)]
        parts = [
            f"{snr_db:g} dB" if math.isfinite(snr_db) else "",
            f"CBR {cbr:g}" if len(cbrs) > 1 and math.isfinite(cbr) else "",
        ]
        out[_where(channels, channel, ", ".join(part for part in parts if part) or "all")] = here
    return out


def _start(rows: Sequence[Row], views: Sequence[tuple[str, dict[str, Any]]]) -> int:
    """The middle one of the views at the page's first CBR."""
    cbr = main_cbr(rows)
    fitting = [i for i, (label, _) in enumerate(views) if "CBR" not in label or label.endswith(f"CBR {cbr:g}")]
    return fitting[len(fitting) // 2] if fitting else 0


def stream_chart(rows: Sequence[Row]) -> Chart | None:
    """Where the channel uses went: stacked bars of mean uses per frame and stream, a view per operating point."""
    names = series_names(rows)
    views = []
    streams = list(dict.fromkeys(stream for row in rows for stream in row.streams))
    palette = {stream: STREAM_COLOURS[i % len(STREAM_COLOURS)] for i, stream in enumerate(streams)}
    for label, here in _views([row for row in rows if row.streams]).items():
        series = list(dict.fromkeys(names[id(row)] for row in here))
        data = []
        for stream in streams:
            means = []
            for name in series:
                mine = [row for row in here if names[id(row)] == name]
                means.append(sum(row.streams.get(stream, 0) for row in mine) / max(sum(row.frames for row in mine), 1))
            if any(means):
                bar = {"type": "bar", "orientation": "h", "name": stream, "x": [_r(mean) for mean in means], "y": series}
                hover = {"hovertemplate": "%{x:,.0f} channel uses per frame<extra>" + stream + "</extra>"}
                data.append(bar | hover | {"marker": {"color": palette[stream]}})
        figure = _figure(
            data, "channel uses per frame", "", yaxis={"autorange": "reversed", "automargin": True, "type": "category"}
        )
        figure["layout"] |= {"barmode": "stack", "bargap": 0.5, "legend": {"traceorder": "normal"}}
        figure["height"] = max(360, 110 + 46 * len(series))
        views.append((label, figure))
    caption = "Everything the receiver learns is charged: headers, side information, pilots, retransmissions."
    return Chart("streams", "Where the channel uses went", caption, views, _start(rows, views)) if views else None


def frame_chart(rows: Sequence[Row], metric: str = "psnr_rgb_db") -> Chart | None:
    """Quality of every frame of the first clip under the first seed, a view per operating point."""
    with_frames = [row for row in rows if len(row.per_frame.get(metric, ())) > 1]
    if not with_frames:
        return None
    clip = with_frames[0].clip
    with_frames = [row for row in with_frames if row.clip == clip]
    names = series_names(rows)
    look = styles(names.values())
    views = []
    for label, here in _views(with_frames).items():
        first: dict[str, Row] = {}
        for row in here:
            first.setdefault(names[id(row)], row)
        data = []
        for name, row in first.items():
            values = row.per_frame[metric]
            stride = math.ceil(len(values) / 600)
            style = look[name]
            trace = {"type": "scatter", "mode": "lines", "name": name, "x": list(range(0, len(values), stride))}
            hover = {"hovertemplate": "frame %{x}: <b>%{y:.2f}</b> dB<extra>" + name + "</extra>"}
            line = {"line": {"color": style.colour, "dash": style.dash, "width": 2}}
            data.append(trace | hover | line | {"y": [_r(value) for value in values[::stride]]})
        views.append((label, _figure(data, "frame", LABELS[metric])))
    caption = f"Clip {clip}, one noise seed. A dip is a lost packet or a hard scene; a sawtooth is the intra period."
    return Chart("frames", "Quality of every frame", caption, views, _start(rows, views))


@dataclass(frozen=True)
class BdRow:
    """Bjontegaard deltas of ``series`` against ``anchor`` at one channel and SNR."""

    where: str
    anchor: str
    series: str
    rate: BdDelta
    psnr: BdDelta


def bd_table(rows: Sequence[Row]) -> list[BdRow]:
    """Deltas against the first digital series (else the first), wherever two series have at least four CBR points."""
    grouped: dict[tuple[str, float | None], dict[str, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for point in points(rows):
        if point.quality is not None and point.cbr:
            grouped[point.channel, point.snr_db][point.series].append(point)
    channels = {channel for channel, _ in grouped}
    out = []
    for (channel, snr_db), by_series in sorted(grouped.items(), key=lambda item: (item[0][0], _low(item[0][1]))):
        long = {name: found for name, found in by_series.items() if len(found) >= 4}
        if len(long) < 2:
            continue
        anchor = next(
            (name for name, found in long.items() if not found[0].rows[0].is_analog and name != "freeze"), next(iter(long))
        )
        curves = {name: [(p.cbr or 0.0, p.quality.mean) for p in found if p.quality] for name, found in long.items()}
        where = _where(channels, channel, f"{snr_db:g} dB" if snr_db is not None else "all")
        out += [
            BdRow(where, anchor, name, bd_rate(curves[anchor], curve), bd_psnr(curves[anchor], curve))
            for name, curve in curves.items()
            if name != anchor
        ]
    return out
