"""Constellations, 5G LDPC, tables and retransmission against theory, references and each other."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import ndtr

from semcast.link import Link, LinkAir
from semcast.modems import bler as tables
from semcast.modems import make_modem
from semcast.modems.coded import CodedModem
from semcast.modems.exact import ExactModem
from semcast.modems.framing import layout, stream_size
from semcast.modems.ldpc import BlockCode, block_code, crc
from semcast.modems.mcs import MCS, Mcs
from semcast.modems.qam import SNR_GRID_DB, demodulate, modulate, mutual_information
from semcast.modems.sionna_import import sionna_phy
from semcast.modems.table import TableModem, combined_information
from semcast.types import Packet, RxAnalog

# 5G LDPC, 6144 coded bits, 20 iterations: Es/N0 in dB from which the block error rate stays below 1e-3
REFERENCE_DB = {
    "qpsk-1/3": -0.75,
    "qpsk-1/2": 1.75,
    "qpsk-2/3": 3.5,
    "16qam-1/3": 4.0,
    "16qam-1/2": 7.0,
    "16qam-2/3": 9.25,
    "64qam-1/2": 11.0,
    "64qam-2/3": 14.25,
    "256qam-1/3": 10.75,
    "256qam-1/2": 15.5,
}


class Radio:
    """AWGN or per-symbol Rayleigh with known gains, as a modem meets it."""

    def __init__(self, snr_db: float, seed: int, *, rayleigh: bool = False) -> None:
        self.noise_var, self.rayleigh = 10 ** (-snr_db / 10), rayleigh
        self.generator = torch.Generator().manual_seed(seed)

    def gauss(self, n: int) -> torch.Tensor:
        return torch.view_as_complex(torch.randn(n, 2, generator=self.generator)) * math.sqrt(0.5)

    def fade(self, n: int) -> RxAnalog:
        h = self.gauss(n) if self.rayleigh else torch.ones(n, dtype=torch.complex64)
        return RxAnalog(h, h, torch.full((n,), self.noise_var))

    def carry(self, x: torch.Tensor) -> RxAnalog:
        h = self.fade(x.shape[1]).h[None]
        y = h * x + self.gauss(x.shape[1])[None] * math.sqrt(self.noise_var)
        return RxAnalog(y, h, torch.full((1, 1), self.noise_var))

    def erased(self, count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.bool)


def random_bits(blocks: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 2, (blocks, n), generator=torch.Generator().manual_seed(seed)).float()


def blocks_lost(mcs: Mcs, n: int, snr_db: float, blocks: int, *, rayleigh: bool = False, seed: int = 1) -> int:
    """Blocks of ``n`` coded bits that the real chain loses."""
    n = n // mcs.bits_per_symbol * mcs.bits_per_symbol
    code = block_code(math.ceil(n * mcs.rate - 1e-9), n, mcs.bits_per_symbol)
    payload = random_bits(blocks, code.info_bits - 24, seed)
    x = modulate(code.encode(payload), mcs.bits_per_symbol)
    radio = Radio(snr_db, seed, rayleigh=rayleigh)
    rx = radio.carry(x.reshape(1, -1))
    y, h, noise = (part.expand(1, x.numel()).reshape(blocks, -1) for part in (rx.y, rx.h, rx.noise_var))
    decoded, passed = code.decode(demodulate(y, h, noise, mcs.bits_per_symbol))
    assert bool((decoded == payload)[passed].all())
    return int((~passed).sum())


def assert_within_db(mcs: Mcs, n: int, snr_db: float, table_db: float, lost: int, blocks: int, tolerance_db: float) -> None:
    """The loss rate lies between the table's at ``tolerance_db`` more and less SNR, give or take 4 sigma of counting."""
    low, high = (float(tables.bler(mcs, n, table_db + shift)) for shift in (tolerance_db, -tolerance_db))
    slack_low, slack_high = (4 * math.sqrt(blocks * p * (1 - p)) + 1 for p in (low, high))
    assert blocks * low - slack_low <= lost <= blocks * high + slack_high, (mcs.name, n, snr_db, lost, blocks, low, high)


