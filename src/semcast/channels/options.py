"""Options of a channel as a frozen dataclass, to and from the text of a specification string."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from semcast.errors import SpecError, UnknownNameError


def option(
    default: Any,
    doc: str,
    *,
    unit: str = "",
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
) -> Any:
    """Return a dataclass field with what ``semcast channels`` prints and what validation needs.

    Args:
        default: value without the option; None where the option is off or follows from others.
        doc: one sentence. unit: "" where there is none.
        at_least, at_most, above: bounds of a number.
    """
    bounds = {"at_least": at_least, "at_most": at_most, "above": above}
    return dataclasses.field(default=default, metadata={"doc": doc, "unit": unit, **bounds})


@dataclass(frozen=True)
class ChannelOptions:
    """Options that every channel has; values are validated on construction and raise :class:`SpecError`."""

    clip_papr_db: float | None = option(
        None,
        "the power amplifier clips amplitudes above this peak-to-average power ratio",
        unit="dB",
        at_least=0.0,
        at_most=100.0,
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name), _choices(type(self), field.name))
        self.validate()

    def validate(self) -> None:
        """Check what concerns several options at once; raises :class:`SpecError`."""


Opt = TypeVar("Opt", bound=ChannelOptions)


def _hint(options: type[ChannelOptions], key: str) -> tuple[Any, bool]:
    """Return the type of an option without None, and whether None is allowed."""
    hint = typing.get_type_hints(options)[key]
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        rest = [a for a in typing.get_args(hint) if a is not type(None)]
        return rest[0], True
    return hint, False


def _choices(options: type[ChannelOptions], key: str) -> tuple[str, ...]:
    hint, _ = _hint(options, key)
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def _check(field: dataclasses.Field[Any], value: Any, choices: tuple[str, ...]) -> None:
    if value is None or isinstance(value, bool):
        return
    if choices and value not in choices:
        raise SpecError(f"{field.name}={value} is not one of {', '.join(choices)}")
    if isinstance(value, str):
        return
    unit = f" {field.metadata['unit']}" if field.metadata["unit"] else ""
    if not math.isfinite(value):
        raise SpecError(f"{field.name}={value} must be a finite number")
    low, high, above = (field.metadata[k] for k in ("at_least", "at_most", "above"))
    if low is not None and value < low:
        raise SpecError(f"{field.name}={value} must be at least {low:g}{unit}")
    if above is not None and value <= above:
        raise SpecError(f"{field.name}={value} must be greater than {above:g}{unit}")
    if high is not None and value > high:
        raise SpecError(f"{field.name}={value} must be at most {high:g}{unit}")


def parse_options(options: type[Opt], text: str, *, channel: str, example: str) -> Opt:
    """Parse ``flag,key=value,...`` into an options dataclass; a flag is a boolean option or a value of a choice.

    Args:
        options: the dataclass. text: what follows the colon. channel, example: for messages.

    Raises:
        SpecError: malformed text, an unknown key (the nearest is named), or a value out of its range.
    """
    keys = {f.name for f in dataclasses.fields(options)}
    flags = {choice: key for key in keys for choice in _choices(options, key)}
    values: dict[str, Any] = {}
    for item in text.split(",") if text else []:
        key, equals, raw = (part.strip() for part in item.partition("="))
        if not equals and key in flags:
            key, value = flags[key], key
        elif key not in keys or (not equals and _hint(options, key)[0] is not bool):
            value = None
        elif not equals:
            value = "true"
        else:
            value = raw
        if key not in keys:
            near = UnknownNameError("option", key, keys | set(flags))
            raise SpecError(f"channel {channel!r}: {near}; an example is {example!r}")
        if value is None or value == "":
            raise SpecError(f"channel {channel!r}: option {key!r} needs a value, as in {example!r}")
        if key in values:
            raise SpecError(f"channel {channel!r}: option {key!r} is given twice; an example is {example!r}")
        values[key] = _convert(options, key, value, channel)
    try:
        return options(**values)
    except SpecError as error:
        raise SpecError(f"channel {channel!r}: {error}; an example is {example!r}") from None


def _convert(options: type[ChannelOptions], key: str, raw: str, channel: str) -> Any:
    hint, _ = _hint(options, key)
    if typing.get_origin(hint) is Literal or hint is str:
        return raw
    if hint is bool:
        known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if raw.lower() not in known:
            raise SpecError(f"channel {channel!r}: {key}={raw} must be true or false")
        return known[raw.lower()]
    try:
        return hint(raw)
    except ValueError:
        kind = "a whole number" if hint is int else "a number"
        raise SpecError(f"channel {channel!r}: {key}={raw} must be {kind}") from None


def format_options(options: ChannelOptions) -> str:
    """Return the canonical text of options: what differs from the default, in the order of the fields."""
    parts = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value == field.default:
            continue
        if value is True or _choices(type(options), field.name):
            # A choice is written as a flag only where no other option could claim the same word.
            claims = [f.name for f in dataclasses.fields(options) if value in _choices(type(options), f.name)]
            parts.append(field.name if value is True else str(value) if len(claims) == 1 else f"{field.name}={value}")
        else:
            parts.append(f"{field.name}={value:.12g}" if isinstance(value, float) else f"{field.name}={value}")
    return ",".join(parts)


def describe_options(options: type[ChannelOptions]) -> list[dict[str, Any]]:
    """Return one dict per option: key, type, default, unit, choices, doc."""
    rows = []
    for field in dataclasses.fields(options):
        hint, _ = _hint(options, field.name)
        choices = list(_choices(options, field.name))
        rows.append(
            {
                "key": field.name,
                "type": "choice" if choices else hint.__name__,
                "default": field.default,
                "unit": field.metadata["unit"],
                "choices": choices,
                "doc": field.metadata["doc"],
            }
        )
    return rows
