"""Losses, scores and experts against slow loops written from the equation, and what must
hold exactly."""

import math

import pytest
import torch
from torch.nn import functional as F

from alignkit.data import Tokens
from alignkit.evaluation import alignment, uniformity
from alignkit.parts import (
    Experts, alignment_loss, distillation_loss, gramian_volume, gramian_volumes,
    leading_directions, sigmoid_loss, triplet_loss, uniformity_loss,
)  # fmt: skip


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def rows(*shape, seed=0):
    return F.normalize(randn(*shape, seed=seed), dim=-1)


def dot(x, y) -> float:
    return sum(p * q for p, q in zip(x, y, strict=True))


def slow_gradient(function, x, h=5e-4):
    """Central differences of sixth order, number by number."""
    gradient = torch.zeros_like(x)
    for place in range(x.numel()):
        move = torch.zeros_like(x)
        move.view(-1)[place] = h
        one, two, three = (function(x + k * move) - function(x - k * move) for k in (1, 2, 3))
        gradient.view(-1)[place] = (45 * one - 9 * two + three) / (60 * h)
    return gradient


def relative(found, wanted) -> float:
    found, wanted = (torch.as_tensor(x, dtype=torch.float64) for x in (found, wanted))
    return float((found - wanted).detach().norm() / wanted.detach().norm())


# Losses as loops ----------------------------------------------------------------------
RIGHT = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]).bool()
ONE_SIDED = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 1], [1, 0, 0, 1]]).bool()


def loop_sigmoid(a, b, scale, bias, right) -> float:
    total = 0.0
    for x, answers in zip(a.tolist(), right.tolist()):
        for y, answer in zip(b.tolist(), answers):
            z = scale * dot(x, y) + bias
            total += math.log1p(math.exp(-z if answer else z))
    return total / len(a)


def loop_triplet(s, margin, right, hardest) -> float:
    s, n, total = s.tolist(), len(s), 0.0
    gather = max if hardest else sum
    for i in range(n):
        wrong = [j for j in range(n) if not right[i][j]]
        total += gather([max(0, margin + s[i][j] - s[i][i]) for j in wrong])
        wrong = [j for j in range(n) if not right[j][i]]
        total += gather([max(0, margin + s[j][i] - s[i][i]) for j in wrong])
    return total / n


def loop_distillation(student, teacher, temperature) -> float:
    def softmax(row):
        powers = [math.exp(x / temperature) for x in row]
        return [p / sum(powers) for p in powers]

    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist()):
        total += sum(p * math.log(p / q) for p, q in zip(softmax(t), softmax(s)))
    return temperature**2 * total / len(student)


def loop_uniformity(x, t) -> float:
    x = x.tolist()
    apart = [math.exp(-t * sum((p - q) ** 2 for p, q in zip(x[i], x[j])))
             for i in range(len(x)) for j in range(len(x)) if i != j]
    return math.log(sum(apart) / len(apart))


def loop_alignment(a, b, alpha) -> float:
    far = [math.dist(x, y) ** alpha for x, y in zip(a.tolist(), b.tolist())]
    return sum(far) / len(far)


A, B, EYE = rows(4, 3), rows(4, 3, seed=1), torch.eye(4).bool()
S, T = 2 * randn(4, 4), 2 * randn(4, 4, seed=1)
LOOPS = {
    "sigmoid": (lambda a: sigmoid_loss(a, B, 5.0, -2.0),
                lambda a: loop_sigmoid(a, B, 5.0, -2.0, EYE), A),
    "sigmoid, other side": (lambda b: sigmoid_loss(A, b, 5.0, -2.0, RIGHT),
                            lambda b: loop_sigmoid(A, b, 5.0, -2.0, RIGHT), B),
    "triplet": (lambda s: triplet_loss(s, 0.2), lambda s: loop_triplet(s, 0.2, EYE, True), S),
    "triplet, several": (lambda s: triplet_loss(s, 1.5, RIGHT),
                         lambda s: loop_triplet(s, 1.5, RIGHT, True), S),
    "triplet, one-sided": (lambda s: triplet_loss(s, 1.5, ONE_SIDED),
                           lambda s: loop_triplet(s, 1.5, ONE_SIDED, True), S),
    "triplet, sum": (lambda s: triplet_loss(s, 1.5, RIGHT, hardest=False),
                     lambda s: loop_triplet(s, 1.5, RIGHT, False), S),
    "distillation": (lambda s: distillation_loss(s, T, 3.0),
                     lambda s: loop_distillation(s, T, 3.0), S),
    "uniformity": (lambda x: uniformity_loss(x, 2), lambda x: loop_uniformity(x, 2), A),
    "alignment": (lambda a: alignment_loss(a, B), lambda a: loop_alignment(a, B, 2), A),
    "alignment, alpha 1": (lambda a: alignment_loss(a, B, 1),
                           lambda a: loop_alignment(a, B, 1), A),
}


