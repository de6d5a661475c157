"""What is done about wrong labels: rows whose text fits their label, votes of neighbours,
labels kept, changed or dropped, centres of classes that move along."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from alignkit.parts.reranking import distances, rerank
from alignkit.parts.similarity import unit


def rows_of_classes(y: Tensor, classes: int) -> list[Tensor]:
    """Row numbers of each class by labels y [n]. Raises ValueError for a class without any."""
    rows = [(y == k).nonzero()[:, 0] for k in range(classes)]
    if empty := [k for k, own in enumerate(rows) if not len(own)]:
        raise ValueError(f"no training row is labelled as class {empty[0]}, of {classes}")
    return rows


def misfit(texts: Tensor, definition: Tensor, ranking: Sequence = (20, 6, 0.3)) -> Tensor:
    """Re-ranked distance [n] of unit texts [n, d] to the definition [d] of their label, among
    all of them; rows of zeros are far. ranking: k1, k2 and share of `rerank`."""
    return rerank(distances(torch.cat([definition[None], texts])), *ranking)[0, 1:]


def votes(z: Tensor, keys: Tensor, soft: Tensor) -> Tensor:
    """Soft labels [n, C] of unit rows z [n, d]: the mean of soft [m, C], those of unit rows
    keys [m, d], weighed by the cosine, from 0 up. Rows sum to 1 if those of soft do."""
    near = (z @ keys.T).clamp(0, 1) + 1e-7
    return (near / near.sum(1, keepdim=True)) @ soft


def relabelled(shares: Tensor, y: Tensor, sure: float, trusted: Tensor) -> tuple:
    """(labels [n], which count [n] bool) by predicted shares [n, C] that sum to 1.

    A row whose largest share is at least `sure` gets that class; else it keeps its label y
    if its share is at least 1/C; else it does not count. Trusted rows keep theirs.
    """
    best, guess = shares.max(1)
    changed = (best >= sure) & ~trusted
    likely = shares.gather(1, y[:, None])[:, 0] >= 1 / shares.shape[1]
    return torch.where(changed, guess, y), likely | changed | trusted


def moved_centres(centres: Tensor, z: Tensor, y: Tensor, kept: Tensor, decay: float) -> Tensor:
    """Centres of classes [C, d] after c_y ← decay · c_y + (1 − decay) · z for each kept row
    in turn, then of length one. z [n, d], y [n] classes, kept [n] bool."""
    z, y = z[kept].to(centres), y[kept]
    later = (y[:, None] == y).triu(1).sum(1)  # rows of its class that come after it
    own = F.one_hot(y, len(centres)).to(centres)
    weight = (1 - decay) * decay ** later.to(centres)
    return unit(decay ** own.sum(0)[:, None] * centres + own.T @ (weight[:, None] * z))
