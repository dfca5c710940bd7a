"""DVST's tables of sizes, its ablations, and its five training steps as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from semcast.errors import InputError, UnknownNameError

STRIDE = 16
"""Pixels between latents; two by two of them are the token that a rate is chosen for."""
PATCH = 2 * STRIDE


@dataclass(frozen=True)
class PaperConfig:
    """The published network (section IV-A), and the ablations of fig. 14.

    Attributes:
        width, motion_width: C of the primary and of the motion link in fig. 4. context_width: C of fig. 5. hyper_width: of z.
            token_width, motion_token_width: M, of a patch embedding. depth, heads, window: of the Swin blocks of f_e, f_d.
        values, motion_values: V_pl and V_ml, real symbols that a token can get. flow_levels, flow_widths: of the flow network.
        eta: real symbols per bit. gop: frames from one key frame to the next. key_share: how many P-frames' channel uses a
            key frame gets. rate_weight: lambda, on real symbols per pixel.
        gop_training: let gradients pass from frame to frame in step 5. context: code on contexts; False codes the residual of
            the warped reference. motion_link: False sends no motion, and warps by none. constant_rate: real symbols of every
            token, a third of them motion's; 0 adapts.
    """

    width: int = 96
    motion_width: int = 128
    context_width: int = 96
    hyper_width: int = 64
    token_width: int = 192
    motion_token_width: int = 256
    depth: int = 4
    heads: int = 8
    window: int = 16
    values: tuple[int, ...] = (0, 2, 4, 6, 8, 10, 15, 20, 26, 32, 40, 48, 56, 64, 80, 96)
    motion_values: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32, 48)
    flow_levels: int = 4
    flow_widths: tuple[int, ...] = (32, 64, 32, 16)
    eta: float = 0.2
    gop: int = 4
    key_share: float = 4.0
    rate_weight: float = 64.0
    gop_training: bool = True
    context: bool = True
    motion_link: bool = True
    constant_rate: int = 0

    @property
    def primary_rates(self) -> tuple[int, ...]:
        """V of the primary link, or its one rate."""
        return (self.constant_rate - self.constant_rate // 3 * self.motion_link,) if self.constant_rate else self.values

    @property
    def motion_rates(self) -> tuple[int, ...]:
        """V of the motion link, or its one rate."""
        return (self.constant_rate // 3,) if self.constant_rate else self.motion_values


@dataclass(frozen=True)
class SmallConfig:
    """The shipped network, preset ``small``.

    Attributes:
        classes, quarter_classes, latents, rotated: of the blocks of P-frames, as in NTSCC. fine_width, fine_blocks: channels
            and residual blocks of g_s, on the grid of 8x8 blocks. embedding: numbers that describe a class to it.
            key_offset_db: how much lower the price of a use is in the I-frame, per doubling of the group. run: P-frames whose
            motion, and whose side information, share a packet.
        side_margin_db: how much worse than told the channel may be before P-frames are lost; I-frames bear more. distortion:
            what frames are judged by, "mse" or "ms_ssim".
    """

    classes: int = 32
    quarter_classes: int = 24
    latents: int = 384
    rotated: int = 128
    fine_width: int = 96
    fine_blocks: int = 3
    embedding: int = 8
    key_offset_db: float = 1.0
    run: int = 4
    side_margin_db: float = 1.0
    distortion: Literal["mse", "ms_ssim"] = "mse"

    @property
    def key_name(self) -> str:
        """``"system:preset"`` of the I-frames: the code for the same distortion."""
        return "ntscc:ms-ssim" if self.distortion == "ms_ssim" else "ntscc:small"


@dataclass(frozen=True)
class Ablation:
    """The ablations of fig. 14 in preset ``small``, under the names that they have in :class:`PaperConfig`.

    Attributes:
        gop_training: let gradients pass from frame to frame. context: let g_s see the context picture beside the difference;
            False leaves residual coding. motion_link: False sends no vectors, and predicts from the last frame as it stands.
        constant_rate: as many uses for every block of every P-frame, and a third for side information.
    """

    gop_training: bool = True
    context: bool = True
    motion_link: bool = True
    constant_rate: bool = False


LONGEST = 16
"""Frames of a group of ``small`` at most: what is predicted from keeps its noise until the next I-frame."""
STRUCTURAL = SmallConfig(distortion="ms_ssim", key_offset_db=3.0)
"""Preset ``ms-ssim``: I-frames whose errors are weighed are worth more to the frames after them."""
ABLATIONS = {
    "no-motion": Ablation(motion_link=False),
    "constant-rate": Ablation(constant_rate=True),
    "residual": Ablation(context=False),
    "no-gop": Ablation(gop_training=False),
}
"""Presets that are ``small`` with something left out."""


@dataclass(frozen=True)
class Plan:
    """What a stage of training does: section III-B.

    Attributes:
        step: 1 to 5 of the paper. bits: False drops the rate from the loss of steps 1 and 3, as step 3 begins.
        rate_weight: lambda; 0 takes the configuration's. distortion: of pictures. task_weight: beta of D_rec + beta D_task.
        train_key: train the key-frame system as well; P-frames take what it shows as given either way.
        gop: frames from one key frame to the next in training; 0 takes the configuration's. The paper's last step has 7.
    """

    step: int = 5
    bits: bool = True
    rate_weight: float = 0.0
    distortion: Literal["mse", "ms_ssim"] = "mse"
    task_weight: float = 64.0
    train_key: bool = True
    gop: int = 0

    @property
    def on_air(self) -> bool:
        """Whether the step sends anything: 1 and 3 pretrain transforms alone."""
        return self.step in (2, 4, 5)

    @property
    def ideal_reference(self) -> bool:
        """Whether the lossless previous frame stands for the reference."""
        return self.step <= 3

    @property
    def motion_frozen(self) -> bool:
        """Whether the motion link learns nothing."""
        return self.step in (3, 4)


def read_plan(options: Mapping[str, Any]) -> Plan:
    """A stage's options as a plan.

    Raises:
        UnknownNameError: an unknown option. InputError: no such step or distortion.
    """
    known = [field.name for field in fields(Plan)]
    for name in options:
        if name not in known:
            raise UnknownNameError("training option of dvst", name, known)
    plan = Plan(**dict(options))
    if plan.step not in range(1, 6):
        raise InputError(f"dvst trains in steps 1 to 5, got step {plan.step}")
    if plan.distortion not in ("mse", "ms_ssim"):
        raise InputError(f"the distortion is 'mse' or 'ms_ssim', got {plan.distortion!r}")
    return plan
