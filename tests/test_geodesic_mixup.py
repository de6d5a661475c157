"""Geodesic mixup against slow loops, its exact properties, both traps, and its claims'
measures."""

import math

import pytest
import torch
from torch.nn import functional as F

from alignkit.claims import geodesic_mixup as claims
from alignkit.course import geodesic_mixup as exercises
from alignkit.data import Pairs
from alignkit.evaluation import retrieval, uniformity
from alignkit.methods import geodesic_mixup as method
from alignkit.methods.geodesic_mixup import (
    GeodesicMixup, GeodesicMixupSettings, arc, mixed_negatives_loss,
    mixed_positives_losses,
)  # fmt: skip
from alignkit.parts import DualEncoder, Settings, info_nce, unit
from alignkit.training import Budget, batch_rows, fit, seed_all


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def drawn(n: int = 6, d: int = 4) -> list[torch.Tensor]:
    return [unit(rows(n, d, seed)).requires_grad_() for seed in range(2)]


def features(n: int = 90) -> Pairs:
    hidden = rows(n, 6)
    columns = {}
    for k, name in enumerate(("image", "text"), 1):
        columns[name] = [f"row {i}" for i in range(n)]
        view = hidden @ rows(6, 8, k) + 0.3 * rows(n, 8, k + 5)
        columns[f"{name}_features"] = view.float() + 2
    return Pairs.make(columns)


def settings(**rest) -> GeodesicMixupSettings:
    return GeodesicMixupSettings(**({"width": 5, "temperature": 0.1} | rest))


def eye(n: int) -> torch.Tensor:
    return torch.eye(n, dtype=torch.bool)


# The equations, one number at a time ----------------------------------------------
def dot(x, y):
    return sum(x[k] * y[k] for k in range(len(x)))


def loop_arc(a, b, share):
    """The arc of every row, [n, d]."""
    mixed = []
    for x, y in zip(a, b):
        angle = dot(x, y).acos()
        own, other = ((s * angle).sin() / angle.sin() for s in (share, 1 - share))
        mixed.append(torch.stack([own * x[k] + other * y[k] for k in range(len(x))]))
    return mixed


def cross_entropy(logits, weights):
    """−Σ weight · log softmax of one row, lists of numbers."""
    total = sum(x.exp() for x in logits).log()
    return sum(w * (total - x) for w, x in zip(weights, logits))


def loop_negatives(a, b, share, scale):
    n, mixed, loss = len(a), loop_arc(a, b, share), 0.0
    for anchor, partner in ((a, b), (b, a)):
        for i in range(n):
            logits = [scale * dot(anchor[i], partner[i] if i == j else mixed[j])
                      for j in range(n)]
            loss = loss + cross_entropy(logits, [float(i == j) for j in range(n)]) / n
    return loss


def loop_positives(a, b, shares, scale):
    n = len(a)
    mirror = [n - 1 - i for i in range(n)]

    def mix(x, share):
        return loop_arc(x, [x[j] for j in mirror], share)

    def both_ways(x, y, weight):
        loss = 0.0
        for i in range(n):
            there = [scale * dot(x[i], y[j]) for j in range(n)]
            back = [scale * dot(x[j], y[i]) for j in range(n)]
            loss = loss + cross_entropy(there, [weight(i, j) for j in range(n)])
            loss = loss + cross_entropy(back, [weight(j, i) for j in range(n)])
        return loss / (2 * n)

    def soft(own, other):
        return lambda i, j: own * (i == j) + other * (j == mirror[i])

    s, t, u = shares
    return (both_ways(mix(a, s), b, soft(s, 1 - s)),
            both_ways(a, mix(b, t), soft(t, 1 - t)),
            both_ways(mix(a, u), mix(b, u), soft(1.0, 1.0)))


