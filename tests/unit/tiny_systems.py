"""Small NTSCC and DVST at tiny widths, fitted to crops of rendered scenes within seconds; nothing is trained."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from semcast.ledger import Ledger
from semcast.link import Link
from semcast.systems.base import System
from semcast.systems.dvst import fit as dvst_fit
from semcast.systems.dvst.small import DvstSmall
from semcast.systems.dvst.small import SmallConfig as DvstConfig
from semcast.systems.ntscc.small import NtsccSmall
from semcast.systems.ntscc.small import SmallConfig as NtsccConfig
from semcast.types import Decoded, Format, Payload, Received, Step
from semcast.video.scenes import open_scene

NTSCC = NtsccConfig(
    classes=8, quarter_classes=4, tile_classes=2, latents=96, rotated=16, width=16, fine_width=8, decoder_blocks=1,
    fine_blocks=1, embedding=4,
)  # fmt: skip
DVST = DvstConfig(classes=8, quarter_classes=4, latents=96, rotated=16, fine_width=8, fine_blocks=1, embedding=4, run=2)
FITTED_ON = ("astronaut-pan", "rocket-zoom", "camera-shake", "gravel-rotate")


def scene(name: str, frames: int, width: int = 96, height: int = 80) -> Tensor:
    """(T, 3, H, W)."""
    return torch.stack(list(open_scene(f"{name}:size={width}x{height},frames={frames}").frames()))


def stir(system: torch.nn.Module) -> None:
    """Move what starts at zero off it, by so little that the closed form stays what it is."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in system.named_parameters():
            if ".head." in name and not name.startswith("key."):
                parameter.add_(0.002 * torch.randn(parameter.shape, generator=random))


@cache
def tiny_ntscc() -> NtsccSmall:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        system = NtsccSmall(NTSCC)
        pictures = torch.cat([scene(name, 1, 320, 256) for name in FITTED_ON])
        system.initialise(torch.cat([pictures, pictures.flip(3)]))
    stir(system)
    return system.eval()


@cache
def tiny_dvst() -> DvstSmall:
    """Groups of 4 frames, side information in packets of 2."""
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(dvst_fit, "CBR", (0.05, 0.1))  # frames are small: at less the I-frame's packet would not fit
        patch.setattr(dvst_fit, "SNR_DB", (6.0, 10.0, 14.0))
        system = DvstSmall(DVST, tiny_ntscc(), 4)
        system.initialise(torch.stack([scene(name, 3) for name in FITTED_ON]))
    stir(system)
    return system.eval()


class Ends:
    """A transmitter and a receiver with a link between them, a step at a time, without a session header."""

    def __init__(
        self, system: System, frames: Tensor, *, channel: str = "awgn", cbr: float = 0.06, snr_db: float = 10.0, seed: int = 0,
        csi_snr_db: float | None = None,
    ) -> None:  # fmt: skip
        fmt = Format(*frames.shape[-2:], system=system.name, preset=system.preset, cbr=cbr)
        self.system, self.ledger = system, Ledger()
        self.link = Link(channel, snr_db=snr_db, cbr=cbr, csi_snr_db=csi_snr_db).train(system.training)
        self.tx, self.rx = system.start(fmt, "tx"), system.start(fmt, "rx")
        self.random = torch.Generator().manual_seed(seed)
        self.link.channel.reset(self.random)

    def encode(self, frames: Tensor) -> Payload:
        """(t, 3, H, W) -> streams."""
        step = Step(frames[None])
        payload, self.tx, _ = self.system.encode(step, self.tx, *self.link.grant(step), generator=torch.Generator())
        return payload

    def send(self, frames: Tensor) -> dict[str, object]:
        """(t, 3, H, W) -> what arrived."""
        return dict(self.link.send(self.encode(frames), self.ledger, generator=self.random))

    def show(self, received: Received | dict[str, object], n_frames: int) -> Decoded:
        decoded, self.rx, _ = self.system.decode(received, self.rx, n_frames, generator=torch.Generator())  # type: ignore[arg-type]
        assert decoded.frames is not None
        assert decoded.frames.shape[1] == n_frames
        assert bool(torch.isfinite(decoded.frames).all())
        return decoded


def psnr_db(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean() + 1e-12))
