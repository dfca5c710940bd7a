"""The shipped segmenter reproduces what its card says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from semcast import checkpoint
from semcast.goals import GOALS
from semcast.goals.segmenter import CLASSES, shipped_segmenter
from semcast.metrics.base import MetricSet
from semcast.types import Decoded
from semcast.video.datasets import CAMVID_IGNORE
from semcast.video.io import open_clips

FOLDER = checkpoint.shipped("segmenter", "small")


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    assert FOLDER is not None
    return checkpoint.read_card(FOLDER)


def test_the_card_says_what_a_user_has_to_know(card: dict[str, Any]) -> None:
    assert {"data", "licence", "seed", "steps", "validation", "reproduces"} <= set(card)
    assert "NC" in card["licence"]
    for size in ("480x360", "256x192"):
        assert card["reproduces"][f"test {size}"]["pictures"] == 233
    assert FOLDER is not None
    assert (FOLDER / "model.safetensors").stat().st_size <= 5_000_000


def test_it_is_frozen_and_lets_gradients_through() -> None:
    with torch.inference_mode():
        model = shipped_segmenter()
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    frames = torch.full((1, 1, 3, 64, 64), 0.5, requires_grad=True)
    model(frames[0]).square().mean().backward()
    assert frames.grad is not None
    assert bool(frames.grad.abs().sum() > 0)


@pytest.mark.data
@pytest.mark.parametrize("size", [(480, 360), (256, 192)])
def test_a_few_pictures_are_read_as_well_as_the_card_says(size: tuple[int, int], card: dict[str, Any], data_dir: Path) -> None:
    """Every thirtieth picture of CamVid's test part; one more or less in a thousand pixels is another machine's rounding."""
    said = card["reproduces"][f"test {size[0]}x{size[1]} few"]
    metrics = MetricSet(["miou", "pixel_accuracy"], classes=len(CLASSES), ignore_index=CAMVID_IGNORE)
    clips = open_clips(f"camvid:{data_dir}/camvid/test", size=size, stills=True)[:: said["every"]]
    assert len(clips) == said["pictures"]
    for clip in clips:
        for frame, labels in clip.labelled_frames():
            seen = GOALS.get("segment").perceive(Decoded(frames=frame[None, None])).labels
            assert seen is not None
            metrics.update_labels(labels["segmentation"][None], seen[0])
    found = metrics.compute()
    assert found["miou"] == pytest.approx(said["miou"], abs=0.005)
    assert found["pixel_accuracy"] == pytest.approx(said["pixel_accuracy"], abs=0.002)
