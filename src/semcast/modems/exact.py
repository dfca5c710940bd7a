"""The decoder in the loop: real bits through CRC, 5G LDPC, QAM, the channel, LLRs and belief propagation."""

from __future__ import annotations

import torch
from torch import Tensor

from semcast.modems.base import Air
from semcast.modems.coded import CodedModem, Transmission
from semcast.modems.framing import CONTROL_BITS, CONTROL_CODED_BITS, CONTROL_LEVELS, Layout, pack_control, unpack_control
from semcast.modems.interleave import burst, control_stride
from semcast.modems.ldpc import BlockCode, bits_to_bytes, block_code, bytes_to_bits
from semcast.modems.qam import demodulate, modulate


def _control_code(coded_bits: int) -> BlockCode:
    return block_code(CONTROL_BITS, coded_bits, 1, 16)


def encode_control(lay: Layout, uses: int) -> Tensor:
    """Symbols (1, uses) of the control block: a prefix of the rate-1/5 code word, or the word repeated."""
    word = _control_code(CONTROL_CODED_BITS[-1]).encode(bytes_to_bits([pack_control(lay, uses)]))
    bits = word.repeat(1, -(-2 * uses // word.shape[1]))[:, : 2 * uses]
    return modulate(bits, 2)


def decode_control(llr: Tensor) -> tuple[Layout, int] | None:
    """Find the control block of a burst: its layout and channel uses, or None.

    The receiver knows neither how long the block is nor how far its symbols lie apart, and tries what there is: with four
    lengths and the powers of two about as many candidates as a terminal of NR has per slot. A candidate counts only if
    the burst that it announces puts it where it was found.

    Args:
        llr: (1, 2 * uses) LLRs of a burst as QPSK.
    """
    symbols = llr.reshape(-1, 2)
    for uses in CONTROL_LEVELS:
        if uses > len(symbols):
            break
        strides = [1 << k for k in range((len(symbols) // uses).bit_length())]
        n = min(2 * uses, CONTROL_CODED_BITS[-1])
        heard = torch.stack([symbols[: stride * uses : stride].reshape(-1, n).sum(0) for stride in strides])
        payload, passed = _control_code(n).decode(heard)
        for stride, data, held in zip(strides, bits_to_bytes(payload), passed.tolist(), strict=True):
            found = unpack_control(data) if held else None
            if found is not None and stride == control_stride(found[1], found[1] + found[0].uses):
                return found
    return None


class ExactModem(CodedModem):
    """Runs the modem bit by bit: what passes its CRC at the receiver has arrived, and nothing else."""

    def _attempt(
        self, sent: Transmission, pending: list[int], with_control: bool, air: Air, generator: torch.Generator
    ) -> None:
        # 1. transmitter: blocks that need the same redundancy version together
        lay = sent.lay
        code = block_code(lay.info_bits, lay.coded_bits, lay.mcs.bits_per_symbol)
        rvs = [self._rv(len(sent.attempts.get(index, []))) for index in pending]
        coded = torch.zeros(len(pending), lay.coded_bits)
        for rv in sorted(set(rvs)):
            rows = [row for row, own in enumerate(rvs) if own == rv]
            coded[rows] = code.encode(bytes_to_bits([sent.blocks[pending[row]] for row in rows]), rv)
        symbols = modulate(coded, lay.mcs.bits_per_symbol)
        control = sent.control_uses if with_control else 0
        places = burst(control, len(pending), lay.block_uses)
        x = torch.empty(1, control + symbols.numel(), dtype=symbols.dtype)
        x[0, torch.from_numpy(places.data)] = symbols
        if with_control:
            x[:, torch.from_numpy(places.control)] = encode_control(lay, control)
        # 2. the air
        rx = air.carry(x)
        y, h, noise_var = rx.y, rx.h, rx.noise_var.expand_as(rx.h)
        # 3. receiver: where the data stands and what it is follows from the control block; later transmissions answer its
        # own acknowledgement, so it knows which blocks they are
        heard_control = 0
        if with_control:
            found = decode_control(demodulate(y, h, noise_var, 2))
            # a misread control block announces what the reception is too short or too long for
            if found is None or found[0].uses != y.shape[1] - found[1] or found[0].blocks != len(pending):
                return
            sent.announced, heard_control = found
        heard = sent.announced
        assert heard is not None
        at = torch.from_numpy(burst(heard_control, len(pending), heard.block_uses).data)
        y, h, noise_var = (part[0, at] for part in (y, h, noise_var))
        llr = demodulate(y, h, noise_var, heard.mcs.bits_per_symbol)
        # 4. combine with earlier transmissions, decode, check
        for row, index in enumerate(pending):
            sent.attempts.setdefault(index, []).append((rvs[row], llr[row]))
        self._decode(sent, pending, block_code(heard.info_bits, heard.coded_bits, heard.mcs.bits_per_symbol))

    def _decode(self, sent: Transmission, pending: list[int], code: BlockCode) -> None:
        """Decode the pending blocks, those with the same history together."""
        histories: dict[tuple[int, ...], list[int]] = {}
        for index in pending:
            histories.setdefault(tuple(rv for rv, _ in sent.attempts[index]), []).append(index)
        for rvs, members in histories.items():
            llr = torch.stack([torch.stack([torch.as_tensor(kept) for _, kept in sent.attempts[index]]) for index in members])
            if set(rvs) == {0}:
                payload, passed = code.decode(llr.sum(1))
            else:
                payload, passed = code.decode(llr, rvs)
            for index, data, held in zip(members, bits_to_bytes(payload), passed.tolist(), strict=True):
                if held:
                    sent.received[index] = data
