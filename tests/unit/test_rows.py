"""Rows survive the file, hold no NaN, and bad files get one sentence."""

import json
from pathlib import Path

import pytest

from semcast.errors import InputError
from semcast.studies.rows import KEYS, Row, append_jsonl, read_rows, write_json

PROMISED = """
    system preset weights clip frames height width goal channel condition phy mcs gop snr_db csi_snr_db cbr_target cbr
    channel_uses analog_uses digital_uses feedback_uses info_bits packets_sent packets_lost assumed_free_uses airtime_s energy_j
    psnr_rgb_db psnr_y_db ssim_rgb ms_ssim_rgb lpips_squeeze vmaf miou top1 encode_fps decode_fps seed version per_frame
"""


def row(**values: object) -> Row:
    base: dict[str, object] = {"system": "h265-ldpc", "clip": "a", "frames": 2, "height": 64, "width": 96, "channel": "awgn"}
    return Row.model_validate(base | values)


def test_promised_keys_are_there() -> None:
    assert set(PROMISED.split()) <= set(KEYS)
    assert set(json.loads(row().model_dump_json())) == set(KEYS)


def test_round_trip_as_json_and_jsonl(tmp_path: Path) -> None:
    rows = [
        row(snr_db=5, cbr=0.02, streams={"video": 100}, per_frame={"psnr_rgb_db": [30.0, 31.5]}, footnotes=["maps free"]),
        row(system="deepjscc", preset="small", clip="Straße", paper_conventions={"R": 1 / 12}, seed=3),
    ]
    assert read_rows(write_json(tmp_path / "deep" / "rows.json", rows)) == rows
    for item in rows:
        append_jsonl(tmp_path / "rows.jsonl", item)
    assert read_rows(tmp_path / "rows.jsonl") == rows
    assert write_json(tmp_path / "none.json", []).read_text().split() == ["[", "]"]
    assert read_rows(tmp_path / "none.json") == []


def test_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    item = row(snr_db=float("inf"), lpips_squeeze=float("nan"), per_frame={"psnr_rgb_db": [float("-inf"), 20.0]})
    path = write_json(tmp_path / "rows.json", [item])
    assert not any(word in path.read_text() for word in ("NaN", "Infinity"))
    stored = json.loads(path.read_text())[0]
    assert stored["snr_db"] is None
    assert stored["lpips_squeeze"] is None
    assert stored["per_frame"] == {"psnr_rgb_db": [None, 20.0]}
    assert read_rows(path) == [item]


def test_derived_values() -> None:
    assert row(preset="default").name == "h265-ldpc"
    assert row(system="deepjscc", preset="small").name == "deepjscc:small"
    assert row(cbr_target=0.02, cbr=0.0193).cbr_key == 0.02
    assert row(cbr=0.019349).cbr_key == 0.0193
    assert row(packets_sent=8, packets_lost=2).loss_share == 0.25
    assert row().loss_share is None
    assert row(analog_uses=10, digital_uses=3).is_analog
    assert not row(digital_uses=3).is_analog


ROW = '[{"system":"a","clip":"c","frames":%s,"height":1,"width":1,"channel":"awgn"%s}]'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{not json", "is not JSON"),
        ("\x00\x01", "is not JSON"),
        ("[1, 2]", "row 1 of .* no object"),
        ('[{"system": "a"}]', "row 1 of .*key 'clip'"),
        (ROW % ('"many"', ""), "key 'frames'"),
        (
            '[{"system":"a","clip":"c","frames":1,"height":1,"width":1,"channel":"awgn","psnr_rgb":1}]',
            "did you mean 'psnr_rgb_db'",
        ),
        ("[" * 100_000, "nested too deep|is not JSON"),
    ],
)
def test_bad_files_get_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_rows(path)
    assert "\n" not in str(caught.value)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read rows"):
        read_rows(tmp_path / "absent.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file"):
        read_rows(tmp_path / "b.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_json(tmp_path / "file" / "rows.json", [])
