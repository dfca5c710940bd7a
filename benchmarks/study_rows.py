"""The rows of a study on disk: one JSON list per part, so that a study goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semcast.channels import make_channel
from semcast.studies.rows import Row, read_rows, write_json
from semcast.studies.session import Loaded, Radio, session_format
from semcast.video.clip import Clip

ROW_PARTS = ("kodak", "rd", "snr", "drift", "rates")


def read_list(path: Path) -> list[dict[str, Any]]:
    """A JSON list of objects; [] where there is no file."""
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return entries


def write_list(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """One JSON list, one object per line."""
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False, allow_nan=False) for entry in entries)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def part_rows(folder: Path, part: str) -> list[Row]:
    """Rows of one part, or []."""
    path = folder / f"{part}.json"
    return read_rows(path) if path.is_file() else []


def identity(row: Row) -> tuple[Any, ...]:
    """What makes a row the same measurement as another."""
    where = (row.system, row.preset, row.weights, row.condition, row.gop if row.weights else None)
    return (
        *where,
        row.clip,
        row.frames,
        row.height,
        row.width,
        row.channel,
        row.snr_db,
        row.csi_snr_db,
        row.cbr_target,
        row.seed,
        row.goal,
        row.maps,
        bool(row.assumed_free_uses),
    )


class Shelf:
    """The rows of one part on disk, and those of other parts, which need not be measured again.

    Args:
        folder: of all parts. part: the name of this one's file.
    """

    def __init__(self, folder: Path, part: str) -> None:
        self.path, self.refused_path = folder / f"{part}.json", folder / f"{part}-left-out.json"
        self.rows = read_rows(self.path) if self.path.is_file() else []
        self.refused: list[dict[str, Any]] = read_list(self.refused_path)
        self.others = {identity(row): row for name in ROW_PARTS for row in part_rows(folder, name)}

    def has(self, wanted: Row) -> bool:
        """Whether the measurement is there; one of another part is taken over."""
        key = identity(wanted)
        if key not in {identity(row) for row in self.rows} and key in self.others:
            self.add(self.others[key])
        return key in self.others or key in {identity(row) for row in self.rows}

    def add(self, row: Row) -> None:
        """Keep a row; one that other weights gave at the same point goes."""
        point = identity(row.model_copy(update={"weights": "any"}))
        self.rows = [old for old in self.rows if identity(old.model_copy(update={"weights": "any"})) != point] + [row]
        write_json(self.path, self.rows)

    def refuse(self, wanted: Row, reason: str) -> None:
        """Keep a point that could not be served."""
        keys = ("system", "preset", "condition", "clip", "channel", "snr_db", "cbr_target")
        entry = {key: getattr(wanted, key) for key in keys} | {"reason": reason}
        if entry not in self.refused:
            self.refused.append(entry)
            write_list(self.refused_path, self.refused)


def expected(
    loaded: Loaded, clip: Clip, frames: int, radio: Radio, seed: int, *, goal: str = "watch", assumed_free: bool = False
) -> Row:
    """The row that a transmission will give, without its outcome."""
    fmt = session_format(loaded, clip.height, clip.width, clip.fps, cbr=radio.cbr, goal=goal, seed=seed)
    told = radio.snr_db if radio.csi_snr_db is None else radio.csi_snr_db
    row = Row(
        system=fmt.system, preset=fmt.preset, weights=fmt.weights or None, clip=clip.name, frames=frames, height=fmt.height,
        width=fmt.width, channel=make_channel(radio.channel).spec, snr_db=radio.snr_db, csi_snr_db=told, cbr_target=radio.cbr,
        seed=seed, condition=loaded.condition if loaded.spec.kind == "digital" else None, goal=goal,
        maps=loaded.system.maps or None, assumed_free_uses=int(assumed_free and bool(loaded.system.free_streams)),
    )  # fmt: skip
    return row.model_copy(update=grouping(loaded))


def grouping(loaded: Loaded) -> dict[str, Any]:
    """Condition and frames of a group, for rows of a learned system of groups."""
    if loaded.spec.kind == "digital" or loaded.spec.picture:
        return {}
    return {"condition": loaded.condition, "gop": loaded.system.frames_per_step}
