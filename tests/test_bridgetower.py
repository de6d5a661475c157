"""BridgeTower as a method: the layers over both in plain loops, bridges that add nothing, its
two ways through the layers, the losses of all five tasks, and its claims on scenes."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from alignkit.claims import Runs
from alignkit.claims import bridgetower as claims_file
from alignkit.data import Pairs, Tokens
from alignkit.data.questions import every_question
from alignkit.data.scenes import boxes_of, scenes
from alignkit.methods.bridgetower import BridgeTower, BridgeTowerSettings

ASKED = ["what is on the red disc", "what is on the blue square", "what is it"]
TAPS = 6  # of each side, as many as at full scale
LAST = {"image_taps": ("image_tap2", None, None), "text_taps": ("text_tap2", None, None)}


def toy_features(pairs: Pairs) -> Pairs:
    """Random taps of both sides, questions, and answers."""
    g, n = torch.Generator().manual_seed(1), len(pairs)
    made = {}
    for side, most, widths in (("image", 4, (5, 6, 7, 7, 7, 7)), ("text", 6, (6,) * TAPS)):
        real = torch.arange(most) < torch.randint(2, most + 1, (n, 1), generator=g)
        for k, width in enumerate(widths):
            made[f"{side}_tap{k}"] = Tokens(
                torch.randn(n, most, width, generator=g) * real[:, :, None], real)
    made = pairs.with_features(text=[ASKED[i % 3] for i in range(n)], **made)
    return replace(made, labels={**made.labels, "answer": torch.arange(n) % 5})


def rows(n: int = 6) -> Pairs:
    return toy_features(Pairs.make({"text": ["a"] * n}, item=[i // 2 for i in range(n)]))


def made(pairs: Pairs, **settings) -> BridgeTower:
    torch.manual_seed(0)
    return BridgeTower(BridgeTowerSettings(**{
        "width": 8, "heads": 2, "answers": 5, **settings}), pairs).double().eval()


def double(x):
    if isinstance(x, dict):
        return {k: double(v) for k, v in x.items()}
    if isinstance(x, Tokens):
        return Tokens(x.values.double() if x.values.is_floating_point() else x.values, x.mask)
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def batch_of(method, pairs):
    return double(method.collate(pairs, torch.Generator().manual_seed(0)))


# The layers over both, row by row and word by word -------------------------------------
def norm(x, layer):
    x = x - x.mean()
    return x / (x.square().mean() + layer.eps).sqrt() * layer.weight + layer.bias


def attend(x, ys, attention):
    """One query [d] over the rows of ys."""
    d, heads = len(x), attention.num_heads
    w, b = attention.in_proj_weight.split(d), attention.in_proj_bias.split(d)
    q, found = w[0] @ x + b[0], []
    for h in range(heads):
        at = slice(h * d // heads, (h + 1) * d // heads)
        keys = [(w[1] @ y + b[1])[at] for y in ys]
        weights = [(q[at] @ k / math.sqrt(d / heads)).exp() for k in keys]
        found.append(sum(a * (w[2] @ y + b[2])[at] for a, y in zip(weights, ys)) / sum(weights))
    return attention.out_proj(torch.cat(found))


def layer_by_hand(xs, ys, layer):
    """xs: rows of one stream, ys of the other as it came in."""
    out = []
    for x in xs:
        x = norm(x + attend(x, xs, layer.self_attn), layer.norm1)
        x = norm(x + attend(x, ys, layer.multihead_attn), layer.norm2)
        out.append(norm(x + layer.linear2(F.gelu(layer.linear1(x))), layer.norm3))
    return out


def by_hand(method, batch, row):
    """c of one row: the towers' layers enter one after the other, as they come."""
    last = {"text": None, "image": None}
    for k, both in enumerate(method.layers):
        read = {}
        for kind, side in enumerate(("text", "image")):
            column = method.taps[side][k]
            if column is None:
                read[side] = last[side]
                continue
            values, mask = batch[column]
            mean, scale = (getattr(method, f"{w}_{column}") for w in ("mean", "scale"))
            project = method.project[f"{side}{values.shape[2]}"]
            new = [project.weight @ ((v - mean) / scale) + project.bias
                   + method.kind.weight[kind] for v in values[row, mask[row]]]
            if last[side] is not None:
                new = [a + b for a, b in zip(new, last[side])]
            read[side] = [norm(v, method.norms[f"{side}{k}"]) for v in new]
        last = {"text": layer_by_hand(read["text"], read["image"], both.first),
                "image": layer_by_hand(read["image"], read["text"], both.second)}
    return torch.cat([torch.tanh(method.pool[s].weight @ last[s][0] + method.pool[s].bias)
                      for s in last])


