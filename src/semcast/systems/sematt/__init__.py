"""DynamicJSCC and SemAttJSCC: joint source-channel coding of key frames, the latter guided by segmentation maps.

G. Coppola, M. Narimani Kenari, G. Sciddurlo, N. Cordeschi, L. A. Grieco, G. Boggia, "Semantic-aware attention-driven JSCC for
efficient video transmission over wireless channels"; M. Yang, H.-S. Kim, "Deep joint source-channel coding for wireless image
transmission with adaptive rate control", ICASSP 2022 (DynamicJSCC, the baseline, here without its adaptive rate).

SemAtt, eqs. (1) to (5): attention.py. Published networks: networks.py. Preset ``small``: small.py. Maps: maps.py.
The systems, eqs. (6) and (7), and the departures from the paper: system.py. Frames between key frames: video.py.
"""

from __future__ import annotations

from semcast.errors import UnknownNameError
from semcast.systems.base import SystemSpec
from semcast.systems.sematt.networks import PaperConfig
from semcast.systems.sematt.small import SmallConfig
from semcast.systems.sematt.system import SemAttSystem
from semcast.systems.sematt.video import SemAttVideo, VideoConfig

DYNAMIC: dict[str, SmallConfig | PaperConfig] = {
    "small": SmallConfig(),
    "paper": PaperConfig(),
    "paper-convolutions": PaperConfig(extra="convolutions"),
}
SEMATT: dict[str, SmallConfig | PaperConfig] = {
    "small": SmallConfig(extra="attention", classes=12),
    "no-attention": SmallConfig(classes=12),  # what the closed form alone makes of maps
    "paper": PaperConfig(extra="attention"),
}
VIDEO = {"small": VideoConfig(), "motion": VideoConfig(mesh=True)}


def make_dynamic(preset: str, condition: str) -> SemAttSystem:
    """Build a preset of DynamicJSCC with fresh weights."""
    return _make("dynamicjscc", preset, DYNAMIC)


def make_sematt(preset: str, condition: str) -> SemAttSystem:
    """Build a preset of SemAttJSCC with fresh weights."""
    return _make("sematt-jscc", preset, SEMATT)


def make_video(preset: str, condition: str) -> SemAttVideo:
    """Build a preset of SemAttJSCC with synthesised frames, with fresh weights."""
    if preset not in VIDEO:
        raise UnknownNameError("preset of sematt-video", preset, VIDEO)
    return SemAttVideo(preset, VIDEO[preset], make_sematt("small", condition))


def _make(name: str, preset: str, configs: dict[str, SmallConfig | PaperConfig]) -> SemAttSystem:
    if preset not in configs:
        raise UnknownNameError(f"preset of {name}", preset, configs)
    return SemAttSystem(name, preset, configs[preset])


DYNAMIC_SPEC = SystemSpec(
    name="dynamicjscc",
    summary="joint source-channel coding of pictures, modulated by the SNR: SemAttJSCC without maps",
    kind="hybrid",
    make=make_dynamic,
    paper="Yang, Kim 2022",
    presets=tuple(DYNAMIC),
    trained=True,
    picture=True,
)
SEMATT_SPEC = SystemSpec(
    name="sematt-jscc",
    summary="joint source-channel coding of pictures, guided by segmentation maps that are sent along",
    kind="hybrid",
    make=make_sematt,
    paper="Coppola et al.",
    presets=tuple(SEMATT),
    trained=True,
    picture=True,
)
VIDEO_SPEC = SystemSpec(
    name="sematt-video",
    summary="key frames by sematt-jscc, the frames between them synthesised from their segmentation maps",
    kind="hybrid",
    make=make_video,
    paper="Coppola et al.",
    presets=tuple(VIDEO),
    trained=True,
)
