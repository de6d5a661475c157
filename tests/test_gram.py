"""GRAM's loss against slow loops in both readings of its gradient, its exact
properties, and its claims with three modalities."""

import math
from itertools import combinations, permutations

import pytest
import torch

from alignkit.claims import gram as claims
from alignkit.course import gram as exercises
from alignkit.data import Lazy, Pairs
from alignkit.methods.gram import (
    AllPairs, Anchored, Gram, GramSettings, smoothed_loss, volume_loss,
)  # fmt: skip
from alignkit.parts import gramian_volume, gramian_volumes, unit
from alignkit.training import Budget, fit, seed_all

TOWERS = {"text": "text_features", "image": "image_features", "speech": "speech_features"}


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def drawn(n: int = 5, d: int = 4, k: int = 3) -> list[torch.Tensor]:
    return [unit(rows(n, d, seed)).requires_grad_() for seed in range(k)]


def features(n: int = 90) -> Pairs:
    """Rows with three views of one hidden state, each with noise of its own."""
    hidden = rows(n, 6)
    columns = {}
    for k, name in enumerate(TOWERS, 1):
        columns[name] = [f"row {i}" for i in range(n)]
        view = hidden @ rows(6, 8, k) + 0.3 * rows(n, 8, k + 5)
        columns[f"{name}_features"] = view.float()
    return Pairs.make(columns)


def settings(towers=TOWERS, **rest) -> GramSettings:
    return GramSettings(towers=towers, **({"width": 5} | rest))


# The equations, one number at a time ---------------------------------------------------
def dot(x, y):
    return sum(x[i] * y[i] for i in range(len(x)))


def loop_volume(*vectors):
    """√det of the products of the vectors with each other, by Leibniz's sum."""
    k, squared = len(vectors), 0.0
    for order in permutations(range(k)):
        swaps = sum(order[i] > order[j] for i, j in combinations(range(k), 2))
        squared = squared + (-1) ** swaps * math.prod(
            dot(vectors[i], vectors[order[i]]) for i in range(k))
    return squared.sqrt()


def loop_loss(anchor, others, scale, smoothing, detached=False):
    n, total = len(anchor), 0.0
    for still in ("others", "anchor"):  # rows of the logits, then columns
        t, data = anchor, others
        if detached:
            t = t.detach() if still == "anchor" else t
            data = data if still == "anchor" else [x.detach() for x in data]
        logits = [[-scale * loop_volume(t[i], *(x[j] for x in data)) for j in range(n)]
                  for i in range(n)]
        for i in range(n):
            line = logits[i] if still == "others" else [logits[j][i] for j in range(n)]
            log_all = sum(x.exp() for x in line).log()
            for j in range(n):
                weight = smoothing / n + (1 - smoothing) * (i == j)
                total = total - weight * (line[j] - log_all) / (2 * n)
    return total


def package_loss(anchor, others, scale, smoothing, detached=False):
    eye = torch.eye(len(anchor), dtype=torch.bool)
    return volume_loss(anchor, others, scale, eye, smoothing, detached)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("detached", [False, True])
def test_value_and_gradient_are_the_equations(k, detached):
    anchor, *others = drawn(k=k)
    scale = torch.tensor(14.0, dtype=torch.float64, requires_grad=True)
    found, wanted = (loss(anchor, others, scale, 0.1, detached)
                     for loss in (package_loss, loop_loss))
    assert abs(found - wanted) < 1e-9 * wanted
    gradients = [torch.autograd.grad(loss, (anchor, *others, scale))
                 for loss in (found, wanted)]
    for mine, its in zip(*gradients):
        assert (mine - its).norm() < 1e-9 * its.norm()