@pytest.mark.parametrize("settings", [{}, LAST])
def test_it_is_the_equations_in_value_and_gradient(settings):
    pairs = rows(3)
    method = made(pairs, **settings)
    batch = batch_of(method, pairs)
    fast, slow = method(batch)["answers_loss"], 0.0
    for i in range(3):
        c = by_hand(method, batch, i)
        for a, logit in enumerate(method.answer_head(c)):
            p = 1 / (1 + (-logit).exp())
            slow = slow - (p if batch["answer"][i] == a else 1 - p).log() / 3
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=0)
    weights = [*method.parameters()]
    for a, b in zip(*(torch.autograd.grad(x, weights, allow_unused=True) for x in (fast, slow))):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def taps_of(method, batch):
    out = method.encode(batch)
    return [method.entering(side, out[side]) for side in ("text", "image")]


def test_bridges_whose_taps_are_zero_are_no_bridges():
    pairs = rows()
    method = made(pairs)
    words, regions = taps_of(method, batch_of(method, pairs))

    def only_first(taps, rest):
        return [taps[0], *(rest(t) for t in taps[1:])]

    def zero(tap):
        return Tokens(torch.zeros_like(tap.values), tap.mask)

    empty = method.together(*(only_first(t, zero) for t in (words, regions)))
    without = method.together(*(only_first(t, lambda tap: None) for t in (words, regions)))
    full = method.together(words, regions)
    for a, b, c in zip(empty, without, full):
        torch.testing.assert_close(a.values, b.values, rtol=0, atol=1e-9)
        assert (a.values - c.values).abs().max() > 1e-3


def test_what_stands_at_padding_changes_nothing_and_a_row_is_alone():
    pairs = rows()
    method = made(pairs)
    batch = batch_of(method, pairs)
    spoilt = {k: Tokens(v.values + 9 * ~v.mask[:, :, None], v.mask) if isinstance(v, Tokens)
              else v for k, v in batch.items()}
    logits = method.answer_logits(batch)
    torch.testing.assert_close(method.answer_logits(spoilt), logits)
    one = {k: Tokens(*(x[2:3] for x in v)) if isinstance(v, Tokens) else v[2:3]
           for k, v in batch.items()}
    torch.testing.assert_close(method.answer_logits(one), logits[2:3])


def test_the_bridges_cost_two_rows_a_layer_and_side():
    pairs = rows()
    extra = sum(p.numel() for p in made(pairs).norms.parameters()) - sum(
        p.numel() for p in made(pairs, **LAST).norms.parameters())
    assert extra == 2 * 2 * 2 * 8  # two sides, two bridges, scale and shift of width 8
    wide = Tokens(torch.zeros(2, 1, 768), torch.ones(2, 1, dtype=torch.bool))
    base = Pairs.make({"text": ["a"] * 2}).with_features(
        **{f"{side}_tap{k}": wide for side in ("image", "text") for k in range(6)})
    with torch.device("meta"):
        norms = [sum(p.numel() for p in BridgeTower(BridgeTowerSettings(
            *(tuple(f"{side}_tap{k}" for k in range(6)) for side in ("image", "text")),
            width=768, heads=12), base).norms.parameters())]
    assert norms == [18_432]  # as the paper says


def test_layers_of_one_width_share_a_projection():
    method = made(rows())
    assert {*method.project} == {"text6", "image5", "image6", "image7"}


def test_mixed_begins_as_the_mean_and_ends_in_the_first_layer():
    pairs = rows()
    method, plain = made(pairs, mixed=True), made(pairs)
    plain.load_state_dict(method.state_dict(), strict=False)
    batch = batch_of(method, pairs)
    words, regions = taps_of(plain, batch)
    mixed = taps_of(method, batch)
    for taps, mean in zip((words, regions), mixed):
        assert mean[1] is None and mean[2] is None
        torch.testing.assert_close(mean[0].values, sum(t.values for t in taps) / 3)
    assert {*method.norms} == {"text0", "image0"}


# The other tasks -----------------------------------------------------------------------
def test_the_contrast_and_the_match_with_strangers():
    pairs = rows(8)
    method = made(pairs, tasks=("contrast", "hard-match"))
    batch = batch_of(method, pairs)
    out = method.encode(batch)
    scores = method.temperature() * out["image"]["first"] @ out["text"]["first"].T
    same = (pairs.item[:, None] == pairs.item).double()
    right = same / same.sum(1, keepdim=True)
    want = -((right * scores.log_softmax(1)).sum(1).mean()
             + (right * scores.T.log_softmax(1)).sum(1).mean()) / 2
    torch.manual_seed(3)
    found = method(batch)
    torch.testing.assert_close(found["contrast_loss"], want, rtol=1e-9, atol=0)
    assert torch.isfinite(found["hard_match_loss"])
    # Strangers of another item: with all of one item there is none.
    batch["item"][:] = 0
    with pytest.raises(ValueError, match="no negative"):
        method(batch)


