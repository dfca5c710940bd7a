"""Which rule after a loss: decode on, or freeze until the next intra frame? And which packets? Mean PSNR over seeds.

Packets are laid into blocks of 512 bytes that are lost independently, as the link's framing does; a packet is lost with any
block it touches. The clip is played forwards, then backwards, so that there is an intra frame to recover at.

    python benchmarks/concealment.py ../shared/data/eval/video/BasketballPass_416x240_50.mkv --seeds 16
"""

from __future__ import annotations

import argparse
import random

import torch
from torch import Tensor

from semcast.systems.conditions import Condition, load_condition
from semcast.systems.digital import conceal
from semcast.systems.digital.system import DigitalSystem
from semcast.types import Budget, Csi, Format, Step
from semcast.video.io import open_clips

BLOCK_BYTES, PREFIX_BYTES = 512, 2
GENERATOR = torch.Generator()


def psnr_db(shown: Tensor, frames: Tensor) -> float:
    """Mean over frames of RGB PSNR, at most 60 dB each."""
    mse = (shown - frames).square().mean((1, 2, 3)).clamp_min(1e-6)
    return float((-10 * mse.log10()).mean())


def encode(codec: str, condition: Condition, frames: Tensor, bytes_per_frame: float) -> tuple[DigitalSystem, list[list[bytes]]]:
    """Packets of every step at a constant rate."""
    system = DigitalSystem(codec, condition)
    state, steps = system.start(Format(*frames.shape[-2:]), "tx"), []
    for part in frames.split(system.frames_per_step):
        budget = Budget(0, 0, 0.01, 1.0, int(bytes_per_frame * len(part)))
        payload, state, _ = system.encode(Step(part[None]), state, Csi(torch.zeros(1)), budget, generator=GENERATOR)
        steps.append([packet.data for packet in payload["video"].packets[0]])
    return system, steps


def play(system: DigitalSystem, steps: list[list[bytes]], frames: Tensor, loss: float, seed: int) -> tuple[float, int]:
    """PSNR and concealed frames under one pattern of block losses."""
    rng = random.Random(seed)
    state, shown, concealed = system.start(Format(*frames.shape[-2:]), "rx"), [], 0
    for packets, part in zip(steps, frames.split(system.frames_per_step), strict=True):
        lost: dict[int, bool] = {}
        received: list[bytes | None] = []
        at = 0
        for packet in packets:
            first, at = at, at + len(packet) + PREFIX_BYTES
            touched = range(first // BLOCK_BYTES, (at - 1) // BLOCK_BYTES + 1)
            hit = [lost.setdefault(block, rng.random() < loss) for block in touched]
            received.append(None if any(hit) else packet)
        decoded, state, _ = system.decode({"video": [received]}, state, len(part), generator=GENERATOR)
        shown.append(decoded.frames[0])
        concealed += decoded.concealed
    return psnr_db(torch.cat(shown), frames), concealed


def main() -> None:
    """Print one line per codec, packet layout, rule and loss rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--losses", default="0.003,0.01,0.03")
    parser.add_argument("--cbr", type=float, default=0.0079)
    parser.add_argument("--codecs", default="h265,h264,av1")
    args = parser.parse_args()
    (clip,) = open_clips(args.video, max_frames=32)
    forwards = torch.stack(list(clip.frames()))
    frames = torch.cat([forwards, forwards.flip(0)])
    per_frame = args.cbr * forwards[0].numel() * 8 / 3 / 8
    receivers = {"h264": conceal.H264Receiver, "h265": conceal.H265Receiver, "av1": conceal.Av1Receiver}
    base = load_condition("strong")
    layouts = [
        ("1 slice, gather 400", 1, 400),
        ("1 slice, gather 0", 1, 0),
        ("1 slice, gather 1400", 1, 1400),
        ("4 slices, gather 400", 4, 400),
    ]
    for codec in args.codecs.split(","):
        rule_of = receivers[codec]
        usual = rule_of.on_loss
        for title, slices, gather in layouts:
            if slices > 1 and codec != "h264":
                continue  # a lost slice loses the picture there
            settings = getattr(base, codec).model_copy(update={"slices": slices})
            condition = base.model_copy(update={codec: settings, "gather_bytes": gather})
            system, steps = encode(codec, condition, frames, per_frame)
            clean = play(system, steps, frames, 0.0, 0)[0]
            print(f"{codec:5} {title:22} no loss   {clean:6.2f} dB, {len(steps[0])} packets per step", flush=True)
            for loss in map(float, args.losses.split(",")):
                for rule in ("decode-on", "freeze"):
                    rule_of.on_loss = rule
                    runs = [play(system, steps, frames, loss, seed) for seed in range(args.seeds)]
                    mean = sum(p for p, _ in runs) / len(runs)
                    concealed = sum(c for _, c in runs) / len(runs)
                    print(
                        f"{codec:5} {title:22} {loss:<7g} {rule:9} {mean:6.2f} dB, {concealed:5.1f} frames concealed",
                        flush=True,
                    )
        rule_of.on_loss = usual


if __name__ == "__main__":
    main()
