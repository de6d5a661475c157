"""Token projectors against slow loops, the paper's exact properties, and the
choice of captions."""

import math
from dataclasses import replace

import pytest
import torch

from alignkit.claims import projectors as claims
from alignkit.claims.claim import Trained
from alignkit.course import projectors as exercises
from alignkit.data import Pairs, Tokens
from alignkit.evaluation import cka, cka_debiased, evaluate_retrieval
from alignkit.methods.projectors import (
    Projectors, ProjectorSettings, balanced_rows, concept_balanced, mlp_projector,
    token_projector,
)  # fmt: skip
from alignkit.parts import mean_pool
from alignkit.training import Budget, fit, seed_all


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def features(n: int = 40, t: int = 3, d: int = 6) -> Pairs:
    """Pairs whose rows share a hidden state; tokens, padded for texts, and means."""
    hidden, columns = rows(n, t, 4), {}
    for k, name in enumerate(("image", "text"), 1):
        values = hidden @ rows(4, d, seed=k) + 0.2 * rows(n, t, d, seed=k + 5)
        real = (torch.arange(n) % 2 + 2) if name == "text" else torch.full((n,), t)
        tokens = Tokens(values.float(), torch.arange(t) < real[:, None])
        columns |= {f"{name}_tokens": tokens, f"{name}_features": mean_pool(tokens)}
    return Pairs.from_features(columns)


def settings(**rest) -> ProjectorSettings:
    return ProjectorSettings(**({"width": 5, "patches": "image_tokens"} | rest))


# The equations, one number at a time --------------------------------------------------
def linear(layer, x: list) -> list:
    return [sum(w * v for w, v in zip(row, x)) + b
            for row, b in zip(layer.weight, layer.bias)]


def norm(layer, x: list) -> list:
    mean = sum(x) / len(x)
    deviation = (sum((v - mean) ** 2 for v in x) / len(x) + layer.eps).sqrt()
    return [(v - mean) / deviation * w + b
            for v, w, b in zip(x, layer.weight, layer.bias)]


def gelu(x: list) -> list:
    return [v / 2 * (1 + torch.erf(v / math.sqrt(2))) for v in x]


def token(block, x: list) -> list:
    straight, bent = block[2].parts
    y = norm(block[0], x)
    other = linear(bent[2], gelu(linear(bent[0], y)))
    return [a + b for a, b in zip(linear(straight, y), other)]


def mlp(block, x: list) -> list:
    h = linear(block[0], x)
    bent = linear(block[1].parts[1][1], gelu(h))
    return norm(block[2], [a + b for a, b in zip(h, bent)])


def mean(vectors: list) -> list:
    return [sum(column) / len(vectors) for column in zip(*vectors)]


def loop_loss(method: Projectors, batch: dict) -> torch.Tensor:
    images, texts = [], []
    for cls, patches, (words, real) in zip(batch["image_features"],
                                           batch["image_tokens"].values,
                                           zip(*batch["text_tokens"])):
        local = mean([token(method.patch, list(p)) for p in patches])
        images.append([a + b for a, b in zip(local, token(method.cls, list(cls)))])
        seen = [token(method.word, list(w)) for w, r in zip(words, real) if r]
        texts.append(mlp(method.text, mean(seen)))
    def cosine(a, b):
        size = [sum(v * v for v in x).sqrt() for x in (a, b)]
        return sum(x * y for x, y in zip(a, b)) / (size[0] * size[1])
    s = [[cosine(a, b) / method.tau for b in texts] for a in images]
    n, total = len(s), 0.0
    for i in range(n):
        row = sum(s[i][j].exp() for j in range(n))
        column = sum(s[j][i].exp() for j in range(n))
        total = total - 2 * s[i][i] + row.log() + column.log()
    return total / (2 * n)


def test_loss_and_gradient_are_the_equations():
    pairs = features(4)
    seed_all(0)
    method = Projectors(settings(), pairs).double().eval()
    batch = {k: Tokens(v.values.double(), v.mask) if isinstance(v, Tokens) else
             v.double() if k.endswith("features") else v for k, v in pairs.batch().items()}
    (fast,), slow = method(batch).values(), loop_loss(method, batch)
    assert abs(fast - slow) < 1e-9 * slow
    weights = list(method.parameters())
    for found, wanted in zip(*(torch.autograd.grad(x, weights) for x in (fast, slow))):
        assert wanted.norm() > 0 and (found - wanted).norm() < 1e-9 * wanted.norm() + 1e-12


