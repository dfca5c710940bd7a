"""What many tests share: textured clips made on the spot, one way to run a session, the folder of real footage."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from semcast.ledger import Ledger
from semcast.link import Link
from semcast.systems.base import System
from semcast.transmit import run
from semcast.types import Format, Step, StepResult

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


class Session(NamedTuple):
    """What one run left behind."""

    fmt: Format
    results: list[StepResult]
    ledger: Ledger
    link: Link

    @property
    def sent(self) -> Tensor:
        """(T, 3, H, W) source frames."""
        return torch.cat([result.step.frames[0] for result in self.results])

    @property
    def shown(self) -> Tensor:
        """(T, 3, H, W) frames at the receiver."""
        frames = [result.decoded.frames for result in self.results]
        assert all(f is not None for f in frames)
        return torch.cat([f[0] for f in frames if f is not None])

    @property
    def psnr_db(self) -> float:
        """PSNR in dB over all frames."""
        return float(-10 * torch.log10((self.sent - self.shown).square().mean() + 1e-12))


def textured(t: int, height: int, width: int, seed: int = 0) -> Tensor:
    """(t, 3, H, W) in [0, 1]: smooth colour blobs with some detail, panning by two pixels a frame."""
    generator = torch.Generator().manual_seed(seed)
    w = width + 2 * t
    layers = [
        F.interpolate(torch.rand(1, 3, *cells, generator=generator), (height, w), mode="bicubic", align_corners=False) * gain
        for cells, gain in (((3, 4), 0.7), ((8, 11), 0.25), ((20, 27), 0.1))
    ]
    picture = sum(layers[1:], layers[0])[0].clamp(0, 1)
    return torch.stack([picture[:, :, 2 * i : 2 * i + width] for i in range(t)])


def cut(frames: Tensor, per_step: int) -> Iterator[Step]:
    """Steps of (T, 3, H, W) frames."""
    pieces = frames.split(per_step)
    for index, piece in enumerate(pieces):
        yield Step(piece[None], {}, index, index == len(pieces) - 1)


def hold_session(
    system: System,
    frames: Tensor,
    *,
    channel: str = "awgn",
    snr_db: float = 10.0,
    cbr: float = 1 / 12,
    csi_snr_db: float | None = None,
    seed: int = 0,
    phy: str | None = None,
) -> Session:
    """Send (T, 3, H, W) frames with ``system`` and keep everything."""
    phy = phy or ("capacity" if system.modem_kind == "capacity" else "fast")
    link = Link(channel, snr_db=snr_db, cbr=cbr, csi_snr_db=csi_snr_db, phy=phy).eval()
    fmt = Format(*frames.shape[-2:], system=system.name, preset=system.preset, cbr=cbr, seed=seed)
    ledger = Ledger()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        results = list(run(system, cut(frames, system.frames_per_step), link, ledger, fmt=fmt, generator=generator))
    return Session(fmt, results, ledger, link)


@pytest.fixture(scope="session")
def clip() -> Callable[..., Tensor]:
    """``clip(t, height, width, seed=0)`` -> (t, 3, H, W)."""
    return textured


@pytest.fixture(scope="session")
def hold() -> Callable[..., Session]:
    """``hold(system, frames, ...)`` -> Session."""
    return hold_session


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh CPU generator with seed 0."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real footage; the test is skipped where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"real clips are not here ({DATA})")
    return DATA


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A benchmark's module by name; scripts find each other beside themselves, so their folder is on the path meanwhile."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module
