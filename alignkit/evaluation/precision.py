"""Average precision: the figure of retrieval with many relevant rows a query."""

import torch
from torch import Tensor

from alignkit.evaluation.retrieval import TIE


def average_precision(scores: Tensor, relevant: Tensor, *, tie: float = TIE) -> Tensor:
    """Average precision [n_query]: the mean over a query's relevant rows, the j-th best
    of which stands at rank r_j, of j / r_j.

    All ranks count, and ties count against the model: equal scores everywhere give the
    relevant rows the last places.

    Args:
        scores: [n_query, n_gallery], finite, larger is more alike.
        relevant: bool, same shape, at least one True a row.
        tie: scores closer than ``tie * max(1, |score|)`` count as equal.
    Raises:
        ValueError: shapes differ, scores are not finite, or a query has no relevant row.
    """
    if scores.ndim != 2 or relevant.shape != scores.shape or relevant.dtype != torch.bool:
        raise ValueError(f"scores {tuple(scores.shape)} and relevant "
                         f"{tuple(relevant.shape)} ({relevant.dtype}) must both be "
                         "[n_query, n_gallery], relevant bool")
    if not relevant.any(1).all() or not scores.isfinite().all():
        raise ValueError("every query needs a relevant row, and every score must be finite")
    scores = scores.double()
    lowered = scores - relevant * tie * scores.abs().clamp_min(1)
    # Irrelevant rows first, so that a stable sort puts them first among equals.
    first = relevant.int().argsort(dim=1, stable=True)
    order = first.gather(1, lowered.gather(1, first).argsort(
        dim=1, descending=True, stable=True))
    found = relevant.gather(1, order).double()
    rank = torch.arange(1, scores.shape[1] + 1, device=scores.device)
    return (found * found.cumsum(1) / rank).sum(1) / found.sum(1)


def mean_average_precision(scores: Tensor, relevant: Tensor, *, tie: float = TIE) -> float:
    """mAP: the mean of :func:`average_precision` over the queries."""
    return float(average_precision(scores, relevant, tie=tie).mean())
