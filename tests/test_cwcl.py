"""CWCL's loss against slow loops in both readings of its anchor, the exact properties of
its card, and the controls of its claims."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize, one_hot

from alignkit.claims import cwcl as claims
from alignkit.course import cwcl as exercises
from alignkit.data import Pairs
from alignkit.methods.cwcl import (
    Cwcl, CwclSettings, Lit, cwcl_losses, similarity_weights, weighted_loss,
)  # fmt: skip
from alignkit.parts import info_nce, unit
from alignkit.training import Budget, fit, seed_all


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def drawn(n: int = 6, d: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return unit(rows(n, d)).requires_grad_(), unit(rows(n, d, 1)).requires_grad_()


def features(n: int = 120) -> Pairs:
    """Rows of six classes with two views; each class's text features in `tables`."""
    label = torch.arange(n) % 6
    hidden = rows(6, 6, 3)[label] + 0.2 * rows(n, 6)
    turn = rows(6, 9, 2)
    return Pairs.make(
        {"image": [f"picture {i}" for i in range(n)],
         "text": [f"row {i}" for i in range(n)],
         "image_features": (hidden @ rows(6, 7, 1)).float(),
         "text_features": (hidden @ turn).float()},
        labels={"subgroup": label}, label_names={"subgroup": [f"kind-{i}" for i in range(6)]},
        tables={"class_text": (rows(6, 6, 3) @ turn).float()})


# The equations, one number at a time ---------------------------------------------------
def loop_losses(p, q, scale, weight, anchor="trained"):
    """Weighted and plain term; weight(i, j) of the frozen rows."""
    n, weighted, plain = len(p), 0.0, 0.0

    def logit(i, j):  # of trained row i and frozen row j
        return scale * sum(p[i, k] * q[j, k] for k in range(p.shape[1]))

    def log_softmax(i, j, of):  # the anchor's candidates are rows of the other side
        line = [logit(i, k) if of == "trained" else logit(k, i) for k in range(n)]
        return line[j] - sum(x.exp() for x in line).log()

    other = "frozen" if anchor == "trained" else "trained"
    for i in range(n):
        total = sum(weight(i, j) for j in range(n))
        for j in range(n):
            weighted = weighted - weight(i, j) / total * log_softmax(i, j, anchor) / n
        plain = plain - log_softmax(i, i, other) / n
    return weighted, plain


def half_cosine(q):
    return lambda i, j: 0.5 + 0.5 * float(q[i] @ q[j] / (q[i].norm() * q[j].norm()))


@pytest.mark.parametrize("anchor", ["trained", "frozen"])
def test_values_and_gradients_are_the_equations(anchor):
    p, q = drawn()
    scale = torch.tensor(14.0, dtype=torch.float64, requires_grad=True)
    found = cwcl_losses(p, q, scale, similarity_weights(q), anchor=anchor)
    wanted = loop_losses(p, q, scale, half_cosine(q.detach()), anchor)
    for mine, its in zip(found, wanted):
        assert abs(mine - its) < 1e-9 * its
    gradients = [torch.autograd.grad(sum(loss), (p, q, scale)) for loss in (found, wanted)]
    for mine, its in zip(*gradients):
        assert (mine - its).norm() < 1e-9 * its.norm()


def test_the_two_readings_differ():
    p, q = drawn()
    weights = similarity_weights(q)
    one, other = (cwcl_losses(p, q, 14.0, weights, anchor=a) for a in ("trained", "frozen"))
    assert abs(sum(one) - sum(other)) > 0.01
    # Read with the roles of the sides exchanged they are one formula.
    for a, b in zip(other, cwcl_losses(q, p, 14.0, weights)):
        assert torch.isclose(a, b, rtol=1e-12)