def test_without_gathered_gradients_each_side_learns_from_its_own_half():
    """The official reading: rows train the anchor, columns the others; the value is the
    same, the gradient is not."""
    anchor, *others = drawn()
    eye = torch.eye(5, dtype=torch.bool)
    zero = torch.zeros(5, 5, dtype=torch.float64)
    both, apart = (package_loss(anchor, others, 14.0, 0.1, detached)
                   for detached in (False, True))
    assert torch.isclose(both, apart, rtol=1e-12)
    logits = -14.0 * gramian_volumes(anchor, others)
    by_rows = smoothed_loss(logits, zero, eye, 0.1)
    by_columns = smoothed_loss(zero, logits, eye, 0.1)
    wanted = [torch.autograd.grad(by_rows, anchor, retain_graph=True)[0],
              *torch.autograd.grad(by_columns, others, retain_graph=True)]
    found = torch.autograd.grad(apart, (anchor, *others), retain_graph=True)
    whole = torch.autograd.grad(both, (anchor, *others))
    for mine, its, other in zip(found, wanted, whole):
        assert (mine - its).norm() < 1e-9 * its.norm()
        assert (mine - other).norm() > 0.05 * other.norm()


def test_baselines_are_info_nce_of_their_pairs():
    z, scale = drawn(), 14.0
    right = torch.arange(5)

    def clip(a, b):
        logits = scale * a @ b.T
        return sum(torch.nn.functional.cross_entropy(x, right, label_smoothing=0.1)
                   for x in (logits, logits.T)) / 2

    t, v, a = z
    pairs = features(8)
    for kind, wanted in ((Anchored, (clip(t, v) + clip(t, a)) / 2),
                         (AllPairs, (clip(t, v) + clip(t, a) + clip(v, a)) / 3)):
        method = kind(settings(), pairs)
        found = method.contrast(z, torch.eye(5, dtype=torch.bool), scale)
        assert torch.isclose(found, wanted, rtol=1e-12)


def test_rows_of_one_item_share_the_weight():
    logits, other = rows(3, 3), rows(3, 3, 1)
    item = torch.tensor([0, 0, 1])
    positives = item[:, None] == item
    p, q = logits.log_softmax(1), other.T.log_softmax(1)
    wanted = -sum((x[0, 0] + x[0, 1]) / 2 + (x[1, 0] + x[1, 1]) / 2 + x[2, 2]
                  for x in (p, q)) / 6
    assert torch.isclose(smoothed_loss(logits, other, positives), wanted)


def test_the_method_is_heads_without_bias_unit_rows_and_the_loop():
    pairs = features(6)
    seed_all(0)
    method = Gram(settings(), pairs).double()
    batch = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v
             for k, v in pairs.batch().items()}
    z = []
    for name, column in TOWERS.items():
        assert set(dict(method.heads[name].named_parameters())) == {"weight"}
        x = batch[column] @ method.heads[name].weight.T
        z.append(x / x.norm(dim=1, keepdim=True))
    wanted = loop_loss(z[0], z[1:], torch.tensor(1 / 0.07, dtype=torch.float64), 0.1)
    (loss,) = method(batch).values()
    assert abs(loss - wanted) < 1e-6 * wanted  # 1 / 0.07 is held in float32
    (slope,) = torch.autograd.grad(loss, method.temperature.log_scale)
    assert slope.abs() > 0  # the temperature is learned


# The paper's exact properties -----------------------------------------------------------
def test_signs_rotations_and_order_do_not_matter():
    z = drawn(20, 6)
    wanted = gramian_volume(z)
    turn, _ = torch.linalg.qr(rows(6, 6, 9))
    for other in ([-z[0], z[1], z[2]], [z[0], z[1], -z[2]], [x @ turn for x in z],
                  [z[2], z[0], z[1]], [z[1], z[0], z[2]]):
        assert torch.allclose(gramian_volume(other), wanted, rtol=0, atol=1e-13)
    assert (wanted > 0).all() and (wanted < 1).all()
    assert (gramian_volume([z[0], z[1] @ turn, z[2]]) - wanted).abs().max() > 0.05


