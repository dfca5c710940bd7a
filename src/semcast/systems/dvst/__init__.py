"""Deep video semantic transmission (DVST).

S. Wang, J. Dai, Z. Liang, K. Niu, Z. Si, C. Dong, X. Qin, P. Zhang, "Wireless deep video semantic transmission", IEEE J. Sel.
Areas Commun. 41(1), 2023.
"""

from __future__ import annotations

from semcast.errors import UnknownNameError
from semcast.systems.base import System, SystemSpec
from semcast.systems.conditions import load_condition

PRESETS = ("small", "paper")


def make(preset: str, condition: str) -> System:
    """Build a preset with fresh weights; the condition says how many frames a group has."""
    from semcast.systems import SYSTEMS

    if preset not in PRESETS:
        raise UnknownNameError("preset of dvst", preset, PRESETS)
    key = SYSTEMS.get("ntscc").make(preset, condition)
    gop = load_condition(condition).gop
    if preset == "small":
        from semcast.systems.dvst.small import DvstSmall, SmallConfig

        return DvstSmall(SmallConfig(), key, gop)
    from semcast.systems.dvst.paper import DvstPaper, PaperConfig

    return DvstPaper(PaperConfig(), key)


SPEC = SystemSpec(
    name="dvst",
    summary="deep video semantic transmission: motion, contexts, and channel uses that follow what is new in a frame",
    kind="hybrid",
    make=make,
    paper="Wang et al. 2023",
    presets=PRESETS,
    trained=True,
)
