"""Channel specification strings: ``name[:flag|key=value[,key=value...]]``."""

from __future__ import annotations

from typing import Any

from semcast.channels import CHANNELS
from semcast.channels.base import Channel
from semcast.channels.options import describe_options, parse_options
from semcast.errors import SpecError


def make_channel(spec: str) -> Channel:
    """Build a channel from its specification string, e.g. ``"rayleigh:block,coherence=512"``.

    Raises:
        UnknownNameError: no such channel; the nearest name is offered.
        SpecError: an unknown option, a malformed or an impossible value.
    """
    name, colon, text = spec.strip().partition(":")
    name = name.strip().lower()
    if not name:
        raise SpecError(f"channel specification {spec!r} names no channel; an example is 'rayleigh:block'")
    kind = CHANNELS.get(name)
    if colon and not text.strip():
        raise SpecError(f"channel specification {spec!r} ends after the colon; an example is {kind.example!r}")
    return kind(parse_options(kind.Options, text.strip(), channel=name, example=kind.example))


def describe_channels() -> list[dict[str, Any]]:
    """Return one dict per registered channel: name, summary, example, and its options as of ``describe_options``."""
    rows = []
    for name in CHANNELS:
        kind = CHANNELS.get(name)
        rows.append({"name": name, "summary": kind.summary, "example": kind.example, "options": describe_options(kind.Options)})
    return rows