def test_the_formulas_for_two_and_three():
    t, v, a = drawn(7, 5)
    tv, ta, va = (t * v).sum(1), (t * a).sum(1), (v * a).sum(1)
    assert torch.allclose(gramian_volume([t, v]), (1 - tv**2).sqrt(), rtol=1e-12)
    wanted = (1 + 2 * tv * ta * va - tv**2 - ta**2 - va**2).sqrt()
    assert torch.allclose(gramian_volume([t, v, a]), wanted, rtol=1e-12)


def test_it_is_a_base_times_a_distance():
    t, v, a = (x.detach() for x in drawn(20, 6))
    for i in range(20):
        plane, _ = torch.linalg.qr(torch.stack([v[i], a[i]], 1))
        distance = float((t[i] - plane @ (plane.T @ t[i])).norm())
        base = math.sqrt(1 - float(v[i] @ a[i]) ** 2)
        assert float(gramian_volume([t, v, a])[i]) == pytest.approx(base * distance, rel=1e-9)


def test_two_equal_vectors_are_near_every_text_and_nothing_is_nan():
    """Hubness: v = a has volume 0 with every text; and the gradient there stays finite."""
    t, v, a = drawn(8, 6)
    with torch.no_grad():
        a[3] = v[3]
        a[5] = -v[5]
    volumes = gramian_volumes(t, [v, a])
    assert volumes[:, [3, 5]].abs().max() < 1e-7 and volumes[:, [0, 1]].min() > 0.1
    for detached in (False, True):
        loss = package_loss(t, [v, a], 14.0, 0.1, detached)
        assert all(x.isfinite().all() for x in torch.autograd.grad(loss, (t, v, a)))


def test_a_vector_in_the_plane_of_two_is_at_volume_zero():
    """So a small volume does not make the other two meet."""
    v, a = torch.eye(4, dtype=torch.float64)[:2]
    t = unit(v + 2 * a)
    assert gramian_volume([t[None], v[None], a[None]]) < 1e-7 and v @ a == 0
    assert gramian_volume([v[None], a[None]]) == 1


def test_random_vectors_are_all_nearly_orthogonal():
    z = [unit(rows(400, 512, seed)) for seed in range(3)]
    assert gramian_volume(z).mean() == pytest.approx(0.997, abs=0.001)


# The method ----------------------------------------------------------------------------
def test_a_text_ranks_rows_and_a_row_ranks_texts():
    pairs = features(7)
    seed_all(0)
    for kind in (Gram, Anchored):
        method = kind(settings(), pairs)
        with torch.no_grad():
            t, v, a = method.encode(pairs.batch()).values()
            scores = method.score(t, (v, a))
            one_by_one = torch.tensor([[
                -float(gramian_volume([t[i:i + 1], v[j:j + 1], a[j:j + 1]]))
                if kind is Gram else float(t[i] @ v[j] + t[i] @ a[j])
                for j in range(7)] for i in range(7)])
            assert torch.allclose(scores, one_by_one, atol=1e-5)
            assert torch.equal(method.score((v, a), t), scores.T)
            cosines = v @ a.T
            wanted = -(1 - cosines**2).sqrt() if kind is Gram else cosines
            assert torch.allclose(method.score(v, a), wanted, atol=1e-5)


@pytest.mark.parametrize("kind, detached", [(Gram, False), (Gram, True), (Anchored, False),
                                            (AllPairs, False)])
def test_a_text_learns_to_find_the_other_two(kind, detached):
    pairs = features(120)
    seed_all(0)
    model = kind(settings(detached=detached), pairs)
    before = claims.together(model, pairs)
    fit(model, pairs, Budget(steps=150, batch_size=60, lr=3e-2))
    assert claims.together(model, pairs) > before + 0.15


def test_a_missing_modality_is_refused_with_the_way_out():
    pairs = features(20)
    here = torch.arange(20) != 4
    lame = pairs.with_present("speech", here)
    method = Gram(settings(), lame)
    with pytest.raises(ValueError, match="some rows have no speech") as error:
        method(lame.batch())
    assert "pairs.select(pairs.present['speech_features'])" in str(error.value)
    assert method(lame.select(lame.present["speech_features"]).batch())
    two = {name: TOWERS[name] for name in ("text", "image")}
    assert Gram(settings(two), lame)(lame.batch())


