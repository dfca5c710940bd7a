"""From a clip to the steps that a transmitter gets."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from semcast.types import Step
from semcast.video.clip import Clip, Labels


def steps(clip: Clip, frames_per_step: int, *, labels: bool = True) -> Iterator[Step]:
    """Cut a clip into steps of ``frames_per_step`` frames, lazily, with ``last`` set on the final one.

    A tail shorter than half a step is shared with its neighbour (33 frames by 32 become 17 + 16): a group of one frame
    would pay for an intra frame of its own. At most one and a half steps lie in memory.

    Args:
        clip: at least one frame.
        frames_per_step: 1 for low delay, or the length of a GOP or clip.
        labels: whether ground truth comes along; frame labels as (1, t, ...), clip labels as (1,).
    """
    if frames_per_step < 1:
        raise ValueError(f"frames_per_step is {frames_per_step}; at least 1 is needed")
    source = clip.labelled_frames() if labels else ((frame, {}) for frame in clip.frames())
    ahead = frames_per_step + (frames_per_step + 1) // 2
    waiting: list[tuple[torch.Tensor, Labels]] = []
    index = 0
    for item in source:
        waiting.append(item)
        if len(waiting) == ahead:
            yield _step(clip, waiting[:frames_per_step], index, False, labels)
            del waiting[:frames_per_step]
            index += 1
    if len(waiting) > frames_per_step:
        half = (len(waiting) + 1) // 2
        yield _step(clip, waiting[:half], index, False, labels)
        del waiting[:half]
        index += 1
    if waiting:
        yield _step(clip, waiting, index, True, labels)


def _step(clip: Clip, items: list[tuple[torch.Tensor, Labels]], index: int, last: bool, labels: bool) -> Step:
    known = {name: value.reshape(1) for name, value in clip.labels.items()} if labels else {}
    for name in items[0][1]:
        known[name] = torch.stack([frame_labels[name] for _, frame_labels in items])[None]
    return Step(torch.stack([frame for frame, _ in items])[None], known, index, last)
