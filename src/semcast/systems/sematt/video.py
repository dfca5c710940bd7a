"""SemAttJSCC over groups of pictures: key frames as ever, the frames between them synthesised from maps (fig. 1, lower branch).

    key frame ─▶ SemAttJSCC ═══════════════════════════════▶ picture, map ──┐
    frame, map ─▶ coder ══ LDPC + QAM, a packet per frame ══▶ map ─▶ generator ─▶ frame_hat

A group begins with a key frame. Another one follows where the scene changes, and where the budget is more than one can hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semcast.errors import InputError
from semcast.layers.blocks import pad_to
from semcast.layers.motion import dense_flow
from semcast.layers.symbols import unit_power
from semcast.layers.warp import warp
from semcast.metrics.perceptual import lpips_loss
from semcast.systems.base import Side, System
from semcast.systems.sematt.following import (
    GRIDS,
    LIMIT,
    MOST_FRAMES,
    NO_MAP,
    PER_PIXEL,
    Following,
    FollowingMapCoder,
    MeshCoder,
    coarser,
    finer,
    pack,
    unpack,
)
from semcast.systems.sematt.generator import EIGHTH, Generator, GeneratorConfig, carried_on, enlarged, motion_of_maps
from semcast.systems.sematt.maps import Map, class_map
from semcast.systems.sematt.system import SemAttSystem, labels_of
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
)

MESH_CELL = 48
CUT = 0.12  # mean difference of means of 8x8 pixels from which on two frames are of different scenes
FINE_SHARE, LARGEST_SHARE = 0.05, 0.3  # of a group's channel uses that maps may take, for a finer grid, and at all
LOST = 0.1  # of the packets in training, so that the generator knows how to do without
TRAINED_GRIDS = (0.6, 0.3, 0.1)  # shares of the grids in training


@dataclass(frozen=True)
class VideoConfig:
    """The shipped system.

    Attributes:
        gop: frames of a group. generator: sizes. mesh: whether vectors of motion are sent beside the map, one for every cell of
            48x48 pixels; without, maps only, as in the paper.
    """

    gop: int = 4
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    mesh: bool = False


@dataclass
class TxState:
    """The transmitter's own: session header, the key-frame system's, the last key frame (B, 3, H, W), how long ago it was."""

    fmt: Format
    key: Any
    before: Tensor | None = None
    gap: int = 1


@dataclass
class RxState:
    """The receiver's own.

    Attributes:
        fmt: session header. key: the key-frame system's. picture, classes: the last key frame as received, padded, and its map
            (B, h, w). map_lost: whether the latter is not there. since: frames since then. before, gap: the key picture before
            it, where it shows the same scene, and the frames between the two. moved, doubt: the flow between them and how
            badly they agree under it. snr_db: (B,) of the last key frame.
    """

    fmt: Format
    key: Any
    picture: Tensor | None = None
    classes: Tensor | None = None
    map_lost: bool = True
    since: int = 0
    before: Tensor | None = None
    gap: int = 1
    moved: Tensor | None = None
    doubt: Tensor | None = None
    snr_db: Tensor | None = None


class Told(NamedTuple):
    """What arrived about a frame.

    Attributes:
        now: its map (B, M, h, w), one-hot. mesh: (B, 2, mh, mw) in half pixels. moves: (B,) 1 where the motion of the maps
            is to be taken, else 0. Each None where it is not known.
    """

    now: Tensor | None = None
    mesh: Tensor | None = None
    moves: Tensor | None = None


class SemAttVideo(System):
    """SemAttJSCC with frames that are not key frames.

    Streams: those of the key-frame system, prefixed ``key0.``, and for further key frames of a group with their place in it;
    ``map``, a packet for every frame but the first.

    Args:
        preset: of the configuration. config: sizes. key: the key-frame system, which knows maps.

    Attributes:
        generates: whether the receiver synthesises; without, it repeats the last key frame. sends_maps: whether anything is
            told of frames that are not key frames.
    """

    name = "sematt-video"
    key_name = "sematt-jscc:small"

    def __init__(self, preset: str, config: VideoConfig, key: SemAttSystem) -> None:
        super().__init__()
        if config.gop > MOST_FRAMES:
            raise InputError(f"a group has at most {MOST_FRAMES} frames, not {config.gop}")
        self.preset, self.config, self.frames_per_step = preset, config, config.gop
        self.key: SemAttSystem = key
        self.maps = "predicted"
        self.free_streams = frozenset({"map", *(f"key{i}.map" for i in range(config.gop))})
        self.generates = self.sends_maps = True
        self.coder = FollowingMapCoder(config.generator.classes)
        self.mesh_coder = MeshCoder()
        self.generator = Generator(config.generator)

    def start(self, fmt: Format, side: Side) -> TxState | RxState:
        return TxState(fmt, self.key.start(fmt, "tx")) if side == "tx" else RxState(fmt, self.key.start(fmt, "rx"))

    # -- transmitter -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(
        self, step: Step, state: TxState, csi: Csi, budget: Budget, *, generator: torch.Generator
    ) -> tuple[Payload, TxState, Aux]:
        labels = labels_of(self, step)
        classes = class_map(labels.flatten(0, 1), GRIDS[0], self.key.code.multiple, self.coder.classes)
        classes = classes.unflatten(0, labels.shape[:2])
        streams: dict[str, Analog | Digital] = {}
        if self.training:
            places, left = [0], budget.uses
            if classes.shape[1] > 1:
                streams["map"] = self._stand_ins(step.frames, classes, state, generator)
        else:
            places, packets = self._plan(step.frames[0], classes[0], budget, state)
            sizes = [len(packet.data) for packet in packets]
            charged = bool(sizes) and "map" not in budget.assumed_free
            left = budget.uses - (budget.uses_for_packets(sizes, None) if charged else 0)
            if packets:
                streams["map"] = Digital([packets])
        state.before, state.gap = step.frames[:, places[-1]], step.frames.shape[1] - places[-1]
        self.key.maps = "truth"  # as this transmitter has it
        each = left // len(places)
        for place in places:
            one = Step(step.frames[:, place : place + 1], {"segmentation": labels[:, place : place + 1]})
            uses = replace(budget, uses=each, nominal_uses=each)
            payload, state.key, _ = self.key.encode(one, state.key, csi, uses, generator=generator)
            streams |= {f"key{place}.{name}": unit_power(stream) for name, stream in payload.items()}
        aux: Aux = {"gop": step.frames.shape[1]}
        if each > self._most_uses(step.frames):
            aux["rate_note"] = f"{self.name} takes less than the budget: its key frames hold no more"
        return streams, state, aux

    def _most_uses(self, frames: Tensor) -> int:
        """Channel uses that a key frame can hold, without its packets."""
        height, width = (-(-side // self.key.code.multiple) * self.key.code.multiple for side in frames.shape[-2:])
        return self.key.code.capacity(height, width) // 2

    def _plan(self, frames: Tensor, classes: Tensor, budget: Budget, state: TxState) -> tuple[list[int], list[Packet]]:
        """Places of the key frames in a group (t, 3, H, W) with maps (t, h, w), and the packets of all frames but the first.

        Maps go on the finest grid that leaves enough to the key frames; where none does, nothing is told, not even further
        key frames.
        """
        apart = math.ceil(len(frames) / max(1, math.ceil(budget.uses / self._most_uses(frames))))
        places = [0]
        for i in range(1, len(frames)):
            if i - places[-1] >= apart or bool(other_scene(frames[i : i + 1], frames[i - 1 : i])):
                places.append(i)
        if len(frames) == 1 or not self.sends_maps:
            return [0], []
        past = {0: (state.before, state.gap)} | {b: (frames[a : a + 1], b - a) for a, b in pairwise(places)}
        moved = {key: self._moved(frames[key : key + 1], before) for key, (before, _) in past.items()}
        meshes = {}
        for i in range(1, len(frames)):
            if self.config.mesh and i not in places:
                meshes[i] = self.mesh_coder.encode(self._mesh(frames[i], frames[max(p for p in places if p < i)]))
        for level in range(len(GRIDS)):
            packets = []
            for i in range(1, len(frames)):
                key = max(p for p in places if p <= i)
                if key == i:
                    packets.append(Packet(pack(Following(i, NO_MAP), self.config.mesh)))
                    continue
                now, before = (coarser(classes[j : j + 1], GRIDS[level] // GRIDS[0], self.coder.classes) for j in (i, key))
                coded = self.coder.encode(now[0].cpu().numpy(), before[0].cpu().numpy(), level)
                told = finer(now, GRIDS[level] // GRIDS[0], (classes.shape[1], classes.shape[2]))
                motion = moved[key]
                goes_on = None if motion is None else carried_on(motion, (i - key) / past[key][1])
                moves = bool(self._moves(frames[key : key + 1], frames[i : i + 1], classes[key : key + 1], told, goes_on))
                packets.append(Packet(pack(Following(key, level, meshes.get(i, b""), coded, moves), self.config.mesh)))
            uses = budget.uses_for_packets([len(packet.data) for packet in packets], None)
            if uses <= (FINE_SHARE if level < len(GRIDS) - 1 else LARGEST_SHARE) * budget.uses:
                return places, packets
        return [0], []

    def _moved(self, key: Tensor, before: Tensor | None) -> Tensor | None:
        """How key frames (B, 3, H, W) moved since those before them, where they show the same scene, (B, 2, H', W')."""
        if before is None or not (self.training or not bool(other_scene(key, before))):
            return None
        return dense_flow(pad_to(key, self.key.code.multiple), pad_to(before, self.key.code.multiple))

    def _moves(self, key: Tensor, frame: Tensor, before: Tensor, now: Tensor, goes_on: Tensor | None) -> Tensor:
        """Whether the motion from maps to maps (B, h, w) brings key frames (B, 3, H, W) closer to frames than that which goes
        on does, None being no motion; (B,) bool."""
        key, frame = (pad_to(x, self.key.code.multiple) for x in (key, frame))
        told = warp(key, map_flow(one_hot(before, self.coder.classes), one_hot(now, self.coder.classes)))
        rival = key if goes_on is None else warp(key, goes_on)
        found: Tensor = (told - frame).square().flatten(1).mean(1) < (rival - frame).square().flatten(1).mean(1)
        return found

    def _mesh(self, frame: Tensor, key: Tensor) -> Map:
        """Median motion (h, w, 2) of every cell of a frame (3, H, W) against the key frame, in half pixels."""
        cell = MESH_CELL
        flow = F.pad(
            dense_flow(frame[None], key[None]), (0, -frame.shape[-1] % cell, 0, -frame.shape[-2] % cell), mode="replicate"
        )
        cells = flow[0].unfold(1, cell, cell).unfold(2, cell, cell).flatten(3).median(-1).values
        found: Map = (PER_PIXEL * cells).round().clamp(-LIMIT, LIMIT).long().movedim(0, -1).cpu().numpy()
        return found

    def _stand_ins(self, frames: Tensor, classes: Tensor, state: TxState, generator: torch.Generator) -> Digital:
        """What packets would tell about all frames but the first, as numbers: map, mesh, and whether the map moves, flat."""
        batch, t = classes.shape[:2]
        level = int(torch.multinomial(torch.tensor(TRAINED_GRIDS), 1, generator=generator))
        times = GRIDS[level] // GRIDS[0]
        coarse = coarser(classes.flatten(0, 1), times, self.coder.classes)
        maps = finer(coarse, times, (classes.shape[2], classes.shape[3])).unflatten(0, (batch, t))
        told = maps[:, 1:].flatten(2).float()
        kept = coarse.unflatten(0, (batch, t)).cpu().numpy()
        bits = [[8 + self.coder.bits(one[i], one[0], level) for i in range(1, t)] for one in kept]
        if self.config.mesh:
            coder = self.mesh_coder
            meshes = [[self._mesh(one[i], one[0]) for i in range(1, t)] for one in frames]
            bits = [[b + 8 * len(coder.encode(m)) for b, m in zip(*row, strict=True)] for row in zip(bits, meshes, strict=True)]
            made = [[coder.mesh(coder.symbols(mesh)).reshape(-1) for mesh in row] for row in meshes]
            told = torch.cat([told, torch.from_numpy(np.array(made)).float().to(told.device)], 2)
        moved, moves = self._moved(frames[:, 0], state.before), []
        for i in range(1, t):
            goes_on = None if moved is None else carried_on(moved, i / state.gap)
            moves.append(self._moves(frames[:, 0], frames[:, i], classes[:, 0], maps[:, i], goes_on).float())
        return Digital(proxy=torch.cat([told, torch.stack(moves, 1)[..., None]], 2), est_bits=torch.tensor(bits))

    # -- receiver --------------------------------------------------------------------------------------------------------

    def decode(
        self, received: Received, state: RxState, n_frames: int, *, generator: torch.Generator
    ) -> tuple[Decoded, RxState, Aux]:
        height, width = state.fmt.height, state.fmt.width
        told = self._read(received.get("map"), n_frames)
        places = {0, *(f.key for f in told.values() if f.key < n_frames and f"key{f.key}.latent" in received)}
        concealed, shown, flows = 0, [], []
        for i in range(n_frames):
            if i in places:
                inner = {name.removeprefix(f"key{i}."): x for name, x in received.items() if name.startswith(f"key{i}.")}
                concealed += self._receive_key(inner, state, generator)
                assert state.picture is not None
                shown.append(state.picture)
                flows.append(torch.zeros_like(state.picture[:, :2]))
                continue
            assert state.picture is not None
            state.since += 1
            of_frame = self._told_now(received.get("map"), told.get(i), i, state, generator)
            concealed += int(of_frame.now is None)
            if self.generates:
                picture, flow = self._synthesise(state, of_frame)
                shown.append(picture if self.training else torch.nan_to_num(picture).clamp(0, 1))
                flows.append(flow)
            else:
                shown.append(state.picture)
        frames = torch.stack(shown, 1)[..., :height, :width]
        aux: Aux = {"flows": torch.stack(flows, 1)[..., :height, :width]} if self.training else {}
        return Decoded(frames=frames, concealed=concealed), state, aux

    def _read(self, stream: object, n_frames: int) -> dict[int, Following]:
        """The packets that arrived, by the place of their frame."""
        if not isinstance(stream, list) or not stream:
            return {}
        found = {i: unpack(data, self.config.mesh) for i, data in enumerate(stream[0][: n_frames - 1], 1) if data}
        return {i: one for i, one in found.items() if one is not None and one.key <= i}

    @torch.no_grad()
    def _receive_key(self, received: Mapping[str, Any], state: RxState, generator: torch.Generator) -> int:
        """The key-frame system's part; what it says of concealment."""
        decoded, state.key, aux = self.key.decode(received, state.key, 1, generator=generator)
        assert decoded.frames is not None
        before, picture = state.picture, pad_to(decoded.frames[:, 0].clamp(0, 1), self.key.code.multiple)
        same = before is not None and (self.training or not bool(other_scene(picture, before)))
        state.before, state.gap = (before if same else None), state.since + 1
        state.picture, state.classes, state.map_lost, state.since = picture, aux["classes"], aux["map_lost"], 0
        state.moved = state.doubt = None
        latent = received["latent"]
        assert isinstance(latent, RxAnalog)
        state.snr_db = -10 * latent.equalised()[1].mean(1).log10()
        return decoded.concealed

    def _told_now(self, stream: object, found: Following | None, at: int, state: RxState, generator: torch.Generator) -> Told:
        """What arrived about the frame at this place."""
        assert state.classes is not None
        size = (state.classes.shape[1], state.classes.shape[2])
        mesh_size = self._mesh_size(state)
        if isinstance(stream, RxProxy):
            kept = stream.arrived[:, at - 1] & (torch.rand(len(stream.arrived), generator=generator) >= LOST).to(
                stream.arrived.device
            )
            told = stream.proxy[:, at - 1]
            now = one_hot(told[:, : size[0] * size[1]].round().long().unflatten(1, size), self.coder.classes)
            vectors = told[:, size[0] * size[1] : -1]
            mesh = vectors.unflatten(1, (*mesh_size, 2)).movedim(-1, 1) if self.config.mesh else None
            return Told(now * kept[:, None, None, None], mesh, told[:, -1] * kept)
        if found is None or found.level == NO_MAP or at - found.key != state.since or state.map_lost:
            return Told()
        times = GRIDS[found.level] // GRIDS[0]
        before = coarser(state.classes, times, self.coder.classes)
        one = self.coder.decode(found.map, before[0].cpu().numpy(), found.level)
        made = self.mesh_coder.decode(found.mesh, *mesh_size) if self.config.mesh else None
        mesh = None if made is None else torch.from_numpy(made).float().movedim(-1, 0)[None].to(before.device)
        if one is None:
            return Told(None, mesh)
        now = one_hot(finer(torch.from_numpy(one)[None].to(before.device), times, size), self.coder.classes)
        return Told(now, mesh, torch.full((1,), float(found.moves), device=now.device))

    def _mesh_size(self, state: RxState) -> tuple[int, int]:
        return -(-state.fmt.height // MESH_CELL), -(-state.fmt.width // MESH_CELL)

    def _synthesise(self, state: RxState, of_frame: Told) -> tuple[Tensor, Tensor]:
        """The frame ``state.since`` frames after the key picture, and its flow to it."""
        assert state.picture is not None
        assert state.classes is not None
        assert state.snr_db is not None
        picture, (now, mesh, moves) = state.picture, of_frame
        before = one_hot(state.classes, self.coder.classes)
        if state.map_lost and not self.training:
            before = torch.zeros_like(before)
        if state.before is not None and state.moved is None:
            state.moved = dense_flow(picture, state.before)
            state.doubt = (picture - warp(state.before, state.moved)).abs().mean(1, keepdim=True)
        flow, doubt = torch.zeros_like(picture[:, :2]), torch.full_like(picture[:, :1], -1.0)
        if state.moved is not None and state.doubt is not None:
            flow = carried_on(state.moved, state.since / state.gap)
            doubt = warp(state.doubt, flow)
        if mesh is not None:
            size = (picture.shape[-2], picture.shape[-1])
            flow = enlarged(mesh / PER_PIXEL, MESH_CELL)[..., : size[0], : size[1]]
            flow = F.pad(flow, (0, size[1] - flow.shape[-1], 0, size[0] - flow.shape[-2]), mode="replicate")
            doubt = torch.zeros_like(doubt)
        elif now is not None and moves is not None and bool(moves.any()):
            taken = moves[:, None, None, None]
            flow = flow + taken * (map_flow(before, now) - flow)
            doubt = doubt - taken * (doubt + 1)
        now = torch.zeros_like(before) if now is None else now
        told = torch.stack([torch.full_like(state.snr_db, state.since / 4), state.snr_db.clamp(-10, 40) / 20], 1)
        frame, flow = self.generator(picture, flow, doubt, before, now, told)
        return frame, flow

    # -- training --------------------------------------------------------------------------------------------------------

    def initialise(self, frames: Tensor, labels: Tensor) -> None:
        """Count what maps (N, t, H, W) do within a group, and how vectors of groups (P, t, 3, H, W) are spread."""
        t = labels.shape[1]
        classes = class_map(labels.flatten(0, 1), GRIDS[0], self.key.code.multiple, self.coder.classes).unflatten(
            0, labels.shape[:2]
        )
        now = torch.cat([classes[:, i] for i in range(1, t)])
        self.coder.fit(now, classes[:, 0].repeat(t - 1, 1, 1))
        self.mesh_coder.fit([self._mesh(group[i], group[0]) for group in frames for i in range(1, t)])

    def loss(self, run: Sequence[StepResult], goal: str, stage: Mapping[str, Any]) -> dict[str, Tensor]:
        """Four times the mean absolute difference of the frames that were synthesised; and as ``stage`` weighs them LPIPS
        (``lpips``), and where ``flow`` is among the labels the distance of flows in pixels (``flow``)."""
        shown, frames, flows, truths = [], [], [], []
        for result in run:
            assert result.decoded.frames is not None
            shown.append(result.decoded.frames[:, 1:].flatten(0, 1))
            frames.append(result.step.frames[:, 1:].flatten(0, 1))
            if "flow" in result.step.labels:
                truths.append(flow_to_first(result.step.labels["flow"])[:, 1:].flatten(0, 1))
                flows.append(result.aux["flows"][:, 1:].flatten(0, 1))
        x_hat, x = torch.cat(shown), torch.cat(frames)
        mse = (x_hat.detach() - x).square().flatten(1).mean(1)
        losses = {"l1": (x_hat - x).abs().mean(), "psnr_rgb_db": (-10 * torch.log10(mse + 1e-10)).mean()}
        losses["loss"] = 4 * losses["l1"]
        if stage.get("lpips"):
            losses["lpips"] = lpips_loss(x, x_hat)
            losses["loss"] = losses["loss"] + float(stage["lpips"]) * losses["lpips"]
        if stage.get("flow") and truths:
            losses["flow"] = (torch.cat(flows) - torch.cat(truths)).abs().sum(1).mean()
            losses["loss"] = losses["loss"] + float(stage["flow"]) * losses["flow"]
        return losses


def other_scene(a: Tensor, b: Tensor) -> Tensor:
    """Whether two frames (1, 3, H, W) are of different scenes, by their means of 8x8 pixels."""
    return (F.avg_pool2d(a, 8, ceil_mode=True) - F.avg_pool2d(b, 8, ceil_mode=True)).abs().mean() > CUT


def map_flow(before: Tensor, now: Tensor) -> Tensor:
    """The motion of one-hot maps (B, M, h, w) as a flow in pixels (B, 2, 8 h, 8 w)."""
    return enlarged(EIGHTH * motion_of_maps(before, now), EIGHTH)


def one_hot(classes: Tensor, count: int) -> Tensor:
    """(B, h, w) int64 -> (B, M, h, w) float32."""
    return F.one_hot(classes.clamp(0, count - 1), count).movedim(-1, 1).float()


def flow_to_first(flow: Tensor) -> Tensor:
    """Flows (B, t, 2, H, W) between neighbours, as the labels have them, chained: ``frame[i](p) = frame[0](p + f[i](p))``."""
    found = [torch.zeros_like(flow[:, 0])]
    for i in range(1, flow.shape[1]):
        found.append(warp(found[-1], -flow[:, i]) - flow[:, i])
    return torch.stack(found, 1)


# Departures from the paper
# - vid2vid has three scales, networks of its own for the foreground and for flow, and discriminators; the generator here is
#   small, learns by L1, LPIPS and flow, and starts from the motion of the last two key pictures, carried on.
# - It draws on the last key picture, not on the last synthesised frame: errors do not add up, and nothing is sampled twice.
# - The paper says neither how long a group is nor how maps of other frames are coded. Four frames; maps follow the key frame's
#   under a static model, on the finest of three grids that takes at most 5 % of the group's channel uses.
# - Motion is that of the last two key pictures, carried on, or an affine one that is fitted to the maps of key frame and frame.
#   A bit of the head says which, and the transmitter tries both on the source.
# - A group that has more to spend than its key frame can hold has more key frames; a change of scenes begins with one.
# - mesh (preset motion): vectors of motion beside the map, estimated on the source, coded and charged. The paper has maps only.
