"""FDT against a slow loop, its exact properties, the padding rule, and what its claims
measure."""

import math

import pytest
import torch

from alignkit.claims import fdt as claims
from alignkit.course import fdt as exercises
from alignkit.data import Pairs, Splits, Tokens
from alignkit.evaluation import evaluate_retrieval
from alignkit.methods.fdt import Fdt, FdtSettings, PooledHeads, code_scores
from alignkit.parts import mean_pool, sparsemax, unit
from alignkit.training import Budget, fit, seed_all

TOWERS = {"image": "image_tokens", "text": "text_tokens"}


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def features(n: int = 40, t: int = 3, d: int = 6) -> Pairs:
    """Pairs whose rows share a hidden state, token by token; texts are padded."""
    hidden = rows(n, t, 4)
    columns = {}
    for k, name in enumerate(("image", "text"), 1):
        values = hidden @ rows(4, d, seed=k) + 0.2 * rows(n, t, d, seed=k + 5)
        real = (torch.arange(n) % 2 + 1) if name == "text" else torch.full((n,), t)
        mask = torch.arange(t) < real[:, None]
        columns[f"{name}_tokens"] = Tokens(values.float() * mask[..., None], mask)
    return Pairs.from_features(columns)


def made(pairs: Pairs, **rest) -> Fdt:
    seed_all(0)
    return Fdt(FdtSettings(**({"towers": TOWERS, "width": 5, "hidden": 7, "codes": 9}
                              | rest)), pairs)


def double(pairs: Pairs) -> dict:
    return {k: Tokens(v.values.double(), v.mask) if isinstance(v, Tokens) else v
            for k, v in pairs.batch().items()}


# The equations, one number at a time --------------------------------------------------
def dot(x, y):
    return sum(x[k] * y[k] for k in range(len(x)))


def loop_norm(x, layer):
    mean = sum(x) / len(x)
    spread = (sum((v - mean) ** 2 for v in x) / len(x) + layer.eps).sqrt()
    return [(v - mean) / spread * g + b for v, g, b in zip(x, layer.weight, layer.bias)]


def loop_head(x, head):
    norm, first, _, second_norm, second = head
    x = loop_norm(list(x), norm)
    x = [dot(w, x) + b for w, b in zip(first.weight, first.bias)]
    x = [v * (1 + (v / math.sqrt(2)).erf()) / 2 for v in x]
    x = loop_norm(x, second_norm)
    return [dot(w, x) + b for w, b in zip(second.weight, second.bias)]


def loop_weights(r):
    """Sparsemax by trying every number of codes."""
    ordered = sorted(r, key=lambda v: v.item(), reverse=True)
    for k in range(len(r), 0, -1):
        threshold = (sum(ordered[:k]) - 1) / k
        if ordered[k - 1] > threshold:
            return [(v - threshold).clamp(min=0) for v in r]


def loop_row(method: Fdt, name: str, tokens: torch.Tensor, padding: int):
    """h of one row from its real tokens, by the card; padded places score 0."""
    s, z = method.settings, method.codebook
    queries = [loop_head(x, method.heads[name]) for x in tokens]
    r = []
    for c in range(len(z)):
        scores = [dot(q, z[c]) / (math.sqrt(s.width) * s.spread) for q in queries]
        if name in s.floored and padding:
            scores += [torch.zeros(()).double()] * padding
        r.append(max(scores, key=lambda v: v.item()))
    w = loop_weights(r)
    h = [sum(w[c] * z[c, k] for c in range(len(z))) for k in range(s.width)]
    length = sum(v * v for v in h).sqrt()
    return torch.stack([v / length for v in h])


