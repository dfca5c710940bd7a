"""``semcast train``: refusals, and a run that is stopped and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from echo_system import registered

from semcast.app.cli import main
from semcast.video.io import open_clips
from semcast.video.writer import write

SCHEDULE = """
system: deepjscc
preset: small
parts: [video]
every: 1
validate_every: 4
save_every: 2
stages:
  - {name: joint, steps: 4, batch: 2, size: 64, cbr: [0.1], channels: {awgn: 1.0}}
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data" / "video").mkdir(parents=True)
    for index, scene in enumerate(("demo", "coffee-pan")):
        write(
            tmp_path / "data" / "video" / f"{index}.mp4",
            open_clips(f"scene:{scene}", size=(96, 80), max_frames=3)[0].frames(),
            25.0,
        )
    return tmp_path / "data"


def refused(capsys: pytest.CaptureFixture[str], *args: str | Path) -> str:
    assert main(["train", *map(str, args)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_what_cannot_be_trained_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, wrong = tmp_path / "out", tmp_path / "wrong.yaml"
    wrong.write_text(SCHEDULE.replace("save_every", "save_evry"))
    here = ("--data", tmp_path, "--out", out)
    assert "did you mean 'deepjscc'" in refused(capsys, "deepjsc", *here)
    assert "did you mean 'small'" in refused(capsys, "deepjscc", *here, "--preset", "smal")
    assert "contradict" in refused(capsys, "deepjscc:small", *here, "--preset", "paper")
    assert "--schedule FILE" in refused(capsys, "deepjscc", *here, "--preset", "paper")
    assert "did you mean 'save_every'" in refused(capsys, "deepjscc", *here, "--schedule", wrong)
    assert "positive" in refused(capsys, "deepjscc", *here, "--max-minutes", "0")
    assert "no such data folder" in refused(capsys, "deepjscc", "--data", tmp_path / "none", "--out", out)
    assert "no clip or picture" in refused(capsys, "deepjscc", *here)
    wrong.write_text(SCHEDULE)
    with registered():
        assert "is a schedule for deepjscc:small" in refused(capsys, "echo", *here, "--schedule", wrong)
    assert "Missing option" in refused(capsys, "deepjscc")
    assert not out.exists()


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedule, out = tmp_path / "schedule.yaml", tmp_path / "run"
    schedule.write_text(SCHEDULE)
    args = ["train", "deepjscc", "--data", str(data), "--out", str(out), "--schedule", str(schedule), "--licence", "CC0"]
    assert main([*args, "--max-minutes", "0.000001"]) == 0
    assert "stopped at step 1 of 4; the same command goes on from there" in capsys.readouterr().out
    assert main(args) == 0
    assert "on held-out clips" in capsys.readouterr().out
    card = json.loads((out / "checkpoint" / "card.json").read_text())
    assert (card["steps"], card["data"], card["licence"]) == (4, ["data/video"], "CC0")
    video = tmp_path / "data" / "video" / "0.mp4"
    weights = str(out / "checkpoint")
    assert (
        main(["transmit", str(video), "--system", "deepjscc", "--weights", weights, "--cbr", "0.2", "--metrics", "psnr_rgb_db"])
        == 0
    )
