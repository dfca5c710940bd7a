"""Separate coding with the parts of DVST: budget, one reference for both ends, and what losses cost."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_systems import Ends, psnr_db, scene, tiny_dvst

from semcast.layers import block_motion, coefficient_coder
from semcast.layers.blocks import pad_to
from semcast.systems.conditions import load_condition
from semcast.systems.dcvc_ldpc import COARSEST, FINEST, DcvcLdpc, Head, pack_head, unpack_head

Hold = Callable[..., Any]
CLIP = scene("coffee-pan", 9)


@cache
def tiny() -> DcvcLdpc:
    """Groups of 4 frames, short packets."""
    condition = load_condition("dvst-paper").model_copy(update={"packet_bytes": 128})
    return DcvcLdpc(tiny_dvst(), condition).eval()


@pytest.fixture(scope="module")
def group() -> Any:
    """What arrived of the first four frames: classes, a run, numbers of the I-frame in several packets, of the others."""
    with torch.no_grad():
        received = Ends(tiny(), CLIP).send(CLIP[:4])
    frames = [unpack_head(data)[0].frame for data in received["video"][0][3:]]  # type: ignore[index]
    assert frames.count(0) >= 3
    assert set(frames) == {0, 1, 2, 3}
    return received


def without(group: Any, *numbers: int) -> Any:
    """The same with some packets lost."""
    return {"video": [[None if index in numbers else data for index, data in enumerate(group["video"][0])]]}


# -- budget and quality ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cbr", [0.04, 0.06, 0.1])
def test_the_budget_is_met(cbr: float, hold: Hold) -> None:
    """Within 5 % over two groups and an odd tail, session header included; never beyond."""
    session = hold(tiny(), CLIP, cbr=cbr)
    granted = cbr * session.ledger.source_values
    assert 0.95 * granted < session.ledger.channel_uses <= granted + 1
    assert all(result.decoded.concealed == 0 for result in session.results)


def test_quality_rises_with_rate_and_with_snr(hold: Hold) -> None:
    by_rate = [hold(tiny(), CLIP[:4], cbr=cbr).psnr_db for cbr in (0.04, 0.06, 0.09, 0.13)]
    by_snr = [hold(tiny(), CLIP[:4], snr_db=snr_db, cbr=0.1).psnr_db for snr_db in (2.0, 6.0, 10.0, 14.0, 18.0)]
    for rising in (by_rate, by_snr):
        assert all(later > earlier for earlier, later in pairwise(rising))
        assert rising[-1] > rising[0] + 1.5


@torch.no_grad()
def test_bytes_are_the_entropy_of_the_models() -> None:
    """All packets of a group: their numbers within 2 % of the code length, heads and the coder's last bytes included."""
    system = DcvcLdpc(tiny_dvst(), load_condition("dvst-paper"))
    coded = system.encode_group(pad_to(CLIP[:4], 16), [-130] * 4)
    ideal = sum(coefficient_coder.code_lengths(one.numbers, one.depths).sum() for one in coded) / 8
    size = sum(len(data) for data in system.pack(coded)[3:])
    assert ideal > 3000
    assert 0 < size < 1.02 * ideal


