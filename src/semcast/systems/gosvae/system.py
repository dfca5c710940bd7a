"""Goal-oriented semantic VAE (GOS-VAE): a picture as indices of codewords, learned by imitating the receiver's task model.

Y.-C. Chao, Y. Chen, W. Wang, A. Wijesinghe, S. Wanninayaka, S. Zhang, Z. Ding, "Task-driven semantic quantization and imitation
learning for goal-oriented communications", 2025. Fig. 1:

    x ─▶ z_e ─▶ nearest codeword ─▶ z ─▶ range coder ─▶ packets ═ link ═▶ z ─▶ codewords z_q ─▶ decoder ─▶ x_hat
    │              codebook e                                    holes: predicted                           │
    └──▶ task model F (frozen) ─▶ S ──────── D_JS(S || S_hat), LPIPS(x, x_hat) ──────── S_hat ◀── F ◀───────┘   training only

``vq-vae``, ``autoencoder`` and ``vq-gan`` are the baselines: the same system with another loss, without a codebook, and with a
discriminator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast.errors import BudgetError
from semcast.layers.blocks import pad_to
from semcast.systems.base import Side, System
from semcast.systems.gosvae.codebook import Codebook, Quantised, k_means
from semcast.systems.gosvae.coding import IndexCoder, IndexCounts, unpack
from semcast.systems.gosvae.losses import CODEBOOK_TERM, Logits, distortion, quantisation_loss
from semcast.systems.gosvae.networks import (
    PaperConfig,
    PaperDecoder,
    PaperEncoder,
    PatchDiscriminator,
    SmallConfig,
    SmallDecoder,
    SmallEncoder,
)
from semcast.types import (
    Aux,
    Budget,
    Csi,
    Decoded,
    Digital,
    Format,
    Packet,
    Payload,
    Received,
    RxProxy,
    Step,
    StepResult,
)

STREAM = "indices"
STEPS_PER_HALVING, SMALLEST = 4, 8  # picture scales are 2^(-k / 4), k = 0 .. 8
LEAST_SIDE = 16  # of a scaled picture, in pixels
INITIAL_PICTURES, INITIAL_PATCHES = 240, 60_000


class TxState(NamedTuple):
    """The transmitter: session header, index coder, scale step of the last picture, and whether one was sent."""

    fmt: Format
    coder: IndexCoder | None
    scale: int = 0
    sent: bool = False


class RxState(NamedTuple):
    """The receiver: session header, index coder; its last picture (1, 3, H, W), and the indices behind it."""

    fmt: Format
    coder: IndexCoder | None
    shown: Tensor | None = None
    indices: Tensor | None = None


class GosVae(System):
    """The system of the figure above.

    Args:
        config: sizes. name, preset: as registered. terms: of the loss where a stage names none.
    """

    frames_per_step = 1

    def __init__(self, config: SmallConfig | PaperConfig, name: str, preset: str, terms: Mapping[str, float]) -> None:
        super().__init__()
        self.config, self.name, self.preset, self.terms = config, name, preset, dict(terms)
        self.codebook = Codebook(config.codewords, config.depth, learned=config.learned)
        self.counts = IndexCounts(config.codewords, config.planes)
        if isinstance(config, SmallConfig):
            self.encoder: nn.Module = SmallEncoder(config)
            self.decoder: nn.Module = SmallDecoder(config)
        else:
            self.encoder, self.decoder = PaperEncoder(config), PaperDecoder(config)
        self.discriminator = PatchDiscriminator(config.patch_gan) if config.patch_gan else None
        self._target: tuple[Logits, ...] = ()  # in a tuple: the task model is no part of this module

    # -- the picture and its indices -------------------------------------------------------------------------------------

    def analyse(self, x: Tensor) -> Tensor:
        """z_e of pictures (B, 3, H, W), padded to multiples of r: (B, D, planes h, w), the planes' rows alternating."""
        z = self.encoder(pad_to(x, self.config.r)).float()
        return z.unflatten(1, (self.config.planes, -1)).movedim(1, 3).flatten(2, 3)

    def synthesise(self, z_q: Tensor) -> Tensor:
        """The inverse direction: (B, D, planes h, w) -> pictures (B, 3, r h, r w)."""
        made: Tensor = self.decoder(z_q.unflatten(2, (-1, self.config.planes)).movedim(3, 1).flatten(1, 2))
        return made.float()

    def start(self, fmt: Format, side: Side) -> TxState | RxState:
        """State of one side; both make the same tables from the weights."""
        coder = None if self.training else IndexCoder(self.counts, self.codebook.vectors)
        return TxState(fmt, coder) if side == "tx" else RxState(fmt, coder)

    # -- transmitter -------------------------------------------------------------------------------------------------------

    def encode(
        self, step: Step, state: TxState, csi: Csi, budget: Budget, *, generator: torch.Generator
    ) -> tuple[Payload, TxState, Aux]:
        """Indices of one picture, at the largest scale whose packets the budget pays for.

        Raises:
            BudgetError: the first picture does not fit at a quarter of its size; later ones are skipped instead.
        """
        x = step.frames.flatten(0, 1)
        if self.training:
            z_e = self.analyse(x)
            q: Quantised = self.codebook(z_e)
            self.codebook.revive(z_e, q.indices, generator)
            self.counts.observe(q.indices, self.codebook.vectors)
            aux: Aux = {"z_e": z_e, "quantised": q}
            proxy = Digital(proxy=q.z_q[:, None], est_bits=self.counts.bits(q.indices)[:, None])
            return {STREAM: proxy}, state, aux
        coder = state.coder
        assert coder is not None
        k, need = max(0, state.scale - 1), 0
        while k <= SMALLEST:
            indices = self.codebook.nearest(self.analyse(scaled(x, k)))[0].cpu().numpy()
            packets = coder.slices(indices, k)
            need = budget.uses_for_packets([len(packet) for packet in packets], None)
            if need <= budget.uses:
                note = "" if k or need > 0.9 * budget.nominal_uses else "full size takes less than the budget"
                aux = {"scale": k, "payload_bytes": sum(map(len, packets)), "indices": indices, "rate_note": note}
                return {STREAM: Digital([[Packet(data) for data in packets]])}, TxState(state.fmt, coder, k, True), aux
            # uses go with the area: k grows by 2 for half of them
            k += max(1, math.floor(STEPS_PER_HALVING / 2 * math.log2(need / max(budget.uses, 1))))
        if not state.sent:
            height, width = state.fmt.height, state.fmt.width
            raise BudgetError(
                f"{self.name}:{self.preset} cannot send {width}x{height} at CBR {budget.cbr:.4g}: a quarter of the size takes "
                f"about {need / (3 * height * width):.4g} at this SNR; raise --cbr or --snr, or take a preset of larger r"
            )
        skipped: Aux = {"rate_note": "the budget of this step carries no picture: skipped"}
        return {STREAM: Digital([[]])}, state._replace(scale=SMALLEST), skipped

    # -- receiver ----------------------------------------------------------------------------------------------------------

    def decode(
        self, received: Received, state: RxState, n_frames: int, *, generator: torch.Generator
    ) -> tuple[Decoded, RxState, Aux]:
        """Pictures from the indices that arrived; holes are filled, and where nothing arrived the last picture stays."""
        stream = received.get(STREAM)
        height, width = state.fmt.height, state.fmt.width
        if isinstance(stream, RxProxy):
            made = self.synthesise(stream.proxy[:, 0])[..., :height, :width]
            return Decoded(frames=made.unflatten(0, (-1, n_frames))), state, {"arrived": stream.arrived[:, 0].float()}
        packets = stream[0] if isinstance(stream, list) and stream else []
        pieces = [piece for packet in packets if (piece := unpack(packet)) is not None and piece.scale <= SMALLEST]
        pieces = [piece for piece in pieces if piece.scale == pieces[0].scale]
        assert state.coder is not None
        size = scaled_size(height, width, pieces[0].scale) if pieces else (height, width)
        h, w = (-(-side // self.config.r) for side in size)
        map_, known = state.coder.gather(pieces, h * self.config.planes, w)
        device = self.codebook.vectors.device
        shown = state.shown if state.shown is not None else torch.full((1, 3, height, width), 0.5, device=device)
        if not known.any():
            return Decoded(frames=shown.expand(n_frames, -1, -1, -1)[None].contiguous(), concealed=n_frames), state, {}
        indices = torch.from_numpy(map_)[None].to(device)
        if not known.all():
            indices = self._conceal(indices, torch.from_numpy(known).to(device), state.indices)
        made = self.synthesise(self.codebook.lookup(indices))[..., : size[0], : size[1]]
        if size != (height, width):
            made = F.interpolate(made, (height, width), mode="bilinear", align_corners=False)
        made = made.clamp(0, 1)
        frames = made.expand(n_frames, -1, -1, -1)[None].contiguous()
        concealed = 0 if known.all() else n_frames
        return Decoded(frames=frames, concealed=concealed), RxState(state.fmt, state.coder, made, indices), {}

    def _conceal(self, indices: Tensor, known: Tensor, before: Tensor | None) -> Tensor:
        """Rows of (1, h, w) that are not ``known`` (h,): those of the picture before, else those between their neighbours."""
        if before is not None and before.shape == indices.shape:
            guess = before
        else:
            guess = self.codebook.nearest(between_rows(self.codebook.lookup(indices), known, self.config.planes))
        return torch.where(known[None, :, None], indices, guess)

    # -- training ------------------------------------------------------------------------------------------------------------

    def imitate(self, target: Logits) -> None:
        """Take the frozen task model F, (B, 3, H, W) in [0, 1] -> logits (B, m, H, W): the imitation target of eq. (5)."""
        self._target = (target,)

    def initialise(self, frames: Tensor) -> None:
        """Start as vector quantisation of patches (N, 3, H, W): principal components, k-means, and the way back.

        The published network starts at random; its codebook, too, as vectors that the encoder gives.
        """
        config, generator = self.config, torch.Generator().manual_seed(0)
        frames = frames[:: -(-len(frames) // INITIAL_PICTURES)]
        encoder, decoder = self.encoder, self.decoder
        if isinstance(encoder, SmallEncoder) and isinstance(decoder, SmallDecoder):
            patches = F.pixel_unshuffle(pad_to(frames, config.r) - 0.5, config.r).movedim(1, -1).flatten(0, -2)
            drawn = patches[torch.randperm(len(patches), generator=generator)[:INITIAL_PATCHES]]
            mean, channels = drawn.mean(0), config.planes * config.depth
            assert encoder.linear.bias is not None
            assert decoder.linear.bias is not None
            variance, vectors = torch.linalg.eigh((drawn - mean).T @ (drawn - mean) / len(drawn))
            basis = F.pad(vectors.flip(1)[:, :channels], (0, max(0, channels - len(vectors)))).T
            gain = (channels / variance.sum()).sqrt()  # entries of z_e have a mean square near 1
            with torch.no_grad():
                encoder.linear.weight.copy_((gain * basis)[..., None, None])
                encoder.linear.bias.copy_(-gain * basis @ mean)
                decoder.linear.weight.copy_((basis.T / gain)[..., None, None])
                decoder.linear.bias.copy_(mean)
        if config.learned:
            with torch.no_grad():
                points = torch.cat([self.analyse(part).movedim(1, -1).flatten(0, -2) for part in frames.split(16)])
                drawn = points[torch.randperm(len(points), generator=generator)[:INITIAL_PATCHES]]
                self.codebook.vectors.copy_(k_means(drawn, config.codewords, generator))

    def lr_scale(self, parameter: str) -> float:
        """An encoder that moves faster than codewords follow leaves most of them behind; the closed-form start moves least."""
        if not isinstance(self.config, SmallConfig):
            return 1.0
        if parameter.endswith(("linear.weight", "linear.bias")):
            return 0.05
        return 0.2 if parameter.startswith("encoder.") else 1.0

    def loss(self, run: Sequence[StepResult], goal: str, stage: Mapping[str, Any]) -> dict[str, Tensor]:
        """Eqs. (4)-(8): ``stage["terms"]`` maps names of :data:`losses.TERMS` to weights; the codebook's terms come on top."""
        result = run[0]
        assert result.decoded.frames is not None
        x, made = result.step.frames.flatten(0, 1), result.decoded.frames.flatten(0, 1)
        q: Quantised = result.aux["quantised"]
        terms = {str(name): float(weight) for name, weight in dict(stage.get("terms", self.terms)).items()}
        target = self._target[0] if self._target else None
        found = distortion(terms, x, made, target, self.discriminator)
        weights = {"discriminator": 1.0, CODEBOOK_TERM: 1.0, **terms}
        found[CODEBOOK_TERM] = quantisation_loss(result.aux["z_e"], q.e)
        loss = torch.stack([weights[name] * value for name, value in found.items()]).sum()
        psnr = (-10 * (made.detach() - x).square().flatten(1).mean(1).clamp_min(1e-10).log10()).mean()
        return {"loss": loss, "psnr_rgb_db": psnr, **{name: value.detach() for name, value in found.items()}}


def scaled_size(height: int, width: int, k: int) -> tuple[int, int]:
    """Sides at scale step ``k``: 2^(-k/4) of the picture's, rounded."""
    factor = 2 ** (-k / STEPS_PER_HALVING)
    return max(LEAST_SIDE, round(height * factor)), max(LEAST_SIDE, round(width * factor))


def scaled(x: Tensor, k: int) -> Tensor:
    """Pictures (B, 3, H, W) at scale step ``k``."""
    if k == 0:
        return x
    size = scaled_size(x.shape[-2], x.shape[-1], k)
    return F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)


def between_rows(codes: Tensor, known: Tensor, planes: int) -> Tensor:
    """Codewords (1, D, h, w) whose rows that are not ``known`` (h,) lie on a line between the nearest known of their plane.

    Beyond the first and the last known row these are repeated; slices hold whole places, so all planes miss the same.
    """
    rows = codes.unflatten(2, (-1, planes))
    here = known[::planes]
    at = torch.arange(len(here), device=codes.device)
    above = torch.where(here, at, -1).cummax(0).values
    below = torch.where(here, at, len(here)).flip(0).cummin(0).values.flip(0)
    above, below = torch.where(above < 0, below, above), torch.where(below == len(here), above, below)
    share = ((at - above) / (below - above).clamp_min(1)).view(-1, 1, 1)
    return torch.lerp(rows[:, :, above], rows[:, :, below], share.to(rows)).flatten(2, 3)
