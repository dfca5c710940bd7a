"""The goal ``segment``: its loss, its network at any size, its rows, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from semcast.app.cli import main
from semcast.errors import ContractError, InputError
from semcast.goals import GOALS
from semcast.goals.segment import TRUST, Segment, bootstrapped_cross_entropy
from semcast.goals.segmenter import CLASSES, Segmenter, SegmenterConfig, predict
from semcast.metrics.task import MeanIou
from semcast.studies.rows import Row
from semcast.studies.session import Radio, load_system, transmit_clip
from semcast.studies.stats import points, pooled
from semcast.types import Decoded, Step
from semcast.video.clip import Clip, VideoInfo
from semcast.video.datasets import CAMVID_CLASSES, CAMVID_IGNORE
from semcast.video.io import open_clips

TINY = SegmenterConfig(quarter=8, eighth=8, sixteenth=16, dilations=(1, 2))


class ByBrightness(nn.Module):
    """Labels a pixel by how bright it is: a task model whose answer is known."""

    def forward(self, frames: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 11, H, W): class k is best at a grey of k / 10."""
        levels = torch.arange(len(CLASSES)).view(1, -1, 1, 1) / 10
        return -100 * (frames.mean(1, keepdim=True) - levels).square()


def tiny() -> Segmenter:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Segmenter(TINY).eval()


# -- the loss ----------------------------------------------------------------------------------------------------------------


