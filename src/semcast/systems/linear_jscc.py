"""The linear joint source-channel code in closed form: the floor that every network has to clear.

    frame ─▶ 16x16 blocks ─▶ KLT ─▶ keep the strongest ─▶ water-filled power ─▶ symbols ~~▶ LMMSE ─▶ inverse KLT ─▶ frame_hat
                      └▶ class of block ─▶ range coder ─▶ packet ─────────────────▲

With one class of blocks the same coefficients of every block are sent. With 32, a class says which variances a block has, so
busy blocks get more channel uses and more power; the class indices are entropy-coded, sent as a packet and charged.
K.-H. Lee and D. P. Petersen, "Optimal linear coding for vector channels", IEEE Trans. Commun. 24(12), 1976 (power over Gaussian
components).

The statistics (basis, variances, frequencies of classes) are fitted to training material; nothing is trained.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from semcast.errors import BudgetError, UnknownNameError
from semcast.layers.block_classes import BLOCK, DIMS, BlockClasses, decode_classes, encode_classes
from semcast.layers.blocks import pad_to
from semcast.systems.base import Side, System, SystemSpec
from semcast.types import Analog, Aux, Budget, Csi, Decoded, Digital, Format, Packet, Payload, Received, RxAnalog, Step

_HEAD = "<bH"  # told SNR in half dB, gain in hundredths of a dB from -100 dB


@dataclass(frozen=True)
class LinearConfig:
    """``classes`` of blocks, 1 being the classical code; ``rotated`` coefficients have a KLT of their own in every class."""

    classes: int = 32
    rotated: int = 192


class LinearState(NamedTuple):
    """One side: the session header, and at the receiver the last frame, which a lost packet freezes."""

    fmt: Format
    last: Tensor | None = None


class LinearJscc(System):
    """Linear JSCC; every frame is a packet ``classes`` and an analog stream ``latent``."""

    name = "linear-jscc"
    frames_per_step = 1

    def __init__(self, config: LinearConfig, preset: str) -> None:
        super().__init__()
        self.config, self.preset = config, preset
        self.blocks = BlockClasses(config.classes, rotated=config.rotated)

    def start(self, fmt: Format, side: Side) -> LinearState:
        return LinearState(fmt)

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)  # closed form in full precision: there is no network to speed up
    def encode(
        self, step: Step, state: LinearState, csi: Csi, budget: Budget, *, generator: torch.Generator
    ) -> tuple[Payload, LinearState, Aux]:
        coefficients = self.blocks.analyse(pad_to(step.frames[:, 0], BLOCK))
        classes = self.blocks.classify(coefficients)[0]
        snr_steps = round(2 * max(-60.0, min(60.0, float(csi.snr_db.mean()))))
        body = encode_classes(classes.flatten().numpy(), self.blocks.grids(*classes.shape), self.blocks.frequencies.numpy())
        side = struct.calcsize(_HEAD) + len(body)
        uses = budget.uses - budget.uses_for_packets([side], None)
        if uses < classes.numel() // 16 + 1:
            raise BudgetError(
                f"linear-jscc:{self.preset} needs {side} bytes of side information a frame and no uses left for the picture "
                f"at CBR {budget.cbr:g}; raise --cbr"
            )
        plan = self.blocks.allocate(classes.flatten(), uses, snr_steps / 2)
        rows = self.blocks.rotate(coefficients[0].flatten(1).T, classes.flatten())
        x = (rows * plan.gain)[plan.sent]
        gain_db = -10 * math.log10(max(float(x.square().mean()), 1e-9))
        head = struct.pack(_HEAD, snr_steps, round(100 * (gain_db + 100)))
        payload: Payload = {
            "classes": Digital([[Packet(head + body)]]),
            "latent": Analog(torch.view_as_complex(x.reshape(1, -1, 2).contiguous())),
        }
        return payload, state, {}

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
    def decode(
        self, received: Received, state: LinearState, n_frames: int, *, generator: torch.Generator
    ) -> tuple[Decoded, LinearState, Aux]:
        packets, rx = received["classes"], received["latent"]
        assert isinstance(packets, list)
        assert isinstance(rx, RxAnalog)
        frame = self._decode_frame(packets[0][0], rx, state.fmt)
        if frame is not None:
            return Decoded(frames=frame[None, None]), LinearState(state.fmt, frame), {}
        last = state.last if state.last is not None else torch.full((3, state.fmt.height, state.fmt.width), 0.5)
        return Decoded(frames=last[None, None], concealed=1), state, {}

    def _decode_frame(self, data: bytes | None, rx: RxAnalog, fmt: Format) -> Tensor | None:
        h, w = math.ceil(fmt.height / BLOCK), math.ceil(fmt.width / BLOCK)
        size = struct.calcsize(_HEAD)
        if data is None or len(data) < size:
            return None
        snr_steps, gain_steps = struct.unpack_from(_HEAD, data)
        decoded = decode_classes(data[size:], self.blocks.grids(h, w), self.blocks.frequencies.numpy())
        if decoded is None:
            return None
        classes = torch.from_numpy(decoded)
        plan = self.blocks.allocate(classes, rx.y.shape[1], snr_steps / 2)
        if int(plan.sent.sum()) != 2 * rx.y.shape[1]:
            return None
        x, noise_var = rx.equalised()
        # The link's unit power is per complex symbol, the plan's per real component: both are scaled by sqrt(2).
        y = torch.view_as_real(x * math.sqrt(2)).flatten()
        noise = noise_var.repeat_interleave(2, 1).flatten()
        gain = plan.gain[plan.sent] * 10 ** ((gain_steps / 100 - 100) / 20)
        variance = plan.variance[plan.sent]
        coefficients = torch.zeros(h * w, DIMS)
        coefficients[plan.sent] = y * gain * variance / (gain.square() * variance + noise)
        blocks = self.blocks.rotate(coefficients, classes, back=True) @ self.blocks.basis + self.blocks.mean
        frame = F.pixel_shuffle(blocks.T.reshape(DIMS, h, w), BLOCK)
        return frame[:, : fmt.height, : fmt.width].clamp(0, 1)


CONFIGS = {"classes-32": LinearConfig(), "one-class": LinearConfig(classes=1, rotated=0)}


def make(preset: str, condition: str) -> LinearJscc:
    """Build a preset with no statistics yet."""
    if preset not in CONFIGS:
        raise UnknownNameError("preset of linear-jscc", preset, CONFIGS)
    return LinearJscc(CONFIGS[preset], preset)


SPEC = SystemSpec(
    name="linear-jscc",
    summary="block KLT, water-filled power, LMMSE: the best linear code in closed form",
    kind="hybrid",
    make=make,
    paper="Lee, Petersen 1976",
    presets=tuple(CONFIGS),
    trained=True,
    picture=True,
)