def test_half_of_the_texts_get_another_picture(monkeypatch):
    pairs = replace(rows(8), item=torch.arange(8))
    method = made(pairs, tasks=("match",))
    batch, asked = batch_of(method, pairs), []
    entropy = F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda x, y: asked.append(y) or entropy(x, y))
    method(batch)
    assert asked[0].tolist().count(1) == 4 and len(asked[0]) == 8


def test_masked_words_are_read_off_the_masked_text():
    pairs = rows()
    hidden = {f"masked_text_tap{k}": pairs[f"text_tap{k}"] for k in range(3)}
    asked = torch.zeros_like(pairs["text_tap0"].mask)
    asked[:, 1] = True
    pairs = pairs.with_features(
        **hidden, masked_words=Tokens(torch.randint(7, asked.shape), asked))
    method = made(pairs, tasks=("words", "match"), words=7)
    batch = batch_of(method, pairs)
    found = method(batch)
    assert found.keys() == {"words_loss", "match_loss"}
    c, x = method.fused(*method.encode(batch).values())
    logits = method.word_head(x.values[:, 1])
    want = F.cross_entropy(logits, pairs["masked_words"].values[:, 1])
    torch.testing.assert_close(found["words_loss"], want)


def test_the_nearest_are_read_together_and_come_first():
    pairs = rows()
    method = made(pairs, top=2)
    out = method.encode(batch_of(method, pairs))
    image, text = out["image"], out["text"]
    for query, gallery in ((image, text), (text, image)):
        coarse = query["first"] @ gallery["first"].T
        scores = method.score(query, gallery)
        assert torch.equal(scores.topk(2).indices.sort().values,
                           coarse.topk(2).indices.sort().values)
        assert (scores >= 2).sum() == 12
        rest = scores < 2
        torch.testing.assert_close(scores[rest], coarse[rest])
    c, _ = method.fused(text, image)
    match = 2 + method.match_head(c).softmax(1)[:, 1]
    own = method.score(text, image).diagonal()
    assert all(a < 2 or torch.isclose(a, b) for a, b in zip(own, match))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="as many"):
        made(rows(), image_taps=("image_tap0",))
    with pytest.raises(ValueError, match="the first of each"):
        made(rows(), image_taps=(None, "image_tap0", None))


# The claims ----------------------------------------------------------------------------
def drawn_scenes(n: int = 90) -> Pairs:
    """Scenes with random taps in place of what encoders see and read."""
    g, pairs = torch.Generator().manual_seed(0), scenes(n)
    real = claims_file.with_whole(boxes_of(pairs)).mask
    texts = sorted(set(every_question(pairs, "noun")["question"]))
    known = Pairs.make({"text": texts}).with_features(**{
        f"text_tap{k}": Tokens(torch.randn(len(texts), 8, 6, generator=g),
                               torch.ones(len(texts), 8, dtype=torch.bool)) for k in range(3)})
    pairs = pairs.with_features(**{
        f"image_tap{k}": Tokens(torch.randn(*real.shape, 5 + k, generator=g)
                                * real[:, :, None], real) for k in range(3)})
    return replace(pairs, tables={**pairs.tables, "questions": known})


def test_questions_keep_their_scene_and_their_words():
    pairs = drawn_scenes()
    part = pairs.select(range(5, 40))
    asked = claims_file.asked(pairs, part)
    known = pairs.tables["questions"]
    for k in range(0, len(asked), 7):
        scene = part.item.tolist().index(int(asked.item[k]))
        assert torch.equal(asked["image_tap1"].values[k], part["image_tap1"].values[scene])
        at = known["text"].index(asked["text"][k])
        assert torch.equal(asked["text_tap2"].values[k], known["text_tap2"].values[at])


def test_every_claim_on_scenes_can_be_measured():
    found = claims_file.claims(drawn_scenes(), "tiny")
    runs = Runs(found)
    for claim in found:
        for null in (False, True):
            assert all(0 <= x <= 1 for x in runs.figures(claim, claims_file.FIRST, null).values())
    base = runs.trained(found[0], claims_file.FIRST)["last"]
    assert all(-1 <= c.measure(base) <= 1 for c in found[0].conditions)


