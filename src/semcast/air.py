"""The air file: what crossed the air of one session, and nothing else.

    magic, version | header record | per step: step record, one stream record each | end record

A record is kind (u8), length (u32), payload, CRC-32 over all three; numbers are little-endian. The header record holds the
session header as it was sent. A step record holds the play-out clock (frame times that passed) and the number of streams; a
stream record what the receiver got: packets or their loss, or symbols ``y`` with channel estimate ``h`` and ``noise_var`` as
float32, the latter two as runs where they repeat. Both ends hold one step at a time; no length is believed before it fits what
is left of the file.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semcast.errors import AirFileError, ContractError, SemcastError
from semcast.link import pack_header, unpack_header
from semcast.systems.base import System
from semcast.types import Decoded, Format, Received, RxAnalog, RxPackets, RxProxy

MAGIC, VERSION = b"\x93SEMAIR\n", 1
HEADER, STEP, STREAM, END = 1, 2, 3, 4
LOST_STREAM, ANALOG, PACKETS = 0, 1, 2
RAW, RUNS = 0, 1
LOST_PACKET = 0xFFFFFFFF
HEADER_MAX, STREAM_MAX, NAME_MAX = 1024, 1 << 30, 255
SIDE_MIN, SIDE_MAX = 64, 16384
PIXELS_MAX = 1 << 24  # of a frame: 4K with room
STEP_PIXELS_MAX = 1 << 27  # of all frames of a step: 64 of 1080p; a hostile file can ask for no more than these
FPS_MIN, FPS_MAX, CBR_MAX = 0.01, 1000.0, 4.0

_RECORD, _CRC = struct.Struct("<BI"), struct.Struct("<I")
_STEP, _END, _PLANE = struct.Struct("<IH"), struct.Struct("<Q"), struct.Struct("<BI")


def as_sent(fmt: Format) -> Format:
    """The session header as the receiver will read it, numbers rounded as on the air: both ends start from this one."""
    return unpack_header(pack_header(fmt))


def _check_header(path: Path, fmt: Format) -> None:
    """Raise AirFileError unless frames, rate and CBR are of a size that a receiver can be asked to handle."""
    sides = (fmt.height, fmt.width)
    if min(sides) < SIDE_MIN or max(sides) > SIDE_MAX or fmt.height * fmt.width > PIXELS_MAX:
        raise AirFileError(f"{path}: the session header asks for frames of {fmt.width}x{fmt.height}, which is out of range")
    if not (FPS_MIN <= fmt.fps <= FPS_MAX and 0 < fmt.cbr <= CBR_MAX):
        raise AirFileError(f"{path}: the session header asks for {fmt.fps:g} fps at CBR {fmt.cbr:g}, which is out of range")


class AirWriter:
    """Write an air file step by step; use it as a context, which closes it with the end record unless an error ends it.

    Args:
        path: made or replaced. fmt: session header.

    Raises:
        AirFileError: the file cannot be written, or its frames are larger than a reader accepts.
    """

    def __init__(self, path: str | Path, fmt: Format) -> None:
        self.path, self.fmt = Path(path), fmt
        self.steps = 0
        _check_header(self.path, fmt)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = self.path.open("wb")
        except OSError as error:
            raise AirFileError(
                f"cannot write the air file {self.path}: {error.strerror or error}; choose another --air"
            ) from error
        self._put(MAGIC + VERSION.to_bytes(2, "little"))
        self._record(HEADER, pack_header(fmt))

    def _put(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise AirFileError(f"cannot write the air file {self.path}: {error.strerror or error}") from error

    def _record(self, kind: int, payload: bytes) -> None:
        head = _RECORD.pack(kind, len(payload))
        self._put(head)
        self._put(payload)
        self._put(_CRC.pack(zlib.crc32(payload, zlib.crc32(head))))

    def write(self, received: Received, n_frames: int) -> None:
        """Append what arrived in one step, ``n_frames`` frame times long.

        Raises:
            AirFileError: the disk is full, or the step is larger than a reader accepts. ContractError: a training stand-in, a
            batch, or a stream of more than 1 GiB.
        """
        if n_frames * self.fmt.height * self.fmt.width > STEP_PIXELS_MAX:
            size = f"{n_frames} frames of {self.fmt.width}x{self.fmt.height} in one step"
            raise AirFileError(f"{self.path}: {size} are more than an air file may hold; scale them with --size WxH")
        self._record(STEP, _STEP.pack(n_frames, len(received)))
        for name, stream in received.items():
            payload = _pack_stream(name, stream)
            if len(payload) > STREAM_MAX:
                raise ContractError(f"stream {name!r} of one step takes {len(payload)} bytes, more than an air file holds")
            self._record(STREAM, payload)
        self.steps += 1

    def close(self) -> None:
        """Write the end record and close; safe to call twice."""
        if not self._file.closed:
            self._record(END, _END.pack(self.steps))
            try:
                self._file.close()
            except OSError as error:
                raise AirFileError(f"cannot write the air file {self.path}: {error.strerror or error}") from error

    def __enter__(self) -> AirWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self._file.close()  # without an end record: the reader will say that it is cut short


class AirReader:
    """Read an air file step by step; iterate to get (received, n_frames).

    Args:
        path: an air file. Use the reader as a context, or call ``close``.

    Attributes:
        fmt: session header. steps, frames: read so far.

    Raises:
        AirFileError: no such file, alien, damaged or truncated; while iterating, at the place where the damage is.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.steps = self.frames = 0
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                raise AirFileError(f"{self.path} is not a file; give the file that `semcast send --air` wrote")
            self._file: BinaryIO = self.path.open("rb")
        except FileNotFoundError as error:
            raise AirFileError(f"{self.path}: no such air file") from error
        except OSError as error:
            raise AirFileError(f"cannot read the air file {self.path}: {error.strerror or error}") from error
        try:
            self._left = os.fstat(self._file.fileno()).st_size
            self.fmt = self._open()
        except BaseException:
            self._file.close()
            raise

    def _fail(self, what: str) -> AirFileError:
        return AirFileError(f"{self.path}: {what} after {self.frames} frames")

    def _get(self, size: int, what: str = "the air file is truncated") -> bytes:
        if size > self._left:
            raise self._fail(what)
        data = self._file.read(size)
        self._left -= len(data)
        if len(data) != size:
            raise self._fail(what)
        return data

    def _record(self, wanted: tuple[int, ...], limits: Mapping[int, int]) -> tuple[int, bytes]:
        head = self._get(_RECORD.size)
        kind, length = _RECORD.unpack(head)
        if kind not in wanted or length > limits[kind]:
            raise self._fail("the air file is damaged (a record that makes no sense)")
        payload = self._get(length)
        if _CRC.unpack(self._get(_CRC.size))[0] != zlib.crc32(payload, zlib.crc32(head)):
            raise self._fail("the air file is damaged (a checksum is wrong)")
        return kind, payload

    def _open(self) -> Format:
        alien = f"{self.path} is not a Semcast air file; give the file that `semcast send --air` wrote"
        if self._left < len(MAGIC) + 2 or self._get(len(MAGIC)) != MAGIC:
            raise AirFileError(alien)
        version = int.from_bytes(self._get(2), "little")
        if version != VERSION:
            raise AirFileError(
                f"{self.path} is an air file of version {version}, this Semcast reads version {VERSION}; update it"
            )
        _, payload = self._record((HEADER,), {HEADER: HEADER_MAX})
        try:
            fmt = unpack_header(payload)
        except ValueError as error:
            raise AirFileError(f"{self.path}: the session header is damaged ({error})") from error
        _check_header(self.path, fmt)
        return fmt

    def __iter__(self) -> Iterator[tuple[Received, int]]:
        limits = {STEP: _STEP.size, END: _END.size, STREAM: STREAM_MAX}
        while True:
            kind, payload = self._record((STEP, END), limits)
            try:
                if kind == END:
                    if _END.unpack(payload)[0] != self.steps or self._left:
                        raise self._fail("the air file does not end where it says")
                    return
                n_frames, streams = _STEP.unpack(payload)
            except struct.error as error:
                raise self._fail("the air file is damaged (a record is too short)") from error
            if not 0 < n_frames * self.fmt.height * self.fmt.width <= STEP_PIXELS_MAX:
                raise self._fail(f"the air file asks for {n_frames} frames in one step, which is out of range,")
            received: dict[str, RxAnalog | RxProxy | RxPackets | None] = {}
            for _ in range(streams):
                _, payload = self._record((STREAM,), limits)
                try:
                    name, stream = _unpack_stream(payload)
                except (ValueError, struct.error) as error:
                    raise self._fail(f"the air file is damaged ({error})") from error
                received[name] = stream
            if len(received) != streams:
                raise self._fail("the air file is damaged (a stream comes twice)")
            yield received, n_frames
            self.steps += 1
            self.frames += n_frames

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> AirReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def play(system: System, reader: AirReader) -> Iterator[Decoded]:
    """Decode an air file with a system that never saw the source; exactly what the receiver of the session did.

    Args:
        system: built from ``reader.fmt``, in evaluation mode.

    Raises:
        AirFileError: the file is damaged, or holds what this system could not have sent.
    """
    fmt = reader.fmt
    generator = torch.Generator().manual_seed(fmt.seed + 1)  # as the loop seeds the receiver
    name = repr(f"{fmt.system}:{fmt.preset}")
    try:
        state = system.start(fmt, "rx")
    except SemcastError:
        raise
    except Exception as error:  # whatever a hostile header can bring about: only the file can be the cause
        raise AirFileError(f"{reader.path}: the session header does not fit {name} ({_brief(error)})") from error
    for received, n_frames in reader:
        if n_frames > system.frames_per_step:
            raise AirFileError(f"{reader.path}: {n_frames} frames in one step, {name} sends {system.frames_per_step} at most")
        try:
            decoded, state, _ = system.decode(received, state, n_frames, generator=generator)
        except SemcastError:
            raise
        except Exception as error:
            raise AirFileError(
                f"{reader.path}: step {reader.steps} does not fit {name} ({_brief(error)}), after {reader.frames} frames"
            ) from error
        if decoded.frames is not None and not bool(torch.isfinite(decoded.frames).all()):
            raise AirFileError(f"{reader.path}: step {reader.steps} decodes to values that are no picture; the file is damaged")
        yield decoded


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__


