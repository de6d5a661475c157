"""M3EL against slow loops written from the equations, its exact properties, and what its
claims measure."""

import math
from dataclasses import replace

import pytest
import torch

from alignkit.claims import m3el as claims
from alignkit.data import Lazy, Pairs, Tokens
from alignkit.evaluation import encode_pairs
from alignkit.methods.m3el import M3el, M3elSettings, _Cross, pooled, two_sided_contrast
from toys import random_tokens

SIDES = ("mention_", "")


# The shared tests' small data ---------------------------------------------------------
def toy_features(pairs: Pairs) -> Pairs:
    """Tokens of mentions: those of the entity with noise, as of another hand."""
    generator = torch.Generator().manual_seed(5)
    found = {}
    for name in ("text", "image"):
        values, mask = pairs[f"{name}_tokens"]
        noise = torch.randn(values.shape, generator=generator)
        found[f"mention_{name}_tokens"] = Tokens((values + 0.3 * noise) * mask[..., None], mask)
    return pairs.with_features(**found)


def toy_pairs(pairs: Pairs) -> Pairs:
    """Mentions of drawn pictures: the same picture upside down, a sentence of the caption."""
    turned = Lazy(list(range(len(pairs))), lambda row: pairs["image"][row].rotate(180),
                  version="turned")
    return pairs.with_columns(mention_image=turned,
                              mention_text=[f"we saw {text}" for text in pairs["text"]])


def rows(n: int = 5, d: int = 4, item=None) -> Pairs:
    """Random tokens of both sides in double precision, some places padded."""
    generator = torch.Generator().manual_seed(1)
    columns = {}
    for side in SIDES:
        for name in ("text", "image"):
            tokens = random_tokens(torch.randn(n, 4, generator=generator), d, generator)
            columns[f"{side}{name}_tokens"] = Tokens(tokens.values.double(), tokens.mask)
    return Pairs.make(columns, item=item)


def made(pairs: Pairs | None = None, **changes) -> M3el:
    torch.manual_seed(0)
    method = M3el(M3elSettings(**{"width": 3} | changes), pairs or rows()).double()
    with torch.no_grad():  # norms off their neutral start
        for p in method.parameters():
            p += 0.1 * torch.randn(p.shape, dtype=p.dtype)
    return method.eval()


# Slow loops ---------------------------------------------------------------------------
def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def linear(layer, x):
    return [dot(layer.weight[i], x) + layer.bias[i] for i in range(len(layer.weight))]


def normed(layer, x):
    mean = sum(x) / len(x)
    deviation = (sum((v - mean) ** 2 for v in x) / len(x) + layer.eps).sqrt()
    return [layer.weight[i] * (v - mean) / deviation + layer.bias[i] for i, v in enumerate(x)]


def softmax(x):
    total = sum(v.exp() for v in x)
    return [v.exp() / total for v in x]


def mix(weights, vectors):
    return [sum(w * v[k] for w, v in zip(weights, vectors, strict=True))
            for k in range(len(vectors[0]))]


def relu(x):
    return [v.clamp_min(0) for v in x]


def match(layer, p, q: list):
    weights = softmax([dot(p, linear(layer, one)) for one in q])
    return relu(linear(layer, mix(weights, q)))


def slow_pool(b: list, strength: float):
    found = []
    for k in range(len(b[0])):
        channel = [row[k] for row in b]
        heads = [dot(softmax([t * v for v in channel]), channel) for t in (2, 2.5, 3.5, 4.5)]
        heads.append(max(channel))
        found.append(sum(channel) / len(b) + strength * sum(heads) / 5)
    return found


