"""XBT against slow loops written from the equations, its exact properties, and its claims'
data: no text of a test item is ever trained on."""

import pytest
import torch
from torch.nn import functional as F

from alignkit.claims import xbt as claims
from alignkit.data import Pairs
from alignkit.methods.xbt import (
    LinearMap, OldQueries, Xbt, XbtPairs, XbtSettings, corpus, noisy,
)  # fmt: skip
from alignkit.parts import LowRank, unit
from alignkit.training import Budget, fit

NEW, OLD = 4, 3


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def pairs(n: int = 6, new: int = NEW, old: int = OLD, item=None) -> Pairs:
    return Pairs.from_features({
        f"{name}_{age}": unit(rows(n, d, k)) for k, (name, age, d) in enumerate(
            [("image", "new", new), ("text", "new", new),
             ("image", "old", old), ("text", "old", old)])}, item=item)


def made(kind: type = Xbt, data: Pairs | None = None, **changes) -> Xbt:
    torch.manual_seed(0)
    settings = XbtSettings(**{"rank": 2, "weight": 0.7, "sigma": 0.6} | changes)
    method = kind(settings, data or pairs()).double()
    with torch.no_grad():  # norms, biases and B off their neutral start
        for k, p in enumerate(method.parameters()):
            p += 0.1 * rows(p.numel(), 1, 10 + k).view(p.shape)
    return method


# Slow loops ---------------------------------------------------------------------------
def dot(x, y):
    return sum(s * t for s, t in zip(x, y, strict=True))


def length_one(x: list) -> list:
    norm = dot(x, x).sqrt()
    return [one / norm for one in x]


def loop_linear(layer, x: list) -> list:
    return [dot(layer.weight[i], x) + layer.bias[i] for i in range(len(layer.weight))]


def loop_phi(phi, x: list) -> list:
    """unit(W x + W₂ norm(gelu(W₁ x)))."""
    first, _, norm, second = phi.mlp
    h = [u * (1 + torch.erf(u / 2**0.5)) / 2 for u in loop_linear(first, x)]
    mean = sum(h) / len(h)
    variance = sum((u - mean) ** 2 for u in h) / len(h)
    h = [norm.weight[k] * (u - mean) / (variance + norm.eps).sqrt() + norm.bias[k]
         for k, u in enumerate(h)]
    return length_one([a + b for a, b in zip(loop_linear(phi.linear, x),
                                             loop_linear(second, h), strict=True)])


def loop_info_nce(a: list, b: list, item: list, scale):
    """Both directions; rows of one item are all right answers."""
    n, total = len(a), 0.0
    s = [[scale * dot(a[i], b[j]) for j in range(n)] for i in range(n)]
    for scores in (s, [list(column) for column in zip(*s)]):
        for i in range(n):
            right = [j for j in range(n) if item[j] == item[i]]
            everything = sum(torch.exp(scores[i][j]) for j in range(n)).log()
            total += sum(everything - scores[i][j] for j in right) / len(right) / n / 2
    return total


def loop_low_rank(layer: LowRank, x: list) -> list:
    inside = [dot(row, x) for row in layer.down.weight]
    return length_one([one + dot(row, inside)
                       for one, row in zip(x, layer.up.weight, strict=True)])


def scale_of(method) -> torch.Tensor:
    """1 / τ as it is kept: its logarithm in single precision, so only nearly 1 / 0.07."""
    scale = method.temperature.log_scale.exp()
    assert float(scale) == pytest.approx(1 / 0.07, rel=1e-6)
    return scale


def agree(method, fast, slow) -> None:
    trained = [p for p in method.parameters() if p.requires_grad]
    assert fast.item() == pytest.approx(slow.item(), abs=1e-9)
    found = [torch.autograd.grad(x, trained, allow_unused=True) for x in (fast, slow)]
    for mine, loops in zip(*found, strict=True):
        assert (mine is None) == (loops is None)
        assert mine is None or torch.allclose(mine, loops, rtol=0, atol=1e-9)


ITEMS = [0, 0, 1, 2, 3, 3]


def test_stage_1_is_its_equation():
    method = made().train()
    texts = pairs(item=ITEMS).only("text_new", "text_old")
    torch.manual_seed(3)
    losses = method(texts.batch())
    torch.manual_seed(3)
    noise, z, y = torch.randn(6, NEW, dtype=torch.float64), [], []
    for i in range(6):
        x = [texts["text_new"][i][k] + 0.6 * noise[i][k] / 2 for k in range(NEW)]  # √d = 2
        z.append(loop_phi(method.phi, length_one(x)))
        y.append(list(texts["text_old"][i]))
    slow = loop_info_nce(z, y, ITEMS, scale_of(method)) + sum(1 - dot(a, b) for a, b in zip(z, y)) / 6
    agree(method, sum(losses.values()), slow)


