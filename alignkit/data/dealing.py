"""Who has seen what: things dealt to one kind of material each, and material that changes
places, for stacks in which every row has some kinds and lacks others."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from alignkit.data.corruptions import shuffle_pairs
from alignkit.data.pairs import Pairs, Splits

ENOUGH = 10  # groups that are split apart


def in_several(pairs: Pairs, label: str = "part") -> Tensor:
    """Rows [n], bool, of groups that stand in two classes of a label or more, such as two
    parts of a stack; none without the label."""
    if label not in pairs.labels:
        return torch.zeros(len(pairs), dtype=torch.bool)
    both = torch.stack([pairs.group, pairs.labels[label]]).unique(dim=1)[0]
    groups, count = both.unique(return_counts=True)
    return torch.isin(pairs.group, groups[count > 1])


def split_shared(pairs: Pairs, seed: int, fractions: Sequence[float] = (0.73, 0.1, 0.17),
                 scarce: Sequence[str] = (),
                 of_scarce: Sequence[float] = (0.65, 0.25, 0.1)) -> Splits:
    """`Pairs.split`, redrawn by group, but groups that stand in several parts are all in
    the test; of the others those that have a scarce column are split apart, each such column
    in turn, where there are `ENOUGH` of them, so that enough of them choose."""
    left, shared = ~in_several(pairs), in_several(pairs)
    found = []
    for column in scarce:
        rare = left & torch.isin(pairs.group, pairs.group[pairs.present[column]])
        if len(pairs.group[rare].unique()) >= ENOUGH:
            found.append(pairs.select(rare).split(seed, of_scarce))
            left = left & ~rare
    if left.any():
        found.append(pairs.select(left).split(seed, fractions))
    train, val, test = (torch.cat([part.group for part in parts]) for parts in zip(*found))
    return Splits(*(pairs.select(torch.isin(pairs.group, part)) for part in (
        train, val, torch.cat([test, pairs.group[shared]]))))


def deal(rows: Pairs, seed: int, hub: str, columns: Sequence[str],
         scarce: Sequence[str] = ()) -> Pairs:
    """Every group of rows is for one of the `columns` alone beside the `hub`, drawn among
    those that it has; a group that has a scarce one is for the first such. Rows that lack
    the hub, or what their group is for, are left out."""
    g = torch.Generator().manual_seed(seed)
    given = torch.full((len(rows),), -1)
    here = {name: rows.present[name] & rows.present[hub] for name in columns}
    for group in rows.group.unique():
        mine = rows.group == group
        has = [name for name in columns if (here[name] & mine).any()]
        if has:
            draw = int(torch.randint(len(has), (), generator=g))
            first = [name for name in scarce if name in has]
            given[mine] = list(columns).index((first or has[draw:])[0])
    keep = torch.zeros(len(rows), dtype=torch.bool)
    for k, name in enumerate(columns):
        rows = rows.with_present(name, given == k)
        keep |= rows.present[name] & here[name]
    return rows.select(keep)


def unpaired(rows: Pairs, seed: int, columns: Sequence[str]) -> Pairs:
    """What is present of each column changes places, each column by itself: no row keeps
    its own, and what a row lacks it lacks still."""
    changed = dict(rows.columns)
    for k, name in enumerate(columns):
        here = rows.present[name].nonzero()[:, 0]
        if len(here) > 1:
            moved = shuffle_pairs(rows.select(here).only(name), name, seed + 1000 * (k + 1))
            changed[name] = changed[name].index_copy(0, here, moved[name])
    return replace(rows, columns=changed)
