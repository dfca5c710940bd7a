"""What spoils the symbols: ``y = h x + n``.

A channel is one file and one line below; :func:`make_channel` builds it from a specification string such as
``awgn``, ``rayleigh:block,coherence=512`` or ``tdl-c:delay_spread_ns=300,speed_mps=3``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from semcast.registry import Registry

if TYPE_CHECKING:
    from semcast.channels.base import Channel, Fading, papr_db
    from semcast.channels.spec import describe_channels, make_channel

__all__ = ["CHANNELS", "Channel", "Fading", "describe_channels", "make_channel", "papr_db"]

CHANNELS: Registry[type[Channel]] = Registry("channel")
CHANNELS.add("ideal", "semcast.channels.awgn:Ideal")
CHANNELS.add("awgn", "semcast.channels.awgn:Awgn")
CHANNELS.add("rayleigh", "semcast.channels.rayleigh:Rayleigh")
CHANNELS.add("rician", "semcast.channels.rician:Rician")
CHANNELS.add("pathloss", "semcast.channels.pathloss:PathLoss")
CHANNELS.add("tdl-a", "semcast.channels.tdl:TdlA")
CHANNELS.add("tdl-b", "semcast.channels.tdl:TdlB")
CHANNELS.add("tdl-c", "semcast.channels.tdl:TdlC")
CHANNELS.add("tdl-d", "semcast.channels.tdl:TdlD")
CHANNELS.add("tdl-e", "semcast.channels.tdl:TdlE")
CHANNELS.add("erasure", "semcast.channels.erasure:Erasure")
CHANNELS.add("gilbert-elliott", "semcast.channels.erasure:GilbertElliott")
CHANNELS.add("trace", "semcast.channels.trace:Trace")

_LAZY = {
    "Channel": "semcast.channels.base",
    "Fading": "semcast.channels.base",
    "papr_db": "semcast.channels.base",
    "describe_channels": "semcast.channels.spec",
    "make_channel": "semcast.channels.spec",
}


def __getattr__(name: str) -> Any:
    """Import torch only when a channel is really used, so that the command line starts at once."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
