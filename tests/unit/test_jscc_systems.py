"""Deep and linear JSCC: what their side information is for, what its loss costs, what a budget cannot buy."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
import torch

from semcast import checkpoint
from semcast.errors import BudgetError
from semcast.ledger import Ledger
from semcast.link import Link
from semcast.systems.base import System
from semcast.systems.deepjscc import DeepJscc, PaperConfig, SmallConfig
from semcast.systems.linear_jscc import LinearConfig, LinearJscc
from semcast.types import Decoded, Format, RxAnalog, Step

Clip = Callable[..., torch.Tensor]
Hold = Callable[..., Any]

SMALL = SmallConfig(classes=4, latents=96, width=32, fine_width=16, encoder_blocks=1, decoder_blocks=1, fine_blocks=1)


@pytest.fixture(scope="module", params=["deepjscc", "linear-jscc"])
def system(request: pytest.FixtureRequest, clip: Clip) -> System:
    """Either code, with 4 classes fitted to textures; nothing trained."""
    torch.manual_seed(0)
    frames = torch.cat([clip(2, 96, 112, seed=s) for s in range(30)])
    if request.param == "deepjscc":
        deep = DeepJscc(SMALL)
        deep.initialise(frames)
        return deep.eval()
    linear = LinearJscc(LinearConfig(classes=4, rotated=16), "classes-32")
    linear.blocks.fit(frames)
    return linear.eval()


class Ends:
    """A transmitter and a receiver with a link between them, a frame at a time."""

    def __init__(self, system: System, height: int, width: int, *, cbr: float = 0.1, snr_db: float = 10.0) -> None:
        fmt = Format(height, width, system=system.name, preset=system.preset, cbr=cbr)
        self.system, self.link, self.ledger = system, Link("awgn", snr_db=snr_db, cbr=cbr).eval(), Ledger()
        self.tx, self.rx = system.start(fmt, "tx"), system.start(fmt, "rx")
        self.random = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def send(self, frame: torch.Tensor) -> dict[str, Any]:
        """(3, H, W) -> what arrived."""
        step = Step(frame[None, None])
        payload, self.tx, _ = self.system.encode(step, self.tx, *self.link.grant(step), generator=self.random)
        return dict(self.link.send(payload, self.ledger, generator=self.random))

    @torch.no_grad()
    def show(self, received: dict[str, Any]) -> Decoded:
        decoded, self.rx, _ = self.system.decode(received, self.rx, 1, generator=self.random)
        assert decoded.frames is not None
        return decoded


def psnr_db(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean()))


# -- side information --------------------------------------------------------------------------------------------------------


def test_a_lost_packet_freezes_the_last_frame(system: System, clip: Clip) -> None:
    """Before the first frame there is grey; the frame after a loss is whole again."""
    frames, ends = clip(4, 80, 96), Ends(system, 80, 96)
    received = [ends.send(frame) for frame in frames]
    grey = ends.show({**received[0], "classes": [[None]]})
    assert grey.concealed == 1
    assert bool((grey.frames == 0.5).all())
    shown = ends.show(received[1])
    frozen = [ends.show({**received[2], "classes": [[None]]}) for _ in range(2)]
    assert [shown.concealed, frozen[0].concealed, frozen[1].concealed] == [0, 1, 1]
    assert all(torch.equal(one.frames, shown.frames) for one in frozen)  # type: ignore[arg-type]
    whole = ends.show(received[3])
    assert whole.concealed == 0
    assert psnr_db(whole.frames[0, 0], frames[3]) > 20  # type: ignore[index]


@pytest.mark.parametrize("data", [b"", b"\0", b"\0" * 3, b"\xff" * 3, b"\x7f\xff\xff" + bytes(40), b"\x80\0\0" + b"abcd" * 9])
def test_garbage_for_classes_is_never_an_exception(system: System, clip: Clip, data: bytes) -> None:
    """A CRC makes this unlikely on the air; an air file can be forged."""
    ends = Ends(system, 80, 96)
    received = ends.send(clip(1, 80, 96)[0])
    frames = ends.show({**received, "classes": [[data]]}).frames
    assert frames is not None
    assert frames.shape == (1, 1, 3, 80, 96)
    assert bool(torch.isfinite(frames).all())


def test_symbols_of_another_number_are_concealed(system: System, clip: Clip) -> None:
    ends = Ends(system, 80, 96)
    received = ends.send(clip(1, 80, 96)[0])
    rx = received["latent"]
    more = RxAnalog(*(torch.cat([part] * 40, 1) for part in (rx.y, rx.h, rx.noise_var)))
    assert ends.show({**received, "latent": more}).concealed == 1


def test_the_packet_tells_snr_amplitude_and_classes_and_is_charged(system: System, clip: Clip) -> None:
    ends = Ends(system, 80, 96, cbr=0.05, snr_db=7.5)
    received = ends.send(clip(1, 80, 96)[0])
    packet = received["classes"][0][0]
    assert struct.unpack_from("<bH", packet)[0] == 15
    assert ends.ledger.total("info_bits", stream="classes") == 8 * len(packet)
    assert ends.ledger.total(stream="latent") == received["latent"].y.shape[1]
    # The picture gets what the packet leaves; what was set aside for a short packet may exceed what it takes.
    assert 0.94 * 0.05 * 3 * 80 * 96 < ends.ledger.channel_uses <= 0.05 * 3 * 80 * 96


def test_amplitude_survives_because_it_is_told(system: System, clip: Clip) -> None:
    """The link takes the power of a frame away: a faint copy of a frame comes back as faint."""
    frame = clip(1, 80, 96)[0]
    faint = (frame - 0.5) * 0.2 + 0.5
    shown = Ends(system, 80, 96, snr_db=20.0)
    bright, dim = (shown.show(shown.send(one)).frames[0, 0] for one in (frame, faint))  # type: ignore[index]
    assert float(dim.std() / bright.std()) == pytest.approx(float(faint.std() / frame.std()), rel=0.05)


def test_busy_blocks_get_more_channel_uses(system: System, clip: Clip) -> None:
    """Half the picture is flat: the other half comes out better than where texture is everywhere."""
    busy = clip(1, 96, 192)[0]
    half = busy.clone()
    half[:, :, :96] = 0.5
    ends = Ends(system, 96, 192, cbr=0.03)
    both, one = (ends.show(ends.send(picture)).frames[0, 0] for picture in (busy, half))  # type: ignore[index]
    assert psnr_db(one[:, :, 112:], busy[:, :, 112:]) > psnr_db(both[:, :, 112:], busy[:, :, 112:]) + 0.5


def test_a_budget_without_room_for_a_picture_is_refused(system: System, clip: Clip) -> None:
    with pytest.raises(BudgetError, match=r"bytes of side information.*raise --cbr"):
        Ends(system, 80, 96, cbr=0.002).send(clip(1, 80, 96)[0])


# -- preset paper ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "c", "fits"), [(64, 80, 8, True), (65, 80, 8, False), (64, 79, 8, False)])
def test_the_published_network_serves_one_rate(height: int, width: int, c: int, fits: bool) -> None:
    """CBR c / 96 at sizes that 4 divides; elsewhere padding costs, which the budget does not hide."""
    system = DeepJscc(PaperConfig(c=c))
    fmt = Format(height, width, cbr=c / 96)
    if fits:
        system.start(fmt, "tx")
        return
    with pytest.raises(BudgetError, match=r"always sends CBR 0\.08.*raise --cbr"):
        system.start(fmt, "tx")


@pytest.mark.parametrize("c", [4, 8, 16])
def test_the_published_network_spends_its_rate(c: int, clip: Clip, hold: Hold) -> None:
    torch.manual_seed(0)
    session = hold(DeepJscc(PaperConfig(c=c)).eval(), clip(2, 64, 80), cbr=c / 96)
    assert session.ledger.total(stream="latent") == c / 96 * session.ledger.source_values


# -- what ships --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deepjscc:small", "linear-jscc:classes-32"])
def test_it_starts_where_classes_pay(name: str, clip: Clip, hold: Hold) -> None:
    """With the shipped weights, 32 classes of blocks beat one on a picture that is half flat, side information paid."""
    frames = clip(1, 160, 224)
    frames[..., :112] = frames[..., :1].mean(-2, keepdim=True)
    one = hold(checkpoint.make_system("linear-jscc:one-class")[0], frames).psnr_db
    assert hold(checkpoint.make_system(name)[0], frames).psnr_db > one + 1
