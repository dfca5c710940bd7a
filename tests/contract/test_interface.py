"""The rules of the house, shown to hold on toys: no free streams, no peeking, no amplitude for nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from semcast.errors import ContractError, InputError
from semcast.ledger import Ledger
from semcast.link import Link
from semcast.systems.base import Side, System
from semcast.transmit import run
from semcast.types import (
    Analog,
    Aux,
    Budget,
    Csi,
    Decoded,
    Digital,
    Format,
    Packet,
    Payload,
    Received,
    RxAnalog,
    RxProxy,
    State,
    Step,
    StepResult,
    as_complex,
    as_real,
)


class Toy(System):
    """Sends the mean colour of 32 x 32 cells as analog symbols; the subclasses break one rule each."""

    name = "toy"

    def start(self, fmt: Format, side: Side) -> State:
        return {"fmt": fmt, "side": side}

    def encode(
        self, step: Step, state: State, csi: Csi, budget: Budget, *, generator: torch.Generator
    ) -> tuple[Payload, State, Aux]:
        cells = nn.functional.avg_pool2d(step.frames[:, 0], 32) - 0.5
        return {"cells": Analog(as_complex(cells.flatten(1)))}, state, {}

    def decode(
        self, received: Received, state: State, n_frames: int, *, generator: torch.Generator
    ) -> tuple[Decoded, State, Aux]:
        rx = received["cells"]
        assert isinstance(rx, RxAnalog)
        x, _ = rx.equalised()
        fmt = state["fmt"]
        cells = as_real(x).reshape(-1, 3, fmt.height // 32, fmt.width // 32)
        frame = nn.functional.interpolate(cells, scale_factor=32) * 0.2 + 0.5
        return Decoded(frames=frame[:, None].clamp(0, 1)), state, {}


class FreeSideStream(Toy):
    """Claims a digital stream of 10 bits without producing a byte."""

    def encode(
        self, step: Step, state: State, csi: Csi, budget: Budget, *, generator: torch.Generator
    ) -> tuple[Payload, State, Aux]:
        payload, state, aux = super().encode(step, state, csi, budget, generator=generator)
        side = Digital(proxy=torch.ones(1, 1, 4), est_bits=torch.full((1, 1), 10.0))
        return {**payload, "side": side}, state, aux


class Peeker(Toy):
    """The receiver looks at what the transmitter left lying about in the same process."""

    def encode(
        self, step: Step, state: State, csi: Csi, budget: Budget, *, generator: torch.Generator
    ) -> tuple[Payload, State, Aux]:
        self.seen = step.frames
        return super().encode(step, state, csi, budget, generator=generator)

    def decode(
        self, received: Received, state: State, n_frames: int, *, generator: torch.Generator
    ) -> tuple[Decoded, State, Aux]:
        decoded, state, aux = super().decode(received, state, n_frames, generator=generator)
        assert decoded.frames is not None
        return Decoded(frames=(decoded.frames + getattr(self, "seen", decoded.frames)) / 2), state, aux


class PeekThroughState(Toy):
    """Leaves the frames in its state, hoping that the receiver gets the same one."""

    def encode(
        self, step: Step, state: State, csi: Csi, budget: Budget, *, generator: torch.Generator
    ) -> tuple[Payload, State, Aux]:
        state["frames"] = step.frames
        return super().encode(step, state, csi, budget, generator=generator)

    def decode(
        self, received: Received, state: State, n_frames: int, *, generator: torch.Generator
    ) -> tuple[Decoded, State, Aux]:
        return Decoded(frames=state["frames"]), state, {}


FMT = Format(64, 96, system="toy", cbr=0.01)


def send(system: System, frames: torch.Tensor, *, training: bool = False) -> tuple[list[StepResult], Ledger]:
    """Frames (B, T, 3, H, W), one per step, over AWGN at 10 dB."""
    link = Link("awgn", snr_db=10.0, cbr=0.01).train(training)
    ledger = Ledger()
    steps = [Step(frame, {}, i, i == frames.shape[1] - 1) for i, frame in enumerate(frames.split(1, 1))]
    return list(run(system, steps, link, ledger, fmt=FMT, generator=torch.Generator().manual_seed(0))), ledger


def replay(system: System, results: list[StepResult]) -> list[torch.Tensor]:
    """Decode what crossed the air with an instance that never saw the source."""
    state = system.start(FMT, "rx")
    random = torch.Generator().manual_seed(1)
    shown = []
    for result in results:
        assert result.received is not None
        decoded, state, _ = system.decode(result.received, state, 1, generator=random)
        assert decoded.frames is not None
        shown.append(decoded.frames)
    return shown


@pytest.fixture
def frames(clip: Any) -> torch.Tensor:
    """(1, 2, 3, 64, 96)."""
    return torch.as_tensor(clip(2, 64, 96))[None]


def test_an_honest_toy_passes(frames: torch.Tensor) -> None:
    results, ledger = send(Toy(), frames)
    assert ledger.total(kind="analog") == 2 * 3 * 2 * 3 // 2
    for now, again in zip(results, replay(Toy(), results), strict=True):
        assert torch.equal(now.decoded.frames, again)  # type: ignore[arg-type]


def test_a_free_side_stream_is_refused(frames: torch.Tensor) -> None:
    with pytest.raises(ContractError, match="'side' carries no bytes"):
        send(FreeSideStream(), frames)


def test_in_training_a_stand_in_is_booked_as_estimated(frames: torch.Tensor) -> None:
    results, ledger = send(FreeSideStream(), frames, training=True)
    assert isinstance(results[0].received["side"], RxProxy)  # type: ignore[index]
    assert ledger.total("info_bits", estimated=True) == 20
    assert any("estimated" in note for note in ledger.footnotes())


def test_a_digital_stream_without_anything_is_refused_in_training_too(generator: torch.Generator) -> None:
    link = Link().train()
    with pytest.raises(ContractError):
        link.send({"side": Digital()}, Ledger(), generator=generator)
    with pytest.raises(ContractError, match="est_bits"):
        link.send({"side": Digital(proxy=torch.ones(1, 1, 4))}, Ledger(), generator=generator)


def test_a_peeking_receiver_is_caught_by_a_replay(frames: torch.Tensor) -> None:
    results, _ = send(Peeker(), frames)
    assert any(
        not torch.equal(now.decoded.frames, again)  # type: ignore[arg-type]
        for now, again in zip(results, replay(Peeker(), results), strict=True)
    )


def test_the_two_states_are_separate(frames: torch.Tensor) -> None:
    with pytest.raises(KeyError):
        send(PeekThroughState(), frames)


def test_amplitude_does_not_survive(generator: torch.Generator) -> None:
    """Ten times the amplitude is the same signal on the air."""
    x = torch.randn(1, 500, dtype=torch.complex64, generator=generator)
    received = [
        Link("awgn", snr_db=20.0).send({"a": Analog(x * gain)}, Ledger(), generator=torch.Generator().manual_seed(3))["a"]
        for gain in (1.0, 10.0)
    ]
    assert torch.allclose(received[0].y, received[1].y, atol=1e-5)  # type: ignore[union-attr]


def test_what_is_not_active_is_not_sent(generator: torch.Generator) -> None:
    """The receiver gets the active symbols only, without their places."""
    x = torch.ones(1, 100, dtype=torch.complex64)
    active = torch.zeros(1, 100, dtype=torch.bool)
    active[:, ::4] = True
    ledger = Ledger()
    rx = Link("awgn", snr_db=40.0).send({"a": Analog(x, active=active)}, ledger, generator=generator)["a"]
    assert isinstance(rx, RxAnalog)
    assert rx.y.shape == (1, 25)
    assert ledger.channel_uses == 25


def test_analog_must_be_complex_symbols() -> None:
    with pytest.raises(ContractError, match="complex"):
        Analog(torch.ones(1, 10))
    with pytest.raises(ContractError, match="complex"):
        Analog(torch.ones(10, dtype=torch.complex64))


def test_values_that_are_not_finite_are_refused(generator: torch.Generator) -> None:
    x = torch.full((1, 10), float("nan"), dtype=torch.complex64)
    with pytest.raises(ContractError, match="not finite"):
        Link().send({"a": Analog(x)}, Ledger(), generator=generator)


def test_a_header_that_never_arrives_is_bad_input_not_a_hang() -> None:
    link = Link("erasure:plr=1", snr_db=10.0).eval()
    with pytest.raises(InputError, match="session header"):
        link.open(FMT, Ledger(), generator=torch.Generator().manual_seed(0))


def test_packets_arrive_whole_or_not_at_all(generator: torch.Generator) -> None:
    link = Link("erasure:plr=0.5", snr_db=15.0).eval()
    packets = [Packet(bytes([i]) * (10 + i)) for i in range(60)]
    ledger = Ledger()
    arrived = link.send({"p": Digital([packets])}, ledger, generator=generator)["p"]
    assert isinstance(arrived, list)
    assert len(arrived[0]) == len(packets)
    assert all(got is None or got == packet.data for got, packet in zip(arrived[0], packets, strict=True))
    lost = sum(got is None for got in arrived[0])
    assert 0 < lost < 60
    assert ledger.total("packets_lost") == lost
    assert ledger.total("packets_sent") == 60
