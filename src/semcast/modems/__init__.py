"""Modems: bytes over a radio, by the decoder in the loop, by its measured tables, or at Shannon's bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semcast.registry import Registry

if TYPE_CHECKING:
    from semcast.modems.base import Modem

MODEMS: Registry[type[Modem]] = Registry("modem")
MODEMS.add("table", "semcast.modems.table:TableModem")
MODEMS.add("exact", "semcast.modems.exact:ExactModem")
MODEMS.add("capacity", "semcast.modems.capacity:CapacityModem")


def make_modem(phy: str, *, target_bler: float = 1e-3, harq: int = 0, mcs: str | None = None) -> Modem:
    """Build a modem.

    Args:
        phy: ``"table"`` (``"fast"`` is the same), ``"exact"`` or ``"capacity"``. target_bler: block error rate that
            adaptation aims for. harq: retransmissions of a block at most. mcs: name of a fixed scheme; None adapts.

    Raises:
        UnknownNameError: no such modem or scheme. SpecError: a value out of range.
    """
    kind = MODEMS.get("table" if phy == "fast" else phy)
    return kind(target_bler=target_bler, harq=harq, mcs=mcs)  # type: ignore[call-arg]
