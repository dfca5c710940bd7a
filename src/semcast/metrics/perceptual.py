"""LPIPS (Zhang et al. 2018) on a SqueezeNet 1.1 trunk, without torchvision."""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast.errors import WeightsError
from semcast.metrics.base import Metric

WEIGHTS_NAME = "squeezenet1_1_imagenet_fp16.safetensors"
WEIGHTS_ENV = "SEMCAST_SQUEEZENET"
SLICES = ((0, 2), (2, 5), (5, 8), (8, 10), (10, 11), (11, 12), (12, 13))
CHANNELS = (64, 128, 256, 384, 384, 512, 512)


class Fire(nn.Module):
    """Fire module: a 1x1 squeeze, then 1x1 and 3x3 expansions side by side (Iandola et al. 2016, figure 1)."""

    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, 2 expand, H, W)."""
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


def squeezenet_features() -> nn.Sequential:
    """The 13 feature layers of SqueezeNet 1.1, with torchvision's parameter names."""
    pool = functools.partial(nn.MaxPool2d, 3, stride=2, ceil_mode=True)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2),
        nn.ReLU(),
        pool(),
        Fire(64, 16, 64),
        Fire(128, 16, 64),
        pool(),
        Fire(128, 32, 128),
        Fire(256, 32, 128),
        pool(),
        Fire(256, 48, 192),
        Fire(384, 48, 192),
        Fire(384, 64, 256),
        Fire(512, 64, 256),
    )


class Lpips(nn.Module):
    """Learned perceptual distance: 0 for equal frames, larger is worse; differentiable, its weights frozen.

    Args:
        features: trunk of 13 layers as of :func:`squeezenet_features`.
        heads: seven tensors (1, C, 1, 1) that weigh squared differences of unit-normalised features.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, features: nn.Sequential, heads: list[Tensor]) -> None:
        super().__init__()
        self.features = features
        self.heads = nn.ParameterList(heads)
        # LPIPS's own constants: ImageNet mean and deviation, for input in [-1, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, reference: Tensor, received: Tensor) -> Tensor:
        """(B, 3, H, W), (B, 3, H, W) in [0, 1] -> (B,). Zhang et al. 2018, eq. (1)."""
        x, y = (((2 * frames - 1) - self.shift) / self.scale for frames in (reference, received))
        distance = reference.new_zeros(reference.shape[0])
        for (start, stop), head in zip(SLICES, self.heads, strict=True):
            x, y = self.features[start:stop](x), self.features[start:stop](y)
            difference = (_unit(x) - _unit(y)).square()
            distance = distance + F.conv2d(difference, head).mean((1, 2, 3))
        return distance


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt()


def lpips_heads() -> list[Tensor]:
    """The published heads for SqueezeNet, from the wheel of torchmetrics, read without importing it."""
    spec = importlib.util.find_spec("torchmetrics")
    if spec is None or spec.origin is None:
        raise WeightsError("the LPIPS heads come with torchmetrics, which is not installed; pip install torchmetrics")
    path = Path(spec.origin).parent / "functional" / "image" / "lpips_models" / "squeeze.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    return [state[f"lin{i}.model.1.weight"].float() for i in range(len(CHANNELS))]


def find_squeezenet() -> Path | None:
    """Where the trunk's weights lie, or None.

    Looked for in this order: ``$SEMCAST_SQUEEZENET``, ``../shared/data/weights`` beside the working directory, the same beside
    the repository, ``~/.cache/semcast``.

    Raises:
        WeightsError: ``$SEMCAST_SQUEEZENET`` names no file.
    """
    named = os.environ.get(WEIGHTS_ENV)
    if named:
        if not Path(named).is_file():
            raise WeightsError(f"${WEIGHTS_ENV} names {named}, which is no file; point it at {WEIGHTS_NAME} or unset it")
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "semcast"
    roots = [Path.cwd(), Path(__file__).resolve().parents[3]]
    places = [root.parent / "shared" / "data" / "weights" for root in roots] + [cache]
    return next((place / WEIGHTS_NAME for place in places if (place / WEIGHTS_NAME).is_file()), None)


def load_squeezenet(path: Path) -> nn.Sequential:
    """The trunk at ``path`` (safetensors, torchvision's names, fp16 or fp32).

    Raises:
        WeightsError: the file is no SqueezeNet 1.1.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    prefix = "features."
    features = squeezenet_features()
    try:
        state = {name.removeprefix(prefix): t.float() for name, t in load_file(path).items() if name.startswith(prefix)}
        features.load_state_dict(state)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise WeightsError(f"{path} does not hold SqueezeNet 1.1 in torchvision's names; fetch {WEIGHTS_NAME} again") from error
    return features


@functools.lru_cache(maxsize=2)
def load_lpips(path: Path) -> Lpips:
    """LPIPS with the trunk at ``path``, as of :func:`load_squeezenet`."""
    return Lpips(load_squeezenet(path), lpips_heads())


def lpips_loss(reference: Tensor, received: Tensor) -> Tensor:
    """Mean LPIPS of (B, 3, H, W), (B, 3, H, W) in [0, 1], with the trunk that :func:`find_squeezenet` finds; differentiable.

    Raises:
        WeightsError: it finds none.
    """
    path = find_squeezenet()
    if path is None:
        raise WeightsError(f"the loss term 'lpips' needs SqueezeNet 1.1; point ${WEIGHTS_ENV} at {WEIGHTS_NAME}")
    distances: Tensor = load_lpips(path).to(reference.device)(reference, received)
    return distances.mean()


class LpipsSqueeze(Metric):
    """LPIPS with a SqueezeNet 1.1 trunk; its weights are not shipped, so without them the value is None."""

    higher_is_better: ClassVar[bool] = False
    convention: ClassVar[str] = (
        "LPIPS v0.1 heads on SqueezeNet 1.1 (fp16 ImageNet weights; not proven equal to torchvision's), input at its own size; "
        "lower is better; a clip is the mean over frames"
    )

    def __init__(self) -> None:
        super().__init__()
        path = find_squeezenet()
        self.model = load_lpips(path) if path else None
        if self.model is None:
            self.unavailable = f"no SqueezeNet 1.1 weights found; point ${WEIGHTS_ENV} at {WEIGHTS_NAME}"

    @torch.no_grad()
    def update(self, reference: Tensor, received: Tensor) -> None:
        """Append the distances of (t, 3, H, W) frames in [0, 1]."""
        if self.model is None:
            return
        model = self.model.to(reference.device)
        for i in range(reference.shape[0]):
            self.values += model(reference[i : i + 1], received[i : i + 1]).tolist()
