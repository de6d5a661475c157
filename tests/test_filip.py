"""FILIP's scores and loss against slow loops, its exact properties,
and where its claims say that a noun points."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from alignkit.claims import filip as claims
from alignkit.claims.common import single_objects
from alignkit.course import filip as exercises
from alignkit.data import Pairs, Tokens
from alignkit.data.scenes import scenes
from alignkit.evaluation import evaluate_retrieval
from alignkit.methods.filip import (
    Filip, FilipSettings, MeanInteraction, informative, inner_tokens, two_way_loss,
)  # fmt: skip
from alignkit.parts import info_nce, late_interaction, mean_pool, unit
from alignkit.training import Budget, fit, seed_all


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def drawn(n: int, t: int, d: int, seed: int = 0, real: list[int] | None = None) -> Tokens:
    """Unit tokens; row i has real[i] real ones in front."""
    mask = torch.arange(t) < torch.tensor(real or [t] * n)[:, None]
    return Tokens(unit(rows(n, t, d, seed=seed)), mask)


def features(n: int = 40, t: int = 3, d: int = 6) -> Pairs:
    """Pairs whose rows share a hidden state, token by token; texts are padded."""
    hidden = rows(n, t, 4)
    columns = {}
    for k, name in enumerate(("image", "text"), 1):
        values = hidden @ rows(4, d, seed=k) + 0.2 * rows(n, t, d, seed=k + 5)
        real = (torch.arange(n) % 2 + 2) if name == "text" else torch.full((n,), t)
        mask = torch.arange(t) < real[:, None]
        columns[f"{name}_tokens"] = Tokens(values.float() * mask[..., None], mask)
    return Pairs.from_features(columns)


def settings(**rest) -> FilipSettings:
    towers = {"image": "image_tokens", "text": "text_tokens"}
    return FilipSettings(towers=towers, **({"width": 5} | rest))


def loop_scores(a: Tokens, b: Tokens) -> tuple[list[list], list[list]]:
    """The card's two equations, one number at a time, as scalar tensors."""
    def score(asking, answering, answers_real, asks_real):
        total, n = 0.0, 0
        for x, ask in zip(asking, asks_real):
            if not ask:
                continue
            best = None
            for y, real in zip(answering, answers_real):
                product = sum(x[k] * y[k] for k in range(len(x)))
                if real and (best is None or product > best):
                    best = product
            total, n = total + best, n + 1
        return total / n

    n, m = len(a.values), len(b.values)
    image = [[score(a.values[i], b.values[j], b.mask[j], a.mask[i]) for j in range(m)]
             for i in range(n)]
    text = [[score(b.values[j], a.values[i], a.mask[i], b.mask[j]) for j in range(m)]
            for i in range(n)]
    return image, text


def loop_loss(a: Tokens, b: Tokens, scale) -> torch.Tensor:
    image, text = loop_scores(a, b)
    n, total = len(image), 0.0
    for i in range(n):
        row = sum((scale * image[i][j]).exp() for j in range(n))
        column = sum((scale * text[j][i]).exp() for j in range(n))
        total = total - scale * image[i][i] + row.log() - scale * text[i][i] + column.log()
    return total / (2 * n)


def fast_loss(a: Tokens, b: Tokens, scale) -> torch.Tensor:
    image, text = late_interaction(a, b)
    return two_way_loss(image, text, scale, torch.eye(len(image), dtype=torch.bool))


def test_scores_loss_and_gradient_are_the_equations():
    a, b = drawn(4, 5, 3), drawn(4, 4, 3, seed=1, real=[4, 2, 1, 3])
    x, y = a.values.clone().requires_grad_(), b.values.clone().requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    a, b = Tokens(x, a.mask), Tokens(y, b.mask)
    for found, wanted in zip(late_interaction(a, b), loop_scores(a, b)):
        wanted = torch.stack([torch.stack(row) for row in wanted])
        assert (found - wanted).abs().max() < 1e-12
    fast, slow = fast_loss(a, b, scale), loop_loss(a, b, scale)
    assert abs(fast - slow) < 1e-9 * slow
    gradients = [torch.autograd.grad(loss, (x, y, scale)) for loss in (fast, slow)]
    for found, wanted in zip(*gradients):
        assert (found - wanted).norm() < 1e-9 * wanted.norm()
    assert (gradients[0][1][~b.mask] == 0).all()  # padding learns nothing


