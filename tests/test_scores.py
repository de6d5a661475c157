"""Late interaction, Gramian volume and experts: loops, invariances, padding."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from alignkit.data import Tokens
from alignkit.parts import (
    Experts, cosine, gramian_volume, gramian_volumes, info_nce, late_interaction, mean_pool,
)  # fmt: skip

QUICK = settings(max_examples=40, deadline=None, derandomize=True)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def rows(*shape, seed=0):
    return F.normalize(randn(*shape, seed=seed), dim=-1)


def relative(found, wanted) -> float:
    return float((found - wanted).detach().norm() / wanted.detach().norm())


def dot(x, y) -> float:
    return sum(p * q for p, q in zip(x, y, strict=True))


def tokens(n, t, d=4, seed=0) -> Tokens:
    """Unit tokens, some of them padding; every row has a real one, not always the first."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(n, t, generator=generator) < 0.6
    mask[torch.arange(n), torch.randint(t, (n,), generator=generator)] = True
    return Tokens(rows(n, t, d, seed=seed + 50), mask)


def spoilt(a: Tokens, value: float = 1e6) -> Tokens:
    """The same with something else at padding."""
    return Tokens(torch.where(a.mask[..., None], a.values, value), a.mask)


# Late interaction ---------------------------------------------------------------------
def loop_late_interaction(a: Tokens, b: Tokens):
    """Both directions, number by number."""
    def real(side):
        return [[x for x, keep in zip(row, keeps) if keep]
                for row, keeps in zip(side.values.tolist(), side.mask.tolist())]

    def one_way(xs, ys):
        return sum(max(dot(x, y) for y in ys) for x in xs) / len(xs)

    a, b = real(a), real(b)
    return (torch.tensor([[one_way(x, y) for y in b] for x in a], dtype=torch.float64),
            torch.tensor([[one_way(y, x) for y in b] for x in a], dtype=torch.float64))


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 6))
@QUICK
def test_late_interaction_is_the_loop_for_any_mask_and_chunk(seed, t, chunk):
    a, b = tokens(4, t, seed=seed), tokens(3, 5, seed=seed + 1)
    found = late_interaction(a, b, chunk=chunk)
    for way, wanted in zip(found, loop_late_interaction(a, b), strict=True):
        assert way.shape == (4, 3) and relative(way, wanted) < 1e-12
        assert (way <= 1 + 1e-12).all()


def loop_gradient(a: Tokens, b: Tokens, weights, back):
    """d(Σ weights·a_to_b + Σ back·b_to_a)/da: each maximum pulls one pair of tokens."""
    gradient = torch.zeros_like(a.values)
    for i in range(len(a.values)):
        own = a.mask[i].nonzero().flatten().tolist()
        for j in range(len(b.values)):
            other = b.mask[j].nonzero().flatten().tolist()
            products = a.values[i] @ b.values[j].T
            for p in own:
                best = max(other, key=lambda q: products[p, q])
                gradient[i, p] += weights[i, j] * b.values[j, best] / len(own)
            for q in other:
                best = max(own, key=lambda p: products[p, q])
                gradient[i, best] += back[i, j] * b.values[j, q] / len(other)
    return gradient


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_gradient_of_late_interaction(chunk):
    a, b, weights, back = tokens(4, 5), tokens(3, 6, seed=1), randn(4, 3), randn(4, 3, seed=9)

    def total(x, y):
        there, here = late_interaction(Tokens(x, a.mask), Tokens(y, b.mask), chunk=chunk)
        return (weights * there).sum() + (back * here).sum()

    x, y = a.values.clone().requires_grad_(), b.values.clone().requires_grad_()
    for_x, for_y = torch.autograd.grad(total(x, y), (x, y))
    assert relative(for_x, loop_gradient(a, b, weights, back)) < 1e-9
    assert relative(for_y, loop_gradient(b, a, back.T, weights.T)) < 1e-9
    assert torch.autograd.gradcheck(total, (x, y))


