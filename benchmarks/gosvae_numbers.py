"""What the reproduction card of GOS-VAE says: values and tables from the entries of `gosvae_study.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from study_numbers import number, table
from study_rows import part_rows, read_list

from semcast.studies.rows import Row

Entry = Mapping[str, Any]
RATES = ("r2", "small", "r8", "r16", "r32")
SEEDS = (2, 3)  # beside the first
LOSSES = (
    *(("GOS-VAE (CE)", "ce"), ("GOS-VAE (KLD)", "kld"), ("VQ-VAE (KLD)", "mse + kld"), ("VQ-VAE (LPIPS)", "lpips")),
    *(("GOS-VAE (KLD + LPIPS)", "kld + lpips"), ("GOS-VAE (JSD + LPIPS)", "jsd + lpips")),
)


def entry_table(entries: Sequence[Entry]) -> str:
    """Bytes and measures, a line per system."""
    lines = []
    for e in entries:
        kb = [number(e.get(key), digits=2) for key in ("kb", "kb_static")]
        measures = [number(100 * e[key], digits=1) for key in ("miou", "pixel_accuracy")]
        more = [
            number(None if e["label"] == "original" else e.get(key), digits=d)
            for key, d in (("psnr_rgb_db", 2), ("ssim_rgb", 3), ("lpips_squeeze", 3))
        ]
        last = number(e.get("frechet_squeeze"), digits=2)
        lines.append([e["label"] + (" (short)" if e.get("short") else ""), *kb, *measures, *more, last])
    head = ["", "kB", "kB, static", "mIoU, %", "accuracy, %", "PSNR, dB", "SSIM", "LPIPS", "Frechet (SqueezeNet)"]
    return table(head, lines)


def pooled_miou(rows: Sequence[Row]) -> float | None:
    """mIoU over the pixels of all rows, in percent."""
    totals: dict[str, list[int]] = {}
    for row in rows:
        for key, counts in (row.label_counts or {}).get("received", {}).items():
            totals[key] = [a + b for a, b in zip(totals.get(key, [0] * len(counts)), counts, strict=True)]
    if not totals:
        return None
    parts = [(h, t + p - h) for h, t, p in zip(totals["hits"], totals["truth"], totals["predicted"], strict=True) if t + p - h]
    return 100 * sum(h / u for h, u in parts) / len(parts)


def link_table(rows: Sequence[Row]) -> str:
    """mIoU, LPIPS and PSNR over SNR, a line per system."""
    lines = []
    snrs = sorted({row.snr_db for row in rows if row.snr_db is not None})
    for name in dict.fromkeys(row.name for row in rows):
        for what, of in (
            ("mIoU, %", pooled_miou),
            ("LPIPS", lambda here: _mean([row.lpips_squeeze for row in here])),
            ("PSNR, dB", lambda here: _mean([row.psnr_rgb_db for row in here])),
        ):
            cells = [of([row for row in rows if row.name == name and row.snr_db == snr]) for snr in snrs]  # type: ignore[operator]
            lines.append([f"`{name}`", what, *(number(cell, digits=3 if what == "LPIPS" else 1) for cell in cells)])
    return table(["", "", *(f"{snr:g} dB" for snr in snrs)], lines)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def entry_values(entries: Mapping[str, Entry]) -> dict[str, float | None]:
    """Differences between systems on the same pictures, by the names that the card's checks have."""

    def over(a: str, b: str, key: str = "miou", scale: float = 100) -> float | None:
        return difference(entries, a, b, key, scale)

    same = next((label for label in entries if label.startswith("JPEG at") and label.endswith("kB")), "JPEG")
    kept: dict[str, float | None] = {}
    for name, label in (("kept", "gos-vae"), ("star kept", "gos-vae:star")):
        known = "original" in entries and label in entries
        kept[name] = 100 * float(entries[label]["miou"] / entries["original"]["miou"]) if known else None
    return kept | {
        "over vq": over("gos-vae", "vq-vae"), "star over vq": over("gos-vae:star", "vq-vae"),
        "over jpeg": over("gos-vae", same), "star over jpeg": over("gos-vae:star", same),
        "vq over jpeg": over("vq-vae", same), "vq over autoencoder": over("vq-vae", "autoencoder"),
        "over gan": over("gos-vae", "vq-gan"), "jpeg 40 dB": over("original", "JPEG at 40 dB"),
        "lpips": over("vq-vae", "gos-vae", "lpips_squeeze", 1), "frechet": over("vq-vae", "gos-vae", "frechet_squeeze", 1),
        "psnr": over("vq-vae", "gos-vae", "psnr_rgb_db", 1),
    }  # fmt: skip


