"""Eleven kinds of furniture whose shapes tell them apart, as voxels."""

import re

import torch
from torch import Tensor

from alignkit.data.furniture import furniture
from alignkit.data.heard import VOICES, spoken
from alignkit.data.pairs import Pairs
from alignkit.data.speech import ENGINE, engine_folder

RECIPE = "solids 1"
SHARE = 0.6

# English names of a kind, and what such a name must not hold.
KINDS = {
    "chair": (r"\b(arm)?chair\b", r"ottoman"),
    "table": (r"\b(table|desk)\b", r"lamp|tennis|fan|bat|glass|football|pool"),
    "bed": (r"\b(bed|futon)\b", r"couch"),
    "sofa": (r"\b(sofa|couch)\b", r"chair|bed"),
    "lamp": (r"\b(lamp|lamppost|light|lights|spotlight)\b", r"switch"),
    "plant": (r"\b(plant|tulips|orchids|ficus|tree|cactus)\b", r"box"),
    "bottle": (r"\b(bottle|vase|jar|glass)\b", r"table|door|lamp|plate|cutlery"),
    "person": (r"\b(male|female|boy|girl)\b", r"sitting|lying"),
    "car": (r"\b(sedan|car|scenic|beetle|van|truck|leon)\b", r"wash"),
    "window": (r"\b(window|door)\b", r"cabinet|shower"),
    "cabinet": (r"\b(cabinet|wardrobe|bookcase|shelves|fridge)\b", r"sink|television"),
}


def solids(side: int = 16, size: int = 224) -> Pairs:
    """The pieces of `furniture` of the `KINDS`, each as solid, icon, words and speech.

    Columns: `voxels` (float32 [n, side, side, side], see `voxels_of`), `image` (the icon),
    `text` ("a chair") and `speech` (the kind, said by one of sixteen voices). Label `kind`.
    A row is a piece; what words and speech say is its kind alone.

    Raises ValueError, FetchError as `furniture` and `spoken` do.
    """
    pairs = furniture(size=size)
    kind = torch.tensor([kind_of(name) for name in pairs["text"]])
    pairs, kind = pairs.select((kind >= 0).nonzero()[:, 0]), kind[kind >= 0]
    names = [list(KINDS)[k] for k in kind.tolist()]
    engine_folder()  # says now, and not at the first sound, if it cannot be had
    voices = [VOICES[i % len(VOICES)] for i in range(len(names))]
    return Pairs.make(
        {"voxels": voxels_of(pairs["points"], side), "image": pairs["image"],
         "text": [f"a {name}" for name in names],
         "speech": spoken([(name,) for name in names], voices)},
        ids=pairs.ids, labels={"kind": kind}, label_names={"kind": list(KINDS)},
        provenance=pairs.provenance.derive(f"{RECIPE} {side} {ENGINE}"))


def dealt(kind: Tensor, seed: int) -> Tensor:
    """Which rows teach encoders and denoiser, bool [n], SHARE of each kind; the others
    teach the judge."""
    g, own = torch.Generator().manual_seed(seed), torch.zeros(len(kind), dtype=torch.bool)
    for k in kind.unique():
        rows = (kind == k).nonzero()[:, 0]
        own[rows[torch.randperm(len(rows), generator=g)[:round(SHARE * len(rows))]]] = True
    return own


def kind_of(name: str) -> int:
    """The number of the one kind that an English name speaks of; -1: of none or several."""
    name = name.lower()
    found = [k for k, (has, lacks) in enumerate(KINDS.values())
             if re.search(has, name) and not re.search(lacks, name)]
    return found[0] if len(found) == 1 else -1


def voxels_of(points: Tensor, side: int) -> Tensor:
    """Clouds [n, p, 3] in the unit ball -> how full their cells are, from 0 to 1,
    [n, y, z, x]: each point is shared among the eight cells around it; y points down, z
    away from who looks at azimuth 0.

    Raises ValueError for a side below 4.
    """
    if side < 4:
        raise ValueError(f"side must be at least 4 cells, got {side}")
    n, p, _ = points.shape
    flipped = points * points.new_tensor([1.0, -1.0, -1.0])
    at = ((flipped + 1) / 2 * side - 0.5).clamp(0, side - 1)
    low = at.floor().clamp(max=side - 2)
    part, cells = at - low, points.new_zeros(n, side**3)
    for corner in torch.cartesian_prod(*[torch.arange(2)] * 3):
        weight = torch.where(corner.bool(), part, 1 - part).prod(-1)
        x, y, z = (low.long() + corner).unbind(-1)
        cells.scatter_add_(1, (y * side + z) * side + x, weight)
    return cells.clamp(max=1).view(n, side, side, side)