# streams ------------------------------------------------------------------------------------------------------------------


def _pack_stream(name: str, stream: RxAnalog | RxProxy | RxPackets | None) -> bytes:
    label = name.encode()
    if len(label) > NAME_MAX:
        raise ContractError(f"the stream name {name!r} takes more than {NAME_MAX} bytes")
    head = bytes([len(label)]) + label
    if stream is None:
        return head + bytes([LOST_STREAM])
    if isinstance(stream, RxAnalog):
        return head + bytes([ANALOG]) + _pack_analog(stream)
    if isinstance(stream, RxProxy):
        raise ContractError(f"stream {name!r} is a training stand-in and holds no bytes")
    if len(stream) != 1:
        raise ContractError(f"an air file holds sessions of one clip, stream {name!r} has {len(stream)}")
    packets = stream[0]
    lengths = [LOST_PACKET if packet is None else len(packet) for packet in packets]
    body = b"".join(packet for packet in packets if packet is not None)
    return head + bytes([PACKETS]) + _CRC.pack(len(packets)) + np.asarray(lengths, "<u4").tobytes() + body


def _unpack_stream(data: bytes) -> tuple[str, RxAnalog | RxPackets | None]:
    """Raises ValueError or struct.error on anything that :func:`_pack_stream` does not write."""
    if not data or len(data) < 2 + data[0]:
        raise ValueError("a stream without a name or kind")
    at = 1 + data[0]
    name, kind, body = data[1:at].decode(), data[at], memoryview(data)[at + 1 :]
    if kind == LOST_STREAM and not body:
        return name, None
    if kind == ANALOG:
        return name, _unpack_analog(body)
    if kind == PACKETS:
        return name, [_unpack_packets(body)]
    raise ValueError("a stream of an unknown kind")