def difference(entries: Mapping[str, Entry], a: str, b: str, key: str = "miou", scale: float = 100) -> float | None:
    """``key`` of the entry ``a`` less that of ``b``, in points; None where one was not measured."""
    if a not in entries or b not in entries or entries[a].get(key) is None or entries[b].get(key) is None:
        return None
    return float(scale * (entries[a][key] - entries[b][key]))


def over_seeds(entries: Mapping[str, Entry], ours: str, theirs: str) -> list[float]:
    """mIoU of one short training over another, in points, of every seed that both were trained with."""
    names = ("small", *(f"small, seed {seed}" for seed in SEEDS))
    found = [difference(entries, f"{ours}: {name}", f"{theirs}: {name}") for name in names]
    return [value for value in found if value is not None]


def gosvae_numbers(folder: Path) -> tuple[dict[str, float | None], dict[str, str], str]:
    """Values, tables and note that `cards/gos-vae.yaml` names."""
    entries = {e["label"]: e for e in read_list(folder / "table.json")}
    large = {e["label"]: e for e in read_list(folder / "large" / "table.json")}
    curves = next(iter(read_list(folder / "curves.json")), {})
    speeds = {e["system"]: e for e in read_list(folder / "speed.json")}
    rows = part_rows(folder, "link")

    values = entry_values(entries) | {f"large: {name}": value for name, value in entry_values(large).items()}
    values |= {
        "correlation": curves.get("correlation"),
        "encode": speeds.get("gos-vae", {}).get("encode_fps"),
        "encode r8": speeds.get("gos-vae:r8", {}).get("encode_fps"),
    }
    for name, ours, theirs in (("seeds over vq", "base", "vq"), ("seeds star over vq", "star", "vq")):
        found = over_seeds(entries, ours, theirs)
        values[name] = sum(found) / len(found) if found else None
    order = [f"loss: {terms}" for _, terms in LOSSES]
    for worse, better in pairwise(order):
        values[f"{better} over {worse}"] = difference(entries, better, worse)
    worst = [difference(entries, f"star: {rate}", f"vq: {rate}") for rate in RATES]
    values["star at every r"] = min((w for w in worst if w is not None), default=None) if None not in worst else None
    values["fall to r32"] = difference(entries, "base: small", "base: r32")
    named = [entries[label] for label in entries if ":" not in label or label.startswith(("gos-vae:", "vq-vae:"))]
    tables = {"table": entry_table(named), "link": link_table(rows), "large": entry_table(list(large.values()))}
    tables["losses"] = entry_table(
        [entries[label] | {"label": name} for (name, _), label in zip(LOSSES, order, strict=True) if label in entries]
    )
    tables["rates"] = entry_table([e for label, e in entries.items() if label.startswith(("base: ", "star: ", "vq: "))])
    lines = [
        [f"`{e['system']}`", str(e["threads"]), number(e["encode_fps"], digits=1), number(e["decode_fps"], digits=1)]
        for e in speeds.values()
    ]
    tables["speed"] = table(["", "threads", "encode, pictures/s", "decode, pictures/s"], lines)
    lines = [
        [e["label"], number(e["kb"], digits=2), number(e["flicker"], digits=2), number(e["source"], digits=2)]
        for e in read_list(folder / "flicker.json")
    ]
    tables["flicker"] = table(["", "kB a frame", "flicker, levels", "change of the source, levels"], lines)
    weights = sorted({f"`{e['system']}` {e['weights']}" for e in named if e.get("weights")})
    pictures = sorted({f"{e['pictures']} pictures of {e['input']}" for e in entries.values()})
    return values, tables, f"Weights: {', '.join(weights) or 'none'}. {'; '.join(pictures)}."
