"""Framing, accounting, adaptation and the registry of modems."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semcast.errors import ContractError, SpecError, UnknownNameError
from semcast.modems import MODEMS, make_modem
from semcast.modems.base import GOODPUT_SLACK, Uses
from semcast.modems.coded import CodedModem, protected_layout
from semcast.modems.exact import decode_control, encode_control
from semcast.modems.framing import (
    CONTROL_LEVELS,
    PACKETS_MAX,
    STREAM_BYTES_MAX,
    deframe,
    frame,
    layout,
    max_block_bytes,
    pack_control,
    stream_size,
    unpack_control,
)
from semcast.modems.interleave import burst, control_stride
from semcast.modems.mcs import CODED_BITS_MAX, MCS, coded_bits, get_mcs
from semcast.modems.qam import demodulate
from semcast.types import Packet, RxAnalog

NAMES = sorted(MCS)


class FakeAir:
    """AWGN or per-symbol Rayleigh with known gains."""

    def __init__(self, snr_db: float, *, rayleigh: bool = False, lost: tuple[int, ...] = (), seed: int = 0) -> None:
        self.noise_var = 10 ** (-snr_db / 10)
        self.rayleigh, self.lost = rayleigh, lost
        self.generator = torch.Generator().manual_seed(seed)
        self.clock = 0

    def _gauss(self, n: int) -> torch.Tensor:
        return torch.view_as_complex(torch.randn(n, 2, generator=self.generator)) * math.sqrt(0.5)

    def fade(self, n: int) -> RxAnalog:
        self.clock += n
        h = self._gauss(n) if self.rayleigh else torch.ones(n, dtype=torch.complex64)
        return RxAnalog(h, h, torch.full((n,), self.noise_var))

    def carry(self, x: torch.Tensor) -> RxAnalog:
        n = x.shape[1]
        h = self.fade(n).h[None]
        y = h * x + self._gauss(n)[None] * math.sqrt(self.noise_var)
        return RxAnalog(y, h, torch.full((1, n), self.noise_var))

    def erased(self, count: int) -> torch.Tensor:
        flags = torch.zeros(count, dtype=torch.bool)
        flags[list(self.lost)] = True
        return flags


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def random_packets(sizes: list[int], mcs: str | None = None) -> list[Packet]:
    g = generator()
    return [Packet(bytes(torch.randint(0, 256, (size,), generator=g).tolist()), mcs=mcs) for size in sizes]


packet_lists = st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=900)), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(gapped=packet_lists, name=st.sampled_from(NAMES), data=st.data(), padding=st.integers(0, 40))
def test_lost_blocks_lose_packets_but_never_alter_them(gapped, name, data, padding):
    packets, number = [], -1
    for gap, content in gapped:
        number += 1 + gap
        packets.append((number, content))
    lay = layout(stream_size((n, len(c)) for n, c in packets) + padding, MCS[name])
    blocks: list[bytes | None] = list(frame(packets, lay))
    assert deframe(blocks, lay) == dict(packets)
    alive = data.draw(st.lists(st.booleans(), min_size=lay.blocks, max_size=lay.blocks))
    survived = deframe([block if ok else None for block, ok in zip(blocks, alive, strict=True)], lay)
    # exactly the packets all of whose bytes, prefix included, lie in blocks that arrived
    expected, at, upcoming = {}, 0, 0
    for n, content in packets:
        begin = at
        at += stream_size([(n - upcoming, len(content))])
        upcoming = n + 1
        touched = range(begin // lay.data_bytes, (at - 1) // lay.data_bytes + 1)
        if all(alive[index] for index in touched):
            expected[n] = content
    assert survived == expected


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.binary(max_size=120)), max_size=8), st.integers(1, 4000), st.sampled_from(NAMES), st.data()
)
def test_garbage_is_survived(blocks, size, name, data):
    lay = layout(size, MCS[name])
    full = [data.draw(st.binary(min_size=lay.block_bytes, max_size=lay.block_bytes)) if lay.block_bytes < 200 else None]
    for number, content in deframe(full + blocks, lay).items():
        assert 0 <= number < PACKETS_MAX
        assert isinstance(content, bytes)


@given(st.binary(min_size=4, max_size=4))
def test_control_block_round_trip_or_none(data):
    found = unpack_control(data)
    if found is not None:
        assert pack_control(*found) == data


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_legal_and_nearly_equal(name):
    mcs = MCS[name]
    for size in (1, 2, 30, 200, 600, 700, 1500, 5000, 60001):
        lay = layout(size, mcs)
        assert lay.coded_bits <= CODED_BITS_MAX
        assert lay.coded_bits % mcs.bits_per_symbol == 0
        assert 1 / 5 <= lay.info_bits / lay.coded_bits <= mcs.rate + 1e-9
        assert 0 <= lay.blocks * lay.data_bytes - size < lay.blocks
    assert coded_bits(8 * max_block_bytes(mcs) + 24, mcs) <= CODED_BITS_MAX < coded_bits(8 * max_block_bytes(mcs) + 32, mcs)


def test_framing_rejects_what_it_cannot_number_or_hold():
    lay = layout(10, MCS["qpsk-1/2"])
    with pytest.raises(ContractError, match="rise"):
        frame([(1, b"a"), (1, b"b")], lay)
    with pytest.raises(ContractError, match="does not fit"):
        frame([(0, bytes(20))], lay)
    with pytest.raises(ContractError, match="1 to"):
        layout(STREAM_BYTES_MAX + 1, MCS["qpsk-1/2"])


@pytest.mark.parametrize("phy", ["table", "capacity"])
@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 3000), max_size=6), snr_db=st.floats(-8, 26))
def test_uses_for_bytes_is_what_transport_charges(phy, sizes, snr_db):
    modem = make_modem(phy)
    mcs = modem.select(snr_db)
    air = FakeAir(40.0)
    arrived, uses = modem.transport(random_packets(sizes), air, mcs, generator=generator())
    assert uses.uses == modem.uses_for_bytes(sizes, mcs) == air.clock
    assert arrived == [packet.data for packet in random_packets(sizes)]
    assert uses.info_bits == 8 * sum(sizes)
    assert (uses.blocks_lost, uses.retransmissions, uses.feedback_uses) == (0, 0, 0)


class Wire(CodedModem):
    """Everything arrives, and no channel is asked: what is left is framing and accounting."""

    def _attempt(self, sent, pending, with_control, air, generator):
        sent.announced, sent.received = sent.lay, list(sent.blocks)


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("named", [True, False])
def test_every_size_costs_what_was_promised_at_every_scheme(named, stride):
    modem, air, payload = Wire(), FakeAir(40.0), bytes(3000)
    promise = modem.uses_for_named if named else modem.uses_for_bytes
    for mcs in MCS.values():
        for size in [*range(1, 200), *range(200, 3001, stride)]:
            packet = Packet(payload[:size], mcs=mcs.name if named else None)
            _, uses = modem.transport([packet], air, mcs, generator=generator())
            assert uses.uses == promise([size], mcs), (mcs.name, size)


@pytest.mark.parametrize("phy", ["table", "capacity"])
@settings(max_examples=40, deadline=None)
@given(uses=st.integers(0, 40000), snr_db=st.floats(-8, 26))
def test_bytes_for_uses_inverts_uses_for_bytes(phy, uses, snr_db):
    modem = make_modem(phy)
    mcs = modem.select(snr_db)
    size = modem.bytes_for_uses(uses, mcs)
    assert size == 0 or modem.uses_for_bytes([size], mcs) <= uses
    assert modem.uses_for_bytes([size + 1], mcs) > uses


@pytest.mark.parametrize("name", ["bpsk-1/5", "qpsk-1/2", "16qam-2/3", "64qam-3/4", "256qam-9/10"])
def test_uses_rise_with_bytes_and_the_long_run_meets_bits_per_use(name):
    modem = make_modem("table")
    counts = [modem.uses_for_bytes([size], MCS[name]) for size in range(1, 2500)]
    assert counts == sorted(counts)
    size = 400_000
    assert 8 * size / modem.uses_for_bytes([size], MCS[name]) == pytest.approx(modem.bits_per_use(MCS[name]), rel=5e-3)


def test_an_empty_list_costs_nothing():
    for phy in ("table", "exact", "capacity"):
        modem, air = make_modem(phy), FakeAir(10.0)
        assert modem.transport([], air, modem.select(10.0), generator=generator()) == ([], Uses())
        assert air.clock == 0
        assert modem.uses_for_bytes([], modem.select(10.0)) == 0


def test_the_network_drops_packets_after_the_radio():
    arrived, uses = make_modem("table").transport(
        random_packets([10, 20, 30]), FakeAir(30.0, lost=(1,)), MCS["qpsk-1/2"], generator=generator()
    )
    assert [entry is None for entry in arrived] == [False, True, False]
    assert uses.blocks_lost == 0


def test_packets_choose_their_own_scheme_and_keep_their_place():
    packets = [
        Packet(b"a" * 300),
        Packet(b"b" * 30, mcs="bpsk-1/5"),
        Packet(b""),
        Packet(b"c" * 9, mcs="bpsk-1/5"),
        Packet(b"d"),
    ]
    for phy in ("table", "exact"):
        arrived, uses = make_modem(phy).transport(packets, FakeAir(25.0), MCS["64qam-2/3"], generator=generator())
        assert arrived == [packet.data for packet in packets]
        assert "bpsk-1/5" in uses.mcs.split("+")
        assert uses.blocks == 2


def test_many_packets_are_split_into_numberings():
    packets = [Packet(bytes([index % 251])) for index in range(PACKETS_MAX + 5)]
    arrived, _ = make_modem("table").transport(packets, FakeAir(30.0), MCS["256qam-3/4"], generator=generator())
    assert arrived == [packet.data for packet in packets]


def test_a_seed_decides_the_losses_and_global_randomness_is_left_alone():
    modem = make_modem("table")
    packets = random_packets([300] * 20)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = modem.transport(packets, FakeAir(6.0), MCS["16qam-1/2"], generator=generator())
    second = modem.transport(packets, FakeAir(6.0), MCS["16qam-1/2"], generator=generator())
    make_modem("exact").transport(packets[:1], FakeAir(6.0), MCS["16qam-1/2"], generator=generator())
    assert first == second
    assert 0 < sum(entry is None for entry in first[0]) < 20
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("phy", ["table", "exact"])
def test_a_hopeless_channel_costs_but_never_raises(phy):
    arrived, uses = make_modem(phy, harq=1).transport(
        random_packets([50, 400]), FakeAir(-25.0), MCS["16qam-1/2"], generator=generator()
    )
    assert arrived == [None, None]
    assert uses.blocks_lost == uses.blocks > 0
    assert uses.control_uses > 0


def test_select_climbs_with_snr_and_falls_back_to_the_most_robust():
    modem = make_modem("table")
    chosen = [modem.select(float(snr)).efficiency for snr in range(-12, 30)]
    assert chosen == sorted(chosen)
    assert modem.select(-40.0).name == "bpsk-1/5"
    assert modem.select(40.0).name == "256qam-9/10"
    gains = torch.view_as_complex(torch.randn(64, 3072, 2, generator=generator())) * math.sqrt(0.5)
    assert modem.select(12.0, gains).efficiency < modem.select(12.0).efficiency
    assert make_modem("table", mcs="qpsk-1/2").select(30.0).name == "qpsk-1/2"


def test_in_outage_the_fallback_is_the_best_goodput_and_for_what_must_arrive_the_least_loss():
    """Half of the sends meet no channel at all: what helps the other half is rate, and robustness helps nobody."""
    modem, capacity = make_modem("table"), make_modem("capacity")
    gains = torch.ones(64, 1024)
    gains[::2] = 1e-4
    assert modem.select(10.0, gains).efficiency >= (1 - GOODPUT_SLACK) * modem.select(10.0).efficiency
    assert modem.select_protected(10.0, gains).name == "bpsk-1/5"
    assert modem.select_protected(10.0) == modem.select(10.0)
    assert capacity.select(10.0, gains).efficiency == pytest.approx(math.log2(11), abs=1e-5)
    assert capacity.select_protected(10.0, gains).efficiency == pytest.approx(0.2)
    gains[::2] = 0.5  # a fade that a scheme can cross is no outage
    assert modem.select(10.0, gains) == modem.select(10.0 - 20 * math.log10(2))


def test_a_short_block_of_the_slowest_scheme_is_not_padded_to_a_long_one():
    slowest = MCS["bpsk-1/5"]
    for size in (39, 60):
        assert protected_layout(size, slowest, 1e-3) == layout(size, slowest)
    assert all(protected_layout(size, mcs, 1e-3).uses < 2000 for size in (1, 6, 39) for mcs in MCS.values())


@pytest.mark.parametrize(
    ("control", "blocks", "block_uses"), [(60, 1, 90), (480, 1, 7), (0, 5, 64), (240, 67, 31), (60, 66, 40)]
)
def test_a_burst_has_a_place_for_every_symbol_and_every_block_is_everywhere(control, blocks, block_uses):
    places = burst(control, blocks, block_uses)
    total = control + blocks * block_uses
    assert sorted([*places.control.tolist(), *places.data.flatten().tolist()]) == list(range(total))
    assert places.data.shape == (blocks, block_uses)
    if control:
        stride = control_stride(control, total)
        assert np.diff(places.control).tolist() == [stride] * (control - 1)
        assert total / 2 < stride * control <= total
    # every block has one symbol in each column, so that it spans the burst
    assert (np.sort(places.data, axis=1) == places.data).all()
    assert (np.diff(places.data, axis=1) < 3 * blocks + 3).all()
    if blocks > 60:  # and does not live on one of 67 subcarriers, however many blocks there are
        assert min(len(np.unique(row % 67)) for row in places.data) > 10


def test_a_control_block_is_found_wherever_the_length_of_the_burst_puts_it():
    mcs = MCS["qpsk-1/2"]
    for uses in CONTROL_LEVELS:
        for size in (20, 700, 9000):
            lay = layout(size, mcs)
            symbols = torch.zeros(1, uses + lay.uses, dtype=torch.complex64)
            symbols[:, torch.from_numpy(burst(uses, lay.blocks, lay.block_uses).control)] = encode_control(lay, uses)
            llr = demodulate(symbols, torch.ones_like(symbols), torch.full((1, 1), 0.1), 2)
            assert decode_control(llr) == (lay, uses)
            assert decode_control(llr.roll(2)) is None


def test_short_streams_get_a_slower_scheme_or_padding_but_a_fixed_scheme_stays():
    free, fixed = make_modem("table"), make_modem("table", mcs="16qam-2/3")
    mcs = MCS["16qam-2/3"]
    _, uses = free.transport(random_packets([20]), FakeAir(30.0), mcs, generator=generator())
    assert get_mcs(uses.mcs).efficiency < mcs.efficiency
    _, uses = fixed.transport(random_packets([20]), FakeAir(30.0), mcs, generator=generator())
    assert uses.mcs == "16qam-2/3"
    assert free.uses_for_bytes([4000], mcs) == fixed.uses_for_bytes([4000], mcs)


def test_bad_arguments_say_what_is_wrong():
    with pytest.raises(UnknownNameError, match=r"did you mean 'table'"):
        make_modem("tabel")
    with pytest.raises(UnknownNameError, match=r"did you mean 'qpsk-1/2'"):
        make_modem("table", mcs="qpsk-1/22")
    with pytest.raises(SpecError, match="negative"):
        make_modem("exact", harq=-1)
    with pytest.raises(SpecError, match="target_bler"):
        make_modem("table", target_bler=0.7)
    with pytest.raises(SpecError, match="capacity modem"):
        make_modem("table", mcs="capacity-2")
    with pytest.raises(SpecError, match="capacity-BITS"):
        get_mcs("capacity-lots")
    with pytest.raises(ContractError, match="cut it"):
        make_modem("table").uses_for_bytes([STREAM_BYTES_MAX], MCS["qpsk-1/2"])


def test_registry():
    assert list(MODEMS) == ["capacity", "exact", "table"]
    assert type(make_modem("fast")) is MODEMS.get("table")
