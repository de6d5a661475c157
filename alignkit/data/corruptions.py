"""Seeded damage to pairs, for null controls and for 'when it fails'."""

from dataclasses import replace

import torch
from torch import Tensor

from alignkit.data.columns import made_of, take
from alignkit.data.pairs import Pairs


def _order(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def _chosen(n: int, fraction: float, seed: int) -> Tensor:
    """`round(fraction · n)` of n row numbers, drawn by `seed`."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
    return _order(n, seed)[: round(fraction * n)]


def shuffle_pairs(pairs: Pairs, column: str, seed: int, fraction: float = 1.0) -> Pairs:
    """Break the pairing: `fraction` of the rows of `column`, and of the features made
    of it, change places among themselves.

    No chosen row keeps the content of its own item, as long as no item holds more than
    half of the chosen rows. Raises KeyError or ValueError for a wrong argument.
    """
    pairs[column]
    chosen = _chosen(len(pairs), fraction, seed)
    rows = torch.arange(len(pairs))
    if len(chosen) > 1:
        # Rows of one item side by side, items in drawn order; then all move on by the
        # size of the largest item, so that none lands in its own.
        items, place = pairs.item[chosen].unique(return_inverse=True)
        chosen = chosen[_order(len(items), seed)[place].argsort(stable=True)]
        rows[chosen] = chosen.roll(int(place.bincount().max()))
    moved = made_of(column, pairs.columns)
    return replace(
        pairs,
        columns={**pairs.columns, **{c: take(pairs[c], rows) for c in moved}},
        present={**pairs.present, **{c: pairs.present[c][rows] for c in moved}},
        provenance=pairs.provenance.derive(f"shuffled {column} {fraction} {seed}"),
    )


def drop_modality(pairs: Pairs, column: str, seed: int, fraction: float) -> Pairs:
    """`column`, and the features made of it, are missing in `fraction` of the rows."""
    keep = torch.ones(len(pairs), dtype=torch.bool)
    keep[_chosen(len(pairs), fraction, seed)] = False
    step = f"dropped {column} {fraction} {seed}"
    return replace(pairs.with_present(column, keep),
                   provenance=pairs.provenance.derive(step))


def label_noise(pairs: Pairs, label: str, seed: int, fraction: float) -> Pairs:
    """`fraction` of the rows get a wrong class of `label`, drawn among the others."""
    if label not in pairs.labels:
        raise KeyError(f"no label {label!r}; there are {sorted(pairs.labels)}")
    chosen = _chosen(len(pairs), fraction, seed)
    classes = pairs.labels[label].unique()
    if len(classes) < 2:
        raise ValueError(f"label {label!r} has one class: no row can be made wrong")
    place = torch.searchsorted(classes, pairs.labels[label][chosen])
    step = torch.randint(1, len(classes), (len(chosen),),
                         generator=torch.Generator().manual_seed(seed + 1))
    noisy = pairs.labels[label].clone()
    noisy[chosen] = classes[(place + step) % len(classes)]
    step = f"noise {label} {fraction} {seed}"
    return replace(pairs, labels={**pairs.labels, label: noisy},
                   provenance=pairs.provenance.derive(step))


def few_pairs(pairs: Pairs, n: int, seed: int) -> Pairs:
    """The rows of `n` items drawn by `seed`; draws of one seed are nested in n."""
    items = pairs.item.unique()
    if not 1 <= n <= len(items):
        raise ValueError(f"n must lie in [1, {len(items)}] (all items), got {n}")
    return pairs.select(torch.isin(pairs.item, items[_order(len(items), seed)[:n]]))
