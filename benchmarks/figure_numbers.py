"""Numbers and tables for figs. 12 to 15 and section IV-B of DVST, from the rows of `dvst_figures.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from study_numbers import at_point, average, minus, number, quality_table, select, table
from study_rows import part_rows, read_list

from semcast.studies.rows import Row

SMALL = "dvst:small"
CLOSED, TRAINED = ("no-motion", "constant-rate"), ("residual", "no-gop")
"""Ablations that run on the weights of `small`, and those that were trained."""
BESIDE = "trained"
"""Folder with the rows of the latter, and of a `small` that was trained as they were."""
QUALITIES = ("ms_ssim_rgb_db", "psnr_rgb_db")
PICTURE = "../images/dvst-pictures.png"
"""Beside the card."""


def loss(rows: Sequence[Row], preset: str, key: str = "ms_ssim_rgb_db", target: float | None = None) -> float | None:
    """What a preset lacks of `dvst:small`, mean over clips and CBRs that both were measured at, or at one CBR."""
    whole = {(row.clip, row.cbr_target): getattr(row, key) for row in select(rows, SMALL)}
    rest = [row for row in select(rows, f"dvst:{preset}") if target in (None, row.cbr_target)]
    return average([minus(whole.get((row.clip, row.cbr_target)), getattr(row, key)) for row in rest])


def over_rates(rows: Sequence[Row], test: str, anchor: str, key: str) -> float | None:
    """``test`` over ``anchor``, mean over the CBRs that both served."""
    at = {(row.clip, row.cbr_target): getattr(row, key) for row in select(rows, anchor)}
    return average([minus(getattr(row, key), at.get((row.clip, row.cbr_target))) for row in select(rows, test)])


def labels_table(rows: Sequence[Row]) -> str:
    """mIoU: a line per system, a column per CBR, and on the source itself."""
    targets = sorted({row.cbr_target for row in rows if row.cbr_target})
    lines = []
    for name in dict.fromkeys(row.name for row in rows):
        cells = [average([row.miou for row in select(rows, name, cbr_target=target)]) for target in targets]
        lines.append([f"`{name}`", *(number(cell, digits=3) for cell in cells)])
    clean = average([row.miou_clean for row in rows])
    lines += [["the source", *(number(clean, digits=3) for _ in targets)]] if rows else []
    return table(["mIoU", *(f"{target:g}" for target in targets)], lines)


def time_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Milliseconds a frame, and over those of H.265."""
    lines = []
    for entry in entries:
        ratio = time_ratio(entries, entry["system"], "h265-ldpc")
        cells = [str(entry[key]) for key in ("size", "frames", "precision", "threads")]
        cells.append(number(entry["encode_ms"], digits=1))
        lines.append([f"`{entry['system']}`", *cells, number(ratio)])
    return table(["system", "size", "frames", "arithmetic", "threads", "ms a frame", "over `h265-ldpc`"], lines)


def time_ratio(entries: Sequence[Mapping[str, Any]], test: str, anchor: str) -> float | None:
    """Encoding time of one system over that of another, of one run."""
    ms = {entry["system"]: float(entry["encode_ms"]) for entry in entries}
    return ms[test] / ms[anchor] if test in ms and anchor in ms else None


def figures(folder: Path) -> tuple[dict[str, float | None], dict[str, str], list[Row]]:
    """Values and tables that `cards/dvst.yaml` names, and the rows behind them."""
    ablations, segment, pictures = (part_rows(folder, part) for part in ("ablations", "segment", "pictures"))
    trained = part_rows(folder / BESIDE, "ablations")
    timed = read_list(folder / "time.json")
    targets = sorted({row.cbr_target for row in ablations if row.cbr_target})
    ends = (targets[0], targets[-1]) if targets else (None, None)
    values: dict[str, float | None] = {f"{preset} loss": loss(ablations, preset) for preset in CLOSED}
    values |= {f"{preset} loss": loss(trained, preset) for preset in TRAINED}
    low, high = (loss(ablations, "constant-rate", target=end) if end else None for end in ends)
    values |= {"constant-rate loss high": high, "constant-rate loss grows": minus(high, low)}
    values["segment tuned miou"] = over_rates(segment, "dvst:segment", SMALL, "miou")
    for anchor in ("h264-ldpc", "h265-ldpc"):
        for key, column in (("miou", "miou"), ("psnr", "psnr_rgb_db")):
            values[f"segment trained {anchor} {key}"] = over_rates(segment, "dvst:segment", anchor, column)
            values[f"segment {anchor} {key}"] = over_rates(segment, SMALL, anchor, column)
        values[f"time {anchor}"] = time_ratio(timed, SMALL, anchor)
        for snr_db in (2, 10):
            pair = [at_point(pictures, name, float(snr_db)) for name in (SMALL, anchor)]
            values[f"picture {anchor} {snr_db}"] = minus(*pair)
    values |= {"time dcvc": time_ratio(timed, SMALL, "dcvc-ldpc"), "time paper": time_ratio(timed, "dvst:paper", "h265-ldpc")}
    both = (("ablations", ablations), ("trained ablations", trained))
    tables = {f"{name} {key}": quality_table(rows, key, "cbr_target") for key in QUALITIES for name, rows in both}
    tables |= {"segment miou": labels_table(segment), "segment psnr": quality_table(segment, "psnr_rgb_db", "cbr_target")}
    tables |= {"time": time_table(timed), "pictures": quality_table(pictures, "psnr_rgb_db", "snr_db")}
    shown = "One moment of a rendered scene, cropped: the original, DVST, H.264 and H.265"
    tables["picture"] = f"![{shown}]({PICTURE})" if pictures else ""
    return values, tables, [*ablations, *segment, *pictures]
