"""Tables and sentences on the terminal; plain text where the output is piped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from semcast.studies.rows import Row
from semcast.studies.stats import points

PIPED_WIDTH = 160


def console() -> Console:
    """Standard output: coloured and as wide as a terminal, plain and wide where it is none."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=PIPED_WIDTH, color_system=None)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


# (head, value); columns in which nothing is known, or nothing differs where that says nothing, are left out
_COLUMNS: tuple[tuple[str, Any], ...] = (
    ("SNR dB", lambda row: "–" if row.snr_db is None else f"{row.snr_db:g}"),
    ("CBR", lambda row: _number(row.cbr, 4)),
    ("PSNR dB", lambda row: _number(row.psnr_rgb_db, 2)),
    ("MS-SSIM dB", lambda row: _number(row.ms_ssim_rgb_db, 2)),
    ("LPIPS", lambda row: _number(row.lpips_squeeze, 4)),
    ("VMAF", lambda row: _number(row.vmaf, 1)),
    ("mIoU", lambda row: _number(row.miou, 3)),
    ("clean", lambda row: _number(row.miou_clean, 3)),
    ("pixel acc.", lambda row: _number(row.pixel_accuracy, 3)),
    ("lost", lambda row: f"{row.packets_lost}/{row.packets_sent}" if row.packets_sent else "–"),
    ("concealed", lambda row: str(row.concealed_frames or "–")),
    ("MCS", lambda row: row.mcs or "–"),
    ("enc fps", lambda row: _number(row.encode_fps, 0)),
    ("dec fps", lambda row: _number(row.decode_fps, 0)),
)


def rows(found: Sequence[Row]) -> None:
    """Print one line per row."""
    out = console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("system", no_wrap=True)
    telling = [key for key in ("clip", "channel", "csi_snr_db", "seed") if len({getattr(row, key) for row in found}) > 1]
    if "csi_snr_db" in telling and all(row.csi_snr_db == row.snr_db for row in found):
        telling.remove("csi_snr_db")
    for key in telling:
        table.add_column({"csi_snr_db": "told dB"}.get(key, key), no_wrap=True)
    columns = [(head, value) for head, value in _COLUMNS if any(value(row) != "–" for row in found)]
    for head, _ in columns:
        table.add_column(head, justify="right", no_wrap=True)
    for row in found:
        table.add_row(row.name, *(str(getattr(row, key)) for key in telling), *(value(row) for _, value in columns))
    out.print(table)
    _over_all_clips(out, found)


def _over_all_clips(out: Console, found: Sequence[Row]) -> None:
    """What is measured on labels, over the pixels of all clips: a line per operating point."""
    if len({row.clip for row in found}) < 2:
        return
    for point in points(found, "miou"):
        if point.quality is not None:
            clean = points(point.rows, "miou_clean")[0].quality
            accuracy = points(point.rows, "pixel_accuracy")[0].quality
            where = f"{point.series} over {point.channel}" + ("" if point.snr_db is None else f" at {point.snr_db:g} dB")
            values = [f"mIoU {point.quality.mean:.4f}", f"clean {clean.mean:.4f}" if clean else "",
                      f"pixel accuracy {accuracy.mean:.4f}" if accuracy else ""]  # fmt: skip
            out.print(f"{where}, CBR {_number(point.cbr, 4)}, all clips together: {', '.join(v for v in values if v)}")