# The exact properties of the card ------------------------------------------------------
@pytest.mark.parametrize("anchor", ["trained", "frozen"])
def test_the_limit_is_info_nce(anchor):
    p, q = drawn()
    eye = torch.eye(6, dtype=torch.float64)
    assert torch.isclose(sum(cwcl_losses(p, q, 14.0, eye, anchor=anchor)),
                         2 * info_nce(p, q, 14.0), rtol=1e-12)


def test_constant_weights_want_equal_logits():
    logits, constant = 3 * rows(5, 5), torch.full((5, 5), 0.3, dtype=torch.float64)
    loss = weighted_loss(logits, constant)
    assert torch.isclose(loss, -logits.log_softmax(1).mean(), rtol=1e-12)
    assert loss > math.log(5) + 0.1
    level = weighted_loss(torch.full_like(logits, 2.0), constant)
    assert level.item() == pytest.approx(math.log(5), rel=1e-12)


def test_a_row_of_weights_has_no_size_but_a_column_has():
    logits, w = rows(5, 5), rows(5, 5, 1).abs()
    sizes = torch.tensor([[1.0], [2], [3], [4], [5]], dtype=torch.float64)
    assert torch.isclose(weighted_loss(logits, sizes * w), weighted_loss(logits, w),
                         rtol=1e-12)
    assert abs(weighted_loss(logits, sizes.T * w) - weighted_loss(logits, w)) > 0.01


def test_the_gradient_is_softmax_minus_target():
    logits, w = rows(5, 5).requires_grad_(), rows(5, 5, 1).abs()
    (found,) = torch.autograd.grad(weighted_loss(logits, w), logits)
    wanted = (logits.softmax(1) - w / w.sum(1, keepdim=True)) / 5
    assert (found - wanted).norm() < 1e-12 * wanted.norm()


def test_weights_lie_in_0_1_equal_rows_share_them_and_have_no_gradient():
    _, q = drawn()
    with torch.no_grad():
        q[3] = q[1]
        q[4] = -q[1]
    w = similarity_weights(q)
    assert not w.requires_grad
    assert w.min() >= -1e-12 and torch.allclose(w.diagonal(), torch.ones(6).double())
    assert torch.equal(w[3], w[1]) and abs(w[4, 1]) < 1e-12
    # Longer features are the same weights; so is a loss through weights that ask for one.
    assert torch.allclose(similarity_weights(3 * q), w)
    p, asked = drawn()[0], w.clone().requires_grad_()
    loss = sum(cwcl_losses(p, q, 14.0, asked))
    assert torch.autograd.grad(loss, asked, allow_unused=True) == (None,)


def test_centring_takes_a_cone_away():
    q = unit(rows(40, 12))
    tip = claims.cone(q)
    cosines = q @ q.T
    assert torch.allclose(tip @ tip.T, claims.CONE + (1 - claims.CONE) * cosines)
    assert torch.allclose(similarity_weights(tip, centred=True),
                          similarity_weights(q, centred=True))
    assert not torch.allclose(similarity_weights(tip), similarity_weights(q), atol=0.1)


# The method ----------------------------------------------------------------------------
@pytest.mark.parametrize("frozen, learns", [("text", "image"), ("image", "text")])
def test_the_frozen_side_has_no_head_and_the_loop_agrees(frozen, learns):
    pairs = features(8)
    seed_all(0)
    method = Cwcl(CwclSettings(frozen=frozen), pairs).double()
    assert {name.split(".")[1] for name, _ in method.named_parameters()
            if name.startswith("heads")} == {learns}
    batch = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v
             for k, v in pairs.batch().items()}
    outputs = method.encode(batch)
    q = normalize(batch[f"{frozen}_features"], dim=1)
    assert torch.allclose(outputs[frozen], q)
    wanted = loop_losses(outputs[learns], q, 1 / 0.07, half_cosine(q))
    for found, its in zip(method(batch).values(), wanted):
        assert found.item() == pytest.approx(its.item(), rel=1e-6)  # the scale is float32
    assert method.temperature.log_scale.requires_grad


