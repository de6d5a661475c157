"""UMAEA against slow loops, its exact properties, and the claims' data."""

from dataclasses import replace

import pytest
import torch
from test_graph import loop as slow_attention
from torch.nn.functional import elu, gelu

from alignkit.claims import umaea as claims
from alignkit.claims.follow_ups.umaea import Zeroed
from alignkit.data import Lazy, Pairs
from alignkit.data.emoji_graphs import with_word_features
from alignkit.methods.umaea import (
    ALIGN, COLUMNS, IMAGINE, REFINE, SIDES, Umaea, UmaeaSettings, alike_loss, icl,
)  # fmt: skip
from alignkit.training import Budget, fit

ENDS = ("", "_other")
SMALL = {"width": 3, "hidden": 4, "temperature": 0.4, "imagine": 2, "refine": 2}


# The shared tests' small data ---------------------------------------------------------
def toy_features(pairs: Pairs) -> Pairs:
    """Two graphs of the same rows: pictures of two hands, and words of two languages."""
    generator = torch.Generator().manual_seed(5)
    picture = pairs["image_features"]
    other = picture + 0.3 * torch.randn(picture.shape, generator=generator)
    hidden = {"hidden_features": picture.clone(), "hidden_other_features": other.clone()}
    pairs = with_words(pairs).with_columns(image_other=pairs["image"])
    return with_word_features(pairs.with_features(image_features=picture, **hidden,
                                                image_other_features=other), most=8)


def toy_pairs(pairs: Pairs) -> Pairs:
    """One row a picture, of twenty different ones, for the encoder reads equal ones once; the
    other graph has it upside down, and its words turned round."""
    pairs = pairs.select(pairs.first_of_item())
    of, drawn = [row % 20 for row in range(len(pairs))], pairs["image"]
    pairs = pairs.with_columns(image=Lazy(of, lambda row: drawn[row], version="20"))
    turned = Lazy(of, lambda row: drawn[row].rotate(180), version="turned")
    return with_words(pairs.with_columns(image_other=turned))


def with_words(pairs: Pairs) -> Pairs:
    """Eight words that two rows share, one of some rows, and one of many."""
    said = [[f"w{k}x{i // 2}" for k in range(8)] + [f"c{i % 30}", f"d{i % 3}"]
            for i in range(len(pairs))]
    return pairs.with_columns(text=[", ".join(words) for words in said],
                              text_other=[", ".join(w[::-1] for w in words) for words in said])


def rows(n: int = 4, nodes: int = 6, missing: bool = True) -> Pairs:
    """Linked entities of two graphs of six nodes, in double precision."""
    generator = torch.Generator().manual_seed(1)
    columns = {name.format(end): torch.randn(n, 3 + k, generator=generator, dtype=torch.float64)
               for k, name in enumerate([c for c in COLUMNS.values() if c]) for end in ENDS}
    edges = torch.tensor([[0, 1, 1, 2, 4, 5], [1, 0, 2, 1, 5, 4]])
    present = {"image_features": torch.arange(n) != 1, "image_other_features": torch.arange(n) > 0}
    return Pairs.make(columns, present=present if missing else {},
                      labels={"node": torch.arange(n), "node_other": (torch.arange(n) + 2) % nodes},
                      tables={"nodes": (nodes, nodes), "edges": edges,
                              "edges_other": edges.flip(0).flip(1)})


def made(pairs: Pairs | None = None, stage: int = ALIGN, **changes) -> Umaea:
    torch.manual_seed(0)
    method = Umaea(UmaeaSettings(**SMALL | changes), pairs or rows()).double()
    with torch.no_grad():  # shares, norms and balances off their neutral start
        for p in method.parameters():
            p += 0.2 * torch.randn(p.shape, dtype=p.dtype)
    method.stage.fill_(stage)
    return method.eval()


# Slow loops ---------------------------------------------------------------------------
def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def linear(layer, x):
    return torch.stack([dot(w, x) + b for w, b in zip(layer.weight, layer.bias)])


def unit_of(x):
    return x / dot(x, x).sqrt()


def softmax(x):
    total = sum(v.exp() for v in x)
    return torch.stack([v.exp() / total for v in x])


