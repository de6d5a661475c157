"""Losses against slow loops written from the equation, layers, and the default method."""

import math

import pytest
import torch
from torch.nn import functional as F

from alignkit.data import Pairs
from alignkit.parts import (
    DualEncoder, Settings, Stage, Temperature, cosine, info_nce, logits_of,
    optimise_inputs, positives_of, projector, shares, two_way_cross_entropy, unit,
)  # fmt: skip


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return F.normalize(x.double(), dim=1)


def features(n: int = 40, d: int = 6, **rest) -> Pairs:
    x = rows(n, d)
    y = torch.tanh(x @ rows(d, d, 1)) + 0.1 * rows(n, d, 2)
    return Pairs.from_features({"image_features": x.float(), "text_features": y.float()},
                               **rest)


# InfoNCE ----------------------------------------------------------------------------
def loop_info_nce(a, b, scale, positives) -> float:
    """½ mean_i[ −1/|P_i| Σ_{j∈P_i} log softmax_j(scale · a_i·b_j) ] + the same from b,
    number by number."""
    a, b, positives = a.tolist(), b.tolist(), positives.tolist()
    swapped = [list(column) for column in zip(*positives)]

    def one_way(queries, gallery, right) -> float:
        total = 0.0
        for q, answers in zip(queries, right):
            scores = [scale * sum(x * y for x, y in zip(q, g)) for g in gallery]
            top = max(scores)
            log_sum = top + math.log(sum(math.exp(s - top) for s in scores))
            chosen = [s - log_sum for s, right_answer in zip(scores, answers) if right_answer]
            total -= sum(chosen) / len(chosen)
        return total / len(queries)

    return (one_way(a, b, positives) + one_way(b, a, swapped)) / 2


def slow_gradient(function, x: torch.Tensor, h: float = 5e-4) -> torch.Tensor:
    """Central differences of fourth order, number by number."""
    gradient = torch.zeros_like(x)
    for place in range(x.numel()):
        move = torch.zeros_like(x)
        move.view(-1)[place] = h
        near = function(x + move) - function(x - move)
        far = function(x + 2 * move) - function(x - 2 * move)
        gradient.view(-1)[place] = (8 * near - far) / (12 * h)
    return gradient


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).detach().norm() / wanted.detach().norm())


ITEMS = {"single": [0, 1, 2, 3, 4], "several": [0, 1, 0, 2, 1], "one item": [0, 0, 0]}


@pytest.mark.parametrize("items", ITEMS.values(), ids=ITEMS)
@pytest.mark.parametrize("scale", [1.0, 14.3])
def test_info_nce_is_the_equation(items, scale):
    positives = positives_of(torch.tensor(items))
    a, b = rows(len(items), 4), rows(len(items), 4, seed=1)
    a.requires_grad_(), b.requires_grad_()
    loss = info_nce(a, b, scale, positives)
    assert abs(loss.item() / loop_info_nce(a, b, scale, positives) - 1) < 1e-12
    for x, with_x in ((a, lambda x: loop_info_nce(x, b, scale, positives)),
                      (b, lambda x: loop_info_nce(a, x, scale, positives))):
        (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
        assert relative(gradient, slow_gradient(with_x, x.detach())) < 1e-8


def loop_gradient(a, b, scale, positives) -> torch.Tensor:
    """dL/da by the chain rule, number by number: d(−log softmax_j)/ds_k = p_k − [k = j]."""
    n, m, gradient, positives = len(a), len(b), torch.zeros_like(a), positives.double()
    for i in range(n):
        forth = torch.exp(scale * a[i] @ b.T - torch.logsumexp(scale * a[i] @ b.T, 0))
        for k in range(m):
            back = torch.exp(scale * a[i] @ b[k] - torch.logsumexp(scale * a @ b[k], 0))
            push = (forth[k] - positives[i, k] / positives[i].sum()) / n
            push = push + (back - positives[i, k] / positives[:, k].sum()) / m
            gradient[i] += scale * push * b[k] / 2
    return gradient


@pytest.mark.parametrize("items", ITEMS.values(), ids=ITEMS)
def test_gradient_of_info_nce_is_the_equation(items):
    positives = positives_of(torch.tensor(items))
    a, b = rows(len(items), 4), rows(len(items), 4, seed=1)
    for x, y in ((a, b), (b, a)):
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(info_nce(x, y, 7.0, positives), x)
        assert relative(gradient, loop_gradient(x.detach(), y, 7.0, positives)) < 1e-9


def test_rectangular_with_positives():
    a, b = rows(3, 4).requires_grad_(), rows(5, 4, seed=1)
    positives = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 1]]).bool()
    loss = info_nce(a, b, 5.0, positives)
    assert abs(loss.item() / loop_info_nce(a, b, 5.0, positives) - 1) < 1e-12
    (gradient,) = torch.autograd.grad(loss, a)
    assert relative(gradient, loop_gradient(a.detach(), b, 5.0, positives)) < 1e-9
    assert relative(info_nce(b, a, 5.0, positives.T), loss) < 1e-12  # symmetric


