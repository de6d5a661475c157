"""Rows dealt out among classes that all get their share: optimal transport."""

import math

import torch
from torch import Tensor


def sinkhorn(scores: Tensor, epsilon: float = 0.05, rounds: int = 3) -> Tensor:
    """Soft codes of n rows among k classes of which each takes about n / k rows.

    Q = exp(scores / ε), then `rounds` times: columns scaled to the sum n / k, rows to the
    sum 1 (Cuturi 2013; with few rounds Caron et al. 2020, SwAV). With many rounds both
    sums hold, and Q / n is the plan of least Σ Q · (−scores) − ε · entropy. A large ε gives
    1 / k everywhere. Computed by logarithms: no score is too large.

    Args:
        scores: [n, k]; detach them, or the codes, if they are to be targets.
        epsilon: how soft, above 0. rounds: 1 or more.
    Returns:
        codes [n, k], each row of sum 1, float32 at least.
    Raises:
        ValueError: scores is no matrix, or a number is out of range.

    Example:
        >>> sinkhorn(torch.tensor([[1.0, 0.9], [1.0, 0.0]])).round(decimals=2)
        tensor([[0.1400, 0.8600],
                [1.0000, 0.0000]])
    """
    if scores.dim() != 2 or not scores.numel() or not epsilon > 0 or rounds < 1:
        raise ValueError(f"scores must be [n, k], epsilon above 0 and rounds at least 1, got "
                         f"{tuple(scores.shape)}, {epsilon} and {rounds}")
    n, k = scores.shape
    log_q = scores.to(torch.promote_types(scores.dtype, torch.float32)) / epsilon
    for _ in range(rounds):
        log_q = log_q - log_q.logsumexp(0, keepdim=True) + math.log(n / k)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp()
