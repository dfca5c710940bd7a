"""Throws mutated air files at ``semcast receive``: every one must end in a video or in one sentence, never in a traceback.

    python tests/fuzz/fuzz_air.py --count 2000 --seed 0

Mutants are of two kinds: damage that a checksum should notice, and records that are changed and then sealed again with the
right checksum, which is what an attacker would write.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from semcast import air, checkpoint
from semcast.app.cli import main
from semcast.link import pack_header, unpack_header
from semcast.studies.session import Radio, load_system, send_clip
from semcast.systems import SYSTEMS
from semcast.video.io import open_clips

SYSTEMS_FUZZED = (
    "linear-jscc",
    "freeze",
    "jpeg-ldpc",
    "mjpeg-ldpc",
    "h264-ldpc",
    "h265-ldpc",
    "deepjscc:small",
    "gos-vae:small",
    "sematt-jscc:small",
    "sematt-video:small",
)
SIZES = ((64, 64), (96, 80))
GROWTH_MAX_MB = 700  # resident memory over that of the untouched files
SECONDS_MAX = 60.0

Record = tuple[int, bytes]


@dataclass(frozen=True)
class Base:
    """An untouched air file: its bytes, and the checkpoint that decodes it."""

    name: str
    data: bytes
    weights: Path | None


def make_bases(folder: Path, names: tuple[str, ...] = SYSTEMS_FUZZED) -> list[Base]:
    """One short session per system and size, over a channel that loses packets."""
    bases = []
    for index, name in enumerate(name for name in names if name.partition(":")[0] in SYSTEMS):
        weights = None
        base, _, preset = name.partition(":")
        preset = preset or SYSTEMS.get(base).presets[0]
        if SYSTEMS.get(base).trained:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                weights = checkpoint.save(SYSTEMS.get(base).make(preset, "strong"), folder / base, {"data": ["none"]})
        clip = open_clips("scene:demo", size=SIZES[index % len(SIZES)], max_frames=4)[0]
        path = folder / f"{index}.air"
        radio = Radio("erasure:plr=0.1", snr_db=12.0, cbr=1 / 4)
        send_clip(load_system(name, weights=weights), clip, radio, path, metrics=())
        bases.append(Base(name, path.read_bytes(), weights))
    return bases


# mutations ------------------------------------------------------------------------------------------------------------------

PREFIX = len(air.MAGIC) + 2


def split(data: bytes) -> list[Record]:
    """The records of an untouched file."""
    records, at = [], PREFIX
    while at < len(data):
        kind, length = struct.unpack_from("<BI", data, at)
        records.append((kind, data[at + 5 : at + 5 + length]))
        at += 9 + length
    return records


def seal(prefix: bytes, records: list[Record]) -> bytes:
    """A file with right lengths and checksums, whatever is in its records."""
    out = [prefix]
    for kind, payload in records:
        head = struct.pack("<BI", kind, len(payload))
        out += [head, payload, struct.pack("<I", zlib.crc32(payload, zlib.crc32(head)))]
    return b"".join(out)


def damage(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, insert, remove, overwrite or repeat some bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 40))):
        at = rng.randrange(len(out) + 1)
        size = rng.choice((1, 2, 4, 8, 100))
        kind = rng.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            out[at:at] = rng.randbytes(size)
        elif kind == 3:
            del out[at : at + size]
        elif kind == 4:
            out[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)))
        else:
            out[at:at] = out[max(0, at - size) : at]
    return bytes(out)


def forged_header(payload: bytes, rng: random.Random) -> bytes:
    """A session header with a value or a name that the session did not have."""
    fmt = unpack_header(payload)
    names = [*SYSTEMS, "nobody", "", "../../etc", "a" * 60]
    change: dict[str, object] = rng.choice(
        [
            {"height": rng.choice((0, 1, 63, 64, 65, 200, 500, 5000, 65535))},
            {"width": rng.choice((0, 1, 63, 64, 65, 200, 500, 65535))},
            {"height": 65535, "width": 65535},
            {"fps": rng.choice((1e-30, 1e-3, 1e30, 999.0, 29.97))},
            {"cbr": rng.choice((1e-30, 1e-6, 0.01, 1.0, 3.9, 1e30))},
            {"system": rng.choice(names)},
            {"preset": rng.choice(("small", "paper", "default", "", "x"))},
            {"condition": rng.choice(("offline", "dvst-paper", "", "x"))},
            {"goal": rng.choice(("watch", "segment", ""))},
            {"weights": rng.choice(("", "0" * 16, "f" * 16))},
            {"seed": rng.choice((0, 2**32 - 1, 2**31))},
        ]
    )
    return pack_header(fmt._replace(**change))  # type: ignore[arg-type]


def forge(data: bytes, rng: random.Random) -> bytes:
    """Change records and seal them again."""
    prefix, records = data[:PREFIX], split(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not records:
            break
        at = rng.randrange(len(records))
        kind, payload = records[at]
        what = rng.randrange(10)
        if what == 0:
            records[0] = (records[0][0], forged_header(split(data)[0][1], rng))
        elif what == 1:
            records.pop(at)
        elif what == 2:
            records.insert(rng.randrange(len(records) + 1), records[at])
        elif what == 3:
            other = rng.randrange(len(records))
            records[at], records[other] = records[other], records[at]
        elif what == 4:
            records[at] = (rng.randrange(256) if rng.random() < 0.2 else rng.randrange(1, 5), payload)
        elif what == 5 and kind == air.STEP:
            frames = rng.choice((0, 1, 2, 3, 5, 31, 32, 33, 1000, 2**32 - 1))
            records[at] = (kind, struct.pack("<IH", frames, rng.choice((0, 1, 2, 65535))))
        elif what in (6, 7) and kind == air.STREAM and payload:
            changed = bytearray(payload)  # towards the end lie the bytes of packets: lengths stay, decoders get nonsense
            for _ in range(rng.choice((1, 3, 30))):
                changed[rng.randrange(len(changed) // 4, len(changed))] = rng.randrange(256)
            records[at] = (kind, bytes(changed))
        else:
            records[at] = (kind, damage(payload, rng))
    return seal(prefix, records)


def splice(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """The header of one session on the steps of another."""
    mine, theirs = split(data), split(other)
    at = rng.randrange(1, len(theirs) + 1)
    return seal(data[:PREFIX], mine[: rng.randrange(1, len(mine))] + theirs[at:])


def mutate(bases: list[Base], rng: random.Random) -> tuple[Base, bytes]:
    """One mutant and the session it comes from."""
    base = rng.choice(bases)
    kinds: list[Callable[[], bytes]] = [
        lambda: damage(base.data, rng),
        lambda: forge(base.data, rng),
        lambda: forge(base.data, rng),
        lambda: splice(base.data, rng.choice(bases).data, rng),
        lambda: rng.randbytes(rng.randrange(2000)),
        lambda: base.data[:PREFIX] + rng.randbytes(rng.randrange(500)),
    ]
    return base, rng.choices(kinds, (4, 5, 5, 2, 1, 1))[0]()


# the check ------------------------------------------------------------------------------------------------------------------


def receive(path: Path, out: Path, weights: Path | None) -> str:
    """Run ``semcast receive``; returns "decoded" or "refused", and raises AssertionError on anything else."""
    out.unlink(missing_ok=True)
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        code = main(["receive", str(path), str(out), "--precision", "fp32", *(["--weights", str(weights)] if weights else [])])
    text = complained.getvalue()
    if code == 0:
        assert out.stat().st_size > 0
        return "decoded"
    assert code == 2, f"exit code {code}: {text}"
    assert text.startswith("error: "), text
    assert text.count("\n") == 1, text
    assert "Traceback" not in text, text
    return "refused"


def peak_mb() -> float:
    """Peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuzz(count: int, seed: int, folder: Path, say: Callable[[str], None] = lambda text: None) -> Counter[str]:
    """Run ``count`` mutants; returns how many were decoded and refused.

    Raises:
        AssertionError: a mutant that ends otherwise, takes too long or too much memory; it is kept in ``folder``.
    """
    bases = make_bases(folder)
    path, out = folder / "mutant.air", folder / "out.y4m"
    for base in bases:
        path.write_bytes(base.data)
        assert receive(path, out, base.weights) == "decoded", base.name
    before = peak_mb()
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    for index in range(count):
        base, data = mutate(bases, random.Random(f"{seed}/{index}"))
        path.write_bytes(data)
        began = time.monotonic()
        try:
            outcomes[receive(path, out, base.weights)] += 1
            taken = time.monotonic() - began
            slowest = max(slowest, taken)
            assert taken < SECONDS_MAX, f"took {taken:.0f} s"
            assert peak_mb() - before < GROWTH_MAX_MB, f"took {peak_mb() - before:.0f} MB more than an honest file"
        except BaseException as error:
            kept = folder / f"failed-{seed}-{index}.air"
            kept.write_bytes(data)
            raise AssertionError(f"mutant {index} of seed {seed}, from {base.name}, kept as {kept}: {error}") from error
        if (index + 1) % 100 == 0:
            say(f"{index + 1} of {count}: {dict(outcomes)}, slowest {slowest:.1f} s, {peak_mb() - before:.0f} MB more")
    return outcomes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    where = Path(tempfile.mkdtemp(prefix="semcast-fuzz-"))
    totals = fuzz(given.count, given.seed, where, lambda text: print(text, flush=True))
    print(f"{given.count} mutants: {dict(totals)}")
    sys.exit(0)
