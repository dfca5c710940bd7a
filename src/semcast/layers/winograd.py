"""3x3 convolutions at inference by minimal filtering: S. Winograd, 1980; A. Lavin, S. Gray, "Fast algorithms for convolutional
neural networks", CVPR 2016. The kernels are NNPACK's, which come with torch: five times fewer products than one by one."""

from __future__ import annotations

import warnings
from functools import lru_cache

import torch
from torch import Tensor, nn


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """What ``conv``, 3x3 with stride 1, makes of (B, C, h, w), to float rounding; faster where nothing is to be learned."""
    plain = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or isinstance(conv.padding, str)
    if plain or x.dtype != torch.float32 or x.device.type != "cpu" or not _available():
        made: Tensor = conv(x)
        return made
    return torch._nnpack_spatial_convolution(x, conv.weight, conv.bias, conv.padding)  # type: ignore[arg-type]


@lru_cache(maxsize=1)
def _available() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of processors that the kernels are not made for
        return torch.backends.nnpack.is_available()
