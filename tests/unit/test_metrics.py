"""Every metric against a reference implementation."""

import importlib.util
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from semcast.errors import ContractError, InputError, UnknownNameError, WeightsError
from semcast.goals import GOALS
from semcast.metrics import METRICS
from semcast.metrics.base import MetricSet
from semcast.metrics.fidelity import luma_bt601
from semcast.metrics.perceptual import (
    WEIGHTS_ENV,
    Lpips,
    find_squeezenet,
    load_lpips,
    lpips_heads,
    lpips_loss,
    squeezenet_features,
)
from semcast.metrics.structure import ms_ssim, ms_ssim_scales, ssim
from semcast.metrics.vmaf import find_ffmpeg
from semcast.types import Decoded, Step

FRAME_METRICS = ["psnr_rgb_db", "psnr_y_db", "ssim_rgb", "ms_ssim_rgb", "ms_ssim_rgb_db"]


def pair(frames: int = 2, height: int = 97, width: int = 131, noise: float = 0.08, seed: int = 1) -> tuple[Tensor, Tensor]:
    """A smooth picture with texture, and its noisy copy."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(frames, 3, 8, 8, generator=generator)
    reference = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    reference = (reference + 0.1 * torch.randn(reference.shape, generator=generator)).clamp(0, 1)
    received = (reference + noise * torch.randn(reference.shape, generator=generator)).clamp(0, 1)
    return reference, received


def test_psnr_equals_torchmetrics_and_skimage() -> None:
    from skimage.metrics import peak_signal_noise_ratio as skimage_psnr
    from torchmetrics.functional.image import peak_signal_noise_ratio

    reference, received = pair()
    metrics = MetricSet(["psnr_rgb_db", "psnr_y_db"])
    metrics.update(reference, received)
    expected = peak_signal_noise_ratio(received, reference, data_range=1.0, dim=(1, 2, 3), reduction="none")
    assert metrics.per_frame()["psnr_rgb_db"] == pytest.approx(expected.tolist(), abs=1e-4)
    luma = [0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2] for x in (reference.double(), received.double())]
    by_skimage = [skimage_psnr(a.numpy(), b.numpy(), data_range=1.0) for a, b in zip(*luma, strict=True)]
    assert metrics.per_frame()["psnr_y_db"] == pytest.approx(by_skimage, abs=1e-4)
    assert float(luma_bt601(torch.ones(1, 3, 4, 4)).mean()) == pytest.approx(1.0)


def test_clip_psnr_is_the_mean_of_frames_and_a_perfect_frame_caps() -> None:
    reference, received = pair()
    received[1] = reference[1]
    metrics = MetricSet(["psnr_rgb_db", "ms_ssim_rgb_db"])
    metrics.update(reference, received)
    frames = metrics.per_frame()["psnr_rgb_db"]
    assert frames[1] == 100.0
    assert metrics.compute()["psnr_rgb_db"] == pytest.approx((frames[0] + 100.0) / 2)
    assert metrics.per_frame()["ms_ssim_rgb_db"][1] == pytest.approx(60.0)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (97, 131), (176, 240)])
def test_ssim_equals_torchmetrics(height: int, width: int) -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    reference, received = pair(height=height, width=width)
    expected = structural_similarity_index_measure(received, reference, data_range=1.0, reduction="none")
    assert ssim(reference, received).tolist() == pytest.approx(expected.tolist(), abs=2e-5)


def test_ssim_inside_equals_skimage() -> None:
    from skimage.metrics import structural_similarity

    reference, received = pair(frames=1, height=240, width=320)
    a, b = (x[0].permute(1, 2, 0).double().numpy() for x in (reference, received))
    by_skimage = structural_similarity(
        a, b, data_range=1.0, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    # skimage leaves out the border that we mirror, as torchmetrics does: 7 % of these pixels.
    assert float(ssim(reference, received)) == pytest.approx(by_skimage, abs=3e-3)


@pytest.mark.parametrize(("height", "width", "scales"), [(64, 64, 3), (98, 200, 3), (99, 101, 4), (175, 300, 4), (176, 241, 5)])
def test_ms_ssim_equals_torchmetrics_with_as_many_scales_as_fit(height: int, width: int, scales: int) -> None:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    betas = tuple(float(w) for w in weights / weights.sum())
    assert ms_ssim_scales(height, width) == scales
    reference, received = pair(height=height, width=width)
    expected = multiscale_structural_similarity_index_measure(
        received, reference, data_range=1.0, betas=betas, reduction="none"
    )
    assert ms_ssim(reference, received).tolist() == pytest.approx(expected.tolist(), abs=2e-5)
    metrics = MetricSet(["ms_ssim_rgb", "ms_ssim_rgb_db"])
    metrics.update(reference, received)
    values = metrics.per_frame()
    decibels = [-10 * math.log10(1 - x) for x in values["ms_ssim_rgb"]]
    assert values["ms_ssim_rgb_db"] == pytest.approx(decibels, abs=1e-4)


def test_too_small_for_ssim_is_one_sentence() -> None:
    with pytest.raises(InputError, match="at least 11x11"):
        ssim(torch.rand(1, 3, 10, 64), torch.rand(1, 3, 10, 64))


def test_structure_has_gradients() -> None:
    reference, received = pair(height=64, width=65)
    received.requires_grad_(True)
    (ms_ssim(reference, received).sum() + ssim(reference, received).sum()).backward()  # type: ignore[no-untyped-call]
    assert received.grad is not None
    assert bool(received.grad.isfinite().all())
    assert float(received.grad.abs().sum()) > 0


def torchmetrics_lpips(features: torch.nn.Sequential, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """torchmetrics' own LPIPS around our trunk, since its own way to a trunk is torchvision."""
    from torchmetrics.functional.image import lpips

    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda net, pretrained=False: features)
    return lpips._LPIPS(net="squeeze")


