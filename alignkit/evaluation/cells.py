"""The table of all pairs of kinds of material: do rows of the one find rows of the other
among the nearest tenth?"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb
from statistics import mean

import torch
from torch import Tensor, nn

from alignkit.data import Pairs
from alignkit.evaluation.evaluate import encode_pairs
from alignkit.evaluation.retrieval import retrieval

Cell = tuple[str, str]
FEWEST = 5  # things that a cell needs to be counted


def cells_of(kinds: Sequence[str]) -> list[Cell]:
    """Every two of the kinds."""
    return list(combinations(kinds, 2))


def nearest_tenth(method: nn.Module, rows: Pairs, cells: Sequence[Cell],
                  fewest: int = FEWEST) -> dict[Cell, float]:
    """hit@10% by cell, both directions' mean; cells with fewer than `fewest` things that
    have both are left out. Raises ValueError if none is left."""
    kinds = dict.fromkeys(kind for cell in cells for kind in cell)
    z = encode_pairs(method, rows, list(kinds))
    here = {kind: rows.present[method.settings.towers[kind]].nonzero()[:, 0]
            for kind in kinds}
    found = {cell: mean(ask(z, here, rows.item, *way) for way in (cell, cell[::-1]))
             for cell in cells if things(rows.item, here, cell) >= fewest}
    if not found:
        raise ValueError(f"no cell of {list(cells)} has {fewest} things with both kinds: "
                         "bring more rows")
    return found


def ask(z: Mapping[str, Tensor], here: Mapping[str, Tensor], item: Tensor, query: str,
        gallery: str, **how) -> float:
    """hit@10% of one direction: the share of queries that have a right answer among the
    nearest tenth of the gallery (at least one row). Only what the gallery has is asked for.

    Args:
        z: rows by kind, [n, d]. here: numbers of the rows that have it. item: [n].
        how: another `score` for `retrieval`.
    """
    asking, k = _asked(here, item, query, gallery)
    return retrieval(z[query][asking], z[gallery][here[gallery]], item[asking],
                     item[here[gallery]], ks=(k,), **how)[f"hit@{k}"]


def luck(here: Mapping[str, Tensor], item: Tensor, query: str, gallery: str) -> float:
    """What a random order finds of one direction (see `ask`): the mean over the queries of
    1 - C(m - r, k) / C(m, k), with r of the gallery's m rows right and k a tenth of m."""
    asking, k = _asked(here, item, query, gallery)
    right = (item[asking][:, None] == item[here[gallery]]).sum(1)
    m = len(here[gallery])
    return mean(1 - comb(m - r, k) / comb(m, k) for r in right.tolist())


def _asked(here: Mapping[str, Tensor], item: Tensor, query: str, gallery: str,
           ) -> tuple[Tensor, int]:
    """(numbers of the rows that ask, how many rows are a tenth of the gallery)"""
    asking = here[query][torch.isin(item[here[query]], item[here[gallery]])]
    return asking, max(1, round(len(here[gallery]) / 10))


def things(item: Tensor, here: Mapping[str, Tensor], cell: Cell) -> int:
    """How many items have both kinds."""
    a, b = (item[here[kind]].unique() for kind in cell)
    return int(torch.isin(a, b).sum())
