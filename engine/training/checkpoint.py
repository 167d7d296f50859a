"""Checkpoints of a training run: tensors as safetensors, the rest as JSON; a folder each, whole or none."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from engine.errors import InputError

_NAME = re.compile(r"step-(\d+)")


def save_checkpoint(folder: Path, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> Path:
    """Write `folder/step-<n>` and then remove older ones; a crash at any moment leaves a whole checkpoint."""
    final = folder / f"step-{step:08d}"
    partial = folder / f".{final.name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
        partial / "tensors.safetensors",
    )
    (partial / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)
    partial.replace(final)
    for other in [*checkpoints(folder), *folder.glob(".step-*.partial")]:
        if other != final:
            shutil.rmtree(other)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in `folder`, oldest first; none when there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def load_checkpoint(path: Path, device: torch.device) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors on `device`, and the state.

    Raises:
        InputError: a file is missing or damaged.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return load_file(path / "tensors.safetensors", device=str(device)), state
    except Exception as error:  # safetensors raises its own kind for a truncated file
        raise InputError(f"{path}: damaged checkpoint ({error}); remove it to start anew") from None


def training_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Weights (`model.…`, tied ones once) and the optimizer's moments (`optimizer.….<moment>`)."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter
        for moment, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{moment}"] = value
    return tensors


def restore_training(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]
) -> None:
    """Load what `training_tensors` returned into the model and optimizer."""
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.copy_(tensors[f"model.{name}"])
        prefix = f"optimizer.{name}."
        optimizer.state[parameter] = {
            key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
        }
