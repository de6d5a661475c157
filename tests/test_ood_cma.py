"""CMA's loss against a plain loop, its identities, both scores, and its claims' splits."""

import math

import pytest
import torch

from alignkit.claims import ood_cma as claims
from alignkit.course import ood_cma as exercises
from alignkit.data import Pairs
from alignkit.evaluation import auroc, fpr_at_95, maximum_concept_matching
from alignkit.methods.ood_cma import (
    Cma, CmaSettings, cma_loss, mined, negative_label_odds, negative_label_score,
)  # fmt: skip
from alignkit.parts import info_nce, unit
from alignkit.training import Budget, fit, seed_all

WEIGHTS = (0.0, 0.001, 0.3, 1.0, 1.7)


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def leaves(n: int = 6, d: int = 4) -> list[torch.Tensor]:
    """Paired unit rows and a scale."""
    scale = torch.tensor(5.0, dtype=torch.float64)
    return [x.requires_grad_() for x in (unit(rows(n, d)), unit(rows(n, d, 1)), scale)]


def loop(a, b, scale, weight):
    """The paper's four terms, one number at a time."""
    n, total = len(a), 0.0
    s = [[scale * sum(a[i][k] * b[j][k] for k in range(a.shape[1])) for j in range(n)]
         for i in range(n)]
    for logits in (s, [[s[j][i] for j in range(n)] for i in range(n)]):
        for i in range(n):
            every = sum(x.exp() for x in logits[i])
            contrast = -(logits[i][i].exp() / every).log() / n
            joint = -every.log() / n
            total = total + (contrast + weight * joint) / 2
    return total


@pytest.mark.parametrize("weight", WEIGHTS)
def test_value_and_gradient_are_the_equations(weight):
    inputs = leaves()
    found, wanted = cma_loss(*inputs, weight), loop(*inputs, weight)
    assert abs(found - wanted) < 1e-9 * abs(wanted)
    for mine, its in zip(*(torch.autograd.grad(x, inputs) for x in (found, wanted))):
        assert (mine - its).norm() < 1e-9 * its.norm()


# The exact properties -----------------------------------------------------------------
@pytest.mark.parametrize("weight", WEIGHTS)
def test_it_is_a_mix_of_contrast_and_pure_pull(weight):
    inputs = a, b, scale = leaves()
    pull = -scale * (a * b).sum(1).mean()
    mix = (1 - weight) * info_nce(a, b, scale) + weight * pull
    found = cma_loss(*inputs, weight)
    assert torch.isclose(found, mix, rtol=1e-13)
    for mine, its in zip(*(torch.autograd.grad(x, inputs, retain_graph=True)
                           for x in (found, mix))):
        assert (mine - its).norm() < 1e-12 * its.norm()
    if weight == 0:
        assert torch.isclose(found, info_nce(a, b, scale), rtol=1e-14)
    if weight == 1:
        assert torch.isclose(found, pull, rtol=1e-13)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_gradient_of_a_logit(weight):
    """Rows of the identity give the logits themselves: a · bᵀ = s for b = 1."""
    s = rows(5, 5, 3).requires_grad_()
    eye = torch.eye(5, dtype=torch.float64)
    (found,) = torch.autograd.grad(cma_loss(s, eye, 1.0, weight), s)
    p = s.softmax(1) + s.softmax(0)
    wanted = (1 - weight) * p / 10 - eye / 5
    assert (found - wanted).norm() < 1e-12 * wanted.norm()


def test_a_pair_that_is_told_apart_is_still_pulled():
    s = (60 * torch.eye(4, dtype=torch.float64)).requires_grad_()
    eye = torch.eye(4, dtype=torch.float64)
    for weight in (0.0, 0.1):
        (found,) = torch.autograd.grad(cma_loss(s, eye, 1.0, weight), s)
        assert torch.allclose(found.diagonal(), torch.tensor(-weight / 4).double(),
                              atol=1e-12)


def test_equal_prompts_stay_columns_of_their_own():
    a, b, scale = leaves()
    with torch.no_grad():
        b[3] = b[0]
    keep = [0, 1, 2, 4, 5]
    assert torch.isclose(cma_loss(a, b, scale, 0.1), loop(a, b, scale, 0.1))
    assert abs(cma_loss(a, b, scale, 0.1) - cma_loss(a[keep], b[keep], scale, 0.1)) > 0.01


def test_refusals():
    a, b, scale = leaves()
    with pytest.raises(ValueError, match="paired rows"):
        cma_loss(a, b[:3], scale, 0.1)
    with pytest.raises(ValueError, match="weight must be 0 or more"):
        CmaSettings(weight=-0.1)
    for n in (0, 5):
        with pytest.raises(ValueError, match="between 1 and 4"):
            mined(rows(4, 3), rows(2, 3), n)