class Slow:
    """One row's side of the equations, in lists."""

    def __init__(self, method: M3el, pairs: Pairs, side: str, row: int):
        self.raw, self.whole, self.tokens = {}, {}, {}
        for name in method.settings.modalities:
            values, mask = pairs[f"{side}{name}_tokens"]
            real = [list(v) for v, here in zip(values[row], mask[row]) if here]
            mean = [sum(v[k] for v in real) / len(real) for k in range(len(real[0]))]
            self.raw[name] = linear(method.whole[name], mean)
            self.whole[name] = normed(method.norm_whole[name], self.raw[name])
            if method.local or method.cross:
                self.tokens[name] = [normed(method.norm_token[name], linear(method.token[name], v))
                                     for v in real]
        self.context = {}
        if cross := method.cross:
            patches = [linear(cross.image, v) for v in self.tokens["image"]]
            self.context["cross"] = self.seen(cross, linear(cross.text, self.whole["text"]),
                                              patches)
            if cross.settings.cross == "both":
                words = [linear(cross.text, v) for v in self.tokens["text"]]
                whole = linear(cross.image, self.whole["image"])
                self.context["cross_back"] = self.seen(cross, whole, words)

    def seen(self, cross: _Cross, t, patches):
        a, strength = match(cross.match_by, t, patches), cross.settings.strength
        if cross.settings.pool == "official":
            b = [match(cross.match_by, p, [t]) for p in patches]
        else:
            b = [relu(linear(cross.match_by, p)) for p in patches]
        if cross.settings.cross == "both":
            fused = slow_pool([a, *b], strength)
        else:
            q = slow_pool(b, strength)
            both = zip(linear(cross.fuse, a), linear(cross.fuse, q))
            g = [1 / (1 + (-(x + y)).exp()) for x, y in both]
            fused = [w * x + (1 - w) * y for w, x, y in zip(g, a, q)]
        keep = dot(cross.gate.weight[0], t) + cross.gate.bias[0]
        return normed(cross.norm, [v * keep.tanh() + f for v, f in zip(t, fused)])


def slow_levels(method: M3el, m: Slow, e: Slow) -> list:
    found = []
    for name in method.settings.modalities:
        score = dot(m.whole[name], e.whole[name])
        if method.local:
            net = method.local[name]
            keys = [linear(net.key, v) for v in m.tokens[name]]
            values = [linear(net.value, v) for v in m.tokens[name]]
            context = [mix(softmax([dot(linear(net.query, h), k) / math.sqrt(len(h))
                                    for k in keys]), values) for h in e.tokens[name]]
            mean = [sum(v[k] for v in context) / len(context) for k in range(len(context[0]))]
            local = dot(linear(net.whole, e.whole[name]), normed(net.norm, mean))
            score = (score + local) / 2
        found.append(score)
    return found + [dot(m.context[name], e.context[name]) for name in m.context]


def slow_ce(scores: list, right: int, left_out=()):
    kept = [s for j, s in enumerate(scores) if j not in left_out]
    return sum(s.exp() for s in kept).log() - scores[right]


def slow_contrast(entity, mention, item, tau: float, intra):
    def length_one(x):
        return [v / dot(x, x).sqrt() for v in x]

    e, m, n = [length_one(x) for x in entity], [length_one(x) for x in mention], len(item)
    loss = 0
    for own, other in ((e, m), (m, e)):
        for i in range(n):
            again = [j for j in range(n) if j != i and item[j] == item[i]]
            logits = [dot(own[i], other[j]) / tau for j in range(n)]
            if intra is not None:
                logits += [intra * dot(own[i], own[j]) / tau * (j != i) for j in range(n)]
                again += [n + j for j in again]
            loss += slow_ce(logits, i, again) / n / 2
    return loss


def slow_loss(method: M3el, pairs: Pairs):
    s, item, n = method.settings, pairs.item.tolist(), len(pairs)
    m, e = ([Slow(method, pairs, side, i) for i in range(n)] for side in SIDES)
    levels = [[slow_levels(method, m[i], e[j]) for j in range(n)] for i in range(n)]
    total, count = 0, len(levels[0][0])
    for i in range(n):
        again = [j for j in range(n) if j != i and item[j] == item[i]]
        for k in range(count):
            total += slow_ce([levels[i][j][k] for j in range(n)], i, again) / n
        if count > 1:
            total += slow_ce([sum(levels[i][j]) / count for j in range(n)], i, again) / n
    if s.contrast:
        intra = s.intra if s.contrast == "intra" else None
        total += sum(slow_contrast([x.raw[k] for x in e], [x.raw[k] for x in m], item,
                                   s.temperature, intra)
                     for k in s.modalities) / len(s.modalities)
    return total