def test_the_method_is_heads_unit_tokens_and_the_loop():
    pairs = features(6)
    seed_all(0)
    method = Filip(settings(), pairs).double()
    batch = {k: Tokens(v.values.double(), v.mask) if isinstance(v, Tokens) else v
             for k, v in pairs.batch().items()}
    tokens = {}
    for name in ("image", "text"):
        head, (values, mask) = method.heads[name], batch[f"{name}_tokens"]
        z = values @ head.weight.T + head.bias
        tokens[name] = Tokens(z / z.norm(dim=2, keepdim=True), mask)
    scale = torch.tensor(1 / 0.07, dtype=torch.float64)  # the paper's start
    (loss,) = method(batch).values()
    assert abs(loss - loop_loss(tokens["image"], tokens["text"], scale)) < 1e-6 * loss
    loss.backward()
    assert method.temperature.log_scale.grad.abs() > 0  # it is learned


# The paper's exact properties -----------------------------------------------------------
def test_a_with_one_token_a_side_the_loss_is_clips():
    a, b = drawn(7, 1, 4), drawn(7, 1, 4, seed=1)
    clip = info_nce(a.values[:, 0], b.values[:, 0], 14.0)
    assert torch.isclose(fast_loss(a, b, 14.0), clip, rtol=1e-14)


def test_b_order_and_padding_do_not_matter():
    a, b = drawn(4, 6, 3), drawn(4, 5, 3, seed=1, real=[5, 2, 3, 4])
    scores = late_interaction(a, b)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    moved = Tokens(a.values[:, order], a.mask[:, order])
    # A long pad of large values: a forgotten mask would let it win every maximum.
    pad = Tokens(torch.cat([b.values, 9 + rows(4, 3, 3, seed=4).abs()], 1),
                 torch.cat([b.mask, torch.zeros(4, 3, dtype=torch.bool)], 1))
    for other in (late_interaction(moved, b), late_interaction(a, pad)):
        for found, wanted in zip(other, scores):
            assert torch.allclose(found, wanted, rtol=0, atol=1e-14)


def test_b_a_repeated_word_counts_for_the_words_alone():
    a, b = drawn(4, 6, 3), drawn(4, 5, 3, seed=1)
    twice = Tokens(torch.cat([b.values, b.values[:, :1]], 1),
                   torch.ones(4, 6, dtype=torch.bool))
    (image, text), (image_2, text_2) = late_interaction(a, b), late_interaction(a, twice)
    assert torch.allclose(image, image_2, rtol=0, atol=1e-14)
    assert (text - text_2).abs().max() > 1e-3


def test_c_no_score_exceeds_one_and_one_needs_a_twin_for_every_token():
    a, b = drawn(5, 4, 3), drawn(5, 6, 3, seed=1)
    assert all(scores.max() < 1 for scores in late_interaction(a, b))
    values = b.values.clone()
    values[2, :4] = a.values[3].flip(0)  # every token of a_3 is in b_2, not the reverse
    image, text = late_interaction(a, Tokens(values, b.mask))
    assert image[3, 2].item() == pytest.approx(1, abs=1e-14) and text[3, 2] < 1 - 1e-3
    assert (image > 1 - 1e-9).sum() == 1


def test_d_sides_that_change_places_change_the_scores_places():
    a, b = drawn(4, 6, 3), drawn(5, 3, 3, seed=1, real=[3, 1, 2, 3, 2])
    image, text = late_interaction(a, b)
    text_back, image_back = late_interaction(b, a)
    assert torch.allclose(image, image_back.T) and torch.allclose(text, text_back.T)
    assert (image - text).abs().max() > 0.05  # they are two scores, not one