def test_groups_beat_frames_on_their_own(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    inter = hold(tiny(), CLIP[:8], cbr=0.08).psnr_db
    monkeypatch.setattr(tiny(), "frames_per_step", 1)
    assert inter > hold(tiny(), CLIP[:8], cbr=0.08).psnr_db + 0.5


# -- both ends ---------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_both_ends_have_the_same_pictures(group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, in every frame of a group."""
    made: list[Any] = []
    pack = tiny().pack
    monkeypatch.setattr(tiny(), "pack", lambda coded: (made.append(coded), pack(coded))[1], raising=False)
    ends = Ends(tiny(), CLIP)
    sent = [packet.data for packet in ends.encode(CLIP[:4])["video"].packets[0]]  # type: ignore[union-attr, index]
    shown = ends.show({"video": [sent]}, 4)
    (coded,) = [coded for coded in made if pack(coded) == sent]
    assert shown.concealed == 0
    for one, frame in zip(coded, shown.frames[0], strict=True):  # type: ignore[index]
        assert torch.equal(one.picture[:, : frame.shape[1], : frame.shape[2]], frame)


@torch.no_grad()
def test_numbers_do_not_depend_on_the_sums_of_floats(group: Any) -> None:
    """A receiver whose references are a little off reads the same numbers, and stays a little off."""
    ends, other = Ends(tiny(), CLIP), Ends(tiny(), CLIP)
    shown = ends.show(group, 4)
    exact = block_motion.compensate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_motion, "compensate", lambda reference, field: exact(reference, field) + 1e-5)
        off = other.show(group, 4)
    assert not torch.equal(shown.frames, off.frames)  # type: ignore[arg-type]
    assert float((shown.frames - off.frames).abs().max()) < 1e-4  # type: ignore[operator]


# -- losses ------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_lost_numbers_cost_detail_the_later_ones_less(group: Any) -> None:
    whole, first, last = (Ends(tiny(), CLIP).show(one, 4) for one in (group, without(group, 3), without(group, 5)))
    assert first.concealed == last.concealed == 0
    quality = [psnr_db(one.frames[0], CLIP[:4]) for one in (first, last, whole)]  # type: ignore[index]
    assert quality == sorted(quality)
    assert quality[1] > quality[0] + 3


@torch.no_grad()
def test_a_lost_run_stands_still_until_the_next_group(group: Any) -> None:
    ends = Ends(tiny(), CLIP)
    for lost in (1, 2):  # vectors, classes: either is worth nothing without the other
        shown = ends.show(without(group, lost), 4)
        assert shown.concealed == 3
    assert all(torch.equal(frame, shown.frames[0, 0]) for frame in shown.frames[0])  # type: ignore[index]
    ends.encode(CLIP[:4])
    again = ends.show(ends.send(CLIP[4:8]), 4)
    assert again.concealed == 0
    assert psnr_db(again.frames[0], CLIP[4:8]) > 20  # type: ignore[index]


@torch.no_grad()
def test_a_lost_key_frame_holds_the_last_frame(group: Any) -> None:
    ends = Ends(tiny(), CLIP)
    before = ends.show(group, 4)
    held = ends.show(without(group, 0), 4)
    assert held.concealed == 4
    assert all(torch.equal(frame, before.frames[0, -1]) for frame in held.frames[0])  # type: ignore[index]
    grey = Ends(tiny(), CLIP).show({"video": [[]]}, 4)
    assert grey.concealed == 4
    assert bool((grey.frames == 0.5).all())


@torch.no_grad()
@pytest.mark.parametrize("data", [b"", b"\0", b"\x00\x80\x80\x80", bytes(40), b"\xff" * 40, b"\x01\x10\x00\x7f" + b"abcd" * 9])
def test_forged_packets_never_raise(group: Any, data: bytes) -> None:
    count = len(group["video"][0])
    Ends(tiny(), CLIP).show({"video": [[data] * count]}, 4)
    shown = Ends(tiny(), CLIP).show({"video": [[*group["video"][0][:3], *[data] * (count - 3)]]}, 4)
    assert shown.concealed == 0


def test_a_cliff_lies_below_the_told_snr(hold: Hold) -> None:
    above, told, below = (hold(tiny(), CLIP[:4], snr_db=snr, csi_snr_db=10.0, cbr=0.1) for snr in (14.0, 10.0, 4.0))
    assert above.psnr_db == told.psnr_db
    assert told.psnr_db > below.psnr_db + 8


# -- heads -------------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 249), st.integers(FINEST, COARSEST), st.integers(0, 2**27), st.integers(0, 2**27), st.binary())
def test_heads_come_back(frame: int, step: int, begin: int, count: int, rest: bytes) -> None:
    head = Head(frame, step, begin, begin + count)
    data = pack_head(head)
    assert unpack_head(data + rest) == (head, rest)
    assert all(unpack_head(data[:size]) is None for size in range(len(data)))