@given(st.integers(0, 10**6))
@QUICK
def test_padding_and_order_of_tokens_change_nothing(seed):
    a, b = tokens(4, 5, seed=seed), tokens(3, 6, seed=seed + 1)
    plain = late_interaction(a, b)
    longer = Tokens(*(F.pad(x, (0, 0, 0, 3) if x.dim() == 3 else (0, 3)) for x in b))
    turn = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    turned = Tokens(a.values[:, turn], a.mask[:, turn])
    for x, y in ((spoilt(a), spoilt(b)), (spoilt(a, math.nan), b), (a, spoilt(b, -math.inf)),
                 (a, longer), (turned, b)):
        for found, wanted in zip(late_interaction(x, y), plain, strict=True):
            assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_what_must_hold_exactly():
    a, b = tokens(4, 5), tokens(4, 6, seed=1)
    there, back = late_interaction(a, b)
    swapped = late_interaction(b, a)
    assert torch.allclose(there, swapped[1].T) and torch.allclose(back, swapped[0].T)
    twice = Tokens(torch.cat([b.values] * 2, 1), torch.cat([b.mask] * 2, 1))
    assert torch.allclose(late_interaction(a, twice)[0], there)  # a repeated token
    one = Tokens(a.values[:, :1], torch.ones(4, 1).bool())
    other = Tokens(b.values[:, :1], torch.ones(4, 1).bool())
    for way in late_interaction(one, other):  # one token a side: the dot product
        assert torch.allclose(way, one.values[:, 0] @ other.values[:, 0].T)
    own = late_interaction(a, a)[0].diagonal()
    assert torch.allclose(own, torch.ones(4).double())  # every token finds itself


def test_late_interaction_is_float32_at_least_and_keeps_places_only():
    a, b = tokens(8, 16, 32), tokens(8, 16, 32, seed=1)
    half = [Tokens(x.values.bfloat16(), x.mask) for x in (a, b)]
    wide = [Tokens(x.values.float(), x.mask) for x in half]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = late_interaction(*half)
    for found, wanted in zip(inside, late_interaction(*wide), strict=True):
        assert found.dtype == torch.float32 and torch.equal(found, wanted)
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    x = wide[0].values.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        late_interaction(Tokens(x, a.mask), wide[1], chunk=2)
    assert sum(kept.values()) < 4 * 8 * 8 * 16 * 16  # all products would be as much


@pytest.mark.parametrize("change, message", [
    (lambda a: Tokens(a.values, a.mask.float()), "a must be .* bool"),
    (lambda a: Tokens(a.values, a.mask[:, :2]), "a must be"),
    (lambda a: Tokens(a.values, torch.zeros_like(a.mask)), "a has 4 rows without a real"),
    (lambda a: Tokens(a.values[:, :, :2], a.mask), "a has width 2, b 4"),
])
def test_late_interaction_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        late_interaction(change(tokens(4, 5)), tokens(4, 5))


def test_mean_pool_sees_real_tokens_only():
    a = tokens(4, 5)
    wanted = torch.stack([x[m].mean(0) for x, m in zip(*a, strict=True)])
    assert torch.allclose(mean_pool(spoilt(a, math.nan)), wanted, rtol=1e-12)


# Gramian volume -----------------------------------------------------------------------
def det(matrix) -> float:
    """By the first row, number by number."""
    return 1.0 if not matrix else sum(
        (-1) ** j * matrix[0][j] * det([row[:j] + row[j + 1:] for row in matrix[1:]])
        for j in range(len(matrix)))


def loop_volume(vectors) -> float:
    return math.sqrt(det([[dot(x, y) for y in vectors] for x in vectors]))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_volume_is_the_determinant(k):
    x = [rows(5, 6, seed=s).requires_grad_() for s in range(k)]
    found = gramian_volume(x)
    wanted = [loop_volume([m[i].tolist() for m in x]) for i in range(5)]
    assert relative(found, torch.tensor(wanted, dtype=torch.float64)) < 1e-12
    assert torch.autograd.gradcheck(lambda *x: gramian_volume(x), x)
    # d volume / d X = volume · G⁻¹ X
    stack = torch.stack(x, 1).detach()
    slope = found.detach()[:, None, None] * torch.linalg.inv(stack @ stack.mT) @ stack
    gradients = torch.stack(torch.autograd.grad(found.sum(), x), 1)
    assert relative(gradients, slope) < 1e-9


def test_volumes_of_all_against_all():
    t, v, a = rows(4, 6).requires_grad_(), rows(3, 6, seed=1), rows(3, 6, seed=2)
    found = gramian_volumes(t, [v, a])
    wanted = torch.stack([gramian_volume([t[i].expand(3, -1), v, a]) for i in range(4)])
    assert relative(found, wanted) < 1e-12
    # base times height: the distance of t to the plane of v and a
    plane = torch.linalg.qr(torch.stack([v, a], 2)).Q  # [3, 6, 2]
    height = (t[:, None] - torch.einsum("jdk,jek,ie->ijd", plane, plane, t)).norm(dim=2)
    assert relative(found, gramian_volume([v, a]) * height) < 1e-12
    assert relative(gramian_volumes(t, [v]), (1 - cosine(t, v).square()).sqrt()) < 1e-12
    assert torch.autograd.gradcheck(lambda t: gramian_volumes(t, [v, a]), t)