def test_lit_is_twice_info_nce_also_where_rows_share_an_item():
    pairs = features(8)
    seed_all(0)
    method = Lit(CwclSettings(), pairs)
    batch = pairs.batch()
    for item in (torch.arange(8), torch.tensor([0, 0, 1, 2, 3, 3, 3, 4])):
        z = method.encode(batch)
        wanted = 2 * info_nce(z["image"], z["text"], method.temperature(),
                              item[:, None] == item)
        assert torch.isclose(sum(method(batch | {"item": item}).values()), wanted)


def test_wrong_settings_are_refused():
    pairs = features(8)
    with pytest.raises(ValueError, match="frozen must be one of two towers, got 'sound'"):
        Cwcl(CwclSettings(frozen="sound"), pairs)
    p, q = drawn()
    with pytest.raises(ValueError, match="anchor must be 'trained' or 'frozen', got 'both'"):
        cwcl_losses(p, q, 1.0, torch.eye(6), anchor="both")
    with pytest.raises(ValueError, match=r"weights \(6, 6\), got .*\(5, 5\)"):
        cwcl_losses(p, q, 1.0, torch.eye(5))


@pytest.mark.parametrize("kind, anchor", [(Cwcl, "trained"), (Cwcl, "frozen"),
                                          (Lit, "trained")])
def test_classes_are_learned_from_pairs_alone(kind, anchor):
    splits = features().split(0)
    seed_all(0)
    model = kind(CwclSettings(anchor=anchor), splits.train)
    before = claims.classified(model, splits.test)
    fit(model, splits.train, Budget(steps=150, batch_size=40, lr=1e-2))
    assert claims.classified(model, splits.test) > max(0.7, before + 0.3)


# The claims ----------------------------------------------------------------------------
def test_smoothed_weights_keep_the_mass_of_the_pair():
    pairs = features(9)
    q = unit(pairs["text_features"])
    eye = torch.eye(9, dtype=torch.bool)
    w, even = (kind(CwclSettings(), pairs).weights(q, eye)
               for kind in (Cwcl, claims.Smoothed))
    assert torch.allclose(w.sum(1), even.sum(1))
    assert torch.equal(w.diagonal(), even.diagonal())
    assert even[~eye].view(9, 8).std(1).max() < 1e-6 < w[~eye].view(9, 8).std(1).min()


def test_narrow_weights_are_nearly_equal():
    pairs = features(9)
    q = unit(pairs["text_features"])
    w, narrow = (kind(CwclSettings(), pairs).weights(q, None)
                 for kind in (Cwcl, claims.Narrow))
    assert torch.allclose(narrow, claims.CONE + (1 - claims.CONE) * w, atol=1e-6)


def test_batches_by_class():
    labels = torch.tensor([4, 4, 2, 4, 2, 7, 4])
    assert claims.few_of_each(labels, 9, 1) == [0, 2, 5]
    assert claims.few_of_each(labels, 2, 1) == [0, 2]
    assert claims.few_of_each(labels, 9, 2) == [0, 1, 2, 4, 5]
    assert claims.few_of_each(labels, 4, 3) == [0, 1, 3, 2]


@pytest.mark.parametrize("kind", [claims.LitByClass, claims.CwclByClass])
def test_such_a_loss_is_that_of_the_rows_it_keeps(kind):
    pairs = features(24)
    seed_all(0)
    cut = kind(claims.ByClass(rows=5, each=1), pairs)
    whole = (Lit if issubclass(kind, Lit) else Cwcl)(CwclSettings(), pairs)
    whole.load_state_dict(cut.state_dict())
    kept = pairs.select(torch.arange(5))  # the classes go round
    assert torch.isclose(sum(cut(pairs.batch()).values()),
                         sum(whole(kept.batch()).values()))


