"""Datasets in the layouts their authors publish; ``DATASET:DIR`` opens one as a list of clips.

Each reader checks what it can without decoding, and where files are missing or elsewhere it says which layout it expects.
Nothing is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from semcast.errors import VideoError
from semcast.video.clip import Clip, Labels, VideoInfo, check_size
from semcast.video.io import (
    PICTURES,
    VIDEOS,
    clip_of_file,
    natural_key,
    picture_size,
    pictures_clip,
    raw_options,
    read,
    read_picture,
    resize,
)

CAMVID_CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
    "unlabelled",
)
CAMVID_IGNORE = 11
CITYSCAPES_CLASSES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain", "sky"),
    *("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle", "unlabelled"),
)
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # of these classes in labelIds
_ADE20K_COUNT = 150
_CAMVID_RATE = 30.0  # frames per second behind the numbers in the file names
_VIMEO_SIZE = (448, 256)


class Reader(Protocol):
    """Opens the folder after ``DATASET:``; the options mean what they mean in :func:`semcast.video.io.open_clips`."""

    def __call__(
        self, folder: str, *, size: tuple[int, int] | None, fps: float | None, stills: bool, max_frames: int | None
    ) -> list[Clip]: ...


def _root(folder: str, layout: str) -> Path:
    root = Path(folder).expanduser()
    if not folder or not root.exists():
        raise VideoError(f"{folder or 'an empty path'}: no such folder; expected {layout}")
    return root


def _missing(root: Path, what: str, layout: str) -> VideoError:
    return VideoError(f"{root}: {what}; expected {layout}")


# Kodak ------------------------------------------------------------------------------------------------------------

_KODAK = "the 24 pictures kodim01.png to kodim24.png in one folder"


def kodak(folder: str, *, size: tuple[int, int] | None, fps: float | None, stills: bool, max_frames: int | None) -> list[Clip]:
    """The Kodak Lossless True Color Image Suite: 24 clips of one frame (768x512 or 512x768)."""
    root = _root(folder, _KODAK)
    paths = [root / f"kodim{k:02d}.png" for k in range(1, 25)]
    absent = [p.name for p in paths if not p.is_file()]
    if absent:
        more = f" and {len(absent) - 1} more are" if len(absent) > 1 else " is"
        raise _missing(root, f"{absent[0]}{more} missing", _KODAK)
    return [pictures_clip([p], p.stem, size=size, fps=fps) for p in paths]


# Vimeo-90k --------------------------------------------------------------------------------------------------------

_VIMEO = "sep_trainlist.txt, sep_testlist.txt and sequences/00001/0001/im1.png to im7.png (Vimeo-90k septuplets)"


def vimeo90k(
    folder: str, *, size: tuple[int, int] | None, fps: float | None, stills: bool, max_frames: int | None
) -> list[Clip]:
    """Vimeo-90k septuplets (Xue et al. 2019): clips of 7 frames of 448x256, in the order of the list.

    ``DIR`` means the test list; ``DIR/sep_trainlist.txt`` names another one. Only the first clip is looked for now, the
    others when their turn comes: there are 91,701.
    """
    root = _root(folder, _VIMEO)
    listing = root if root.is_file() else root / "sep_testlist.txt"
    root = listing.parent
    if not listing.is_file() or not (root / "sequences").is_dir():
        absent = "sequences/" if listing.is_file() else listing.name
        raise _missing(root, f"{absent} is missing", _VIMEO)
    names = [line.strip() for line in listing.read_text().splitlines() if line.strip()]
    wrong = next((n for n in names if not re.fullmatch(r"\d{5}/\d{4}", n)), None)
    if wrong is not None or not names:
        raise _missing(listing, f"{wrong!r} is no entry like 00001/0001" if wrong else "the list is empty", _VIMEO)
    clips = [_septuplet(root / "sequences" / name, name.replace("/", "-"), size, fps, max_frames) for name in names]
    clips[0].info  # noqa: B018  misplaced files show here, before an hour of training
    return clips


def _septuplet(folder: Path, name: str, size: tuple[int, int] | None, fps: float | None, max_frames: int | None) -> Clip:
    paths = [folder / f"im{k}.png" for k in range(1, 8)]
    inner = pictures_clip(paths, name, size=size, fps=fps, max_frames=max_frames, path=str(folder))

    def look() -> VideoInfo:
        absent = next((p for p in paths if not p.is_file()), None)
        if absent is not None:
            raise _missing(folder, f"{absent.name} is missing", _VIMEO)
        return inner.info

    def source(_: bool) -> Iterator[tuple[Tensor, Labels]]:
        look()
        return inner.labelled_frames()

    return Clip(name, look, source)


# raw sequences: UVG and the HEVC common test conditions --------------------------------------------------------------


@dataclass(frozen=True)
class _Sequences:
    """Test sequences whose file names carry size and rate."""

    pattern: re.Pattern[str]
    layout: str

    def __call__(
        self, folder: str, *, size: tuple[int, int] | None, fps: float | None, stills: bool, max_frames: int | None
    ) -> list[Clip]:
        root = _root(folder, self.layout)
        files = sorted((p for p in root.rglob("*") if p.is_file() and p.suffix.lower() in VIDEOS), key=lambda p: str(p))
        matches = [(p, m) for p in files if (m := self.pattern.fullmatch(p.name))]
        if not matches:
            what = f"no file is named that way ({files[0].name} is not)" if files else "no such files in it"
            raise _missing(root, what, self.layout)
        return [self._open(path, match, size, fps, max_frames) for path, match in matches]

    @staticmethod
    def _open(
        path: Path, match: re.Match[str], size: tuple[int, int] | None, fps: float | None, max_frames: int | None
    ) -> Clip:
        stored, rate = (int(match["width"]), int(match["height"])), float(match["fps"])
        if path.suffix.lower() == ".yuv":
            bits = int(match["bits"] or 8)
            pix_fmt = "yuv420p" if bits == 8 else f"yuv420p{bits}le"
            declared = raw_options(path, stored, rate, pix_fmt)
            clip = clip_of_file(path, declared, size=size, fps=fps, max_frames=max_frames)
        else:
            clip = read(path, size=size, fps=fps, max_frames=max_frames)
        return clip.renamed(match["name"])


_UVG = _Sequences(
    re.compile(
        r"(?P<name>[A-Za-z0-9]+)_(?P<width>\d+)x(?P<height>\d+)_(?P<fps>\d+)fps_420_(?P<bits>8|10)bit(_YUV)?(_RAW)?"
        r"\.(yuv|y4m|mkv|mp4)",
        re.IGNORECASE,
    ),
    "files like Beauty_1920x1080_120fps_420_8bit_YUV.yuv (UVG)",
)
_HEVC = _Sequences(
    re.compile(
        r"(?P<name>[A-Za-z0-9]+)_(?P<width>\d+)x(?P<height>\d+)_(?P<fps>\d+)(fps)?(_(?P<bits>8|10)bit)?(_crop|_500)?"
        r"\.(yuv|y4m|mkv|mp4)",
        re.IGNORECASE,
    ),
    "files like ClassD/BasketballPass_416x240_50.yuv (HEVC common test conditions)",
)


# CamVid -----------------------------------------------------------------------------------------------------------

_CAMVID = "pictures in DIR/test and label pictures of the same names in DIR/test_labels (likewise train, val)"


def camvid(folder: str, *, size: tuple[int, int] | None, fps: float | None, stills: bool, max_frames: int | None) -> list[Clip]:
    """CamVid in the folders of the SegNet tutorial, with ``"segmentation"`` labels, indices into ``CAMVID_CLASSES``.

    Frames of one drive that follow each other at 10 per second or more are one clip (``val``, 15 per second); the others, a
    second apart (``train``, ``test``), and with ``stills`` all, are clips of one frame each. ``DIR/val[51:]`` takes the
    pictures from the 52nd on, in the order of their names, and ``[:51]`` those before. Class 11 is unlabelled: leave it
    out of scores.
    """
    part = re.fullmatch(r"(.*)\[(\d*):(\d*)\]", folder)
    folder, low, high = (part[1], part[2], part[3]) if part else (folder, "", "")
    root = _root(folder, _CAMVID)
    labels = root.with_name(f"{root.resolve().name}_labels")
    paths = sorted((p for p in root.iterdir() if p.suffix.lower() in PICTURES), key=natural_key) if root.is_dir() else []
    if not paths:
        raise _missing(root, "no pictures in it", _CAMVID)
    pairs = [(p, labels / f"{p.stem}.png") for p in paths][int(low or 0) : int(high) if high else None]
    if not pairs:
        raise VideoError(f"{root}: [{low}:{high}] leaves none of its {len(paths)} pictures")
    absent = next((label for _, label in pairs if not label.is_file()), None)
    if absent is not None:
        raise _missing(root, f"{absent.parent.name}/{absent.name} is missing", _CAMVID)
    groups = [([pair], _CAMVID_RATE) for pair in pairs] if stills else _drives(pairs)
    return [_labelled_clip(group, rate, CAMVID_CLASSES, None, size, fps, max_frames) for group, rate in groups]


_Pair = tuple[Path, Path]


def _drives(pairs: list[_Pair]) -> list[tuple[list[_Pair], float]]:
    """Runs of frames with a constant step of at most three frame numbers, and the rate that this step means."""
    runs: list[tuple[list[_Pair], float]] = []
    previous: tuple[str, int] | None = None
    step = 0
    for pair in pairs:
        named = re.fullmatch(r"(.*?)_?f?(\d+)", pair[0].stem)
        here = (named[1], int(named[2])) if named else None
        gap = here[1] - previous[1] if here and previous and here[0] == previous[0] else 0
        if 1 <= gap <= 3 and (gap == step or len(runs[-1][0]) == 1):
            step = gap
            runs[-1] = ([*runs[-1][0], pair], _CAMVID_RATE / step)
        else:
            step = 0
            runs.append(([pair], _CAMVID_RATE))
        previous = here
    return runs


def _read_labels(path: Path, size: tuple[int, int]) -> Tensor:
    """(H, W) int64 class indices, brought to ``size`` (width, height) by the nearest neighbour."""
    import numpy as np
    from PIL import Image

    picture_size(path)
    with Image.open(path) as image:
        if image.mode not in ("L", "P", "I", "I;16", "1"):
            raise VideoError(f"{path}: labels are single-channel pictures of class indices, this one is {image.mode}")
        fitted = image if image.size == size else image.resize(size, Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(fitted).astype(np.int64))


def _labelled_clip(
    pairs: list[_Pair],
    rate: float,
    classes: tuple[str, ...],
    fold: Tensor | None,
    size: tuple[int, int] | None,
    fps: float | None,
    max_frames: int | None,
) -> Clip:
    """Pictures with label pictures; ``fold`` (256,) says which class a value in these means, None that it is the class."""
    pairs = pairs[:max_frames]
    first = pairs[0][0]
    name = first.stem if len(pairs) == 1 else f"{first.stem}-{len(pairs)}"

    def look() -> VideoInfo:
        width, height = size or picture_size(first)
        check_size(width, height, str(first))
        return VideoInfo(str(first), width, height, fps or rate, len(pairs), "pictures", first.suffix.lower().lstrip("."))

    def source(labels: bool) -> Iterator[tuple[Tensor, Labels]]:
        target = (known := look()).width, known.height
        for path, label_path in pairs:
            frame = read_picture(path)
            if size is None and (frame.shape[-1], frame.shape[-2]) != target:
                raise VideoError(f"{path}: {frame.shape[-1]}x{frame.shape[-2]} pixels, the clip has {target[0]}x{target[1]}")
            if not labels:
                yield resize(frame, target), {}
                continue
            truth = _read_labels(label_path, target)
            yield resize(frame, target), {"segmentation": truth if fold is None else fold[truth.clamp(0, 255)]}

    return Clip(name, look, source, classes=classes)


# Cityscapes and ADE20K ----------------------------------------------------------------------------------------------

_CITYSCAPES = (
    "DIR/leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png and "
    "DIR/gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png, opened as cityscapes:DIR/val"
)
_ADE20K = (
    "DIR/images/validation/ADE_val_00000001.jpg and DIR/annotations/validation/ADE_val_00000001.png "
    "(ADEChallengeData2016), opened as ade20k:DIR/validation"
)


def _fold(classes: dict[int, int], ignore: int) -> Tensor:
    table = torch.full((256,), ignore, dtype=torch.int64)
    for value, index in classes.items():
        table[value] = index
    return table


def _part(folder: str, pictures: str, layout: str) -> tuple[Path, str, Path]:
    """Root, name of the part, and the part's folder of pictures."""
    given = Path(folder).expanduser()
    root, part = given.parent, given.name
    where = root / pictures / part
    if not folder or not where.is_dir():
        raise VideoError(f"{where if folder else 'an empty path'}: no such folder; expected {layout}")
    return root, part, where