@pytest.mark.parametrize("texts_first", [True, False])
def test_stage_2_is_its_equation(texts_first):
    data = pairs(item=ITEMS)
    method = made(XbtPairs, data, texts_first=texts_first).train()
    losses = method(data.batch())
    seen, said = ([loop_phi(method.phi, loop_low_rank(method.low_rank[name], list(x)))
                   for x in data[f"{name}_new"]] for name in ("image", "text"))
    target = ([loop_phi(method.first, list(x)) for x in data["text_new"]] if texts_first
              else [list(y) for y in data["text_old"]])
    scale = scale_of(method)
    slow = (loop_info_nce(seen, target, ITEMS, scale) + loop_info_nce(seen, said, ITEMS, scale)
            + 0.7 * loop_info_nce(said, target, ITEMS, scale))
    agree(method, sum(losses.values()), slow)
    assert losses.keys() == {"target_loss", "pair_loss", "text_loss"}


# Exact properties ---------------------------------------------------------------------
def turned(n: int = 40, d: int = 6) -> tuple[Pairs, torch.Tensor]:
    """Pairs whose new embeddings are the old ones turned by an orthogonal matrix."""
    q = torch.linalg.qr(rows(d, d, 9)).Q
    data = pairs(n, d, d)
    return data.with_features(**{f"{name}_new": data[f"{name}_old"] @ q
                                 for name in ("image", "text")}), q


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_procrustes_finds_a_turn_and_every_rank_stays(share):
    data, q = turned()
    method = LinearMap(XbtSettings(share=share), data).double()
    fit(method, data, Budget())
    assert torch.allclose(method.map, q.T, rtol=0, atol=1e-9)
    old = OldQueries(XbtSettings(), data).double()
    for asks in ("image", "text"):
        assert torch.equal(claims.answers(method, data, asks, 3),
                           claims.answers(old, data, asks, 3))
        assert torch.allclose(method.encode(data.batch())[asks], data[f"{asks}_old"])


