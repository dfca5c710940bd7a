"""What the reproduction card of GOS-VAE stands on: rows of every part of the study, then the card itself.

    python benchmarks/gosvae_study.py table --out out/gosvae --clean   # every system with weights, without a channel
    python benchmarks/gosvae_study.py table --out out/gosvae --short --label "loss: kld" --systems gos-vae --weights DIR
    python benchmarks/gosvae_study.py jpeg --out out/gosvae --kilobytes 2.3  # JPEG at these bytes, and at 40 dB
    python benchmarks/gosvae_study.py table --out out/gosvae/large --clean --size "" --every 3  # at the pictures' own size
    python benchmarks/gosvae_study.py flicker --out out/gosvae --input "camvid:DIR/val[51:]" --kilobytes 2.3
    python benchmarks/gosvae_study.py curves --out out/gosvae --log runs/gos-vae/log.jsonl --mean-of 4  # an epoch, about
    python benchmarks/gosvae_study.py speed --out out/gosvae
    python benchmarks/gosvae_study.py card --out out/gosvae                # docs/reproduction/gos-vae.md

    semcast compare camvid:DIR/test --goal segment --stills --systems gos-vae,vq-vae,hevc-intra-ldpc,jpeg-ldpc --snr 0,5,10 \
        --cbr 0.0625 --json out/gosvae/link.json                           # over AWGN, beside digital chains

``table`` and ``jpeg`` are the paper's own view: kilobytes per picture, no channel. Indices are range-coded to real bytes,
packet heads included, under both models. The mIoU is that of all pictures together: pixels are added up first.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import reproduction
import torch
from study_rows import read_list, write_list
from torch import Tensor

from semcast.goals import GOALS
from semcast.ledger import Ledger
from semcast.link import Link
from semcast.metrics.base import MetricSet
from semcast.metrics.perceptual import find_squeezenet, load_lpips
from semcast.studies.session import load_system
from semcast.systems import SYSTEMS
from semcast.systems.gosvae.coding import HEAD_BYTES, Model
from semcast.systems.gosvae.system import GosVae
from semcast.transmit import run
from semcast.types import Decoded, Format, Step
from semcast.video.io import open_clips

TEST = "camvid:../shared/data/camvid/test"
NAMES = ("gos-vae", "gos-vae:star", "vq-vae", "autoencoder", "vq-gan", "gos-vae:r2", "gos-vae:r8")
MEASURES = ("miou", "pixel_accuracy", "psnr_rgb_db", "ssim_rgb", "lpips_squeeze")
Coded = tuple[Tensor, dict[str, float]]  # a picture as it is received, (3, H, W), and its bytes by name


class Spread:
    """Mean and covariance of SqueezeNet's last features, pooled over a picture, of many pictures."""

    def __init__(self) -> None:
        path = find_squeezenet()
        self.lpips = load_lpips(path) if path else None
        self.rows: list[np.ndarray] = []

    def update(self, frame: Tensor) -> None:
        """Take a picture (3, H, W) in [0, 1]."""
        if self.lpips is not None:
            x = (2 * frame[None] - 1 - self.lpips.shift) / self.lpips.scale
            self.rows.append(self.lpips.features(x).mean((2, 3))[0].double().numpy())

    def distance(self, other: Spread) -> float | None:
        """Frechet distance of the two Gaussians; None without SqueezeNet or with fewer than two pictures."""
        if len(self.rows) < 2:
            return None
        (m, a), (n, b) = ((np.mean(s.rows, 0), np.cov(np.array(s.rows).T)) for s in (self, other))
        values, vectors = np.linalg.eigh(a)
        root = (vectors * values.clip(0) ** 0.5) @ vectors.T
        cross = np.linalg.eigvalsh(root @ b @ root).clip(0) ** 0.5
        return max(0.0, float(np.square(m - n).sum() + np.trace(a) + np.trace(b) - 2 * cross.sum()))


def evaluate(given: argparse.Namespace, code: Callable[[Tensor], Coded]) -> dict[str, Any]:
    """Measures of what a coder makes of every n-th picture, and mean bytes."""
    goal = GOALS.get("segment")
    size = tuple(int(side) for side in given.size.split("x")) if given.size else None
    clips = open_clips(given.input, size=size, stills=True)[:: given.every]  # type: ignore[arg-type]
    metrics = MetricSet(MEASURES, classes=len(goal.classes), ignore_index=goal.ignore_index)
    sent, shown = Spread(), Spread()
    sizes: list[dict[str, float]] = []
    for clip in clips:
        ((frame, labels),) = clip.labelled_frames()
        received, bytes_ = code(frame)
        metrics.update(frame[None], received[None])
        seen = goal.perceive(Decoded(frames=received[None, None])).labels
        assert seen is not None
        metrics.update_labels(labels["segmentation"][None], seen[0])
        sent.update(frame)
        shown.update(received)
        sizes.append(bytes_)
    out: dict[str, Any] = {"input": given.input.split("/")[-1], "pictures": len(clips), "size": given.size or "as it is"}
    out |= metrics.compute() | {"frechet_squeeze": sent.distance(shown)}
    return out | {name: float(np.mean([s[name] for s in sizes])) for name in sizes[0]}