def _unpack_packets(body: memoryview) -> list[bytes | None]:
    (count,) = _CRC.unpack(body[:4])
    at = 4 + 4 * count
    if at > len(body):
        raise ValueError("fewer packets than announced")
    packets: list[bytes | None] = []
    for length in np.frombuffer(body[4:at], "<u4").tolist():
        if length == LOST_PACKET:
            packets.append(None)
            continue
        if at + length > len(body):
            raise ValueError("a packet is cut short")
        packets.append(bytes(body[at : at + length]))
        at += length
    if at != len(body):
        raise ValueError("bytes that belong to no packet")
    return packets


def _bits(x: Tensor) -> NDArray[np.uint32] | NDArray[np.uint64]:
    """(1, n) float32 or complex64 as its bit patterns, (n,)."""
    array = x.detach().resolve_conj().cpu().contiguous().numpy().reshape(-1)
    return array.view("<u8" if array.dtype == np.complex64 else "<u4")


def _pack_analog(stream: RxAnalog) -> bytes:
    n = stream.y.shape[-1]
    for what, plane, width in (("y", stream.y, (n,)), ("h", stream.h, (n,)), ("noise_var", stream.noise_var, (1, n))):
        wanted = torch.float32 if what == "noise_var" else torch.complex64
        if plane.dim() != 2 or plane.shape[0] != 1 or plane.shape[1] not in width or plane.dtype != wanted:
            raise ContractError(f"RxAnalog.{what} is {plane.dtype} {tuple(plane.shape)}; an air file holds {wanted} (1, {n})")
    return _CRC.pack(n) + _bits(stream.y).tobytes() + _pack_plane(stream.h) + _pack_plane(stream.noise_var)