@pytest.mark.parametrize("fast, slow, x", LOOPS.values(), ids=LOOPS)
def test_losses_are_the_equations(fast, slow, x):
    x = x.clone().requires_grad_()
    loss = fast(x)
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.shape == () and relative(loss, slow(x)) < 1e-12
    assert relative(gradient, slow_gradient(slow, x.detach())) < 1e-9
    assert torch.autograd.gradcheck(fast, x)


CASTS = {
    "sigmoid": lambda c: sigmoid_loss(A.to(c), B.to(c), 20.0, -10.0),
    "triplet": lambda c: triplet_loss(S.to(c)),
    "distillation": lambda c: distillation_loss(S.to(c), T.to(c)),
    "uniformity": lambda c: uniformity_loss(A.to(c)),
    "alignment": lambda c: alignment_loss(A.to(c), B.to(c)),
}


@pytest.mark.parametrize("loss", CASTS.values(), ids=CASTS)
def test_losses_are_float32_at_least(loss):
    rounded = loss(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, full = loss(torch.bfloat16), loss(torch.float32)
    assert rounded.dtype == inside.dtype == full.dtype == torch.float32
    assert torch.equal(rounded, inside)  # autocast rounds nothing
    assert relative(full, loss(torch.float64)) < 1e-5


def test_losses_do_not_see_the_order():
    order = torch.tensor([2, 0, 3, 1])
    a, b, right = A[order], B[order], RIGHT[order][:, order]
    s, t = S[order][:, order], T[order][:, order]
    for before, after in (
        (sigmoid_loss(A, B, 5.0, -2.0, RIGHT), sigmoid_loss(a, b, 5.0, -2.0, right)),
        (triplet_loss(S, 1.0, RIGHT), triplet_loss(s, 1.0, right)),
        (distillation_loss(S, T), distillation_loss(s, t)),
        (alignment_loss(A, B), alignment_loss(a, b)),
        (uniformity_loss(A), uniformity_loss(a)),
    ):
        assert relative(after, before) < 1e-12


# Limits -------------------------------------------------------------------------------
def test_limits_of_the_sigmoid_loss():
    assert relative(sigmoid_loss(A, B, 0.0, 0.0), 4 * math.log(2)) < 1e-12
    assert sigmoid_loss(A, B, 3.0, -1.0) == sigmoid_loss(A, B, 3.0, -1.0, EYE)
    none = sigmoid_loss(A, B, 3.0, -100.0, torch.zeros(4, 4).bool())
    assert 0 <= none < 1e-30  # no right answer at all is allowed
    assert relative(sigmoid_loss(A, B, 3.0, -1.0), sigmoid_loss(B, A, 3.0, -1.0)) < 1e-12
    far = sigmoid_loss(A.float(), -A.float(), 100.0, 0.0)
    assert torch.isfinite(far) and far > 100  # exp would have overflowed


def test_limits_of_the_triplet_loss():
    assert triplet_loss(10 * torch.eye(5)) == 0  # every margin kept
    assert relative(triplet_loss(torch.zeros(5, 5), 0.2), 0.4) < 1e-6  # collapsed
    alone = torch.ones(1, 1, requires_grad=True)
    triplet_loss(alone).backward()
    assert triplet_loss(alone) == 0 and alone.grad == 0  # no negative
    assert triplet_loss(S, 9.0, torch.ones(4, 4).bool()) == 0
    two = triplet_loss(S[:2, :2], 0.3)  # one negative: the maximum is the sum
    assert two == triplet_loss(S[:2, :2], 0.3, hardest=False)
    assert torch.equal(triplet_loss(S, 1.0, RIGHT), triplet_loss(S, 1.0, RIGHT & ~EYE))


def test_only_the_hardest_negative_is_pushed():
    s = torch.tensor([[0.5, 0.6, 0.4], [-1.0, 9.0, -1.0], [-1.0, -1.0, 9.0]],
                     requires_grad=True)
    triplet_loss(s, 0.2).backward()
    wanted = torch.zeros(3, 3)
    wanted[0, 1], wanted[0, 0] = 1 / 3, -1 / 3
    assert torch.allclose(s.grad, wanted)


def test_limits_of_distillation():
    student, teacher = S.clone().requires_grad_(), T.clone().requires_grad_()
    assert distillation_loss(T + 7.0, T).abs() < 1e-12  # a shift is the same softmax
    distillation_loss(student, teacher, 2.0).backward()
    assert teacher.grad is None
    soft = (student / 2).softmax(1) - (teacher / 2).softmax(1)
    assert relative(student.grad, 2 * soft / 4) < 1e-12  # temperature · (q − p) / n
    centred = (S - T) - (S - T).mean(1, keepdim=True)  # Hinton et al., equation 4
    assert relative(distillation_loss(S, T, 1e4), centred.square().sum(1).mean() / 8) < 1e-3
    hard = F.one_hot(torch.tensor([1, 0, 3, 2]), 4).double() * 200
    cross = F.cross_entropy(S, torch.tensor([1, 0, 3, 2]))
    assert relative(distillation_loss(S, hard), cross) < 1e-12


def test_alignment_and_uniformity_are_the_measures():
    assert relative(alignment_loss(A, B), alignment(A, B)) < 1e-12
    assert relative(uniformity_loss(A), uniformity(A)) < 1e-12
    assert relative(alignment_loss(A, B), 2 - 2 * (A * B).sum(1).mean()) < 1e-12
    same = A[:1].repeat(4, 1).requires_grad_()
    loss = uniformity_loss(same) + alignment_loss(same, same.detach(), 1)
    loss.backward()
    assert abs(loss) < 1e-12 and torch.isfinite(same.grad).all()
    corners = torch.tensor([[1.0, 0], [-1, 0]])
    assert uniformity_loss(corners) == -8  # |x − y|² = 4, times 2


@pytest.mark.parametrize("call, message", [
    (lambda: sigmoid_loss(A, B[:3], 1.0, 0.0), "a has 4 rows and b 3"),
    (lambda: sigmoid_loss(A, B[:, :2], 1.0, 0.0), r"a and b must be"),
    (lambda: sigmoid_loss(A, B, 1.0, 0.0, EYE[:3]), r"positives must be \(4, 4\)"),
    (lambda: sigmoid_loss(A, B, 1.0, 0.0, EYE.double()), "bool, got .* torch.float64"),
    (lambda: triplet_loss(S[:3]), r"scores must be \[n, n\]"),
    (lambda: triplet_loss(S, 0.2, EYE[:2]), "positives must be"),
    (lambda: distillation_loss(S, T[:3]), "student is"),
    (lambda: distillation_loss(S, T, 0.0), "temperature above 0"),
    (lambda: alignment_loss(A, B[:2]), "a and b must be paired"),
    (lambda: uniformity_loss(A[:1]), "x must be"),
    (lambda: gramian_volume([A, B[:2]]), "modalities must be"),
    (lambda: gramian_volumes(A, [B, A[:2]]), "others must be"),
    (lambda: gramian_volumes(A[:, :2], [B]), "anchor must be"),
    (lambda: Experts(3, [torch.nn.Linear(3, 3)], top=2), "top must lie between 1 and"),
])
def test_refusals_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_experts_see_the_rows_that_chose_them():
    """Against all experts on all rows; one that no row has chosen has no gradient."""
    torch.manual_seed(0)
    for top, renormalise in ((2, True), (2, False), (None, False)):
        experts = Experts(3, [torch.nn.Linear(3, 5) for _ in range(4)], top, renormalise,
                          bias=True).double()
        with torch.no_grad():
            experts.gate.bias[1] -= 99.0
        x = randn(2, 6, 3)
        mixed, weights = experts(x)
        g = experts.gate(x).softmax(-1)
        kept = g.topk(4 if top is None else top, dim=-1)
        wanted = torch.zeros_like(g).scatter(-1, kept.indices, kept.values)
        if renormalise:
            wanted = wanted / wanted.sum(-1, keepdim=True)
        dense = sum(wanted[..., e, None] * expert(x)
                    for e, expert in enumerate(experts.experts))
        assert mixed.shape == (2, 6, 5) and relative(mixed, dense) < 1e-12
        assert relative(weights, wanted) < 1e-12
        mixed.sum().backward()
        assert (experts.experts[1].weight.grad is None) == (top == 2)
        assert all(experts.experts[e].weight.grad.any() for e in (0, 2, 3))


def test_an_expert_chosen_in_another_process_is_computed_here_too(monkeypatch):
    """Shards of an expert are put together by all processes at once, or they wait for ever."""
    from alignkit.parts import layers

    experts = Experts(3, [torch.nn.Linear(3, 3) for _ in range(3)], 1, bias=True)
    with torch.no_grad():
        experts.gate.bias.copy_(torch.tensor([99.0, 0.0, 0.0]))
    alone, _ = experts(x := randn(4, 3).float())
    monkeypatch.setattr(layers, "processes", lambda: (0, 2))
    monkeypatch.setattr(layers.dist, "all_reduce", lambda used, op: used.add_(
        torch.tensor([0.0, 1.0, 0.0])))  # the other one's rows chose the second
    mixed, _ = experts(x)
    mixed.sum().backward()
    assert torch.equal(mixed, alone)
    assert [e.weight.grad is None for e in experts.experts] == [False, False, True]
    assert not experts.experts[1].weight.grad.any()


def test_leading_directions_are_orthonormal_and_keep_the_most():
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, 6, generator=drawn) * torch.tensor([9, 1, 1, 5, 1, 1])
    tokens = Tokens(x, torch.ones(30, 4, dtype=torch.bool))
    u = leading_directions(tokens, 2)
    assert torch.allclose(u.T @ u, torch.eye(2), atol=1e-5)
    assert u[[0, 3]].norm() > 1.4  # of √2: they are the first and the fourth