# The scores ---------------------------------------------------------------------------
def test_the_score_is_the_share_of_the_known_classes():
    z, known, negative = (unit(rows(n, 4, n)) for n in (5, 3, 7))
    found = negative_label_score(z, known, negative, 0.1)
    for i in range(5):
        inside = sum(math.exp(float(z[i] @ c) / 0.1) for c in known)
        outside = sum(math.exp(float(z[i] @ c) / 0.1) for c in negative)
        assert float(found[i]) == pytest.approx(inside / (inside + outside), rel=1e-12)
    odds = negative_label_odds(z, known, negative, 0.1)
    assert torch.equal(odds.argsort(), found.argsort())
    assert found.dtype == torch.float64


def test_without_negatives_every_score_is_one():
    z, known = unit(rows(50, 4)), unit(rows(3, 4, 1))
    assert (negative_label_score(z, known, rows(0, 4)) == 1).all()


def test_the_order_of_classes_does_not_matter():
    z, known, negative = (unit(rows(n, 4, n)) for n in (9, 6, 7))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for score in (lambda c: negative_label_score(z, c, negative),
                  lambda c: negative_label_score(
                      z, known, negative[[6, *order.tolist()]]),
                  lambda c: maximum_concept_matching(z, c)):
        assert torch.allclose(score(known), score(known[order]), rtol=1e-12)
    assert torch.allclose(negative_label_score(z, known, negative),
                          negative_label_score(z, known[order], negative), rtol=1e-12)


def test_log_odds_have_no_ties_where_the_score_is_one():
    axis = torch.tensor([[1.0, 0.0], [0.999, math.sqrt(1 - 0.999**2)]])
    known, negative = axis[:1], -axis[:1]
    assert (negative_label_score(axis, known, negative) == 1).all()
    odds = negative_label_odds(axis, known, negative)
    assert odds[0] > odds[1]


def test_mining_keeps_the_words_that_are_far_from_nearly_all_classes():
    classes = torch.eye(4)[:3]
    words = torch.tensor([[1.0, 0, 0, 0], [0.1, 0.1, 0.1, 2], [0, 0, -1, 0.2],
                          [0, 0.6, 0, 0.8]])
    assert mined(words, classes, 2).tolist() == [2, 1]
    assert mined(7 * words, 3 * classes, 4).tolist() == [2, 1, 3, 0]
    # A low quantile forgets the nearest class: the first word would be as far as any.
    assert mined(words, classes, 2, quantile=0.0).tolist() == [2, 0]


# The method ---------------------------------------------------------------------------
def corpus(n: int = 160) -> Pairs:
    """Four groups of two classes; a row's picture is its class and noise."""
    subgroup = torch.arange(n) % 8
    prompts, words = rows(8, 6, 1).float(), rows(30, 6, 2).float()
    image = prompts[subgroup] @ rows(6, 9, 3).float() + 0.3 * rows(n, 9, 4).float()
    return Pairs.make(
        {"image_features": image, "text_features": prompts[subgroup]},
        labels={"group": subgroup // 2, "subgroup": subgroup},
        label_names={"group": list("abcd"), "subgroup": list("stuvwxyz")},
        tables={"prompt_features": prompts, "word_features": words})


def test_the_method_is_heads_without_bias_unit_rows_and_the_loop():
    pairs = corpus(7)
    seed_all(0)
    method = Cma(CmaSettings(width=5, weight=0.2), pairs).double()
    batch = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v
             for k, v in pairs.batch().items()}
    z = []
    for name in ("image", "text"):
        assert set(dict(method.heads[name].named_parameters())) == {"weight"}
        x = batch[f"{name}_features"] @ method.heads[name].weight.T
        z.append(x / x.norm(dim=1, keepdim=True))
    (loss,) = method(batch).values()
    wanted = loop(*z, torch.tensor(1 / 0.07, dtype=torch.float64), 0.2)
    assert abs(loss - wanted) < 1e-6 * abs(wanted)
    (slope,) = torch.autograd.grad(loss, method.temperature.log_scale)
    assert slope.abs() > 0


def trained(weight: float):
    splits = claims.known_and_unknown(corpus(), 0)
    seed_all(0)
    method = Cma(CmaSettings(width=5, weight=weight), splits.train)
    fit(method, splits.train, Budget(steps=150, batch_size=64, lr=3e-2))
    return claims.Trained(method, splits, None)


def test_it_classifies_finds_strangers_and_pulls_classes_together_too():
    runs = {weight: trained(weight) for weight in (0.0, 0.3, 1.0)}
    found = {weight: claims.measured(run, 20) for weight, run in runs.items()}
    assert found[0.0]["accuracy"] > 0.8 and found[0.3]["accuracy"] > 0.8
    far = {weight: 1 - each["cosine"] for weight, each in found.items()}
    assert far[0.3] < 0.5 * far[0.0] and far[1.0] < 0.01
    assert found[0.3]["neglabel"] > 0.7
    crowd = {}
    for weight, run in runs.items():
        class_z = claims.known_classes(run.method, run.splits)[1]
        crowd[weight] = float((class_z @ class_z.T).abs().mean())
    assert crowd[0.0] + 0.2 < crowd[0.3] < crowd[1.0]  # ever less repels