def same_value_and_gradient(found, wanted, leaves):
    assert abs(found - wanted) < 1e-9 * abs(wanted)
    gradients = [torch.autograd.grad(x, leaves, retain_graph=True)
                 for x in (found, wanted)]
    for mine, its in zip(*gradients):
        assert its.norm() > 0 and (mine - its).norm() < 1e-9 * its.norm()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_mixed_negatives_are_the_equation(share):
    a, b = drawn()
    found = mixed_negatives_loss(a, b, share, 1 / 0.07, eye(6))
    same_value_and_gradient(found, loop_negatives(a, b, share, 1 / 0.07), (a, b))


@pytest.mark.parametrize("term", range(3))
def test_mixed_positives_are_the_equations(term):
    a, b = drawn()
    shares = (0.3, 0.8, 0.6)
    found = mixed_positives_losses(a, b, shares, 10.0, eye(6))[term]
    same_value_and_gradient(found, loop_positives(a, b, shares, 10.0)[term], (a, b))


def test_the_method_is_the_sum_of_the_card(monkeypatch):
    """Shares in the order in which they are drawn; the fading of the second epoch."""
    pairs = features(6)
    weights = {"mix": 0.5, "first_mix": 0.05, "second_mix": 0.07, "joint_mix": 0.1}
    seed_all(0)
    m = GeodesicMixup(settings(**weights, beta=0.2, positive_beta=0.9), pairs).double()
    batch = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v
             for k, v in pairs.batch().items()}
    asked, shares = [], iter([0.3, 0.2, 0.9, 0.6])
    monkeypatch.setattr(method, "drawn",
                        lambda beta: asked.append(beta) or next(shares))
    z = []
    for name in ("image", "text"):
        x = batch[f"{name}_features"] @ m.heads[name].weight.T + m.heads[name].bias
        z.append(x / x.norm(dim=1, keepdim=True))
    losses = m(batch, 1.5 / 9)  # in the second of nine epochs
    scale = m.temperature().item()
    wanted = {"contrastive_loss": info_nce(*z, scale),
              "mixed_negatives_loss": 0.5 / 2 * loop_negatives(*z, 0.3, 1 / 0.07)}
    terms = loop_positives(*z, (0.2, 0.9, 0.6), scale)
    wanted["mixed_positives_loss"] = sum(
        w / 2 * x for w, x in zip((0.05, 0.07, 0.1), terms))
    assert asked == [0.2, 0.9, 0.9, 0.9] and losses.keys() == wanted.keys()
    assert all(abs(losses[k] / wanted[k] - 1) < 1e-6 for k in wanted)  # float32 scale


# The exact properties -------------------------------------------------------------
def test_a_the_arc_is_on_the_sphere_and_ends_in_its_rows():
    a, b = drawn(50, 7)
    for share in (0.0, 0.2, 0.5, 1.0):
        mixed = arc(a, b, share)
        assert torch.allclose(mixed.norm(dim=1), torch.ones(50).double(), atol=1e-12)
        assert torch.allclose(mixed, arc(b, a, 1 - share), atol=1e-13)
        whole = (a * b).sum(1).acos()  # the angle from b is that share of the whole
        assert torch.allclose((mixed * b).sum(1).clamp(-1, 1).acos(), share * whole,
                              atol=1e-7)
    assert torch.allclose(arc(a, b, 1.0), a, atol=1e-14)
    assert torch.allclose(arc(a, b, 0.0), b, atol=1e-14)
    straight = 0.2 * a + 0.8 * b
    assert (arc(a, b, 0.2) - straight).norm() > 0.5  # the sphere is not flat


def test_b_at_the_ends_the_negatives_are_one_modality():
    a, b = drawn()
    right, logits = torch.arange(6), a @ b.T / 0.07
    own = logits.diagonal()
    among = [torch.where(eye(6), own, x @ x.T / 0.07) for x in (a, b)]
    for share, halves in ((0.0, (logits, among[1])), (1.0, (among[0], logits.T))):
        wanted = sum(F.cross_entropy(x, right) for x in halves)
        found = mixed_negatives_loss(a, b, share, 1 / 0.07, eye(6))
        assert torch.isclose(found, wanted, rtol=1e-12)