def _pack_plane(x: Tensor) -> bytes:
    """Bit patterns as runs of equal ones where that is shorter: fading in blocks, and everything that does not change."""
    bits = _bits(x)
    starts = np.flatnonzero(np.r_[True, bits[1:] != bits[:-1]]) if bits.size else np.zeros(0, np.int64)
    lengths = np.diff(np.r_[starts, bits.size])
    head = _CRC.pack(bits.size)
    if starts.size * (4 + bits.itemsize) < bits.nbytes:
        return head + _PLANE.pack(RUNS, starts.size) + lengths.astype("<u4").tobytes() + bits[starts].tobytes()
    return head + _PLANE.pack(RAW, bits.size) + bits.tobytes()


def _unpack_analog(body: memoryview) -> RxAnalog:
    (n,) = _CRC.unpack(body[:4])
    at = 4 + 8 * n
    if at > len(body):
        raise ValueError("fewer symbols than announced")
    y = np.frombuffer(body[4:at], "<u8").copy()
    h, at = _unpack_plane(body, at, "<u8", (n,))
    noise_var, at = _unpack_plane(body, at, "<u4", (1, n))
    if at != len(body):
        raise ValueError("bytes that belong to no symbol")
    complex_y, complex_h = (torch.from_numpy(plane.view(np.complex64))[None] for plane in (y, h))
    return RxAnalog(complex_y, complex_h, torch.from_numpy(noise_var.view(np.float32))[None])


def _unpack_plane(
    body: memoryview, at: int, kind: str, widths: tuple[int, ...]
) -> tuple[NDArray[np.uint32] | NDArray[np.uint64], int]:
    """A plane whose width is one of ``widths``, so that runs never expand beyond the symbols that the file really holds."""
    (width,) = _CRC.unpack(body[at : at + 4])
    form, count = _PLANE.unpack(body[at + 4 : at + 4 + _PLANE.size])
    at += 4 + _PLANE.size
    size = np.dtype(kind).itemsize
    counts = 4 * count if form == RUNS else 0
    end = at + counts + size * count
    if width not in widths or form not in (RAW, RUNS) or count > width or end > len(body) or (form == RAW and count != width):
        raise ValueError("a plane that does not fit its symbols")
    values = np.frombuffer(body[at + counts : end], kind)
    if form == RAW:
        return values.copy(), end
    lengths = np.frombuffer(body[at : at + counts], "<u4").astype(np.int64)
    if int(lengths.sum()) != width:
        raise ValueError("runs that do not add up")
    return np.repeat(values, lengths), end
