"""One-to-one matching, local CKA, the ridge map and Chamfer distances, against loops."""

import math
from itertools import permutations

import pytest
import torch

from alignkit.evaluation import (
    assignment_accuracy, chamfer, cka, local_cka, ridge_map,
)  # fmt: skip


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(6))
def test_the_assignment_is_the_best_of_all_permutations(seed):
    scores = randn(5, 5, seed=seed)
    best = max(permutations(range(5)), key=lambda p: sum(scores[i, p[i]] for i in range(5)))
    wanted = sum(best[i] == i for i in range(5)) / 5
    assert assignment_accuracy(scores, seed) == pytest.approx(wanted)


def test_an_assignment_can_be_right_where_the_rows_alone_are_not():
    """Both rows prefer column 0; only one can have it: 3 + 2 > 1 + 2.5."""
    scores = torch.tensor([[3.0, 1.0], [2.5, 2.0]])
    assert (scores.argmax(1) == torch.arange(2)).double().mean() == 0.5
    assert assignment_accuracy(scores) == 1


def test_a_collapsed_model_matches_by_chance():
    """Equal scores: were the columns in order, scipy would match them all."""
    found = [assignment_accuracy(torch.zeros(20, 20), seed) for seed in range(200)]
    assert abs(sum(found) / 200 - 1 / 20) < 0.02


def test_assignment_refuses():
    with pytest.raises(ValueError, match="as many columns as rows"):
        assignment_accuracy(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="NaN or infinite"):
        assignment_accuracy(torch.full((2, 2), torch.nan))


def loop_cka(x, y):
    """tr(KHLH) / √(tr(KHKH) tr(LHLH)) with whole kernels."""
    n = len(x)
    h = torch.eye(n, dtype=x.dtype) - 1 / n
    k, el = x @ x.T, y @ y.T

    def hsic(a, b):
        return sum(float((a @ h @ b @ h)[i, i]) for i in range(n))
    return hsic(k, el) / math.sqrt(hsic(k, k) * hsic(el, el))


@pytest.mark.parametrize("n, p, q", [(7, 3, 4), (5, 9, 2), (40, 6, 6)])
def test_local_cka_is_cka_with_one_more_pair(n, p, q):
    x, y = randn(n, p) + 2, randn(n, q, seed=1) @ randn(q, q, seed=2)
    new_x, new_y = 3 * randn(3, p, seed=3), randn(2, q, seed=4) - 5
    fitted = local_cka(x, y)
    assert float(fitted.cka()) == pytest.approx(loop_cka(x, y), rel=1e-10)
    found = fitted.scores(new_x, new_y)
    assert found.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            a, b = torch.cat([x, new_x[i:i + 1]]), torch.cat([y, new_y[j:j + 1]])
            assert float(found[i, j]) == pytest.approx(loop_cka(a, b), rel=1e-10)
            assert float(found[i, j]) == pytest.approx(cka(a, b), rel=1e-10)


def test_local_cka_refuses():
    with pytest.raises(ValueError, match="x has 3 rows and y 4"):
        local_cka(randn(3, 2), randn(4, 2))
    with pytest.raises(ValueError, match="every row of y is the same"):
        local_cka(randn(3, 2), torch.ones(3, 2))
    with pytest.raises(ValueError, match="at least 2 rows"):
        local_cka(randn(1, 2), randn(1, 2))


@pytest.mark.parametrize("ridge", [0.0, 0.1, 5.0])
def test_ridge_map_is_where_the_gradient_is_zero(ridge):
    x, y = randn(30, 4) * 3, randn(30, 2, seed=1)
    m = ridge_map(x, y, ridge).requires_grad_()
    penalty = ridge * sum(float(x[:, i] @ x[:, i]) for i in range(4)) / 4
    loss = (x @ m - y).square().sum() + penalty * m.square().sum()
    (gradient,) = torch.autograd.grad(loss, m)
    assert gradient.norm() < 1e-9 * loss.item()


def test_ridge_map_bears_scale_and_more_columns_than_rows():
    x, y = randn(30, 4), randn(30, 2, seed=1)
    assert torch.allclose(ridge_map(7 * x, y, 0.3) * 7, ridge_map(x, y, 0.3))
    wide = randn(5, 9)
    assert torch.allclose(wide @ ridge_map(wide, y[:5]), y[:5])  # fits, of smallest norm
    assert torch.allclose(ridge_map(wide, y[:5]), ridge_map(wide, y[:5], 1e-9), atol=1e-6)
    with pytest.raises(ValueError, match="ridge is -1"):
        ridge_map(x, y, -1)


def test_chamfer_is_the_loop():
    clouds, others = randn(3, 5, 3), randn(2, 4, 3, seed=1)
    found = chamfer(clouds, others)
    for i in range(3):
        for j in range(2):
            square = [[float(sum((a[c] - b[c]) ** 2 for c in range(3))) for b in others[j]]
                      for a in clouds[i]]
            there = sum(min(row) for row in square) / 5
            back = sum(min(row[k] for row in square) for k in range(4)) / 4
            assert float(found[i, j]) == pytest.approx(there + back, rel=1e-10)
    own = chamfer(clouds)
    assert torch.allclose(own, own.T) and own.diagonal().abs().max() < 1e-10
    assert torch.allclose(chamfer(clouds[:, torch.tensor([4, 2, 0, 1, 3])]), own)


def test_chamfer_refuses():
    with pytest.raises(ValueError, match=r"clouds has shape \(3, 4\)"):
        chamfer(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="others holds points that are not finite"):
        chamfer(torch.zeros(1, 4, 3), torch.full((1, 4, 3), torch.nan))
