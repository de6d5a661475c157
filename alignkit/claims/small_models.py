"""Dual encoders of two ages, for claims about a model that takes another one's place."""

from dataclasses import dataclass

import torch
from torch import nn

from alignkit.data import Pairs, few_pairs
from alignkit.encoders import add_features
from alignkit.parts import DualEncoder, Settings, unit
from alignkit.training import Budget, fit, seed_all


@dataclass(frozen=True)
class Model:
    """A dual encoder: modality -> frozen encoder and its layer (−1: the last); heads of this
    width on it, trained on so many items (None: all), perhaps on one row of each. width 0:
    no heads, the encoders share a space already."""

    image: tuple[str, int]
    text: tuple[str, int]
    width: int = 0
    items: int | None = None
    one_row: bool = False


def featured(pairs: Pairs, column: str, models: dict[str, Model]) -> Pairs:
    """Each model's features of a column, under `<column>_<name of the model>`."""
    found = {}
    for name, model in models.items():
        encoder, layer = model.text if column == "text" else model.image
        made = add_features(pairs, column, encoder, layers=(layer,))
        found[f"{column}_{name}"] = made[f"{column}_features" if layer < 0
                                         else f"{column}_layer{layer}"]
    return pairs.with_features(**found)


def trained_heads(name: str, model: Model, train: Pairs, budget: Budget, temperature: float,
                  seed: int) -> dict[str, nn.Module]:
    """Column -> head, trained with InfoNCE on the model's share of `train`; none for a model
    without heads."""
    if not model.width:
        return {}
    items = len(train.item.unique())
    train = few_pairs(train, min(model.items or items, items), seed)
    if model.one_row:
        train = train.select(train.first_of_item())
    towers = {modality: f"{modality}_{name}" for modality in ("image", "text")}
    seed_all(seed, "heads", name)
    method = DualEncoder(Settings(towers, model.width, temperature=temperature), train)
    fit(method, train.only(*towers.values()), budget, seed)
    return {towers[modality]: head for modality, head in method.heads.items()}


@torch.no_grad()
def embed(pairs: Pairs, heads: dict[str, nn.Module], columns: list[str]) -> Pairs:
    """`pairs` with unit embeddings in place of the features in `columns`, through the heads
    as far as there are any."""
    return pairs.with_features(**{c: unit(heads[c](pairs[c]) if c in heads else pairs[c])
                                  for c in columns})
