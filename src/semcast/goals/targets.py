"""Frozen task models by name, as targets of imitation: pictures in [0, 1] -> logits that gradients pass through.

``segmenter`` is the one that comes with Semcast. Any other name is that of a semantic segmentation model for the library
transformers (the extra ``transformers``): a repository such as ``nvidia/segformer-b0-finetuned-cityscapes-512-1024`` or
``shi-labs/oneformer_cityscapes_swin_large``, or a folder.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast.errors import InputError
from semcast.goals.segmenter import shipped_segmenter

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TransformersSegmenter(nn.Module):
    """A semantic segmentation model of transformers: (N, 3, H, W) in [0, 1] -> logits (N, m, H, W).

    Models that classify masks (OneFormer, Mask2Former, MaskFormer) give the logarithm of the sum over masks of class
    probability times mask, as their own post-processing adds them up.

    Args:
        model: as loaded. mean, std: of the pictures it wants. task: token ids (1, n) that a model of several tasks is told.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], task: Tensor | None = None) -> None:
        super().__init__()
        self.model, self.task = model, task
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, frames: Tensor) -> Tensor:
        pixels = (frames - self.mean) / self.std
        more = {} if self.task is None else {"task_inputs": self.task.to(frames.device).expand(len(frames), -1)}
        seen: Any = self.model(pixel_values=pixels, **more)
        if hasattr(seen, "class_queries_logits"):
            classes = seen.class_queries_logits.softmax(-1)[..., :-1]
            logits = torch.einsum("bqc,bqhw->bchw", classes, seen.masks_queries_logits.sigmoid()).clamp_min(1e-6).log()
        else:
            logits = seen.logits
        return F.interpolate(logits, frames.shape[-2:], mode="bilinear", align_corners=False)


@lru_cache(maxsize=2)
def imitation_target(name: str) -> nn.Module:
    """The frozen task model called ``name``.

    Raises:
        InputError: transformers is not installed, or has no such segmentation model.
        WeightsError: the segmenter does not come with this copy.
    """
    if name == "segmenter":
        return shipped_segmenter()
    if importlib.util.find_spec("transformers") is None:
        raise InputError(
            f"the task model {name!r} is loaded by transformers, which is not installed: pip install 'semcast[transformers]', "
            "or take target: segmenter"
        )
    return _from_transformers(name)


def _from_transformers(name: str) -> TransformersSegmenter:
    import transformers

    failure: Exception | None = None
    for kind in ("AutoModelForSemanticSegmentation", "AutoModelForUniversalSegmentation"):
        try:
            model = getattr(transformers, kind).from_pretrained(name)
            break
        except (ValueError, OSError) as error:
            failure = failure or error
    else:
        raise InputError(f"transformers has no segmentation model {name!r}: {' '.join(str(failure).split())[:200]}")
    try:
        processor = transformers.AutoProcessor.from_pretrained(name)
    except (ValueError, OSError, ImportError):  # a model saved alone
        processor = None
    images = getattr(processor, "image_processor", processor)
    mean, std = (
        tuple(getattr(images, key, None) or ours) for key, ours in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD))
    )
    task = None
    if getattr(model.config, "model_type", "") == "oneformer":
        if processor is None:
            raise InputError(f"{name!r} is a OneFormer without its processor, which holds the words for its task")
        blank = torch.zeros(3, 64, 64, dtype=torch.uint8).numpy()
        task = processor(images=blank, task_inputs=["semantic"], return_tensors="pt")["task_inputs"]
    return TransformersSegmenter(model, mean, std, task)