@pytest.mark.parametrize(("m", "snr_db"), [(1, 4.0), (2, 7.0), (4, 13.0)])
def test_uncoded_bit_error_rate_is_the_q_function(m, snr_db):
    bits = random_bits(1, 240_000)
    rx = Radio(snr_db, 5).carry(modulate(bits, m))
    wrong = int(((demodulate(rx.y, rx.h, rx.noise_var, m) > 0) != bits.bool()).sum())
    snr = 10 ** (snr_db / 10)
    if m == 4:  # exact for Gray 4-PAM per axis: distances 1, 3 and 5
        q1, q3, q5 = (float(ndtr(-d * math.sqrt(snr / 5))) for d in (1, 3, 5))
        expected = (3 * q1 + 2 * q3 - q5) / 4
    else:
        expected = float(ndtr(-math.sqrt(snr * (2 if m == 1 else 1))))
    sigma = math.sqrt(expected * (1 - expected) * bits.numel())
    assert abs(wrong - expected * bits.numel()) < 5 * sigma


@pytest.mark.parametrize("m", [1, 2, 4, 6, 8])
def test_symbols_have_unit_power_and_llr_is_positive_for_a_one(m):
    bits = random_bits(1, 48_000)
    x = modulate(bits, m)
    assert float(x.abs().square().mean()) == pytest.approx(1.0, abs=0.01)
    h = Radio(0, 3).gauss(x.shape[1])[None]
    h = 0.5 * h / h.abs()
    llr = demodulate(h * x, h, torch.full((1, 1), 1e-4), m)
    assert torch.equal(llr > 0, bits.bool())


@pytest.mark.parametrize("m", [2, 4, 6, 8])
def test_llr_per_axis_equals_the_demapper_over_all_points(m):
    y = Radio(0, 4).gauss(64)[None]
    whole = sionna_phy("mapping").Demapper("app", "qam", m, device="cpu")(y, torch.tensor(0.1))
    ours = demodulate(y, torch.ones_like(y), torch.full((1, 1), 0.1), m)
    assert torch.allclose(ours, whole, atol=1e-3)


@pytest.mark.parametrize(("m", "snr_db"), [(1, -2.0), (2, 1.0), (4, 7.0), (6, 12.0), (8, 16.0)])
def test_mutual_information_agrees_with_monte_carlo_and_stays_below_shannon(m, snr_db):
    bits = random_bits(1, 96_000)
    rx = Radio(snr_db, 6).carry(modulate(bits, m))
    llr = demodulate(rx.y, rx.h, rx.noise_var, m)
    sample = 1 - torch.nn.functional.softplus(-(2 * bits - 1) * llr) / math.log(2)
    sigma = float(sample.std()) / math.sqrt(sample.numel())
    curve = mutual_information(m)
    assert float(np.interp(snr_db, SNR_GRID_DB, curve)) == pytest.approx(float(sample.mean()), abs=5 * sigma)
    assert np.all(m * curve <= np.log2(1 + 10 ** (SNR_GRID_DB / 10)) + 1e-6)
    assert np.all(np.diff(curve) > 0)


def test_crc_is_the_one_of_the_standard():
    bits = random_bits(4, 77)
    for length, name in ((24, "CRC24A"), (16, "CRC16")):
        whole = sionna_phy("fec.crc").CRCEncoder(name, device="cpu")(bits)
        assert torch.equal(crc(bits, length), whole[:, 77:])


@pytest.mark.parametrize("name", ["qpsk-1/3", "16qam-2/3", "256qam-1/2"])
def test_waterfall_meets_the_reference(name):
    # 0.3 dB of grace; below 1e-3 two losses out of 48 have a probability of 1e-3
    assert blocks_lost(MCS[name], 6144, REFERENCE_DB[name] + 0.3, 48) <= 1
    assert blocks_lost(MCS[name], 6144, REFERENCE_DB[name] - 1.2, 16) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE_DB)
def test_block_error_rate_at_the_reference(name):
    lost = blocks_lost(MCS[name], 6144, REFERENCE_DB[name] + 0.3, 2000)
    assert lost <= 2000e-3 + 3 * math.sqrt(2.0)


