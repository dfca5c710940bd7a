"""The learning curve as a small SVG picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WIDTH, HEIGHT, MARGIN = 720, 360, 56


NAMES = {"psnr_rgb_db": "PSNR (dB)", "miou": "mIoU"}


def draw_curve(log: list[dict[str, Any]], path: Path, title: str, score: str = "psnr_rgb_db") -> None:
    """Draw the score ``score`` on what was held out (line), and smoothed on what is trained on (thin), against steps."""
    points = [(line["step"], line[f"validation_{score}"]) for line in log if f"validation_{score}" in line]
    digits, unit = (2, " dB") if score.endswith("_db") else (3, "")
    smooth: list[tuple[float, float]] = []
    mean: float | None = None
    for line in log:
        mean = line[score] if mean is None else 0.9 * mean + 0.1 * line[score]
        smooth.append((line["step"], mean))
    values = [y for _, y in points + smooth]
    low, high = min(values), max(values) + 1e-3
    last = max(x for x, _ in points + smooth)

    def place(x: float, y: float) -> str:
        px = MARGIN + (WIDTH - 2 * MARGIN) * x / max(last, 1)
        py = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (y - low) / (high - low)
        return f"{px:.1f},{py:.1f}"

    def polyline(series: list[tuple[float, float]], colour: str, width: float) -> str:
        joined = " ".join(place(x, y) for x, y in series)
        return f'<polyline fill="none" stroke="{colour}" stroke-width="{width}" points="{joined}"/>'

    ticks = []
    for i in range(5):
        value = low + (high - low) * i / 4
        y = place(0, value).split(",")[1]
        ticks.append(f'<text x="{MARGIN - 6}" y="{y}" text-anchor="end" font-size="11">{value:.{digits - 1}f}</text>')
        ticks.append(f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y}" y2="{y}" stroke="#ddd"/>')
    best = f"; validation {points[-1][1]:.{digits}f}{unit}" if points else ""
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
        f'<rect width="100%" height="100%" fill="#fff"/><text x="{MARGIN}" y="26" font-size="14">'
        f"{title}: {NAMES.get(score, score)} against steps, {int(last)} so far{best}</text>{''.join(ticks)}"
        f"{polyline(smooth, '#9db4c8', 1)}{polyline(points, '#0b5fa5', 2.5)}</svg>\n"
    )