def test_arms_differ_in_what_enters_alone():
    arms = claims_file.wired(drawn_scenes(), claims_file.SCALES["tiny"])
    splits = arms["last"].data(claims_file.FIRST)
    taps = {name: arm.build(splits).settings.image_taps for name, arm in arms.items()}
    one, two = (f"image_tap{k}" for k in range(2))
    assert taps == {"last": (two, None), "bridges": (one, two), "copies": (two, two),
                    "lower": (one, None)}
    assert all(arm.data is arms["last"].data for arm in arms.values())


def test_the_whole_picture_comes_first():
    boxes = Tokens(torch.rand(2, 3, 4), torch.tensor([[True, True, False], [True] * 3]))
    found = claims_file.with_whole(boxes)
    assert found.values[:, 0].tolist() == [[0, 0, 1, 1]] * 2 and found.mask[:, 0].all()
    assert torch.equal(found.values[:, 1:], boxes.values)
    assert torch.equal(found.mask[:, 1:], boxes.mask)


# The layers over both of transformers ---------------------------------------------------
def theirs(method: BridgeTower, width: int, heads: int):
    """The cross layers, bridges and poolers of transformers' BridgeTower, by side, with our
    weights in them."""
    from transformers import BridgeTowerConfig, BridgeTowerTextConfig
    from transformers.models.bridgetower import modeling_bridgetower as official

    config = BridgeTowerConfig(hidden_size=width, layer_norm_eps=1e-12)
    of_layers = BridgeTowerTextConfig(
        hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width,
        layer_norm_eps=1e-12, attn_implementation="eager",
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    made = {}

    def attention(to, of, after):
        for name, w, b in zip(("query", "key", "value"), of.in_proj_weight.chunk(3),
                              of.in_proj_bias.chunk(3)):
            getattr(to.self, name).weight.copy_(w), getattr(to.self, name).bias.copy_(b)
        to.output.dense.load_state_dict(of.out_proj.state_dict())
        to.output.LayerNorm.load_state_dict(after.state_dict())

    with torch.no_grad():
        for place, side in (("first", "text"), ("second", "image")):
            layers = []
            for both in method.layers:
                ours = getattr(both, place)
                layer = official.BridgeTowerBertCrossLayer(of_layers).double().eval()
                attention(layer.attention, ours.self_attn, ours.norm1)
                attention(layer.crossattention, ours.multihead_attn, ours.norm2)
                layer.intermediate.dense.load_state_dict(ours.linear1.state_dict())
                layer.output.dense.load_state_dict(ours.linear2.state_dict())
                layer.output.LayerNorm.load_state_dict(ours.norm3.state_dict())
                layers.append(layer)
            links = [official.BridgeTowerLinkTower(config).double() for _ in method.layers]
            for k, link in enumerate(links):
                link.LayerNorm.load_state_dict(method.norms[f"{side}{k}"].state_dict())
            pooler = official.BridgeTowerPooler(config).double()
            pooler.dense.load_state_dict(method.pool[side].state_dict())
            made[side] = layers, links, pooler
    return made


def test_it_is_the_bridgetower_of_transformers_in_value_and_gradient():
    pairs = rows()
    method = made(pairs)
    with torch.no_grad():
        for p in method.parameters():  # LayerNorms that are not new
            p.add_(0.1 * torch.randn(p.shape, dtype=p.dtype))
    batch = batch_of(method, pairs)
    (xs, ys), found = taps_of(method, batch), theirs(method, 8, 2)
    leaves = [t.values.detach().requires_grad_() for t in (*xs, *ys)]
    xs, ys = ([Tokens(v, t.mask) for v, t in zip(leaves[a:], side)]
              for a, side in ((0, xs), (3, ys)))
    x, y = method.together(xs, ys)
    ours = torch.cat([torch.tanh(method.pool[side](z.values[:, 0]))
                      for side, z in (("text", x), ("image", y))], 1)
    hide = [torch.zeros(t.mask.shape, dtype=torch.float64).masked_fill(~t.mask, -1e30)
            [:, None, None] for t in (xs[0], ys[0])]
    a = b = None
    for k in range(3):
        (layer_x, link_x), (layer_y, link_y) = (
            (found[side][0][k], found[side][1][k]) for side in ("text", "image"))
        a = link_x(xs[k].values, 0 if a is None else a, None)
        b = link_y(ys[k].values, 0 if b is None else b, None)
        a, b = layer_x(a, b, *hide)[0], layer_y(b, a, *hide[::-1])[0]
    official = torch.cat([found["text"][2](a), found["image"][2](b)], 1)
    torch.testing.assert_close(ours, official, rtol=1e-9, atol=1e-9)
    weights = torch.arange(16.0, dtype=torch.float64)
    for p, q in zip(*(torch.autograd.grad((c.sin() * weights).sum(), leaves)
                      for c in (ours, official))):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-9)
