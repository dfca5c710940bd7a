"""What the reproduction card of SemAttJSCC says: values and tables from the rows of `sematt_study.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from study_numbers import average, minus, number, table
from study_rows import part_rows, read_list

from semcast.studies.rows import Row
from semcast.studies.stats import mean_interval, pooled

SEMATT, DYNAMIC = "sematt-jscc", "dynamicjscc"
RIVALS = ("jpeg2000-ldpc", "hevc-intra-ldpc")
MEASURES = (("psnr_rgb_db", "PSNR, dB", 2), ("ssim_rgb", "SSIM", 4), ("lpips_squeeze", "LPIPS", 4), ("miou", "mIoU, %", 2))
LOWER, HIGHER = 1 / 12, 1 / 6


def together(rows: Sequence[Row], key: str) -> float | None:
    """A measure over all pictures; the mIoU from their pixels together, in percent."""
    if key == "miou":
        found = pooled(rows, key)
        return None if found is None else 100 * found
    return average([getattr(row, key) for row in rows])


def label(row: Row) -> str:
    """System, where its maps are from, and who pays for them."""
    name = f"`{row.system if row.preset in ('small', 'default', None) else row.name}`"
    if not row.maps:
        return name
    return f"{name}, {row.maps} maps {'free' if row.assumed_free_uses else 'counted'}"


def pick(rows: Sequence[Row], system: str, snr_db: float, cbr: float = LOWER, *, free: bool = False) -> list[Row]:
    """Rows of one operating point; ``free`` says whether maps were not charged, which is one and the same without maps."""
    here = [row for row in rows if row.system == system and row.snr_db == snr_db and row.cbr_target is not None]
    near = [row for row in here if abs((row.cbr_target or 0) / cbr - 1) < 0.01]
    return [row for row in near if not row.maps or bool(row.assumed_free_uses) == free]


def snrs(rows: Sequence[Row]) -> list[float]:
    """In rising order."""
    return sorted({row.snr_db for row in rows if row.snr_db is not None})


def measures_table(rows: Sequence[Row], cbr: float = LOWER) -> str:
    """Means over pictures: a line per measure and series, a column per SNR; and the mean CBR that was charged."""
    rows = [row for row in rows if row.cbr_target and abs(row.cbr_target / cbr - 1) < 0.01]
    at = snrs(rows)
    lines = []
    for key, name, digits in (*MEASURES, ("cbr", "CBR charged", 4)):
        for series in dict.fromkeys(label(row) for row in rows):
            mine = [row for row in rows if label(row) == series]
            cells = [number(together([r for r in mine if r.snr_db == snr], key), digits=digits) for snr in at]
            lines.append([name, series, *cells])
    return table(["", "", *(f"{snr:g} dB" for snr in at)], lines)


def gain_percent(rows: Sequence[Row], key: str, snr_db: float, cbr: float = LOWER, *, free: bool) -> float | None:
    """Of SemAttJSCC over DynamicJSCC, in percent of the latter; of the mIoU, in points."""
    ours, theirs = (together(pick(rows, name, snr_db, cbr, free=free), key) for name in (SEMATT, DYNAMIC))
    if ours is None or not theirs:
        return None
    return ours - theirs if key == "miou" else 100 * (ours / theirs - 1)


def best(values: Sequence[float | None], which: Callable[[list[float]], float]) -> float | None:
    """The largest or smallest of what is known."""
    known = [value for value in values if value is not None]
    return which(known) if known else None


def seed_table(trainings: Sequence[Sequence[Row]]) -> tuple[str, dict[str, float | None]]:
    """Gains of SemAttJSCC over trainings of both, means with 95 % intervals; and the means by name."""
    lines: list[list[str]] = []
    values: dict[str, float | None] = {}
    at = snrs([row for rows in trainings for row in rows])
    for free in (True, False):
        for key, name, _ in MEASURES:
            cells = []
            for snr in at:
                found = [gain_percent(rows, key, snr, free=free) for rows in trainings]
                gains = [gain for gain in found if gain is not None]
                values[f"{key} {'free' if free else 'paid'} at {snr:g}"] = average(gains)
                interval = mean_interval(gains) if gains else None
                half = "" if interval is None or interval.low is None else f" ± {interval.mean - interval.low:.2f}"
                cells.append("–" if interval is None else f"{interval.mean:+.2f}{half}")
            unit = "points" if key == "miou" else "%"
            lines.append([name.partition(",")[0] + f", {unit}", "free" if free else "counted", *cells])
    return table(["gain over `dynamicjscc`", "maps", *(f"{snr:g} dB" for snr in at)], lines), values


def coder_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Bytes of a map by coder, grid and source."""
    lines = []
    for e in entries:
        sizes = [number(e[name], digits=0) for name in ("range", "png", "webp")]
        lines.append([f"{e['cell']} x {e['cell']}", e["maps"], *sizes, str(e["pictures"])])
    return table(["cell", "maps", "range coder, bytes", "PNG", "WebP", "pictures"], lines)


