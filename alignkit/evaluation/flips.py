"""Which answers an upgrade mends, and which it breaks."""

import torch
from torch import Tensor

from alignkit.evaluation.checks import one_space
from alignkit.evaluation.retrieval import TIE, ranks


def right_at(query: Tensor, gallery: Tensor, query_item: Tensor, gallery_item: Tensor,
             k: int = 10) -> Tensor:
    """Which queries find a row of their item among the k nearest, bool [n_query]; the mean
    is ``hit@k``. Holds all scores; ties count against the model as in :func:`ranks`.

    Args:
        query, gallery: unit rows [n_query, d] and [n_gallery, d]; LongTensors of items.
    """
    query, gallery = one_space(query, gallery)
    relevant = (query_item[:, None] == gallery_item).to(query.device)
    return (ranks(query @ gallery.T, relevant, tie=TIE) <= k).cpu()


def flips(before: Tensor, after: Tensor) -> dict[str, float]:
    """Shares of queries whose answer changes when one model takes the place of another.

    ``positive``: wrong before, right after; ``negative``: right before, wrong after
    (Yan et al. 2021, Positive-Congruent Training, arXiv 2011.09161); ``gain`` is their
    difference, and exactly the change of the share that is right.

    Args:
        before, after: bool [n], whether each query's answer is right, in one order of
            the queries (such as ``ranks(scores, relevant) <= 10``).

    Raises: ValueError if they are not bool, not of one length, or empty.
    """
    if before.dtype != torch.bool or after.dtype != torch.bool:
        raise ValueError(f"before is {before.dtype} and after {after.dtype}; both must be "
                         "bool, True where the answer is right")
    if before.ndim != 1 or before.shape != after.shape or not len(before):
        raise ValueError(f"before has shape {tuple(before.shape)} and after "
                         f"{tuple(after.shape)}; both must be [n], n at least 1")
    mended, broken = int((~before & after).sum()), int((before & ~after).sum())
    n = len(before)
    return {"positive": mended / n, "negative": broken / n, "gain": (mended - broken) / n}