def test_c_without_weights_it_is_the_dual_encoder():
    pairs = features(20)
    plain = DualEncoder(Settings(width=5, temperature=0.1), pairs)
    mixed = GeodesicMixup(settings(mix=0.0), pairs)
    mixed.load_state_dict(plain.state_dict())
    assert mixed(pairs.batch(), 0.4) == plain(pairs.batch(), 0.4)
    assert set(GeodesicMixup(settings(), pairs)(pairs.batch())) == {
        "contrastive_loss", "mixed_negatives_loss"}


def test_d_one_rotation_of_both_changes_nothing():
    a, b = drawn()
    turn, _ = torch.linalg.qr(rows(4, 4, 9))

    def every(x, y):
        return torch.stack([mixed_negatives_loss(x, y, 0.4, 14.0, eye(6)),
                            *mixed_positives_losses(x, y, (0.4, 0.2, 0.7), 10.0,
                                                    eye(6))])

    assert torch.allclose(every(a, b), every(a @ turn, b @ turn), rtol=1e-12)
    assert not torch.isclose(every(a, b), every(a, b @ turn), rtol=1e-3).any()


def test_a_mixture_is_never_easier_where_its_condition_holds():
    """a_i · m_j ≥ a_i · b_j wherever a_i · a_j ≥ a_i · b_j ≥ 0; elsewhere it may be."""
    a, b = (unit(rows(200, 6, seed) + 0.8 * rows(1, 6, seed + 5)) for seed in (0, 1))
    held, broken = 0, 0
    for share in (0.1, 0.5, 0.9):
        mixed = arc(a, b, share)
        for x, y in ((a, b), (b, a)):
            excess = x @ mixed.T - x @ y.T
            sure = (x @ x.T >= x @ y.T) & (x @ y.T >= 0)
            assert (excess[sure] >= -1e-12).all()
            held += int(sure.sum())
            broken += int((excess[~sure] < 0).sum())
    assert held > 10_000 and broken > 10_000


# The traps ------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32,
                                   torch.float64])
def test_equal_and_opposite_rows_are_finite_with_their_gradients(dtype):
    a = unit(rows(6, 5)).to(dtype)
    for b in (a, -a, a + 1e-4 * rows(6, 5, 1).to(dtype)):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        mixed = arc(x, y, 0.3)
        assert mixed.isfinite().all() and mixed.dtype == torch.promote_types(
            dtype, torch.float32)
        assert all(g.isfinite().all() for g in torch.autograd.grad(mixed.sum(), (x, y)))
    assert torch.allclose(arc(a, a, 0.3), a.to(mixed.dtype),
                          atol=torch.finfo(dtype).eps)


def test_an_odd_batch_has_a_row_that_is_its_own_mirror():
    a, b = drawn(5)
    naive = (a * a.flip(0)).sum(1)
    assert naive[2] > 1 - 1e-12
    rounded = a[2:3].detach() * (1 + 1e-12)  # its cosine with itself is above 1
    assert not loop_arc(rounded, rounded, 0.3)[0].isfinite().any()
    terms = mixed_positives_losses(a, b, (0.3, 0.8, 0.6), 10.0, eye(5))
    gradients = torch.autograd.grad(sum(terms), (a, b))
    assert all(x.isfinite().all() for x in (*terms, *gradients))


# The method -----------------------------------------------------------------------
def test_mixtures_of_one_item_are_no_negatives():
    a, b = drawn()
    same = eye(6)
    same[1, 4] = same[4, 1] = True
    mixed = arc(a, b, 0.3)
    loss = 0.0
    for x, y in ((a, b), (b, a)):
        for i in range(6):
            logits = [14.0 * x[i] @ (y[i] if i == j else mixed[j])
                      for j in range(6) if i == j or not same[i, j]]
            place = sum(1 for j in range(i) if not same[i, j])
            loss = loss + F.cross_entropy(torch.stack(logits), torch.tensor(place)) / 6
    assert torch.isclose(mixed_negatives_loss(a, b, 0.3, 14.0, same), loss, rtol=1e-12)