@pytest.mark.parametrize("changes", [
    {}, {"pool": "patches", "contrast": "inter"}, {"cross": "both", "strength": 0.6},
    {"cross": "both", "pool": "patches"}, {"local": False, "cross": "", "contrast": ""},
    {"modalities": ("text",), "cross": ""}], ids=str)
def test_the_loss_and_its_gradient_are_the_equations(changes):
    pairs = rows(4, item=[0, 1, 1, 2])
    method = made(pairs, temperature=0.3, **changes)
    fast, slow = sum(method(pairs.batch()).values()), slow_loss(method, pairs)
    assert fast.item() == pytest.approx(slow.item(), abs=1e-9)
    found = [torch.autograd.grad(x, list(method.parameters()))
             for x in (fast, slow)]
    for (name, _), mine, loops in zip(method.named_parameters(), *found, strict=True):
        assert torch.allclose(mine, loops, rtol=0, atol=1e-9), name


# Exact properties ---------------------------------------------------------------------
def sides(method: M3el, pairs: Pairs) -> tuple[dict, dict]:
    found = method.encode(pairs.batch())
    return found["mention"], found["entity"]


def test_the_official_pool_sees_no_picture():
    method, x = made().cross, torch.randn(2, 6, 3, dtype=torch.float64)
    one = Tokens(torch.randn(2, 1, 3, dtype=torch.float64), torch.ones(2, 1, dtype=torch.bool))
    real = torch.ones(2, 6, dtype=torch.bool)
    b = method.match(x, one)
    want = method.match_by(one.values).relu()
    assert torch.allclose(b, want.expand_as(b), rtol=0, atol=1e-12)
    for strength in (0.0, 1.0, 2.5):
        assert torch.allclose(pooled(Tokens(b, real), strength), (1 + strength) * want[:, 0],
                              rtol=0, atol=1e-12)
    # Of the patches themselves it is another for another picture.
    of = [pooled(Tokens(method.match_by(p).relu(), real), 1.0) for p in (x, x + 1)]
    assert not torch.allclose(*of)


def test_the_order_of_tokens_and_what_pads_change_no_score():
    pairs, method = rows(), made(cross="both", pool="patches")
    want = method.score(*sides(method, pairs))
    turned, dirty = {}, {}
    for name in claims.TOKENS:
        values, mask = pairs[name]
        turned[name] = Tokens(values.flip(1), mask.flip(1))
        dirty[name] = Tokens(torch.where(mask[..., None], values, 7.0), mask)
    for changed in (turned, dirty):
        found = method.score(*sides(method, pairs.with_features(**changed)))
        assert torch.allclose(found, want, rtol=0, atol=1e-10)


def test_equal_entities_get_equal_scores_and_one_pair_has_no_loss():
    method, pairs = made(), rows().select([0, 1, 1])
    scores = method.score(*sides(method, replace(pairs, ids=["a", "b", "c"])))
    assert torch.allclose(scores[:, 1], scores[:, 2], rtol=0, atol=1e-12)
    losses = method(rows().select([0]).batch())
    assert all(loss.item() == pytest.approx(0, abs=1e-12) for name, loss in losses.items()
               if name != "contrast_loss")