@pytest.mark.parametrize("spread", [0.2, 2.0, 30.0])  # 30: the floor has its say
def test_value_and_gradient_are_the_cards_equations(spread):
    pairs = features(4)
    method = made(pairs, spread=spread).double()
    batch = double(pairs)
    h = {}
    for name in TOWERS:
        values, mask = batch[f"{name}_tokens"]
        h[name] = torch.stack([loop_row(method, name, x[real], int((~real).sum()))
                               for x, real in zip(values, mask)])
    scale = method.temperature.log_scale.exp()
    logits = [[scale * dot(a, b) for b in h["text"]] for a in h["image"]]
    slow = 0.0
    for i in range(4):
        row = sum(logits[i][j].exp() for j in range(4))
        column = sum(logits[j][i].exp() for j in range(4))
        slow = slow - 2 * logits[i][i] + row.log() + column.log()
    slow = slow / 8
    (fast,) = method(batch).values()
    assert abs(fast - slow) < 1e-9 * slow
    learned = list(method.parameters())
    for found, wanted in zip(*(torch.autograd.grad(loss, learned)
                               for loss in (fast, slow))):
        assert (found - wanted).norm() <= 1e-9 * wanted.norm() + 1e-15


def test_code_scores_are_a_maximum_or_a_mean_over_real_tokens():
    queries = Tokens(rows(3, 4, 5), torch.arange(4) < torch.tensor([[4], [2], [1]]))
    z = rows(6, 5, seed=1)
    for pool in ("max", "mean"):
        found = code_scores(queries, z, 3.0, pool)
        for i in range(3):
            each = queries.values[i][queries.mask[i]] @ z.T / math.sqrt(5) / 3
            wanted = each.amax(0) if pool == "max" else each.mean(0)
            assert torch.allclose(found[i], wanted, rtol=1e-13)


# The exact properties (a) to (d); (e), of sparsemax, is in test_sparse.py -------------
def test_a_the_order_of_codes_is_free():
    pairs = features()
    method, batch = made(pairs).double(), double(pairs)
    with torch.no_grad():
        w, h = method.weights(batch), method.encode(batch)
        order = torch.tensor([3, 1, 8, 0, 2, 7, 5, 6, 4])
        method.codebook.copy_(method.codebook[order])
        for name in TOWERS:
            assert torch.allclose(method.weights(batch)[name], w[name][:, order])
            assert torch.allclose(method.encode(batch)[name], h[name])
            assert not torch.allclose(w[name][:, order], w[name])


def test_b_order_repetition_and_padding_of_tokens_are_free():
    pairs = features(t=5)
    method, batch = made(pairs).double(), double(pairs)
    mean = made(pairs, pool="mean").double()

    def changed(change) -> dict:
        return {k: change(v) if isinstance(v, Tokens) else v for k, v in batch.items()}

    def cat(v: Tokens, values, real: bool) -> Tokens:
        mask = torch.full(values.shape[:2], real)
        return Tokens(torch.cat([v.values, values], 1), torch.cat([v.mask, mask], 1))

    moved = changed(lambda v: Tokens(v.values.flip(1), v.mask.flip(1)))
    twice = changed(lambda v: cat(v, v.values[:, :1], True))
    padded = changed(lambda v: cat(v, 50 * rows(40, 2, 6), False))
    with torch.no_grad():
        for name in TOWERS:
            h, m = method.encode(batch)[name], mean.encode(batch)[name]
            for other in (moved, twice, padded):
                assert torch.allclose(method.encode(other)[name], h, atol=1e-12)
            for other in (moved, padded):
                assert torch.allclose(mean.encode(other)[name], m, atol=1e-12)
            assert (mean.encode(twice)[name] - m).abs().max() > 1e-3


def test_c_before_it_is_made_unit_h_is_in_the_hull_of_the_codes():
    pairs = features()
    for weigh in ("sparsemax", "softmax"):
        method, batch = made(pairs, weigh=weigh).double(), double(pairs)
        with torch.no_grad():
            for name, w in method.weights(batch).items():
                assert (w >= 0).all()
                assert torch.allclose(w.sum(1), torch.ones(40).double())
                h = w @ method.codebook
                assert torch.allclose(unit(h), method.encode(batch)[name])
                ways = rows(200, 5, seed=4)  # in no direction outside the codes
                farthest = (method.codebook @ ways.T).amax(0)
                assert (h @ ways.T <= farthest + 1e-12).all()