def _stills(
    pairs: list[_Pair],
    classes: tuple[str, ...],
    fold: Tensor,
    missing: Callable[[str], VideoError],
    size: tuple[int, int] | None,
    fps: float | None,
    max_frames: int | None,
) -> list[Clip]:
    """Every pair as a clip; ``missing`` makes the error that says what is not there."""
    absent = next((labels for _, labels in pairs if not labels.is_file()), None)
    if absent is not None or not pairs:
        raise missing(f"{absent} is missing" if absent else "no pictures in it")
    return [_labelled_clip([pair], _CAMVID_RATE, classes, fold, size, fps, max_frames) for pair in pairs]


def cityscapes(
    folder: str, *, size: tuple[int, int] | None, fps: float | None, stills: bool, max_frames: int | None
) -> list[Clip]:
    """Cityscapes (Cordts et al. 2016), fine annotations: clips of one frame, labels being indices into ``CITYSCAPES_CLASSES``.

    ``DIR/val`` opens that part. The 19 classes that are evaluated keep their order; all others are class 19, unlabelled.
    """
    root, part, where = _part(folder, "leftImg8bit", _CITYSCAPES)
    suffix = "_leftImg8bit.png"
    paths = sorted(where.rglob(f"*{suffix}"), key=natural_key)
    labels = root / "gtFine" / part
    pairs = [(p, labels / p.parent.name / (p.name.removesuffix(suffix) + "_gtFine_labelIds.png")) for p in paths]
    fold = _fold({value: index for index, value in enumerate(_CITYSCAPES_IDS)}, len(_CITYSCAPES_IDS))
    return _stills(pairs, CITYSCAPES_CLASSES, fold, lambda what: _missing(where, what, _CITYSCAPES), size, fps, max_frames)


