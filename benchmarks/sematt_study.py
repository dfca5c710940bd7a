"""What the reproduction card of SemAttJSCC stands on: rows of every part of the study, then the card itself.

    python benchmarks/sematt_study.py jscc --data DIR --out out/sematt       # DIR holds CamVid's test/ and test_labels/
    python benchmarks/sematt_study.py card --out out/sematt                  # docs/reproduction/sematt-jscc.md from the rows

`jscc` is figs. 3 to 6 (both codes, true maps, free and charged), `maps` the same code with the segmenter's maps, `digital` the
chains of figs. 7 and 8 (adaptive, and fixed schemes for the cliff), `seeds` the order of both codes over trainings, `ablation`
maps without SemAtt, `coders` what maps cost, `complexity` Table I, `synthesis` the frames between key frames, on the second
half of CamVid's labelled drive (`val`). What is there already is not measured again. Networks compute in fp32.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import reproduction
import torch
from sematt_synthesis import synthesis
from study_rows import Shelf, expected, write_list
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from semcast.errors import InputError
from semcast.goals.segmenter import predict, shipped_segmenter
from semcast.studies.session import Loaded, MapSource, Radio, load_system, transmit_clip
from semcast.systems import SYSTEMS
from semcast.systems.sematt import SEMATT
from semcast.systems.sematt.maps import CODERS, MapCoder, class_map
from semcast.systems.sematt.system import SemAttSystem
from semcast.video.clip import Clip
from semcast.video.io import open_clips

CODES = ("dynamicjscc", "sematt-jscc")
CHAINS = ("jpeg2000-ldpc", "hevc-intra-ldpc")
MEASURES = ("psnr_rgb_db", "ssim_rgb", "lpips_squeeze", "miou", "pixel_accuracy")
RATES = {"1/12": 1 / 12, "1/6": 1 / 6}
FIXED = ("bpsk-1/3", "qpsk-1/2", "16qam-2/3")
TABLE_SIZE, PAPER_SIZE = (256, 512), (1024, 2048)


def numbers(text: str) -> tuple[float, ...]:
    """``"2,10"`` -> (2.0, 10.0)."""
    return tuple(float(part) for part in text.split(","))


def pictures(given: argparse.Namespace) -> list[Clip]:
    """Every n-th picture of CamVid's test part, as clips of one frame."""
    return open_clips(f"camvid:{given.data}/test", stills=True)[:: given.every]


def measure(
    systems: Sequence[Loaded],
    clips: Sequence[Clip],
    radios: Sequence[Radio],
    shelf: Shelf,
    *,
    free: bool = False,
    seed: int = 0,
) -> None:
    """Every system over every link on every picture; what is there is left alone."""
    for clip in clips:
        for radio in radios:
            for loaded in systems:
                wanted = expected(loaded, clip, 1, radio, seed, goal="segment", assumed_free=free)
                if shelf.has(wanted):
                    continue
                began = time.process_time()
                try:
                    row = transmit_clip(
                        loaded, clip, radio, goal="segment", seed=seed, metrics=MEASURES, precision="fp32", assumed_free=free
                    ).row
                except InputError as error:
                    shelf.refuse(wanted, str(error))
                    continue
                shelf.add(row)
                print(
                    f"{row.name:22} {row.maps or '':9} {'free' if free else 'paid':4} {row.clip:14} {radio.mcs or '':9} "
                    f"{row.snr_db:5g} dB  CBR {row.cbr:.5f}  {row.psnr_rgb_db:6.2f} dB  LPIPS {row.lpips_squeeze:.4f}  "
                    f"mIoU {row.miou:.3f}  {time.process_time() - began:5.2f} CPU s",
                    flush=True,
                )


def codes(given: argparse.Namespace, maps: MapSource = "truth", names: Sequence[str] = CODES) -> list[Loaded]:
    """The codes, with the shipped weights or those given."""
    folders = {Path(folder).name.split("-", 1)[1]: folder for folder in given.weights}
    return [load_system(name, weights=_checkpoint(folders.get(name)), maps=maps) for name in names]