def test_right_answers_of_one_item_share_the_weight_of_mixed_positives():
    a, b = drawn()
    same = eye(6)
    same[0, 1] = same[1, 0] = True
    own = same / same.sum(1, keepdim=True).double()
    weights = 0.3 * own + 0.7 * own.flip(0)
    logits = 10 * arc(a, a.flip(0), 0.3) @ b.T
    wanted = -(weights * logits.log_softmax(1)).sum() / 12 - (
        weights * logits.log_softmax(0)).sum() / 12
    found = mixed_positives_losses(a, b, (0.3, 0.5, 0.5), 10.0, same)[0]
    assert torch.isclose(found, wanted, rtol=1e-12)


def test_epochs_are_those_of_the_run(monkeypatch):
    """progress · epochs is the epoch in which `fit` takes the step, for any numbers."""
    monkeypatch.setattr(method, "drawn", lambda beta: 0.5)
    for n, size, steps in ((90, 32, 47), (90, 45, 30), (70, 7, 200)):
        pairs = features(n)
        each = n // size
        m = GeodesicMixup(settings(epochs=steps / each), pairs)
        batch = pairs.batch()
        first = m(batch, 0.0)["mixed_negatives_loss"]
        for step in range(steps):
            loss = m(batch, step / steps)["mixed_negatives_loss"]
            assert round((first / loss).item(), 3) == step // each + 1
        seen = torch.cat([batch_rows(n, size, 0, 0, step) for step in range(each)])
        assert len(seen.unique()) == each * size  # that many batches are an epoch


def test_one_epoch_is_no_fading(monkeypatch):
    monkeypatch.setattr(method, "drawn", lambda beta: 0.5)
    pairs = features(20)
    m = GeodesicMixup(settings(epochs=1), pairs)
    assert m(pairs.batch(), 0.0) == m(pairs.batch(), 0.95)


def test_shares_follow_the_seed_and_the_beta():
    seed_all(3)
    one = [method.drawn(0.5) for _ in range(2000)]
    seed_all(3)
    assert one == [method.drawn(0.5) for _ in range(2000)]
    seed_all(3)
    wide = [method.drawn(20.0) for _ in range(200)]
    assert all(0 <= s <= 1 for s in one) and 0.46 < sum(one) / 2000 < 0.54
    outer = sum(s < 0.1 or s > 0.9 for s in one) / 2000  # 2 · arcsin law: 0.41
    assert 0.37 < outer < 0.45 and all(0.1 < s < 0.9 for s in wide)