def ade20k(folder: str, *, size: tuple[int, int] | None, fps: float | None, stills: bool, max_frames: int | None) -> list[Clip]:
    """ADE20K's scene parsing challenge (Zhou et al. 2019): clips of one frame, labels 0 to 149; 150 is unlabelled.

    ``DIR/validation`` opens that part. Classes are named by ``objectInfo150.txt`` where it lies in DIR.
    """
    root, part, where = _part(folder, "images", _ADE20K)
    paths = sorted((p for p in where.iterdir() if p.suffix.lower() in PICTURES), key=natural_key)
    pairs = [(p, root / "annotations" / part / f"{p.stem}.png") for p in paths]
    fold = _fold({value: value - 1 for value in range(1, _ADE20K_COUNT + 1)}, _ADE20K_COUNT)
    return _stills(pairs, ade20k_classes(root), fold, lambda what: _missing(where, what, _ADE20K), size, fps, max_frames)


def ade20k_classes(root: Path) -> tuple[str, ...]:
    """Names of the 150 classes from objectInfo150.txt, else their numbers; then "unlabelled"."""
    listing, names = root / "objectInfo150.txt", [f"class {k}" for k in range(1, _ADE20K_COUNT + 1)]
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8").splitlines():
            cells = line.split("\t")
            if len(cells) > 1 and cells[0].strip().isdigit() and 1 <= int(cells[0]) <= _ADE20K_COUNT:
                names[int(cells[0]) - 1] = cells[-1].strip().split(",")[0]
    return (*names, "unlabelled")


