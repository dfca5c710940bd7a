"""The page: complete, self-contained, and honest about what the rows say. Rows and pictures here are made up."""

import json
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from semcast.errors import ContractError, InputError
from semcast.studies.explain import explain, findings
from semcast.studies.figures import (
    Media,
    Picture,
    common_gain,
    contact_sheet,
    data_uri,
    error_map,
    lowest_middle_highest,
    scale_colours,
)
from semcast.studies.plots import bd_table, frame_chart, quality_charts, stream_chart, styles
from semcast.studies.report import headline, render, write_report
from semcast.studies.rows import Row, read_rows
from semcast.studies.stats import main_cbr, series_names

META = {
    "command": "semcast compare clip.mp4 --systems a,b",
    "versions": {"semcast": "0.1.0", "torch": "2.13"},
    "elapsed": "61 s",
}


def digital_psnr(snr_db: float, cbr: float) -> tuple[float, int]:
    """(PSNR, lost of 100 packets) of a chain whose blocks fail below about 5 dB."""
    lost = round(100 / (1 + math.exp(4 * (snr_db - 3.5))))
    return (33.5 + 5 * math.log2(cbr / 0.02)) * (1 - lost / 100) + 17 * lost / 100, lost


def analog_psnr(snr_db: float, cbr: float) -> float:
    return 27 + 3 * math.log2(cbr / 0.02) + 0.45 * snr_db - 0.008 * snr_db**2


def made_up(snrs: Sequence[float] = (0, 5, 10), cbrs: Sequence[float] = (0.02,), seeds: Sequence[int] = (0,)) -> list[Row]:
    rows = []
    for seed in seeds:
        for cbr in cbrs:
            for snr_db in snrs:
                jitter = 0.1 * math.sin(7 * seed + snr_db)
                for system in ("h265-ldpc", "deepjscc", "linear-jscc"):
                    analog, uses = system != "h265-ldpc", round(cbr * 3 * 240 * 416 * 33)
                    psnr, lost = (analog_psnr(snr_db, cbr), 0) if analog else digital_psnr(snr_db, cbr)
                    psnr += jitter - (3 if system == "linear-jscc" else 0)
                    frames = [round(psnr + math.sin(i / 3), 3) for i in range(33)]
                    streams = (
                        {"header": 220, "latent": uses - 220} if analog else {"header": 220, "video": uses - 1200, "crc": 980}
                    )
                    rows.append(
                        Row(
                            system=system,
                            preset="small" if system == "deepjscc" else "default",
                            clip="BasketballPass_416x240_50",
                            frames=33,
                            height=240,
                            width=416,
                            channel="awgn",
                            condition="strong",
                            phy="fast",
                            mcs=None if analog else "qpsk-1/2",
                            snr_db=snr_db,
                            csi_snr_db=snr_db,
                            cbr_target=cbr,
                            cbr=cbr * 0.99,
                            channel_uses=uses,
                            analog_uses=uses - 220 if analog else 0,
                            digital_uses=220 if analog else uses,
                            packets_sent=2 if analog else 100,
                            packets_lost=lost,
                            concealed_frames=lost // 4,
                            psnr_rgb_db=psnr,
                            psnr_y_db=psnr + 1.3,
                            ms_ssim_rgb=0.97,
                            ms_ssim_rgb_db=psnr / 2,
                            lpips_squeeze=0.4 - psnr / 100,
                            encode_fps=88.0,
                            decode_fps=131.0,
                            seed=seed,
                            version="0.1.0",
                            streams=streams,
                            paper_conventions={"cbr": cbr, "dvst_real_symbols": 2 * cbr},
                            per_frame={"psnr_rgb_db": frames},
                        )
                    )
    return rows


def picture(height: int = 48, width: int = 65) -> Picture:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 7 % 256], 2).astype(np.uint8)


def media(rows: Sequence[Row], original: Picture | None = None) -> list[Media]:
    original = picture() if original is None else original
    rng = np.random.default_rng(1)
    out = []
    for row in rows:
        assert row.psnr_rgb_db is not None
        noise = rng.normal(0, 255 * 10 ** (-row.psnr_rgb_db / 20), original.shape)
        received = np.clip(original + noise, 0, 255).astype(np.uint8)
        note = f"{row.packets_lost} packets lost" if row.packets_lost else ""
        out.append(Media(row.name, row.clip, row.channel, row.snr_db, row.cbr_key, 16, original, received, note))
    return out


