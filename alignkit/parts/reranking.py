"""Distances again, by how much the neighbourhoods of two rows have in common, and a graph of
neighbours found so, over which rows are smoothed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from alignkit.parts.similarity import unit

Graph = tuple[Tensor, Tensor]  # edges [2, e] and their weights [e]


def rerank(distances: Tensor, k1: int = 20, k2: int = 6, share: float = 0.3) -> Tensor:
    """k-reciprocal re-ranking (Zhong et al., CVPR 2017): distances [n, n] -> [n, n].

    D: the given distances, each column divided by its largest, transposed. N(i, k): the
    k + 1 rows nearest to i, i among them. R(i, k): those j in N(i, k) that have i in
    N(j, k). R*(i): R(i, k1), and R(j, k1/2) of each j in it of which more than two thirds
    lie in R(i, k1). Then

        V_ij = exp(−D_ij) / Σ,  j in R*(i), else 0;   V_i ← mean of V over the k2 nearest
        J_ij = 1 − m / (2 − m),   m = Σ_l min(V_il, V_jl)
        result = (1 − share) J + share D

    In place of one matrix a stack of them, [..., n, n], may stand: each is ranked alone.
    Rows as far as the last of the k nearest count too: no order of rows decides.

    Args:
        distances: 0 or more, such as squared Euclidean ones between unit rows.
        k1, k2: at least 1; larger than the rows count as all of them.
        share: of the old distance, between 0 and 1.

    Raises ValueError for distances that are not square or a number out of range.
    """
    n = distances.shape[-1]
    if distances.ndim < 2 or distances.shape[-2] != n:
        raise ValueError(f"distances must be [..., n, n], got {tuple(distances.shape)}")
    if k1 < 1 or k2 < 1 or not 0 <= share <= 1:
        raise ValueError("k1 and k2 must be at least 1 and share between 0 and 1, got "
                         f"{k1}, {k2} and {share}")
    largest = distances.amax(-2, keepdim=True).clamp_min(torch.finfo(distances.dtype).tiny)
    d = (distances / largest).mT
    ordered = d.sort(-1).values

    def nearest(count: int) -> Tensor:
        """[i, j]: j is among the `count` nearest to i, ties with the last included."""
        return d <= ordered[..., min(count, n) - 1, None]

    near, half = (m & m.mT for m in (nearest(k1 + 1), nearest(round(k1 / 2) + 1)))
    inside, sizes = near.to(d) @ half.to(d).mT, half.sum(-1).to(d)
    joins = near & (3 * inside > 2 * sizes[..., None, :])  # [i, j]: R(j, k1/2) is taken in
    wide = near | ((joins.to(d) @ half.to(d)) > 0)
    v = torch.exp(-d) * wide
    v = v / v.sum(-1, keepdim=True)
    averaged = nearest(k2).to(d)
    v = averaged @ v / averaged.sum(-1, keepdim=True)
    # Σ min(a, b) = 1 − Σ |a − b| / 2, for rows that sum to 1.
    common = 1 - torch.cdist(v, v, p=1) / 2
    return (1 - share) * (1 - common / (2 - common)) + share * d


def distances(x: Tensor) -> Tensor:
    """2 − 2 cos between unit rows [..., n, d], 0 to itself; a row of zeros is at 2 of all."""
    found = (2 - 2 * x @ x.mT).clamp_min(0)
    return found * (1 - torch.eye(x.shape[-2], dtype=x.dtype, device=x.device))


def neighbour_graph(x: Tensor, near: int, kept: int, ranking: Sequence = (20, 6, 0.3),
                    by_distance: bool = False) -> Graph:
    """Of the `near` rows nearest to each by cosine, the `kept` best after re-ranking among
    these alone. Weight: 1 − distance, within [0.001, 0.999]; the larger of both directions;
    those of a row's edges (edges[0]) sum to 1. No row is its own neighbour.

    Args:
        x: [n, d]. ranking: k1, k2 and share of `rerank`.
        by_distance: weigh by the distance, so that farther rows count for more.
    """
    x, n = unit(x), len(x)
    near, kept = min(near, n - 1), min(kept, near, n - 1)
    ends, weights = [], []
    for rows in torch.arange(n, device=x.device).split(512):
        cosines = x[rows] @ x.T
        cosines[torch.arange(len(rows), device=x.device), rows] = -2  # not its own neighbour
        around = cosines.topk(near).indices
        found = rerank(distances(x[torch.cat([rows[:, None], around], 1)]), *ranking)
        d, best = found[:, 0, 1:].topk(kept, largest=False)
        ends.append(torch.stack([rows.repeat_interleave(kept),
                                 around.gather(1, best).flatten()]))
        weights.append(d.flatten().clamp(0.001, 0.999))
    ends, w = torch.cat(ends, 1), torch.cat(weights)
    w = w if by_distance else 1 - w
    both, place = torch.cat([ends, ends.flip(0)], 1).unique(dim=1, return_inverse=True)
    w = w.new_zeros(both.shape[1]).scatter_reduce(0, place, w.repeat(2), "amax")
    return both, w / w.new_zeros(n).index_add(0, both[0], w)[both[0]]


def smoothed(rows: Tensor, graph: Graph) -> Tensor:
    """Each of rows [n, d] replaced by the weighted mean of its neighbours', of length one;
    0 where all of these are 0."""
    (here, there), w = graph
    return unit(torch.zeros_like(rows).index_add(0, here, w[:, None] * rows[there]))