# class folders of clips: UCF101 and the like ------------------------------------------------------------------------

_UCF101 = "a folder per class with its clips: UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi"


def ucf101_classes(folder: str) -> list[str]:
    """Class names in the order of their ``"action"`` label: classInd.txt where it lies beside them, else the alphabet."""
    root = _root(folder, _UCF101)
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name != "ucfTrainTestlist")
    for place in (root, root / "ucfTrainTestlist", root.parent / "ucfTrainTestlist"):
        if (place / "classInd.txt").is_file():
            listed = [line.split()[1] for line in (place / "classInd.txt").read_text().splitlines() if len(line.split()) == 2]
            if set(names) <= set(listed):
                return listed
    return names


def ucf101(folder: str, *, size: tuple[int, int] | None, fps: float | None, stills: bool, max_frames: int | None) -> list[Clip]:
    """UCF101 (Soomro et al. 2012) or any class folders of videos, with the clip label ``"action"``; sorted by class and name.

    ``info`` is looked up when first asked, since there are 13,320 files; small or damaged ones show then.
    """
    classes = ucf101_classes(folder)
    root = Path(folder).expanduser()
    clips = []
    for index, name in enumerate(classes):
        inside = sorted((root / name).iterdir(), key=natural_key) if (root / name).is_dir() else []
        for path in inside:
            if path.suffix.lower() in VIDEOS:
                clips.append(_lazy(path, size, fps, max_frames).with_labels({"action": torch.tensor(index)}))
    if not clips:
        raise _missing(root, "no class folders with videos in it", _UCF101)
    return clips


def _lazy(path: Path, size: tuple[int, int] | None, fps: float | None, max_frames: int | None) -> Clip:
    opened: list[Clip] = []

    def clip() -> Clip:
        if not opened:
            opened.append(read(path, size=size, fps=fps, max_frames=max_frames))
        return opened[0]

    return Clip(path.stem, lambda: replace(clip().info), lambda labels: clip().labelled_frames())


DATASETS: dict[str, Reader] = {
    "ade20k": ade20k,
    "camvid": camvid,
    "cityscapes": cityscapes,
    "hevc": _HEVC,
    "kodak": kodak,
    "ucf101": ucf101,
    "uvg": _UVG,
    "vimeo90k": vimeo90k,
}
