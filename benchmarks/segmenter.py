"""What the segmenter sees on clean pictures: mIoU, pixel accuracy, IoU per class; of all pictures together.

    python benchmarks/segmenter.py camvid:DIR/test --sizes 480x360,256x192
    python benchmarks/segmenter.py camvid:DIR/test --sizes 480x360,256x192 --weights runs/segmenter/checkpoint --card

``--card`` writes what was found into the checkpoint's card.json, as what the weights must reproduce. Labels are scaled with the
pictures, by the nearest neighbour.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from semcast import checkpoint
from semcast.app.options import frame_size, names
from semcast.goals.segmenter import CLASSES, Segmenter, predict
from semcast.metrics.base import MetricSet
from semcast.video.datasets import CAMVID_IGNORE
from semcast.video.io import open_clips

FEW = 30  # every so many pictures, for a test that takes seconds


def measure(model: Segmenter, source: str, size: str, every: int = 1) -> dict[str, Any]:
    """mIoU, pixel accuracy and IoU per class over the pictures of ``source``, or every n-th of them."""
    metrics = MetricSet(["miou", "pixel_accuracy"], classes=len(CLASSES), ignore_index=CAMVID_IGNORE)
    clips = open_clips(source, size=frame_size(size), stills=True)[::every]
    for clip in clips:
        for frame, labels in clip.labelled_frames():
            metrics.update_labels(labels["segmentation"][None], predict(model, frame[None]))
    counts = metrics.label_counts()
    each = zip(CLASSES, counts["hits"], counts["truth"], counts["predicted"], strict=True)
    per_class = {name: round(h / (t + p - h), 4) if t + p - h else None for name, h, t, p in each}
    values = {name: round(value or 0.0, 4) for name, value in metrics.compute().items()}
    return {"size": size, "every": every, "pictures": len(clips), **values, "per_class": per_class}


def main() -> None:
    """Measure, print, and complete the card where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source")
    parser.add_argument("--sizes", default="480x360,256x192")
    parser.add_argument("--weights", type=Path, default=checkpoint.shipped("segmenter", "small"))
    parser.add_argument("--card", action="store_true")
    parser.add_argument("--threads", type=int, default=None)
    typed = parser.parse_args()
    if typed.threads:
        torch.set_num_threads(typed.threads)
    model = Segmenter()
    checkpoint.load(model, typed.weights)
    model.eval()
    found = {}
    part = Path(typed.source.partition(":")[2]).name
    for size in names(typed.sizes, "--sizes"):
        for key, every in ((f"{part} {size}", 1), (f"{part} {size} few", FEW)):
            found[key] = measure(model, typed.source, size, every)
            print(key, json.dumps(found[key]))
    if typed.card:
        path = typed.weights / "card.json"
        card = json.loads(path.read_text())
        card["reproduces"] = {**card.get("reproduces", {}), **found}
        path.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
