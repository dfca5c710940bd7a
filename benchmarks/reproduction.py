"""Reproduction cards: what a paper states (`cards/*.yaml`), our numbers, and a status that follows from them by a rule.

The rule: every figure has checks, each a number with a bound for "reproduced" and one for "partly". A figure is *reproduced*
where all its checks meet the first, *not* where none meets the second, *partly* in between or where a check could not be
measured, and *not attempted* where no row speaks of it. Nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import yaml
from figure_numbers import figures
from gosvae_numbers import gosvae_numbers
from pydantic import BaseModel, ConfigDict
from sematt_numbers import sematt_numbers
from study_numbers import (
    agreement,
    agreement_table,
    at_point,
    average,
    bd_by_clip,
    bd_table,
    both_fps,
    drift_gap,
    drift_table,
    fall,
    gaps,
    interpolate,
    mean_curve,
    mean_delta,
    metric,
    minus,
    motion_share,
    number,
    percent_below_zero,
    positions_table,
    quality_table,
    rate_error,
    rate_table,
    refused_table,
    select,
    share,
    speed_table,
    stream_table,
    table,
)
from study_rows import part_rows, read_list

from semcast.studies.rows import Row
from semcast.studies.stats import BdDelta, bd_rate

RULE = (
    "Status follows from numbers: a figure is *reproduced* where all its checks meet their first bound, *not* where none meets "
    "the second, *partly* in between or where a check could not be measured, *not attempted* where nothing was measured."
)
PSNR, MS_SSIM = metric("psnr_rgb_db"), metric("ms_ssim_rgb_db")
SMALL, STRUCTURAL = "dvst:small", "dvst:ms-ssim"
H264, H265, STILLS = "h264-ldpc", "h265-ldpc", "hevc-intra-ldpc"
Values = dict[str, float | None]
Tables = dict[str, str]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Check(_Data):
    """A number that decides: ``value`` names it; ``full`` and ``partly`` are bounds in the direction of ``better``."""

    what: str
    value: str
    better: Literal["higher", "lower"]
    full: float
    partly: float | None = None
    unit: str = ""

    def mark(self, values: Mapping[str, float | None]) -> int | None:
        """2 within the first bound, 1 within the second, else 0; None where it was not measured."""
        found = values[self.value]
        if found is None:
            return None
        sign = 1 if self.better == "higher" else -1
        if sign * (found - self.full) >= 0:
            return 2
        return int(self.partly is not None and sign * (found - self.partly) >= 0)

    def bounds(self) -> str:
        """Both bounds in words."""
        sign = "≥" if self.better == "higher" else "≤"
        return f"{sign} {self.full:g}; " + ("–" if self.partly is None else f"{sign} {self.partly:g}")

    def outcome(self, values: Mapping[str, float | None]) -> str:
        """As an aim: the first bound is what to reach for, the second what must hold, where there is one."""
        missed = "not reached" if self.partly is None else "missed"
        mark = self.mark(values)
        return "not measured" if mark is None else (missed, "held", "held" if self.full == self.partly else "reached")[mark]


class Figure(_Data):
    """One published figure: part of the study, the paper's statement in our words, checks, what differs, names of tables."""

    name: str
    part: str = ""
    statement: str
    why: str
    checks: tuple[Check, ...] = ()
    tables: tuple[str, ...] = ()


class Card(_Data):
    """One paper. ``aims`` are what we ask beyond it; ``tables`` maps a heading to the name of a table; ``study`` is the command
    that measures a part."""

    title: str
    intro: str
    figures: tuple[Figure, ...]
    aims: tuple[Check, ...] = ()
    tables: dict[str, str] = {}
    study: str = "python benchmarks/dvst_study.py {part} --out out/dvst"


def status(marks: Sequence[int | None]) -> str:
    """ "reproduced", "partly", "not" or "not attempted", by the rule."""
    known = [mark for mark in marks if mark is not None]
    if not known:
        return "not attempted"
    if max(known) == 0:
        return "not"
    return "reproduced" if min(known) == 2 and len(known) == len(marks) else "partly"


def explain(figure: Figure, values: Mapping[str, float | None]) -> str:
    """Which checks decide how, and what differs."""
    marks = [check.mark(values) for check in figure.checks]
    if status(marks) == "not attempted":
        return figure.why
    words = {2: "within the first bound", 1: "within the second bound only", 0: "missed", None: "not measured"}
    said = "; ".join(f"{check.what}: {words[mark]}" for check, mark in zip(figure.checks, marks, strict=True))
    return f"{said}. {figure.why}"


def weights_note(rows: Sequence[Row]) -> str:
    """What stands behind the rows: weights, version, clips."""
    if not rows:
        return "No rows were found: nothing was measured yet."
    named = sorted({f"`{row.name}` {row.weights}" for row in rows if row.weights})
    versions, clips = sorted({row.version for row in rows if row.version}), list(dict.fromkeys(row.clip for row in rows))
    said = f"{len(clips)} pictures or clips" if len(clips) > 8 else f"Clips: {', '.join(clips)}"
    mixed = len({name.split()[0] for name in named}) < len(named)
    warning = " **Rows of several weights stand beside each other: measure again.**" if mixed else ""
    return f"Weights: {', '.join(named) or 'none'}. Semcast {', '.join(versions)}. {said}.{warning}"


