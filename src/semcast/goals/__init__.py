"""What the receiver wants from the video: one line each; the module is imported when the goal is first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semcast.registry import Registry

if TYPE_CHECKING:
    from semcast.goals.base import Goal, TaskModelSpec

GOALS: Registry[Goal] = Registry("goal")

GOALS.add("watch", "semcast.goals.watch:GOAL")
GOALS.add("segment", "semcast.goals.segment:GOAL")

TASK_MODELS: Registry[TaskModelSpec] = Registry("task model")

TASK_MODELS.add("segmenter", "semcast.goals.segmenter:SPEC")
