"""Small trained models that come with the package: how they are stored and read.

Models of one kind lie in one folder, `FOLDER/<kind>`: `recipe.json` says how they were
made and by which script, and of each file its seed, sha256 and scores; a file holds the
weights of one model, as halves or, to save room, its matrices in 8 bits. What a class
needs to be built (shapes, vocabulary) stands in the recipe too:

    recipe = shipped.recipe("two-towers")
    towers = shipped.fill(TwoTowers(TwoTowersSettings(**recipe["settings"]), …),
                          "two-towers", seed=0, variant="intra-0")

Models of different seeds are independent draws (`units`): a claim that rests on them has
as many paired seeds as there are of them, and no more.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "weights"
RECIPE = "recipe.json"
LARGEST = 45_000_000  # bytes that all of them may take: a checkout stays small
SCALE = ":scale"  # added to a matrix's name: what its rows of 8 bits are multiplied by


def kinds() -> list[str]:
    """What comes with the package."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{RECIPE}"))


def recipe(kind: str | Path) -> dict:
    """How the models of a kind were made.

    Args:
        kind: a name from `kinds()`, or a folder of your own.
    Raises:
        FileNotFoundError: no such kind.
    """
    path = _folder(kind) / RECIPE
    if not path.is_file():
        raise FileNotFoundError(f"no models of kind {str(kind)!r}; there are "
                                f"{', '.join(kinds())}, or name a folder with {RECIPE}")
    return json.loads(path.read_text("utf-8"))


def file_name(seed: int, variant: str = "") -> str:
    """The name of a model's file. variant: what sets it apart from others of its seed."""
    return f"seed-{seed}{variant and '-'}{variant}.safetensors"


def units(kind: str | Path, variant: str = "") -> list[int]:
    """The seeds of the independent models there are, in order."""
    files = recipe(kind)["files"]
    return sorted(entry["seed"] for name, entry in files.items()
                  if name == file_name(entry["seed"], variant))


def weights(kind: str | Path, seed: int, variant: str = "") -> dict[str, Tensor]:
    """A model's tensors by name, the numbers in float32.

    Raises:
        FileNotFoundError: no such model. ValueError: the file's sha256 is not the
            recipe's, or it is no safetensors file.
    """
    made, name = recipe(kind), file_name(seed, variant)
    if name not in made["files"]:
        raise FileNotFoundError(f"no {name} of kind {str(kind)!r}; there are "
                                f"{', '.join(sorted(made['files']))}")
    raw = (_folder(kind) / name).read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != (wanted := made["files"][name]["sha256"]):
        raise ValueError(f"{name} is broken: sha256 {found[:12]}…, the recipe says "
                         f"{wanted[:12]}…; install the package again, or train it with "
                         f"data_scripts/{made['script']}")
    try:
        return unpacked(tensors_of(raw))
    except SafetensorError as error:
        raise ValueError(f"{name} is no safetensors file: {error}") from error


def fill(model: nn.Module, kind: str | Path, seed: int, variant: str = "") -> nn.Module:
    """The model with these weights, frozen and in eval mode.

    Raises:
        ValueError: it has other tensors or shapes than were stored; and as `weights`.
    """
    stored = weights(kind, seed, variant)
    try:
        _take(model, stored)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{file_name(seed, variant)} does not fit a "
                         f"{type(model).__name__} of these settings: {error}") from error
    return model.requires_grad_(False).eval()


# For the scripts that train them ------------------------------------------------------
def begin(folder: Path, script: str, **made) -> None:
    """Write the recipe of an empty folder; with the same recipe go on where an earlier
    call stopped.

    Args:
        script: in data_scripts, that trains these models. made: settings, vocabulary,
            corpus, budget: JSON values.
    Raises:
        ValueError: the folder holds models of another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    new = json.loads(json.dumps({"script": script, **made, "files": {}}))
    if not (folder / RECIPE).is_file():
        _write(folder / RECIPE, json.dumps(new, indent=1).encode())
    elif {**recipe(folder), "files": {}} != new:
        raise ValueError(f"{folder} holds models of another recipe: name a new folder")


def add(folder: Path, model: nn.Module, seed: int, variant: str = "", bits: int = 16,
        scores: Callable[[nn.Module], dict] | None = None, **facts) -> dict:
    """Store a model and what is known of it; returns its entry in the recipe.

    The model keeps the rounded weights, so `scores(model)` and whatever else is measured
    afterwards are those of the stored model.

    Args:
        bits: 16, or 8: matrices and tables in 8 bits with a factor for each row, all else
            as halves. facts: JSON values for the entry, beside the scores.
    Raises:
        ValueError: a weight is not finite as a half, or another number of bits.
    """
    stored = packed(model, bits)
    _take(model, unpacked(stored))
    raw, made, name = bytes_of(stored), recipe(folder), file_name(seed, variant)
    entry = {"sha256": hashlib.sha256(raw).hexdigest(), "seed": seed, **facts,
             **(scores(model) if scores else {})}
    made["files"][name] = entry
    _write(folder / name, raw)
    _write(folder / RECIPE, json.dumps(made, indent=1).encode())
    return entry


def packed(model: nn.Module, bits: int = 16) -> dict[str, Tensor]:
    """The model's tensors, rounded; of those that share memory the first alone."""
    if bits not in (8, 16):
        raise ValueError(f"bits must be 8 or 16, got {bits}")
    found = {}
    for name, x in _distinct(model).items():
        x = x.detach().cpu()
        if not x.is_floating_point():
            found[name] = x.contiguous()
            continue
        if not x.half().isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite as halves")
        if bits == 8 and x.dim() > 1:
            rows = x.float().flatten(1)
            scale = rows.abs().amax(1) / 127
            whole = (rows / scale.clamp_min(1e-30)[:, None]).round().to(torch.int8)
            found |= {name: whole.view(x.shape), name + SCALE: scale}
        else:
            found[name] = x.half().contiguous()
    return found


def unpacked(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `packed` made, in float32."""
    found = {}
    for name, x in stored.items():
        if (scale := stored.get(name + SCALE)) is not None:
            x = (x.flatten(1) * scale[:, None]).view(x.shape)
        if not name.endswith(SCALE):
            found[name] = x.float() if x.is_floating_point() else x
    return found


def _distinct(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without second names of one tensor (tied weights)."""
    first: dict[int, str] = {}
    return {name: x for name, x in model.state_dict(keep_vars=True).items()
            if first.setdefault(id(x), name) == name}


def _take(model: nn.Module, stored: dict[str, Tensor]) -> None:
    """Put in these tensors; a tied one comes with its first name."""
    if odd := _distinct(model).keys() ^ stored.keys():
        raise KeyError(f"tensors that only one of both has: {', '.join(sorted(odd))}")
    model.load_state_dict(stored, strict=False)


def _folder(kind: str | Path) -> Path:
    return kind if isinstance(kind, Path) else FOLDER / kind


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