def test_the_same_model_needs_no_map():
    data, _ = turned()
    same = data.with_features(image_new=data["image_old"], text_new=data["text_old"])
    method = LinearMap(XbtSettings(), same).double()
    method.solve(same)
    assert torch.allclose(method.map, torch.eye(6, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("new, old", [(7, 5), (5, 7)])
def test_procrustes_of_unequal_widths(new, old):
    """The narrower space is filled with zeros: rows (or columns) stay orthonormal, and no
    other such map fits the centred texts better."""
    data = pairs(30, new, old)
    method = LinearMap(XbtSettings(), data).double()
    method.solve(data)
    m, few = method.map, min(new, old)
    gram = m.T @ m if old < new else m @ m.T
    assert torch.allclose(gram, torch.eye(few, dtype=torch.float64), atol=1e-9)
    x, y = (data[c] - data[c].mean(0) for c in ("text_new", "text_old"))
    best = ((x @ m) * y).sum()
    for seed in range(20):
        other = torch.linalg.qr(rows(max(new, old), max(new, old), seed)).Q[:new, :old]
        assert ((x @ other) * y).sum() <= best


def test_ridge_is_the_least_squares_map_of_centred_texts():
    data = pairs(30)
    method = LinearMap(XbtSettings(map="ridge", ridge=0.0), data).double()
    method.solve(data)
    x, y = (data[c] - data[c].mean(0) for c in ("text_new", "text_old"))
    assert torch.allclose(method.map, torch.linalg.lstsq(x, y).solution, atol=1e-9)


def test_nothing_changes_before_stage_2():
    data = pairs()
    torch.manual_seed(0)
    method = XbtPairs(XbtSettings(rank=2), data).double().eval()
    plain = Xbt(XbtSettings(), data).double().eval()
    plain.phi.load_state_dict(method.phi.state_dict())
    for name, z in plain.encode(data.batch()).items():
        assert torch.allclose(method.encode(data.batch())[name], z, rtol=0, atol=1e-12)
    x = rows(5, 4)
    assert torch.equal(LowRank(4, 3).double()(x), x)
    with pytest.raises(ValueError, match="rank.*4.*5"):
        LowRank(4, 5)


def test_noise_has_its_length_and_stays_out_of_scoring():
    x = unit(rows(2000, 64)).float()
    torch.manual_seed(0)
    y = noisy(x, 0.5)
    assert torch.allclose(y.norm(dim=1), torch.ones(2000), atol=1e-5)
    # Noise of length σ at right angles: the cosine is 1 / √(1 + σ²).
    assert float((x * y).sum(1).mean()) == pytest.approx(1 / 1.25**0.5, abs=0.005)
    assert torch.allclose(noisy(x, 0.0), x, atol=1e-6)
    method = made().eval()
    one, other = (method.encode(pairs().only("text_new").batch())["text"] for _ in range(2))
    assert torch.equal(one, other)
    both = made().train()  # beside pictures, in stage 2, there is none either
    assert torch.equal(both.encode(pairs().batch())["text"], one)


def test_stage_1_sees_no_picture_and_stage_2_keeps_its_targets():
    data = pairs(30)
    method = XbtPairs(XbtSettings(rank=2), data.with_features(
        **{c: x.float() for c, x in data.columns.items()}))
    texts, keep, last = method.stages()
    assert set(texts.view(data).columns) == {"text_new", "text_old"}
    assert {id(p) for group in texts.parameters for p in group["params"]} == {
        id(p) for p in method.phi.parameters()}
    with torch.no_grad():
        method.phi.linear.bias += 1
    keep.solve(data)
    assert torch.equal(method.first.linear.bias, method.phi.linear.bias)
    assert not any(p.requires_grad for p in method.first.parameters())
    trained = {id(p) for group in last.parameters for p in group["params"]}
    assert trained == {id(p) for p in (*method.phi.parameters(),
                                       *method.low_rank.parameters())}


def test_without_a_corpus_the_pairs_texts_are_it():
    data = pairs(item=ITEMS)
    assert len(corpus(data)) == 4
    assert F.cosine_similarity(corpus(data)["text_old"], data["text_old"][[0, 2, 3, 4]]
                               ).min() > 1 - 1e-9


@pytest.mark.parametrize("wrong, named", [({"map": "pca"}, "procrustes, ridge.*pca"),
                                          ({"sigma": -1.0}, "-1"), ({"share": 2.0}, "2.0")])
def test_a_setting_that_cannot_be_is_named(wrong, named):
    with pytest.raises(ValueError, match=named):
        XbtSettings(**wrong)


# The claims ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tiny() -> Pairs:
    return claims.data("tiny")


@pytest.mark.slow
def test_no_held_out_text_is_in_the_corpus(tiny):
    found = claims.claims(tiny, "tiny")[0].arms["old"].data(1000)
    held = {text.lower() for part in found[1:] for text in part["text"]}
    known = found.train.tables["corpus"]["text"]
    assert held and not held & {text.lower() for text in known}
    assert len(known) >= len(tiny.tables["corpus"]) - len(held)
    assert not {*found.train.item.tolist()} & {*found.test.item.tolist()}
    assert torch.allclose(found.test["image_new"].norm(dim=1), torch.ones(len(found.test)))


def test_a_text_asks_once_and_any_drawing_of_it_is_right():
    """Three texts, two drawings each, by hand."""
    e = torch.eye(4)
    data = Pairs.from_features(
        {"image_old": e[[0, 1, 2, 0, 1, 2]], "text_old": e[[0, 2, 1, 0, 2, 1]]},
        item=[0, 1, 2, 0, 1, 2])
    old = OldQueries(XbtSettings(towers={
        "image": "image_old", "text": "text_old"}), data)
    assert claims.answers(old, data, "image", 1).tolist() == [True, False, False] * 2
    assert claims.answers(old, data, "text", 2).tolist() == [True, False, False]


def test_without_the_gap_the_means_agree():
    splits = claims.embedded(pairs_of_models().split(0, (0.5, 0.25, 0.25)), PLAIN, 0)
    rows_ = claims.moved(splits._replace(test=splits.train))
    shift = (splits.train["image_new"] - splits.train["image_new"].mean(0)
             + splits.train["text_new"].mean(0))
    assert torch.allclose(rows_["image_new"], unit(shift))
    assert claims.moved(splits)["text_new"].equal(splits.test["text_new"])


PLAIN = claims.Scale(old=claims._clip("a"), new=claims._clip("b"))  # no heads


def pairs_of_models(n: int = 40) -> Pairs:
    data = pairs(n, 6, 5)
    return data.with_columns(text=[f"text {i}" for i in range(n)]).with_features(
        **{c: x.float() for c, x in data.columns.items()})
