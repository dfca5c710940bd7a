"""Packets and bitstream surgery: what goes in comes out, and whatever is lost or damaged never raises."""

import random

import pytest

from semcast.errors import InputError, UnknownNameError
from semcast.systems.conditions import condition_names, load_condition, parse_condition
from semcast.systems.digital import bitstream
from semcast.systems.digital.packets import Unit, pack, unpack

SIZES = [3, 1, 90, 127, 128, 300, 5000, 20000, 2, 17]
UNITS = [Unit(k, bytes([k]) * size) for k, size in enumerate(SIZES)]


@pytest.mark.parametrize("gather", [0, 64, 400, 1400])
@pytest.mark.parametrize("limit", [64, 500, 1400])
def test_pack_round_trip(limit: int, gather: int) -> None:
    packets = pack(UNITS, limit, gather, scale=2, thin=1)
    assert max(map(len, packets)) <= limit
    arrived = unpack(packets)
    assert [(u.frame, u.data) for u in arrived.units] == [(u.frame, u.data) for u in UNITS]
    assert all(u.complete and not u.gap for u in arrived.units)
    assert (arrived.scale, arrived.thin, arrived.tail_lost) == (2, 1, False)


def test_gathering_saves_packets_and_bytes() -> None:
    small = [Unit(k, b"x" * 40) for k in range(20)]
    alone, shared = pack(small, 1400, 0), pack(small, 1400, 400)
    assert len(shared) < len(alone) / 5
    assert sum(map(len, shared)) <= sum(map(len, alone)) + 2 * len(shared)


def test_every_single_loss_is_seen() -> None:
    packets = pack(UNITS, 500, 200)
    whole = unpack(packets).units
    for k in range(len(packets)):
        arrived = unpack([None if j == k else p for j, p in enumerate(packets)])
        kept = {(u.frame, u.data) for u in arrived.units if u.complete}
        assert kept < {(u.frame, u.data) for u in whole}
        assert arrived.tail_lost or any(u.gap or not u.complete for u in arrived.units)


def test_a_cut_unit_keeps_its_beginning() -> None:
    data = bytes(range(250)) * 20
    packets = pack([Unit(0, data)], 500)
    cut = unpack([*packets[:4], None, *packets[5:]]).units[0]
    assert not cut.complete
    assert data.startswith(cut.data)
    assert len(cut.data) > 1500


def test_unpack_survives_garbage() -> None:
    rng = random.Random(0)
    packets = pack(UNITS, 500, 200)
    for _ in range(30):
        damaged = [
            bytes(b ^ (rng.random() < 0.02) * rng.randrange(256) for b in p)[: rng.randrange(len(p) + 1)] for p in packets
        ]
        rng.shuffle(damaged)
        for unit in unpack(damaged).units:
            assert 0 <= unit.frame < 256
            assert len(unit.data) < 30000


def test_annex_b_drops_start_codes_and_sei() -> None:
    sps, sei, idr = b"\x67\x64\x00\x1e", b"\x06\x05\xff", b"\x65\x88\x84"
    stream = b"\x00\x00\x00\x01" + sps + b"\x00\x00\x01" + sei + b"\x00\x00\x01" + idr
    assert bitstream.split_annex_b(stream, "h264") == [sps, idr]
    assert bitstream.split_annex_b(bitstream.join_annex_b([sps, idr]), "h264") == [sps, idr]
    assert bitstream.split_annex_b(b"", "h264") == []


@pytest.mark.parametrize("poc", [0, 1, 3, 127, 255, 256 + 7])
def test_set_h265_poc(poc: int) -> None:
    # first_slice 1, pps_id ue 0 -> 1, slice_type P -> 010, then 8 bits of picture order count, here 5
    nal = bytes([0x02, 0x01]) + int("11010" + f"{5:08b}" + "1" * 19, 2).to_bytes(4, "big") + b"\xab\x00\x00\x03\x01"
    moved = bitstream.set_h265_poc(nal, poc)
    assert moved is not None
    head = int.from_bytes(bitstream._unescape(moved)[2:6], "big")
    assert head >> 19 & 255 == poc & 255
    assert head & ~(255 << 19) == int("11010" + "0" * 8 + "1" * 19, 2)
    assert b"\x00\x00\x01" not in moved
    assert bitstream.set_h265_poc(moved, 5) == nal
    assert bitstream.set_h265_poc(b"\x26\x01" + nal[2:], poc) is None, "an IDR picture has no such field"


def test_conditions_load() -> None:
    assert {"strong", "offline", "dvst-paper"} <= set(condition_names())
    strong = load_condition("")
    assert (strong.name, strong.gop, strong.b_frames, strong.lookahead) == ("strong", 32, 0, 0)
    assert strong.h265.preset == strong.h264.preset == "medium"
    assert (load_condition("dvst-paper").gop, load_condition("dvst-paper").h265.preset) == (4, "veryfast")
    assert load_condition("offline").b_frames > 0
    with pytest.raises(UnknownNameError, match="'strong'"):
        load_condition("strnog")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("gopp: 8", UnknownNameError, "'gop'"),
        ("h265: {preset: medium, cascad: [1]}", UnknownNameError, "'cascade'"),
        ("gop: many", InputError, "gop"),
        ("gop: 0", InputError, "gop"),
        ("{", InputError, "YAML"),
        ("b_frames: 3\nh265: {cascade: [1]}", InputError, "cascade"),
    ],
)
def test_conditions_name_what_is_wrong(change: str, error: type[Exception], message: str) -> None:
    text = "name: x\nsummary: y\ngop: 4\nh264: {}\nh265: {}\nav1: {}\nhevc_intra: {}\n"
    assert parse_condition(text, "x").gop == 4
    keys = {line.split(":")[0] for line in change.splitlines()}
    kept = "\n".join(line for line in text.splitlines() if line.split(":")[0] not in keys)
    with pytest.raises(error, match=message):
        parse_condition(kept + "\n" + change, "x")
