"""Shipped weights reproduce what their cards say: a number that no longer comes out is a regression of code or of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from semcast import checkpoint
from semcast.ledger import Ledger
from semcast.link import Link
from semcast.systems import SYSTEMS
from semcast.systems.base import System
from semcast.transmit import run
from semcast.types import Format
from semcast.video.clip import Clip
from semcast.video.datasets import kodak
from semcast.video.scenes import open_scene
from semcast.video.steps import steps

SHIPPED = [
    pytest.param(f"{name}:{preset}", id=f"{name}:{preset}")
    for name in SYSTEMS
    for preset in SYSTEMS.get(name).presets
    if SYSTEMS.get(name).trained and checkpoint.shipped(name, preset) is not None
]
CONDITIONS = {"cbr", "snr_db", "seed"}


def claim(name: str, of: str) -> dict[str, Any]:
    """What the card says; the test is skipped where it says nothing."""
    base, _, preset = name.partition(":")
    folder = checkpoint.shipped(base, preset)
    assert folder is not None
    found = checkpoint.read_card(folder).get("reproduces", {}).get(of)
    if found is None:
        pytest.skip(f"the card of {name} gives no number for {of}")
    assert CONDITIONS | {"psnr_rgb_db"} <= set(found), "a number without its conditions reproduces nothing"
    return dict(found)


def psnr_rgb_db(system: System, digest: str, source: Clip, said: dict[str, Any]) -> float:
    """Mean over frames, over AWGN, session header charged."""
    link = Link("awgn", snr_db=float(said["snr_db"]), cbr=said["cbr"]).eval()
    info = source.info
    fmt = Format(info.height, info.width, info.fps, "watch", system.name, system.preset, digest, said["seed"], said["cbr"])
    random, found = torch.Generator().manual_seed(said["seed"]), []
    with torch.no_grad():
        for result in run(system, steps(source, system.frames_per_step), link, Ledger(), fmt=fmt, generator=random):
            assert result.decoded.frames is not None
            mse = (result.decoded.frames - result.step.frames).square().mean((0, 2, 3, 4))
            found += (-10 * torch.log10(mse + 1e-10)).tolist()
    return sum(found) / len(found)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_rendered_scene_comes_out_as_well_as_the_card_says(name: str) -> None:
    said = claim(name, "scene")
    system, digest = checkpoint.make_system(name)
    found = psnr_rgb_db(system, digest, open_scene(said["spec"], max_frames=said["frames"]), said)
    assert found == pytest.approx(said["psnr_rgb_db"], abs=0.05)


@pytest.mark.data
@pytest.mark.parametrize("name", SHIPPED)
def test_photographs_come_out_as_well_as_the_card_says(name: str, data_dir: Path) -> None:
    """Kodak's pictures 1, 7, 13 and 19."""
    said = claim(name, "kodak4")
    system, digest = checkpoint.make_system(name)
    pictures = kodak(str(data_dir / "eval" / "images"), size=None, fps=None, stills=True, max_frames=None)[::6]
    assert len(pictures) == 4
    found = [psnr_rgb_db(system, digest, picture, said) for picture in pictures]
    assert sum(found) / 4 == pytest.approx(said["psnr_rgb_db"], abs=0.1)