def test_info_nce_without_positives_is_one_right_answer_a_row():
    a, b = rows(6, 4), rows(6, 4, seed=1)
    assert relative(info_nce(a, b, 9.0), info_nce(a, b, 9.0, torch.eye(6).bool())) < 1e-12


def kept(loss) -> int:
    """Bytes that autograd keeps for the gradient of loss()."""
    found = {}

    def keep(x):
        found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss()
    return sum(found.values())


@pytest.mark.parametrize("n", [5, 37, 128, 300])
def test_the_diagonal_as_positives_is_none_bit_for_bit_and_byte_for_byte(n):
    """Published weights rest on it: every objective may give its matrix of right answers,
    and it costs something only where rows share an item."""
    a, b = (rows(n, 16, seed).float().requires_grad_() for seed in (0, 1))
    scale = torch.tensor(20.0, requires_grad=True)
    right = torch.eye(n) > 0
    several = right | (torch.arange(n) < 2) & (torch.arange(n)[:, None] < 2)
    share = shares(right)
    without, with_it, as_shares, more = ways = [
        lambda: info_nce(a, b, scale), lambda: info_nce(a, b, scale, right),
        lambda: two_way_cross_entropy(logits_of(a, b, scale), share, back=share.T.clone()),
        lambda: info_nce(a, b, scale, several)]
    first, *same, other = (torch.autograd.grad(way(), (a, b, scale)) for way in ways)
    assert all(torch.equal(x, y) for found in same for x, y in zip(first, found))
    assert not torch.equal(first[0], other[0])
    # Two matrices of shares less; n numbers of columns and two sums of weights more.
    assert kept(with_it) == kept(without) == kept(more) - 8 * n * n + 8 * n + 8


def test_one_right_answer_a_row_off_the_diagonal_is_no_pair():
    a, b, shift = rows(6, 4), rows(6, 4, seed=1), torch.eye(6).roll(1, 1) > 0
    assert relative(info_nce(a, b, 9.0, shift), info_nce(a, b.roll(-1, 0), 9.0)) < 1e-12


def test_info_nce_does_not_see_the_order():
    item, order = torch.tensor([0, 1, 0, 2, 1]), torch.tensor([3, 0, 4, 2, 1])
    a, b = rows(5, 4), rows(5, 4, seed=1)
    before = info_nce(a, b, 9.0, positives_of(item))
    after = info_nce(a[order], b[order], 9.0, positives_of(item[order]))
    assert relative(after, before) < 1e-12


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_identical_rows_give_ln_n(scale):
    same = rows(1, 4).float().expand(7, 4)
    assert abs(info_nce(same, same, scale).item() - math.log(7)) < 1e-5


def test_scale_100_is_stable():
    a = rows(8, 4).float().requires_grad_()
    for b in (a, -a):  # all right, all wrong
        loss = info_nce(a, b, 100.0)
        (gradient,) = torch.autograd.grad(loss, a)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()
    assert info_nce(a, a, 100.0) < 0.1 and info_nce(a, -a, 100.0) > 50


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_are_float32_at_least(dtype):
    a, b = rows(5, 8).to(dtype), rows(4, 8, seed=1).to(dtype)
    exact = 20 * a.double() @ b.double().T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = logits_of(a, b, 20.0)
        loss = info_nce(a, b[:4].repeat(2, 1)[:5], 20.0)
    for logits in (logits_of(a, b, 20.0), inside):
        assert logits.dtype == torch.float32
        # bfloat16 products would be off by 20 · 2⁻⁹ = 0.04
        assert (logits - exact).abs().max() < 1e-4
    assert loss.dtype == torch.float32
    assert logits_of(a.double(), b.double(), 20.0).dtype == torch.float64