def test_contrast_is_the_same_from_both_sides_and_counts_itself_as_one():
    e, m = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    item = torch.arange(5)
    for intra in (None, 0.8):
        assert two_sided_contrast(e, m, item, 0.2, intra).item() == pytest.approx(
            two_sided_contrast(m, e, item, 0.2, intra).item(), abs=1e-12)
    # With weight 0 the block is B logits of 0: InfoNCE with B more in the denominator.
    cosines = torch.nn.functional.normalize(e) @ torch.nn.functional.normalize(m).T / 0.2
    want = sum(((x.exp().sum(1) + 5).log() - x.diagonal()).mean()
               for x in (cosines, cosines.T)) / 2
    assert two_sided_contrast(e, m, item, 0.2, 0.0).item() == pytest.approx(want.item())
    assert two_sided_contrast(e, m, item, 0.2) < want


def test_an_entity_that_is_there_twice_is_no_negative():
    pairs = rows(4, item=[0, 1, 1, 2])
    method = made(pairs, temperature=0.3)
    scores = method.score(*sides(method, pairs)).detach()
    logits = scores.clone()
    logits[1, 2] = logits[2, 1] = -torch.inf
    want = torch.nn.functional.cross_entropy(logits, torch.arange(4))
    assert method(pairs.batch())["score_loss"].item() == pytest.approx(want.item())


def test_settings_refuse():
    for wrong, said in (({"cross": "back"}, "cross must be"), ({"pool": "mean"}, "pool must"),
                        ({"contrast": "all"}, "contrast must"),
                        ({"modalities": ("text",)}, "both for a cross"),
                        ({"modalities": ()}, "modalities must"), ({"temperature": 0}, "above 0")):
        with pytest.raises(ValueError, match=said):
            M3elSettings(**wrong)


# The claims' measures and controls ----------------------------------------------------
def test_ranks_are_among_all_entities():
    pairs = rows(6, item=[0, 0, 1, 2, 3, 3])
    known = pairs.select(pairs.first_of_item())
    method = made(pairs)
    part = replace(pairs.select([1, 4]), tables={"entities": known})
    scores = method.score(encode_pairs(method, part, ["mention"])["mention"],
                          encode_pairs(method, known, ["entity"])["entity"])
    want = [1 + int((row >= row[right] - 1e-6).sum()) - 1
            for row, right in zip(scores, (0, 3))]
    assert claims.rank_of(method, part).tolist() == want
    assert claims.linked(method, part) == sum(r == 1 for r in want) / 2


def test_missing_pictures_are_zeros_and_the_control_moves_whole_mentions():
    pairs = rows(20, item=[k // 2 for k in range(20)])
    parts = pairs.split(0, (0.4, 0.3, 0.3))
    gone = claims.without_pictures(parts, 0.5, 0)
    for part, was in zip(gone, parts, strict=True):
        here = part.present["mention_image_tokens"]
        assert int((~here).sum()) == round(len(part) / 2)
        values = part["mention_image_tokens"].values
        assert (values[~here] == 0).all()
        assert torch.equal(values[here], was["mention_image_tokens"].values[here])
        assert torch.equal(part["image_tokens"].values, was["image_tokens"].values)
    moved = claims.others_mentions(parts, 3)
    for part, was in zip(moved, parts, strict=True):
        at = [next(k for k in range(len(was)) if torch.equal(
            was["mention_text_tokens"].values[k], row)) for row in
            part["mention_text_tokens"].values]
        assert (was.item[at] != was.item).all() and torch.equal(part.item, was.item)
        assert torch.equal(part["mention_image_tokens"].values,
                           was["mention_image_tokens"].values[at])


def test_rows_without_tokens_get_one_of_zeros():
    empty = Tokens(torch.zeros(2, 3, 1), torch.tensor([[True, True, False], [False] * 3]))
    assert claims.never_empty(empty).mask.sum(1).tolist() == [2, 1]


def test_an_entity_is_crowded_that_is_near_another():
    pairs = rows(8)
    same = {name: Tokens(*(torch.cat([x[:2], x[:2], x[4:]]) for x in pairs[name]))
            for name in ("text_tokens", "image_tokens")}
    assert claims.crowded(pairs.with_features(**same))[:4].all()
