"""The only door from transmitter to receiver.

    Payload ── unit power ──▶ channel ──▶ noise ──▶ RxAnalog
          └── modem: CRC, LDPC, QAM ──▶ channel ──▶ packets | None       one Charge per stream in the Ledger

A link owns the bandwidth, the power, the SNR and a clock in channel uses that makes the channel evolve.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from semcast.channels import make_channel
from semcast.channels.base import Channel
from semcast.errors import ContractError, InputError, SpecError
from semcast.ledger import Charge, Ledger
from semcast.modems import make_modem
from semcast.modems.base import Mcs, Modem
from semcast.modems.mcs import get_mcs
from semcast.types import Analog, Budget, Csi, Digital, Format, Packet, Payload, Received, RxAnalog, RxProxy, Step

HEADER_ATTEMPTS = 32
HEADER_BLER, HEADER_MARGIN_DB = 0.1, 1.0
"""A header is sent until it arrives, so one loss in ten is cheaper than the rate that avoids it."""
TYPICAL_DRAWS, TYPICAL_USES = 64, 1024
SEND_USES, SHORT_USES = 16384, 1024
"""Channel uses that adaptation expects a block to be spread over: at most, by the interleaver over a long send, and alone."""


# Names that a header is likely to hold: raw deflate with this dictionary shrinks them to a few bytes, and carries any other.
_HEADER_WORDS = (
    b"classify\0segment\0dvst-paper\0offline\0paper\0small\0-capacity\0mjpeg-ldpc\0jpeg-ldpc\0jpeg2000-ldpc\0hevc-intra-ldpc\0freeze\0"
    b"linear-jscc\0watch\0av1-ldpc\0h264-ldpc\0deepjscc\0small\0watch\0h265-ldpc\0default\0strong"
)
_HEADER = "<HHfId8s"
_HEADER_TEXT_MAX = 512


def pack_header(fmt: Format) -> bytes:
    """The session header as it is sent: fixed binary numbers, then the names, deflated with a known dictionary."""
    digest = bytes.fromhex(fmt.weights) if fmt.weights else b""
    fixed = struct.pack(_HEADER, fmt.height, fmt.width, fmt.fps, fmt.seed & 0xFFFFFFFF, fmt.cbr, digest.ljust(8, b"\0"))
    if not digest:
        fixed = fixed[:-8]
    names = "\0".join([fmt.goal, fmt.system, fmt.preset, fmt.condition]).encode()
    if len(names) > _HEADER_TEXT_MAX:
        raise ContractError(f"the names of a session take {len(names)} bytes, more than {_HEADER_TEXT_MAX}")
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -9, zdict=_HEADER_WORDS)
    return bytes([int(bool(digest))]) + fixed + squeeze.compress(names) + squeeze.flush()


def unpack_header(data: bytes) -> Format:
    """The inverse of :func:`pack_header`; raises ValueError on anything else, and never needs more memory than a header."""
    try:
        size = struct.calcsize(_HEADER) - (0 if data[0] == 1 else 8)
        if data[0] > 1:
            raise ValueError("unknown kind of header")
        height, width, fps, seed, cbr, digest = struct.unpack(
            _HEADER, data[1 : 1 + size].ljust(struct.calcsize(_HEADER), b"\0")
        )
        if len(data) < 1 + size:
            raise ValueError("cut short")
        expand = zlib.decompressobj(-9, zdict=_HEADER_WORDS)
        text = expand.decompress(data[1 + size :], _HEADER_TEXT_MAX)
        goal, system, preset, condition = text.decode().split("\0")
    except (struct.error, IndexError, ValueError, zlib.error) as error:
        raise ValueError(f"not a session header: {error}") from error
    if not expand.eof or expand.unused_data or not (math.isfinite(fps) and fps > 0 and math.isfinite(cbr) and cbr > 0):
        raise ValueError("not a session header")
    return Format(height, width, fps, goal, system, preset, digest.hex() if data[0] else "", seed, cbr, condition)


@dataclass
class LinkAir:
    """The air as a modem sees it; every call advances the link's clock. Charges are booked by the link from ``Uses``."""

    link: Link
    generator: torch.Generator

    def fade(self, n: int) -> RxAnalog:
        """Gain estimate and noise power of ``n`` uses without sending symbols, all (n,); ``y`` holds the true gain."""
        h, h_hat, noise_var = self.link._advance(n, 1, packets=True, generator=self.generator)
        return RxAnalog(h[0], h_hat[0], noise_var[0])

    def carry(self, x: Tensor) -> RxAnalog:
        """Send (1, n) unit-power symbols."""
        h, h_hat, noise_var = self.link._advance(x.shape[1], 1, packets=True, generator=self.generator)
        y = self.link.channel.apply(x, h, self.link.noise_var[:1].reshape(1, 1), generator=self.generator)
        return RxAnalog(y, h_hat, noise_var)

    def erased(self, count: int) -> Tensor:
        """(count,) bool: packets that the network drops."""
        return self.link.channel.erasures(count, self.link.clock, generator=self.generator)


