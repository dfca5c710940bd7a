"""Nonlinear transform source-channel coding of pictures (NTSCC).

J. Dai, S. Wang, K. Tan, Z. Si, X. Qin, K. Niu, P. Zhang, "Nonlinear transform source-channel coding for semantic
communications", IEEE J. Sel. Areas Commun. 40(8), 2022: the key-frame code of DVST.
"""

from __future__ import annotations

from semcast.errors import UnknownNameError
from semcast.systems.base import System, SystemSpec
from semcast.systems.ntscc.small import NtsccSmall, SmallConfig

PRESETS = ("small", "paper", "ms-ssim")


def make(preset: str, condition: str) -> System:
    """Build a preset with fresh weights."""
    if preset == "small":
        return NtsccSmall(SmallConfig())
    if preset == "ms-ssim":
        system = NtsccSmall(SmallConfig(distortion="ms_ssim"))
        system.preset = preset
        return system
    if preset == "paper":
        from semcast.systems.ntscc.paper import NtsccPaper, PaperConfig

        return NtsccPaper(PaperConfig())
    raise UnknownNameError("preset of ntscc", preset, PRESETS)


SPEC = SystemSpec(
    name="ntscc",
    summary="nonlinear transform source-channel coding: channel uses follow the entropy of what is in a picture",
    kind="hybrid",
    make=make,
    paper="Dai et al. 2022",
    presets=PRESETS,
    trained=True,
    picture=True,
)
