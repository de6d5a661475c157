"""Sinkhorn against a plain loop, an exact assignment, and POT where it is installed."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from alignkit.parts import sinkhorn


def drawn(n: int, k: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(n, k, generator=g, dtype=torch.float64) - 1


def loop(scores: list, epsilon: float, rounds: int) -> list:
    """MGCA's and SwAV's steps as they are written: classes are rows there."""
    n, k = len(scores), len(scores[0])
    q = [[math.exp(scores[i][j] / epsilon) for i in range(n)] for j in range(k)]
    total = sum(map(sum, q))
    q = [[x / total for x in row] for row in q]
    for _ in range(rounds):
        q = [[x / sum(row) / k for x in row] for row in q]
        columns = [sum(q[j][i] for j in range(k)) for i in range(n)]
        q = [[row[i] / columns[i] / n for i in range(n)] for row in q]
    return [[q[j][i] * n for j in range(k)] for i in range(n)]


@pytest.mark.parametrize("n, k", [(1, 1), (7, 3), (3, 7), (20, 5)])
@pytest.mark.parametrize("rounds", [1, 3])
def test_value_is_the_loop(n, k, rounds):
    scores = drawn(n, k)
    found = sinkhorn(scores, 0.05, rounds)
    wanted = torch.tensor(loop(scores.tolist(), 0.05, rounds), dtype=torch.float64)
    assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-14)
    assert torch.allclose(found.sum(1), torch.ones(n).double())


def test_many_rounds_balance_the_classes():
    few, many = (sinkhorn(drawn(24, 6), 0.1, rounds).sum(0) for rounds in (1, 500))
    assert torch.allclose(many, torch.full((6,), 4.0).double(), atol=1e-6)
    assert (few - 4).abs().max() > 1e-3


def test_many_rounds_and_a_small_epsilon_find_the_best_assignment():
    scores = drawn(8, 8, seed=2)
    best = torch.tensor(linear_sum_assignment(scores.numpy(), maximize=True)[1])
    assert torch.equal(sinkhorn(scores, 0.005, 5000).argmax(1), best)


def test_many_rounds_are_pots():
    ot = pytest.importorskip("ot")
    scores = drawn(12, 5)
    n, k = scores.shape
    plan = ot.sinkhorn([1 / n] * n, [1 / k] * k, -scores.numpy(), 0.1, numItermax=5000,
                       stopThr=1e-12)
    assert torch.allclose(sinkhorn(scores, 0.1, 2000), n * torch.tensor(plan), atol=1e-8)


def test_a_large_epsilon_gives_equal_shares_and_a_constant_changes_nothing():
    scores = drawn(6, 4)
    assert torch.allclose(sinkhorn(scores, 1e6), torch.full((6, 4), 0.25).double(), atol=1e-5)
    # Constants of a row or of a class are scaled away.
    moved = scores + 3 * drawn(6, 1, seed=1) + 3 * drawn(1, 4, seed=2)
    assert torch.allclose(sinkhorn(moved, 0.5, 200), sinkhorn(scores, 0.5, 200), atol=1e-9)


def test_half_precision_and_large_scores():
    scores = 50 * drawn(6, 4)  # exp(50 / 0.05) is no number of float32
    found = sinkhorn(scores.half())
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert torch.allclose(found.sum(1), torch.ones(6))


def test_gradient_flows_unless_detached():
    assert torch.autograd.gradcheck(lambda s: sinkhorn(s, 0.5), drawn(4, 3).requires_grad_())


def test_sinkhorn_refuses():
    for wrong in ((torch.ones(3),), (torch.ones(0, 3),), (torch.ones(2, 2), 0.0),
                  (torch.ones(2, 2), 0.1, 0)):
        with pytest.raises(ValueError, match=r"scores must be \[n, k\]"):
            sinkhorn(*wrong)