class Link(nn.Module):
    """A radio link at one SNR with a budget of channel uses.

    Args:
        channel: a Channel or its specification, e.g. ``"rayleigh:block"``.
        snr_db: Es/N0 in dB at unit average power; a float, or (B,) in training.
        cbr: channel uses per source value (3HW per frame) that accrue; the token bucket of :class:`Budget`.
        csi_snr_db: what the transmitter is told instead of ``snr_db``; None tells the truth.
        phy: ``"fast"`` (measured block error tables), ``"exact"`` (the LDPC decoder itself) or ``"capacity"`` (ideal bound).
        target_bler: block error rate that adaptive modulation and coding aims at. harq: retransmissions at most.
        mcs: a fixed modulation and coding scheme by name; None adapts.
        bandwidth_hz: channel uses per second. tx_power_w: for the energy in joules only.
        assumed_free: names of streams that are booked but not charged.

    Raises:
        SpecError: malformed channel or numbers out of range.
    """

    def __init__(
        self,
        channel: Channel | str = "awgn",
        *,
        snr_db: float | Tensor = 10.0,
        cbr: float = 1 / 12,
        csi_snr_db: float | None = None,
        phy: str = "fast",
        target_bler: float = 1e-3,
        harq: int = 0,
        mcs: str | None = None,
        bandwidth_hz: float = 1e6,
        tx_power_w: float = 1.0,
        assumed_free: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.channel = make_channel(channel) if isinstance(channel, str) else channel
        self.channel.configure(bandwidth_hz)
        self.modem: Modem = make_modem(phy, target_bler=target_bler, harq=harq, mcs=mcs)
        self.header_modem: Modem = make_modem(phy, target_bler=max(target_bler, HEADER_BLER))
        self.bandwidth_hz, self.tx_power_w = bandwidth_hz, tx_power_w
        self.assumed_free = assumed_free
        self._mcs: dict[tuple[float, int], Mcs] = {}
        self._robust: dict[tuple[float, float], str] = {}
        self._typical: dict[int, Tensor] = {}
        self.set(snr_db=snr_db, cbr=cbr, csi_snr_db=csi_snr_db)
        self.reset()

    def set(self, *, snr_db: float | Tensor, cbr: float, csi_snr_db: float | None = None) -> None:
        """Change SNR and budget; (B,) tensors give every example of a training batch its own SNR."""
        snr = torch.as_tensor(snr_db, dtype=torch.float32).reshape(-1)
        if not bool(torch.isfinite(snr).all()):
            raise SpecError(f"the SNR must be a finite number of dB, got {snr_db}")
        if not (math.isfinite(cbr) and 0 < cbr <= 4):
            raise SpecError(f"the CBR must lie in (0, 4] channel uses per source value, got {cbr}")
        self.snr_db, self.cbr = snr, float(cbr)
        self.csi_snr_db = None if csi_snr_db is None else float(csi_snr_db)

    def reset(self) -> None:
        """Forget the past: clock, token bucket, acknowledgements."""
        self.clock = 0
        self._accrued = 0.0
        self._send_uses = SEND_USES
        self._spent = 0
        self._acks: dict[str, list[bool]] = {}

    @property
    def noise_var(self) -> Tensor:
        """(B,) noise power per complex symbol at unit transmit power."""
        return 10 ** (-self.snr_db / 10)

    @property
    def told_snr_db(self) -> Tensor:
        """(B,) the SNR that the transmitter believes in."""
        return self.snr_db if self.csi_snr_db is None else torch.full_like(self.snr_db, self.csi_snr_db)

    # -- before encode --------------------------------------------------------------------------------------------------

    def open(self, fmt: Format, ledger: Ledger, *, generator: torch.Generator) -> None:
        """Start a session: reset, and send the header until it arrives, first with a decibel in hand and then at the most
        robust coding. In training it is skipped."""
        self.reset()
        self.channel.reset(generator)
        if self.training:
            return
        packet = Packet(pack_header(fmt))
        air = LinkAir(self, generator)
        for attempt in range(HEADER_ATTEMPTS):
            snr_db = -100.0 if attempt else float(self.told_snr_db.mean()) - HEADER_MARGIN_DB
            mcs = self.header_modem.select(snr_db, self._gains(SHORT_USES))
            clock = self.clock
            arrived, uses = self.header_modem.transport([packet], air, mcs, generator=generator)
            self._book(ledger, Charge("session", "pilots", self.clock - clock - uses.uses))
            spent, lost = uses.data_uses + uses.control_uses, int(arrived[0] is None)
            self._book(ledger, Charge("session", "header", spent, uses.info_bits, uses.coded_bits, 1, lost))
            if arrived[0] is not None:
                return
        raise InputError(
            f"the session header did not come through in {HEADER_ATTEMPTS} attempts at {self.snr_db.item():g} dB over "
            f"{self.channel.spec!r}; raise --snr or choose a milder channel"
        )

    def mcs(self) -> Mcs:
        """Modulation and coding that the link picks at the SNR the transmitter believes in."""
        snr = float(self.told_snr_db.mean())
        key = snr, self._send_uses
        if key not in self._mcs:
            self._mcs[key] = self.modem.select(200.0 if self.channel.is_ideal else snr, self._gains(self._send_uses))
        return self._mcs[key]

    def _gains(self, window_uses: int) -> Tensor | None:
        """Gains that are typical of ``window_uses`` in a row, which a transmitter knows, evenly thinned out; None: all one."""
        if not self.channel.is_fading:
            return None
        if window_uses not in self._typical:
            gains = self.channel.typical(window_uses, TYPICAL_DRAWS, generator=torch.Generator().manual_seed(0))
            self._typical[window_uses] = gains[:, :: window_uses // TYPICAL_USES].clone()
        return self._typical[window_uses]

    def grant(self, step: Step) -> tuple[Csi, Budget]:
        """CSI and budget for the next step; unspent uses of earlier steps are carried over."""
        batch, t, _, height, width = step.frames.shape
        nominal = self.cbr * 3 * height * width * t
        self._accrued += nominal
        gross = math.floor(self._accrued + 1e-6) - (0 if self.training else self._spent)
        uses = max(0, self._net_of_pilots(math.floor(nominal) if self.training else gross))
        # a step that is granted few uses meets less of the fading; powers of two, so that few choices have to be made
        self._send_uses = min(max(1 << (max(math.floor(nominal), 1).bit_length() - 1), SHORT_USES), SEND_USES)
        mcs = self.mcs()
        told = self.told_snr_db.expand(batch).clone()
        csi = Csi(told, self.modem.bits_per_use(mcs), 0, dict(self._acks), self._spread_snr_db(told))
        payload = 0 if self.training else self.modem.bytes_for_uses(uses, mcs)
        budget = Budget(
            uses, math.floor(nominal), self.cbr, 1.0, payload, self._uses_for_packets, self._robust_mcs, self.assumed_free
        )
        return csi, budget

    def _spread_snr_db(self, snr_db: Tensor) -> Tensor | None:
        """What :attr:`Csi.fading_snr_db` says, from gains that are typical of the channel; None where it does not fade."""
        gains = self._gains(SEND_USES)
        if gains is None:
            return None
        snr = 10 ** (snr_db[:, None] / 10) * gains.abs().square().flatten()
        kept = (snr / (1 + snr)).mean(1).clamp(1e-6, 1 - 1e-6)
        return 10 * (kept / (1 - kept)).log10()

    def _uses_for_packets(self, sizes: list[int], mcs: str | None) -> int:
        if mcs is None:
            return self.modem.uses_for_bytes(sizes, self.mcs())
        return self.modem.uses_for_named(sizes, get_mcs(mcs))

    def _robust_mcs(self, margin_db: float) -> str:
        told = (float(self.told_snr_db.mean()), margin_db)
        if told not in self._robust:
            self._robust[told] = self.modem.select_protected(told[0] - margin_db, self._gains(SHORT_USES)).name
        return self._robust[told]

    def _net_of_pilots(self, gross: int) -> int:
        if gross <= 0 or not self.channel.pilot_uses(1024):
            return gross
        low, high = 0, gross
        while low < high:
            middle = (low + high + 1) // 2
            if middle + self.channel.pilot_uses(middle) <= gross:
                low = middle
            else:
                high = middle - 1
        return low

    # -- the door --------------------------------------------------------------------------------------------------------

    def send(self, payload: Payload, ledger: Ledger, *, generator: torch.Generator) -> Received:
        """Carry a payload over the channel and charge for it.

        All analog streams of one send are scaled together to unit average power, per example; an amplitude that the
        receiver needs must be sent like anything else.

        Raises:
            ContractError: a digital stream without bytes outside training.
        """
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            received: dict[str, object] = {}
            analog = {name: stream for name, stream in payload.items() if isinstance(stream, Analog)}
            scaled = self._normalise(analog, ledger)
            for name, stream in payload.items():
                if isinstance(stream, Analog):
                    received[name] = self._send_analog(name, scaled[name], stream.active, ledger, generator)
                elif stream.packets is not None:
                    received[name] = self._send_packets(name, stream.packets, ledger, generator)
                elif stream.proxy is not None and self.training:
                    received[name] = self._send_proxy(name, stream, ledger, generator)
                else:
                    raise ContractError(f"digital stream {name!r} carries no bytes: outside training every stream is real")
        return received  # type: ignore[return-value]

    def _normalise(self, analog: dict[str, Analog], ledger: Ledger) -> dict[str, Tensor]:
        """Unit average power over the active symbols of all analog streams, per example."""
        if not analog:
            return {}
        shaped: dict[str, Tensor] = {}
        energy: Tensor | float = 0.0
        count: Tensor | float = 0.0
        for name, stream in analog.items():
            power = stream.power.to(stream.x.device) if isinstance(stream.power, Tensor) else stream.power
            x = stream.x * power**0.5
            if stream.active is not None:
                x = x * stream.active
                count = count + stream.active.sum(1)
            else:
                count = count + x.shape[1]
            energy = energy + x.abs().square().sum(1)
            shaped[name] = x
        assert isinstance(energy, Tensor)
        if not bool(torch.isfinite(energy).all()):
            raise ContractError("an analog stream holds values that are not finite")
        scale = (count / energy.clamp_min(1e-12)).sqrt()
        scaled = {name: x * scale[:, None] for name, x in shaped.items()}
        if not self.training:
            for x in scaled.values():
                power = x.detach().abs().square()
                ledger.observe_power(float(power.max()) if power.numel() else 0.0, float(power.sum()), int((power > 0).sum()))
        return scaled

    def _send_analog(self, name: str, x: Tensor, active: Tensor | None, ledger: Ledger, generator: torch.Generator) -> RxAnalog:
        """Only active symbols are sent; they arrive compacted to the left, (B, most active)."""
        uses = x.shape[0] * x.shape[1]
        if active is not None:
            uses = int(active.sum())
            width = int(active.sum(1).max())
            order = active.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
            x = x.gather(1, order)
        batch, n = x.shape
        pilots = self.channel.pilot_uses(n) * batch if n else 0
        h, h_hat, noise_var = self._advance(n, batch, generator=generator)
        device = x.device
        y = self.channel.apply(x, h.to(device), self.noise_var.to(device).reshape(-1, 1), generator=generator)
        self._book(ledger, Charge(name, "analog", uses))
        if pilots:
            self._book(ledger, Charge(name, "pilots", pilots))
        # Dense, since an elementwise function of an expanded tensor may round otherwise than of the same numbers from a file.
        return RxAnalog(y, h_hat.to(device).contiguous(), noise_var.to(device).contiguous())

    def _send_packets(
        self, name: str, packets: list[list[Packet]], ledger: Ledger, generator: torch.Generator
    ) -> list[list[bytes | None]]:
        arrived = []
        for batch in packets:
            clock = self.clock
            out, uses = self.modem.transport(batch, LinkAir(self, generator), self.mcs(), generator=generator)
            lost = sum(item is None for item in out)
            self._acks[name] = [item is not None for item in out]
            sent = self.clock - clock
            self._book(ledger, Charge(name, "digital", uses.data_uses, uses.info_bits, uses.coded_bits, len(batch), lost,
                                      uses.blocks, uses.blocks_lost, uses.retransmissions))  # fmt: skip
            self._book(ledger, Charge(name, "control", uses.control_uses))
            self._book(ledger, Charge(name, "feedback", uses.feedback_uses))
            self._book(ledger, Charge(name, "pilots", sent - uses.uses))
            arrived.append(out)
        return arrived

    def _send_proxy(self, name: str, stream: Digital, ledger: Ledger, generator: torch.Generator) -> RxProxy:
        """Training stand-in: entries are dropped at the target block error rate and by the network."""
        proxy, bits = stream.proxy, stream.est_bits
        if proxy is None or bits is None:
            raise ContractError(f"training stream {name!r} needs both proxy and est_bits")
        batch, entries = bits.shape
        lost = torch.rand(batch, entries, generator=generator) < self.modem.target_bler
        for row in range(batch):
            lost[row] |= self.channel.erasures(entries, self.clock, generator=generator)
        arrived = ~lost.to(proxy.device)
        total = float(bits.sum())
        uses = math.ceil(total / self.modem.bits_per_use(self.mcs()))
        self.clock += uses // max(batch, 1)
        charge = Charge(name, "digital", uses, math.ceil(total), 0, batch * entries, int(lost.sum()), estimated=True)
        self._book(ledger, charge)
        mask = arrived.reshape(batch, entries, *[1] * (proxy.dim() - 2))
        return RxProxy(proxy * mask, arrived)

    def _advance(
        self, n: int, batch: int, *, packets: bool = False, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gains, their estimates and effective noise power of the next ``n`` uses, all (batch, n); moves the clock.

        ``packets``: the network drops packets whole, so the radio below them sees no erasures.
        """
        noise = self.noise_var.reshape(-1, 1)[:batch]
        if n == 0:
            empty = torch.zeros(batch, 0, dtype=torch.complex64)
            return empty, empty, empty.real
        sample = self.channel.air if packets else self.channel.sample
        fading = sample(n, self.clock, batch=batch, generator=generator)
        h_hat, error_var = self.channel.estimate(fading, noise, generator=generator)
        self.clock += n + self.channel.pilot_uses(n)
        if self.channel.is_ideal:
            noise = torch.full_like(noise, 1e-10)
        return fading.h, h_hat, (noise + error_var).expand(batch, n)

    def _book(self, ledger: Ledger, charge: Charge) -> None:
        if charge.uses == 0 and charge.packets_sent == 0:
            return
        if charge.stream in self.assumed_free:
            charge = Charge(**{**charge.__dict__, "assumed_free": True})
        else:
            self._spent += charge.uses
        ledger.book(charge)

    # -- what it took ----------------------------------------------------------------------------------------------------

    def airtime_s(self, ledger: Ledger) -> float:
        """Seconds on the air at this bandwidth."""
        return ledger.channel_uses / self.bandwidth_hz

    def energy_j(self, ledger: Ledger) -> float:
        """Joules radiated at ``tx_power_w``."""
        return self.airtime_s(ledger) * self.tx_power_w

    def extra_repr(self) -> str:
        return json.dumps({"channel": self.channel.spec, "snr_db": self.snr_db.tolist(), "cbr": self.cbr})
