"""A training schedule is data: stages, one after the other, read from YAML."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from semcast.errors import InputError


class Stage(BaseModel):
    """One stage of training.

    Attributes:
        name: for the log. steps: optimiser steps. batch, size, frames: examples, side of the crops in pixels, frames of a crop.
        aspect: width of the crops over their height, which ``size`` is then; other than 1, crops stay upright.
        lr, lr_end, warmup: learning rate, its end after a cosine, and steps of linear warm-up.
        snr_db: range that an SNR is drawn from, per example, in multiples of ``snr_step_db`` where that is given: a link that
            has to adapt packets afresh for every SNR takes its time. cbr: rates that one is drawn from, per batch.
        channels: channel specifications and the shares of batches that they get. goal: what the loss serves.
        options: what only this system's loss reads.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    steps: int = Field(gt=0)
    batch: int = Field(8, gt=0)
    size: int = Field(128, ge=64)
    frames: int = Field(1, gt=0)
    aspect: float = Field(1.0, ge=1, le=4)
    mosaic: int = Field(1, gt=0)
    min_scale: float = Field(0.5, gt=0, le=1)
    lr: float = Field(5e-4, gt=0)
    lr_end: float = Field(1e-5, ge=0)
    warmup: int = Field(200, ge=0)
    snr_db: tuple[float, float] = (-2.0, 20.0)
    snr_step_db: float = Field(0.0, ge=0)
    cbr: tuple[float, ...] = (1 / 12,)
    channels: dict[str, float] = {"awgn": 1.0}
    goal: str = "watch"
    options: dict[str, Any] = {}


class Schedule(BaseModel):
    """Everything that decides a training run besides the data.

    Attributes:
        system, preset: what is trained. start: ``"system:preset"`` whose shipped weights training begins with, or a folder of
            a checkpoint; "" for fresh ones. seed: of weights, crops and noise. parts: sub-folders of the data folder
            (``val[:50]`` takes the first 50 files). every: keep every n-th frame of a clip. labelled: the data folder is in
            CamVid's layout, and crops come with their labels. ema: decay of the moving average of the weights that is kept.
            grad_clip: gradient norm. validate_every: steps between validations on clips held out, at ``validation_cbr`` and
            10 dB. save_every: steps between checkpoints.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: str
    preset: str
    start: str = ""
    seed: int = 0
    parts: tuple[str, ...] = ("video",)
    every: int = Field(4, gt=0)
    labelled: bool = False
    ema: float = Field(0.999, ge=0, lt=1)
    grad_clip: float = Field(1.0, gt=0)
    validate_every: int = Field(250, gt=0)
    validation_cbr: float = Field(1 / 12, gt=0)
    save_every: int = Field(100, gt=0)
    stages: tuple[Stage, ...]

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(stage.steps for stage in self.stages)


def load_schedule(system: str, preset: str, path: str | Path | None = None) -> Schedule:
    """Read the schedule that comes with the package for a preset, or a file of one's own.

    ``like: NAME`` in it takes all that it does not say from another one that comes with the package, ``NAME.yaml``.

    Raises:
        InputError: no such schedule, or a key or value in it that is wrong; the nearest known key is named.
    """
    folder = resources.files("semcast.training") / "schedules"
    if path is None:
        entry = folder / f"{system}-{preset}.yaml"
        if not entry.is_file():
            raise InputError(f"there is no training schedule for {system}:{preset}; pass one with --schedule FILE")
        text, where = entry.read_text(), entry.name
    else:
        if not Path(path).is_file():
            raise InputError(f"no such schedule: {path}")
        text, where = Path(path).read_text(), str(path)
    try:
        said = yaml.safe_load(text)
        if isinstance(said, dict) and "like" in said:
            model = folder / f"{said.pop('like')}.yaml"
            if not model.is_file():
                raise InputError(f"the schedule {where} is like {model.name}, which does not come with the package")
            said = yaml.safe_load(model.read_text()) | said
        return Schedule.model_validate(said)
    except (ValidationError, yaml.YAMLError) as error:
        raise InputError(f"the schedule {where} is wrong: {_say(error)}") from error


def _say(error: ValidationError | yaml.YAMLError) -> str:
    if not isinstance(error, ValidationError):
        return str(error).replace("\n", " ")
    first = error.errors()[0]
    at = ".".join(str(part) for part in first["loc"])
    known = [*Schedule.model_fields, *Stage.model_fields]
    near = difflib.get_close_matches(str(first["loc"][-1]) if first["loc"] else "", known, n=1)
    hint = f"; did you mean {near[0]!r}?" if first["type"] == "extra_forbidden" and near else ""
    return f"{at}: {first['msg'].lower()}{hint}"