# The claims ----------------------------------------------------------------------------
def test_further_modalities_are_sounds_and_tensors_of_their_own():
    pairs = features(6).with_features(
        depth=torch.zeros(6, 4), numbers=torch.zeros(6, 4).long(), image_layer3=rows(6, 2),
        hum=Lazy(range(6), lambda i: (torch.zeros(9), 8000), "sound"))
    pairs = Pairs.make({k: v for k, v in pairs.columns.items() if "speech" not in k})
    assert claims.further(pairs) == ["depth", "hum"]
    assert claims.towers(pairs) == {
        "text": "text_features", "image": "image_features", "depth": "depth",
        "hum": "hum_features"}
    assert list(claims.towers(features().only("text", "image"))) == ["text", "image"]


def test_two_modalities_have_one_claim_and_three_have_four():
    pairs = features()
    pairs = pairs.with_columns(speech=pairs["speech_features"]).only(
        "text", "image", "text_features", "image_features", "speech")
    names = [c.name for c in claims.claims(pairs, "tiny")]
    assert names == ["non-anchor", "non-anchor-all-pairs", "together", "together-all-pairs"]
    two = claims.claims(pairs.only("text", "image", "text_features", "image_features"))
    assert [c.name for c in two] == ["two-modalities"]
    assert list(two[0].arms["gram"].build(two[0].arms["gram"].data(0)).heads) == [
        "text", "image"]


def test_rows_that_lack_a_modality_are_left_out(monkeypatch):
    monkeypatch.setattr(claims, "add_features", lambda pairs, *rest: pairs)
    pairs = features(90).with_columns(speech=rows(90, 3).float())
    lame = pairs.with_present("speech", torch.arange(90) >= 20)
    assert claims.data("tiny", lame).ids == [str(i) for i in range(20, 90)]
    with pytest.raises(ValueError, match="at least 60"):
        claims.data("tiny", pairs.with_present("speech", torch.arange(90) >= 40))


def test_the_null_leaves_no_two_modalities_of_a_row_together():
    pairs = features(60).with_columns(speech=rows(60, 3).float())
    tagged = torch.arange(60.0)[:, None].expand(60, 3)
    pairs = pairs.with_features(**{c: tagged for c in
                                   ("text_features", "image_features", "speech")})
    splits = claims.nothing_paired(pairs.split(0), 5)
    number = [splits.train[c][:, 0] for c in ("text_features", "image_features", "speech")]
    for a, b in combinations(number, 2):
        assert (a == b).float().mean() < 0.15
        assert torch.equal(a.sort().values, b.sort().values)
    assert torch.equal(splits.test["speech"], splits.test["text_features"])


def test_all_rankings_of_a_text_are_reported():
    pairs = features()
    pairs = pairs.with_columns(speech=pairs["speech_features"])
    claim = next(c for c in claims.claims(pairs, "tiny") if c.name == "together")
    trained = {}
    for name, arm in claim.arms.items():
        splits = arm.data(0)
        trained[name] = claims.Trained(arm.build(splits).eval(), splits, None)
    figures = claims.text_finds_all(trained)
    assert set(figures) == {f"{arm}{what}" for arm in ("anchored", "gram") for what in (
        "", ", volume", ", sum", ", image", ", speech")}
    assert figures["gram"] == figures["gram, volume"]
    assert figures["anchored"] == figures["anchored, sum"]
    assert claims.single_view(trained["anchored"]) == max(
        figures["anchored, image"], figures["anchored, speech"])


# The exercises teach what the package computes -------------------------------------------
@pytest.mark.parametrize("exercise, function", [
    (exercises.distances,
     lambda t, v, a: gramian_volumes(t, [v, a]) / gramian_volume([v, a]))],
    ids=lambda x: getattr(x, "name", ""))
def test_the_package_passes_the_exercise(exercise, function):
    assert exercise.grade(function).startswith(exercise.name)
