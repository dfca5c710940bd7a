"""Steps: every frame once, in order, the end known, no tiny tail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from semcast.video.clip import Clip, Labels, VideoInfo
from semcast.video.steps import steps

INFO = VideoInfo("made", 64, 64, 25.0, None, "made", "gbrp")


def numbered(count: int, taken: list[int] | None = None) -> Clip:
    def source(labels: bool) -> Iterator[tuple[torch.Tensor, Labels]]:
        for index in range(count):
            if taken is not None:
                taken.append(index)
            yield torch.full((3, 64, 64), index / 255), {"flow": torch.full((2, 64, 64), float(index))} if labels else {}

    return Clip("made", INFO, source, labels={"action": torch.tensor(4)})


@pytest.mark.parametrize(
    ("count", "size", "lengths"),
    [
        (33, 32, [17, 16]),
        (65, 32, [32, 17, 16]),
        (64, 32, [32, 32]),
        (48, 32, [32, 16]),
        (47, 32, [24, 23]),
        (1, 32, [1]),
        (5, 1, [1] * 5),
        (4, 3, [2, 2]),
        (5, 3, [3, 2]),
        (3, 2, [2, 1]),
        (0, 4, []),
    ],
)
def test_lengths_order_and_end(count, size, lengths):
    cut = list(steps(numbered(count), size))
    assert [s.frames.shape[1] for s in cut] == lengths
    assert [s.index for s in cut] == list(range(len(lengths)))
    assert [s.last for s in cut] == [False] * (len(lengths) - 1) + [True] * bool(lengths)
    values = [round(float(f.mean() * 255)) for s in cut for f in s.frames[0]]
    assert values == list(range(count))


def test_labels_come_along_per_frame_and_per_clip():
    first, second = steps(numbered(6), 4)
    assert first.frames.shape == (1, 4, 3, 64, 64)
    assert first.labels["flow"].shape == (1, 4, 2, 64, 64)
    assert second.labels["flow"][0, :, 0, 0, 0].tolist() == [4.0, 5.0]
    assert first.labels["action"].tolist() == [4]
    assert dict(next(iter(steps(numbered(6), 4, labels=False))).labels) == {}


def test_steps_read_ahead_by_half_a_step_only():
    taken: list[int] = []
    cut = steps(numbered(1000, taken), 8)
    next(cut)
    assert len(taken) == 12
    next(cut)
    assert len(taken) == 20


def test_a_step_needs_a_frame():
    with pytest.raises(ValueError, match="at least 1"):
        next(steps(numbered(3), 0))
