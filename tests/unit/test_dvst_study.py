"""The study of DVST watches the transmitter while it encodes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType

import pytest
from tiny_systems import tiny_dvst

from semcast.studies.session import Loaded, Radio, transmit_clip
from semcast.systems import SYSTEMS
from semcast.video.scenes import open_scene


@pytest.fixture
def study(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("dvst_study")


def test_the_transmitter_s_reference_is_better_than_what_noise_leaves(study: ModuleType) -> None:
    """In every frame; the noise of an I-frame stays in the frames that are predicted from it."""
    loaded = Loaded(copy.deepcopy(tiny_dvst()), "", SYSTEMS.get("dvst"), "strong")
    clean, clip = study.Reference(loaded), open_scene("coffee-pan:size=96x80,frames=8")
    row = transmit_clip(loaded, clip, Radio(snr_db=10, cbr=0.06), precision="fp32", on_step=clean.step).row
    assert row.per_frame is not None
    shown = row.per_frame["psnr_rgb_db"]
    losses = [a - b for a, b in zip(clean.values, shown, strict=True)]
    assert all(0 < loss < 6 for loss in losses)
    for first in (0, 4):
        assert min(losses[first + 1 : first + 4]) > 0.5 * losses[first]