@pytest.mark.parametrize("name", REFERENCE_DB)
def test_table_meets_the_reference(name):
    # the reference stands on a grid of 0.25 dB; much better than it would be as suspicious as worse
    assert -0.6 < tables.threshold_db(MCS[name], 6144, 1e-3) - REFERENCE_DB[name] < 0.3


def test_table_is_monotone_and_ordered():
    assert set(tables.schemes()) == set(MCS.values())
    snr_db = np.linspace(-15, 35, 500)
    for mcs in MCS.values():
        for n in (132, 200, 1000, 6144):
            rates = tables.bler(mcs, n, snr_db)
            assert np.all(np.diff(rates) <= 0)
            assert rates[0] > 0.999
            assert rates[-1] < 1e-6
        # longer blocks need less, up to what counting 448 blocks leaves open
        thresholds = [tables.threshold_db(mcs, n, 1e-3) for n in (264, 528, 1056, 2112, 6144)]
        assert all(b < a + 0.1 for a, b in itertools.pairwise(thresholds))
        # and never less than Shannon
        assert tables.waterfall(mcs, 6144)[0] > 10 * math.log10(2**mcs.efficiency - 1)
    for modulation in ("bpsk", "qpsk", "16qam", "64qam", "256qam"):
        family = sorted((m for m in MCS.values() if m.name.startswith(modulation)), key=lambda m: m.rate)
        mids = [tables.waterfall(mcs, 6144)[0] for mcs in family]
        assert mids == sorted(mids)


def test_the_envelope_is_fine_enough():
    modem = make_modem("table")
    chosen = sorted({modem.select(snr / 10) for snr in range(-80, 280)}, key=lambda mcs: mcs.efficiency)
    needs = [tables.threshold_db(mcs, tables.DESIGN_BITS, 1e-3) for mcs in chosen]
    assert len(chosen) > 20
    assert max(b - a for a, b in itertools.pairwise(needs)) < 1.5
    assert needs == sorted(needs)
    # and over the whole range: the last step ends at the fastest scheme there is
    assert chosen[-1] == max(MCS.values(), key=lambda mcs: mcs.efficiency)


@pytest.mark.parametrize(("name", "n"), [("qpsk-1/2", 264), ("16qam-2/3", 1000), ("64qam-1/2", 2112), ("bpsk-1/3", 528)])
def test_fast_and_exact_agree_on_awgn(name, n):
    mcs = MCS[name]
    mid, slope = tables.waterfall(mcs, n)
    for snr_db, blocks in ((mid, 60), (mid + 1.3 / slope, 120)):
        assert_within_db(mcs, n, snr_db, snr_db, blocks_lost(mcs, n, snr_db, blocks), blocks, 0.15)


@pytest.mark.parametrize("name", ["qpsk-1/2", "16qam-1/2", "64qam-3/4", "256qam-3/4"])
def test_fast_and_exact_agree_on_rayleigh(name):
    mcs, n = MCS[name], 1056
    curve = np.array([tables.faded_snr_db(rayleigh_quantiles(snr), mcs.bits_per_symbol) for snr in SNR_GRID_DB])
    mid, slope = tables.waterfall(mcs, n)
    for target_db, blocks in ((mid, 60), (mid + 1.0 / slope, 80)):
        mean_db = float(np.interp(target_db, curve, SNR_GRID_DB))
        assert mean_db > target_db + 1.2
        lost = blocks_lost(mcs, n, mean_db, blocks, rayleigh=True)
        assert_within_db(mcs, n, mean_db, target_db, lost, blocks, 0.3)


def rayleigh_quantiles(mean_db: float) -> np.ndarray:
    return -np.log(1 - (np.arange(400) + 0.5) / 400) * 10 ** (mean_db / 10)


