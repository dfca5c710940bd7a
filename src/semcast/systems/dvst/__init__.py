"""Deep video semantic transmission (DVST).

S. Wang, J. Dai, Z. Liang, K. Niu, Z. Si, C. Dong, X. Qin, P. Zhang, "Wireless deep video semantic transmission", IEEE J. Sel.
Areas Commun. 41(1), 2023.
"""

from __future__ import annotations

from semcast.errors import UnknownNameError
from semcast.systems.base import System, SystemSpec
from semcast.systems.conditions import load_condition
from semcast.systems.dvst.config import ABLATIONS, LONGEST, STRUCTURAL, Ablation

PRESETS = ("small", "paper", "ms-ssim", "segment", *ABLATIONS)


def make(preset: str, condition: str) -> System:
    """Build a preset with fresh weights; the condition says how many frames a group has."""
    from semcast.systems import SYSTEMS

    if preset not in PRESETS:
        raise UnknownNameError("preset of dvst", preset, PRESETS)
    if preset == "paper":
        from semcast.systems.dvst.paper import DvstPaper, PaperConfig

        return DvstPaper(PaperConfig(), SYSTEMS.get("ntscc").make("paper", condition))
    from semcast.systems.dvst.constant_rate import ConstantRate
    from semcast.systems.dvst.small import DvstSmall, SmallConfig

    ablation = ABLATIONS.get(preset, Ablation())
    made = ConstantRate if ablation.constant_rate else DvstSmall
    config = STRUCTURAL if preset == "ms-ssim" else SmallConfig()
    name, _, key_preset = config.key_name.partition(":")
    key = SYSTEMS.get(name).make(key_preset, condition)
    system = made(config, key, min(load_condition(condition).gop, LONGEST), ablation)
    system.preset = preset
    return system


SPEC = SystemSpec(
    name="dvst",
    summary="deep video semantic transmission: motion, contexts, and channel uses that follow what is new in a frame",
    kind="hybrid",
    make=make,
    paper="Wang et al. 2023",
    presets=PRESETS,
    trained=True,
    lenders={"no-motion": "small", "constant-rate": "small"},  # closed form: statistics and network are those of small
)
