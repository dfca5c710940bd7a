"""Video in and out: files, pictures, datasets and rendered scenes, all as lazy clips of RGB frames."""

from __future__ import annotations

import importlib
from typing import Any

# public name -> module; resolved on first use, so that importing the package pulls in neither PyAV nor OpenCV.
# ``steps`` is missing on purpose: the name belongs to the module (from semcast.video.steps import steps).
_WHERE = {
    "Clip": "clip",
    "VideoInfo": "clip",
    "check_size": "clip",
    "probe": "io",
    "read": "io",
    "open_clips": "io",
    "VideoWriter": "writer",
    "write": "writer",
    "rgb_to_yuv420": "colour",
    "yuv420_to_rgb": "colour",
    "rgb_to_frame": "colour",
    "frame_to_rgb": "colour",
    "open_scene": "scenes",
    "render_from_photo": "scenes",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
