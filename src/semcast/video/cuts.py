"""Where a scene ends: a frame that its predecessor tells less about than flat patches would."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SCALE = 8
"""Pixels of a side of what is looked at as one."""
PATCH = 4
"""Side of a patch on that grid."""
REACH = 3
"""How far a patch is looked for, in steps of that grid."""
FLOOR = 4e-4
"""Squared error, of pixels in [0, 1], that no cut hides in: a picture without detail is not new because it flickers."""


def is_cut(frame: Tensor, before: Tensor) -> bool:
    """Whether a scene begins with ``frame``, both (3, H, W) in [0, 1].

    Both are taken at an eighth of their size. Patches of the frame are looked for in the one before; where they come back with
    more error than their own means would leave, there is nothing to predict from.
    """
    now, then = (F.avg_pool2d(one[None], SCALE, ceil_mode=True) for one in (frame, before))
    h, w = now.shape[-2:]
    around = F.pad(then, (REACH,) * 4, mode="replicate")
    moved = torch.cat([around[..., i : i + h, j : j + w] for i in range(2 * REACH + 1) for j in range(2 * REACH + 1)])
    found = _pooled((now - moved).square()).mean(1).amin(0)
    flat = _pooled(now.square()) - _pooled(now).square()
    return float(found.mean()) > float(flat.mean()) + FLOOR


def _pooled(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, PATCH, ceil_mode=True)
