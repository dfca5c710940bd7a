"""Dataset readers, on made-up trees of the official layouts and, where they lie beside the repository, on real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from semcast.errors import UnknownNameError, VideoError
from semcast.video import open_clips, write
from semcast.video.datasets import CAMVID_CLASSES, ucf101_classes
from semcast.video.steps import steps

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def needs(folder: str) -> Path:
    if not (DATA / folder).exists():
        pytest.skip(f"no ../shared/data/{folder} beside the repository")
    return DATA / folder


def picture(path: Path, value: int = 100, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, value, value)).save(path)


def video(path: Path, frames: int = 2, size: tuple[int, int] = (64, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, torch.full((frames, 3, size[1], size[0]), 0.5), 25)


def raw(path: Path, width: int, height: int, frames: int, bits: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = frames * (width * height + 2 * ((width + 1) // 2) * ((height + 1) // 2))
    np.full(samples, 128 << (bits - 8), np.uint8 if bits == 8 else np.uint16).tofile(path)


def test_kodak(tmp_path):
    for k in range(1, 25):
        picture(tmp_path / f"kodim{k:02d}.png", k, (96, 64) if k % 2 else (64, 96))
    clips = open_clips(f"kodak:{tmp_path}")
    assert [c.name for c in clips][:2] == ["kodim01", "kodim02"]
    assert [(c.width, c.height) for c in clips][:2] == [(96, 64), (64, 96)]
    assert [len(list(c)) for c in clips] == [1] * 24
    (tmp_path / "kodim07.png").unlink()
    with pytest.raises(VideoError, match=r"kodim07\.png is missing; expected the 24 pictures"):
        open_clips(f"kodak:{tmp_path}")


def test_vimeo90k(tmp_path):
    for name in ("00001/0001", "00002/0010"):
        for k in range(1, 8):
            picture(tmp_path / "sequences" / name / f"im{k}.png", 10 * k, (448, 256))
    (tmp_path / "sep_testlist.txt").write_text("00002/0010\n")
    (tmp_path / "sep_trainlist.txt").write_text("00001/0001\n00002/0010\n\n00003/0001\n")
    (clip,) = open_clips(f"vimeo90k:{tmp_path}")
    assert (clip.name, clip.n_frames, clip.width, clip.height) == ("00002-0010", 7, 448, 256)
    assert [round(float(f.mean() * 255)) for f in clip] == [10, 20, 30, 40, 50, 60, 70]
    train = open_clips(f"vimeo90k:{tmp_path}/sep_trainlist.txt", max_frames=3)
    assert [c.name for c in train] == ["00001-0001", "00002-0010", "00003-0001"]
    assert len(list(train[0])) == 3
    with pytest.raises(VideoError, match=r"im1\.png is missing; expected sep_trainlist"):
        list(train[2])
    (tmp_path / "sep_testlist.txt").write_text("somewhere/else\n")
    with pytest.raises(VideoError, match="no entry like 00001/0001"):
        open_clips(f"vimeo90k:{tmp_path}")
    with pytest.raises(VideoError, match=r"sep_testlist\.txt is missing"):
        open_clips(f"vimeo90k:{tmp_path / 'sequences'}")


def test_uvg_and_hevc_take_size_rate_and_depth_from_the_name(tmp_path):
    raw(tmp_path / "uvg" / "Beauty_128x72_120fps_420_8bit_YUV.yuv", 128, 72, 3)
    raw(tmp_path / "uvg" / "Jockey_96x72_120fps_420_10bit_YUV.yuv", 96, 72, 2, bits=10)
    beauty, jockey = open_clips(f"uvg:{tmp_path / 'uvg'}")
    assert (beauty.name, beauty.width, beauty.height, beauty.fps, beauty.n_frames) == ("Beauty", 128, 72, 120, 3)
    assert (jockey.name, jockey.info.pix_fmt, len(list(jockey))) == ("Jockey", "yuv420p10le", 2)
    assert beauty.yuv_frames() is not None
    (small, _) = open_clips(f"uvg:{tmp_path / 'uvg'}", size=(64, 64), fps=60)
    assert [tuple(f.shape) for f in small] == [(3, 64, 64)] * 2
    raw(tmp_path / "hevc" / "ClassD" / "BasketballPass_104x66_50.yuv", 104, 66, 4)
    raw(tmp_path / "hevc" / "ClassA" / "Nebuta_96x66_60_10bit_crop.yuv", 96, 66, 1, bits=10)
    nebuta, basket = open_clips(f"hevc:{tmp_path / 'hevc'}")
    assert (basket.name, basket.fps, len(list(basket))) == ("BasketballPass", 50, 4)
    assert (nebuta.info.pix_fmt, nebuta.fps) == ("yuv420p10le", 60)
    for name in ("uvg", "hevc"):
        (tmp_path / "other").mkdir(exist_ok=True)
        raw(tmp_path / "other" / "clip.yuv", 64, 64, 1)
        with pytest.raises(VideoError, match=r"clip\.yuv is not\); expected files like"):
            open_clips(f"{name}:{tmp_path / 'other'}")


def camvid_tree(root: Path, names: list[str]) -> None:
    for index, name in enumerate(names):
        picture(root / "val" / f"{name}.png", 100 + index, (96, 72))
        picture(root / "val_labels" / f"{name}.png", index, (96, 72), "L")


def test_camvid_labels_clips_and_stills(tmp_path):
    drive = [f"0016E5_{k:05d}" for k in (7959, 7961, 7963, 7965)]
    camvid_tree(tmp_path, [*drive, "0016E5_08100", "Seq05VD_f00030", "Seq05VD_f00060"])
    clips = open_clips(f"camvid:{tmp_path}/val")
    assert [(c.n_frames, c.fps) for c in clips] == [(4, 15.0), (1, 30.0), (1, 30.0), (1, 30.0)]
    for index, (frame, truth) in enumerate(clips[0].labelled_frames()):
        assert round(float(frame.mean() * 255)) == 100 + index
        assert truth["segmentation"].shape == (72, 96)
        assert (truth["segmentation"] == index).all()
    (step,) = steps(open_clips(f"camvid:{tmp_path}/val", size=(80, 64), max_frames=2)[0], 4)
    assert step.frames.shape == (1, 2, 3, 64, 80)
    assert step.labels["segmentation"].shape == (1, 2, 64, 80)
    assert [c.n_frames for c in open_clips(f"camvid:{tmp_path}/val", stills=True)] == [1] * 7
    assert [c.n_frames for c in open_clips(f"camvid:{tmp_path}/val[2:5]")] == [2, 1]
    with pytest.raises(VideoError, match="leaves none"):
        open_clips(f"camvid:{tmp_path}/val[9:]")
    (tmp_path / "val_labels" / "0016E5_07961.png").unlink()
    with pytest.raises(VideoError, match=r"val_labels/0016E5_07961\.png is missing; expected"):
        open_clips(f"camvid:{tmp_path}/val")
    with pytest.raises(VideoError, match="no pictures in it"):
        open_clips(f"camvid:{tmp_path}")


def test_ucf101_action_labels(tmp_path):
    root = tmp_path / "UCF-101"
    video(root / "Archery" / "v_Archery_g01_c01.avi".replace(".avi", ".mp4"))
    video(root / "YoYo" / "v_YoYo_g01_c10.mp4", 3)
    video(root / "YoYo" / "v_YoYo_g01_c02.mp4")
    clips = open_clips(f"ucf101:{root}")
    assert [(c.name, int(c.labels["action"])) for c in clips] == [
        ("v_Archery_g01_c01", 0),
        ("v_YoYo_g01_c02", 1),
        ("v_YoYo_g01_c10", 1),
    ]
    assert [len(list(c)) for c in clips] == [2, 2, 3]
    assert next(steps(clips[2], 2)).labels["action"].tolist() == [1]
    listed = tmp_path / "ucfTrainTestlist" / "classInd.txt"
    listed.parent.mkdir()
    listed.write_text("1 Zumba\n2 YoYo\n3 Archery\n")
    assert ucf101_classes(str(root)) == ["Zumba", "YoYo", "Archery"]
    assert [int(c.labels["action"]) for c in open_clips(f"ucf101:{root}")] == [1, 1, 2]
    with pytest.raises(VideoError, match="UCF-101/ApplyEyeMakeup"):
        open_clips(f"ucf101:{tmp_path / 'ucfTrainTestlist'}")


@pytest.mark.parametrize("name", ["camvid", "hevc", "kodak", "ucf101", "uvg", "vimeo90k"])
def test_absent_folders_and_unknown_names_say_what_is_expected(name, tmp_path):
    with pytest.raises(VideoError, match=r"no such folder; expected"):
        open_clips(f"{name}:{tmp_path / 'nowhere'}")
    with pytest.raises(UnknownNameError, match=name):
        open_clips(f"{name}x:{tmp_path}")


# the real thing


@pytest.mark.data
def test_real_kodak():
    clips = open_clips(f"kodak:{needs('eval/images')}")
    assert {(c.width, c.height) for c in clips} == {(768, 512), (512, 768)}


@pytest.mark.data
def test_real_camvid():
    root = needs("camvid")
    assert len(open_clips(f"camvid:{root}/test")) == 233
    (val,) = open_clips(f"camvid:{root}/val")
    assert (val.n_frames, val.fps, val.width, val.height) == (101, 15.0, 480, 360)
    step = next(steps(val, 2))
    assert int(step.labels["segmentation"].max()) < len(CAMVID_CLASSES)
    road = step.frames.permute(0, 1, 3, 4, 2)[step.labels["segmentation"] == CAMVID_CLASSES.index("road")]
    sky = step.frames.permute(0, 1, 3, 4, 2)[step.labels["segmentation"] == CAMVID_CLASSES.index("sky")]
    assert sky.mean() > road.mean() + 0.2


@pytest.mark.data
def test_real_hevc_class_and_actions():
    (basket,) = open_clips(f"hevc:{needs('eval/video')}")
    assert (basket.name, basket.width, basket.height, basket.fps, basket.n_frames) == ("BasketballPass", 416, 240, 50, 65)
    clips = open_clips(f"ucf101:{needs('actions/eval')}")
    assert [int(c.labels["action"]) for c in clips] == [0] * 25 + [1] * 25
    assert next(clips[0].frames()).shape[0] == 3


# Cityscapes and ADE20K ------------------------------------------------------------------------------------------------------


def labels(path: Path, columns: list[int], size: tuple[int, int]) -> None:
    """A label picture of vertical stripes."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    row = np.repeat(np.array(columns, np.uint8), size[0] // len(columns))
    Image.fromarray(np.tile(row, (size[1], 1))).save(path)


