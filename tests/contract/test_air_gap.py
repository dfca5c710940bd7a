"""The air gap: every system's air file, decoded in one fresh process that never saw the source, gives the same bits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from preset_cases import SPECS, is_main

from semcast import checkpoint
from semcast.studies.session import Loaded, Radio, load_system, send_clip
from semcast.systems import SYSTEMS
from semcast.types import StepResult
from semcast.video.io import open_clips

NAMES = [f"{spec.name}:{preset}" for spec in SPECS for preset in spec.presets if is_main(spec, preset)]
# Fading that loses packets, with an estimate that errs: y, h and noise_var all vary.
RADIO = Radio("rayleigh:block,coherence=300,csi_error_var=0.01", snr_db=14.0, cbr=1 / 4)
THREADS = 1

RECEIVER = """
import json, sys
import numpy as np, torch
from semcast.studies.session import receive
jobs = json.loads(sys.stdin.read())
torch.set_num_threads(jobs["threads"])
for job in jobs["jobs"]:
    fmt, decoded = receive(job["air"], weights=job["weights"])
    np.save(job["out"], np.concatenate([part.frames[0].numpy() for part in decoded]))
"""


@dataclass
class Sent:
    """One session: where its air file lies, and the frames that the receiver of the session made."""

    air: Path
    shown: np.ndarray
    received_later: Path


def ready(name: str, folder: Path) -> tuple[Loaded, Path | None]:
    """A system with its shipped weights, or with random ones where none are shipped."""
    base, _, preset = name.partition(":")
    spec = SYSTEMS.get(base)
    if not spec.trained or checkpoint.shipped(base, preset) is not None:
        return load_system(name), None
    with torch.random.fork_rng():
        torch.manual_seed(3)
        system = spec.make(preset, "strong")
        system.name, system.preset = base, preset
        weights = checkpoint.save(system, folder / name.replace(":", "-"), {"data": ["none: random weights"]})
    return load_system(name, weights=weights), weights


@pytest.fixture(scope="module")
def threads() -> Iterator[None]:
    """The same number of threads at both ends, since sums of floats depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory, threads: None) -> dict[str, Sent]:
    """Every system of the registry: sent here, received in one other process."""
    folder = tmp_path_factory.mktemp("air")
    clip = open_clips("scene:demo", size=(94, 70), max_frames=5)[0]
    found, jobs = {}, []
    for name in NAMES:
        loaded, weights = ready(name, folder)
        air, out = folder / f"{name.replace(':', '-')}.air", folder / f"{name.replace(':', '-')}.npy"
        frames: list[np.ndarray] = []

        def keep(result: StepResult, frames: list[np.ndarray] = frames) -> None:
            assert result.decoded.frames is not None
            frames.append(result.decoded.frames[0].numpy().copy())

        send_clip(loaded, clip, RADIO, air, seed=5, metrics=(), on_step=keep)
        found[name] = Sent(air, np.concatenate(frames), out)
        jobs.append({"air": str(air), "weights": None if weights is None else str(weights), "out": str(out)})
    orders = json.dumps({"threads": THREADS, "jobs": jobs})
    done = subprocess.run(
        [sys.executable, "-c", RECEIVER], input=orders, text=True, capture_output=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_receiver_that_never_saw_the_source_decodes_the_same_bits(sessions: dict[str, Sent], name: str) -> None:
    sent = sessions[name]
    received = np.load(sent.received_later)
    assert received.shape == sent.shown.shape == (5, 3, 70, 94)
    assert received.dtype == np.float32
    assert received.tobytes() == sent.shown.tobytes()
