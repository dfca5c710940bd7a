"""A checkpoint is a folder: config.json + model.safetensors (fp16) + card.json.

It belongs to a system, or to a task model of the receiver's: a module that has ``name``, ``preset`` and ``config``.

The card says what the weights were trained on, under which licence, with which seed and schedule, and which numbers they must
reproduce. Nothing is pickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from semcast.errors import UnknownNameError, WeightsError
from semcast.systems import SYSTEMS
from semcast.systems.base import System

FILES = ("config.json", "model.safetensors", "card.json")


def weights_id(folder: Path) -> str:
    """First 16 hex digits of the SHA-256 of the weights: what the session header carries."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]


def shipped(name: str, preset: str) -> Path | None:
    """The folder of the checkpoint that comes with the package, or None."""
    folder = Path(str(resources.files("semcast"))) / "weights" / f"{name}-{preset}"
    return folder if (folder / "model.safetensors").is_file() else None


def _config(system: nn.Module) -> dict[str, Any]:
    config = getattr(system, "config", None)
    values = dataclasses.asdict(config) if dataclasses.is_dataclass(config) and not isinstance(config, type) else {}
    return {"system": system.name, "preset": system.preset, "config": values}


def _key_name(system: nn.Module) -> str:
    return str(getattr(system, "key_name", ""))


def _own(system: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the key-frame system's tensors, where those stand in another checkpoint."""
    return {name: t for name, t in state.items() if not (_key_name(system) and name.startswith("key."))}


def attach_key(system: System, condition: str = "strong") -> str:
    """Give a system the key-frame system that it asks for, with its weights; returns their :func:`weights_id`."""
    if not system.key_name:
        return ""
    system.key, digest = make_system(system.key_name, condition=condition)
    return digest


def save(system: nn.Module, folder: str | Path, card: dict[str, Any], *, state: dict[str, torch.Tensor] | None = None) -> Path:
    """Write a checkpoint; floating-point tensors are stored as fp16.

    Args:
        system: whose weights. folder: made where absent. card: what card.json shall say. state: weights to store instead of the
            system's own, e.g. their moving average.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (t.detach().half() if t.is_floating_point() else t.detach()).cpu().contiguous()
        for name, t in _own(system, state or system.state_dict()).items()
    }
    save_file(tensors, target / "model.safetensors")
    config = _config(system)
    key = shipped(*_key_name(system).split(":")) if ":" in _key_name(system) else None
    if key is not None:
        config["key_weights"] = weights_id(key)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (target / "card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    return target


def read_card(folder: Path) -> dict[str, Any]:
    """card.json of a checkpoint, or {}."""
    path = folder / "card.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def load(system: nn.Module, folder: str | Path, *, lender: str = "") -> str:
    """Load a checkpoint into ``system`` and return its :func:`weights_id`.

    Args:
        system: with fresh weights. folder: of the checkpoint. lender: another preset whose weights will do, "" for none.

    Raises:
        WeightsError: the folder is no checkpoint, is damaged, or belongs to something else, another preset or configuration.
    """
    source = Path(folder)
    missing = [name for name in FILES[:2] if not (source / name).is_file()]
    if missing:
        raise WeightsError(f"{source} is no checkpoint: {', '.join(missing)} not found in it")
    want = f"{system.name}:{system.preset}"
    try:
        config = json.loads((source / "config.json").read_text())
        if not isinstance(config, dict):
            raise ValueError("config.json holds no object")
        tensors = load_file(source / "model.safetensors")
    except (ValueError, SafetensorError) as error:
        raise WeightsError(f"the checkpoint {source} is damaged: {error}") from error
    have = f"{config.get('system')}:{config.get('preset')}"
    if have not in (want, f"{system.name}:{lender}"):
        raise WeightsError(f"the weights in {source} belong to {have}, not to {want}; pass the matching --weights or --system")
    key = shipped(*_key_name(system).split(":")) if ":" in _key_name(system) else None
    if key is not None and config.get("key_weights") != weights_id(key):
        raise WeightsError(
            f"the weights in {source} were trained with other key frames than the {_key_name(system)} here: retrain them"
        )
    if config.get("config") != json.loads(json.dumps(_config(system)["config"])):
        raise WeightsError(f"the weights in {source} were trained with another configuration of {want}: retrain or update them")
    own = _own(system, system.state_dict())
    wrong = sorted(set(own) ^ set(tensors)) + [n for n in own if n in tensors and own[n].shape != tensors[n].shape]
    if wrong:
        raise WeightsError(f"the weights in {source} do not fit {want}: {len(wrong)} tensors differ, first {wrong[0]!r}")
    system.load_state_dict({name: t.to(own[name].dtype) for name, t in tensors.items()}, strict=not _key_name(system))
    return weights_id(source)


def borrow(system: nn.Module, source: str) -> None:
    """Copy the weights of ``"system:preset"`` as shipped, or of a checkpoint's folder, into ``system``: where training begins.

    Unlike :func:`load` it takes weights of another system, as long as every tensor has its counterpart, but for those that the
    system adapts itself.

    Raises:
        WeightsError: no such weights, or they do not fit.
    """
    named = shipped(*source.split(":")) if source.count(":") == 1 else None
    folder = named or Path(source)
    path = folder / "model.safetensors"
    if not path.is_file():
        raise WeightsError(f"no weights to begin with: {source} is neither shipped nor the folder of a checkpoint")
    tensors, own = load_file(path), _own(system, system.state_dict())
    own = {name: tensor for name, tensor in own.items() if not name.startswith(getattr(system, "adapted", ()))}
    wrong = [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
    if wrong:
        raise WeightsError(f"the weights of {source} do not fit {system.name}:{system.preset}: {wrong[0]!r} differs")
    system.load_state_dict({name: tensors[name].to(own[name].dtype) for name in own}, strict=False)


def make_system(name: str, *, condition: str = "strong", weights: str | Path | None = None) -> tuple[System, str]:
    """Build ``"system"`` or ``"system:preset"`` ready to use: in evaluation mode, with its weights.

    Args:
        name: as on the command line. condition: test condition of digital systems. weights: folder of a checkpoint; None takes
            the one that comes with the package, for the preset or for the one that lends it its weights.

    Returns:
        The system and its :func:`weights_id`, "" where it has no weights.

    Raises:
        UnknownNameError: no such system or preset. WeightsError: weights are needed and absent, or do not fit.
    """
    base, _, preset = name.partition(":")
    spec = SYSTEMS.get(base)
    preset = preset or spec.presets[0]
    if preset not in spec.presets:
        raise UnknownNameError(f"preset of {base}", preset, spec.presets)
    system = spec.make(preset, condition)
    system.name, system.preset = base, preset
    digest = attach_key(system, condition)
    if not spec.trained:
        if weights is not None:
            raise WeightsError(f"{base} has no weights to load; leave out --weights")
        return system.eval(), digest
    lender = spec.lenders.get(preset, "")
    folder = shipped(base, preset) or shipped(base, lender) if weights is None else Path(weights)
    if folder is None:
        raise WeightsError(
            f"no weights for {base}:{preset} come with Semcast; train them with `semcast train {base} --preset {preset}` and "
            "pass --weights DIR"
        )
    return system.eval(), load(system, folder, lender=lender)