def complexity_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Table I as measured."""
    lines = [
        [f"`{e['system']}:{e['preset']}`", *(number(v) for v in (e["gflops"], e["parameters"] / 1e6, e["kmac_per_pixel"]))]
        for e in entries
    ]
    return table(["", "GFLOPs at 2048x1024", "parameters, M", "kMAC per pixel"], lines)


Point = tuple[str, str, float, float]


def synthesis_points(entries: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Where maps are from, how groups lie, SNR and CBR of every operating point."""
    return list(dict.fromkeys((e["maps"], e["groups"], e["snr_db"], e["cbr_target"]) for e in entries))


def synthesis_entries(entries: Sequence[Mapping[str, Any]], point: Point) -> dict[str, dict[str, Any]]:
    """Of one operating point: by series, then by distance from the key frame."""
    found: dict[str, dict[str, Any]] = {}
    for e in entries:
        if (e["maps"], e["groups"], e["snr_db"], e["cbr_target"]) == point:
            found.setdefault(e["series"], {})[e["distance"]] = e
    return found


def synthesis_values(entries: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """What synthesis is worth between key frames, the least over all operating points; LPIPS in percent, mIoU in points."""
    values: dict[str, float | None] = {}
    pairs = [("synthesis", rival) for rival in ("freeze", "plain warp", "without maps", "key frames only")]
    pairs += [("synthesis and motion", "freeze"), ("synthesis and motion", "synthesis")]
    for ours, theirs in pairs:
        lpips, miou = [], []
        for point in synthesis_points(entries):
            found = synthesis_entries(entries, point)
            a, b = (found.get(name, {}).get("between") for name in (ours, theirs))
            if a and b:
                lpips.append(100 * (a["lpips"] / b["lpips"] - 1))
                miou.append(100 * (a["miou"] - b["miou"]))
        values[f"{ours}, LPIPS against {theirs}"] = best([*lpips], max)
        values[f"{ours}, mIoU against {theirs}"] = best([*miou], min)
    return values


def synthesis_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """A line per operating point and series: between key frames, then LPIPS by the distance from the key frame."""
    lines = []
    for point in synthesis_points(entries):
        maps, groups, snr_db, cbr = point
        here = synthesis_entries(entries, point)
        for name, found in here.items():
            whole, freeze = found["between"], here.get("freeze", {}).get("between")
            pairs = zip(whole["lpips_by_frame"], freeze["lpips_by_frame"], strict=True) if freeze else ()
            gains = [a - b for a, b in pairs]
            interval = mean_interval(gains) if gains and name != "freeze" else None
            half = "" if interval is None or interval.low is None else f" ± {interval.mean - interval.low:.4f}"
            lines.append([
                f"{maps}, {groups}, {snr_db:g} dB, 1/{1 / cbr:.0f}", name, number(whole["lpips"], digits=4),
                number(100 * whole["miou"]), number(whole["psnr_db"]),
                "–" if interval is None else f"{interval.mean:+.4f}{half}",
                *(number(found[str(place)]["lpips"], digits=4) for place in range(4)), number(1e3 * whole["cbr"], digits=3),
                str(whole["map_uses"]),
            ])  # fmt: skip
    columns = [
        "maps, groups, SNR, CBR",
        "",
        "LPIPS",
        "mIoU, %",
        "PSNR, dB",
        "LPIPS against freeze",
        *(f"LPIPS at {i}" for i in range(4)),
    ]
    return table([*columns, "CBR charged, 1e-3", "uses for maps"], lines)


def largest_fall(rows: Sequence[Row], key: str) -> float | None:
    """Of a measure from one SNR to the next lower one, over systems."""
    falls: list[float | None] = []
    for system in dict.fromkeys(row.system for row in rows):
        found = [together([r for r in rows if r.system == system and r.snr_db == snr], key) for snr in snrs(rows)]
        falls += [minus(b, a) for a, b in pairwise(found)]
    return best(falls, max)


def parts_of(folder: Path, kind: str) -> dict[str, list[Row]]:
    """Rows of the parts ``KIND-NAME``, by name; of those that have any."""
    names = [path.stem for path in sorted(folder.glob(f"{kind}-*.json")) if not path.stem.endswith("-left-out")]
    return {name.removeprefix(f"{kind}-"): rows for name in names if (rows := part_rows(folder, name))}


def sematt_numbers(folder: Path) -> tuple[dict[str, float | None], dict[str, str], str]:
    """Values, tables and note that `cards/sematt-jscc.yaml` names."""
    import reproduction

    rows, maps, digital, ablation = (part_rows(folder, part) for part in ("jscc", "maps", "digital", "ablation"))
    cliffs, seeds = parts_of(folder, "cliff"), parts_of(folder, "seeds")
    values: dict[str, float | None] = {}
    for free in (True, False):
        who = "free" if free else "paid"
        for key, *_ in MEASURES:
            for cbr, rate in ((LOWER, "1/12"), (HIGHER, "1/6")):
                gains = [gain_percent(rows, key, snr, cbr, free=free) for snr in snrs(rows)]
                values[f"{key} {who} {rate} most"] = best(gains, min if key == "lpips_squeeze" else max)
                values[f"{key} {who} {rate} at 0"] = gain_percent(rows, key, 0.0, cbr, free=free)
        values[f"miou {who} at 5"] = gain_percent(rows, "miou", 5.0, free=free)
    for rival in RIVALS:
        for key, *_ in MEASURES:
            ours, theirs = together(pick(rows, SEMATT, 0.0), key), together(pick(digital, rival, 0.0), key)
            share = None if ours is None or not theirs else 100 * (ours / theirs - 1)
            values[f"{key} against {rival}"] = minus(ours, theirs) if key == "miou" else share
    values["cliff"] = best([largest_fall(part, "psnr_rgb_db") for part in cliffs.values()], max)
    ours = [row for snr in snrs(rows) for row in pick(rows, SEMATT, snr)]
    values["graceful"] = largest_fall(ours, "psnr_rgb_db")
    table_1 = {f"{e['system']}:{e['preset']}": e for e in read_list(folder / "complexity.json")}
    for key in ("gflops", "parameters"):
        base = table_1.get("dynamicjscc:paper", {}).get(key)
        for name, short in (("sematt-jscc:paper", "sematt"), ("dynamicjscc:paper-convolutions", "convolutions")):
            found = table_1.get(name, {}).get(key)
            values[f"{key} {short}"] = 100 * (found / base - 1) if base and found else None
    seeded, of_seeds = seed_table(list(seeds.values()))
    values |= {f"seeds {name}": value for name, value in of_seeds.items()}
    for name in ("lpips_squeeze free at 0", "miou free at 5", "psnr_rgb_db free at 0"):
        values.setdefault(f"seeds {name}", None)
    entries = read_list(folder / "synthesis.json")
    values |= synthesis_values(entries)
    tables = {
        "1/12": measures_table([*rows, *ablation, *maps]),
        "1/6": measures_table(rows, HIGHER),
        "digital": measures_table([*(row for row in rows if not row.assumed_free_uses), *digital]),
        "seeds": seeded,
        "coders": coder_table(read_list(folder / "coders.json")),
        "complexity": complexity_table(list(table_1.values())),
        "synthesis": synthesis_table(entries),
    }
    parts = [f"{name}:\n\n{measures_table(part)}" for name, part in cliffs.items()]
    tables["cliffs"] = "\n\n".join(parts)
    return values, tables, reproduction.weights_note([*rows, *maps, *digital])
