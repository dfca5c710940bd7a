"""One transmission of one clip: what the row says, and that nothing of a long clip is kept."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from echo_system import SPEC, registered
from torch import Tensor

from semcast import checkpoint
from semcast.air import AirReader
from semcast.errors import BudgetError, InputError, VideoError
from semcast.studies.session import Loaded, Radio, load_system, resolve_precision, send_clip, session_format, transmit_clip
from semcast.types import StepResult
from semcast.video.clip import Clip, VideoInfo


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    """The test system with weights of its own."""
    with registered():
        weights = checkpoint.save(SPEC.make("small", "strong"), tmp_path_factory.mktemp("w") / "w", {})
        yield load_system("echo:small", weights=weights)


def noise_clip(frames: int, *, damaged_at: int | None = None) -> Clip:
    def source(_: bool) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for index in range(frames):
            if index == damaged_at:
                raise VideoError("noise: damaged")
            yield torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(index)), {}

    return Clip("noise", VideoInfo("noise", 80, 64, 30.0, frames, "rendered", "rgb24"), source)


def test_no_step_outlives_the_next_but_one(loaded: Loaded) -> None:
    alive: list[weakref.ref[Any]] = []
    most = 0

    def count(result: StepResult) -> None:
        nonlocal most
        alive.extend(weakref.ref(tensor) for tensor in (result.step.frames, result.decoded.frames, result.received["pixels"].y))  # type: ignore[index,union-attr]
        alive[:] = [ref for ref in alive if ref() is not None]
        most = max(most, len(alive))

    result = transmit_clip(loaded, noise_clip(30), Radio(cbr=0.05), precision="fp32", on_step=count)
    assert result.row.frames == 30
    assert most <= 6


def test_the_row_adds_up(loaded: Loaded) -> None:
    radio = Radio("rayleigh", snr_db=8.0, cbr=0.07, csi_snr_db=3.0, bandwidth_hz=2e6, tx_power_w=0.5)
    row, moment = transmit_clip(loaded, noise_clip(4), radio, seed=9, keep_frame=2, metrics=("psnr_rgb_db", "psnr_y_db"))
    assert (row.system, row.preset, row.weights, row.clip, row.seed) == ("echo", "small", loaded.weights, "noise", 9)
    assert (row.channel, row.snr_db, row.csi_snr_db, row.cbr_target) == ("rayleigh", 8.0, 3.0, 0.07)
    assert row.channel_uses == sum(row.streams.values()) == (row.analog_uses or 0) + (row.digital_uses or 0)
    assert row.cbr == pytest.approx((row.channel_uses or 0) / (3 * 64 * 80 * 4))
    assert row.airtime_s == pytest.approx((row.channel_uses or 0) / 2e6)
    assert row.energy_j == pytest.approx((row.airtime_s or 0) * 0.5)
    assert row.psnr_rgb_db == pytest.approx(sum(v or 0 for v in row.per_frame["psnr_rgb_db"]) / 4)
    assert (row.mcs, row.packets_sent, row.vmaf, row.miou) == (None, 0, None, None)
    assert (row.encode_fps or 0) > 0
    assert (row.decode_fps or 0) > 0
    assert moment is not None
    assert moment.frame == 2
    assert moment.original.shape == moment.received.shape == (64, 80, 3)


def test_the_last_frame_is_kept_where_the_clip_is_shorter(loaded: Loaded) -> None:
    result = transmit_clip(loaded, noise_clip(3), Radio(cbr=0.05), keep_frame=24)
    assert result.moment is not None
    assert result.moment.frame == 2


def test_without_noise_there_is_no_snr(loaded: Loaded) -> None:
    row = transmit_clip(loaded, noise_clip(1), Radio("ideal", cbr=0.05)).row
    assert (row.snr_db, row.csi_snr_db) == (None, None)


def test_what_cannot_be_sent_is_refused(loaded: Loaded) -> None:
    with pytest.raises(BudgetError):
        transmit_clip(loaded, noise_clip(1), Radio(cbr=1e-4))
    with pytest.raises(InputError, match="--seed"):
        session_format(loaded, 64, 64, 25.0, cbr=0.1, seed=2**32)
    with pytest.raises(InputError, match="--cbr"):
        session_format(loaded, 64, 64, 25.0, cbr=5.0)
    with pytest.raises(InputError, match="--size"):
        session_format(loaded, 64, 70000, 25.0, cbr=0.1)


def test_an_air_file_appears_when_it_is_whole(loaded: Loaded, tmp_path: Path) -> None:
    with pytest.raises(VideoError):
        send_clip(loaded, noise_clip(5, damaged_at=3), Radio(cbr=0.05), tmp_path / "a.air")
    assert list(tmp_path.iterdir()) == []
    send_clip(loaded, noise_clip(5), Radio(cbr=0.05), tmp_path / "a.air")
    assert [path.name for path in tmp_path.iterdir()] == ["a.air"]
    with AirReader(tmp_path / "a.air") as reader:
        assert [n_frames for _, n_frames in reader] == [1] * 5
        assert reader.fmt.weights == loaded.weights


def test_precision_follows_the_processor_only_when_asked() -> None:
    assert resolve_precision("fp32") == "fp32"
    assert resolve_precision("bf16") == "bf16"
    assert resolve_precision("auto") in ("bf16", "fp32")
