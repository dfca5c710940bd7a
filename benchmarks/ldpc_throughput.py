"""Decode throughput of the modem in the loop: Mbit/s of payload through LLRs, 5G LDPC and CRC.

    python benchmarks/ldpc_throughput.py --threads 1

Each scheme is decoded at 1 dB above its 1e-3 threshold, where most blocks pass their CRC in the first iterations, and at
the threshold itself, where they take more. Full-size blocks (6144 coded bits), batches as in the modem.
"""

from __future__ import annotations

import argparse
import math
import time

import torch

from semcast.modems.bler import threshold_db
from semcast.modems.framing import max_block_bytes
from semcast.modems.ldpc import ITERATIONS, block_code
from semcast.modems.mcs import CRC_BITS, MCS, coded_bits
from semcast.modems.qam import demodulate, modulate


def throughput(name: str, margin_db: float, blocks: int) -> tuple[float, int]:
    """Payload Mbit/s of the receiver side, best of three, and how many of the blocks were lost."""
    mcs = MCS[name]
    k = 8 * max_block_bytes(mcs) + CRC_BITS
    n = coded_bits(k, mcs)
    g = torch.Generator().manual_seed(1)
    code = block_code(k, n, mcs.bits_per_symbol)
    payload = torch.randint(0, 2, (blocks, k - CRC_BITS), generator=g).float()
    x = modulate(code.encode(payload), mcs.bits_per_symbol)
    noise_var = 10 ** (-(threshold_db(mcs, n, 1e-3) + margin_db) / 10)
    y = x + torch.view_as_complex(torch.randn(*x.shape, 2, generator=g)) * math.sqrt(noise_var / 2)
    h, noise = torch.ones_like(y), torch.full((blocks, 1), noise_var)
    best, lost = math.inf, 0
    for _ in range(3):
        began = time.perf_counter()
        _, passed = code.decode(demodulate(y, h, noise, mcs.bits_per_symbol))
        best = min(best, time.perf_counter() - began)
        lost = int((~passed).sum())
    return blocks * (k - CRC_BITS) / best / 1e6, lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=64)
    parser.add_argument("--mcs", nargs="*", default=["qpsk-1/3", "qpsk-1/2", "16qam-2/3", "64qam-3/4", "256qam-5/6"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"5G LDPC, at most {ITERATIONS} iterations, {args.blocks} blocks, {args.threads} thread(s), torch {torch.__version__}"
    )
    print(f"{'scheme':14s} {'at threshold':>18s} {'1 dB above':>18s}")
    for name in args.mcs:
        cells = [throughput(name, margin, args.blocks) for margin in (0.0, 1.0)]
        print(f"{name:14s} " + " ".join(f"{rate:10.3f} Mbit/s" for rate, _ in cells), flush=True)


if __name__ == "__main__":
    main()
