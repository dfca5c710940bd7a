"""The ledger counts exactly, and in constant memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcast.errors import ContractError
from semcast.ledger import KINDS, Charge, Ledger

charges = st.lists(
    st.builds(
        Charge,
        stream=st.sampled_from(["latent", "motion", "session"]),
        kind=st.sampled_from(KINDS),
        uses=st.integers(0, 10**12),
        info_bits=st.integers(0, 10**12),
        estimated=st.booleans(),
        assumed_free=st.booleans(),
    )
)


@given(charges)
def test_sums_are_exact(booked: list[Charge]) -> None:
    ledger = Ledger()
    for charge in booked:
        ledger.book(charge)
        ledger.end_step()
    charged = [charge for charge in booked if not charge.assumed_free]
    assert ledger.channel_uses == sum(charge.uses for charge in charged)
    assert ledger.total(free=None) == sum(charge.uses for charge in booked)
    assert ledger.total(free=True) == ledger.total(free=None) - ledger.channel_uses
    assert sum(ledger.streams().values()) == ledger.channel_uses
    assert sum(ledger.uses_per_step) == ledger.channel_uses
    assert sum(ledger.total(kind=kind) for kind in KINDS) == ledger.channel_uses
    assert ledger.total("info_bits", free=None, estimated=True) == sum(c.info_bits for c in booked if c.estimated)


def test_memory_does_not_grow_with_the_number_of_charges() -> None:
    ledger = Ledger()
    for _ in range(1000):
        ledger.book(Charge("latent", "analog", 7))
    assert ledger.channel_uses == 7000
    assert len(ledger._totals) == 1


def test_streams_tell_overhead_from_payload() -> None:
    ledger = Ledger()
    ledger.book(Charge("video", "digital", 100))
    ledger.book(Charge("video", "control", 9))
    ledger.book(Charge("video", "pilots", 4))
    ledger.book(Charge("session", "header", 50))
    assert ledger.streams() == {"video": 100, "video/control": 9, "video/pilots": 4, "session": 50}
    assert ledger.total(stream="video") == 113
    assert ledger.total(kind=("control", "pilots")) == 13


@pytest.mark.parametrize("wrong", [{"uses": -1}, {"uses": 1, "info_bits": -8}, {"uses": 1, "kind": "magic"}])
def test_impossible_charges_are_refused(wrong: dict) -> None:
    with pytest.raises(ContractError):
        Charge(**{"stream": "x", "kind": "analog", **wrong})


def test_cbr_and_what_the_papers_would_call_it() -> None:
    """416x240, one frame: 299,520 values; 24,960 complex uses are CBR 1/12, and 49,920 real symbols."""
    ledger = Ledger()
    assert ledger.cbr == 0.0
    ledger.source(1, 240, 416)
    ledger.book(Charge("latent", "analog", 20_000))
    ledger.book(Charge("map", "digital", 4_960, info_bits=8_000))
    said = ledger.conventions()
    assert ledger.cbr == pytest.approx(1 / 12)
    assert said["cbr"] == pytest.approx(1 / 12)
    assert said["dvst_real_symbols"] == pytest.approx(2 / 12)
    assert said["sematt_jscc_analog_only"] == pytest.approx(20_000 / 299_520)
    assert said["of_gsc_payload_bits"] == 8_000
    assert said["gos_vae_kilobytes_per_frame"] == pytest.approx(1.0)


def test_footnotes_for_whatever_is_free_or_estimated() -> None:
    ledger = Ledger()
    ledger.book(Charge("latent", "analog", 10))
    assert ledger.footnotes() == []
    ledger.book(Charge("map", "digital", 10, assumed_free=True))
    ledger.book(Charge("side", "digital", 10, info_bits=77, estimated=True))
    free, estimated = ledger.footnotes()
    assert "'map'" in free
    assert "assumed free" in free
    assert "77 bits" in estimated


def test_papr_is_peak_over_mean() -> None:
    ledger = Ledger()
    assert ledger.papr_db is None
    ledger.observe_power(peak=10.0, energy=100.0, symbols=100)
    assert ledger.papr_db == pytest.approx(10.0)
    ledger.observe_power(peak=4.0, energy=100.0, symbols=100)
    assert ledger.papr_db == pytest.approx(10.0)
