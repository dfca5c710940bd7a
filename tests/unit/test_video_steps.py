"""Steps: every frame once, in order, the end known, no tiny tail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from semcast.video.clip import Clip, Labels, VideoInfo
from semcast.video.cuts import is_cut
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


def scenes(lengths: list[int]) -> Clip:
    """Scenes of textures that drift by a pixel a frame; every scene has its own."""

    def source(labels: bool) -> Iterator[tuple[torch.Tensor, Labels]]:
        for scene, length in enumerate(lengths):
            coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(scene))
            texture = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear")[0]
            for index in range(length):
                yield texture.roll(index, 2), {}

    return Clip("made", INFO, source)


@pytest.mark.parametrize(
    ("lengths", "size", "cut"),
    [
        ([10, 22], 32, [10, 22]),
        ([9, 6], 4, [4, 3, 2, 4, 2]),  # five frames before the cut are shared, as before the end
        ([3, 1, 4], 8, [3, 1, 4]),
        ([8, 8], 8, [8, 8]),
        ([20], 32, [20]),
    ],
)
def test_steps_begin_where_scenes_do(lengths, size, cut):
    found = list(steps(scenes(lengths), size, scenes=True))
    assert [step.frames.shape[1] for step in found] == cut
    assert [step.last for step in found] == [False] * (len(cut) - 1) + [True]
    assert torch.equal(torch.cat([step.frames[0] for step in found]), torch.stack(list(scenes(lengths).frames())))
    assert sum(step.frames.shape[1] for step in steps(scenes(lengths), 1)) == sum(lengths)


def test_what_moves_or_dims_or_is_noisy_is_no_cut():
    base = next(iter(scenes([1]).frames()))
    noise = 0.1 * torch.randn(base.shape, generator=torch.Generator().manual_seed(9))
    assert not is_cut(base.roll((16, -8), (1, 2)), base)
    assert not is_cut(0.9 * base, base)
    assert not is_cut((base + noise).clamp(0, 1), base)
    assert not is_cut(torch.full_like(base, 0.51), torch.full_like(base, 0.5))
    assert is_cut(base.flip(0, 1, 2), base)