def test_the_paper_has_11_553_793_parameters():
    wide = Pairs.from_features({
        "image_features": torch.zeros(2, 1024), "text_features": torch.zeros(2, 1024),
        **{f"{m}_tokens": Tokens(torch.zeros(2, 3, 1024), torch.ones(2, 3).bool())
           for m in ("image", "text")}})
    with torch.device("meta"):
        method = Projectors(ProjectorSettings(patches="image_tokens"), wide)
    assert sum(p.numel() for p in method.parameters()) == 11_553_793
    blocks = [token_projector(1024, 1024), mlp_projector(1024, 1024)]
    assert [sum(p.numel() for p in b.parameters()) for b in blocks] == [3_150_848, 2_101_248]


# The paper's exact properties -----------------------------------------------------------
def test_a_without_the_bend_it_is_affine_and_commutes_with_the_mean():
    seed_all(0)
    block = token_projector(6, 5).double().eval()
    x, after_norm = rows(7, 6), block[2]

    def bent(inputs) -> float:
        """How far the mean of outputs is from the output of the mean."""
        return (after_norm(inputs).mean(0) - after_norm(inputs.mean(0))).norm().item()

    assert bent(x) > 1e-2
    with torch.no_grad():
        for parameter in after_norm.parts[1][2].parameters():
            parameter.zero_()
    assert bent(x) < 1e-14
    assert torch.allclose(after_norm(2 * x[0] - x[1]),
                          2 * after_norm(x[0]) - after_norm(x[1]), atol=1e-14)


def test_b_cka_does_not_see_rotation_or_scale():
    x = rows(30, 6)
    rotation = torch.linalg.qr(rows(6, 6, seed=1)).Q
    assert math.isclose(cka(x, x @ rotation), 1, abs_tol=1e-12)
    y = rows(30, 4, seed=2) + x[:, :4]
    assert math.isclose(cka(7 * x, y), cka(x, y), rel_tol=1e-12)
    assert cka(x @ rows(6, 6, seed=3), x) < 0.99  # any other map is seen


def test_c_the_encoders_outputs_stay():
    pairs = features()
    before = {k: [x.clone() for x in (v if isinstance(v, Tokens) else (v,))]
              for k, v in pairs.columns.items()}
    method = Projectors(settings(), pairs)
    fit(method, pairs, Budget(steps=5, batch_size=8))
    assert not any("encoder" in name for name, _ in method.named_parameters())
    for name, column in pairs.columns.items():
        now = column if isinstance(column, Tokens) else (column,)
        assert all(torch.equal(a, b) for a, b in zip(before[name], now))


# τ ------------------------------------------------------------------------------------
@pytest.mark.parametrize("start, kept", [(-0.2, 0.001), (0.07, 0.07), (3.0, 0.5)])
def test_tau_is_a_parameter_that_is_clamped_in_place(start, kept):
    pairs = features(6)
    method = Projectors(settings(), pairs)
    with torch.no_grad():
        method.tau.fill_(start)
    (loss,) = method(pairs.batch()).values()
    assert math.isclose(method.tau.item(), kept, rel_tol=1e-6)
    loss.backward()
    assert method.tau.grad.abs() > 0  # a clamp in the graph would give no gradient


def test_flat_parameters_are_not_decayed():
    method = Projectors(settings(), features(6))
    decayed, flat = method.stages()[0].parameters
    # Officially τ decays, for it has no dimension: the card says so.
    assert flat["weight_decay"] == 0 and any(p is method.tau for p in flat["params"])
    assert all(p.dim() == 2 for p in decayed["params"]) and "weight_decay" not in decayed
    together = len(decayed["params"]) + len(flat["params"])
    assert together == len(list(method.parameters()))


