"""From a clip to the steps that a transmitter gets."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from semcast.types import Step
from semcast.video.clip import Clip, Labels
from semcast.video.cuts import is_cut

Item = tuple[torch.Tensor, Labels]


def steps(clip: Clip, frames_per_step: int, *, labels: bool = True, scenes: bool = False) -> Iterator[Step]:
    """Cut a clip into steps of ``frames_per_step`` frames, lazily, with ``last`` set on the final one.

    A tail shorter than half a step is shared with its neighbour (33 frames by 32 become 17 + 16): a group of one frame
    would pay for an intra frame of its own. At most one and a half steps lie in memory.

    Args:
        clip: at least one frame.
        frames_per_step: 1 for low delay, or the length of a GOP or clip.
        labels: whether ground truth comes along; frame labels as (1, t, ...), clip labels as (1,).
        scenes: whether a step also begins where a scene does (:func:`semcast.video.cuts.is_cut`).
    """
    if frames_per_step < 1:
        raise ValueError(f"frames_per_step is {frames_per_step}; at least 1 is needed")
    source = clip.labelled_frames() if labels else ((frame, {}) for frame in clip.frames())
    ahead = frames_per_step + (frames_per_step + 1) // 2
    waiting: list[Item] = []
    index = 0
    for item in source:
        ready = []
        if scenes and frames_per_step > 1 and waiting and is_cut(item[0], waiting[-1][0]):
            ready, waiting = _shared(waiting, frames_per_step), []
        waiting.append(item)
        if len(waiting) == ahead:
            ready.append(waiting[:frames_per_step])
            del waiting[:frames_per_step]
        for items in ready:
            yield _step(clip, items, index, False, labels)
            index += 1
    tail = _shared(waiting, frames_per_step)
    for items in tail:
        yield _step(clip, items, index, items is tail[-1], labels)
        index += 1


def _shared(items: list[Item], frames_per_step: int) -> list[list[Item]]:
    """The rest of a scene, less than one and a half steps, as one step or as two of about the same length."""
    half = len(items) if len(items) <= frames_per_step else (len(items) + 1) // 2
    return [part for part in (items[:half], items[half:]) if part]


def _step(clip: Clip, items: list[Item], index: int, last: bool, labels: bool) -> Step:
    known = {name: value.reshape(1) for name, value in clip.labels.items()} if labels else {}
    for name in items[0][1]:
        known[name] = torch.stack([frame_labels[name] for _, frame_labels in items])[None]
    return Step(torch.stack([frame for frame, _ in items])[None], known, index, last)