@pytest.mark.parametrize("wrong", [{"mix": -0.1}, {"joint_mix": -1.0}, {"beta": 0.0},
                                   {"mix_temperature": 0.0}, {"epochs": 0}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="mix_temperature, the betas and epochs above"):
        settings(**wrong)


@pytest.mark.parametrize("weights", [{}, {"first_mix": 0.05, "second_mix": 0.05,
                                          "joint_mix": 0.1}])
def test_it_learns(weights):
    pairs = features(120)
    seed_all(0)
    m = GeodesicMixup(settings(mix=0.5, **weights), pairs)
    assert m.traits == (frozenset({"ordered"}) if weights else frozenset())

    def found():
        with torch.no_grad():
            z = m.encode(pairs.batch())
        return retrieval(z["image"], z["text"], pairs.item, pairs.item)["hit@1"]

    before = found()
    fit(m, pairs, Budget(steps=150, batch_size=60, lr=3e-2))
    assert found() > before + 0.3


# The claims -----------------------------------------------------------------------
@pytest.fixture
def trained():
    pairs = features()
    claim = next(c for c in claims.claims(pairs, "tiny") if c.name == "uniformity")
    splits = claim.arms["plain"].data(0)
    return claims.Trained(claim.arms["plain"].build(splits).eval(), splits, None)


def test_measures_are_their_formulas(trained):
    test = trained.splits.test
    item = test.item.clone()
    item[3] = item[0]
    trained.splits.test.item[3] = item[0]
    with torch.no_grad():
        image, text = trained.method.encode(test.batch()).values()
    n, scale = len(test), trained.method.temperature().item()
    total, hits, sure = 0.0, [], []
    names = [j for j in range(n) if j != 3]  # the first of each item
    for i in range(n):
        far = [float((text[i] - image[j]).square().sum()) for j in range(n)]
        total += far[i] - min(far[j] for j in range(n) if item[j] != item[i])
        p = torch.stack([scale * image[i] @ text[j] for j in names]).softmax(0)
        hits.append(float(item[names[int(p.argmax())]] == item[i]))
        sure.append(float(p.max()))
    assert claims.relative_alignment(trained) == pytest.approx(total / n, abs=1e-5)
    bins = [math.ceil(p * 15) for p in sure]
    error = sum(abs(sum(h - p for h, p, b in zip(hits, sure, bins) if b == k))
                for k in set(bins)) / n
    assert claims.calibration(trained) == pytest.approx(error, abs=1e-5)
    wrong = [(i, j) for i in range(n) for j in range(n) if item[i] != item[j]]
    mixed = arc(image, text, 0.5)
    figures = claims.hardness({"plain": trained})
    for name, pairs in (("plain", ((image, text),)), ("mixed", ((image, mixed),
                                                              (text, mixed)))):
        values = [float(x[i] @ y[j]) for x, y in pairs for i, j in wrong]
        assert figures[name] == pytest.approx(sum(values) / len(values), abs=1e-5)
    own = [float(image[i] @ image[j] - image[i] @ text[j]) for i, j in wrong]
    assert claims.excess_of_own(trained) == pytest.approx(sum(own) / len(own), abs=1e-5)


def test_the_control_centres_every_split_by_the_training_mean():
    splits = features().split(0)
    out = claims.centred(splits)
    for column in claims.FEATURES:
        assert out.train[column].mean(0).abs().max() < 1e-5
        shift = splits.test[column] - out.test[column]
        mean = splits.train[column].mean(0)
        assert torch.allclose(shift, mean.expand_as(shift), atol=1e-5)
        assert splits.train[column].mean() > 1.5


def test_lower_is_better_but_for_retrieval():
    for c in claims.claims(features(), "tiny"):
        better = 0.2 if c.name in ("hardness", "retrieval", "retrieval-tuned") else -0.2
        figures = {name: 1.0 + better * (name == c.method) for name in c.arms}
        assert c.difference(figures) == pytest.approx(0.2), c.name


def test_the_fading_is_told_the_epochs_of_the_run():
    pairs = features()
    claim = next(c for c in claims.claims(pairs, "tiny") if c.name == "uniformity")
    splits = claim.arms["m2"].data(0)
    s = claim.arms["m2"].build(splits).settings
    assert s.epochs == claim.budget.steps / (len(splits.train) // 32) and s.mix == 0.5
    assert claim.arms["m3"].build(splits).settings.joint_mix == 0.1


# The exercises teach what the package computes ------------------------------------
@pytest.mark.parametrize("exercise, function", [
    (exercises.slerp, arc),
    (exercises.spread, lambda pictures, texts: torch.tensor(
        uniformity(torch.cat([pictures, texts])))),
    (exercises.work_of_mixing, lambda plain, unmixed, mixed: (
        (mixed - unmixed).sign().mean(0).trunc()))],
    ids=lambda x: getattr(x, "name", ""))
def test_the_package_passes_the_exercise(exercise, function):
    assert exercise.grade(function).startswith(exercise.name)