def test_lpips_equals_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        features = squeezenet_features()
    reference, received = pair(height=65, width=97)
    expected = torchmetrics_lpips(features, monkeypatch)(reference, received, normalize=True).flatten()
    ours = Lpips(features, lpips_heads())(reference, received)
    assert ours.tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-7)
    assert float(expected.min()) > 0


@pytest.mark.data
def test_lpips_with_real_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WEIGHTS_ENV, raising=False)
    path = find_squeezenet()
    if path is None:
        pytest.skip("no SqueezeNet weights in ../shared/data/weights")
    reference, received = pair(height=96, width=128)
    worse = pair(height=96, width=128, noise=0.3)[1]
    expected = torchmetrics_lpips(load_lpips(path).features, monkeypatch)(reference, received, normalize=True).flatten()
    metrics = MetricSet(["lpips_squeeze"])
    metrics.update(reference, received)
    assert metrics.per_frame()["lpips_squeeze"] == pytest.approx(expected.tolist(), rel=1e-4)
    model = load_lpips(path)
    assert float(model(reference, reference).abs().max()) == 0
    assert bool((model(reference, worse) > model(reference, received)).all())


def test_lpips_without_weights_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(WEIGHTS_ENV, raising=False)
    monkeypatch.setattr("semcast.metrics.perceptual.find_squeezenet", lambda: None)
    metrics = MetricSet(["lpips_squeeze", "psnr_rgb_db"])
    metrics.update(*pair(height=64, width=64))
    assert metrics.compute()["lpips_squeeze"] is None
    assert "SEMCAST_SQUEEZENET" in metrics.unavailable()["lpips_squeeze"]
    assert set(metrics.per_frame()) == {"psnr_rgb_db"}


def test_a_loss_without_lpips_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semcast.metrics.perceptual.find_squeezenet", lambda: None)
    with pytest.raises(WeightsError, match="SEMCAST_SQUEEZENET"):
        lpips_loss(*pair(height=64, width=64))


def test_wrong_lpips_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "trunk.safetensors"
    path.write_bytes(b"not weights at all")
    monkeypatch.setenv(WEIGHTS_ENV, str(path))
    with pytest.raises(WeightsError, match="SqueezeNet"):
        MetricSet(["lpips_squeeze"])
    monkeypatch.setenv(WEIGHTS_ENV, str(tmp_path / "absent"))
    with pytest.raises(WeightsError, match="no file"):
        MetricSet(["lpips_squeeze"])


def test_vmaf_without_the_extra_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    metrics = MetricSet(["vmaf"])
    metrics.update(*pair(height=64, width=64))
    assert metrics.compute()["vmaf"] is None
    assert "semcast[vmaf]" in metrics.unavailable()["vmaf"]


def test_vmaf_ranks_frames() -> None:
    path, reason = find_ffmpeg()
    if path is None:
        pytest.skip(reason)
    reference, better = pair(frames=3, height=97, width=131, noise=0.01)
    worse = pair(frames=3, height=97, width=131, noise=0.2)[1]
    scores = []
    for received in (better, worse):
        metrics = MetricSet(["vmaf"])
        metrics.update(reference[:1], received[:1])
        metrics.update(reference[1:], received[1:])
        score = metrics.compute()["vmaf"]
        assert score is not None
        assert len(metrics.per_frame()["vmaf"]) == 3
        scores.append(score)
    assert 100 >= scores[0] > scores[1] + 20


