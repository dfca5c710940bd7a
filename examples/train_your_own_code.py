"""Train a tiny joint source-channel code of picture blocks over a fading link, in plain PyTorch.

python examples/train_your_own_code.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast import Analog, Ledger, Link, open_clips

USES = 8  # complex symbols per 8x8 block: CBR 1/24


def blocks_of(spec: str) -> Tensor:
    """All 8x8 blocks of a rendered scene, (N, 192)."""
    (clip,) = open_clips(spec, size=(128, 96), max_frames=4)
    frames = torch.stack(list(clip.frames()))
    return F.pixel_unshuffle(frames, 8).movedim(1, -1).flatten(0, -2) - 0.5


def exchange(encoder: nn.Module, decoder: nn.Module, link: Link, blocks: Tensor, generator: torch.Generator) -> Tensor:
    """Blocks -> what arrives; all blocks of a batch share one send, and so one power."""
    symbols = torch.view_as_complex(encoder(blocks).unflatten(1, (-1, 2)))
    received = link.send({"latent": Analog(symbols.reshape(1, -1))}, Ledger(), generator=generator)["latent"]
    estimate, noise_var = received.equalised()  # type: ignore[union-attr]
    seen = torch.view_as_real(estimate / (1 + noise_var)).reshape(len(blocks), -1)
    return decoder(seen)


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    train, test = blocks_of("scene:brick-static"), blocks_of("scene:cat-zoom")
    encoder = nn.Sequential(nn.Linear(192, 128), nn.GELU(), nn.Linear(128, 2 * USES))
    decoder = nn.Sequential(nn.Linear(2 * USES, 128), nn.GELU(), nn.Linear(128, 192))
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=2e-3)
    link = Link("rayleigh").train()
    for step in range(200):
        link.set(snr_db=5 + 10 * float(torch.rand((), generator=generator)), cbr=1 / 24)
        batch = train[torch.randint(len(train), (256,), generator=generator)]
        loss = (exchange(encoder, decoder, link, batch, generator) - batch).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 50 == 0:
            print(f"step {step}: PSNR {-10 * torch.log10(loss):.2f} dB while training")
    with torch.no_grad():
        for snr_db in (0.0, 5.0, 10.0, 15.0):
            link.set(snr_db=snr_db, cbr=1 / 24)
            error = (exchange(encoder, decoder, link, test, generator) - test).square().mean()
            print(f"{snr_db:4.0f} dB: PSNR {-10 * torch.log10(error):.2f} dB on a scene it has not seen")


if __name__ == "__main__":
    main()