def normed(layer, x):
    mean = sum(x) / len(x)
    deviation = (sum((v - mean) ** 2 for v in x) / len(x) + layer.eps).sqrt()
    return layer.weight * (x - mean) / deviation + layer.bias


def slow_kl(target, source):
    p, q = softmax(target), softmax(source)
    return sum(a * (a / b).log() for a, b in zip(p, q, strict=True))


def slow_icl(a, b, tau, weight=None):
    total, n = 0, len(a)
    for own, other in ((a, b), (b, a)):
        own, other = [unit_of(x) for x in own], [unit_of(x) for x in other]
        for i in range(n):
            below = sum((dot(own[i], y) / tau).exp() for y in other) + sum(
                (dot(own[i], own[j]) / tau).exp() for j in range(n) if j != i)
            each = below.log() - dot(own[i], other[i]) / tau
            total = total + each * (1 if weight is None else weight[i]) / n / 2
    return total


class Slow:
    """One entity's vectors, from the equations."""

    def __init__(self, method: Umaea, pairs: Pairs, side: str, row: int, nodes):
        s, end = method.settings, SIDES[side]
        self.here = bool(pairs.present[f"image{end}_features"][row])
        node = int(pairs.labels[f"node{end}"][row]) + 6 * (side == "other")
        self.e = {}
        for name in s.modalities:
            if name == "graph":
                self.e[name] = nodes[node]
            else:
                x = pairs[COLUMNS[name].format(end)][row]
                self.e[name] = linear(method.heads[name], unit_of(x) if name == "image" else x)
        if s.imagine and method.stage > ALIGN:
            self.imagine(method.imagination)
        n = len(self.e)
        part, each = softmax(method.share), [unit_of(x) for x in self.e.values()]
        self.fixed = unit_of(torch.cat([w * x for w, x in zip(part, each)]))
        if s.scales:
            self.late, attention = self.transformed(method.transformer)
            heard = [sum(a[m] for a in attention) / n ** 0.5 for m in range(n)]
            self.weights = softmax(heard)
            self.dynamic = torch.cat([w * x for w, x in zip(self.weights, each)])

    def imagine(self, net):
        self.known = unit_of(torch.cat([self.e[m] for m in ("graph", "relations", "attributes")]))
        both = linear(net.encoder[2], linear(net.encoder[0], self.known).clamp_min(0))
        mean, t = both[:3], both[3:]
        y = mean * t.exp() ** 0.5
        self.imagined = unit_of(y)
        self.again = unit_of(linear(net.decoder[2], linear(net.decoder[0], y).clamp_min(0))
                             .clamp_min(0))
        self.prior = sum(t.exp() + mean ** 2 - 1 - t) / 2 / 9
        self.seen = self.e["image"]
        if not self.here:
            self.e["image"] = self.imagined

    def transformed(self, net):
        x = list(self.e.values())
        q, k, v = ([linear(layer, one) for one in x] for layer in (net.query, net.key, net.value))
        attention = [softmax([dot(a, b) / len(a) ** 0.5 for b in k]) for a in q]
        late = []
        for one, a in zip(x, attention):
            heard = sum(w * value for w, value in zip(a, v))
            first = normed(net.first, one + linear(net.out, heard))
            inner = linear(net.inner[2], gelu(linear(net.inner[0], first)))
            late.append(normed(net.second, first + inner))
        return late, attention