def test_cityscapes(tmp_path):
    for city, name in (("frankfurt", "frankfurt_000000_000294"), ("munster", "munster_000000_000019")):
        picture(tmp_path / "leftImg8bit" / "val" / city / f"{name}_leftImg8bit.png", 90, (128, 64))
        labels(tmp_path / "gtFine" / "val" / city / f"{name}_gtFine_labelIds.png", [7, 0, 33, 26, 9, 23, 255, 8], (128, 64))
    clips = open_clips(f"cityscapes:{tmp_path}/val")
    assert [clip.name for clip in clips] == ["frankfurt_000000_000294_leftImg8bit", "munster_000000_000019_leftImg8bit"]
    ((frame, truth),) = clips[0].labelled_frames()
    assert frame.shape == (3, 64, 128)
    assert truth["segmentation"][5, ::16].tolist() == [0, 19, 18, 13, 19, 10, 19, 1]
    assert clips[0].classes[13] == "car"
    assert len(clips[0].classes) == 20
    (small,) = open_clips(f"cityscapes:{tmp_path}/val", size=(96, 72))[1].labelled_frames()
    assert small[0].shape == (3, 72, 96)
    assert small[1]["segmentation"].shape == (72, 96)
    (tmp_path / "gtFine" / "val" / "munster" / "munster_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(VideoError, match=r"munster_000000_000019_gtFine_labelIds\.png is missing; expected"):
        open_clips(f"cityscapes:{tmp_path}/val")
    with pytest.raises(VideoError, match="no such folder; expected DIR/leftImg8bit"):
        open_clips(f"cityscapes:{tmp_path}/train")


def test_ade20k(tmp_path):
    picture(tmp_path / "images" / "validation" / "ADE_val_00000001.jpg", 90, (120, 64))
    labels(tmp_path / "annotations" / "validation" / "ADE_val_00000001.png", [0, 1, 150, 13], (120, 64))
    (clip,) = open_clips(f"ade20k:{tmp_path}/validation")
    ((frame, truth),) = clip.labelled_frames()
    assert frame.shape == (3, 64, 120)
    assert truth["segmentation"][5, ::30].tolist() == [150, 0, 149, 12]
    assert clip.classes[12] == "class 13"
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n13\t0.02\t1\t1\tperson, individual\n")
    (clip,) = open_clips(f"ade20k:{tmp_path}/validation")
    assert clip.classes[12] == "person"
    assert clip.classes[150] == "unlabelled"
    (tmp_path / "annotations" / "validation" / "ADE_val_00000001.png").unlink()
    with pytest.raises(VideoError, match=r"ADE_val_00000001\.png is missing"):
        open_clips(f"ade20k:{tmp_path}/validation")
