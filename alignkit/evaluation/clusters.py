"""Whether groups that were found without labels are those that labels name."""

import numpy as np
import torch
from torch import Tensor

from alignkit.evaluation.checks import matrix


def mutual_information(a: Tensor, b: Tensor) -> float:
    """Normalised mutual information of two partitions [n]: I(a, b) / ½ (H(a) + H(b)).

    1 where they are the same, 0 where one says nothing of the other; two that are unrelated
    come out above 0, the more so the more groups there are for the rows: compare partitions
    of as many groups, or subtract what shuffled rows give. 1 if both are one group.

    Raises:
        ValueError: no rows, or not as many of a as of b.
    """
    if a.dim() != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"a and b must be [n], n above 0, got {tuple(a.shape)} and "
                         f"{tuple(b.shape)}")
    _, a = a.unique(return_inverse=True)
    _, b = b.unique(return_inverse=True)
    joint = torch.zeros(int(a.max()) + 1, int(b.max()) + 1, dtype=torch.float64)
    joint.index_put_((a.cpu(), b.cpu()), torch.tensor(1 / len(a), dtype=torch.float64),
                     accumulate=True)
    entropy = [float(torch.special.entr(p).sum()) for p in (joint.sum(1), joint.sum(0), joint)]
    mean = (entropy[0] + entropy[1]) / 2
    return (entropy[0] + entropy[1] - entropy[2]) / mean if mean > 0 else 1.0


def k_means(x: Tensor, k: int, seed: int, starts: int = 5) -> Tensor:
    """Groups [n] of rows [n, d]: the best of `starts` runs of Lloyd's algorithm from
    k-means++ (scipy).

    Raises:
        ValueError: k is not between 1 and n.
    """
    from scipy.cluster.vq import kmeans2

    rows = matrix(x, "x").double().cpu().numpy()
    if not 1 <= k <= len(rows):
        raise ValueError(f"k is {k}; it must lie between 1 and the {len(rows)} rows")
    best, least = None, np.inf
    for start in range(starts):
        centres, group = kmeans2(rows, k, minit="++", missing="warn",
                                 seed=np.random.default_rng([seed, start]))
        spread = ((rows - centres[group]) ** 2).sum()
        if spread < least:
            best, least = group, spread
    return torch.from_numpy(best).long()