def render(card: Card, values: Mapping[str, float | None], tables: Mapping[str, str], note: str) -> str:
    """A card as Markdown."""
    states = {f.name: status([check.mark(values) for check in f.checks]) for f in card.figures}
    parts = [f"# {card.title}", f"{card.intro} {note}", RULE, table(["figure", "status"], [list(s) for s in states.items()])]
    for figure in card.figures:
        parts += [f"## {figure.name}", f"**The paper:** {figure.statement}"]
        if figure.part:
            parts.append(f"```sh\n{card.study.format(part=figure.part)}\n```")
        lines = [[c.what, number(values[c.value], c.unit), c.bounds()] for c in figure.checks]
        parts.append(table(["check", "ours", "bounds: reproduced; partly"], lines))
        parts.append(f"**Status: {states[figure.name]}.** {explain(figure, values)}")
        parts += [tables[name] for name in figure.tables]
    if card.aims:
        lines = [[c.what, number(values[c.value], c.unit), c.bounds(), c.outcome(values)] for c in card.aims]
        parts += ["## Beyond the paper", table(["what", "ours", "bounds: reach for; must hold", "outcome"], lines)]
    for heading, name in card.tables.items():
        if tables[name]:
            parts += [f"### {heading}", tables[name]]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def over(rows: Sequence[Row], test: str, anchor: str, snr_db: float, told: float | None = None) -> float | None:
    """PSNR of one system over another at an SNR, both told the same."""
    return minus(at_point(rows, test, snr_db, told), at_point(rows, anchor, snr_db, told))


def largest(values: Sequence[float | None]) -> float | None:
    """The largest of what is known, or None."""
    return max((value for value in values if value is not None), default=None)


def dvst_numbers(folder: Path) -> tuple[Values, Tables, str]:
    """Values, tables and note that `cards/dvst.yaml` names."""
    rd, snr, drift, rates = (part_rows(folder, part) for part in ("rd", "snr", "drift", "rates"))
    speeds, agreed = read_list(folder / "speed.json"), read_list(folder / "agree.json")
    values: Values = {}
    tables: Tables = {}
    for condition in ("dvst-paper", "strong"):
        rows = [row for row in rd if row.condition == condition]
        for anchor in (H264, H265):
            for key, quality in (("psnr", PSNR), ("ms_ssim", MS_SSIM)):
                deltas = bd_by_clip(rows, anchor, SMALL, quality)
                values[f"{condition} {anchor} {key}"] = mean_delta(deltas)
                values[f"{condition} {anchor} {key} clips"] = percent_below_zero(deltas)
            trained = bd_by_clip(rows, anchor, STRUCTURAL, MS_SSIM)
            values[f"{condition} {anchor} trained"] = mean_delta(trained)
            values[f"{condition} {anchor} trained clips"] = percent_below_zero(trained)
        tables[f"{condition} bd"] = bd_table(rows, SMALL, (H264, H265))
        tables[f"{condition} trained bd"] = bd_table(rows, STRUCTURAL, (H264, H265))
        for key in ("psnr_rgb_db", "ms_ssim_rgb_db"):
            tables[f"{condition} {key}"] = quality_table(rows, key, "cbr_target")
    rows = [row for row in rd if row.condition == "dvst-paper" and row.name != STRUCTURAL]
    ours, rival = (bd_by_clip(rows, H264, name, PSNR) for name in (SMALL, H265))
    ahead = {clip: BdDelta(minus(ours[clip].value, rival[clip].value), 0) for clip in ours if clip in rival}
    values["saves more"] = percent_below_zero(ahead)
    lines = [[clip, number(ours[clip].value, digits=1), number(rival[clip].value, digits=1)] for clip in ahead]
    tables["savings"] = table(["clip", "`dvst`, %", "`h265-ldpc`, %"], lines)
    one = [row for row in rows if row.clip.startswith("BasketballPass")]
    values["fall"] = average([fall(row) for row in select(one, SMALL)])
    values["one clip"] = mean_delta(bd_by_clip(one, H265, SMALL, PSNR))
    values["motion falls"] = minus(*motion_share(select(rows, SMALL)))
    tables |= {"positions": positions_table(one), "streams": stream_table(select(rd, SMALL))}
    for channel in ("awgn", "rayleigh"):
        rows = [row for row in snr if row.channel == channel]
        values[f"{channel} gap"] = average(gaps(rows, SMALL, H265, -2, 14))
        values[f"{channel} low gap"] = average(gaps(rows, SMALL, H265, -2, 6))
        values[f"{channel} told 10 at 2"] = at_point(rows, SMALL, 2.0, 10.0)
        values[f"{channel} told 10 at 2 gap"] = over(rows, SMALL, H265, 2.0, 10.0)
        values[f"{channel} told 10 gains"] = minus(at_point(rows, SMALL, 14.0, 10.0), at_point(rows, SMALL, 10.0))
        values[f"{channel} gap at 2"] = over(rows, SMALL, H265, 2.0)
        found = [at_point(rows, SMALL, at) for at in sorted({r.snr_db for r in select(rows, SMALL) if r.snr_db is not None})]
        drops = [minus(a, b) for a, b in pairwise(found)]
        values[f"{channel} largest drop"] = largest(drops)
        tables[f"{channel} snr"] = quality_table(rows, "psnr_rgb_db", "snr_db")
    values["rate error"] = largest([None if (e := rate_error(row)) is None else 100 * e for row in rates])
    shares = [share(row) for row in rates if (row.cbr_target or 0) >= 0.01]
    values["side share"] = largest([None if s is None else 100 * s for s in shares])
    long = [row for row in drift if (row.gop or 0) >= 64]
    values["drift grows"] = largest([minus(drift_gap(row, 48, 64), drift_gap(row, 16, 32)) for row in long])
    values["agree cbr"], values["agree psnr"] = agreement(agreed)
    for precision in ("bf16", "fp32"):
        mine = [e for e in speeds if (e["precision"], e["size"]) == (precision, "416x240")]
        values[f"{precision} fps"] = min((both_fps(e) for e in mine), default=None)
    values["1080p ms"] = average(
        [1000 / e["encode_fps"] for e in speeds if (e["size"], e["precision"]) == ("1920x1080", "fp32")]
    )
    tables |= {"rates": rate_table(rates), "refused": refused_table(folder, "rates"), "drift": drift_table(drift)}
    tables |= {"speed": speed_table(speeds), "agree": agreement_table(agreed)}
    more_values, more_tables, more_rows = figures(folder)
    return values | more_values, tables | more_tables, weights_note([*rd, *snr, *drift, *rates, *more_rows])


