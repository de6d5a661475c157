"""How far clouds of points are from each other."""

import torch
from torch import Tensor


@torch.no_grad()
def chamfer(clouds: Tensor, others: Tensor | None = None) -> Tensor:
    """Chamfer distance of every cloud with every other one, [n, m].

    The mean squared distance of a point to the other cloud's nearest point, both ways
    added (Fan et al. 2017, arXiv 1612.00603). n · m · p² distances: thin the clouds
    (``clouds[:, :128]``) where they are many.

    Args:
        clouds: [n, p, 3]. others: [m, r, 3]; default: the same clouds.

    Raises: ValueError for another shape, or points that are not finite.
    """
    others = clouds if others is None else others
    for name, x in (("clouds", clouds), ("others", others)):
        if x.ndim != 3 or x.shape[2] != 3 or 0 in x.shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; give points [n, p, 3]")
        if not x.isfinite().all():
            raise ValueError(f"{name} holds points that are not finite")
    rows = []
    for cloud in clouds.double():  # one at a time: [m, p, r] distances
        square = torch.cdist(cloud.expand(len(others), -1, -1), others.double()).square()
        rows.append(square.amin(2).mean(1) + square.amin(1).mean(1))
    return torch.stack(rows)
