"""Specification strings of channels."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from semcast.channels import CHANNELS, describe_channels, make_channel
from semcast.channels.options import ChannelOptions, format_options
from semcast.channels.rayleigh import Rayleigh
from semcast.errors import InputError, SpecError, UnknownNameError


@pytest.fixture(autouse=True)
def _trace_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("drive.csv").write_text("time_s,snr_db\n0,10\n1,3\n")


@pytest.mark.parametrize("name", list(CHANNELS))
def test_names_examples_and_canonical_form(name: str) -> None:
    kind = CHANNELS.get(name)
    assert kind.name == name
    channel = make_channel(kind.example)
    assert type(channel) is kind
    again = make_channel(channel.spec)
    assert again.spec == channel.spec
    assert again.options == channel.options


@pytest.mark.parametrize("name", list(CHANNELS))
def test_every_option_is_described_and_typed(name: str) -> None:
    (row,) = (r for r in describe_channels() if r["name"] == name)
    assert row["summary"]
    assert row["example"].startswith(name)
    fields = {f.name for f in dataclasses.fields(CHANNELS.get(name).Options)}
    assert {o["key"] for o in row["options"]} == fields
    for described in row["options"]:
        assert len(described["doc"]) > 10
        assert described["type"] in {"int", "float", "str", "bool", "choice"}


@pytest.mark.parametrize("name", [n for n in CHANNELS if n != "trace"])
def test_defaults_need_no_colon(name: str) -> None:
    assert make_channel(name).spec == name
    assert make_channel(f" {name.upper()} ").spec == name


@pytest.mark.parametrize(
    ("spec", "canonical"),
    [
        ("rayleigh:coherence=64,block", "rayleigh:block,coherence=64"),
        ("rayleigh:mode=block", "rayleigh:block"),
        ("rayleigh:fast", "rayleigh"),
        ("rayleigh:estimated", "rayleigh:estimated"),
        ("erasure:plr=2.5e-2", "erasure:plr=0.025"),
        ("tdl-c:speed_mps=3,delay_spread_ns=300", "tdl-c:delay_spread_ns=300"),
        ("tdl-a: estimator = ls", "tdl-a:ls"),
        ("rician:k_db=-3,clip_papr_db=6", "rician:clip_papr_db=6,k_db=-3"),
        ("trace:path=drive.csv,hold", "trace:path=drive.csv,hold"),
    ],
)
def test_canonical(spec: str, canonical: str) -> None:
    channel = make_channel(spec)
    assert channel.spec == canonical
    assert make_channel(canonical).options == channel.options


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("raileigh", "rayleigh"),
        ("", "names no channel"),
        (":block", "names no channel"),
        ("awgn:", "ends after the colon"),
        ("rayleigh:coherense=4", "'coherence'.*rayleigh:block"),
        ("rayleigh:blok", "'block'"),
        ("rayleigh:block,,", "option"),
        ("rayleigh:coherence", "needs a value"),
        ("rayleigh:coherence=", "needs a value"),
        ("rayleigh:block,coherence=4,coherence=5", "twice"),
        ("rayleigh:block,coherence=4.5", "whole number"),
        ("rayleigh:block,coherence=0", "at least 1"),
        ("rayleigh:coherence=9", "block,coherence=9"),
        ("rayleigh:mode=slow", "fast, block"),
        ("rayleigh:csi_age=-1", "at least 0"),
        ("rayleigh:csi=perfect,csi_error_var=-0.1", "at least 0"),
        ("erasure:plr=1.2", "at most 1"),
        ("erasure:plr=nan", "finite"),
        ("erasure:plr=lots", "must be a number"),
        ("erasure:plr=0.9,burst=2", "lengthen"),
        ("pathloss:distance_m=0", "greater than 0 m"),
        ("pathloss:distance_m=inf", "finite"),
        ("awgn:clip_papr_db=-1", "at least 0 dB"),
        ("trace", "path=FILE is required"),
        ("tdl-c:estimator=mmse", "lmmse"),
    ],
)
def test_malformed_specs_say_what_is_wrong(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make_channel(spec)
    assert isinstance(caught.value, SpecError | UnknownNameError)
    assert "\n" not in str(caught.value)


def test_options_from_python_are_validated_too() -> None:
    with pytest.raises(SpecError, match="at least 1"):
        Rayleigh.Options(coherence=0, mode="block")  # type: ignore[call-arg]
    assert Rayleigh().spec == "rayleigh"
    assert format_options(ChannelOptions(clip_papr_db=6.0)) == "clip_papr_db=6"


def test_listing_names_costs_no_torch() -> None:
    code = "import sys; from semcast.channels import CHANNELS; assert len(CHANNELS) > 10; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
