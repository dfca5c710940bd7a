"""Several systems on the same clips, channels, SNRs, rates and noise: rows as they come, pictures of one moment, notes.

for every clip, channel, CBR, system, SNR, seed:  transmit_clip ─▶ Row ─▶ rows.jsonl
                                                         └──────▶ Moment of a few SNRs ─▶ report
"""

from __future__ import annotations

import importlib.metadata
import itertools
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from semcast.channels import make_channel
from semcast.errors import BudgetError, InputError
from semcast.studies.figures import Media, lowest_middle_highest
from semcast.studies.report import write_report
from semcast.studies.rows import Row, append_jsonl
from semcast.studies.session import Loaded, Moment, Precision, Radio, check_goal, transmit_clip
from semcast.studies.stats import series_names
from semcast.types import StepResult
from semcast.video.clip import Clip

PICTURED_CLIPS = 4
UNKNOWN_LENGTH_FRAME = 24  # pictured where only decoding would tell how long the clip is
PACKAGES = ("torch", "av", "sionna-no-rt", "numpy")


@dataclass(frozen=True)
class Plan:
    """What to compare.

    Attributes:
        systems: ready to use. clips: at least one. channels: specification strings. snrs_db, cbrs: lists to sweep.
        radio: everything else about the link. goal: what the receiver does. seeds: noise seeds; several give confidence
            intervals. metrics: names in ``METRICS``. precision: arithmetic of networks. assumed_free: as in ``transmit_clip``.
    """

    systems: Sequence[Loaded]
    clips: Sequence[Clip]
    channels: Sequence[str]
    snrs_db: Sequence[float]
    cbrs: Sequence[float]
    radio: Radio = field(default_factory=Radio)
    goal: str = "watch"
    seeds: Sequence[int] = (0,)
    metrics: Sequence[str] = ("psnr_rgb_db",)
    precision: Precision = "auto"
    assumed_free: bool = False

    def snrs_of(self, channel: str) -> list[float]:
        """SNRs to run over a channel: one is enough where there is no noise."""
        return list(self.snrs_db)[:1] if make_channel(channel).is_ideal else list(self.snrs_db)

    def points(self) -> Iterator[tuple[Clip, Loaded, Radio, int]]:
        """Every transmission: clip, system, link, noise seed; the systems of one operating point stand close together."""
        for clip, channel, cbr in itertools.product(self.clips, self.channels, self.cbrs):
            for loaded, snr_db, seed in itertools.product(self.systems, self.snrs_of(channel), self.seeds):
                yield clip, loaded, replace(self.radio, channel=channel, snr_db=snr_db, cbr=cbr), seed

    def __len__(self) -> int:
        per_clip = sum(len(self.snrs_of(channel)) for channel in self.channels)
        return len(self.clips) * per_clip * len(self.cbrs) * len(self.systems) * len(self.seeds)


class Comparison:
    """A plan on its way; what is there so far stays usable when it is interrupted.

    Args:
        plan: what to run. rows_file: gets every row as one line as soon as it is there; None for none.

    Attributes:
        rows: so far. notes: one sentence for every operating point that a system cannot serve.

    Raises:
        InputError: a system does not serve the goal; ``rows_file`` cannot be written.
    """

    def __init__(self, plan: Plan, rows_file: Path | None = None) -> None:
        self.plan, self.rows_file = plan, rows_file
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self._moments: list[tuple[Row, Moment]] = []
        for loaded in plan.systems:
            check_goal(loaded, plan.goal)
        if rows_file is not None:
            try:
                rows_file.parent.mkdir(parents=True, exist_ok=True)
                rows_file.write_text("")
            except OSError as error:
                raise InputError(f"cannot write to {rows_file}: {error.strerror or error}; choose another folder") from error

    def run(
        self,
        *,
        on_begin: Callable[[str], None] | None = None,
        on_step: Callable[[StepResult], None] | None = None,
        on_row: Callable[[Row | None], None] | None = None,
    ) -> None:
        """Run the plan.

        Args:
            on_begin: told in a few words what begins. on_step: told every turn of the loop. on_row: told every row, and None
                for an operating point that is left out.

        Raises:
            InputError: nothing of the plan was possible, or a clip is damaged.
        """
        plan = self.plan
        middle = {id(clip): UNKNOWN_LENGTH_FRAME if clip.n_frames is None else clip.n_frames // 2 for clip in plan.clips}
        pictured = {id(clip) for clip in plan.clips[:PICTURED_CLIPS]}
        for clip, loaded, radio, seed in plan.points():
            name = f"{loaded.system.name}:{loaded.system.preset}".removesuffix(":default")
            where = f"{clip.name} over {radio.channel} at {radio.snr_db:g} dB, CBR {radio.cbr:.4g}"
            if on_begin:
                on_begin(f"{name}, {where}")
            shown = seed == plan.seeds[0] and id(clip) in pictured
            shown = shown and radio.snr_db in lowest_middle_highest(plan.snrs_of(radio.channel))
            try:
                row, moment = transmit_clip(
                    loaded, clip, radio, goal=plan.goal, seed=seed, metrics=plan.metrics, precision=plan.precision,
                    assumed_free=plan.assumed_free, keep_frame=middle[id(clip)] if shown else None, on_step=on_step,
                )  # fmt: skip
            except InputError as error:
                # BudgetError, or a session header that does not come through: this point alone is impossible.
                if type(error) not in (BudgetError, InputError):
                    raise
                note = f"{name} is left out of {where}: {error}"
                if note not in self.notes:
                    self.notes.append(note)
                if on_row:
                    on_row(None)
                continue
            self.rows.append(row)
            if moment:
                self._moments.append((row, moment))
            if self.rows_file is not None:
                append_jsonl(self.rows_file, row)
            if on_row:
                on_row(row)
        if not self.rows:
            raise InputError(self.notes[0] if self.notes else "there is nothing to compare; give a system, an SNR and a CBR")

    def media(self) -> list[Media]:
        """The same moment of every series, named as the report names them."""
        names = series_names(self.rows)
        return [
            Media(
                names[id(row)],
                row.clip,
                row.channel,
                row.snr_db,
                row.cbr_key,
                moment.frame,
                moment.original,
                moment.received,
                moment.note,
            )
            for row, moment in self._moments
        ]

    def report(self, folder: Path, command: str, facts: dict[str, str]) -> Path:
        """Write ``report.html`` with what is there; returns its path. ``facts`` are listed under the command.

        Raises:
            InputError: no rows yet, or the folder cannot be written.
        """
        return write_report(folder, self.rows, self.media(), self.meta(command, facts))

    def meta(self, command: str, facts: dict[str, str]) -> dict[str, Any]:
        """What the report says about how it was made."""
        import semcast

        versions = {"semcast": semcast.__version__, "python": platform.python_version()}
        versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
        meta: dict[str, Any] = {"command": command, "versions": versions, **facts}
        if self.notes:
            meta["left_out"] = " ".join(f"{note}." for note in self.notes)
        return meta
