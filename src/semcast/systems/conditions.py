"""Test conditions as data: how the codecs of the digital chains are configured, validated, and found by name."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from semcast.errors import InputError, UnknownNameError

DEFAULT_CONDITION = "strong"
Option = str | int | float | bool


class CodecSettings(BaseModel):
    """How one codec is run under a condition.

    Attributes:
        preset: the encoder's own speed preset.
        cascade: quantiser offsets of the frames after the intra frame, repeated in a cycle; every fourth frame being finer
            than its neighbours is the low-delay cascade of the HEVC common test conditions. None: the encoder's own
            constant-quality mode.
        slices: slices (restart segments for Motion JPEG) per frame; each survives the loss of the others.
        options: further options of the encoder, under its own names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str = ""
    cascade: tuple[int, ...] | None = None
    slices: int = Field(default=1, ge=1, le=32)
    options: dict[str, Option] = {}


class Condition(BaseModel):
    """A test condition for every digital chain.

    Attributes:
        name, summary: for people. gop: frames per group of pictures, the first of which is intra coded; also frames per step.
        b_frames: bidirectional frames in a row at most; 0 keeps coding order equal to display order.
        lookahead: frames that the encoder may look ahead. psnr_tuned: no psycho-visual tricks, for figures that draw PSNR.
        packet_bytes: longest packet; larger units are cut. gather_bytes: small units share a packet up to this size.
        h264, h265, av1, mjpeg, jpeg, jpeg2000, hevc_intra: one entry per codec.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    summary: str
    gop: int = Field(ge=1, le=250)
    b_frames: int = Field(default=0, ge=0, le=16)
    lookahead: int = Field(default=0, ge=0, le=250)
    psnr_tuned: bool = True
    packet_bytes: int = Field(default=1400, ge=64, le=8000)
    gather_bytes: int = Field(default=400, ge=0, le=8000)
    h264: CodecSettings
    h265: CodecSettings
    av1: CodecSettings
    hevc_intra: CodecSettings
    mjpeg: CodecSettings = CodecSettings()
    jpeg: CodecSettings = CodecSettings()
    jpeg2000: CodecSettings = CodecSettings()

    @model_validator(mode="after")
    def _cascade_needs_display_order(self) -> Condition:
        for codec in ("h264", "h265"):
            if self.b_frames and getattr(self, codec).cascade is not None:
                raise ValueError(f"{codec}: a cascade of quantisers needs b_frames: 0")
        return self


def condition_names() -> list[str]:
    """Names of the conditions that come with the package."""
    folder = files("semcast.studies") / "conditions"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def parse_condition(text: str, where: str) -> Condition:
    """A condition from YAML text; ``where`` names it in messages.

    Raises:
        UnknownNameError: a key that does not exist; the nearest known one is named.
        InputError: a value that is missing or out of range.
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise InputError(f"{where}: a condition is a mapping of keys to values")
    try:
        return Condition.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        if first["type"] == "extra_forbidden":
            model = Condition if len(path) == 1 else CodecSettings
            raise UnknownNameError(f"key in {where}:", ".".join(path[-1:]), model.model_fields) from None
        raise InputError(f"{where}: {'.'.join(path) or 'condition'}: {first['msg']}") from None


@lru_cache(maxsize=32)
def load_condition(name: str = DEFAULT_CONDITION) -> Condition:
    """The condition called ``name`` ("" is the default); raises :class:`UnknownNameError`."""
    name = name or DEFAULT_CONDITION
    known = condition_names()
    if name not in known:
        raise UnknownNameError("condition", name, known)
    text = (files("semcast.studies") / "conditions" / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_condition(text, f"condition {name!r}")