def test_figures_of_a_perfect_model_and_of_a_blind_one():
    pairs = features()
    pairs = pairs.with_features(image_features=pairs["text_features"])
    model = Cwcl(CwclSettings(), pairs)
    model.heads["image"] = torch.nn.Identity()
    assert claims.classified(model, pairs) > 0.9
    assert claims.kept_structure(model, pairs) == pytest.approx(1)
    blind = pairs.with_features(image_features=torch.randn(
        120, 9, generator=torch.Generator().manual_seed(0)))
    assert claims.classified(model, blind) < 0.4
    assert abs(claims.kept_structure(model, blind)) < 0.1


def test_span_of_the_frozen_cosines():
    angles = torch.tensor([0.0, 1.0, 2.0])
    pairs = Pairs.make({"x": torch.stack([angles.cos(), angles.sin()], 1) * 5})
    low, high = math.cos(2), math.cos(1)  # sorted: low, high, high
    bottom = low + 0.1 * (high - low)  # the quantile 0.05 of three numbers
    assert claims.span(pairs, "x") == pytest.approx(high - bottom, abs=1e-6)


def test_the_nulls_leave_no_pair():
    pairs = features()
    tagged = torch.arange(120.0)[:, None].expand(120, 9).contiguous()
    splits = pairs.with_features(text_features=tagged).split(0)
    for before, after in zip(splits, claims.nothing_paired(splits, 3)):
        a, b = before["text_features"][:, 0], after["text_features"][:, 0]
        assert (a == b).float().mean() < 0.2 and torch.equal(a.sort()[0], b.sort()[0])
        assert torch.equal(before["image_features"], after["image_features"])


def test_pairs_without_classes_are_refused():
    plain = Pairs.make({"image": ["x"] * 80, "text": ["y"] * 80})
    with pytest.raises(ValueError, match=r"no labels \['subgroup'\]"):
        claims.data("small", plain)


def test_the_names_of_classes_are_words():
    assert claims.class_names(features())[:2] == ["kind 0", "kind 1"]


def test_every_arm_starts_alike_and_differs_as_it_should():
    from alignkit.claims import Runs

    pairs = features()
    found = claims.claims(pairs, "tiny")
    runs = Runs(found)
    methods = {name: runs.build(claim, name, 0, False)[0] for claim in found
               for name in claim.arms}
    start = methods["lit"].state_dict()
    for method in methods.values():
        assert all(torch.equal(start[k], v) for k, v in method.state_dict().items())
    batch = pairs.select(torch.arange(60)).batch()
    losses = {name: round(sum(m(batch).values()).item(), 5) for name, m in methods.items()}
    assert len(set(losses.values())) == len(losses), losses


# The exercises teach what the package computes -------------------------------------------
def test_the_package_passes_the_control():
    arm = claims.Smoothed(CwclSettings(), features())

    def by_package(q):
        weights = arm.weights(q, None)
        return weights / weights.sum(1, keepdim=True)

    exercises.control.grade(by_package)


def test_the_power_asks_for_its_gap():
    """Where the softmax equals the target, cosines differ by what was asked for."""
    c, tau, gap = torch.tensor([0.3], dtype=torch.float64), 0.07, 0.4
    weights = torch.cat([torch.ones(1).double(), (0.5 + 0.5 * c) ** exercises.power.reference(
        c, tau, gap)])
    cosines = (tau * weights.log()).requires_grad_()
    loss = weighted_loss(cosines[None] / tau, weights[None])
    assert torch.isclose(cosines[0] - cosines[1], torch.tensor(gap).double())
    assert torch.autograd.grad(loss, cosines)[0].abs().max() < 1e-12


def test_one_hot_and_cross_entropy_are_lit():
    """What the second exercise's term becomes for one right answer."""
    logits = rows(5, 5)
    assert torch.isclose(weighted_loss(logits, one_hot(torch.arange(5)).double()),
                         cross_entropy(logits, torch.arange(5)), rtol=1e-12)
