"""DVST's five training steps through the loop that every system uses."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from semcast.systems.dvst.config import PaperConfig, read_plan
from semcast.systems.dvst.paper import make_paper
from semcast.systems.ntscc.paper import NtsccPaper
from semcast.systems.ntscc.paper import PaperConfig as KeyConfig
from semcast.training.data import Corpus
from semcast.training.loop import Progress, train
from semcast.training.schedule import Schedule, load_schedule

pytest.importorskip("accelerate", reason="training needs the extra `train`")

KEY = KeyConfig(width=8, depths=(1, 1, 1, 1), heads=2, window=4, hyper_width=4, code_depth=1, code_heads=2, code_window=4)
TINY = PaperConfig(
    width=8, motion_width=6, context_width=6, hyper_width=4, token_width=16, motion_token_width=8, depth=2, heads=2, window=4,
    flow_levels=2, flow_widths=(4, 4),
)  # fmt: skip


def test_schedules_are_the_paper_s_five_steps() -> None:
    stages = load_schedule("dvst", "paper").stages
    plans = [read_plan(stage.options) for stage in stages]
    assert [plan.step for plan in plans] == [1, 2, 3, 3, 4, 5]
    assert [plan.bits for plan in plans] == [True, True, False, True, True, True]
    assert (stages[-1].frames, plans[-1].gop) == (7, 7)
    assert load_schedule("ntscc", "paper").stages[0].options == {"rate_weight": 64}


def test_every_step_runs_in_the_loop_and_is_told_of(clip: Callable[..., torch.Tensor], tmp_path: Path) -> None:
    """Two turns of every stage, in mixed precision as ever; the parts that a stage trains are the ones that move."""
    torch.manual_seed(0)
    system = make_paper(config=TINY, key=NtsccPaper(KEY))
    clips = [clip(3, 96, 96, seed=s).movedim(1, -1).mul(255).round().to(torch.uint8).numpy() for s in range(6)]
    published = load_schedule("dvst", "paper")
    shrunk = {"steps": 2, "batch": 2, "size": 64, "warmup": 1}
    stages = tuple(stage.model_copy(update={**shrunk, "frames": min(stage.frames, 3)}) for stage in published.stages)
    plan = Schedule(system="dvst", preset="paper", ema=0.5, validate_every=1000, save_every=1000, stages=stages)
    seen: list[tuple[int, float, bool]] = []
    at_rest = {name: p.detach().clone() for name, p in system.named_parameters()}

    def note(turn: Progress) -> None:
        primary = any(
            not torch.equal(p, at_rest[name]) for name, p in system.named_parameters() if name.startswith("inter.primary")
        )
        seen.append((system.plan.step, turn.loss, primary))

    train(system, Corpus([np.ascontiguousarray(c) for c in clips], ("textures",)), plan, tmp_path, card={}, on_step=note)
    assert [step for step, _, _ in seen] == [1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5]
    assert all(math.isfinite(loss) for _, loss, _ in seen)
    assert [moved for _, _, moved in seen] == [False] * 4 + [True] * 8
    assert all(torch.equal(p, at_rest[name]) for name, p in system.named_parameters() if name.startswith("key."))
    assert system.frames_per_step == 7