def _checkpoint(run: str | None) -> Path | None:
    return None if run is None else Path(run) / "checkpoint"


def radios(given: argparse.Namespace, rates: Sequence[float]) -> list[Radio]:
    """AWGN at every SNR and rate."""
    return [Radio(snr_db=snr_db, cbr=cbr) for cbr in rates for snr_db in given.snr]


def jscc(given: argparse.Namespace) -> None:
    """Both codes, true maps: free, then charged."""
    shelf, systems, links = Shelf(given.out, "jscc"), codes(given), radios(given, [RATES[r] for r in given.rates])
    for clip in pictures(given):
        for free in (True, False):
            measure(systems, [clip], links, shelf, free=free)


def maps(given: argparse.Namespace) -> None:
    """SemAttJSCC with the maps that the segmenter predicts at the transmitter, charged."""
    names = ("sematt-jscc",)
    measure(codes(given, "predicted", names), pictures(given), radios(given, [RATES["1/12"]]), Shelf(given.out, "maps"))


def digital(given: argparse.Namespace) -> None:
    """The chains at R = 1/12, adapting; and with fixed schemes, whose cliffs show."""
    shelf = Shelf(given.out, "digital")
    chains = [load_system(name) for name in given.systems or CHAINS]
    adaptive = radios(given, [RATES["1/12"]])
    measure(chains, pictures(given), adaptive, shelf)
    for mcs in FIXED if given.fixed else ():
        fixed = [replace(radio, mcs=mcs) for radio in adaptive]
        measure(chains, pictures(given), fixed, Shelf(given.out, f"cliff-{mcs.replace('/', '-')}"))


def seeds(given: argparse.Namespace) -> None:
    """Both codes from several trainings (`--weights DIR/TAG-SYSTEM` for each), true maps, free and charged, R = 1/12."""
    links = radios(given, [RATES["1/12"]])
    trainings = []
    for folder in given.weights:
        name = next(code for code in CODES if Path(folder).name.endswith(f"-{code}"))
        shelf = Shelf(given.out, f"seeds-{Path(folder).name.removesuffix(f'-{name}')}")
        trainings.append((load_system(name, weights=_checkpoint(folder), maps="truth"), shelf.path.stem))
    for clip in pictures(given):
        for free in (True, False):
            for loaded, part in trainings:
                measure([loaded], [clip], links, Shelf(given.out, part), free=free)


def ablation(given: argparse.Namespace) -> None:
    """The small network that knows true maps but has no SemAtt (`--weights RUN`), maps free, R = 1/12."""
    loaded = load_system("sematt-jscc:no-attention", weights=_checkpoint(given.weights[0]), maps="truth")
    measure([loaded], pictures(given), radios(given, [RATES["1/12"]]), Shelf(given.out, "ablation"), free=True)


def coders(given: argparse.Namespace) -> None:
    """Bytes of true and of predicted maps by every coder, on grids of 4, 8 and 16 pixels; tables from the training part."""
    classes = SEMATT["small"].classes
    sources = {part: open_clips(f"camvid:{given.data}/{part}", stills=True) for part in ("train", "test")}
    train = torch.stack([_labels(clip)[1] for clip in sources["train"]])
    tests = [_labels(clip) for clip in sources["test"][:: given.every]]
    entries = []
    for cell in (4, 8, 16):
        coder = MapCoder(classes)
        coder.fit(class_map(train, cell, 16, classes))
        for source in ("truth", "predicted"):
            labels = torch.stack(
                [one if source == "truth" else predict(shipped_segmenter(), frame[None])[0] for frame, one in tests]
            )
            found = [coder.candidates(one) for one in class_map(labels, cell, 16, classes).numpy()]
            sizes = {name: sum(len(one[name]) for one in found) / len(found) for name in CODERS}
            entries.append({"cell": cell, "maps": source, "pictures": len(found), **sizes})
            print(entries[-1], flush=True)
    write_list(given.out / "coders.json", entries)