def test_a_picture_asks_with_patches_and_a_text_with_words():
    pairs = features()
    method = Filip(settings(), pairs)
    with torch.no_grad():
        out = method.encode(pairs.batch())
        image, text = late_interaction(out["image"], out["text"])
        assert torch.equal(method.score(out["image"], out["text"]), image)
        assert torch.allclose(method.score(out["text"], out["image"]), text.T)


def test_each_score_is_trained_by_its_own_half():
    """Rows of the first, columns of the second: the transpose of one for both is the
    known silent bug."""
    image, text = rows(5, 5), rows(5, 5, seed=1)
    eye, right = torch.eye(5, dtype=torch.bool), torch.arange(5)
    wanted = (F.cross_entropy(2 * image, right) + F.cross_entropy(2 * text.T, right)) / 2
    assert torch.isclose(two_way_loss(image, text, 2.0, eye), wanted)
    assert abs(two_way_loss(image, image, 2.0, eye) - wanted) > 0.01


def test_captions_of_one_picture_share_its_weight():
    image, text = rows(3, 3), rows(3, 3, seed=1)
    item = torch.tensor([0, 0, 1])
    positives = item[:, None] == item
    log_p = image.log_softmax(1), text.log_softmax(0)
    wanted = -sum((p[0, 0] + p[0, 1]) / 2 + (p[1, 0] + p[1, 1]) / 2 + p[2, 2]
                  for p in log_p) / 6
    assert torch.isclose(two_way_loss(image, text, 1.0, positives), wanted)
    with pytest.raises(ValueError, match="no right answer"):
        two_way_loss(image, text, 1.0, torch.zeros(3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="one shape"):
        two_way_loss(image, text[:, :2], 1.0, positives)


# The ablation -------------------------------------------------------------------------
def test_the_mean_of_all_products_is_the_product_of_the_means():
    a, b = drawn(3, 4, 3), drawn(3, 4, 3, seed=1, real=[4, 2, 1])
    for i in range(3):
        for j in range(3):
            real = b.values[j][b.mask[j]]
            wanted = (a.values[i] @ real.T).mean()
            assert torch.isclose(mean_pool(a)[i] @ mean_pool(b)[j], wanted, atol=1e-14)
    pairs = features()
    method = MeanInteraction(settings(), pairs)
    with torch.no_grad():
        out, tokens = method.encode(pairs.batch()), Filip.encode(method, pairs.batch())
    assert torch.equal(out["text"], mean_pool(tokens["text"]))
    assert torch.equal(method.score(out["image"], out["text"]), out["image"] @ out["text"].T)


# Tokens -------------------------------------------------------------------------------
def test_the_first_and_last_real_tokens_are_left_out():
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0],
                         [1, 0, 0, 0, 0]]).bool()
    values = rows(5, 5, 2)
    inner = inner_tokens(Tokens(values, mask))
    assert torch.equal(inner.values, values)
    assert inner.mask.int().tolist() == [
        [0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]


def test_the_most_informative_tokens_are_kept():
    a, b = drawn(3, 8, 4, real=[8, 8, 1]), drawn(5, 4, 4, seed=1, real=[4, 3, 2, 4, 1])
    kept = informative(a, b, 0.25)
    assert kept.values.shape == (3, 2, 4) and kept.mask.int().tolist() == [[1, 1], [1, 1],
                                                                           [1, 0]]
    for i in range(2):
        best = torch.stack([max((a.values[i, t] @ b.values[j, c] for j in range(5)
                                 for c in range(4) if b.mask[j, c])) for t in range(8)])
        wanted = a.values[i, best.topk(2).indices]
        assert torch.equal(kept.values[i], wanted)
    whole = informative(a, b, 1.0)
    for found, wanted in zip(late_interaction(whole, b), late_interaction(a, b)):
        assert torch.allclose(found, wanted)


def test_fewer_tokens_are_shown_and_all_of_them_ask():
    pairs = features()
    method = Filip(settings(keep=0.5), pairs)
    batch = pairs.batch()
    out = method.encode(batch)
    a, b = out["image"], out["text"]
    forth = late_interaction(a, informative(b, a, 0.5))[0]
    back = late_interaction(informative(a, b, 0.5), b)[1]
    wanted = two_way_loss(forth, back, method.temperature(), torch.eye(40).bool())
    assert torch.isclose(method(batch)["contrastive_loss"], wanted)
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match="keep must be"):
            settings(keep=wrong)