class Indices:
    """A system of this family without a channel: what the receiver shows, and bytes under both models of the indices."""

    def __init__(self, system: GosVae, weights: str) -> None:
        self.system, self.weights = system, weights

    def __call__(self, frame: Tensor) -> Coded:
        height, width = frame.shape[-2:]
        fmt = Format(height, width, goal="segment", system=self.system.name, preset=self.system.preset, cbr=2.0)
        link, ledger = Link("ideal", cbr=2.0).eval(), Ledger()
        (result,) = run(self.system, [Step(frame[None, None])], link, ledger, fmt=fmt, generator=torch.Generator())
        assert result.aux["scale"] == 0
        assert result.decoded.frames is not None
        coder = self.system.start(fmt, "tx").coder
        assert coder is not None
        models: tuple[Model, ...] = ("static", "context")
        sizes = {model: sum(map(len, coder.slices(result.aux["indices"], 0, model))) for model in models}
        head = HEAD_BYTES * len(coder.slices(result.aux["indices"], 0))
        return result.decoded.frames[0, 0], {
            "kb": sizes["context"] / 1000,
            "kb_static": sizes["static"] / 1000,
            "kb_heads": head / 1000,
        }


def jpeg_at(frame: Tensor, fits: Callable[[int, float], bool]) -> Coded:
    """JPEG at the best quality of 1 to 100 that ``fits`` (bytes, PSNR) lets pass; the coarsest where none does."""
    from PIL import Image

    picture = Image.fromarray(frame.mul(255).round().byte().movedim(0, -1).numpy())
    low, high, found = 1, 100, None
    while low <= high:
        quality = (low + high) // 2
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True, subsampling=2 if quality < 90 else 0)
        back = torch.from_numpy(np.array(Image.open(file))).movedim(-1, 0).float() / 255
        psnr = float(-10 * (back - frame).square().mean().log10())
        if fits(file.tell(), psnr):
            found, low = (back, {"kb": file.tell() / 1000, "quality": float(quality)}), quality + 1
        else:
            found, high = found or (back, {"kb": file.tell() / 1000, "quality": float(quality)}), quality - 1
    assert found is not None
    return found


def keep(given: argparse.Namespace, entry: dict[str, Any]) -> None:
    """Put an entry in the place of an older one of its label."""
    path = given.out / "table.json"
    write_list(path, [old for old in read_list(path) if old["label"] != entry["label"]] + [entry])
    shown = {key: round(value, 4) if isinstance(value, float) else value for key, value in entry.items()}
    print(json.dumps(shown), flush=True)


def table(given: argparse.Namespace) -> None:
    """Every system on every picture; those with shipped weights where none is named."""
    if given.clean:
        keep(given, {"label": "original", "system": "", "weights": "", **evaluate(given, lambda frame: (frame, {"kb": 0.0}))})
    for name in given.systems or NAMES:
        loaded = load_system(name, weights=given.weights)
        assert isinstance(loaded.system, GosVae)
        began = time.process_time()
        found = evaluate(given, Indices(loaded.system, loaded.weights))
        entry = {"label": given.label or name, "system": name, "weights": loaded.weights, "short": given.short, **found}
        keep(given, entry | {"cpu_s": time.process_time() - began})


def jpeg(given: argparse.Namespace) -> None:
    """JPEG at the bytes named, and at 40 dB."""
    for limit in given.kilobytes:
        found = evaluate(given, lambda frame, limit=limit: jpeg_at(frame, lambda size, psnr: size <= 1000 * limit))  # type: ignore[misc]
        keep(given, {"label": f"JPEG at {limit:g} kB", "system": "jpeg", "weights": "", **found})
    # the coarsest above 40 dB: the best of those that stay below it, one step on, differs by less than 0.2 dB
    found = evaluate(given, lambda frame: jpeg_at(frame, lambda size, psnr: psnr <= 40.0))
    keep(given, {"label": "JPEG at 40 dB", "system": "jpeg", "weights": "", **found})


