"""DynamicJSCC and SemAttJSCC as systems: what crosses the air, and what happens where some of it does not arrive.

frame, map ─▶ E_S, E_C ─▶ latent ═══════════════ analog ═══▶ D_C, D_S ─▶ frame_hat
       └────▶ coder ────▶ map ══ LDPC + QAM, a packet ═══▶──┘
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semcast.errors import BudgetError, InputError
from semcast.layers.block_classes import side_margin_db
from semcast.layers.blocks import pad_to
from semcast.layers.symbols import amplitude_of, amplitude_steps
from semcast.systems.base import Side, System
from semcast.systems.sematt.maps import MapCoder, class_map
from semcast.systems.sematt.networks import PaperCode, PaperConfig
from semcast.systems.sematt.small import SmallCode, SmallConfig
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
    Step,
    StepResult,
    as_complex,
    as_real,
)

MAP_LOST = 0.03  # of the maps in training, so that the receiver knows how to do without
_SCALE = "<bH"  # told SNR in half dB, amplitude in steps


def labels_of(system: System, step: Step) -> Tensor:
    """Labels (B, t, H, W) as a transmitter has them, -1 where it knows nothing: in training those of the data, otherwise as
    ``system.maps`` says.

    Raises:
        InputError: the true ones are to be sent, and these pictures have none.
    """
    found: Tensor | None = None
    if system.training or system.maps == "truth":
        found = step.labels.get("segmentation")
        if found is None and not system.training:
            raise InputError(f"{system.name} was to send the true maps, and these pictures have none; use predicted ones")
    elif system.segmenter is not None:
        found = system.segmenter(step.frames.flatten(0, 1)).unflatten(0, step.frames.shape[:2])
    return torch.full_like(step.frames[:, :, 0], -1, dtype=torch.int64) if found is None else found


class JsccState(NamedTuple):
    """One side: the session header."""

    fmt: Format


class SemAttSystem(System):
    """Both systems; they differ in ``config.extra`` and in whether there is a map.

    Streams: ``latent`` (analog); ``scale``, a packet of three bytes, of ``small``; ``map``, a packet, where there is one.

    Args:
        name: public name. preset: of the configuration. config: sizes.

    Attributes:
        maps: "predicted" by ``segmenter``, (N, 3, H, W) -> (N, H, W), or the "truth" that comes with the pictures; without
            either, all is unknown. map_mcs: modulation and coding of maps; None adapts, "qpsk-1/3" is the paper's.
    """

    frames_per_step = 1

    def __init__(self, name: str, preset: str, config: PaperConfig | SmallConfig) -> None:
        super().__init__()
        self.name, self.preset, self.config = name, preset, config
        self.code: PaperCode | SmallCode = PaperCode(config) if isinstance(config, PaperConfig) else SmallCode(config)
        self.map_mcs: str | None = None
        self.coder: MapCoder | None = None
        if config.sends_maps:
            self.maps = "predicted"
            self.free_streams = frozenset({"map"})
            self.coder = MapCoder(config.classes)

    def start(self, fmt: Format, side: Side) -> JsccState:
        return JsccState(fmt)

    # -- transmitter -----------------------------------------------------------------------------------------------------

    def encode(
        self, step: Step, state: JsccState, csi: Csi, budget: Budget, *, generator: torch.Generator
    ) -> tuple[Payload, JsccState, Aux]:
        frames = pad_to(step.frames.flatten(0, 1), self.code.multiple)
        classes = self._look(step, frames)
        mcs = budget.robust_mcs(side_margin_db(float(csi.snr_db.mean())))
        packets: dict[str, Packet] = {}
        if self.coder is not None and not self.training:
            packets["map"] = Packet(self.coder.encode(classes[0].cpu().numpy()), mcs=self.map_mcs)
        uses = budget.uses - (0 if self.training else self._price(packets, mcs, budget))
        if uses < 1:
            raise BudgetError(
                f"{self.name}:{self.preset} needs {sum(len(p.data) for p in packets.values())} bytes of side information a "
                f"frame and has no channel uses left for the picture at CBR {budget.cbr:g}; raise --cbr"
            )
        count = min(2 * uses, self.code.capacity(*frames.shape[-2:]) // 2 * 2)
        symbols, told = self.code.encode(frames, classes, csi.snr_db.to(frames.device), count)
        latent = Analog(as_complex(symbols))
        if self.training:
            return self._stand_ins(classes, told) | {"latent": latent}, state, {}
        if told.shape[1]:
            half_db, steps = round(2 * told[0, 0].item()), int(amplitude_steps(told[:, 1])[0])
            packets["scale"] = Packet(struct.pack(_SCALE, half_db, steps), mcs=mcs)
        return {name: Digital([[packet]]) for name, packet in packets.items()} | {"latent": latent}, state, {}

    def _look(self, step: Step, padded: Tensor) -> Tensor:
        """The map (B, h, w) of what is to be sent; noughts where the system has none."""
        grid = len(padded), padded.shape[-2] // self.code.cell, padded.shape[-1] // self.code.cell
        if self.coder is None:
            return torch.zeros(grid, dtype=torch.int64, device=padded.device)
        labels = labels_of(self, step).flatten(0, 1)
        return class_map(labels, self.code.cell, self.code.multiple, self.code.classes)

    def _price(self, packets: Mapping[str, Packet], mcs: str | None, budget: Budget) -> int:
        """Channel uses of the packets that are charged."""
        scale = budget.uses_for_packets([struct.calcsize(_SCALE)], mcs) if self.code.told_numbers else 0
        charged = [p for name, p in packets.items() if name not in budget.assumed_free]
        return scale + sum(budget.uses_for_packets([len(p.data)], p.mcs) for p in charged)

    def _stand_ins(self, classes: Tensor, told: Tensor) -> dict[str, Analog | Digital]:
        """What the packets would tell, as numbers."""
        out: dict[str, Analog | Digital] = {}
        if told.shape[1]:
            bits = torch.full((len(told), 1), 8.0 * struct.calcsize(_SCALE))
            out["scale"] = Digital(proxy=told[:, None], est_bits=bits)
        if self.coder is not None:
            bits = torch.tensor([[self.coder.bits(one)] for one in classes.cpu().numpy()])
            out["map"] = Digital(proxy=classes.float().flatten(1)[:, None], est_bits=bits)
        return out

    # -- receiver --------------------------------------------------------------------------------------------------------

    def decode(
        self, received: Received, state: JsccState, n_frames: int, *, generator: torch.Generator
    ) -> tuple[Decoded, JsccState, Aux]:
        rx, fmt = received["latent"], state.fmt
        assert isinstance(rx, RxAnalog)
        height, width = (-(-side // self.code.multiple) * self.code.multiple for side in (fmt.height, fmt.width))
        x, noise = rx.equalised()
        noise_var = noise.mean(1)
        symbols = as_real(x)
        count = min(symbols.shape[1], self.code.capacity(height, width))
        classes, map_lost = self._read_map(received.get("map"), rx, (height, width), generator)
        told, scale_lost = self._read_scale(received.get("scale"), noise_var)
        frames = self.code.decode(symbols[:, :count], noise_var, classes, told, count)[..., : fmt.height, : fmt.width]
        if not self.training:
            frames = torch.nan_to_num(frames).clamp(0, 1)
        lost = n_frames if map_lost or scale_lost else 0
        aux: Aux = {"classes": classes, "map_lost": map_lost}
        return Decoded(frames=frames.unflatten(0, (-1, n_frames)), concealed=lost), state, aux

    def _read_map(self, stream: object, rx: RxAnalog, size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, bool]:
        """The map (B, h, w), all unknown where it was lost or is damaged, and whether it was."""
        h, w = (side // self.code.cell for side in size)
        blank = torch.full((len(rx.y), h, w), self.code.classes - 1, dtype=torch.int64, device=rx.y.device)
        if self.coder is None:
            return blank, False
        if isinstance(stream, RxProxy):
            kept = torch.rand(len(blank), generator=generator) >= MAP_LOST
            there = (stream.arrived[:, 0] & kept.to(blank.device))[:, None, None]
            return torch.where(there, stream.proxy[:, 0].round().long().reshape(blank.shape), blank), False
        data = stream[0][0] if isinstance(stream, list) and stream and stream[0] else None
        found = None if data is None else self.coder.decode(data, h, w)
        return (blank, True) if found is None else (torch.from_numpy(found)[None].to(blank.device), False)

    def _read_scale(self, stream: object, noise_var: Tensor) -> tuple[Tensor, bool]:
        """Told SNR and amplitude (B, 2), or the measured SNR and 1, which is common; and whether the packet was lost."""
        guess = torch.stack([-10 * noise_var.log10(), torch.ones_like(noise_var)], 1)
        if not self.code.told_numbers:
            return guess[:, :0], False
        if isinstance(stream, RxProxy):
            return torch.where(stream.arrived, stream.proxy[:, 0], guess), False
        data = stream[0][0] if isinstance(stream, list) and stream and stream[0] else None
        if data is None or len(data) != struct.calcsize(_SCALE):
            return guess, True
        half_db, steps = struct.unpack(_SCALE, data)
        amplitude = float(amplitude_of(torch.tensor(steps)))
        return torch.tensor([[half_db / 2, amplitude]], device=noise_var.device), False

    # -- training --------------------------------------------------------------------------------------------------------

    def initialise(self, frames: Tensor, labels: Tensor) -> None:
        """Fit what is closed form to pictures (N, 3, H, W), and the coder of maps to labels (P, H, W), the first N theirs."""
        maps = torch.zeros(len(frames), 1, 1, dtype=torch.int64)
        if self.coder is not None:
            maps = class_map(labels, self.code.cell, self.code.multiple, self.code.classes)
            self.coder.fit(maps)
        if isinstance(self.code, SmallCode):
            frames = pad_to(frames, self.code.multiple)
            h, w = (side // self.code.cell for side in frames.shape[-2:])
            self.code.linear.fit(frames, maps[: len(frames)].expand(-1, h, w))

    def loss(self, run: Sequence[StepResult], goal: str, stage: Mapping[str, Any]) -> dict[str, Tensor]:
        """The mean square error, in hundredths of white's square."""
        (result,) = run
        assert result.decoded.frames is not None
        mse = (result.decoded.frames - result.step.frames).square().flatten(1).mean(1)  # eq. (7)
        psnr_db = -10 * torch.log10(mse.detach() + 1e-10)
        return {"loss": 100 * mse.mean(), "psnr_rgb_db": psnr_db.mean()}


