"""The exceptions a user can meet, drawn as a tree.

SemcastError                 something Semcast says in one sentence, without a traceback
├── InputError               bad input or usage: exit code 2
│   ├── UnknownNameError     a name that no registry holds; the nearest known one is offered
│   ├── VideoError           a file that is no video, has no frames, or is too small
│   ├── SpecError            a malformed specification string (channel, system, scene, size)
│   ├── BudgetError          a CBR that the system cannot meet
│   ├── WeightsError         weights that are absent, damaged, or belong to another preset
│   └── AirFileError         a truncated, damaged or alien air file
└── ContractError            a System, Channel or Modem broke the contract: our fault, exit code 1
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SemcastError(Exception):
    """Base of everything that Semcast raises on purpose."""


class InputError(SemcastError):
    """Bad input or usage; the command line prints the message and exits with 2."""


class UnknownNameError(InputError):
    """A name that is not registered; the message names the nearest known one.

    Args:
        kind: what was looked for, e.g. ``"system"``.
        name: what was asked for.
        known: the names that exist.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")
        self.kind, self.name, self.known = kind, name, known


class VideoError(InputError):
    """A video or picture that cannot be read, is empty, or is too small."""


class SpecError(InputError):
    """A specification string that does not parse."""


class BudgetError(InputError):
    """A channel-use budget that a system cannot meet."""


class WeightsError(InputError):
    """Weights that are absent, damaged, or do not match the preset."""


class AirFileError(InputError):
    """An air file that is truncated, damaged or not one of ours."""


class ContractError(SemcastError):
    """An implementation broke the contract of its interface."""