class Page(HTMLParser):
    """Collects what a browser would fetch, what it would show, and whether tags close."""

    VOID = ("meta", "img", "input", "br", "link")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.images = 0
        self.ids: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.styles = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.images += tag == "img"
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.fetched += [value or "" for name, value in attrs if name in ("src", "srcset", "data", "poster")]
        self.fetched += [value or "" for name, value in attrs if name == "href" and tag != "a"]
        self.styles += " ".join(value or "" for name, value in attrs if name == "style")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A self-closing element of SVG opens nothing."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.styles += data
        elif self.open and self.open[-1] != "script":
            self.text += data


def test_report_is_complete_and_fetches_nothing(tmp_path: Path) -> None:
    rows = made_up(cbrs=(0.01, 0.02), seeds=(0, 1, 2))
    path = write_report(tmp_path / "out", rows, media([row for row in rows if row.seed == 0]), META)
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.fetched)
    assert (
        page.images == 2 * 3 * (1 + 2 * 3) + 2
    )  # CBRs x SNRs x (original, and picture and map per system), and the wipe's two
    assert "url(" not in page.styles
    assert "@import" not in page.styles
    assert "default-src 'none'" in html
    assert 3_000_000 < len(html) < 9_000_000  # Plotly once
    words = [
        "deepjscc:small",
        "h265-ldpc",
        "falls off a cliff",
        META["command"],
        "torch 2.13",
        "elapsed: 61 s",
        "Nothing was free",
    ]
    assert [word for word in words if str(word) not in page.text] == []
    figures = json.loads(html.split('id="figures">')[1].split("</script>")[0])
    assert {"psnr_rgb_db-snr", "psnr_rgb_db-cbr", "ms_ssim_rgb_db-snr", "streams", "frames"} <= set(figures)
    assert read_rows(path.parent / "rows.json") == rows
    assert (path.parent / "summary.png").stat().st_size > 1000


def test_figures_are_valid_plotly() -> None:
    import plotly.graph_objects as go

    rows = made_up(cbrs=(0.01, 0.02), seeds=(0, 1))
    charts = [*quality_charts(rows), stream_chart(rows), frame_chart(rows)]
    for chart in charts:
        assert chart is not None
        for _, figure in chart.views:
            built = go.Figure(data=figure["data"], layout=figure["layout"])
            assert len(built.data) >= 3
            json.dumps(figure, allow_nan=False)


def test_curves_carry_the_rows_numbers_and_bands() -> None:
    rows = made_up(seeds=(0, 1, 2))
    (chart,) = [chart for chart in quality_charts(rows) if chart.key == "psnr_rgb_db-snr"]
    ((label, figure),) = chart.views
    assert label == "CBR 0.02"
    bands = [trace for trace in figure["data"] if trace.get("fill")]
    (line,) = [trace for trace in figure["data"] if trace["name"] == "h265-ldpc" and not trace.get("fill")]
    assert len(bands) == 3
    assert line["x"] == [0, 5, 10]
    mine = [row.psnr_rgb_db for row in rows if row.system == "h265-ldpc" and row.snr_db == 10 and row.psnr_rgb_db]
    assert line["y"][2] == pytest.approx(sum(mine) / 3, abs=0.01)
    assert not [trace for c in quality_charts(made_up()) for _, f in c.views for trace in f["data"] if trace.get("fill")]


def test_streams_add_up_to_what_was_spent() -> None:
    rows = made_up()
    chart = stream_chart(rows)
    assert chart is not None
    _, figure = chart.views[0]
    total = dict.fromkeys(("h265-ldpc", "deepjscc:small", "linear-jscc"), 0.0)
    for trace in figure["data"]:
        for name, uses in zip(trace["y"], trace["x"], strict=True):
            total[name] += uses
    for row in rows:
        assert row.channel_uses is not None
        assert total[row.name] == pytest.approx(row.channel_uses / row.frames, rel=1e-3)


@pytest.mark.parametrize("snr_db", [10.0, None])
def test_one_row_is_enough(tmp_path: Path, snr_db: float | None) -> None:
    row = Row(
        system="freeze",
        clip="a<b>&\"c'</script>",
        frames=1,
        height=64,
        width=64,
        channel="ideal",
        snr_db=snr_db,
        psnr_rgb_db=20.0,
    )
    page = Page(write_report(tmp_path, [row], [], {}).read_text())
    assert page.open == []
    assert "a<b>&\"c'</script>" in page.text
    assert "Quality" not in page.text.split("Every transmission")[0]
    assert len(page.text) < 10_000
    assert not (tmp_path / "summary.png").exists()


