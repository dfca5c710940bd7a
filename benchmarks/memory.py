"""Peak resident memory of ``semcast transmit`` for a short and a long clip: it should not grow with the length.

    python benchmarks/memory.py --systems deepjscc,h265-ldpc --frames 200,2000

Both clips are made here, the long one going to and fro over the same rendered frames; every transmission is a process of its
own, which reads a file and writes a file. Exit code 1 where the long one takes more than 10 % more.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from semcast.video.io import open_clips
from semcast.video.writer import VideoWriter

ALLOWED = 1.10
RENDERED = 48


def make_clip(path: Path, frames: int, size: tuple[int, int]) -> None:
    """``frames`` frames of the demo scene, forwards and backwards in turn."""
    rendered = list(open_clips("scene:demo", size=size, max_frames=RENDERED)[0].frames())
    round_trip = rendered + rendered[-2:0:-1]
    with VideoWriter(path, *size, 25.0) as writer:
        for index in range(frames):
            writer.write(round_trip[index % len(round_trip)])


def peak_mb(args: list[str]) -> float:
    """Peak resident memory in MB of ``semcast`` with these arguments; raises RuntimeError where it fails."""
    process = subprocess.Popen([sys.executable, "-m", "semcast", *args], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"semcast {' '.join(args)} ended with {process.returncode}")
    return usage.ru_maxrss / 1024


def main() -> int:
    """Measure, print a table, and say whether the promise holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default="deepjscc,h265-ldpc")
    parser.add_argument("--frames", default="200,2000")
    parser.add_argument("--size", default="416x240")
    parser.add_argument("--cbr", default="0.02")
    parser.add_argument("--metrics", default="psnr_rgb_db")
    parser.add_argument("--weights", help="checkpoint, where none is shipped")
    given = parser.parse_args()
    width, height = (int(part) for part in given.size.split("x"))
    counts = [int(part) for part in given.frames.split(",")]
    good = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in counts:
            make_clip(folder / f"{count}.mp4", count, (width, height))
        for system in given.systems.split(","):
            peaks = []
            for count in counts:
                args = ["transmit", str(folder / f"{count}.mp4"), str(folder / "out.mp4"), "--system", system]
                args += [
                    "--cbr",
                    given.cbr,
                    "--metrics",
                    given.metrics,
                    *(["--weights", given.weights] if given.weights else []),
                ]
                peaks.append(peak_mb(args))
                print(f"{system:16} {count:6} frames  peak {peaks[-1]:8.1f} MB", flush=True)
            ratio = peaks[-1] / peaks[0]
            good &= ratio <= ALLOWED
            print(f"{system:16} {counts[-1]} against {counts[0]} frames: {100 * (ratio - 1):+.1f} %", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