def ntscc_numbers(folder: Path) -> tuple[Values, Tables, str]:
    """Values, tables and note that `cards/ntscc.yaml` names; Kodak counts as one curve, the mean over pictures."""
    rows = part_rows(folder, "kodak")
    at10 = [row for row in rows if row.snr_db == 10]
    top = max((row.cbr_target or 0 for row in rows), default=0)
    full = [row for row in rows if row.cbr_target == top]
    ours = mean_curve(at10, "ntscc:small", "psnr_rgb_db")
    values: Values = {
        "psnr at 0.037": minus(interpolate(ours, 0.037), 31.7),
        "psnr at 0.054": minus(interpolate(ours, 0.054), 33.5),
        "deepjscc": over(full, "ntscc:small", "deepjscc", 10.0),
    }
    for key, column in (("psnr", "psnr_rgb_db"), ("ms_ssim", "ms_ssim_rgb_db")):
        values[f"bd {key}"] = bd_rate(mean_curve(at10, STILLS, column), mean_curve(at10, "ntscc:small", column)).value
    trained = mean_curve(at10, "ntscc:ms-ssim", "ms_ssim_rgb_db")
    values["bd trained"] = bd_rate(mean_curve(at10, STILLS, "ms_ssim_rgb_db"), trained).value
    for snr_db in (2, 10, 18):
        values[f"gap at {snr_db}"] = over(full, "ntscc:small", STILLS, snr_db)
    over_linear = []
    for target in sorted({row.cbr_target for row in at10 if row.cbr_target and row.cbr_target > 0.03}):
        here = [row for row in at10 if row.cbr_target == target]
        over_linear.append(over(here, "ntscc:small", "linear-jscc", 10.0))
    values["linear"] = min((value for value in over_linear if value is not None), default=None)
    tables = {
        "psnr": quality_table(at10, "psnr_rgb_db", "cbr_target"),
        "ms_ssim": quality_table(at10, "ms_ssim_rgb_db", "cbr_target"),
        "snr": quality_table(full, "psnr_rgb_db", "snr_db"),
    }
    return values, tables, weights_note(rows)


NUMBERS = {
    "dvst": dvst_numbers,
    "ntscc": ntscc_numbers,
    "gos-vae": gosvae_numbers,
    "sematt-jscc": sematt_numbers,
}


def make_card(name: str, folder: Path) -> str:
    """A card's Markdown, from what was measured into a folder."""
    text = (Path(__file__).parent / "cards" / f"{name}.yaml").read_text(encoding="utf-8")
    return render(Card.model_validate(yaml.safe_load(text)), *NUMBERS[name](folder))


def cards(folder: Path) -> dict[str, str]:
    """Name of a card -> its Markdown, from the rows that the study of NTSCC and DVST keeps in a folder."""
    return {name: make_card(name, folder) for name in ("dvst", "ntscc")}