def test_bare_rows_and_unmeasured_pictures(tmp_path: Path) -> None:
    rows = made_up()
    shown = [item for item in media(rows) if not (item.series == "linear-jscc" and item.snr_db == 5)]
    page = Page(render(rows, shown, {}))
    assert page.text.count("not measured") == 1


def test_nothing_to_report_and_nowhere_to_write(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to report"):
        write_report(tmp_path, [], [], {})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the report"):
        write_report(tmp_path / "file", made_up(), [], {})


def test_footnotes_are_printed_and_merged() -> None:
    rows = [
        row.model_copy(update={"footnotes": [f"stream 'maps' ({100 + i} uses) is assumed free"]})
        for i, row in enumerate(made_up())
    ]
    text = Page(render(rows, [], {})).text
    assert text.count("is assumed free") == 3  # one per system
    assert "and alike in 2 more" in text
    assert "Nothing was free" not in text


def test_headline_says_what_was_compared() -> None:
    text = headline(made_up())
    assert text == ("h265-ldpc, deepjscc:small and linear-jscc send BasketballPass_416x240_50 over awgn at 0, 5 and 10 dB SNR.")


def said(rows: Sequence[Row], series: str) -> dict[str, str]:
    return {finding.kind: finding.text for finding in findings(rows) if finding.series == series}


def test_explains_cliff_floor_and_grace() -> None:
    rows = made_up(snrs=(-2, 0, 2, 4, 6, 8, 10))
    digital, analog = said(rows, "h265-ldpc"), said(rows, "deepjscc:small")
    assert set(digital) == {"cliff", "floor", "concealed"}
    assert "between 4 dB and 2 dB" in digital["cliff"]
    assert "flat from 6 dB to 10 dB" in digital["floor"]
    assert "the same bits are decoded" in digital["floor"]
    assert set(analog) == {"graceful"}
    assert "per dB of SNR" in analog["graceful"]
    (crossover,) = [finding.text for finding in findings(rows) if finding.kind == "crossover"]
    assert crossover.startswith("deepjscc:small is ahead below about 4 dB, h265-ldpc above it")
    assert explain(rows) == [finding.text for finding in findings(rows)]


def test_explains_adaptation_without_loss() -> None:
    rows = []
    for snr_db, psnr, mcs in [(0, 28.0, "qpsk-1/3"), (5, 31.0, "qpsk-2/3"), (10, 34.0, "16qam-2/3")]:
        row = made_up(snrs=(snr_db,))[0]
        rows.append(row.model_copy(update={"psnr_rgb_db": psnr, "mcs": mcs, "packets_lost": 0}))
    told = said(rows, "h265-ldpc")
    assert set(told) == {"adapts"}
    assert "from qpsk-1/3 to 16qam-2/3" in told["adapts"]
    assert "28.0 dB at 0 dB to 34.0 dB at 10 dB" in told["adapts"]


def test_explains_saturation_and_missed_budget() -> None:
    rows = [row for row in made_up(snrs=(10, 20, 30)) if row.system == "deepjscc"]
    rows = [row.model_copy(update={"cbr": 0.023}) for row in rows]
    told = said(rows, "deepjscc:small")
    assert "levels off" in told["saturates"]
    assert "15% over its channel budget" in told["off-target"]


def test_a_lead_everywhere_is_no_crossover() -> None:
    rows = [row for row in made_up(snrs=(6, 8, 10)) if row.system != "linear-jscc"]
    (text,) = [finding.text for finding in findings(rows) if finding.kind == "crossover"]
    assert text.startswith("h265-ldpc is ahead of deepjscc:small at every SNR")


def test_freeze_is_not_explained_as_a_codec() -> None:
    rows = [row.model_copy(update={"system": "freeze"}) for row in made_up() if row.system == "h265-ldpc"]
    assert explain(rows) == []


def test_mismatch_curves_are_named_and_kept_whole() -> None:
    matched = [row for row in made_up() if row.system == "h265-ldpc"]
    told = [row.model_copy(update={"csi_snr_db": 10.0}) for row in matched]
    assert set(series_names(matched).values()) == {"h265-ldpc"}
    assert set(series_names(told).values()) == {"h265-ldpc (told 10 dB)"}
    names = list(series_names([*told[:2], *matched]).values())
    assert names == ["h265-ldpc (told 10 dB)"] * 2 + ["h265-ldpc"] * 3


def test_nothing_to_explain() -> None:
    assert explain(made_up(snrs=(5,))) == []


def test_bd_table_needs_four_points() -> None:
    assert bd_table(made_up(cbrs=(0.01, 0.02, 0.04))) == []
    lines = bd_table(made_up(snrs=(10,), cbrs=(0.01, 0.015, 0.02, 0.03, 0.04)))
    assert [(line.anchor, line.series) for line in lines] == [("h265-ldpc", "deepjscc:small"), ("h265-ldpc", "linear-jscc")]
    assert lines[0].psnr.value is not None
    assert lines[0].psnr.value == pytest.approx(lines[1].psnr.value + 3, abs=1e-6)  # type: ignore[operator]


def test_colours_are_fixed_per_system() -> None:
    alone, crowd = (
        styles(["deepjscc:small"]),
        styles(["h265-ldpc", "h265-capacity", "deepjscc:small", "deepjscc:paper", "mine", "yours"]),
    )
    assert alone["deepjscc:small"].colour == crowd["deepjscc:small"].colour == crowd["deepjscc:paper"].colour
    assert crowd["deepjscc:small"].dash != crowd["deepjscc:paper"].dash
    assert crowd["h265-ldpc"].colour == crowd["h265-capacity"].colour
    assert len({style.colour for style in crowd.values()}) == 4


def test_error_maps_share_one_scale() -> None:
    original = np.full((32, 40, 3), 100, np.uint8)
    received = original.copy()
    received[:, 20:] += 8
    item = Media("a", "c", "awgn", 5.0, 0.02, 0, original, received)
    assert common_gain([item]) == 16
    drawn = error_map(item, 16)
    stops = scale_colours(256)
    assert "#" + bytes(drawn[0, 0].tolist()).hex() == stops[0]
    assert "#" + bytes(drawn[0, 30].tolist()).hex() == stops[128]
    lightness = [
        sum(w * int(colour[i : i + 2], 16) for w, i in ((0.299, 1), (0.587, 3), (0.114, 5))) for colour in scale_colours()
    ]
    assert lightness == sorted(lightness)
    loud = Media("a", "c", "awgn", 5.0, 0.02, 0, original, np.zeros_like(original))
    assert common_gain([loud]) == 2
    assert common_gain([]) == 1


def test_media_checks_and_psnr() -> None:
    original = picture()
    assert Media("a", "c", "awgn", 5.0, 0.02, 0, original, original).psnr_rgb_db == 100.0
    shifted = np.full_like(original, 100)
    assert Media("a", "c", "awgn", 5.0, 0.02, 0, shifted, shifted + 5).psnr_rgb_db == pytest.approx(20 * math.log10(255 / 5))
    with pytest.raises(ContractError, match="differ in size"):
        Media("a", "c", "awgn", 5.0, 0.02, 0, original, original[:-1])
    with pytest.raises(ContractError, match="uint8"):
        Media("a", "c", "awgn", 5.0, 0.02, 0, original, original.astype(np.float32))  # type: ignore[arg-type]


def test_pictures_are_bounded_and_sheet_holds_them() -> None:
    import base64

    import cv2

    wide = np.tile(picture(), (10, 40, 1))
    uri = data_uri(wide)
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape[1] == 960
    shown = media(made_up(snrs=(0, 2, 4, 6, 8)))
    sheet = contact_sheet(shown, width=1200)
    assert sheet.shape[1] == 1200
    assert sheet.dtype == np.uint8
    per_row = (1200 - 2 * 28 - 3 * 12) // 4 * 48 / 65
    assert sheet.shape[0] == pytest.approx(28 + 64 + 3 * (per_row + 44 + 12) + 16, abs=4)  # three SNRs of five
    with pytest.raises(ContractError, match="at least one"):
        contact_sheet([])


def test_main_cbr_is_the_middle_of_the_fullest() -> None:
    assert main_cbr(made_up(cbrs=(0.04, 0.01, 0.02))) == 0.02
    assert main_cbr(made_up(cbrs=(0.01,)) + made_up(cbrs=(0.01, 0.02))) == 0.01
    assert main_cbr([]) is None


def test_lowest_middle_highest() -> None:
    assert lowest_middle_highest([5, 0, 10, 20, 5]) == [0, 10, 20]
    assert lowest_middle_highest([None]) == [None]


def test_report_modules_import_without_plotly() -> None:
    import subprocess
    import sys

    code = "import sys, semcast.studies.report; print([m for m in ('plotly', 'jinja2', 'torch', 'cv2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.sub(r"\s", "", done.stdout) == "[]"