@pytest.mark.parametrize("phy", ["table", "exact"])
def test_a_clip_of_zeros_is_no_easier_and_no_harder(phy):
    mcs = MCS["16qam-1/2"]
    packets = [Packet(bytes(370)) for _ in range(8)]
    snr_db = tables.threshold_db(mcs, 6144, 1e-3)
    arrived, uses = make_modem(phy).transport(packets, Radio(snr_db + 0.3, 2), mcs, generator=torch.Generator().manual_seed(1))
    assert arrived == [packet.data for packet in packets]
    assert uses.blocks == 8
    code = block_code(3024, 6048, 4)
    assert float(modulate(code.encode(torch.zeros(1, 3000)), 4).abs().square().mean()) == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("rayleigh", [False, True])
def test_both_modems_lose_alike_through_the_whole_chain(rayleigh):
    mcs = MCS["qpsk-1/2"]
    packets = [Packet(bytes(60))] * 24
    snr_db = tables.waterfall(mcs, 6000)[0] + (2.0 if rayleigh else 0.05)
    lost = {}
    for phy, runs in (("table", 40), ("exact", 8)):
        modem = make_modem(phy, mcs=mcs.name)
        count = total = 0
        for seed in range(runs):
            air, generator = Radio(snr_db, seed, rayleigh=rayleigh), torch.Generator().manual_seed(seed)
            arrived, uses = modem.transport(packets, air, mcs, generator=generator)
            count, total = count + uses.blocks_lost, total + uses.blocks
            assert all(entry in (None, packets[0].data) for entry in arrived)
        lost[phy] = (count / total, total)
    (table, _), (exact, blocks) = lost["table"], lost["exact"]
    assert 0.1 < table < 0.9
    # 0.05 dB of the waterfall's slope, and 4 sigma of counting
    assert abs(exact - table) < 0.15 + 4 * math.sqrt(0.25 / blocks)


def test_interleaving_spreads_every_block_over_the_fading_of_the_send_and_both_modems_agree():
    """21 blocks of two coherence blocks each: alone some would drown, together all cross at the mean mutual information."""
    mcs, link = MCS["64qam-1/2"], Link("rayleigh:block,coherence=512").eval()
    packets = [Packet(bytes(20 * 381 - 2))]
    lay = layout(stream_size([(0, len(packets[0].data))]), mcs)
    assert lay.blocks == 21
    seed = torch.Generator().manual_seed(3)
    link.channel.reset(torch.Generator().manual_seed(3))
    power = link.channel.sample(lay.uses, 0, generator=seed).h[0].abs().square().double().numpy()
    curve = np.array([tables.faded_snr_db(power * 10 ** (snr / 10), 6) for snr in SNR_GRID_DB])
    middle = float(np.interp(tables.waterfall(mcs, lay.coded_bits)[0], curve, SNR_GRID_DB))
    for shift_db, expected in ((-0.8, 21), (0.8, 0)):
        for phy in ("table", "exact"):
            link = Link("rayleigh:block,coherence=512", snr_db=middle + shift_db, phy=phy, mcs=mcs.name).eval()
            link.channel.reset(torch.Generator().manual_seed(3))
            air = LinkAir(link, torch.Generator().manual_seed(1))
            arrived, uses = link.modem.transport(packets, air, mcs, generator=torch.Generator().manual_seed(2))
            assert uses.blocks_lost == expected, (phy, shift_db)
            assert arrived == ([None] if expected else [packets[0].data])
    in_a_row = tables.faded_snr_db(power.reshape(21, -1) * 10 ** ((middle + 0.8) / 10), 6)
    assert tables.bler(mcs, lay.coded_bits, in_a_row).mean() > 0.2


@pytest.mark.parametrize("phy", ["table", "exact"])
@pytest.mark.parametrize("name", ["qpsk-1/2", "64qam-3/4"])
def test_retransmission_rescues_below_threshold(phy, name):
    mcs = MCS[name]
    packets = [Packet(bytes(range(200))) for _ in range(5)]
    snr_db = tables.waterfall(mcs, 3000)[0] - 1.5
    arrived = {}
    for harq in (0, 2):
        modem = make_modem(phy, mcs=name, harq=harq)
        got, uses = modem.transport(packets, Radio(snr_db, 2), mcs, generator=torch.Generator().manual_seed(1))
        arrived[harq] = sum(entry is not None for entry in got)
        assert all(entry in (None, packets[0].data) for entry in got)
        assert (uses.feedback_uses > 0) == (harq > 0)
        if harq:
            assert uses.retransmissions >= uses.blocks
            assert uses.data_uses % (uses.blocks + uses.retransmissions) == 0
    assert arrived[0] <= 1
    assert arrived[2] == len(packets)