def test_bootstrapping_is_its_formula() -> None:
    """-sum_k [b t_k + (1 - b) q_k] log q_k, written out; and plain cross entropy where the network is certain."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64).float()
    truth = torch.randint(0, 5, (2, 3, 4), generator=generator)
    truth[0, 0, 0] = 9
    found = bootstrapped_cross_entropy(logits, truth, ignore_index=9)
    q = torch.softmax(logits, 1)
    for n in range(2):
        values = []
        for y in range(3):
            for x in range(4):
                if int(truth[n, y, x]) != 9:
                    t = torch.nn.functional.one_hot(truth[n, y, x], 5)
                    values.append(-((TRUST * t + (1 - TRUST) * q[n, :, y, x]) * q[n, :, y, x].log()).sum())
        assert float(found[n]) == pytest.approx(float(torch.stack(values).mean()), rel=1e-5)
    certain = torch.nn.functional.one_hot(truth.clamp(max=4), 5).movedim(-1, 1) * 50.0
    assert float(bootstrapped_cross_entropy(certain, truth, ignore_index=9).max()) < 1e-6


def test_unlabelled_pixels_have_no_say() -> None:
    logits = torch.randn(2, 11, 4, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    truth = torch.full((2, 4, 4), CAMVID_IGNORE)
    truth[0, 1, 1] = 3
    loss = bootstrapped_cross_entropy(logits, truth, ignore_index=CAMVID_IGNORE, weights=torch.full((11,), 2.0))
    assert float(loss[1].detach()) == 0  # nothing labelled at all
    loss.sum().backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(1) > 0
    assert touched.nonzero().tolist() == [[0, 1, 1]]


def test_rare_classes_can_weigh_more() -> None:
    logits, truth = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])
    logits[0, 1] = 2.0  # says class 1 everywhere: right for the second pixel
    for weights, more in ((torch.tensor([9.0, 1.0]), True), (torch.tensor([1.0, 9.0]), False)):
        weighed = bootstrapped_cross_entropy(logits, truth, ignore_index=9, weights=weights)
        assert bool(weighed > bootstrapped_cross_entropy(logits, truth, ignore_index=9)) is more


# -- the network -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 79), (100, 160), (240, 416)])
def test_any_size(height: int, width: int) -> None:
    model = tiny()
    frames = torch.rand(2, 1, 3, height, width, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert model(frames[0]).shape == (1, len(CLASSES), height, width)
    labels = predict(model, frames)
    assert labels.shape == (2, 1, height, width)
    assert labels.dtype == torch.int64
    assert torch.equal(labels[1, 0], predict(model, frames[1, 0][None])[0])  # pictures of a batch know nothing of each other


def test_gradients_reach_every_parameter() -> None:
    model = tiny().train()
    model(torch.rand(2, 3, 64, 80)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)] == []


@pytest.mark.parametrize(("height", "width"), [(64, 96), (50, 90)])
def test_levels_lie_where_they_belong(height: int, width: int) -> None:
    """Exactly 1/4, 1/8 and 1/16 of the padded picture, every cell within 1/5 of its size of the pixels it stands for."""
    model = tiny()
    with torch.no_grad():
        levels = model.encode(torch.rand(1, 3, height, width))
    assert [tuple(level.shape[-2:]) for level in levels] == [(64 // n, 96 // n) for n in (4, 8, 16)]
    place, cell, seen = 0.0, 1, []
    for layer in model.features:
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            size, padding = (v[0] if isinstance(v, tuple) else v for v in (layer.kernel_size, layer.padding))
            place, cell = place + cell * ((size - 1) / 2 - padding), cell * 2
            seen.append((cell, abs(place - (cell - 1) / 2)))
    assert [cell for cell, _ in seen] == [2, 4, 8, 16]
    assert all(off < cell / 5 for cell, off in seen[1:])


def test_the_shipped_size_fits_in_five_megabytes() -> None:
    assert 2 * sum(p.numel() for p in Segmenter().state_dict().values()) < 5e6


# -- the goal ----------------------------------------------------------------------------------------------------------------


def labelled_clip(frames: int = 3, height: int = 64, width: int = 80, seed: int = 0) -> Clip:
    """Grey squares whose brightness is their class; every tenth pixel is unlabelled, and class 7 never occurs."""

    def source(labels: bool):  # type: ignore[no-untyped-def]
        draws = torch.Generator().manual_seed(seed)
        for _ in range(frames):
            coarse = torch.randint(0, 11, (height // 16, width // 16), generator=draws)
            coarse[coarse == 7] = 2
            truth = coarse.repeat_interleave(16, 0).repeat_interleave(16, 1)
            picture = (truth / 10).expand(3, -1, -1).contiguous()
            truth = truth.where(torch.arange(truth.numel()).view_as(truth) % 10 > 0, torch.tensor(CAMVID_IGNORE))
            yield picture, {"segmentation": truth} if labels else {}

    return Clip(
        f"squares-{seed}", VideoInfo("squares", width, height, 25.0, frames, "rendered", ""), source, classes=CAMVID_CLASSES
    )


def test_the_distance_is_that_of_the_labels() -> None:
    goal = Segment(ByBrightness)
    (frame, labels), *_ = labelled_clip(1).labelled_frames()
    step = Step(frame[None, None], {"segmentation": labels["segmentation"][None, None]})
    right = goal.distortion(step, Decoded(frames=step.frames))
    dark = (step.frames * 0.5).requires_grad_()
    wrong = goal.distortion(step, Decoded(frames=dark))
    assert right.shape == (1,)
    assert float(wrong.detach()) > 2 * float(right)
    wrong.sum().backward()
    assert dark.grad is not None
    assert bool(dark.grad.abs().sum() > 0)
    with pytest.raises(ContractError, match="needs frames"):
        goal.distortion(step, Decoded())
    with pytest.raises(ContractError, match="this step has none"):
        goal.distortion(Step(step.frames), Decoded(frames=step.frames))


def test_labels_that_a_system_delivers_stay() -> None:
    goal = Segment(ByBrightness)
    own = torch.zeros(1, 1, 64, 64, dtype=torch.int64)
    assert goal.perceive(Decoded(frames=torch.ones(1, 1, 3, 64, 64), labels=own)).labels is own
    seen = goal.perceive(Decoded(frames=torch.full((1, 1, 3, 64, 64), 0.3))).labels
    assert seen is not None
    assert seen.unique().tolist() == [3]


@pytest.fixture
def by_brightness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GOALS.get("segment"), "model", ByBrightness)


def sent(clip: Clip, snr_db: float) -> tuple[Row, Tensor, Tensor]:
    """The row, and truth and labels seen, both (T, H, W)."""
    seen, truth = [], []

    def step(result) -> None:  # type: ignore[no-untyped-def]
        seen.append(predict(ByBrightness(), result.decoded.frames)[0])
        truth.append(result.step.labels["segmentation"][0])

    radio = Radio(snr_db=snr_db, cbr=0.25)
    metrics = ("miou", "pixel_accuracy", "psnr_rgb_db")
    system = load_system("linear-jscc:one-class")
    row = transmit_clip(system, clip, radio, goal="segment", metrics=metrics, on_step=step).row
    return row, torch.cat(truth), torch.cat(seen)


def test_a_row_holds_what_torchmetrics_says(by_brightness: None) -> None:
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

    row, truth, seen = sent(labelled_clip(), 0.0)
    labelled = truth != CAMVID_IGNORE
    occurring = [k for k in range(11) if bool((truth[labelled] == k).any() or (seen[labelled] == k).any())]
    each = MulticlassJaccardIndex(num_classes=12, ignore_index=CAMVID_IGNORE, average="none")(seen, truth)
    assert row.miou == pytest.approx(float(each[occurring].mean()), abs=1e-5)
    accuracy = MulticlassAccuracy(num_classes=12, ignore_index=CAMVID_IGNORE, average="micro")(seen, truth)
    assert row.pixel_accuracy == pytest.approx(float(accuracy), abs=1e-6)
    assert row.miou < 0.9 < row.miou_clean == 1.0  # the noise is seen, and the source itself is read without fault
    assert row.pixel_accuracy_clean == 1.0
    assert row.psnr_rgb_db is not None
    assert sum(row.label_counts["received"]["truth"]) == int(labelled.sum())
    assert len(row.per_frame["miou"]) == 3
    better, _, _ = sent(labelled_clip(), 15.0)
    assert better.miou > row.miou + 0.1


def test_clips_are_pooled_not_averaged(by_brightness: None) -> None:
    """The mIoU of a data set is that of all its pixels; torchmetrics agrees, and the mean of the clips is another number."""
    runs = [sent(labelled_clip(1, seed=seed), 0.0) for seed in range(3)]
    rows = [row for row, _, _ in runs]
    together = MeanIou(11, CAMVID_IGNORE)
    for _, truth, seen in runs:
        together.update(truth, seen)
    expected = together.clip()
    assert expected is not None
    assert pooled(rows, "miou") == pytest.approx(expected)
    (point,) = points(rows, "miou")
    assert point.quality is not None
    assert point.quality.mean == pytest.approx(expected)
    mean = sum(row.miou or 0 for row in rows) / 3
    assert abs(mean - expected) > 1e-4
    assert pooled(rows, "miou_clean") == pooled(rows, "pixel_accuracy_clean") == 1.0
    assert pooled([rows[0].model_copy(update={"label_counts": {}})], "miou") is None


# -- the command line --------------------------------------------------------------------------------------------------------


def camvid_tree(root: Path) -> str:
    """Two pictures in CamVid's layout."""
    from PIL import Image

    for index, clip in enumerate((labelled_clip(1), labelled_clip(1, seed=5))):
        (frame, labels), *_ = clip.labelled_frames()
        for folder, array in (("test", frame.movedim(0, -1).mul(255)), ("test_labels", labels["segmentation"])):
            (root / folder).mkdir(exist_ok=True)
            Image.fromarray(array.numpy().astype(np.uint8)).save(root / folder / f"0001TP_{30 * index:06d}.png")
    return f"camvid:{root}/test"


