"""Losses of the five training steps (section III-B), each from what transmitter and receiver noted down about every P-frame.

Rates are real symbols per pixel, or bits per pixel where nothing is sent; distortion is the MSE on the scale of 0 to 255, or
1 - MS-SSIM. In these units the published lambdas, 16 to 256 and 1/64 to 1/4, weigh what they weigh in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from semcast.layers.warp import warp
from semcast.systems.dvst.config import Plan
from semcast.systems.structural import ms_ssim_error

Note = Mapping[str, Tensor]
Task = Callable[[Tensor], Tensor]


def distortion(shown: Tensor, frames: Tensor, plan: Plan) -> Tensor:
    """D of two (B, 3, H, W), (B,)."""
    if plan.distortion == "mse":
        return 255**2 * (shown - frames).square().flatten(1).mean(1)
    return ms_ssim_error(shown, frames)


def pictured(note: Note, before: Tensor, plan: Plan) -> Tensor:
    """What a step makes of a frame (B, 3, H, W): the frame before, moved; the transform alone; or what the receiver shows."""
    h, w = before.shape[-2:]
    if plan.step <= 2:
        flow = note["motion"] if plan.step == 2 else note["motion_transform"]
        return warp(before, flow[..., :h, :w])
    return note["transform" if plan.step == 3 else "shown"][..., :h, :w].float()


def frame_loss(note: Note, frame: Tensor, before: Tensor, plan: Plan, rate_weight: float, task: Task | None) -> Tensor:
    """Loss of one P-frame under the plan's step, (B,).

    Args:
        note: what both ends noted. frame, before: the source frames t and t - 1, (B, 3, H, W). rate_weight: lambda.
        task: (B, 3, H, W) -> (B,), the loss of what the frames are for; None where they are for watching.
    """
    h, w = frame.shape[-2:]
    shown = pictured(note, before, plan)
    D = distortion(shown, frame, plan)
    if plan.step in (1, 3):
        bits = note["motion_bits" if plan.step == 1 else "primary_bits"]
        return D + rate_weight * bits if plan.bits else D  # eqs. (20), (21)
    D = note["arrived"] * D  # what a lost packet does is not the network's to mend
    if plan.step == 2:
        transform = distortion(warp(before, note["motion_transform"][..., :h, :w]), frame, plan)
        return transform + D + rate_weight * note["motion_rate"]  # eq. (22)
    if task is not None:
        D = D + plan.task_weight * note["arrived"] * task(shown)  # D_rec + beta D_task
    transform = distortion(note["transform"][..., :h, :w], frame, plan)
    rate = note["primary_rate"]  # eq. (23)
    if plan.step == 5 and "motion_rate" in note:
        rate = rate + note["motion_rate"]  # eq. (18)
    return rate_weight * rate + D + transform  # eq. (24)
