"""Checkpoints refuse what does not fit, in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from semcast import checkpoint
from semcast.errors import UnknownNameError, WeightsError
from semcast.systems.deepjscc import DeepJscc, PaperConfig, SmallConfig

TINY = SmallConfig(latents=32, width=16, fine_width=8, encoder_blocks=1, decoder_blocks=1, fine_blocks=1)


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
    from safetensors.torch import load_file, save_file

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
    if checkpoint.shipped("deepjscc", "paper") is not None:
        pytest.skip("weights of deepjscc:paper come with this package")
    with pytest.raises(WeightsError, match="semcast train deepjscc --preset paper"):
        checkpoint.make_system("deepjscc:paper")
