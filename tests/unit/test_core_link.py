"""The session header, the arguments of a link, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semcast.errors import ContractError, InputError, SpecError
from semcast.ledger import Ledger
from semcast.link import Link, pack_header, unpack_header
from semcast.systems import SYSTEMS
from semcast.types import Analog, Digital, Format, Packet, as_complex, as_real

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
formats = st.builds(
    Format,
    height=st.integers(0, 65535),
    width=st.integers(0, 65535),
    fps=st.floats(0.125, 1000, width=32),
    goal=names,
    system=names,
    preset=names,
    weights=st.one_of(st.just(""), st.binary(min_size=8, max_size=8).map(bytes.hex)),
    seed=st.integers(0, 2**32 - 1),
    cbr=st.floats(2**-20, 4, width=32),
    condition=names,
)


@given(formats)
def test_header_round_trip(fmt: Format) -> None:
    got = unpack_header(pack_header(fmt))
    assert got._replace(fps=0, cbr=0) == fmt._replace(fps=0, cbr=0)
    assert got.fps == pytest.approx(fmt.fps, rel=1e-6)
    assert got.cbr == pytest.approx(fmt.cbr, rel=1e-6)


@given(st.binary(max_size=200))
def test_alien_headers_raise_value_error_and_nothing_else(data: bytes) -> None:
    try:
        fmt = unpack_header(data)
    except ValueError:
        return
    assert math.isfinite(fmt.fps)


@given(st.integers(0, 60), st.integers(0, 255))
def test_damaged_headers_never_crash(position: int, value: int) -> None:
    data = bytearray(pack_header(Format(240, 416, system="deepjscc", preset="small", weights="0123456789abcdef", cbr=0.1)))
    data[position % len(data)] = value
    try:
        unpack_header(bytes(data))
    except ValueError:
        return


def test_header_is_small_for_every_registered_system() -> None:
    for name in SYSTEMS:
        for preset in SYSTEMS.get(name).presets:
            fmt = Format(1080, 1920, 29.97, "watch", name, preset, "0123456789abcdef", 4_000_000_000, 0.0123, "strong")
            assert len(pack_header(fmt)) <= 64


def test_header_refuses_endless_names() -> None:
    with pytest.raises(ContractError, match="names of a session"):
        pack_header(Format(64, 64, system="x" * 600, cbr=0.1))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"snr_db": math.nan}, "SNR must be a finite"),
        ({"snr_db": math.inf}, "SNR must be a finite"),
        ({"cbr": 0.0}, "CBR must lie"),
        ({"cbr": -1.0}, "CBR must lie"),
        ({"cbr": math.nan}, "CBR must lie"),
        ({"cbr": 5.0}, "CBR must lie"),
        ({"channel": "awgnn"}, "did you mean 'awgn'"),
        ({"phy": "fasst"}, "unknown modem"),
        ({"mcs": "qpsk-9/10"}, "unknown modulation"),
        ({"target_bler": 2.0}, "target_bler"),
        ({"harq": -1}, "harq"),
        ({"bandwidth_hz": 0.0}, "bandwidth"),
    ],
)
def test_impossible_links_are_refused_in_a_sentence(wrong: dict, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        Link(**wrong)
    assert "\n" not in str(error.value)


def test_spec_errors_are_bad_input() -> None:
    assert issubclass(SpecError, InputError)


def test_symbols_pair_neighbours() -> None:
    x = torch.arange(12.0).reshape(2, 6)
    z = as_complex(x)
    assert z[0].tolist() == [0 + 1j, 2 + 3j, 4 + 5j]
    assert torch.equal(as_real(z), x)


def test_assumed_free_streams_are_booked_but_not_charged() -> None:
    ledger = Ledger()
    link = Link("awgn", snr_db=15.0, assumed_free=frozenset({"map"})).eval()
    payload = {"latent": Analog(torch.ones(1, 100, dtype=torch.complex64)), "map": Digital([[Packet(b"12345678")]])}
    link.send(payload, ledger, generator=torch.Generator().manual_seed(0))
    assert ledger.channel_uses == 100
    assert ledger.total(free=True) > 0
    assert ledger.total("info_bits", free=None) == 64
    assert any("'map'" in note for note in ledger.footnotes())


def test_airtime_and_energy_follow_from_the_ledger() -> None:
    ledger = Ledger()
    link = Link("awgn", bandwidth_hz=2e6, tx_power_w=0.5).eval()
    link.send({"a": Analog(torch.ones(1, 1000, dtype=torch.complex64))}, ledger, generator=torch.Generator().manual_seed(0))
    assert link.airtime_s(ledger) == pytest.approx(0.0005)
    assert link.energy_j(ledger) == pytest.approx(0.00025)
