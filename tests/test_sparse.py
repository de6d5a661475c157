"""Sparsemax: value and gradient against a plain loop, and what must hold exactly."""

import math

import pytest
import torch

from alignkit.parts import sparsemax


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def number(x: torch.Tensor) -> float:
    return x.item()


def loop(x: list) -> list:
    """The docstring's equation for one row of scalar tensors."""
    ordered = sorted(x, key=number, reverse=True)
    total, threshold = 0.0, None
    for k, value in enumerate(ordered, 1):
        total = total + value
        if 1 + k * value > total:
            threshold = (total - 1) / k
    return [max(v - threshold, 0 * v, key=number) for v in x]


def test_value_and_gradient_are_the_loop():
    x = drawn(20, 7).requires_grad_()
    fast = sparsemax(x)
    slow = torch.stack([torch.stack(loop(list(row))) for row in x])
    assert torch.allclose(fast, slow, rtol=0, atol=1e-14)
    support = (fast > 0).sum(1)
    assert support.min() == 1 and support.max() >= 4  # the rows are of many kinds
    upstream = drawn(20, 7, seed=1)
    found, wanted = (torch.autograd.grad((y * upstream).sum(), x)[0]
                     for y in (fast, slow))
    assert (found - wanted).norm() < 1e-12 * wanted.norm()
    for row, g, kept in zip(found, upstream, fast > 0):  # centred over the kept
        assert torch.allclose(row[kept], g[kept] - g[kept].mean(), atol=1e-12)
        assert (row[~kept] == 0).all()


def test_an_entry_exactly_at_the_threshold_has_no_gradient():
    # Two of 0.5 take all, threshold 0: the entry at 0 has weight 0 by a hair's breadth.
    x = torch.tensor([[0.5, 0.5, 0.0, -1.0]], requires_grad=True)
    w = sparsemax(x)
    assert w.tolist() == [[0.5, 0.5, 0.0, 0.0]]
    (found,) = torch.autograd.grad((w * torch.tensor([1.0, 3.0, 7.0, 9.0])).sum(), x)
    assert found.tolist() == [[-1.0, 1.0, 0.0, 0.0]]


def test_gradcheck_away_from_kinks():
    x = 0.5 * drawn(6, 5, seed=3)
    w = sparsemax(x)
    threshold = (x - w).masked_fill(w == 0, -math.inf).amax(1, keepdim=True)
    clear = ((x - threshold).abs() > 1e-3).all(1)
    assert clear.sum() >= 4
    assert torch.autograd.gradcheck(sparsemax, x[clear].requires_grad_())


def test_any_dimension_and_batch_shape():
    x = drawn(2, 3, 4, 5)
    for dim in (-1, 0, 1, 2):
        w = sparsemax(x, dim)
        assert torch.allclose(w.sum(dim), torch.ones(()).double())
        rows = x.movedim(dim, -1).reshape(-1, x.shape[dim])
        alone = torch.stack([sparsemax(row) for row in rows])
        assert torch.equal(w.movedim(dim, -1).reshape(alone.shape), alone)


def test_it_is_the_nearest_point_of_the_simplex():
    x, others = drawn(6), drawn(5000, 6, seed=1).abs()
    w = sparsemax(x)
    others = others / others.sum(1, keepdim=True)
    nearer = w + 0.01 * (others - w)  # still in the simplex, and right beside w
    for point in (others, nearer):
        assert (w - x).norm() < (point - x).norm(dim=1).min()


def test_constants_change_nothing_and_a_lead_of_one_takes_all():
    x = drawn(30, 6)
    w = sparsemax(x)
    assert (w >= 0).all() and torch.allclose(w.sum(1), torch.ones(30).double())
    assert torch.allclose(sparsemax(x + 1e3), w, atol=1e-11)
    for lead, alone in ((1.0, True), (0.99, False)):
        y = x.clone()
        best = y.argmax(1, keepdim=True)
        second = y.scatter(1, best, -math.inf).amax(1, keepdim=True)
        w = sparsemax(y.scatter(1, best, second + lead))
        assert torch.isclose(w.amax(1), torch.ones(30).double()).all() == alone
    assert torch.equal(sparsemax(torch.zeros(4)), torch.full((4,), 0.25))


def test_no_weight_for_minus_infinity_and_its_gradient_is_finite():
    x = torch.tensor([[0.3, -math.inf, 0.1], [-math.inf, 5.0, -math.inf]],
                     requires_grad=True)
    w = sparsemax(x)
    assert torch.allclose(w, torch.tensor([[0.6, 0.0, 0.4], [0.0, 1.0, 0.0]]))
    (gradient,) = torch.autograd.grad((w * w).sum(), x)
    assert gradient.isfinite().all() and gradient[0, 0] > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    x = (10 * drawn(4, 300)).to(dtype)
    w = sparsemax(x)
    assert w.dtype == torch.float32
    assert torch.allclose(w, sparsemax(x.double()).float(), atol=1e-5)


def test_nan_stays_nan_in_its_own_row():
    x = torch.tensor([[0.0, math.nan, 1.0], [0.0, 0.5, 1.0]])
    w = sparsemax(x)
    assert w[0].isnan().all() and torch.allclose(w[1], torch.tensor([0.0, 0.25, 0.75]))