@pytest.mark.parametrize("shapes, positives, message", [
    (((3, 4), (3, 5)), None, r"\(3, 4\) and \(3, 5\)"),
    (((3, 4, 1), (3, 4)), None, r"must be \[n, d\]"),
    (((3, 4), (2, 4)), None, "a has 3 rows and b 2"),
    (((3, 4), (2, 4)), torch.ones(3, 3), r"positives must be \(3, 2\)"),
    (((2, 4), (2, 4)), torch.tensor([[1, 0], [1, 0]]), "no right answer"),
])
def test_info_nce_refuses(shapes, positives, message):
    a, b = (torch.ones(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        info_nce(a, b, 1.0, None if positives is None else positives.bool())


LOSSES = {
    "pairs": lambda a, b, t: info_nce(a, b, t),
    "several": lambda a, b, t: info_nce(a, b, t, positives_of(torch.tensor([0, 1, 0, 2]))),
    "unit rows": lambda a, b, t: info_nce(unit(a), unit(b), t),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradients_agree_with_finite_differences(loss):
    a, b = rows(4, 3).requires_grad_(), rows(4, 3, seed=1).requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (a, b, scale))

# Soft targets -------------------------------------------------------------------------
def test_cross_entropy_of_both_directions_is_the_equation():
    generator = torch.Generator().manual_seed(0)
    rows_, columns = (torch.randn(3, 4, generator=generator, dtype=torch.float64)
                      for _ in range(2))
    target, back = torch.rand(3, 4, generator=generator).double(), torch.rand(
        4, 3, generator=generator).double()  # their sums are not 1
    wanted = 0.0
    for i in range(3):
        total = sum(math.exp(x) for x in rows_[i].tolist())
        wanted -= sum(target[i, j] * math.log(math.exp(rows_[i, j]) / total)
                      for j in range(4)) / 3
    for j in range(4):
        total = sum(math.exp(x) for x in columns[:, j].tolist())
        wanted -= sum(back[j, i] * math.log(math.exp(columns[i, j]) / total)
                      for i in range(3)) / 4
    found = two_way_cross_entropy(rows_, target, columns, back)
    assert torch.isclose(found, wanted / 2, rtol=1e-12)
    one = two_way_cross_entropy(rows_, target)  # the other way is the transpose
    assert torch.isclose(one, two_way_cross_entropy(rows_, target, rows_, target.T))
    assert abs(one - found) > 0.01


def test_shares_make_it_info_nce_and_smoothing_spreads_some():
    a, b = rows(5, 3), rows(5, 3, 1)
    positives = positives_of(torch.tensor([0, 1, 1, 2, 0]))
    logits, target = logits_of(a, b, 9.0), shares(positives, torch.float64)
    assert torch.equal(target.sum(1), torch.ones(5).double()) and target[1, 2] == 0.5
    assert torch.isclose(two_way_cross_entropy(logits, target),
                         info_nce(a, b, 9.0, positives), rtol=1e-12)
    assert torch.isclose(two_way_cross_entropy(logits, target, smoothing=0.2),
                         two_way_cross_entropy(logits, 0.8 * target + 0.2 / 5))
    assert torch.equal(shares(torch.tensor([[1.0, 3.0]])), torch.tensor([[0.25, 0.75]]))
    assert shares(torch.tensor([[torch.nan, 0.0]])).isnan()[0, 0]


def test_soft_targets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="no right answer"):
        shares(torch.tensor([[True, False], [False, False]]))
    with pytest.raises(ValueError, match=r"one shape \[n, m\].*\(2, 2\)"):
        two_way_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="one shape"):
        two_way_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3, 2))