def slow_loss(method: Umaea, pairs: Pairs):
    s, n, tau = method.settings, len(pairs), method.settings.temperature
    nodes = method.nodes
    for k, layer in enumerate(method.graph):
        nodes = slow_attention(layer, nodes if k == 0 else elu(nodes), method.edges)
    a, b = ([Slow(method, pairs, side, i, nodes) for i in range(n)] for side in SIDES)

    def of(get, weight=None):
        return slow_icl([get(x) for x in a], [get(x) for x in b], tau, weight)

    if not s.scales:
        return of(lambda x: x.fixed)
    loss = [of(lambda x: x.dynamic) + of(lambda x: x.fixed), 0, 0]
    for m, name in enumerate(s.modalities):
        trust = [len(s.modalities) * min(x.weights[m], y.weights[m]) for x, y in zip(a, b)]
        v = method.variance[m]
        loss[1] = loss[1] + (-v).exp() * of(lambda x: x.e[name], trust) + v
        loss[2] = loss[2] + (-v).exp() * of(lambda x: x.late[m]) + v
        if name == "image" and method.stage > ALIGN:
            loss[1] = loss[1] + of(lambda x: x.imagined, trust)
    total = sum(x / c ** 2 / 2 + (1 + c ** 2).log() for x, c in zip(loss, method.balance))
    if method.stage == IMAGINE:
        seen = [x for x in a + b if x.here]
        total = total + 10 * s.width * sum(
            slow_kl(x.e["image"], x.imagined) + slow_kl(x.known, x.again) for x in seen) / len(seen)
        total = total + 300 * slow_alike(a, b) + 1500 * sum(x.prior for x in a + b) / 2 / n
    return total


def slow_alike(a, b):
    total, n = 0, len(a)
    for own, other in ((a, b), (b, a)):
        for i in range(n):
            rows = []
            for get in (lambda x: x.known.detach(), lambda x: x.imagined):
                mine = unit_of(get(own[i]))
                rows.append([dot(mine, unit_of(get(y))) for y in other] + [
                    dot(mine, unit_of(get(own[j]))) for j in range(n) if j != i])
            total = total + slow_kl(*rows) / (n * 2 * n) / 2  # a mean over 2n, itself too
    return total


@pytest.mark.parametrize("stage", [ALIGN, IMAGINE, REFINE])
@pytest.mark.parametrize("changes", [{}, {"scales": False, "imagine": 0, "refine": 0},
                                     {"modalities": ("image", "graph"), "imagine": 0,
                                      "refine": 0}], ids=str)
def test_the_loss_and_its_gradient_are_the_equations(changes, stage):
    if changes and stage != ALIGN:
        return  # stages are imagination's
    pairs = rows()
    method = made(pairs, stage, **changes)
    fast, slow = sum(method(pairs.batch()).values()), slow_loss(method, pairs)
    assert fast.item() == pytest.approx(slow.item(), abs=1e-9)
    found = [torch.autograd.grad(x, list(method.parameters()), allow_unused=True)
             for x in (fast, slow)]
    for (name, p), mine, loops in zip(method.named_parameters(), *found, strict=True):
        mine, loops = (torch.zeros_like(p) if g is None else g for g in (mine, loops))
        assert torch.allclose(mine, loops, rtol=1e-9, atol=1e-9), name


# Exact properties ---------------------------------------------------------------------
def scores_of(method, pairs):
    out = method.encode(pairs.batch())
    return method.score(out["entity"], out["other"])


def test_with_no_picture_missing_imagination_changes_no_score():
    for missing in (False, True):
        pairs = rows(missing=missing)
        method = made(pairs)
        before = scores_of(method, pairs)
        method.stage.fill_(REFINE)
        assert torch.equal(scores_of(method, pairs), before) != missing


def test_a_common_factor_one_modality_and_one_pair():
    pairs = rows()
    method = made(pairs)
    before = scores_of(method, pairs)
    with torch.no_grad():
        method.share += 2.0  # a common factor before the softmax, and none after it
    assert torch.allclose(scores_of(method, pairs), before, rtol=0, atol=1e-12)
    method = made(pairs, modalities=("image",), imagine=0, refine=0)
    out = method.encode(pairs.batch())["entity"]
    assert torch.equal(out["weights"], torch.ones(4, 1, dtype=torch.float64))
    assert torch.allclose(out["fixed"], torch.nn.functional.normalize(out["image"]))
    a, b = pairs["image_features"][:1], pairs["image_other_features"][:1]
    assert icl(a, b, 0.1).item() == 0
    assert torch.equal(icl(a, b, 0.1, torch.ones(1)), icl(a, b, 0.1))