def test_d_a_very_large_t_makes_all_rows_equal_and_a_small_one_picks_one_code():
    pairs = features()
    batch = double(pairs)
    flat, hard = made(pairs, spread=1e9).double(), made(pairs, spread=1e-4).double()
    with torch.no_grad():
        for name in TOWERS:
            w, h = flat.weights(batch)[name], flat.encode(batch)[name]
            assert torch.allclose(w, torch.full_like(w, 1 / 9), atol=1e-6)
            assert torch.allclose(h, h[:1].expand_as(h), atol=1e-6)
            w = hard.weights(batch)[name]
            assert ((w > 1 - 1e-9).sum(1) == 1).all()
            assert torch.equal(w.argmax(1), hard.grounding(batch)[name].argmax(1))
        (loss,) = flat(batch).values()
    assert loss.item() == pytest.approx(math.log(40), abs=1e-5)
    assert hard(batch)["contrastive_loss"] > 2 * loss  # other T, other loss


def test_the_floor_is_the_authors_padding_of_zeros():
    pairs = features()
    batch = double(pairs)
    floored = made(pairs, spread=2.0).double()
    clean = made(pairs, spread=2.0, floored=()).double()
    with torch.no_grad():
        values, mask = batch["text_tokens"]
        each = floored.heads["text"](values) @ floored.codebook.T / math.sqrt(5) / 2
        zeros = (each * mask[:, :, None]).amax(1)
        assert (~mask).any(1).all()  # every caption has padding
        assert torch.allclose(floored.grounding(batch)["text"], zeros, atol=1e-14)
        r = clean.grounding(batch)
        assert (r["text"] < 0).any()
        assert torch.equal(r["image"], floored.grounding(batch)["image"])


def test_the_floor_says_nothing_while_the_scores_above_it_sum_to_one():
    r = 0.4 * rows(400, 6)
    above = r.clamp(min=0).sum(1) >= 1
    assert above.sum() > 50 and (~above).sum() > 50
    same = (sparsemax(r) - sparsemax(r.clamp(min=0))).abs().amax(1) < 1e-12
    assert torch.equal(same, above | same) and same[above].all()
    assert (~same[~above & (r < 0).any(1)]).all()  # below one it does


# The method ---------------------------------------------------------------------------
def test_the_baseline_has_the_same_heads_and_at_least_as_many_parameters():
    pairs = features()
    pooled = pairs.with_features(image_pooled=mean_pool(pairs["image_tokens"]),
                                 text_pooled=mean_pool(pairs["text_tokens"]))
    towers = {"image": "image_pooled", "text": "text_pooled"}
    for codes in (9, 64):
        rest = {"width": 5, "hidden": 7, "codes": codes}
        method = made(pairs, **rest)
        baseline = PooledHeads(FdtSettings(towers=towers, **rest), pooled)
        ours, theirs = (sum(p.numel() for p in m.parameters())
                        for m in (method, baseline))
        one_unit = sum(6 + 5 + 3 for _ in towers)
        assert ours <= theirs < ours + one_unit
    kinds = [[type(x) for x in m.heads["text"]] for m in (method, baseline)]
    assert kinds[0] == kinds[1]
    with torch.no_grad():
        z = baseline.encode(pooled.batch())["text"]
        assert torch.allclose(z, unit(baseline.heads["text"](pooled["text_pooled"])))


@pytest.mark.parametrize("wrong, message", [
    ({"pool": "median"}, "pool must be one of"), ({"weigh": "sigmoid"}, "weigh of"),
    ({"codes": 1}, "codes must be 2"), ({"spread": 0.0}, "spread above 0")])
def test_settings_that_mean_nothing_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        FdtSettings(**wrong)


