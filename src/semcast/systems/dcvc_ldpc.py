"""Separate coding with the parts of ``dvst:small``: its motion, transforms and classes, but as bytes over LDPC and QAM.

    x_t ─(-)─▶ KLT ─▶ y_t ─▶ quantise ─▶ q_t ─▶ range coder, Laplace | z_t ─▶ packets ─▶ link: CRC, LDPC, QAM
          ▲            └─▶ z_t = class of block ─┐
    x_hat_t-1 ─▶ warp ─▶ c_t                     ├─▶ range coder ─▶ packet of a few frames
          └─ motion of blocks ───────────────────┘
    packets ─▶ q_t, z_t, motion ─▶ x_hat_t = c_t + KLT^T(step q_t)

It stands where papers put DCVC + LDPC (J. Li, B. Li, Y. Lu, "Deep contextual video compression", NeurIPS 2021) beside DVST:
here motion, transform and entropy model are the same on both sides, so that the difference is what the joint code buys. The
entropy model is forward-adaptive: the class of a block, told ahead, names the variances that its numbers are coded under.
Nothing is trained; statistics are those in the checkpoints of ``dvst:small`` and ``ntscc:small``, whose networks are left out.

References are digital: both ends have the same until a packet is lost, and again from the next I-frame on. Every group begins
with one, so there is nothing that a receiver could ask for earlier: acknowledgements come when a group is over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from semcast.errors import BudgetError
from semcast.layers import block_motion, coefficient_coder
from semcast.layers.allocation import STEPS_PER_DB
from semcast.layers.block_classes import BLOCK, decode_classes, encode_classes
from semcast.layers.block_code import QUARTER, WHOLE, BlockCode, parts
from semcast.layers.blocks import pad_to
from semcast.layers.class_choice import choose_quarters, lengths, mean_context, refine
from semcast.layers.coefficient_coder import BIT_PRICE, LEAST_DEPTH
from semcast.layers.side_coder import (
    Tables,
    decode_maps,
    decode_motion,
    earlier_context,
    encode_run,
    groups,
    spatial_context,
)
from semcast.layers.two_scales import TwoScaleCode
from semcast.systems.base import Side, System, SystemSpec
from semcast.systems.conditions import Condition, load_condition
from semcast.types import Aux, Budget, Csi, Decoded, Digital, Format, Packet, Payload, Received, Step

STREAM = "video"
RUN = 4
"""P-frames whose motion and classes share a packet, as in ``dvst:small``."""
FINEST, COARSEST = -220, 35
"""Squared steps, in quarter decibels."""
OFFSET_DB = 1.5
"""By how much the squared step of P-frames is larger, per doubling of the group."""
ELASTICITY = 0.04
"""Bytes fall about so much, in nepers, per quarter decibel of squared step."""
CLOSE_ENOUGH, AIM = 0.985, 0.993
"""Shares of the budget at which the search for steps ends, and that it heads for."""
MAX_TRIALS = 12
FIRST_STEP = -80
"""Where the search begins in the first group."""


class Coded(NamedTuple):
    """One frame as the transmitter made it.

    Attributes:
        motion: of its blocks, None in an I-frame. classes: (n,) int64 of all rows that its code has. step: squared, in quarter
            decibels. numbers: (n,) int64 in the order of :func:`coefficient_coder.layout`, trailing zeros left out. depths:
            (n,). picture: (3, H, W) that both ends have then.
    """

    motion: block_motion.Motion | None
    classes: np.ndarray
    step: int
    numbers: np.ndarray
    depths: np.ndarray
    picture: Tensor


@dataclass
class TxState:
    """The transmitter's own: session header, and the last group's place on the scale of steps."""

    fmt: Format
    place: float | None = None


@dataclass
class RxState:
    """The receiver's own: session header, and the last frame shown."""

    fmt: Format
    last: Tensor | None = None


