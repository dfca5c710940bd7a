"""Two systems, one scene, several SNRs, from Python: the rows that `semcast compare` writes.

python examples/sweep.py
"""

from __future__ import annotations

import torch

from semcast import Format, Ledger, Link, make_system, open_clips, run
from semcast.metrics.base import MetricSet
from semcast.video.steps import steps


def main() -> None:
    (clip,) = open_clips("scene:demo", size=(128, 96), max_frames=4)
    for name in ("h265-ldpc", "h264-ldpc"):
        system, weights = make_system(name)
        for snr_db in (2.0, 10.0, 18.0):
            link, ledger, metrics = Link("awgn", snr_db=snr_db, cbr=0.06).eval(), Ledger(), MetricSet(["psnr_rgb_db"])
            fmt = Format(clip.height, clip.width, clip.fps, "watch", system.name, system.preset, weights, cbr=0.06)
            source = steps(clip, system.frames_per_step)
            with torch.inference_mode():
                for result in run(system, source, link, ledger, fmt=fmt, generator=torch.Generator().manual_seed(0)):
                    metrics.update_step(result.step, result.decoded)
            psnr_db = metrics.compute()["psnr_rgb_db"]
            print(f"{name:12} {snr_db:4.0f} dB  CBR {ledger.cbr:.4f}  PSNR {psnr_db:.2f} dB  {ledger.streams()}")


if __name__ == "__main__":
    main()