# Departures from the papers
# - paper: batch normalisation behind convolutions, a first kernel of 7, a last one of 5, nearest-neighbour upsampling: figs.
#   1 and 2 do not say, and this is what gives the stated parameters and GFLOPs. "Baseline + convolutions" is one more residual
#   block in the place of every SemAtt; the source does not say what reference [7] adds.
# - E and Var of eq. (5) are those of the picture's region, as printed. A region's mean and scale do not survive that in preset
#   paper. In small they do: the closed form carries them past the blocks.
# - A is not multiplied out; the count of operations is that of sums over regions.
# - small: a closed-form code that blocks learn to add to, which knows means and variances of classes in the training pictures.
#   Symbols come in 16x16 blocks, maps and blocks work on cells of 8x8 pixels; one block in E_C, three in D_C; no normalisation
#   but SemAtt's; SNRMod also sees the rate. One checkpoint for all rates: K follows from the budget.
# - small: told SNR and amplitude are sent and charged; the paper leaves the networks to guess what normalisation takes away.
# - Maps are charged unless the study says otherwise. What packets take comes off the last of the K channels.
# - Maps go by adaptive modulation and coding; 4-QAM at rate 1/3, the paper's, is ``map_mcs = "qpsk-1/3"``.
# - A lost map is replaced by the unknown class everywhere, which 3 % of the maps in training are.
# - Training draws rates besides SNRs, takes crops of 192x192, and goes by a cosine instead of early stopping.
# - DynamicJSCC is the baseline that the paper makes of it: without its adaptive rate.
# - Every frame is a key frame here; the others (vid2vid): video.py.
