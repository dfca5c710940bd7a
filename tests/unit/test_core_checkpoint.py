"""Checkpoints refuse what does not fit, in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from semcast import checkpoint
from semcast.errors import UnknownNameError, WeightsError
from semcast.systems.base import System
from semcast.systems.deepjscc import DeepJscc, PaperConfig, SmallConfig
from semcast.systems.dvst.small import DvstSmall
from semcast.systems.dvst.small import SmallConfig as DvstConfig
from semcast.systems.ntscc.small import NtsccSmall
from semcast.systems.ntscc.small import SmallConfig as NtsccConfig

KEY = NtsccConfig(
    classes=4, quarter_classes=3, latents=48, rotated=0, width=8, fine_width=8, decoder_blocks=1, fine_blocks=1, embedding=2
)
TINY = SmallConfig(latents=48, width=16, fine_width=8, encoder_blocks=1, decoder_blocks=1, fine_blocks=1)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return checkpoint.save(DeepJscc(TINY), tmp_path / "w", {"trained_on": "nothing"})


def test_files_are_plain(saved: Path) -> None:
    assert sorted(p.name for p in saved.iterdir()) == ["card.json", "config.json", "model.safetensors"]
    assert checkpoint.read_card(saved) == {"trained_on": "nothing"}
    assert json.loads((saved / "config.json").read_text())["config"]["width"] == 16
    assert checkpoint.read_card(saved / "nowhere") == {}


def test_round_trip_is_fp16_and_the_id_follows_the_weights(saved: Path, tmp_path: Path) -> None:
    one, two = DeepJscc(TINY), DeepJscc(TINY)
    assert checkpoint.load(one, saved) == checkpoint.load(two, saved) == checkpoint.weights_id(saved)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
        if value.is_floating_point():
            assert torch.equal(value, value.half().float())
    with torch.no_grad():
        next(one.parameters()).add_(1)
    other = checkpoint.save(one, tmp_path / "other", {})
    assert checkpoint.weights_id(other) != checkpoint.weights_id(saved)


def test_a_given_state_is_stored_instead(tmp_path: Path) -> None:
    system = DeepJscc(TINY)
    average = {name: torch.zeros_like(value) for name, value in system.state_dict().items()}
    checkpoint.load(system, checkpoint.save(system, tmp_path / "w", {}, state=average))
    assert all(not bool(value.any()) for value in system.state_dict().values())


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"is no checkpoint: config\.json, model\.safetensors not found"):
        checkpoint.load(DeepJscc(TINY), tmp_path)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff" * 64, b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"])
def test_damaged_files(saved: Path, file: str, content: bytes) -> None:
    (saved / file).write_bytes(content)
    with pytest.raises(WeightsError, match="damaged"):
        checkpoint.load(DeepJscc(TINY), saved)


def test_truncated_weights(saved: Path) -> None:
    data = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match="damaged"):
        checkpoint.load(DeepJscc(TINY), saved)


def test_another_preset_and_another_configuration(saved: Path) -> None:
    with pytest.raises(WeightsError, match="belong to deepjscc:small, not to deepjscc:paper"):
        checkpoint.load(DeepJscc(PaperConfig()), saved)
    with pytest.raises(WeightsError, match="another configuration"):
        checkpoint.load(DeepJscc(SmallConfig()), saved)


def test_tensors_that_do_not_fit(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    tensors.pop(min(tensors))
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(WeightsError, match="1 tensors differ"):
        checkpoint.load(DeepJscc(TINY), saved)


def test_names_on_the_command_line() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'deepjscc'"):
        checkpoint.make_system("deepjsc")
    with pytest.raises(UnknownNameError, match=r"unknown preset of deepjscc 'smal'; did you mean 'small'"):
        checkpoint.make_system("deepjscc:smal")


def test_a_weightless_preset_says_how_to_get_some() -> None:
    with pytest.raises(WeightsError, match="semcast train deepjscc --preset paper"):
        checkpoint.make_system("deepjscc:paper")


# -- key frames from another checkpoint ----------------------------------------------------------------------------------------


def grouped() -> System:
    return DvstSmall(
        DvstConfig(classes=4, quarter_classes=3, latents=48, rotated=0, fine_width=8, fine_blocks=1, embedding=2),
        NtsccSmall(KEY),
        4,
    )


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that stands for the shipped weights of ntscc:small."""
    folder = checkpoint.save(NtsccSmall(KEY), tmp_path / "keys", {})
    monkeypatch.setattr(
        checkpoint, "shipped", lambda system, preset: folder if (system, preset) == ("ntscc", "small") else None
    )
    return folder


def test_key_frames_keep_their_weights_in_their_own_checkpoint(keys: Path, tmp_path: Path) -> None:
    one, two = grouped(), grouped()
    saved = checkpoint.save(one, tmp_path / "w", {})
    tensors = load_file(saved / "model.safetensors")
    assert tensors
    assert [name for name in tensors if name.startswith("key.")] == []
    assert json.loads((saved / "config.json").read_text())["key_weights"] == checkpoint.weights_id(keys)
    before = {name: value.clone() for name, value in two.key.state_dict().items()}
    assert checkpoint.load(two, saved) == checkpoint.weights_id(saved)
    assert all(torch.equal(value, before[name]) for name, value in two.key.state_dict().items())
    own = {name: value for name, value in two.state_dict().items() if not name.startswith("key.")}
    assert all(torch.equal(value, tensors[name].to(value.dtype)) for name, value in own.items())


def test_a_given_state_loses_its_key_tensors_too(keys: Path, tmp_path: Path) -> None:
    system = grouped()
    saved = checkpoint.save(system, tmp_path / "w", {}, state=dict(system.state_dict()))
    assert not [name for name in load_file(saved / "model.safetensors") if name.startswith("key.")]


def test_other_key_weights_are_refused_in_a_sentence(keys: Path, tmp_path: Path) -> None:
    saved = checkpoint.save(grouped(), tmp_path / "w", {})
    other = NtsccSmall(KEY)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    checkpoint.save(other, keys, {})
    with pytest.raises(WeightsError, match="were trained with other key frames than the ntscc:small here") as error:
        checkpoint.load(grouped(), saved)
    assert "\n" not in str(error.value)


def test_key_tensors_do_not_belong_into_a_checkpoint(keys: Path, tmp_path: Path) -> None:
    saved = checkpoint.save(grouped(), tmp_path / "w", {})
    tensors = load_file(saved / "model.safetensors")
    save_file({**tensors, "key.std": torch.zeros(3)}, saved / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 tensors differ, first 'key\.std'"):
        checkpoint.load(grouped(), saved)
