"""One flat row per system, clip, channel, SNR, CBR and seed: what every table, plot and page is made from."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from semcast.errors import InputError


def _finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: such numbers become None, at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class Row(BaseModel):
    """The outcome of one transmission; a value that does not apply is None.

    Units are in the names. ``cbr`` is channel uses per 3HWT source values of the original clip, one use being one complex
    symbol; ``snr_db`` is Es/N0 per complex symbol. ``streams`` maps a stream's name to its channel uses, ``per_frame`` a
    metric's name to one value per frame. ``maps`` is where a transmitter that sends segmentation maps had them from.
    ``paper_conventions`` holds the rate as the paper counts it, by name; ``footnotes`` say what was free. ``miou_clean`` is
    what the task model reaches on the source itself; ``label_counts`` holds pixels per class, ``hits``, ``truth`` and
    ``predicted``, of ``received`` and ``clean``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: str
    preset: str | None = None
    weights: str | None = None
    clip: str
    frames: int
    height: int
    width: int
    goal: str = "watch"
    channel: str
    condition: str | None = None
    maps: str | None = None
    phy: str | None = None
    mcs: str | None = None
    gop: int | None = None
    snr_db: float | None = None
    csi_snr_db: float | None = None
    cbr_target: float | None = None
    cbr: float | None = None
    channel_uses: int | None = None
    analog_uses: int | None = None
    digital_uses: int | None = None
    feedback_uses: int | None = None
    info_bits: int | None = None
    packets_sent: int | None = None
    packets_lost: int | None = None
    assumed_free_uses: int | None = None
    airtime_s: float | None = None
    energy_j: float | None = None
    psnr_rgb_db: float | None = None
    psnr_y_db: float | None = None
    ssim_rgb: float | None = None
    ms_ssim_rgb: float | None = None
    ms_ssim_rgb_db: float | None = None
    lpips_squeeze: float | None = None
    vmaf: float | None = None
    miou: float | None = None
    pixel_accuracy: float | None = None
    miou_clean: float | None = None
    pixel_accuracy_clean: float | None = None
    top1: float | None = None
    papr_db: float | None = None
    goodput_bps: float | None = None
    outage: float | None = None
    concealed_frames: int | None = None
    encode_fps: float | None = None
    decode_fps: float | None = None
    seed: int | None = None
    version: str | None = None
    streams: dict[str, int] = {}
    footnotes: list[str] = []
    paper_conventions: dict[str, float | int | str | None] = {}
    per_frame: dict[str, list[float | None]] = {}
    label_counts: dict[str, dict[str, list[int]]] = {}

    @field_validator("*", mode="before")
    @classmethod
    def _drop_non_finite(cls, value: Any) -> Any:
        return _finite(value)

    @property
    def name(self) -> str:
        """``system``, or ``system:preset`` where the preset says more than the default."""
        return self.system if self.preset in (None, "", "default") else f"{self.system}:{self.preset}"

    @property
    def cbr_key(self) -> float | None:
        """The CBR that was asked for, or the measured one, to three significant digits, where none was."""
        value = self.cbr if self.cbr_target is None else self.cbr_target
        return None if value is None else float(f"{value:.3g}")

    @property
    def loss_share(self) -> float | None:
        """Lost packets over sent packets, or None for a system that sends none."""
        return (self.packets_lost or 0) / self.packets_sent if self.packets_sent else None

    @property
    def is_analog(self) -> bool:
        """Whether most channel uses carry analog symbols."""
        return (self.analog_uses or 0) > (self.digital_uses or 0)


KEYS: tuple[str, ...] = tuple(Row.model_fields)


def dump(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows as plain JSON values, keys in the order of :class:`Row`."""
    return [row.model_dump(mode="json") for row in rows]


def _encode(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


def write_json(path: Path | str, rows: Sequence[Row]) -> Path:
    """Write rows as one JSON list, one row per line; returns the path.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path)
    text = "[\n" + ",\n".join(_encode(row) for row in dump(rows)) + "\n]\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write rows to {path}: {error.strerror or error}; choose another file") from error
    return path


def append_jsonl(path: Path | str, row: Row) -> None:
    """Append one row as one line, so that a run that is stopped keeps what it has.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(_encode(dump([row])[0]) + "\n")
    except OSError as error:
        raise InputError(f"cannot write rows to {path}: {error.strerror or error}; choose another file") from error


def read_rows(path: Path | str) -> list[Row]:
    """Read rows from a ``.json`` list or a ``.jsonl`` file.

    Raises:
        InputError: no such file, not JSON, not rows; the message names the row and the key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a text file"
        raise InputError(f"cannot read rows from {path}: {reason}; give a file that --json wrote") from error
    items: Any
    try:
        if text.lstrip().startswith("["):
            items = json.loads(text)
        else:
            items = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (json.JSONDecodeError, RecursionError) as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "nested too deep"
        raise InputError(f"{path} is not JSON ({where}); give a file that --json wrote") from error
    return [_validate(item, f"row {number} of {path}") for number, item in enumerate(items, 1)]


def _validate(item: Any, where: str) -> Row:
    if not isinstance(item, dict):
        raise InputError(f"{where} is no object of keys and values; give a file that --json wrote")
    try:
        return Row.model_validate(item)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else "this version does not know it"
            raise InputError(f"{where} has the unknown key {key!r}; {hint}") from error
        raise InputError(f"{where}, key {key!r}: {first['msg'].lower()}; correct it or write the rows again") from error
