"""The air file: what is written comes back to the bit, and nothing else passes for one."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from semcast import air
from semcast.air import AirReader, AirWriter, as_sent, play
from semcast.errors import AirFileError, ContractError
from semcast.link import pack_header
from semcast.systems.base import Side, System
from semcast.types import Analog, Aux, Budget, Csi, Decoded, Format, Payload, Received, RxAnalog, RxProxy, Step

FMT = as_sent(Format(64, 80, 30000 / 1001, system="deepjscc", preset="small", weights="0123456789abcdef", seed=7, cbr=1 / 12))


def analog(n: int, *, constant: bool = False, wide: bool = True) -> RxAnalog:
    generator = torch.Generator().manual_seed(n)
    draw = torch.randn(1, 2 * n, dtype=torch.complex64, generator=generator)
    h = torch.full((1, n), 0.5 - 0.25j, dtype=torch.complex64) if constant else draw[:, n:]
    return RxAnalog(draw[:, :n], h, torch.full((1, n if wide else 1), 0.1))


def write(path: Path, steps: list[tuple[Received, int]], fmt: Format = FMT) -> Path:
    with AirWriter(path, fmt) as writer:
        for received, n_frames in steps:
            writer.write(received, n_frames)
    return path


def equal(a: RxAnalog, b: RxAnalog) -> bool:
    pairs = [(a.y, b.y), (a.h, b.h), (a.noise_var, b.noise_var)]
    return all(x.shape == y.shape and x.dtype == y.dtype and x.numpy().tobytes() == y.numpy().tobytes() for x, y in pairs)


@pytest.mark.parametrize("stream", [analog(1), analog(50), analog(50, constant=True), analog(50, wide=False), analog(0)])
def test_symbols_come_back_to_the_bit(tmp_path: Path, stream: RxAnalog) -> None:
    with AirReader(write(tmp_path / "a.air", [({"latent": stream}, 3)])) as reader:
        assert reader.fmt == FMT
        ((received, n_frames),) = list(reader)
    assert n_frames == 3
    got = received["latent"]
    assert isinstance(got, RxAnalog)
    assert equal(got, stream)


def test_signed_zeros_and_gains_in_blocks_survive_compression(tmp_path: Path) -> None:
    h = torch.complex(torch.tensor([[0.0, -0.0, -0.0, 1.0] * 1]).repeat_interleave(40, 1), torch.zeros(1, 160))
    stream = RxAnalog(torch.ones(1, 160, dtype=torch.complex64), h, torch.tensor([[0.0] * 80 + [-0.0] * 80]))
    with AirReader(write(tmp_path / "a.air", [({"latent": stream}, 1)])) as reader:
        got = next(iter(reader))[0]["latent"]
    assert isinstance(got, RxAnalog)
    assert equal(got, stream)
    assert (tmp_path / "a.air").stat().st_size < 160 * 8 + 200  # h and noise_var take a few runs


def test_packets_losses_and_lost_streams_come_back_in_order(tmp_path: Path) -> None:
    steps: list[tuple[Received, int]] = [
        ({"b": [[b"one", None, b"", b"\xff" * 300]], "a": None, "latent": analog(4)}, 2),
        ({"b": [[]], "a": [[None]]}, 1),
        ({}, 1),
    ]
    with AirReader(write(tmp_path / "a.air", steps)) as reader:
        got = list(reader)
        assert (reader.steps, reader.frames) == (3, 4)
    assert [n for _, n in got] == [2, 1, 1]
    assert list(got[0][0]) == ["b", "a", "latent"]
    assert got[0][0]["b"] == [[b"one", None, b"", b"\xff" * 300]]
    assert got[0][0]["a"] is None
    assert got[1][0] == {"b": [[]], "a": [[None]]}
    assert got[2][0] == {}


def test_only_what_crossed_the_air_is_written(tmp_path: Path) -> None:
    size = write(tmp_path / "a.air", [({"latent": analog(1000, constant=True)}, 1)]).stat().st_size
    assert size < 8 * 1000 + len(pack_header(FMT)) + 150


def test_what_an_air_file_cannot_hold_is_a_fault_of_ours(tmp_path: Path) -> None:
    two = RxAnalog(*(torch.cat([x, x]) for x in (analog(3).y, analog(3).h, analog(3).noise_var)))
    for stream in (two, RxProxy(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)), [[b"a"], [b"b"]]):
        with pytest.raises(ContractError), AirWriter(tmp_path / "a.air", FMT) as writer:
            writer.write({"latent": stream}, 1)
        with pytest.raises(AirFileError, match="truncated"), AirReader(tmp_path / "a.air") as reader:
            list(reader)


@pytest.mark.parametrize("cut", [0, 5, 10, 20, -1, -5, -40])
def test_a_truncated_file_says_so(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "a.air", [({"latent": analog(30)}, 1)] * 3)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(AirFileError, match=r"truncated|not a Semcast air file"), AirReader(path) as reader:
        list(reader)


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.air", [({"latent": analog(6), "side": [[b"abc", None]]}, 1)])
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        with pytest.raises(AirFileError), AirReader(path) as reader:
            list(reader)


def test_trailing_bytes_and_missing_steps_are_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.air", [({"latent": analog(6)}, 1)])
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(AirFileError, match="does not end where it says"), AirReader(path) as reader:
        list(reader)


def record(kind: int, payload: bytes) -> bytes:
    head = struct.pack("<BI", kind, len(payload))
    return head + payload + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head)))


def craft(path: Path, *records: bytes, fmt: Format = FMT) -> Path:
    path.write_bytes(air.MAGIC + struct.pack("<H", air.VERSION) + record(air.HEADER, pack_header(fmt)) + b"".join(records))
    return path


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x06latent",
        b"\x06latent\x01" + struct.pack("<I", 0xFFFFFFFF),  # symbols that are not there
        b"\x06latent\x01"
        + struct.pack("<I", 1)
        + bytes(8)
        + struct.pack("<IBI", 1 << 31, 1, 1)
        + struct.pack("<I", 1 << 31)
        + bytes(8),
        b"\x06latent\x02" + struct.pack("<I", 0xFFFFFFFF),  # packets that are not there
        b"\x06latent\x02" + struct.pack("<II", 1, 1 << 30) + b"short",
        b"\x06latent\x09",
        b"\x02\xff\xfe\x00",
    ],
)
def test_crafted_streams_with_right_checksums_are_refused(tmp_path: Path, payload: bytes) -> None:
    path = craft(tmp_path / "a.air", record(air.STEP, struct.pack("<IH", 1, 1)), record(air.STREAM, payload))
    with pytest.raises(AirFileError, match="damaged"), AirReader(path) as reader:
        list(reader)


def test_lengths_beyond_the_file_are_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    path = craft(tmp_path / "a.air", record(air.STEP, struct.pack("<IH", 1, 1)), struct.pack("<BI", air.STREAM, 1 << 30))
    with pytest.raises(AirFileError, match="truncated"), AirReader(path) as reader:
        list(reader)


@pytest.mark.parametrize("n_frames", [0, 1 << 31])
def test_an_impossible_play_out_clock_is_refused(tmp_path: Path, n_frames: int) -> None:
    path = craft(tmp_path / "a.air", record(air.STEP, struct.pack("<IH", n_frames, 0)))
    with pytest.raises(AirFileError, match="out of range"), AirReader(path) as reader:
        list(reader)


@pytest.mark.parametrize(
    "fmt",
    [
        FMT._replace(height=65535, width=65535),
        FMT._replace(height=8, width=8),
        FMT._replace(height=16400),
        FMT._replace(fps=1e9),
        FMT._replace(fps=1e-30),
        FMT._replace(cbr=1e30),
    ],
)
def test_a_header_out_of_range_is_refused(tmp_path: Path, fmt: Format) -> None:
    with pytest.raises(AirFileError, match="out of range"):
        AirReader(craft(tmp_path / "a.air", fmt=fmt))


def test_alien_files_folders_and_newer_versions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AirFileError, match="no such air file"):
        AirReader(tmp_path / "none.air")
    with pytest.raises(AirFileError, match="not a file"):
        AirReader(tmp_path)
    alien = tmp_path / "alien.air"
    alien.write_bytes(b"RIFF" + bytes(100))
    with pytest.raises(AirFileError, match="not a Semcast air file"):
        AirReader(alien)
    path = write(tmp_path / "a.air", [])
    data = path.read_bytes()
    path.write_bytes(data[:8] + b"\x63\x00" + data[10:])
    with pytest.raises(AirFileError, match="version 99"):
        AirReader(path)


class Echo(System):
    """Sends the frames themselves; with ``peek`` the receiver looks at what only the transmitter knows."""

    name = "echo"

    def __init__(self, peek: bool = False) -> None:
        super().__init__()
        self.peek, self.seen = peek, torch.zeros(())

    def start(self, fmt: Format, side: Side) -> Format:
        return fmt

    def encode(
        self, step: Step, state: Format, csi: Csi, budget: Budget, *, generator: torch.Generator
    ) -> tuple[Payload, Format, Aux]:
        self.seen = step.frames.mean()
        x = step.frames.flatten(1) - 0.5
        return {"pixels": Analog(torch.complex(x, torch.zeros_like(x)))}, state, {}

    def decode(
        self, received: Received, state: Format, n_frames: int, *, generator: torch.Generator
    ) -> tuple[Decoded, Format, Aux]:
        rx = received["pixels"]
        assert isinstance(rx, RxAnalog)
        pixels: Tensor = rx.y.real.reshape(1, n_frames, 3, state.height, state.width) / 4 + 0.5
        return Decoded(frames=pixels + (self.seen if self.peek else 0)), state, {}


@pytest.mark.parametrize("peek", [False, True])
def test_a_receiver_that_peeks_is_caught(
    tmp_path: Path, clip: Callable[..., Tensor], hold: Callable[..., object], peek: bool
) -> None:
    session = hold(Echo(peek), clip(2, 64, 64), cbr=1.0)
    path = tmp_path / "a.air"
    write(path, [(result.received, 1) for result in session.results], as_sent(session.fmt))  # type: ignore[attr-defined]
    with AirReader(path) as reader:
        played = torch.cat([part.frames[0] for part in play(Echo(peek), reader) if part.frames is not None])
    assert torch.equal(played, session.shown) is not peek  # type: ignore[attr-defined]


def test_what_the_system_cannot_have_sent_is_an_air_file_error(tmp_path: Path) -> None:
    fmt = FMT._replace(system="echo", preset="default", weights="")
    for received, n_frames in (({"pixels": analog(7)}, 1), ({}, 1), ({"pixels": None}, 1), ({}, 5)):
        path = write(tmp_path / "a.air", [(received, n_frames)], fmt)
        with pytest.raises(AirFileError, match="echo"), AirReader(path) as reader:
            list(play(Echo(), reader))


def test_values_that_are_no_picture_are_an_air_file_error(tmp_path: Path) -> None:
    n = 3 * 64 * 80
    stream = RxAnalog(torch.full((1, n), complex("nan"), dtype=torch.complex64), analog(n).h, analog(n).noise_var)
    path = write(tmp_path / "a.air", [({"pixels": stream}, 1)], FMT._replace(system="echo", preset="default", weights=""))
    with pytest.raises(AirFileError, match="no picture"), AirReader(path) as reader:
        list(play(Echo(), reader))


def test_both_ends_start_from_the_header_as_sent() -> None:
    fmt = Format(64, 64, 29.97, cbr=0.1)
    assert as_sent(fmt) == as_sent(as_sent(fmt))
    assert as_sent(fmt).cbr == pytest.approx(0.1, rel=1e-7)
