"""Frames per second of encoder and decoder, and of both together, in bf16 and fp32.

    python benchmarks/speed.py --systems deepjscc --threads 2

What the loop itself measures around ``encode`` and ``decode``, entropy coding and everything else included, the link left out;
the best of several runs, the first of which warms up. Random weights stand in where none are shipped: they take as long. A
processor without units for bf16 imitates it, which takes minutes and says nothing; it is left out there unless asked for.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from semcast import checkpoint
from semcast.machine import has_bf16
from semcast.studies.session import Loaded, Radio, load_system, transmit_clip
from semcast.systems import SYSTEMS
from semcast.video.io import open_clips


def ready(name: str, condition: str, folder: Path) -> Loaded:
    """A system with its shipped weights, or with random ones."""
    base, _, preset = name.partition(":")
    spec = SYSTEMS.get(base)
    preset = preset or spec.presets[0]
    if not spec.trained or checkpoint.shipped(base, preset):
        return load_system(name, condition=condition)
    return load_system(f"{base}:{preset}", weights=checkpoint.save(spec.make(preset, condition), folder / base, {}))


def main() -> None:
    """Measure and print one line per system and arithmetic."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default="deepjscc")
    parser.add_argument("--input", default="scene:demo")
    parser.add_argument("--size", default="416x240")
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--cbr", type=float, default=1 / 12)
    parser.add_argument("--snr", type=float, default=10.0)
    parser.add_argument("--condition", default="strong")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="bf16,fp32" if has_bf16() else "fp32", help="default here: %(default)s")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    width, height = (int(part) for part in given.size.split("x"))
    clip = open_clips(given.input, size=(width, height), max_frames=given.frames)[0]
    radio = Radio(snr_db=given.snr, cbr=given.cbr)
    print(
        f"{given.threads} threads, {given.size}, {given.frames} frames of {given.input}, CBR {given.cbr:.4f}, {given.snr:g} dB",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in given.systems.split(","):
            loaded = ready(name, given.condition, Path(folder))
            for precision in given.precision.split(",") if loaded.spec.trained else ("fp32",):
                runs = [transmit_clip(loaded, clip, radio, precision=precision, metrics=()).row for _ in range(given.repeats)]
                pairs = [(row.encode_fps or 0.0, row.decode_fps or 0.0) for row in runs]
                encode, decode = max(pairs, key=lambda pair: 1 / (1 / pair[0] + 1 / pair[1]))
                both = 1 / (1 / encode + 1 / decode)
                print(
                    f"{name:16} {precision}  encode {encode:7.1f} fps  decode {decode:7.1f} fps  both {both:7.1f} fps",
                    flush=True,
                )


if __name__ == "__main__":
    main()
