"""Scores corrected for hubs: rows that are near to everything."""

import torch
from torch import Tensor


def csls(scores: Tensor, k: int = 10) -> Tensor:
    """Cross-domain similarity local scaling of scores [n, m]: [n, m].

    csls_ij = 2 · scores_ij − r_i − c_j, with r_i the mean of the k largest scores of row i
    and c_j that of column j (Conneau et al. 2018, Word translation without parallel data,
    section 2.3). A column that is near to all rows loses by it. Within a row only c_j
    counts: where all c_j are equal the order stays. It needs all scores at once, and each
    depends on who else asks: say that it was used.

    Args:
        scores: finite cosines, or other scores of one unit, larger is more alike.
        k: neighbours, from 1 to the smaller of n and m.
    Raises:
        ValueError: no matrix, scores that are not finite, or k out of range.
    """
    if scores.dim() != 2 or not scores.isfinite().all():
        raise ValueError(f"scores must be finite and [n, m], got {tuple(scores.shape)} with "
                         f"{int((~scores.isfinite()).sum())} that are not finite")
    if not 1 <= k <= min(scores.shape):
        raise ValueError(f"k must lie between 1 and {min(scores.shape)}, the smaller side of "
                         f"{tuple(scores.shape)}, got {k}")
    rows, columns = (scores.topk(k, dim=d).values.mean(d, keepdim=True) for d in (1, 0))
    return 2 * scores - rows - columns
