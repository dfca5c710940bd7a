"""The reproduction card of GOS-VAE follows from entries and bounds alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def bench(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("reproduction")


def entry(label: str, miou: float, **more: object) -> dict[str, object]:
    base: dict[str, object] = {
        "label": label,
        "system": label,
        "weights": "ab" * 8,
        "short": False,
        "pictures": 5,
        "input": "test",
    }
    measures = {"miou": miou, "pixel_accuracy": 0.8, "psnr_rgb_db": 30.0, "ssim_rgb": 0.9, "lpips_squeeze": 0.1}
    return base | measures | {"frechet_squeeze": 1.0, "kb": 9.0, "kb_static": 10.0} | more


def test_without_measurements_nothing_is_attempted(bench: ModuleType, tmp_path: Path) -> None:
    text = bench.make_card("gos-vae", tmp_path)
    assert "# Reproduction card: GOS-VAE" in text
    assert "reproduced." not in text
    assert text.count("not attempted") >= 7


def test_the_card_follows_from_entries(bench: ModuleType, tmp_path: Path) -> None:
    entries = [
        *(entry("original", 0.60), entry("gos-vae", 0.57), entry("gos-vae:star", 0.575), entry("autoencoder", 0.4)),
        *(entry("vq-vae", 0.54, lpips_squeeze=0.2, frechet_squeeze=2.0, psnr_rgb_db=31.0), entry("JPEG at 9 kB", 0.45)),
        *(entry("vq-gan", 0.545), entry("JPEG at 40 dB", 0.598)),
        *(entry(f"loss: {name}", 0.1 + 0.05 * k) for k, name in enumerate(("ce", "kld", "mse + kld", "lpips", "kld + lpips"))),
        entry("loss: jsd + lpips", 0.2, short=True),
    ]
    (tmp_path / "table.json").write_text(json.dumps(entries))
    (tmp_path / "curves.json").write_text(json.dumps([{"correlation": 0.97}]))
    text = bench.make_card("gos-vae", tmp_path)
    states = {
        cells[1].strip(): cells[2].strip()
        for line in text.splitlines()
        if len(cells := line.split("|")) == 4 and cells[1].strip()[:3] in ("Tab", "Fig")
    }
    assert states["Table I: Cityscapes, r = 4"] == "reproduced"
    assert states["Table III: quality of pictures"] == "reproduced"
    assert states["Table IV: objective functions"] == "partly"  # JSD + LPIPS fell behind
    assert states["Fig. 3: curves of JSD and LPIPS"] == "reproduced"
    assert states["Table II: ADE20K"] == "not attempted"
    assert "GOS-VAE (JSD + LPIPS) (short)" in text
    assert "95.00" in text  # kept, in percent


def test_jpeg_meets_its_bytes(bench: ModuleType) -> None:
    import gosvae_study

    from semcast.video.scenes import open_scene

    frame = next(iter(open_scene("astronaut-pan:size=128x96,frames=1").frames()))
    shown, sizes = gosvae_study.jpeg_at(frame, lambda size, psnr: size <= 3000)
    assert sizes["kb"] <= 3.0
    finer, more = gosvae_study.jpeg_at(frame, lambda size, psnr: psnr <= 40)
    assert more["kb"] > sizes["kb"]
    errors = [float((x - frame).square().mean()) for x in (shown, finer)]
    assert errors[1] < errors[0]


def test_a_spread_is_no_distance_from_itself(bench: ModuleType) -> None:
    import gosvae_study
    import numpy as np

    one, two = gosvae_study.Spread(), gosvae_study.Spread()
    rows = np.random.default_rng(0).normal(size=(400, 3))
    one.rows, two.rows = list(rows), list(2 * rows + np.array([1.0, 0, 0]))
    assert one.distance(one) == pytest.approx(0, abs=1e-6)
    by_hand = 1 + np.trace(np.cov(rows.T))  # (1 - 2)^2 of the covariance, and the shift; means differ by next to nothing
    mean = np.square(np.mean(rows, 0) - np.mean(2 * rows + np.array([1.0, 0, 0]), 0)).sum()
    assert one.distance(two) == pytest.approx(by_hand - 1 + mean, rel=1e-6)


def test_the_table_is_of_systems_with_shipped_weights(bench: ModuleType) -> None:
    import gosvae_study

    from semcast.checkpoint import shipped
    from semcast.systems import SYSTEMS

    for name in gosvae_study.NAMES:
        base, _, preset = name.partition(":")
        assert shipped(base, preset or SYSTEMS.get(base).presets[0]), name
