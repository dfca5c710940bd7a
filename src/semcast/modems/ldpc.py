"""5G LDPC code blocks (3GPP TS 38.212, sections 5.1, 5.3.2, 5.4.2) with CRC, through Sionna.

Belief propagation runs in stages and stops for the blocks whose CRC is satisfied, as receivers do; the sum of the stages
is the iteration count that the tables state.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semcast.modems.mcs import CODED_BITS_MAX
from semcast.modems.sionna_import import sionna_phy

ITERATIONS = 20
_STAGES = (6, 6, 8)
_BATCH = 32
_CRC_CAPACITY = 8448
RV_ORDER = (0, 2, 3, 1)
"""Order in which redundancy versions are sent (3GPP TS 38.214)."""


@lru_cache(maxsize=2)
def _crc_encoder(name: str) -> Any:
    return sionna_phy("fec.crc").CRCEncoder(name, k=_CRC_CAPACITY, device="cpu", precision="single")


def crc(bits: Tensor, length: int) -> Tensor:
    """CRC parity (B, length) of bits (B, k), 16 or 24 bits (CRC16, CRC24A of TS 38.212, section 5.1).

    The register starts at zero, so zeros in front change nothing and one generator matrix serves every k.
    """
    padded = torch.nn.functional.pad(bits.float(), (_CRC_CAPACITY - bits.shape[-1], 0))
    with torch.inference_mode():
        return _crc_encoder({16: "CRC16", 24: "CRC24A"}[length])(padded)[:, -length:]


@lru_cache(maxsize=1)
def scrambling() -> Tensor:
    """Gold sequence (CODED_BITS_MAX,) of TS 38.211, section 5.2.1, c_init = 1.

    Without it a run of zeros would sit on one corner of the constellation: neither unit power nor what the tables measured.
    """
    length = 1600 + CODED_BITS_MAX
    first, second = [1] + [0] * 30, [1] + [0] * 30
    for n in range(length - 31):
        first.append(first[n + 3] ^ first[n])
        second.append(second[n + 3] ^ second[n + 2] ^ second[n + 1] ^ second[n])
    return torch.tensor([a ^ b for a, b in zip(first[1600:], second[1600:], strict=True)], dtype=torch.float32)


def bytes_to_bits(blocks: list[bytes]) -> Tensor:
    """Blocks of equal size -> (B, 8 * size) float32, most significant bit first."""
    raw = np.frombuffer(b"".join(blocks), dtype=np.uint8).reshape(len(blocks), -1)
    return torch.from_numpy(np.unpackbits(raw, axis=1).astype(np.float32))


def bits_to_bytes(bits: Tensor) -> list[bytes]:
    """(B, 8 * size) -> B blocks of bytes, the inverse of :func:`bytes_to_bits`."""
    packed = np.packbits(bits.numpy().astype(np.uint8), axis=1)
    return [row.tobytes() for row in packed]


class BlockCode:
    """CRC, 5G LDPC and scrambling for blocks of ``info_bits`` bits, CRC included, in ``coded_bits`` bits.

    Args:
        info_bits: k. coded_bits: n; 1/5 <= k / n <= 0.95. bits_per_symbol: order of the output bit interleaver
            (TS 38.212, section 5.4.2.2). crc_bits: 16 or 24.
    """

    def __init__(self, info_bits: int, coded_bits: int, bits_per_symbol: int, crc_bits: int = 24) -> None:
        ldpc = sionna_phy("fec.ldpc")
        self.info_bits, self.coded_bits, self.crc_bits = info_bits, coded_bits, crc_bits
        self._encoder = ldpc.LDPC5GEncoder(
            info_bits, coded_bits, bits_per_symbol, device="cpu", precision="single", check_input=False
        )
        self._decoders: dict[bool, Any] = {}

    def _decoder(self, combining: bool) -> Any:
        if combining not in self._decoders:
            self._decoders[combining] = sionna_phy("fec.ldpc").LDPC5GDecoder(
                self._encoder,
                cn_update="boxplus-phi",
                num_iter=ITERATIONS,
                return_infobits=True,
                return_state=True,
                harq_mode=combining,
                device="cpu",
                precision="single",
            )
        return self._decoders[combining]

    def encode(self, payload: Tensor, rv: int = 0) -> Tensor:
        """Payload bits (B, k - crc_bits) -> coded bits (B, n) of redundancy version ``rv``."""
        with torch.inference_mode():
            bits = torch.cat((payload.float(), crc(payload, self.crc_bits)), dim=-1)
            coded: Tensor = self._encoder(bits) if rv == 0 else self._encoder(bits, rv=[rv])[:, 0]
            return (coded - scrambling()[: self.coded_bits]).abs()

    def decode(self, llr: Tensor, rvs: tuple[int, ...] = (0,)) -> tuple[Tensor, Tensor]:
        """Decode (B, n), or (B, len(rvs), n) for several redundancy versions -> payload bits (B, k - crc_bits), CRC held (B,).

        Args:
            llr: ln P(1)/P(0). rvs: which redundancy version each row of ``llr`` is.
        """
        combining = rvs != (0,)
        decoder = self._decoder(combining)
        kwargs: dict[str, Any] = {"rv": list(rvs)} if combining else {}
        payload = torch.zeros(llr.shape[0], self.info_bits - self.crc_bits)
        passed = torch.zeros(llr.shape[0], dtype=torch.bool)
        with torch.inference_mode():
            llr = llr * (1 - 2 * scrambling()[: self.coded_bits])
            for start in range(0, llr.shape[0], _BATCH):
                open_rows = torch.arange(start, min(start + _BATCH, llr.shape[0]))
                state = None
                for iterations in _STAGES:
                    bits, state = decoder(llr[open_rows], num_iter=iterations, msg_v2c=state, **kwargs)
                    held = (crc(bits[:, : -self.crc_bits], self.crc_bits) == bits[:, -self.crc_bits :]).all(-1)
                    payload[open_rows] = bits[:, : -self.crc_bits]
                    passed[open_rows] = held
                    open_rows, state = open_rows[~held], state[~held]
                    if not len(open_rows):
                        break
        return payload, passed


@lru_cache(maxsize=64)
def block_code(info_bits: int, coded_bits: int, bits_per_symbol: int, crc_bits: int = 24) -> BlockCode:
    """The cached :class:`BlockCode` of these sizes."""
    return BlockCode(info_bits, coded_bits, bits_per_symbol, crc_bits)