# What it reads ------------------------------------------------------------------------
def test_padding_and_the_order_of_tokens_do_not_matter():
    pairs = features(6)
    method = Projectors(settings(), pairs).eval()
    values, mask = pairs["text_tokens"]
    longer = Tokens(torch.cat([values.flip(1), 9 + torch.rand(6, 2, 6)], 1),
                    torch.cat([mask.flip(1), torch.zeros(6, 2).bool()], 1))
    with torch.no_grad():
        first = method.encode(pairs.batch())["text"]
        again = method.encode({"text_tokens": longer})["text"]
    assert torch.allclose(first, again, atol=1e-6)


def test_a_vector_is_one_token_and_heads_are_chosen_by_name():
    pairs = features(6)
    method = Projectors(settings(towers={"image": "image_features",
                                         "text": "text_features"}), pairs).eval()
    single = Tokens(pairs["text_features"][:, None], torch.ones(6, 1).bool())
    assert torch.equal(method.encode({"text_features": pairs["text_features"]})["text"],
                       method.encode({"text_features": single})["text"])
    plain = Projectors(settings(image_head="linear", patches=None), pairs)
    assert isinstance(plain.cls, torch.nn.Linear) and not hasattr(plain, "patch")
    with pytest.raises(ValueError, match="image_head must be"):
        settings(image_head="mlp")


def test_patches_can_be_compared_with_texts():
    pairs = features(6)
    method = Projectors(settings(), pairs).eval()
    z = method.patch_embeddings(pairs.batch())
    assert z.shape == (6, 3, 5) and torch.allclose(z.norm(dim=2), torch.ones(6, 3))


@pytest.mark.parametrize("patches, head", [(None, "linear"), (None, "token"),
                                           ("image_tokens", "token")])
def test_it_learns_to_retrieve(patches, head):
    pairs = features(80)
    seed_all(0)
    method = Projectors(settings(patches=patches, image_head=head, width=16), pairs)
    before = evaluate_retrieval(method, pairs)["mean"]["hit@1"]
    fit(method, pairs, Budget(steps=60, batch_size=40, lr=1e-2))
    assert evaluate_retrieval(method, pairs)["mean"]["hit@1"] > before + 0.15


# The choice of captions ---------------------------------------------------------------
def test_the_scarcest_class_chooses_first():
    #                     class 0, class 1; at place 3 class 1 is the scarcer one
    scores = torch.tensor([[.9, .8], [.8, .3], [.7, .2], [.1, .1], [.0, .0]])
    assert balanced_rows(scores, per_class=2, depth=3).tolist() == [0, 1, 2]
    assert balanced_rows(scores, per_class=1, depth=3).tolist() == [0, 1]
    assert balanced_rows(scores.flip(1), per_class=1, depth=3).tolist() == [0, 1]
    # The other way round class 0 would have taken 0 and left 1 to class 1.
    scores = torch.tensor([[.9, .8], [.8, .1], [.7, .2], [.6, .0]])
    assert balanced_rows(scores, per_class=1, depth=2).tolist() == [0, 1]
    for wrong in ({"per_class": 0, "depth": 2}, {"per_class": 3, "depth": 2},
                  {"per_class": 1, "depth": 9}):
        with pytest.raises(ValueError, match="per_class"):
            balanced_rows(scores, **wrong)


def test_balanced_captions_cover_the_classes_of_a_long_tail():
    centres = 4 * rows(6, 8)
    classes = torch.cat([torch.full((n,), c) for c, n in enumerate((60, 20, 8, 4, 4, 4))])
    pairs = Pairs.from_features({"text_features": centres[classes]
                                 + rows(100, 8, seed=1)}, labels={"class": classes})
    chosen = concept_balanced(pairs, "text_features", centres, 4, depth=4)
    assert chosen.labels["class"].bincount().tolist() == [4] * 6


def test_both_engines_give_as_many_pairs():
    centres = rows(5, 6)
    classes = torch.arange(50) % 5
    pairs = Pairs.from_features(
        {"text_features": centres[classes] + 0.1 * rows(50, 6, seed=1)},
        labels={"class": classes}, tables={"class_names": centres})
    balanced = claims.engine(pairs, 0, "balanced", 3)
    first, again, other = (claims.engine(pairs, seed, "random", 3) for seed in (0, 0, 1))
    assert len(balanced) == len(first) == 15 and len(set(balanced.ids)) == 15
    assert first.ids == again.ids != other.ids
    texts = claims.descriptions(pairs)
    assert [len(x) for x in texts] == [11] * 5 and torch.equal(texts[2][0], centres[2])


