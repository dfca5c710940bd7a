"""Systems: one line each; the module is imported when the system is first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semcast.registry import Registry

if TYPE_CHECKING:
    from semcast.systems.base import SystemSpec

SYSTEMS: Registry[SystemSpec] = Registry("system")

SYSTEMS.add("deepjscc", "semcast.systems.deepjscc:SPEC")
SYSTEMS.add("linear-jscc", "semcast.systems.linear_jscc:SPEC")
SYSTEMS.add("freeze", "semcast.systems.freeze:SPEC")