@pytest.mark.parametrize("rest", [{}, {"weigh": "softmax"}, {"pool": "mean"}])
def test_it_learns_to_retrieve(rest):
    pairs = features(80)
    method = made(pairs, codes=64, width=16, hidden=32, **rest)
    before = evaluate_retrieval(method, pairs)["mean"]["hit@1"]
    fit(method, pairs, Budget(steps=150, batch_size=40, lr=1e-2))
    assert evaluate_retrieval(method, pairs)["mean"]["hit@1"] > before + 0.15


# The claims ---------------------------------------------------------------------------
def trained(pairs: Pairs, **rest) -> claims.Trained:
    return claims.Trained(made(pairs, **rest).eval(), Splits(pairs, pairs, pairs), None)


def test_overlap_is_counted_set_by_set():
    pairs = features(12)
    arm = trained(pairs, codes=30)
    with torch.no_grad():
        r = arm.method.grounding(pairs.batch())
    best = {name: [set(sorted(range(30), key=lambda c: -x[c].item())[:10])
                   for x in r[name]] for name in TOWERS}
    jaccard = [[len(a & b) / len(a | b) for b in best["text"]] for a in best["image"]]
    own, other = claims.overlaps(arm)
    assert own == pytest.approx(sum(jaccard[i][i] for i in range(12)) / 12)
    off = [jaccard[i][j] for i in range(12) for j in range(12) if i != j]
    assert other == pytest.approx(sum(off) / len(off))
    ratio = claims.overlap_ratio({"a": arm})["a"]
    assert ratio == pytest.approx(own / other)


def test_softness_compares_the_same_scores():
    pairs = features(12)
    arm = trained(pairs, codes=30, spread=0.5)
    with torch.no_grad():
        r = torch.cat(list(arm.method.grounding(pairs.batch()).values()))
    soft = [math.exp(-sum(p * math.log(p) for p in row.tolist()))
            for row in r.softmax(1)]
    hard = [sum(w > 0 for w in row.tolist()) for row in sparsemax(r)]
    assert claims.softness(arm) == pytest.approx(sum(soft) / sum(hard), rel=1e-4)
    assert claims.softness(arm) > 2


def test_softmax_alone_has_a_temperature_of_its_own():
    pairs = features(120).with_features(image=torch.zeros(120, 1),
                                        text=torch.zeros(120, 1))
    found = {}
    for claim in claims.claims(pairs, "tiny"):
        for name, arm in claim.arms.items():
            if name in ("fdt", "softmax", "mean"):
                found[name] = arm.build(arm.data(0)).settings.spread
    s = claims.SCALES["tiny"]
    assert found == {"fdt": s.spread, "softmax": s.soft_spread, "mean": s.spread}
    assert s.soft_spread != s.spread


def test_statistics_of_the_claims():
    by_name = {c.name: c for c in claims.claims(features(120), "tiny")}
    assert "several-objects" not in by_name
    figures = {"fdt": 0.5, "pooled": 0.4, "softmax": 0.5, "linear": 0.45, "mean": 0.2}
    wanted = {"retrieval": 0.1, "linear-heads": 0.05, "sparsemax": 0.0,
              "shared-codes": -0.5, "maximum": 0.3}
    found = {name: c.difference(figures) for name, c in by_name.items()}
    assert found == pytest.approx(wanted)
    assert by_name["sparsemax"].equivalence and by_name["sparsemax"].margin == 0.03


# The exercises teach what the package computes ----------------------------------------
@pytest.mark.parametrize("exercise, function", [
    (exercises.ground, lambda queries, codebook, real: code_scores(
        Tokens(queries, real), codebook, 1.0)),
    (exercises.overlap_of, lambda a, b, k: _overlap(a, b, k))],
    ids=lambda x: getattr(x, "name", ""))
def test_the_package_passes_the_exercise(exercise, function):
    assert exercise.grade(function).startswith(exercise.name)


def _overlap(a, b, k):
    sets = [[set(row.topk(k).indices.tolist()) for row in x] for x in (a, b)]
    return torch.tensor([len(p & q) / len(p | q) for p, q in zip(*sets)])