def flicker(given: argparse.Namespace) -> None:
    """The labelled drive frame by frame: how far changes from frame to frame are from those of the source, in levels of 255."""
    size = tuple(int(side) for side in given.size.split("x")) if given.size else None
    (clip,) = open_clips(given.input, size=size, max_frames=given.frames)  # type: ignore[arg-type]
    frames = list(clip.frames())
    coders: dict[str, Callable[[Tensor], Coded]] = {}
    for name in given.systems or ("gos-vae", "gos-vae:star", "vq-vae"):
        loaded = load_system(name)
        assert isinstance(loaded.system, GosVae)
        coders[name] = Indices(loaded.system, loaded.weights)
    for limit in given.kilobytes:
        coders[f"JPEG at {limit:g} kB"] = lambda frame, limit=limit: jpeg_at(frame, lambda size, psnr: size <= 1000 * limit)  # type: ignore[misc]
    entries = []
    for name, code in coders.items():
        shown, sizes = zip(*(code(frame) for frame in frames), strict=True)
        off = [(b - a - (y - x)).abs().mean() for (a, b), (x, y) in zip(pairwise(shown), pairwise(frames), strict=True)]
        own = [(y - x).abs().mean() for x, y in pairwise(frames)]
        entry = {"label": name, "frames": len(frames), "kb": float(np.mean([s["kb"] for s in sizes]))}
        entries.append(entry | {"flicker": 255 * float(np.mean(off)), "source": 255 * float(np.mean(own))})
        print(entries[-1], flush=True)
    write_list(given.out / "flicker.json", entries)


def curves(given: argparse.Namespace) -> None:
    """Correlation of the training curves of JSD and LPIPS (fig. 3)."""
    lines = [json.loads(line) for line in Path(given.log).read_text().splitlines()]
    each = np.array([[line["jsd"], line["lpips"]] for line in lines if "jsd" in line and "lpips" in line])
    pairs = each[: len(each) // given.mean_of * given.mean_of].reshape(-1, given.mean_of, 2).mean(1)
    single = float(np.corrcoef(each.T)[0, 1])
    entry = {"steps": lines[-1]["step"], "points": len(pairs), "mean_of": given.mean_of, "single": single}
    entry["correlation"] = float(np.corrcoef(pairs.T)[0, 1])
    write_list(given.out / "curves.json", [entry | {"first": pairs[0].tolist(), "last": pairs[-1].tolist()}])
    print(entry)


def speed(given: argparse.Namespace) -> None:
    """Pictures of 256x512 per second of the encoder: network, nearest codeword, range coder; the best of several runs."""
    torch.set_num_threads(given.threads)
    entries = []
    for name in given.systems or ("gos-vae", "gos-vae:r8", "gos-vae:paper"):
        base, _, preset = name.partition(":")
        spec = SYSTEMS.get(base)
        system = spec.make(preset or spec.presets[0], "strong").eval().to(memory_format=torch.channels_last)
        fmt, x = Format(256, 512, cbr=2.0), torch.rand(1, 1, 3, 256, 512, generator=torch.Generator().manual_seed(0))
        tx, rx, air = system.start(fmt, "tx"), system.start(fmt, "rx"), Link("ideal", cbr=2.0).eval()
        csi, budget = air.grant(Step(x))
        best = [float("inf")] * 2
        with torch.inference_mode():
            for _ in range(given.repeats):
                began = time.perf_counter()
                payload, _, _ = system.encode(Step(x), tx, csi, budget, generator=torch.Generator())
                coded = time.perf_counter()
                packets = [[packet.data for packet in payload["indices"].packets[0]]]  # type: ignore[union-attr, index]
                arrived = time.perf_counter()
                system.decode({"indices": packets}, rx, 1, generator=torch.Generator())  # type: ignore[dict-item]
                best = [min(best[0], coded - began), min(best[1], time.perf_counter() - arrived)]
        entries.append({"system": name, "threads": given.threads, "encode_fps": 1 / best[0], "decode_fps": 1 / best[1]})
        print(entries[-1], flush=True)
    write_list(given.out / "speed.json", entries)


def card(given: argparse.Namespace) -> None:
    """The Markdown from what was measured."""
    text = reproduction.make_card("gos-vae", given.out)
    given.docs.mkdir(parents=True, exist_ok=True)
    (given.docs / "gos-vae.md").write_text(text, encoding="utf-8")
    print(f"wrote {given.docs / 'gos-vae.md'}")


def floats(text: str) -> tuple[float, ...]:
    """``"2,10"`` -> (2.0, 10.0)."""
    return tuple(float(part) for part in text.split(","))


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "table": table, "jpeg": jpeg, "flicker": flicker, "curves": curves, "speed": speed, "card": card,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, default=Path("out/gosvae"))
    parser.add_argument("--docs", type=Path, default=Path("docs/reproduction"))
    parser.add_argument("--input", default=TEST)
    parser.add_argument("--size", default="256x192", help='WxH; "" for as the pictures are')
    parser.add_argument("--frames", type=int, help="of a video; all by default")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--systems", type=lambda text: tuple(text.split(",")), default=())
    parser.add_argument("--weights", help="folder of a checkpoint, of the one system named")
    parser.add_argument("--label", default="", help="name of the entry; that of the system by default")
    parser.add_argument("--short", action="store_true", help="mark the entry as one of a short training")
    parser.add_argument("--clean", action="store_true", help="the original pictures, too")
    parser.add_argument("--kilobytes", type=floats, default=())
    parser.add_argument("--log", help="log.jsonl of a training")
    parser.add_argument("--mean-of", type=int, default=1, help="lines of the log that make one point of the curves")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        PARTS[given.part](given)


if __name__ == "__main__":
    main()