# Similarity -------------------------------------------------------------------------
def test_unit_and_cosine():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-2.0, 0.0]])
    assert torch.allclose(unit(x), torch.tensor([[0.6, 0.8], [0, 0], [-1, 0]]))
    assert torch.allclose(cosine(x, x[:1]), torch.tensor([[1.0], [0.0], [-0.6]]))
    assert unit(x.bfloat16()).dtype == torch.float32
    assert unit(x.double()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_zero_row_has_no_gradient_and_no_other_row_feels_it(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 7, generator=generator).to(dtype)
    x[1], x[2] = 0, 1e-20  # shorter than what normalize divides by at least
    x.requires_grad_()
    wide = x if dtype.itemsize >= 4 else x.float()
    torch_way, ours = F.normalize(wide, dim=-1), unit(x)
    assert torch.equal(ours, torch_way)
    g = torch.randn(5, 7, generator=generator).to(ours)
    found, wanted = (torch.autograd.grad((z * g).sum(), x)[0] for z in (ours, torch_way))
    assert wanted[1].norm() > 1e10 and (found[1] == 0).all()
    rest = [0, 2, 3, 4] if dtype != torch.bfloat16 else [0, 3, 4]
    assert torch.equal(found[rest], wanted[rest])


# Layers -----------------------------------------------------------------------------
def test_temperature_fixed_and_learned():
    fixed, learned = Temperature(0.05), Temperature(0.05, learned=True)
    assert abs(fixed().item() - 20) < 1e-4 and abs(learned().item() - 20) < 1e-4
    assert not list(fixed.parameters()) and len(list(learned.parameters())) == 1
    assert set(fixed.state_dict()) == set(learned.state_dict())


def test_temperature_stops_at_100_and_comes_back():
    temperature = Temperature(0.01, learned=True)
    assert abs(temperature().item() - 100) < 1e-3
    with torch.no_grad():
        temperature.log_scale += 3.0  # a step too large
    assert abs(temperature().item() - 100) < 1e-3
    temperature().backward()
    assert temperature.log_scale.grad.item() > 50  # a clamp in the graph would give 0
    torch.optim.SGD(temperature.parameters(), lr=0.01).step()
    assert temperature().item() < 40


@pytest.mark.parametrize("initial", [0.0, 0.009, -1.0, math.nan])
def test_temperature_refuses(initial):
    with pytest.raises(ValueError, match="at least 0.01"):
        Temperature(initial)


def test_projector():
    x = torch.randn(3, 5)
    linear, mlp = projector(5, 2), projector(5, 2, "mlp")
    assert linear(x).shape == mlp(x).shape == (3, 2)
    assert linear.bias is not None
    middle = (linear(x[:1]) + linear(x[1:2])) / 2
    assert torch.allclose(linear((x[:1] + x[1:2]) / 2), middle, atol=1e-6)
    assert sum(p.numel() for p in mlp.parameters()) == 5 * 2 + 2 + 2 * 2 + 2
    with pytest.raises(ValueError, match="'linear' or 'mlp', got 'deep'"):
        projector(5, 2, "deep")


# Optimising inputs ------------------------------------------------------------------
def test_inputs_are_optimised_row_by_row_and_weights_are_left_alone():
    torch.manual_seed(0)
    tower = torch.nn.Linear(4, 4).double()
    goal, start = rows(5, 4), rows(5, 4, seed=1)

    def towards(target):
        return lambda x: (tower(x) - target).square().sum(1)

    with torch.no_grad():
        together = optimise_inputs(towards(goal), start, steps=100, lr=0.1)
        assert torch.is_grad_enabled() is False
    first, last = towards(goal)(start), towards(goal)(together)
    assert (last < first / 2).all()
    for i in range(5):
        alone = optimise_inputs(towards(goal[i:i + 1]), start[i:i + 1], steps=100, lr=0.1)
        assert torch.allclose(alone[0], together[i], rtol=0, atol=1e-12)
    assert all(p.grad is None for p in tower.parameters())
    assert not together.requires_grad and torch.equal(start, rows(5, 4, seed=1))


# The method's defaults --------------------------------------------------------------
def test_dual_encoder_by_default():
    pairs = features()
    torch.manual_seed(0)
    method = DualEncoder(Settings(width=3), pairs)
    batch = method.collate(pairs, torch.Generator())
    outputs = method.encode(batch)
    assert set(outputs) == {"image", "text"}
    for z in outputs.values():
        assert z.shape == (40, 3)
        assert torch.allclose(z.norm(dim=1), torch.ones(40), atol=1e-6)
    losses = method.losses(outputs, batch, 0.5)
    assert set(losses) == {"contrastive_loss"}
    assert torch.equal(method(batch)["contrastive_loss"], losses["contrastive_loss"])
    assert method.score(outputs["image"], outputs["text"][:7]).shape == (40, 7)
    assert [type(stage) for stage in method.stages()] == [Stage]
    assert not list(method.temperature.parameters())  # fixed unless asked for
    with pytest.raises(NotImplementedError, match="DualEncoder does not generate"):
        method.generate(batch)


def test_a_missing_column_is_left_out():
    pairs = features()
    method = DualEncoder(Settings(width=3), pairs)
    assert set(method.encode({"image_features": pairs["image_features"]})) == {"image"}


def test_several_captions_an_item_are_right_answers_of_each_other():
    pairs = features(item=[i // 2 for i in range(40)])
    method = DualEncoder(Settings(width=3), pairs)
    outputs, batch = method.encode(pairs.batch()), pairs.batch()
    loss = method.losses(outputs, batch, 0)["contrastive_loss"].item()
    wanted = loop_info_nce(outputs["image"].double(), outputs["text"].double(),
                           method.temperature().item(), positives_of(pairs.item))
    assert abs(loss / wanted - 1) < 1e-5


def test_collapsed_rows_give_ln_n_and_a_common_rotation_changes_nothing():
    pairs = features()
    torch.manual_seed(0)
    method = DualEncoder(Settings(width=3), pairs).double()
    batch = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v
             for k, v in pairs.batch().items()}
    outputs = method.encode(batch)
    before = method.losses(outputs, batch, 0)["contrastive_loss"]
    turn = torch.linalg.qr(torch.randn(3, 3).double()).Q
    turned = {name: z @ turn for name, z in outputs.items()}
    assert relative(method.losses(turned, batch, 0)["contrastive_loss"], before) < 1e-12
    flat = {name: z[:1].expand_as(z) for name, z in outputs.items()}
    assert abs(method.losses(flat, batch, 0)["contrastive_loss"] - math.log(40)) < 1e-9