def test_above_one_the_loss_prefers_that_all_rows_are_equal():
    apart = torch.eye(5, dtype=torch.float64)
    same = apart[:1].expand(5, 5)
    for weight, better in ((0.5, apart), (1.5, same)):
        losses = [cma_loss(z, z, 5.0, weight) for z in (apart, same)]
        assert min(losses) == cma_loss(better, better, 5.0, weight)
        assert abs(losses[0] - losses[1]) > 0.1
    assert torch.isclose(*(cma_loss(z, z, 5.0, 1.0) for z in (apart, same)))


# The claims ---------------------------------------------------------------------------
def test_unknown_groups_are_never_trained_on_and_all_of_them_tested():
    pairs = corpus()
    seen = set()
    for seed in range(6):
        train, val, test = splits = claims.known_and_unknown(pairs, seed)
        known = set(train.labels["group"].tolist())
        assert len(known) == 2 and set(val.labels["group"].tolist()) <= known
        friend, strange = claims.friends_and_strangers(splits)
        assert not (friend & strange).any() and strange.sum() == 80
        assert (torch.isin(test.labels["group"], torch.tensor(sorted(known)))
                == ~strange).all()
        ids = [set(part.ids) for part in splits]
        assert not ids[0] & ids[1] and not ids[0] & ids[2] and not ids[1] & ids[2]
        seen.add(tuple(sorted(known)))
    assert len(seen) > 1  # the seed draws the groups


def test_negatives_are_mined_by_known_prompts_alone():
    run = trained(0.0)
    before = claims.negatives_z(run.method, run.splits, 5)
    known = run.splits.train.labels["subgroup"].unique()
    tables = run.splits.train.tables
    other = tables["prompt_features"].clone()
    kept = torch.ones(8, dtype=torch.bool).index_fill(0, known, False)
    other[kept] = 9.0
    train = claims.replace(run.splits.train, tables=tables | {"prompt_features": other})
    changed = run.splits._replace(train=train)
    assert torch.equal(claims.negatives_z(run.method, changed, 5), before)


def test_measured_is_of_friends_and_strangers():
    run = trained(0.0)
    found = claims.measured(run, 20)
    friend, strange = claims.friends_and_strangers(run.splits)
    with torch.no_grad():
        z = run.method.encode(run.splits.test.batch())["image"]
    known, class_z = claims.known_classes(run.method, run.splits)
    assert len(class_z) == len(known) == 4
    mcm = maximum_concept_matching(z, class_z)
    assert found["mcm"] == pytest.approx(auroc(mcm[friend], mcm[strange]), abs=0.01)
    with torch.no_grad():
        own = run.method.encode(run.splits.test.batch())["text"]
    wanted = (z * own).sum(1)[friend].mean()
    assert found["cosine"] == pytest.approx(float(wanted), abs=1e-5)
    right = (z @ class_z.T).argmax(1)[friend]
    share = (known[right] == run.splits.test.labels["subgroup"][friend]).double().mean()
    assert found["accuracy"] == pytest.approx(float(share))


def test_the_control_keeps_the_test_and_nothing_of_the_training_rows():
    splits = claims.known_and_unknown(corpus(), 0)
    noise = claims.noise_training(splits, 0)
    assert torch.equal(noise.test["image_features"], splits.test["image_features"])
    for name in ("image_features", "text_features"):
        a, b = noise.train[name].flatten(), splits.train[name].flatten()
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.2
        assert 0.8 < a.std() / b.std() < 1.2


def test_own_pairs_need_labels():
    pairs = Pairs.make({"image": [str(i) for i in range(70)],
                        "text": [str(i) for i in range(70)]})
    with pytest.raises(ValueError, match=r"no labels \['group', 'subgroup'\]"):
        claims.data("tiny", pairs)


# The exercises teach what the package computes ----------------------------------------
@pytest.mark.parametrize("exercise, function", [
    (exercises.mended, lambda logits, weight: cma_loss(
        logits, torch.eye(len(logits)), 1.0, weight)),
    (exercises.alike, lambda low, high, margin: torch.stack([
        (-margin < a and b < margin) - (a > margin or b < -margin) + torch.zeros(())
        for a, b in zip(low.tolist(), high.tolist())]))],
    ids=lambda x: getattr(x, "name", ""))
def test_the_package_passes_the_exercise(exercise, function):
    assert exercise.grade(function).startswith(exercise.name)


def test_the_exercise_on_strangers_is_fpr_at_95_for_a_share_of_95():
    known, strange = torch.arange(20.0), torch.tensor([-1.0, 1.0, 0.0, 5.0])
    assert exercises.passing.reference(known, strange, 0.95) == fpr_at_95(known, strange)
