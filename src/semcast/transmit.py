"""The one loop: it runs a system over a link, in training, in benchmarks and live."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import torch

from semcast.ledger import Ledger
from semcast.link import Link, pack_header, unpack_header
from semcast.systems.base import System
from semcast.types import Format, Step, StepResult


def run(
    system: System,
    source: Iterable[Step],
    link: Link,
    ledger: Ledger,
    *,
    fmt: Format,
    generator: torch.Generator,
) -> Iterator[StepResult]:
    """Send every step of ``source`` through ``link`` and yield what came out, streaming.

    Args:
        system: transmitter and receiver. source: steps of at most ``system.frames_per_step`` frames.
        link: the only door between the two. ledger: what the link charges.
        fmt: session header, charged before the first frame (not in training, where every batch would be a session).
        generator: all randomness of the transmission; system randomness is seeded by ``fmt.seed`` on each side.

    Yields:
        One :class:`StepResult` per step; ``received`` is what crossed the air.
    """
    fmt = unpack_header(pack_header(fmt))  # both ends know the header as it is sent, rounding included
    link.open(fmt, ledger, generator=generator)
    tx, rx = system.start(fmt, "tx"), system.start(fmt, "rx")
    tx_random = torch.Generator().manual_seed(fmt.seed)
    rx_random = torch.Generator().manual_seed(fmt.seed + 1)
    for step in source:
        batch, t, _, height, width = step.frames.shape
        ledger.source(batch * t, height, width)
        csi, budget = link.grant(step)
        began = time.perf_counter()
        payload, tx, tx_aux = system.encode(step, tx, csi, budget, generator=tx_random)
        encoded = time.perf_counter()
        received = link.send(payload, ledger, generator=generator)
        sent = time.perf_counter()
        decoded, rx, rx_aux = system.decode(received, rx, t, generator=rx_random)
        done = time.perf_counter()
        ledger.end_step()
        yield StepResult(step, decoded, encoded - began, done - sent, {**tx_aux, **rx_aux}, received)