def test_compare_fills_the_row_and_says_what_all_clips_come_to(
    by_brightness: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = camvid_tree(tmp_path), tmp_path / "rows.json"
    args = ["compare", source, "--systems", "linear-jscc:one-class", "--goal", "segment", "--snr", "0", "--cbr", "0.25"]
    assert main([*args, "--metrics", "miou,pixel_accuracy", "--json", str(out), "--report", str(tmp_path / "report")]) == 0
    rows = [Row.model_validate(line) for line in json.loads(out.read_text())]
    assert [row.goal for row in rows] == ["segment", "segment"]
    assert all(0 < (row.miou or 0) < 1 and row.miou_clean == 1.0 for row in rows)
    said = " ".join(capsys.readouterr().out.split())
    assert f"all clips together: mIoU {pooled(rows, 'miou'):.4f}, clean 1.0000, pixel accuracy" in said
    assert main(["transmit", source, "--system", "linear-jscc:one-class", "--goal", "segment", "--cbr", "0.25"]) == 0
    assert "clean mIoU 1.0000" in capsys.readouterr().out


@pytest.mark.parametrize("source", ["scene:demo", "plain"])
def test_other_labels_or_none_are_refused_in_a_sentence(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if source == "plain":
        camvid_tree(tmp_path)
        source = str(tmp_path / "test")
    assert main(["compare", source, "--systems", "freeze", "--goal", "segment", "--max-frames", "1"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "the goal 'segment' is judged by labels of sky, building, pole, ... (11 classes)" in err
    assert ("labels of other classes (background, object 1" in err) is source.startswith("scene")
    assert "give camvid:DIR/test, or --goal watch" in err


def test_classes_follow_a_clip() -> None:
    clip = labelled_clip()
    assert clip.renamed("x").classes == clip.with_labels({}).classes == CAMVID_CLASSES
    assert open_clips("scene:demo")[0].classes[0] == "background"
    with pytest.raises(InputError, match="no labels"):
        transmit_clip(load_system("freeze"), Clip("x", clip.info, lambda labels: iter(())), Radio(), goal="segment")


def test_true_maps_are_those_of_the_classes_that_maps_hold() -> None:
    """A rendered scene has labels of its own, which would pass for a street's."""
    with pytest.raises(InputError, match="--maps predicted"):
        transmit_clip(load_system("sematt-jscc", maps="truth"), open_clips("scene:demo", max_frames=1)[0], Radio())