def transmissions(kind: type[CodedModem], mcs: Mcs, snr_db: float, combining: str) -> float:
    """Mean transmissions per block with up to three retransmissions."""
    modem = kind(harq=3, mcs=mcs.name, combining=combining)
    packets = [Packet(bytes(80)) for _ in range(16)]
    _, uses = modem.transport(packets, Radio(snr_db, 3), mcs, generator=torch.Generator().manual_seed(2))
    assert uses.blocks > 1
    return 1 + uses.retransmissions / uses.blocks


def test_redundancy_versions_beat_repetition_at_high_rate_and_the_table_knows():
    mcs = MCS["16qam-3/4"]
    snr_db = tables.waterfall(mcs, 4000)[0] - 3.5
    counts = {
        (kind.__name__, how): transmissions(kind, mcs, snr_db, how)
        for kind in (TableModem, ExactModem)
        for how in ("ir", "chase")
    }
    assert counts["ExactModem", "ir"] < counts["ExactModem", "chase"]
    assert counts["TableModem", "ir"] < counts["TableModem", "chase"]
    for how in ("ir", "chase"):
        assert counts["TableModem", how] == pytest.approx(counts["ExactModem", how], abs=0.5)


def test_effective_snr_mapping_holds_over_rayleigh_for_every_scheme():
    # measured beside the table: where half of the blocks are lost over per-symbol fading, against the mapping's prediction
    for name, measured in tables.table()["rayleigh"].items():
        mcs = MCS[name]
        curve = np.array([tables.faded_snr_db(rayleigh_quantiles(snr), mcs.bits_per_symbol) for snr in SNR_GRID_DB])
        predicted = float(np.interp(tables.waterfall(mcs, 2112)[0], curve, SNR_GRID_DB))
        assert measured["mid_db"] == pytest.approx(predicted, abs=0.3), name
    assert set(tables.table()["rayleigh"]) == set(MCS)


def test_repetition_is_worth_three_db():
    mcs = MCS["qpsk-1/5"]  # the whole circular buffer is in every transmission
    for rvs in ((0, 0), (0, 2)):
        information = combined_information([(rv, -5.0) for rv in rvs], mcs)
        assert float(tables.effective_snr_db(information, 2)) == pytest.approx(-5.0 + 10 * math.log10(2), abs=0.02)


def test_capacity_bounds_every_scheme():
    modem = make_modem("capacity")
    for mcs in MCS.values():
        need = tables.threshold_db(mcs, 6144, 0.5)
        ideal = modem.select(need)
        assert modem.bits_per_use(ideal) > make_modem("table").bits_per_use(mcs)
        assert modem.uses_for_bytes([5000], ideal) < make_modem("table", mcs=mcs.name).uses_for_bytes([5000], mcs)


def test_capacity_holds_at_the_told_snr_and_breaks_below():
    modem = make_modem("capacity")
    mcs = modem.select(7.0)
    assert mcs.efficiency == pytest.approx(math.log2(1 + 10**0.7), abs=1e-5)
    packets = [Packet(b"x" * 500), Packet(b"y" * 20)]
    held, uses = modem.transport(packets, Radio(7.0, 1), mcs, generator=torch.Generator())
    assert held == [packet.data for packet in packets]
    assert uses.data_uses == math.ceil(8 * 520 / mcs.efficiency)
    lost, _ = modem.transport(packets, Radio(6.9, 1), mcs, generator=torch.Generator())
    assert lost == [None, None]
    again, uses = make_modem("capacity", harq=1).transport(packets, Radio(5.0, 1), mcs, generator=torch.Generator())
    assert again == held
    assert uses.retransmissions == 1


def test_a_block_code_rejects_noise():
    code = BlockCode(200, 600, 2)
    _, passed = code.decode(4 * torch.randn(64, 600, generator=torch.Generator().manual_seed(1)))
    assert not bool(passed.any())