def outcome(row: Row) -> None:
    """Print what one transmission came to, in two lines."""
    snr = "without noise" if row.snr_db is None else f"at {row.snr_db:g} dB"
    quality = [
        f"{label} {value:.{digits}f}{unit}"
        for label, value, digits, unit in (
            ("PSNR", row.psnr_rgb_db, 2, " dB"),
            ("MS-SSIM", row.ms_ssim_rgb, 4, ""),
            ("LPIPS", row.lpips_squeeze, 4, ""),
            ("VMAF", row.vmaf, 1, ""),
            ("mIoU", row.miou, 4, ""),
            ("clean mIoU", row.miou_clean, 4, ""),
            ("pixel accuracy", row.pixel_accuracy, 4, ""),
        )
        if value is not None
    ]
    cost = [
        f"CBR {row.cbr:.4f} of {row.cbr_target:.4g}",
        f"{row.channel_uses:,} channel uses",
        f"{row.airtime_s:.3g} s on the air",
    ]
    if row.packets_sent:
        cost.append(f"{row.packets_lost} of {row.packets_sent} packets lost" + (f" ({row.mcs})" if row.mcs else ""))
    if row.concealed_frames:
        cost.append(f"{row.concealed_frames} frames concealed")
    print(f"{row.name} sent {row.clip} ({row.frames} frames of {row.width}x{row.height}) over {row.channel} {snr}")
    print(f"  {', '.join(quality + cost)}")
    for note in row.footnotes:
        print(f"  note: {note}")


def systems() -> None:
    """Print every registered system, and the receiver's task models."""
    from semcast import checkpoint
    from semcast.goals import TASK_MODELS
    from semcast.systems import SYSTEMS

    out = console()
    for name in SYSTEMS:
        spec = SYSTEMS.get(name)
        out.print(f"[bold]{name}[/bold]  {_plain(spec.summary)}")
        lines = [("paper", spec.paper), ("kind", spec.kind), ("goals", ", ".join(spec.goals))]
        if len(spec.presets) > 1:
            lines.append(("presets", ", ".join(spec.presets)))
        if spec.trained:
            for preset in spec.presets:
                folder = checkpoint.shipped(name, preset)
                card = checkpoint.read_card(folder) if folder else None
                lender = spec.lenders.get(preset)
                none = f"those of {lender}" if lender else "none shipped; pass --weights DIR"
                lines.append((f"weights of {preset}", none if card is None else _card(card)))
        for label, text in lines:
            if text:
                out.print(f"    {label}: {_plain(text)}")
    for name in TASK_MODELS:
        model = TASK_MODELS.get(name)
        out.print(f"[bold]{name}[/bold]  {_plain(model.summary)}")
        for preset in model.presets:
            folder = checkpoint.shipped(name, preset)
            card = checkpoint.read_card(folder) if folder else None
            out.print(f"    weights of {preset}: {_plain('none shipped' if card is None else _card(card))}")


def _card(card: dict[str, Any]) -> str:
    """What a card says on data and licence, and what the weights reach."""
    data = card.get("data")
    trained = ", ".join(map(str, data)) if isinstance(data, list) else str(data or "not stated")
    parts = [f"trained on {trained}", f"licence of the data: {card.get('licence') or card.get('license') or 'not stated'}"]
    validation = card.get("validation") or {}
    where = validation.get("what", "held-out clips")
    if validation.get("psnr_rgb_db") is not None:
        parts.append(f"{validation['psnr_rgb_db']:.2f} dB PSNR on {where}")
    if validation.get("miou") is not None:
        parts.append(f"mIoU {validation['miou']:.3f} on {where}")
    return "; ".join(parts)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def channels() -> None:
    """Print every registered channel with its options; those that all of them have come once, at the end."""
    from semcast.channels import describe_channels
    from semcast.channels.options import ChannelOptions, describe_options

    out = console()
    common = {option["key"] for option in describe_options(ChannelOptions)}
    for channel in describe_channels():
        example = _plain(f"--channel {channel['example']}")
        out.print(f"[bold]{channel['name']}[/bold]  {_plain(channel['summary'])}  [dim]{example}[/dim]")
        for option in channel["options"]:
            if option["key"] not in common:
                _option(out, option)
    out.print("[bold]every channel[/bold]")
    for option in describe_options(ChannelOptions):
        _option(out, option)


def _option(out: Console, option: dict[str, Any]) -> None:
    kind = "|".join(option["choices"]) or {"float": "number", "int": "whole number", "bool": "flag"}.get(option["type"], "text")
    unit = f" in {option['unit']}" if option["unit"] else ""
    default = "off" if option["default"] is None else option["default"]
    out.print(f"    {option['key']}  {_plain(kind)}{_plain(unit)}, default {default}: {_plain(option['doc'])}")