def test_to_exchange_the_graphs_changes_no_loss():
    generator = torch.Generator().manual_seed(2)
    a, b, c, d = torch.randn(4, 5, 3, generator=generator, dtype=torch.float64)
    weight = torch.rand(5, generator=generator, dtype=torch.float64)
    assert icl(a, b, 0.2, weight).item() == pytest.approx(icl(b, a, 0.2, weight).item())
    assert alike_loss((a, b), (c, d)).item() == pytest.approx(
        alike_loss((b, a), (d, c)).item())
    assert alike_loss((a, b), (a, b)).item() == pytest.approx(0, abs=1e-12)
    method = made()
    out = method.encode(rows().batch())
    swapped = {"entity": out["other"], "other": out["entity"]}
    for name, loss in method.losses(out, rows().batch(), 0).items():
        assert loss.item() == pytest.approx(method.losses(swapped, {}, 0)[name].item()), name


def test_no_mean_and_no_variance_cost_nothing_and_imagine_nothing():
    method = made(stage=IMAGINE)
    with torch.no_grad():
        method.imagination.encoder[2].weight.zero_()
        method.imagination.encoder[2].bias.zero_()
    found = method.imagination(torch.randn(2, 9, dtype=torch.float64))
    assert (found["prior"] == 0).all() and (found["imagined"] == 0).all()
    method.imagination.train()  # the noise is there all the same
    assert (method.imagination(torch.randn(2, 9, dtype=torch.float64))["imagined"] != 0).all()


def test_the_follow_ups_baseline_has_zeros_in_the_holes_alone():
    pairs = rows()
    method = made(pairs, stage=REFINE)
    zeroed = Zeroed(method.settings, pairs).double().eval()
    zeroed.load_state_dict(method.state_dict())
    out, usual = zeroed.encode(pairs.batch()), method.encode(pairs.batch())
    for side, end in SIDES.items():
        here = pairs.present[f"image{end}_features"]
        assert not out[side]["imagined"].any() and not out[side]["image"][~here].any()
        assert usual[side]["image"][~here].all()
        for name in ("image", "fixed"):
            assert torch.equal(out[side][name][here], usual[side][name][here])
    method.stage.fill_(ALIGN)
    zeroed.stage.fill_(ALIGN)
    assert torch.equal(scores_of(zeroed, pairs), scores_of(method, pairs))


def test_each_stage_trains_what_it_says():
    pairs = rows()
    method, seen = made(pairs), {}
    enter = method.enter

    def note(rows, stage):
        seen[stage] = {k: v.clone() for k, v in method.named_parameters()}
        enter(rows, stage)

    method.enter = note
    fit(method, pairs, Budget(steps=2, batch_size=4, lr=1e-2))
    seen[3] = dict(method.named_parameters())
    moved = [{k.split(".")[0] + "." * ("heads" in k) + (k.split(".")[1] if "heads" in k else "")
              for k in seen[0] if not torch.equal(seen[s][k], seen[s + 1][k])} - {"balance"}
             for s in range(3)]
    assert moved[IMAGINE] == {"imagination"}
    assert moved[REFINE] == {"heads.image", "share", "transformer", "variance"}
    assert moved[ALIGN] == moved[REFINE] | {"heads.attributes", "heads.relations", "nodes",
                                            "graph"}
    assert (method.stage == REFINE) and (seen[REFINE]["balance"] == 1).all()


def test_settings_refuse():
    for wrong, said in (({"modalities": ("sound",)}, "some of"), ({"imagine": 0}, "go together"),
                        ({"scales": False}, "need scales"), ({"temperature": 0.0}, "above 0"),
                        ({"modalities": ("graph",), "imagine": 0, "refine": 0}, "some of")):
        with pytest.raises(ValueError, match=said):
            UmaeaSettings(**SMALL | wrong)


# The claims' data, figures and controls -----------------------------------------------
def whole(n: int = 40) -> Pairs:
    pairs = rows(n, n, missing=False)
    hidden = {h: pairs[p].clone() for h, p in zip(claims.HIDDEN, claims.PICTURES, strict=True)}
    return pairs.with_features(**hidden)