@given(st.integers(0, 10**6))
@QUICK
def test_volume_does_not_see_sign_order_or_rotation(seed):
    x = [rows(4, 5, seed=seed + s) for s in range(3)]
    turn = torch.linalg.qr(randn(5, 5, seed=seed)).Q
    plain = gramian_volume(x)
    assert ((plain >= 0) & (plain <= 1 + 1e-12)).all()
    for other in ([-x[0], x[1], x[2]], [x[2], x[0], x[1]], [y @ turn for y in x]):
        assert torch.allclose(gramian_volume(other), plain, atol=1e-9)
    assert gramian_volume([x[0], x[1], x[0]]).max() < 1e-7
    right = torch.eye(4).double()
    assert torch.equal(gramian_volume([right, right.roll(1, 1)]), torch.ones(4).double())


@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (1, 1, 1), (1, -1, 1, 1)])
@pytest.mark.parametrize("noise", [0.0, 1e-8, 1e-4])
def test_gradient_is_finite_at_volume_zero(signs, noise):
    x = rows(50, 8).float()
    x = [F.normalize(s * x + noise * randn(50, 8, seed=i).float(), dim=1).requires_grad_()
         for i, s in enumerate(signs)]
    for volume in (gramian_volume(x), gramian_volumes(x[0], x[1:]).diagonal()):
        gradients = torch.autograd.grad(volume.sum(), x)
        assert (volume < 2e-3).all()  # float32 knows det to 1e-7 or so
        assert all(g.norm(dim=1).max() < 2 for g in gradients)  # in truth at most 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gramian_volume([y.bfloat16() for y in x]).dtype == torch.float32


# Experts ------------------------------------------------------------------------------
def experts(top=None, renormalise=True, n=4, width=3):
    torch.manual_seed(0)
    return Experts(width, [torch.nn.Linear(width, 2) for _ in range(n)], top,
                   renormalise).double()


@pytest.mark.parametrize("top", [1, 2, 4])
@pytest.mark.parametrize("renormalise", [True, False])
def test_experts_are_the_loop(top, renormalise):
    mixture, x = experts(top, renormalise), randn(2, 5, 3)
    found, weights = mixture(x)
    for place in [(i, j) for i in range(2) for j in range(5)]:
        logits = (mixture.gate.weight @ x[place]).tolist()
        gates = [math.exp(z) / sum(map(math.exp, logits)) for z in logits]
        kept = sorted(range(4), key=lambda e: -gates[e])[:top]
        scale = sum(gates[e] for e in kept) if renormalise else 1
        wanted = sum(gates[e] / scale * mixture.experts[e](x[place]) for e in kept)
        assert relative(found[place], wanted) < 1e-12
        assert abs(weights[place].sum() - (1 if renormalise else sum(
            gates[e] for e in kept))) < 1e-12
    assert torch.autograd.gradcheck(lambda x: mixture(x)[0], randn(3, 3).requires_grad_())


def test_experts_at_their_limits():
    x = randn(6, 3)
    one = experts(n=1)
    assert torch.equal(one(x)[0], one.experts[0](x)) and (one(x)[1] == 1).all()
    mixture = experts(top=1)
    found, weights = mixture(x[:1])
    found.sum().backward()
    for expert, weight in zip(mixture.experts, weights[0], strict=True):
        taught = expert.weight.grad is not None and bool(expert.weight.grad.any())
        assert taught == bool(weight)  # not chosen: not taught
    same = experts(top=2)
    for expert in same.experts:
        expert.load_state_dict(same.experts[0].state_dict())
    assert torch.allclose(same(x)[0], same.experts[0](x))  # equal experts: one of them


def test_one_token_a_side_gives_the_loss_of_pooled_vectors():
    a, b = rows(5, 4), rows(5, 4, seed=1)
    mask = torch.ones(5, 1, dtype=torch.bool)
    there, back = late_interaction(Tokens(a[:, None], mask), Tokens(b[:, None], mask))
    target = torch.arange(5)
    loss = (F.cross_entropy(9 * there, target) + F.cross_entropy(9 * back.T, target)) / 2
    assert relative(loss, info_nce(a, b, 9.0)) < 1e-12
