"""Checkpoints: tensors in safetensors, the rest in JSON, found again only when whole."""

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alignkit.training.distributed import as_shard, whole

KEEP = 2  # the newest, and one in case the disk tears it


def save(folder: Path, step: int, tensors: dict[str, Tensor], facts: dict) -> None:
    """Write checkpoint `step`. The JSON comes last and names the sha256 of the tensors,
    so that a checkpoint is whole or not there. Raises OSError if it cannot be written
    (a full disk); the checkpoints before it stay."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.safetensors"
    part, note = path.with_suffix(".part"), path.with_suffix(".json.part")
    try:
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
                  part)
        facts = {**facts, "sha256": _sha256(part)}
        _sync(part, path)
        note.write_text(json.dumps(facts), "utf-8")
        _sync(note, path.with_suffix(".json"))
    except (OSError, SafetensorError) as error:
        for half in (part, note, path):  # without its JSON it is no checkpoint
            half.unlink(missing_ok=True)
        raise OSError(f"checkpoint {path} was not written (is the disk full?): {error}; "
                      "those before it are whole") from error
    for old in sorted(folder.glob("step-*.json"))[:-KEEP]:
        old.with_suffix(".safetensors").unlink(missing_ok=True)
        old.unlink()


def newest(folder: Path) -> tuple[dict[str, Tensor], dict] | None:
    """(tensors, facts) of the newest whole checkpoint, or None."""
    for note in sorted(folder.glob("step-*.json"), reverse=True):
        try:
            facts = json.loads(note.read_text("utf-8"))
            if _sha256(note.with_suffix(".safetensors")) == facts["sha256"]:
                return load_file(note.with_suffix(".safetensors")), facts
        except (OSError, ValueError, KeyError, SafetensorError):
            continue  # torn: the one before it is whole
    return None


def pack(model: nn.Module, optimizer: torch.optim.Optimizer, best: dict,
         keep: bool = True) -> dict:
    """The tensors of a run under flat names; `unpack` and `unpack_optimizer` are the
    inverse. What is in shards is gathered, so every process must call; those that do not
    `keep` it get nothing."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            value = whole(torch.as_tensor(value))
            tensors |= {f"optimizer.{index}.{name}": value.cpu()} if keep else {}
    return tensors | {f"best.{k}": v for k, v in best.items()} if keep else {}


def unpack(tensors: dict, model: nn.Module) -> dict:
    """Load the model from `tensors`; the best weights are returned."""
    model.load_state_dict(_part(tensors, "model."))
    return _part(tensors, "best.")


def unpack_optimizer(tensors: dict, optimizer: torch.optim.Optimizer) -> None:
    """Load the optimiser from `tensors`, in shards where its parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict] = {}
    for name, tensor in _part(tensors, "optimizer.").items():
        index, key = name.split(".", 1)
        index = int(index)
        state.setdefault(index, {})[key] = as_shard(tensor, parameters[index])
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _part(tensors: dict, prefix: str) -> dict:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(part: Path, path: Path) -> None:
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