def _labels(clip: Clip) -> tuple[Tensor, Tensor]:
    ((frame, labels),) = clip.labelled_frames()
    return frame, labels["segmentation"]


def complexity(given: argparse.Namespace) -> None:
    """Table I: parameters, and floating-point operations of encoder and decoder on a picture of Cityscapes' size.

    Counted at a sixteenth of the pixels and multiplied: everything is linear in them.
    """
    cases = (("dynamicjscc", "paper"), ("sematt-jscc", "paper"), ("dynamicjscc", "paper-convolutions"))
    small = (("dynamicjscc", "small"), ("sematt-jscc", "small"))
    entries = []
    for name, preset in (*cases, *small):
        system = SYSTEMS.get(name).make(preset, "strong").eval()
        assert isinstance(system, SemAttSystem)
        parameters = sum(p.numel() for p in system.parameters())
        height, width = TABLE_SIZE
        random = torch.Generator().manual_seed(0)
        frames = torch.rand(1, 3, height, width, generator=random)
        blocks = torch.randint(system.code.classes, (1, height // 64, width // 64), generator=random)
        classes = blocks.repeat_interleave(64 // system.code.cell, 1).repeat_interleave(64 // system.code.cell, 2)
        snr_db, count = torch.tensor([10.0]), height * width // 2
        count = min(count, system.code.capacity(height, width))
        with torch.no_grad(), FlopCounterMode(display=False) as flops:
            symbols, told = system.code.encode(frames, classes, snr_db, count)
            system.code.decode(symbols, 10 ** (-snr_db / 10), classes, told, count)
        scale = PAPER_SIZE[0] * PAPER_SIZE[1] / (height * width)
        gflops = flops.get_total_flops() * scale / 1e9
        entry: dict[str, Any] = {"system": name, "preset": preset, "parameters": parameters, "gflops": gflops}
        entries.append(entry | {"kmac_per_pixel": gflops * 1e6 / 2 / (PAPER_SIZE[0] * PAPER_SIZE[1])})
        print(entries[-1], flush=True)
    write_list(given.out / "complexity.json", entries)


def card(given: argparse.Namespace) -> None:
    """Write the card; a figure that no row speaks of is said not to be attempted."""
    given.docs.mkdir(parents=True, exist_ok=True)
    target = given.docs / "sematt-jscc.md"
    target.write_text(reproduction.make_card("sematt-jscc", given.out), encoding="utf-8")
    print(target)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "jscc": jscc, "maps": maps, "digital": digital, "seeds": seeds, "ablation": ablation,
    "coders": coders, "complexity": complexity, "synthesis": synthesis, "card": card,
}  # fmt: skip


def main() -> None:
    """One part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--data", type=Path, default=Path("../shared/data/camvid"), help="CamVid's folder")
    parser.add_argument("--out", type=Path, default=Path("out/sematt"), help="folder of the rows")
    parser.add_argument("--every", type=int, default=8, help="take every n-th test picture")
    parser.add_argument("--snr", type=numbers, default=(0.0, 2.0, 5.0, 10.0))
    parser.add_argument(
        "--rates", type=lambda text: tuple(text.split(",")), default=("1/12",), help="of 1/12,1/6: of key frames"
    )
    parser.add_argument("--systems", type=lambda text: tuple(text.split(",")), help="of `digital`, or series of `synthesis`")
    parser.add_argument("--no-fixed", dest="fixed", action="store_false", help="`digital` without the cliffs")
    parser.add_argument("--weights", action="append", default=[], help="a run, named TAG-SYSTEM, in place of shipped weights")
    parser.add_argument("--docs", type=Path, default=Path("docs/reproduction"), help="where `card` writes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    PARTS[given.part](given)


if __name__ == "__main__":
    main()
