"""Statistics that the ``small`` preset of DVST starts from: what P-frames leave to be coded, and how often symbols come."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from semcast.errors import BudgetError
from semcast.layers import block_motion
from semcast.layers.class_fit import quarter_counts
from semcast.layers.side_coder import CLASS_CONTEXTS, class_contexts, groups
from semcast.layers.side_rate import SideRate
from semcast.systems.dvst.runs import Coded
from semcast.systems.dvst.shares import Group
from semcast.systems.dvst.small import DvstSmall, TxState
from semcast.systems.offline import granted
from semcast.types import Budget, Csi, Format, Step

ROUNDS = 3
SNR_DB = (0.0, 2.0, 6.0, 10.0, 10.0, 14.0, 18.0)
CBR = (0.01, 0.015, 0.02, 0.03, 0.05)


class Counter:
    """Counts of the symbols of side information, and the static tables made of them."""

    def __init__(self, classes: int) -> None:
        self.motion = block_motion.Counts.zeros()
        self.classes = np.zeros((CLASS_CONTEXTS, classes + 1))
        self.quarters: list[np.ndarray] = []
        self._group = groups(classes)

    def add(self, run: Sequence[Coded]) -> None:
        """Count one packet's frames."""
        moved: np.ndarray | None = None
        before: np.ndarray | None = None
        for coded in run:
            moved = block_motion.count(coded.motion, moved, self.motion)
            shape = coded.motion.split.shape
            blocks, split = shape[0] * shape[1], self.classes.shape[1] - 1
            classes = coded.classes.numpy()[:blocks].reshape(shape)
            np.add.at(self.classes, (class_contexts(classes, before, self._group), classes), 1)
            quarters = coded.classes.numpy()[blocks:].reshape(-1, 4)
            self.quarters.append(quarters[classes.ravel() == split] - split - 1)
            before = classes

    def store(self, system: DvstSmall) -> None:
        """Write tables of 16 bits; every symbol stays possible, and a context that is rare leans on all."""
        tables = {f"motion_{name}": counts for name, counts in self.motion._asdict().items()} | {"often": self.classes}
        for name, counts in tables.items():
            overall = (counts.sum(0) + 1) / (counts.sum() + counts.shape[1])
            table = counts + 16 * overall
            scaled = 1 + np.floor(table / table.sum(1, keepdims=True) * 60000)
            getattr(system, name).copy_(torch.from_numpy(scaled.astype(np.int32)))
        own = quarter_counts(np.concatenate(self.quarters), system.config.quarter_classes)
        system.code.often_quarters.copy_(torch.from_numpy(own))


@torch.no_grad()
def fit(system: DvstSmall, clips: Tensor, seed: int = 0) -> None:
    """Fit classes and tables to clips (N, t, 3, H, W), t >= 2, sides multiples of 16.

    The first round sees differences to key frames; later ones those that the system itself leaves, frame after frame. The last
    one only counts symbols.
    """
    for turn in range(ROUNDS):
        differences: list[Tensor] = []
        counter = Counter(system.config.classes)
        rng = random.Random(seed + turn)
        for clip in clips:
            csi, budget = granted(clip, rng.choice(SNR_DB), rng.choice(CBR))
            try:
                runs = [] if turn == 0 else _runs(system, clip, csi, budget)
                if turn == 0:
                    differences.append(_first_difference(system, clip, csi, budget, rng))
            except BudgetError:  # too little for a key frame of so small a clip
                continue
            for run in runs:
                differences += [coded.difference for coded in run]
                if run:
                    counter.add(run)
        if turn < ROUNDS - 1:
            system.code.fit(torch.stack(differences), 12)
        if turn:
            counter.store(system)


def _key(system: DvstSmall, clip: Tensor, csi: Csi, budget: Budget, share: float | None) -> tuple[Tensor, int, Group, TxState]:
    """Noise-free I-frame, channel uses that are left, the group and state."""
    told = round(float(csi.spread_snr_db))
    fmt = Format(clip.shape[-2], clip.shape[-1], cbr=budget.cbr)
    state = TxState(fmt, system.key.start(fmt, "tx"), system.key.start(fmt, "rx"))
    rate = SideRate(budget, budget.robust_mcs(system.config.side_margin_db))
    group = system.group_of(clip, told, rate)
    uses = round(share * budget.uses) if share else system.key_uses(group, budget, csi, state)
    of_key = replace(budget, uses=uses, nominal_uses=uses)
    generator = torch.Generator().manual_seed(0)
    payload, _, _ = system.key.eval().encode(Step(clip[None, :1]), state.key, csi, of_key, generator=generator)
    return system.key_reference(payload, state, told, generator), budget.uses - uses, group, state


def _first_difference(system: DvstSmall, clip: Tensor, csi: Csi, budget: Budget, rng: random.Random) -> Tensor:
    reference, *_ = _key(system, clip, csi, budget, rng.uniform(0.3, 0.7))
    motion = system.motion_of(clip[1], reference, None, 0.02)
    return clip[1] - block_motion.compensate(reference[None], motion.field()[None])[0]


def _runs(system: DvstSmall, clip: Tensor, csi: Csi, budget: Budget) -> list[list[Coded]]:
    reference, left, group, state = _key(system, clip, csi, budget, None)
    return system.encode_group(group, reference, left, state)
