"""The digital chains as systems: a codec of today under rate control, its packets, and a receiver that conceals.

    frames ─▶ 4:2:0 ─▶ encoder ─▶ NAL units ─▶ packets ─▶ link: CRC, LDPC, QAM (or capacity)
                 ▲        │ size
                 └── rate control                          packets | lost ─▶ decoder ─▶ conceal ─▶ frames

Where even the coarsest quality takes more than the budget, the transmitter halves the frame size, twice at most, then
leaves frames out; the packets say so, and the receiver scales up and repeats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from semcast.errors import BudgetError
from semcast.systems.base import Side, System, SystemSpec
from semcast.systems.conditions import Condition, load_condition
from semcast.systems.digital.codec import H264, H265, Av1, Encoder, HevcIntra, pad_even
from semcast.systems.digital.conceal import (
    MATRIX,
    Av1Receiver,
    H264Receiver,
    H265Receiver,
    Jpeg2000Receiver,
    JpegReceiver,
    MjpegReceiver,
    Receiver,
)
from semcast.systems.digital.packets import Arrived, pack, unpack
from semcast.systems.digital.pictures import Jpeg, Jpeg2000
from semcast.systems.digital.ratecontrol import Outcome, Trial, meet_target
from semcast.types import Aux, Budget, Csi, Decoded, Digital, Format, Packet, Payload, Received, State, Step
from semcast.video.colour import Yuv, rgb_to_yuv420

STREAM = "video"
MAX_SCALE, MAX_THIN = 2, 3
TAIL_TRIALS = 3  # each codes the group again
SHORTEST_GROUP = 16  # frames; shorter groups are a condition to be kept to the letter
PREFIX_BYTES = 2  # length prefix that the link's framing puts in front of every packet


@dataclass(frozen=True)
class Codec:
    """A registry of what makes a chain: encoder, receiver, settings in the condition, and whether it codes single pictures."""

    settings: str
    encoder: Callable[[Any, Condition], Encoder]
    receiver: type[Receiver]
    title: str
    picture: bool = False


CODECS: dict[str, Codec] = {
    "h264": Codec("h264", H264, H264Receiver, "H.264 (x264)"),
    "h265": Codec("h265", H265, H265Receiver, "H.265 (x265)"),
    "av1": Codec("av1", Av1, Av1Receiver, "AV1 (SVT-AV1)"),
    "mjpeg": Codec("mjpeg", Jpeg, MjpegReceiver, "Motion JPEG"),
    "jpeg": Codec("jpeg", Jpeg, JpegReceiver, "JPEG", True),
    "jpeg2000": Codec("jpeg2000", Jpeg2000, Jpeg2000Receiver, "JPEG 2000", True),
    "hevc-intra": Codec("hevc_intra", HevcIntra, H265Receiver, "H.265 intra (the codec of BPG; x265)", True),
}


@dataclass
class TxState:
    """What the transmitter remembers: the session header; quality, size reduction, frames and coding of the last step."""

    fmt: Format
    quality: float | None = None
    scale: int = 0
    thin: int = 0
    sent: bool = False
    group: Yuv | None = None
    coded: Trial | None = None


@dataclass
class RxState:
    """What the receiver remembers: the session header, and the decoder with what it showed last."""

    fmt: Format
    receiver: Receiver


class DigitalSystem(System):
    """A digital chain.

    Args:
        codec: a key of ``CODECS``. condition: how the codec is configured. capacity: the ideal bound instead of LDPC.
        preset: as registered.
    """

    def __init__(self, codec: str, condition: Condition, *, capacity: bool = False, preset: str = "default") -> None:
        super().__init__()
        self.codec, self.condition, self.preset = CODECS[codec], condition, preset
        self.name = f"{codec}-{'capacity' if capacity else 'ldpc'}"
        self.modem_kind = "capacity" if capacity else "ldpc"
        self.frames_per_step = 1 if self.codec.picture else condition.gop
        self.encoder = self.codec.encoder(getattr(condition, self.codec.settings), condition)

    def start(self, fmt: Format, side: Side) -> State:
        """State of one side; the receiver needs the session header only."""
        if side == "tx":
            return TxState(fmt)
        return RxState(fmt, self.codec.receiver(self.condition, fmt.height, fmt.width))

    def encode(
        self, step: Step, state: TxState, csi: Csi, budget: Budget, *, generator: torch.Generator
    ) -> tuple[Payload, State, Aux]:
        """Code the step into as many bytes as the budget allows.

        Raises:
            BudgetError: not even the coarsest coding of the first step fits; later steps are skipped instead.
        """
        frames = step.frames[0].detach().float().cpu()
        target = budget.payload_bytes or int(budget.uses * csi.bits_per_use / 8)
        outcome, scale, thin = self._append(frames, target, state), 0, 0
        if outcome is None:
            outcome, scale, thin = self._fit(frames, target, state)
        if outcome.trial is None:
            if not state.sent:
                height, width = frames.shape[-2:]
                lowest = outcome.smallest * 8 / max(csi.bits_per_use, 1e-9) / (3 * height * width * max(frames.shape[0], 1))
                raise BudgetError(
                    f"{self.name} cannot send {width}x{height} at CBR {budget.cbr:.4g}: its coarsest coding takes about "
                    f"{lowest:.4g} at this SNR; raise --cbr or --snr"
                )
            aux: Aux = {
                "rate_note": "the budget of this step carries no frame: skipped",
                "trials": outcome.trials,
                "gop": frames.shape[0],
            }
            return {STREAM: Digital([[]])}, state, aux
        trial = outcome.trial
        keeps = (
            self.encoder.continues
            and not self.codec.picture
            and not scale
            and not thin
            and frames.shape[0] == self.frames_per_step
        )
        clip = self._clip(frames, 0) if keeps else None
        state.group, state.coded = (clip, trial) if isinstance(clip, Yuv) else (None, None)
        state.quality, state.scale, state.thin, state.sent = trial.quality, scale, thin, True
        packets = [Packet(data, priority=int(k == 0)) for k, data in enumerate(trial.packets)]
        aux = {
            "quality": trial.quality, "trials": outcome.trials, "payload_bytes": trial.size, "target_bytes": target,
            "scale": scale, "thin": thin, "rate_note": outcome.note, "gop": frames.shape[0],
        }  # fmt: skip
        return {STREAM: Digital([packets])}, state, aux

    def decode(
        self, received: Received, state: RxState, n_frames: int, *, generator: torch.Generator
    ) -> tuple[Decoded, State, Aux]:
        """Decode what arrived, and conceal the rest."""
        batches = received.get(STREAM)
        packets = batches[0] if isinstance(batches, list) and batches else []
        arrived: Arrived = unpack(packets)
        shown = state.receiver.decode(arrived, n_frames)
        return Decoded(frames=shown.frames[None], concealed=shown.concealed), state, {"drifting": shown.drifting}

    # -- rate ------------------------------------------------------------------------------------------------------------

    def _append(self, frames: Tensor, target: int, state: TxState) -> Outcome | None:
        """A clip's last few frames as inter frames of the group before: one more intra frame would take all they have.

        None where that cannot be: they are many, the codec cannot, the group was lost or reduced, or nothing fits.
        """
        group, coded, encoder = state.group, state.coded, self.encoder
        if group is None or coded is None or not isinstance(encoder, H264 | H265):
            return None
        if 4 * frames.shape[0] > self.condition.gop or self.condition.gop < SHORTEST_GROUP or target <= 0:
            return None
        rest = self._clip(frames, 0)
        clip = Yuv(*(torch.cat([a, b]) for a, b in zip(group, rest, strict=True)))
        same = True

        def attempt(quality: float, fine: float | None) -> Trial:
            nonlocal same
            again, units = encoder.encode_tail(clip, group.y.shape[0], coded.quality, coded.fine, quality)
            same &= again == coded.units
            packets = pack(units, self.condition.packet_bytes, self.condition.gather_bytes)
            return Trial(quality, fine, units, packets, sum(len(p) + PREFIX_BYTES for p in packets))

        outcome = meet_target(
            attempt,
            lambda quality, units: None,
            target,
            start=coded.quality,
            best=encoder.best,
            worst=encoder.worst,
            slope=encoder.slope,
            max_trials=TAIL_TRIALS,
        )
        return outcome if same and outcome.trial is not None else None

    def _fit(self, frames: Tensor, target: int, state: TxState) -> tuple[Outcome, int, int]:
        """Search quality, then smaller frames, then fewer frames, until something fits ``target`` bytes."""
        steps = [(0, 0)]
        side = min(frames.shape[-2:])
        scales = [s for s in range(1, MAX_SCALE + 1) if side >> s >= self.encoder.min_side]
        steps += [(s, 0) for s in scales]
        thinnest = min(MAX_THIN, (frames.shape[0] - 1).bit_length())
        steps += [(scales[-1] if scales else 0, k) for k in range(1, thinnest + 1)]
        first = steps.index((state.scale, state.thin)) if (state.scale, state.thin) in steps else 0
        outcome = Outcome(None, 0)
        trials = 0
        # one step back up each time, so that a better channel is noticed
        for scale, thin in steps[max(first - 1, 0) :] if target > 0 else []:
            start = state.quality if (scale, thin) == (state.scale, state.thin) else None
            outcome = self._search(frames, target, scale, thin, start)
            trials += outcome.trials
            if outcome.trial is not None:
                break
        else:
            scale, thin = steps[-1]
        if outcome.trial is not None and (scale or thin):
            note = f"the coarsest quality takes more than the budget: frames sent at 1/{1 << scale} size"
            outcome = Outcome(outcome.trial, trials, note + (f", 1 in {1 << thin}" if thin else ""))
        return Outcome(outcome.trial, trials, outcome.note, outcome.smallest), scale, thin

    def _search(self, frames: Tensor, target: int, scale: int, thin: int, start: float | None) -> Outcome:
        clip = self._clip(frames[:: 1 << thin], scale)
        condition, encoder = self.condition, self.encoder

        def attempt(quality: float, fine: float | None) -> Trial:
            units = encoder.encode(clip, quality, fine)
            packets = pack(units, condition.packet_bytes, condition.gather_bytes, scale, thin)
            return Trial(quality, fine, units, packets, sum(len(p) + PREFIX_BYTES for p in packets))

        if start is None:
            pixels = frames.shape[0] * frames.shape[-1] * frames.shape[-2] / 4**scale
            bits_per_pixel = target * 8 / max(pixels, 1)
            start = encoder.first_guess + torch.log(torch.tensor(max(bits_per_pixel, 1e-6) / 0.1)).item() / encoder.slope
        return meet_target(
            attempt,
            encoder.fine,
            target,
            start=start,
            best=encoder.best,
            worst=encoder.worst,
            slope=encoder.slope,
            step=encoder.step(frames.shape[0]),
        )

    def _clip(self, frames: Tensor, scale: int) -> Yuv | Tensor:
        """Frames as the encoder takes them: padded, scaled down, and 4:2:0 unless it wants RGB."""
        frames = pad_even(frames, (1 if self.encoder.rgb else 2) << scale)
        if scale:
            frames = F.avg_pool2d(frames, 1 << scale)
        return frames if self.encoder.rgb else rgb_to_yuv420(frames, matrix=MATRIX)


def spec(codec: str, *, capacity: bool = False) -> SystemSpec:
    """The registry entry of a chain."""
    kind = CODECS[codec]
    name = f"{codec}-{'capacity' if capacity else 'ldpc'}"
    over = "at the Shannon capacity of the channel: a bound" if capacity else "over 5G LDPC and QAM"

    def make(preset: str, condition: str) -> System:
        return DigitalSystem(codec, load_condition(condition), capacity=capacity, preset=preset)

    return SystemSpec(name, f"{kind.title} {over}", "digital", make, picture=kind.picture)


H264_LDPC, H264_CAPACITY = spec("h264"), spec("h264", capacity=True)
H265_LDPC, H265_CAPACITY = spec("h265"), spec("h265", capacity=True)
AV1_LDPC, AV1_CAPACITY = spec("av1"), spec("av1", capacity=True)
MJPEG_LDPC, JPEG_LDPC, JPEG2000_LDPC = spec("mjpeg"), spec("jpeg"), spec("jpeg2000")
HEVC_INTRA_LDPC = spec("hevc-intra")
