"""The quantiser cascade and the chroma offset of x264 or x265 under a condition, chosen on training clips alone.

Every clip is scaled to one size and its first 32 frames are coded at a few quantisers per setting, in the codec layer: bytes of
the packets, headers counted, against the mean over frames of RGB PSNR; no channel. Printed is, per setting, the BD-rate against
the first setting, mean over clips and per clip; below zero is better.

    python benchmarks/tune_h26x.py ../shared/data/train/video/{a,b,c}.mp4 --settings 0:0,7-6-7-3:-3

A setting is cascade:offset; the cascade's quantiser offsets are joined by dashes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from bjontegaard import bd_rate
from semcast.systems.digital.conditions import Condition, load_condition
from torch import Tensor

from semcast.systems.digital.codec import H264, H265
from semcast.systems.digital.packets import pack, unpack
from semcast.systems.digital.system import CODECS, MATRIX, PREFIX_BYTES
from semcast.video.colour import rgb_to_yuv420
from semcast.video.io import open_clips

FRAMES = 32
ENCODERS = {"h264": (H264, "chroma-qp-offset"), "h265": (H265, "cbqpoffs")}
Curve = list[tuple[float, float]]
"""Points of (bytes per frame, RGB PSNR in dB)."""


def curve(codec: str, condition: Condition, frames: Tensor, cascade: Sequence[int], offset: int, qps: Sequence[int]) -> Curve:
    """One point per quantiser for frames (T, 3, H, W); the steeper the cascade, the finer the intra frame: so rates agree."""
    make, option = ENCODERS[codec]
    known = getattr(condition, codec)
    settings = known.model_copy(update={"cascade": tuple(cascade), "options": {**known.options, option: offset}})
    encoder, planes, points = make(settings, condition), rgb_to_yuv420(frames, matrix=MATRIX), []
    for qp in qps:
        units = encoder.encode(planes, qp - round(0.8 * mean(cascade)))
        packets = pack(units, condition.packet_bytes, condition.gather_bytes)
        shown = CODECS[codec].receiver(condition, *frames.shape[-2:]).decode(unpack(packets), len(frames)).frames
        mse = (shown - frames).double().square().mean((1, 2, 3))
        size = sum(len(packet) + PREFIX_BYTES for packet in packets)
        points.append((size / len(frames), float((-10 * mse.log10()).mean())))
    return sorted(points)


def rate_change(anchor: Curve, test: Curve) -> float:
    """BD-rate in per cent."""
    columns = [[point[i] for point in points] for points in (anchor, test) for i in (0, 1)]
    return float(bd_rate(*columns, method="pchip", require_matching_points=False, min_overlap=0))


def main() -> None:
    """Print one line per setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--codec", default="h265", choices=sorted(ENCODERS))
    parser.add_argument("--condition", default="strong")
    parser.add_argument("--settings", default="0:0,0:-3,7-6-7-3:-3,5-4-5-2:-3,9-8-9-5:-3,4-3-4-1:-3,3:-3,7-6-7-3:0,7-6-7-3:-6")
    parser.add_argument("--qps", default="23,29,35,41")
    parser.add_argument("--size", default="416x240")
    given = parser.parse_args()
    width, height = (int(part) for part in given.size.split("x"))
    qps, condition = [int(part) for part in given.qps.split(",")], load_condition(given.condition)
    clips = []
    for path in given.videos:
        (clip,) = open_clips(str(path), size=(width, height), max_frames=FRAMES)
        clips.append(torch.stack(list(clip.frames())))
    print(f"{given.codec}, {given.condition}, {len(clips)} clips of {FRAMES} frames at {given.size}: " + ", ".join(
        path.stem for path in given.videos
    ))  # fmt: skip
    print(f"{'cascade:chroma':>16}  BD-rate in %, mean and per clip", flush=True)
    anchors: list[Curve] = []
    for setting in given.settings.split(","):
        cascade, _, offset = setting.partition(":")
        steps = [int(part) for part in cascade.split("-")]
        curves = [curve(given.codec, condition, frames, steps, int(offset or 0), qps) for frames in clips]
        anchors = anchors or curves
        changes = [rate_change(a, b) for a, b in zip(anchors, curves, strict=True)]
        print(f"{setting:>16} {mean(changes):+7.2f}  " + " ".join(f"{change:+6.1f}" for change in changes), flush=True)


if __name__ == "__main__":
    main()
