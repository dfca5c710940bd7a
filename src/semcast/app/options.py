"""Text from the command line to values; every refusal is one sentence that names the option."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from semcast.errors import InputError, SpecError


def numbers(text: str, option: str, *, example: str = "0,5,10") -> list[float]:
    """``"0,5,10"`` -> [0.0, 5.0, 10.0], ``"1/12"`` being a number too; duplicates are dropped, the order stays.

    Raises:
        SpecError: anything else.
    """
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([^/\s]+)\s*(?:/\s*([^/\s]+)\s*)?", part)
        try:
            if match is None:
                raise ValueError(part)
            value = float(match[1]) / (float(match[2]) if match[2] else 1.0)
            if not math.isfinite(value):
                raise ValueError(part)
        except (ValueError, ZeroDivisionError):
            raise SpecError(f"{option} {text!r} is not a list of numbers; write for example {option} {example}") from None
        found.append(value)
    return list(dict.fromkeys(found))


def one_number(text: str, option: str, command: str, *, example: str = "10") -> float:
    """A single number; raises SpecError."""
    found = numbers(text, option, example=example)
    if len(found) > 1:
        raise SpecError(
            f"{option} {text!r} names {len(found)} values, `semcast {command}` takes one; `semcast compare` takes lists"
        )
    return found[0]


def names(text: str, option: str) -> list[str]:
    """``"a,b:preset"`` -> names in order, without duplicates; raises SpecError where there is none."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise SpecError(f"{option} names nothing; write for example {option} h265-ldpc,deepjscc:small")
    return list(dict.fromkeys(found))


def frame_size(text: str | None) -> tuple[int, int] | None:
    """``"416x240"`` -> (416, 240); raises SpecError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text.strip())
    if match is None:
        raise SpecError(f"--size {text!r} is not a size; write width x height, for example --size 416x240")
    return int(match[1]), int(match[2])


def check_choice(value: str, option: str, choices: tuple[str, ...]) -> str:
    """``value`` where it is one of ``choices``; raises SpecError."""
    if value not in choices:
        raise SpecError(f"{option} {value!r} is not one of {', '.join(choices)}")
    return value


def check_output(path: Path | None, option: str, *, folder: bool = False, source: str = "") -> None:
    """Raise InputError now rather than after an hour, where a file or folder cannot be written or would replace the input."""
    if path is None:
        return
    if source and path.exists() and Path(source).exists() and path.samefile(source):
        raise InputError(f"{option} {path} is the input itself; choose another name")
    if not folder and path.is_dir():
        raise InputError(f"{option} {path} is a folder; name a file")
    if folder and path.exists() and not path.is_dir():
        raise InputError(f"{option} {path} is a file; name a folder")
    above = path.absolute()
    while not above.exists():
        above = above.parent
    if not os.access(above, os.W_OK) or (above != path.absolute() and not above.is_dir()):
        raise InputError(f"{option} {path} cannot be written: {above} is not a folder that allows it; choose another place")


@dataclass(frozen=True)
class Common:
    """What the commands that send share, as typed; see ``semcast.app.cli`` for the meaning of each."""

    source: str
    channels: tuple[str, ...]
    snr: str
    cbr: str
    csi_snr: float | None
    goal: str
    condition: str
    phy: str
    harq: int
    mcs: str | None
    bandwidth_hz: float
    power_w: float
    max_frames: int | None
    stills: bool
    size: str | None
    fps: float | None
    seed: int
    metrics: str | None
    precision: str
    threads: int | None
    assumed_free: bool
    maps: str
    command: str