def test_missing_pictures_are_noise_like_the_known_or_zeros():
    pairs = whole()
    for fill in ("noise", "zeros"):
        gone = claims.with_missing(pairs, 0.3, 5, fill)
        known = torch.cat([pairs[p][gone.present[p]] for p in claims.PICTURES])
        for picture, hidden in zip(claims.PICTURES, claims.HIDDEN, strict=True):
            here = gone.present[picture]
            assert int(here.sum()) == 12 and gone.present[hidden].all()
            assert torch.equal(gone[picture][here], pairs[picture][here])
            assert torch.equal(gone[hidden], pairs[hidden])
            if fill == "zeros":
                assert (gone[picture][~here] == 0).all()
            else:  # 28 draws of each channel
                far = (gone[picture][~here].mean(0) - known.mean(0)) / known.std(0)
                assert (far.abs() < 1).all() and not torch.equal(*gone[picture][~here][:2])
        assert not torch.equal(*(gone.present[p] for p in claims.PICTURES))
    again = claims.with_missing(pairs, 0.3, 5)
    assert torch.equal(again[claims.PICTURES[0]], claims.with_missing(
        pairs, 0.3, 5)[claims.PICTURES[0]])


def test_hit_at_1_is_of_both_directions_and_ties_lose():
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.7, 0.3], [0.4, 0.7, 0.5]])
    # Rows: right, wrong, wrong. Columns: right, a tie, right. 1 / rank: 1, 1/2, 1/2, 1, 1/2, 1.
    found = claims.found_by(scores)
    assert found == {"hit@1": 0.5, "mrr": pytest.approx(4.5 / 6)}


def test_a_stand_in_that_is_the_picture_has_cosine_1():
    gone = claims.with_missing(whole(), 0.5, 5)
    method = made(gone, modalities=("image", "graph"), imagine=0, refine=0)

    def cosine(pairs):
        return claims.stand_in(claims.Trained(method, claims.Splits(pairs, pairs, pairs), None))

    filled = {p: gone[h] for p, h in zip(claims.PICTURES, claims.HIDDEN, strict=True)}
    assert cosine(gone.with_features(**filled)) == pytest.approx(1)
    assert abs(cosine(gone)) < 0.5
    filled = {p: 0 * x for p, x in filled.items()}
    assert -1 < cosine(gone.with_features(**filled)) < 0.99


def test_controls_move_what_they_say():
    splits = claims.with_missing(whole(60), 0.5, 1).split(0, (0.4, 0.2, 0.4))
    linked, seen = claims.others_links(splits, 3), claims.others_pictures(splits, 3)
    for was, by_link, by_picture in zip(splits, linked, seen, strict=True):
        node = by_link.labels["node_other"]
        assert (node != was.labels["node_other"]).all()
        assert {*node.tolist()} == {*was.labels["node_other"].tolist()}
        assert torch.equal(by_link.labels["node"], was.labels["node"])
        at = [was.labels["node_other"].tolist().index(k) for k in node.tolist()]
        for name in (COLUMNS[k].format("_other") for k in ("image", "attributes", "relations")):
            assert torch.equal(by_link[name], was[name][at])  # its counterpart moves as a whole
        assert torch.equal(by_link.present["image_other_features"],
                           was.present["image_other_features"][at])
        assert torch.equal(by_link["image_features"], was["image_features"])
        for picture, hidden in zip(claims.PICTURES, claims.HIDDEN, strict=True):
            same = [torch.equal(by_picture[hidden][i], was[hidden][i]) for i in range(len(was))]
            assert not any(same)
            here = by_picture.present[picture]
            assert torch.equal(by_picture[picture][here], by_picture[hidden][here])
        assert torch.equal(by_picture["text_relations"], was["text_relations"])
        assert torch.equal(by_picture.labels["node_other"], was.labels["node_other"])


def test_arms_take_as_many_steps_and_rows_must_be_things():
    found = claims.claims(claims.data("tiny"), "tiny")
    for claim in found:
        for name, arm in claim.arms.items():
            method = arm.build(arm.data(0))
            steps = sum(stage.steps or claim.budget.steps for stage in method.stages()
                        if not stage.solve) if name.startswith("umaea") else (
                            claim.budgets[name]["steps"])
            assert steps == 8, name
    twice = claims.data("tiny")
    item = twice.item.clamp(min=1)  # two rows of one thing
    twice = replace(twice, item=item, group=item)
    with pytest.raises(ValueError, match="of its own"):
        claims.data("tiny", twice)