class DcvcLdpc(System):
    """One group of pictures at a time, as packets of one stream: classes of the I-frame, runs of motion and classes, numbers.

    Args:
        key: a system that brings the statistics: ``code`` and ``tables`` for P-frames, and ``key.code`` for I-frames.
        condition: frames of a group, and the longest packet.
    """

    name = "dcvc-ldpc"
    key_name = "dvst:small"
    follows_scenes = True

    def __init__(self, key: System, condition: Condition) -> None:
        super().__init__()
        self.key = key
        self.condition, self.frames_per_step = condition, condition.gop

    def start(self, fmt: Format, side: Side) -> TxState | RxState:
        return TxState(fmt) if side == "tx" else RxState(fmt)

    @property
    def _statistics(self) -> tuple[TwoScaleCode, BlockCode, Tables]:
        """Of I-frames, of P-frames, and tables of the latter's side information."""
        key: Any = self.key
        return key.key.code, key.code, key.tables

    # -- transmitter -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(
        self, step: Step, state: TxState, csi: Csi, budget: Budget, *, generator: torch.Generator
    ) -> tuple[Payload, TxState, Aux]:
        """Code the group at the finest steps that the budget allows.

        Raises:
            BudgetError: not even the coarsest fit, in the first group; later ones are skipped instead.
        """
        frames = pad_to(step.frames[0].float().cpu(), BLOCK)
        start = FIRST_STEP * len(frames) if state.place is None else round(state.place * len(frames))
        found = self._fit(frames, budget, start) if budget.uses > 0 else None
        if found is None:
            if state.place is None:
                raise BudgetError(
                    f"dcvc-ldpc cannot send {state.fmt.width}x{state.fmt.height} at CBR {budget.cbr:.4g}: its coarsest coding "
                    "takes more; raise --cbr or --snr"
                )
            return {STREAM: Digital([[]])}, state, {"rate_note": "the budget of this step carries no frame: skipped"}
        packets, place = found
        state.place = place / len(frames)
        return {STREAM: Digital([[Packet(data) for data in packets]])}, state, {}

    def _fit(self, frames: Tensor, budget: Budget, place: int) -> tuple[list[bytes], int] | None:
        """Packets that use the budget best, and their place on the scale of steps; None where nothing fits.

        The scale counts the steps of all frames together: from place to place, one frame's grows by a quarter decibel.
        """
        count = len(frames)
        over, under = FINEST * count - 1, COARSEST * count + 1  # what lies between is not known to be too much, or to fit
        best: tuple[list[bytes], int] | None = None
        for trial in range(MAX_TRIALS):
            if best is None and trial == MAX_TRIALS - 1:
                place = under - 1  # unlucky, not impossible: the coarsest settles it
            elif not over < place < under:
                place = (over + under) // 2
            packets = self.pack(self.encode_group(frames, [(place + turn) // count for turn in range(count)]))
            taken = budget.uses_for_packets([len(packet) for packet in packets], None)
            if taken > budget.uses:
                over = place
            else:
                best, under = (packets, place), place
            if under - over < 2 or CLOSE_ENOUGH * budget.uses <= taken <= budget.uses:
                break
            away = count * math.log(taken / (AIM * budget.uses)) / ELASTICITY
            place += max(1, math.ceil(away * (1 + trial / 2))) if taken > budget.uses else min(-1, math.ceil(away))
        return best

    def encode_group(self, frames: Tensor, steps: Sequence[int]) -> list[Coded]:
        """Frames (t, 3, H, W), each against the one before as both ends have it; ``steps`` are those of an I-frame."""
        coded: list[Coded] = []
        offset = round(OFFSET_DB * math.log2(len(frames)) * STEPS_PER_DB)
        for index, (frame, step) in enumerate(zip(frames, steps, strict=True)):
            before = coded[-1] if index else None
            step = min(step + offset, COARSEST) if index else step
            coded.append(self.encode_frame(frame, step, before, fresh=index % RUN == 1))
        return coded

    def encode_frame(self, frame: Tensor, step: int, before: Coded | None, *, fresh: bool = False) -> Coded:
        """One frame (3, H, W) at a squared step: intra, or against the frame before.

        Args:
            fresh: the frame opens a packet of side information, whose contexts do not reach beyond.
        """
        intra, inter, tables = self._statistics
        squared = 10 ** (step / (10 * STEPS_PER_DB))
        bit_price = BIT_PRICE * squared
        shape = frame.shape[1] // BLOCK, frame.shape[2] // BLOCK
        if before is None:
            code: BlockCode = intra
            motion, context = None, None
            rows, often, neighbours, earlier = intra.analyse(frame[None])[0], intra.tables()[0], mean_context, None
        else:
            code, often, group = inter, tables.classes, torch.from_numpy(groups(tables.split))
            last = None if fresh else before
            motion = block_motion.estimate(frame, before.picture, tables.motion, last.motion if last else None, bit_price)
            context = block_motion.compensate(before.picture[None], motion.field()[None])[0]
            rows = inter.analyse((frame - context)[None])[0]
            known = None if last is None else last.classes[: shape[0] * shape[1]].reshape(shape)
            earlier = torch.from_numpy(earlier_context(known, shape, group.numpy()))

            def neighbours(left: Tensor, up: Tensor) -> Tensor:
                return spatial_context(group[left], group[up])

        bits = bit_price * -torch.from_numpy(np.log2(often / often.sum(1, keepdims=True))).float()
        of_quarters = bit_price * lengths(code.often_quarters)
        chosen: list[Tensor] = []
        (whole, blocks), (_, quarters), *others = parts(code.grids(*shape), rows)
        cost = squared * block_costs(code, blocks, step, WHOLE)
        found, split = choose_quarters(squared * block_costs(code, quarters, step, QUARTER).unflatten(0, (-1, 4)), of_quarters)
        # What no coefficient of a whole block tells of, its quarters do.
        rest = quarters.square().sum(1).reshape(-1, 4).sum(1) - blocks.square().sum(1)
        cost = torch.cat([cost, (split - rest)[:, None]], 1).unflatten(0, shape)
        own = bits[whole.first : whole.last, whole.first : whole.last] if before is None else bits
        classes = refine(cost, own, (cost + own.mean(0)).argmin(-1), neighbours, earlier).flatten()
        quarter = found + code.blocks.kinds[QUARTER].first
        chosen += [classes, torch.where(classes[:, None] == code.split, quarter, code.split).flatten()]
        for grid, part in others:
            of = slice(grid.first, grid.last)
            cost = (squared * block_costs(code, part, step, len(code.blocks.kinds) - 1)).reshape(grid.height, grid.width, -1)
            chosen.append(refine(cost, bits[of, of], (cost + bits[of, of].mean(0)).argmin(-1)).flatten() + grid.first)
        classes = torch.cat(chosen)
        depth = (code.levels.long() - step)[classes]
        numbers, _ = coefficient_coder.quantise(code.blocks.rotate(rows, classes) / math.sqrt(squared), depth)
        order = coefficient_coder.layout(depth)
        coded = np.trim_zeros(numbers.flatten().numpy()[order.places].astype(np.int64), "b")
        picture = reconstruct(code, context, classes, shape, step, order.places, coded)
        return Coded(motion, classes.numpy(), step, coded, order.depths[: len(coded)], picture)

    def pack(self, group: Sequence[Coded]) -> list[bytes]:
        """Packets of a group: side information first, then every frame's numbers in as many packets as they need."""
        intra, _, tables = self._statistics
        h, w = (side // BLOCK for side in group[0].picture.shape[1:])
        packets = [encode_classes(group[0].classes, intra.grids(h, w), *intra.tables())]
        for begin in range(1, len(group), RUN):
            run = [(one.motion, one.classes) for one in group[begin : begin + RUN] if one.motion is not None]
            packets += encode_run(run, tables)
        for index, one in enumerate(group):
            bits = coefficient_coder.code_lengths(one.numbers, one.depths).cumsum()
            longest = 8 * (self.condition.packet_bytes - HEAD_BYTES - 8)
            parts = math.ceil(bits[-1] / longest) if len(bits) else 0
            cuts = [int(np.searchsorted(bits, bits[-1] * part / parts)) for part in range(1, parts)]
            for begin, end in zip([0, *cuts], [*cuts, len(one.numbers)], strict=True):
                if end > begin:
                    data = coefficient_coder.encode(one.numbers[begin:end], one.depths[begin:end])
                    packets.append(pack_head(Head(index, one.step, begin, end)) + data)
        return packets

    # -- receiver --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode(
        self, received: Received, state: RxState, n_frames: int, *, generator: torch.Generator
    ) -> tuple[Decoded, RxState, Aux]:
        """Decode what arrived. A frame without its motion and classes stands still, a group without its I-frame throughout; of
        numbers that are lost, zeros take the place."""
        height, width = state.fmt.height, state.fmt.width
        h, w = math.ceil(height / BLOCK), math.ceil(width / BLOCK)
        batches = received.get(STREAM)
        packets = batches[0] if isinstance(batches, list) and batches else []
        intra, inter, tables = self._statistics
        runs = math.ceil((n_frames - 1) / RUN)
        side = [*packets[: 1 + 2 * runs], *[None] * (1 + 2 * runs - len(packets))]
        numbers = gather(packets[1 + 2 * runs :])
        picture = None
        key = None if side[0] is None else decode_classes(side[0], intra.grids(h, w), *intra.tables())
        if key is not None:
            picture = self._decode_frame(intra, None, key, (h, w), numbers.get(0, []))
        shown, concealed = [picture], int(picture is None)
        for run, (data, more) in enumerate(zip(side[1::2], side[2::2], strict=True)):
            count = min(RUN, n_frames - 1 - run * RUN)
            vectors, maps = None, None
            if data is not None and more is not None and picture is not None:
                vectors = decode_motion(data, count, h, w, tables)
                maps = decode_maps(more, count, h, w, tables)
            for index in range(count):
                if vectors is None or maps is None or picture is None:
                    concealed += 1
                else:
                    motion, classes = vectors[index], maps[index]
                    context = block_motion.compensate(picture[None], motion.field()[None])[0]
                    own = numbers.get(1 + run * RUN + index, [])
                    picture = self._decode_frame(inter, context, classes, (h, w), own)
                shown.append(picture)
        hold = state.last if state.last is not None else torch.full((3, height, width), 0.5)
        frames = torch.stack([hold if one is None else one[:, :height, :width] for one in shown])
        state.last = frames[-1]
        return Decoded(frames=frames[None], concealed=concealed), state, {}

    def _decode_frame(
        self,
        code: BlockCode,
        context: Tensor | None,
        classes: np.ndarray,
        size: tuple[int, int],
        arrived: list[tuple[Head, bytes]],
    ) -> Tensor:
        """A frame from what arrived of its numbers."""
        of_blocks = torch.from_numpy(classes)
        step = arrived[0][0].step if arrived else COARSEST
        order = coefficient_coder.layout((code.levels.long() - step)[of_blocks])
        numbers = np.zeros(len(order.places), dtype=np.int64)
        for head, data in arrived:
            own = coefficient_coder.decode(data, order.depths[head.begin : head.end])
            if own is not None and head.step == step:
                numbers[head.begin : head.end] = own
        return reconstruct(code, context, of_blocks, size, step, order.places, numbers)


# -- both ends ---------------------------------------------------------------------------------------------------------------


def block_costs(code: BlockCode, rows: Tensor, step: int, kind: int) -> Tensor:
    """Distortion and priced bits, in squared steps, of rows (N, L) in every class of a kind: (N, C)."""
    first, last, latents, M = code.blocks.kinds[kind]
    u = rows[:, :latents] / 10 ** (step / (20 * STEPS_PER_DB))
    costs = []
    for index, rotation in zip(range(first, last), code.blocks.rotations_of(kind), strict=True):
        depth = code.levels[index, :latents].long() - step
        own = u[:, :M] @ rotation.T
        costs.append(_costs(own, depth[:M]) + _costs(u[:, M:], depth[M:]))
    return torch.stack(costs, 1)


def _costs(u: Tensor, depth: Tensor) -> Tensor:
    """Sums over coefficients (N, K) of these depths (K,): (N,)."""
    coded = depth >= LEAST_DEPTH
    return coefficient_coder.quantise(u[:, coded], depth[coded])[1].sum(1) + u[:, ~coded].square().sum(1)


def reconstruct(
    code: BlockCode,
    context: Tensor | None,
    classes: Tensor,
    size: tuple[int, int],
    step: int,
    places: np.ndarray,
    numbers: np.ndarray,
) -> Tensor:
    """What the first of the numbers say of a picture of (h, w) blocks, that have these classes (n,): an I-frame, or beside its
    context (3, H, W) a P-frame -> (3, H, W) in [0, 1]."""
    blocks = code.blocks
    flat = torch.zeros(classes.numel() * blocks.latents)
    flat[torch.from_numpy(places[: len(numbers)])] = torch.from_numpy(numbers).float() * 10 ** (step / (20 * STEPS_PER_DB))
    rows = flat.reshape(classes.numel(), -1)
    busy = rows.any(1).nonzero().flatten()
    turned = blocks.rotate(rows[busy], classes[busy], back=True)
    if context is not None:
        return (context + code.synthesise_rows(turned, busy, *size)[0]).clamp(0, 1)
    return code.synthesise(rows.index_copy(0, busy, turned)[None], *size)[0].clamp(0, 1)


# -- packets -----------------------------------------------------------------------------------------------------------------


class Head(NamedTuple):
    """Of a packet of numbers: frame of the group, squared step in quarter decibels, and which of the frame's numbers."""

    frame: int
    step: int
    begin: int
    end: int


HEAD_BYTES = 10


def pack_head(head: Head) -> bytes:
    """Frame, step, and two whole numbers of 7 bits a byte."""
    out = bytearray([head.frame, head.step - FINEST])
    for value in (head.begin, head.end - head.begin):
        while value >= 128:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
    return bytes(out)


def unpack_head(data: bytes) -> tuple[Head, bytes] | None:
    """Head and the rest of a packet, or None."""
    values, at = [], 2
    for _ in range(2):
        value, shift = 0, 0
        while at < len(data) and data[at] & 128 and shift < 28:
            value |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
        if at >= len(data) or data[at] & 128:
            return None
        values.append(value | data[at] << shift)
        at += 1
    return Head(data[0], data[1] + FINEST, values[0], sum(values)), data[at:]


def gather(packets: Sequence[bytes | None]) -> dict[int, list[tuple[Head, bytes]]]:
    """What arrived of every frame's numbers."""
    found: dict[int, list[tuple[Head, bytes]]] = {}
    for data in packets:
        part = unpack_head(data) if data else None
        if part is not None:
            found.setdefault(part[0].frame, []).append(part)
    return found


def make(preset: str, condition: str) -> DcvcLdpc:
    """Build it around ``dvst:small``, which has no statistics yet."""
    from semcast.systems import SYSTEMS

    return DcvcLdpc(SYSTEMS.get("dvst").make("small", condition).requires_grad_(False), load_condition(condition))


SPEC = SystemSpec(
    name="dcvc-ldpc",
    summary="motion, transforms and classes of dvst:small, range-coded into bytes over 5G LDPC and QAM",
    kind="digital",
    make=make,
)