def test_segmentation_metrics_equal_torchmetrics() -> None:
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

    generator = torch.Generator().manual_seed(5)
    truth = torch.randint(0, 6, (4, 33, 47), generator=generator)
    truth[truth == 3] = 0  # a class that never occurs
    predicted = torch.where(torch.rand(truth.shape, generator=generator) < 0.6, truth, (truth + 1) % 5).clamp(max=4)
    predicted[predicted == 3] = 4
    metrics = MetricSet(["miou", "pixel_accuracy"], classes=6, ignore_index=5)
    metrics.update_labels(truth[:1], predicted[:1])
    metrics.update_labels(truth[1:], predicted[1:])
    jaccard = MulticlassJaccardIndex(num_classes=6, ignore_index=5)
    accuracy = MulticlassAccuracy(num_classes=6, ignore_index=5, average="micro")
    values = metrics.compute()
    keep = truth != 5
    present = [c for c in range(6) if bool(((truth == c) & keep).any()) or bool(((predicted == c) & keep).any())]
    by_hand = [
        float(((truth == c) & (predicted == c) & keep).sum() / (((truth == c) | (predicted == c)) & keep).sum())
        for c in present
    ]
    assert values["miou"] == pytest.approx(sum(by_hand) / len(by_hand))
    assert values["miou"] == pytest.approx(float(jaccard(predicted, truth)), abs=1e-5)
    assert values["pixel_accuracy"] == pytest.approx(float(accuracy(predicted, truth)), abs=1e-6)
    assert len(metrics.per_frame()["miou"]) == 4


def test_label_errors_are_clear() -> None:
    with pytest.raises(InputError, match="classes=N"):
        MetricSet(["miou"])
    metrics = MetricSet(["miou"], classes=2)
    with pytest.raises(ContractError, match="outside 0 to 1"):
        metrics.update_labels(torch.full((1, 4, 4), 2), torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(ContractError, match="negative"):
        metrics.update_labels(torch.full((1, 4, 4), -1), torch.zeros(1, 4, 4, dtype=torch.int64))


def test_top1() -> None:
    metrics = MetricSet(["top1"])
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    decoded = Decoded(scores=scores)
    metrics.update_step(Step(torch.zeros(3, 1, 3, 64, 64), {"action": torch.tensor([1, 1, 1])}), decoded)
    assert metrics.compute()["top1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 91)])
def test_streaming_equals_at_once_and_clamps(height: int, width: int) -> None:
    reference, received = pair(frames=3, height=height, width=width)
    received = received * 1.4 - 0.1
    at_once, streamed = MetricSet(FRAME_METRICS), MetricSet(FRAME_METRICS)
    at_once.update(reference, received.clamp(0, 1))
    for i in range(3):
        streamed.update_step(Step(reference[None, i : i + 1], index=i, last=i == 2), Decoded(received[None, i : i + 1]))
    assert streamed.per_frame() == at_once.per_frame()
    assert streamed.compute() == at_once.compute()
    assert all(len(values) == 3 for values in streamed.per_frame().values())


def test_broken_frames_are_a_contract_error() -> None:
    metrics = MetricSet(["psnr_rgb_db"])
    reference, received = pair(height=64, width=64)
    with pytest.raises(ContractError, match="one shape"):
        metrics.update(reference, received[..., :-1])
    received[0, 0, 0, 0] = float("nan")
    with pytest.raises(ContractError, match="not finite"):
        metrics.update(reference, received)
    assert metrics.compute() == {"psnr_rgb_db": None}


def test_every_metric_states_its_convention() -> None:
    assert len(METRICS) >= 10
    for name in METRICS:
        kind = METRICS.get(name)
        assert len(kind.convention) > 30, name
        assert (kind.unit == "dB") == name.endswith("_db"), name
    with pytest.raises(UnknownNameError, match="psnr_rgb_db"):
        MetricSet(["psnr_rgb"])


def test_watch_asks_for_known_metrics_and_measures_mse() -> None:
    goal = GOALS.get("watch")
    assert all(name in METRICS for name in goal.metrics)
    reference, received = pair(height=64, width=64)
    distance = goal.distortion(Step(reference[None]), Decoded(received[None]))
    assert float(distance) == pytest.approx(float((reference - received).square().mean()), rel=1e-5)
    with pytest.raises(ContractError, match="watch"):
        goal.distortion(Step(reference[None]), Decoded(scores=torch.zeros(1, 2)))


def test_importing_the_registry_is_light() -> None:
    import subprocess

    code = "import sys, semcast.metrics, semcast.goals; print('torch' in sys.modules or 'torchmetrics' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert done.stdout.strip() == "False"
