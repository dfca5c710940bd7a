"""Reference points of H.265 on BasketballPass, in the codec layer alone: bytes in, PSNR out, no channel.

Channel uses are payload bits over 8/3, what 16-QAM at rate 2/3 carries per complex symbol. The reference was measured outside
this package with x265 `medium`, low delay, 32 frames, one intra frame. Both ways to average PSNR over frames are printed;
the packets' own headers are counted.

    python benchmarks/reference_points.py ../shared/data/eval/video/BasketballPass_416x240_50.mkv
"""

from __future__ import annotations

import argparse
import time

import torch

from semcast.systems.conditions import load_condition
from semcast.systems.digital.packets import unpack
from semcast.systems.digital.system import DigitalSystem
from semcast.types import Budget, Csi, Format, Step
from semcast.video.io import open_clips

BITS_PER_USE = 4 * 2 / 3
REFERENCE = {0.0218: 35.59, 0.0132: 33.52, 0.0079: 31.30, 0.0046: 29.19, 0.0027: 27.08}
FRAMES = 32


def main() -> None:
    """Print one line per codec and reference point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video")
    parser.add_argument("--codecs", default="h265,h264,av1")
    parser.add_argument("--condition", default="strong")
    args = parser.parse_args()
    (clip,) = open_clips(args.video, max_frames=FRAMES)
    frames = torch.stack(list(clip.frames()))
    height, width = frames.shape[-2:]
    generator = torch.Generator().manual_seed(0)
    print("codec         CBR of target    PSNR of mean MSE reference   gain trials      s")
    for codec in args.codecs.split(","):
        for cbr, reference in REFERENCE.items():
            system = DigitalSystem(codec, load_condition(args.condition))
            target = int(cbr * frames.numel() * BITS_PER_USE / 8)
            tx, rx = system.start(Format(height, width), "tx"), system.start(Format(height, width), "rx")
            spent, trials, shown, began = 0, 0, [], time.perf_counter()
            for at in range(0, FRAMES, system.frames_per_step):
                part = frames[at : at + system.frames_per_step]
                budget = Budget(0, 0, cbr, 1.0, target * (at + len(part)) // FRAMES - spent)
                payload, tx, aux = system.encode(Step(part[None]), tx, Csi(torch.zeros(1)), budget, generator=generator)
                packets = [packet.data for packet in payload["video"].packets[0]]
                assert not unpack(packets).tail_lost
                spent, trials = spent + aux["payload_bytes"], trials + aux["trials"]
                decoded, rx, _ = system.decode({"video": [list(packets)]}, rx, len(part), generator=generator)
                shown.append(decoded.frames[0])
            mse = (torch.cat(shown) - frames).double().square().mean((1, 2, 3))
            psnr, pooled = float((-10 * mse.log10()).mean()), float(-10 * mse.mean().log10())
            print(
                f"{codec:8} {spent * 8 / BITS_PER_USE / frames.numel():8.5f} {spent / target:9.3f} {psnr:7.2f} {pooled:11.2f} "
                f"{reference:9.2f} {psnr - reference:+6.2f} {trials:6d} {time.perf_counter() - began:6.2f}"
            )


if __name__ == "__main__":
    main()