@pytest.mark.parametrize("method", [Filip, MeanInteraction])
def test_it_learns_to_retrieve(method):
    pairs = features(80)
    seed_all(0)
    model = method(settings(), pairs)
    before = evaluate_retrieval(model, pairs)["mean"]["hit@1"]
    fit(model, pairs, Budget(steps=120, batch_size=40, lr=1e-2))
    assert evaluate_retrieval(model, pairs)["mean"]["hit@1"] > before + 0.15


# The claims ---------------------------------------------------------------------------
def test_single_objects_are_the_first_of_a_caption():
    pairs = single_objects(scenes(30), 20)
    assert pairs.present["image_one"].sum() == pairs.present["text_one"].sum() == 20
    for text, one in zip(pairs["text"], pairs["text_one"]):
        assert text.startswith(one + " ") and one.count(" on ") == 1
    scene, alone = pairs["image"][0], pairs["image_one"][0]
    x0, y0, x1, y1 = pairs.tables["objects"]["box"][0].int().tolist()
    box = (x0 + 4, y0 + 4, x1 - 4, y1 - 4)
    assert scene.crop(box).tobytes() == alone.crop(box).tobytes()
    assert scene.tobytes() != alone.tobytes()


def test_the_named_objects_are_those_of_the_caption():
    pairs = scenes(40).select(torch.tensor([31, 4, 17]))
    objects, names = pairs.tables["objects"], pairs.tables["vocabulary"]
    for text, pair in zip(pairs["text"], claims.named_objects(pairs).tolist()):
        first, second = (names[objects["noun"][k]] for k in pair)
        assert text.index(f" {first} ") < text.index(f" {second} ")


@pytest.mark.parametrize("aim, wanted", [("own", 1.0), ("other", -1.0), ("corner", 0.0)])
def test_pointing_counts_own_minus_other(aim, wanted):
    """Patches and nouns that meet where the test says: at the centre of a plate."""
    pairs = scenes(12)
    box = pairs.tables["objects"]["box"][claims.named_objects(pairs)]
    place = ((box[..., :2] + box[..., 2:]) / 2 / 32).long()  # column, row of 7
    cell = 7 * place[..., 1] + place[..., 0]
    if aim == "other":
        cell = cell.flip(1)
    values, words = torch.zeros(12, 49, 3), torch.zeros(12, 4, 3)
    for i in range(12):
        spots = [0, 6] if aim == "corner" else cell[i].tolist()
        for k, spot in enumerate(spots):
            values[i, spot, k] = 1
    words[:, 1, 0] = words[:, 3, 1] = 1
    nouns = torch.zeros(12, 2, 4, dtype=torch.bool)
    nouns[:, 0, 1] = nouns[:, 1, 3] = True
    real = torch.ones(12, 49, dtype=torch.bool), torch.ones(12, 4, dtype=torch.bool)
    pairs = pairs.with_features(image_tokens=Tokens(values, real[0]), text_nouns=nouns,
                                text_tokens=Tokens(words, real[1]))
    heads = {"image": torch.nn.Identity(), "text": torch.nn.Identity()}
    found = claims.points_at(SimpleNamespace(heads=heads), pairs)
    assert math.isclose(found, wanted, abs_tol=0.15 if aim == "corner" else 1e-12)


# The exercises teach what the package computes ----------------------------------------
@pytest.mark.parametrize("exercise, function", [
    (exercises.both_ways, lambda s_image, s_text, scale: two_way_loss(
        s_image, s_text, scale, torch.eye(len(s_image), dtype=torch.bool)))],
    ids=lambda x: getattr(x, "name", ""))
def test_the_package_passes_the_exercise(exercise, function):
    assert exercise.grade(function).startswith(exercise.name)
