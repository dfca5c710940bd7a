"""Task models by name, as targets of imitation."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from semcast.errors import InputError
from semcast.goals import targets
from semcast.goals.targets import imitation_target


def test_ours_is_frozen_and_lets_gradients_through() -> None:
    model = imitation_target("segmenter")
    frames = torch.full((1, 3, 64, 80), 0.5, requires_grad=True)
    logits = model(frames)
    assert logits.shape == (1, 11, 64, 80)
    logits.square().mean().backward()
    assert frames.grad is not None
    assert not any(p.requires_grad for p in model.parameters())


def test_without_transformers_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"semcast\[transformers\]"):
        imitation_target("nvidia/segformer-b0-finetuned-cityscapes-512-1024")


@pytest.fixture(scope="module")
def transformers() -> object:
    return pytest.importorskip("transformers", reason="needs the extra `transformers`")


@pytest.mark.filterwarnings("ignore")
def test_a_segformer_by_name(transformers: object, tmp_path: Path) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[4, 2], hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, num_labels=5,
    )  # fmt: skip
    theirs = SegformerForSemanticSegmentation(config).eval()
    theirs.save_pretrained(tmp_path)
    model = imitation_target(str(tmp_path))
    frames = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = model(frames)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (targets.IMAGENET_MEAN, targets.IMAGENET_STD))
    with torch.no_grad():
        by_hand = F.interpolate(theirs(pixel_values=(frames - mean) / std).logits, (64, 96), mode="bilinear")
    assert torch.allclose(logits, by_hand, atol=1e-5)
    logits.square().mean().backward()
    assert frames.grad is not None
    assert float(frames.grad.abs().sum()) > 0
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.filterwarnings("ignore")
def test_masks_and_their_classes_become_logits(transformers: object) -> None:
    """Two masks, each of one class: the logits are the logarithm of what they add up to."""
    from types import SimpleNamespace

    class Masks(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
            classes = torch.log(torch.tensor([[[0.8, 0.1, 0.1], [0.2, 0.6, 0.2]]]))
            masks = torch.logit(torch.tensor([0.9, 0.25])).view(1, 2, 1, 1).expand(1, 2, 4, 4)
            return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)

    model = targets.TransformersSegmenter(Masks(), (0, 0, 0), (1, 1, 1))
    logits = model(torch.rand(1, 3, 8, 8))
    assert logits[0, :, 3, 3].exp().tolist() == pytest.approx([0.8 * 0.9 + 0.2 * 0.25, 0.1 * 0.9 + 0.6 * 0.25], abs=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_what_is_no_segmentation_model_is_refused(transformers: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="no segmentation model"):
        imitation_target(str(tmp_path))
    assert importlib.util.find_spec("transformers") is not None