# The statistic of the claim on CKA ----------------------------------------------------
def test_rho_is_of_the_arms_that_are_asked_for():
    figures = {"a": 0.1, "b": 0.2, "random c": 0.9}
    figures |= {f"cka {k}": v for k, v in zip(list(figures), (0.3, 0.4, 0.1))}
    assert claims.rho(figures) == pytest.approx(-0.5)
    assert claims.rho(figures, without="random") == pytest.approx(1)
    assert claims.rho({**figures, "a": 0.5, "b": 0.5, "random c": 0.5}) == 0


def test_agreement_is_measured_on_validation_rows_of_the_arms_own_columns():
    pairs = features(60)
    splits = pairs.split(0, claims.PARTS)
    towers = {"image": "image_features", "text": "text_features"}
    method = Projectors(settings(towers=towers, patches=None), pairs)
    found = claims.agreement({"x": Trained(method, splits, None)})
    assert found["cka x"] == cka_debiased(*(splits.val[c] for c in towers.values()))
    shuffled = claims._shuffled_validation(
        splits._replace(val=splits.val.with_features(
            text=[str(i) for i in range(len(splits.val))])), 0)
    assert torch.equal(shuffled.test["text_features"], splits.test["text_features"])
    moved = claims.agreement({"x": Trained(method, shuffled, None)})
    assert abs(moved["cka x"]) < 0.5 * found["cka x"]


def test_pairs_without_labels_have_no_claims_on_coverage(capsys):
    pairs = features(60).with_features(text=["a"] * 60, image=torch.zeros(60, 1))
    names = [c.name for c in claims.claims(pairs.with_features(
        image_random=rows(60, 6).float()), "tiny")]
    assert names == ["token-projector", "patches", "cka"]
    assert "no labels" in capsys.readouterr().out
    known = replace(pairs, labels={"class": torch.arange(60) % 4},
                    tables={"class_names": rows(4, 6).float()})
    known = known.with_features(image_random=rows(60, 6).float())
    found = {c.name: c for c in claims.claims(known, "tiny")}
    assert {"coverage", "random-retrieves"} <= set(found)
    arm = found["coverage"].arms["balanced"]
    splits = arm.data(0)
    figure = claims.class_accuracy({"x": Trained(arm.build(splits), splits, None)})
    assert 0 <= figure["x"] <= 1 and splits.test.tables["classes"]


# The exercises teach what the package computes ----------------------------------------
def _package_words(x, real, w1, w2, w3):
    block = token_projector(x.shape[-1], len(w1)).eval()
    straight, bent = block[2].parts
    with torch.no_grad():
        for layer, weight in ((straight, w1), (bent[0], w2), (bent[2], w3)):
            layer.weight.copy_(weight)
            layer.bias.zero_()
        return mean_pool(Tokens(block(x), real))


def _package_grades(alike, hits):
    """`claims.rho` table by table."""
    grades = []
    for x, y in zip(alike.tolist(), hits.tolist()):
        figures = {f"{'random' * (k > 5)}{k}": hit for k, hit in enumerate(y)}
        figures |= {f"cka {name}": x[k] for k, name in enumerate(list(figures))}
        whole, rest = (claims.rho(figures, without=arms) >= 0.5 for arms in ("-", "random"))
        grades.append(float(whole + (whole and rest)))
    return torch.tensor(grades)


def _package_choice(scores, per_class, depth):
    order = scores.topk(depth, dim=0).values[-1].argsort(stable=True)
    chosen, taker = balanced_rows(scores, per_class, depth), torch.full((len(scores),), -1)
    lists = scores.topk(depth, dim=0).indices
    for c in order.tolist():
        free = [r for r in lists[:, c].tolist() if r in chosen.tolist() and taker[r] < 0]
        taker[free[:per_class]] = c
    return taker


@pytest.mark.parametrize("exercise, function", [
    (exercises.word_side, _package_words), (exercises.stands, _package_grades),
    (exercises.choose, _package_choice)], ids=lambda x: getattr(x, "name", ""))
def test_the_package_passes_the_exercise(exercise, function):
    assert exercise.grade(function).startswith(exercise.name)
