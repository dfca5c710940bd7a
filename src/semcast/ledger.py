"""The one place where channel resources are counted.

A :class:`Link` books a :class:`Charge` for everything that crosses it; nothing else may. ``Ledger.cbr`` is channel uses per
source value, and ``Ledger.conventions`` prints what the papers would have called the same session.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from semcast.errors import ContractError

Kind = Literal["analog", "digital", "header", "control", "pilots", "feedback"]
KINDS: tuple[Kind, ...] = ("analog", "digital", "header", "control", "pilots", "feedback")


@dataclass(frozen=True)
class Charge:
    """What one stream of one send cost.

    Attributes:
        stream: name of the stream in the payload. kind: what the uses were spent on.
        uses: channel uses (complex symbols). info_bits: payload bits handed over. coded_bits: bits after FEC.
        packets_sent, packets_lost: payload packets. blocks, blocks_lost: code blocks. retransmissions: of code blocks.
        estimated: bits were estimated (training) rather than produced. assumed_free: booked, but left out of the CBR.
    """

    stream: str
    kind: Kind
    uses: int
    info_bits: int = 0
    coded_bits: int = 0
    packets_sent: int = 0
    packets_lost: int = 0
    blocks: int = 0
    blocks_lost: int = 0
    retransmissions: int = 0
    estimated: bool = False
    assumed_free: bool = False

    def __post_init__(self) -> None:
        if self.uses < 0 or self.info_bits < 0:
            raise ContractError(f"a charge cannot be negative: {self}")
        if self.kind not in KINDS:
            raise ContractError(f"unknown kind of charge {self.kind!r}; known: {', '.join(KINDS)}")


_SUMMED = ("uses", "info_bits", "coded_bits", "packets_sent", "packets_lost", "blocks", "blocks_lost", "retransmissions")


class Ledger:
    """Adds charges up, exactly and in constant memory per stream.

    ``Ledger.source`` books the source values (3HW per frame) that the CBR is measured against.
    """

    def __init__(self) -> None:
        self.source_values = 0
        self.frames = 0
        self.uses_per_step: list[int] = []
        self._totals: dict[tuple[str, Kind, bool, bool], dict[str, int]] = {}
        self._peak = 0.0
        self._energy = 0.0
        self._symbols = 0

    def book(self, charge: Charge) -> None:
        """Add one charge."""
        key = (charge.stream, charge.kind, charge.estimated, charge.assumed_free)
        total = self._totals.setdefault(key, dict.fromkeys(_SUMMED, 0))
        for name in _SUMMED:
            total[name] += getattr(charge, name)

    def source(self, frames: int, height: int, width: int) -> None:
        """Book ``frames`` source frames of ``height`` x ``width`` RGB pixels."""
        self.frames += frames
        self.source_values += 3 * height * width * frames

    def end_step(self) -> None:
        """Mark the end of a step, so that uses can be read per step."""
        self.uses_per_step.append(self.channel_uses - sum(self.uses_per_step))

    def observe_power(self, peak: float, energy: float, symbols: int) -> None:
        """Note the peak |x|^2, the summed |x|^2 and the count of analog symbols, for the PAPR."""
        self._peak = max(self._peak, peak)
        self._energy += energy
        self._symbols += symbols

    def total(
        self,
        what: str = "uses",
        *,
        kind: Kind | tuple[Kind, ...] | None = None,
        stream: str | None = None,
        free: bool | None = False,
        estimated: bool | None = None,
    ) -> int:
        """Sum of one field over the charges that match.

        Args:
            what: field of :class:`Charge`. kind, stream: restrict to these. free: False counts what is charged, True only what
                is assumed free, None both. estimated: likewise for estimated bits; None both.
        """
        kinds = (kind,) if isinstance(kind, str) else kind
        return sum(
            total[what]
            for (name, k, est, is_free), total in self._totals.items()
            if (kinds is None or k in kinds)
            and (stream is None or name == stream)
            and (free is None or is_free == free)
            and (estimated is None or est == estimated)
        )

    @property
    def channel_uses(self) -> int:
        """All charged channel uses."""
        return self.total()

    @property
    def cbr(self) -> float:
        """Charged channel uses per source value, k / (3HWT)."""
        return self.channel_uses / self.source_values if self.source_values else 0.0

    @property
    def papr_db(self) -> float | None:
        """Peak-to-average power ratio of the analog symbols in dB, or None if none were sent."""
        if not self._symbols or self._energy <= 0:
            return None
        return 10 * math.log10(self._peak * self._symbols / self._energy)

    def streams(self) -> dict[str, int]:
        """Charged channel uses per stream; they add up to ``channel_uses`` exactly."""
        out: dict[str, int] = {}
        for (name, kind, _, free), total in self._totals.items():
            if not free and total["uses"]:
                key = name if kind in ("analog", "digital", "header") else f"{name}/{kind}"
                out[key] = out.get(key, 0) + total["uses"]
        return out

    def footnotes(self) -> list[str]:
        """Sentences for everything assumed free or estimated."""
        notes = []
        for (name, kind, est, free), total in sorted(self._totals.items()):
            if free:
                notes.append(f"stream {name!r} ({kind}, {total['uses']} channel uses) is assumed free and not in the CBR")
            if est:
                notes.append(f"the {total['info_bits']} bits of stream {name!r} are estimated, not produced")
        return notes

    def conventions(self) -> dict[str, float]:
        """The same session in the papers' own conventions.

        ``cbr`` k / 3HWT (Semcast; k complex uses); ``dvst_real_symbols`` 2k / 3HWT (DVST writes real symbols);
        ``sematt_jscc_analog_only`` (maps left out); ``of_gsc_payload_bits`` (bits); ``gos_vae_kilobytes_per_frame``.
        """
        values, frames = max(self.source_values, 1), max(self.frames, 1)
        bits = self.total("info_bits")
        return {
            "cbr": self.cbr,
            "dvst_real_symbols": 2 * self.cbr,
            "sematt_jscc_analog_only": self.total(kind="analog") / values,
            "of_gsc_payload_bits": float(bits),
            "gos_vae_kilobytes_per_frame": bits / 8 / 1000 / frames,
        }
