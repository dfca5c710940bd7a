"""Systems: one line each; the module is imported when the system is first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semcast.registry import Registry

if TYPE_CHECKING:
    from semcast.systems.base import SystemSpec

SYSTEMS: Registry[SystemSpec] = Registry("system")

SYSTEMS.add("deepjscc", "semcast.systems.deepjscc:SPEC")
SYSTEMS.add("ntscc", "semcast.systems.ntscc:SPEC")
SYSTEMS.add("dvst", "semcast.systems.dvst:SPEC")
SYSTEMS.add("gos-vae", "semcast.systems.gosvae:GOS_VAE")
SYSTEMS.add("vq-vae", "semcast.systems.gosvae:VQ_VAE")
SYSTEMS.add("autoencoder", "semcast.systems.gosvae:AUTOENCODER")
SYSTEMS.add("vq-gan", "semcast.systems.gosvae:VQ_GAN")
SYSTEMS.add("dynamicjscc", "semcast.systems.sematt:DYNAMIC_SPEC")
SYSTEMS.add("sematt-jscc", "semcast.systems.sematt:SEMATT_SPEC")
SYSTEMS.add("sematt-video", "semcast.systems.sematt:VIDEO_SPEC")
SYSTEMS.add("linear-jscc", "semcast.systems.linear_jscc:SPEC")
SYSTEMS.add("freeze", "semcast.systems.freeze:SPEC")
SYSTEMS.add("dcvc-ldpc", "semcast.systems.dcvc_ldpc:SPEC")
for _name in (
    "h264-ldpc",
    "h264-capacity",
    "h265-ldpc",
    "h265-capacity",
    "av1-ldpc",
    "av1-capacity",
    "mjpeg-ldpc",
    "jpeg-ldpc",
    "jpeg2000-ldpc",
    "hevc-intra-ldpc",
):
    SYSTEMS.add(_name, f"semcast.systems.digital.system:{_name.upper().replace('-', '_')}")
