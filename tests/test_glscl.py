"""GLSCL: both scores and all losses against plain loops in float64, and what must hold."""

import math
from dataclasses import replace

import pytest
import torch

from alignkit.claims import glscl as claims
from alignkit.data import Lazy, Pairs, Splits, Tokens
from alignkit.evaluation import evaluate_retrieval
from alignkit.methods.glscl import (
    CrossAttended, Glscl, GlsclSettings, agreement, consistency, diversity, guided,
)  # fmt: skip
from alignkit.parts import unit
from alignkit.training import Budget, fit
from toys import random_tokens

D, K = 8, 3


# The shared tests' small data ---------------------------------------------------------
def toy_features(pairs: Pairs) -> Pairs:
    """Frames, as wide as the words, of the same hidden state."""
    words = pairs["text_tokens"].values
    noise = torch.randn(words.shape, generator=torch.Generator().manual_seed(3))
    return pairs.with_features(video_tokens=Tokens(
        words + 0.3 * noise, torch.ones(words.shape[:2], dtype=torch.bool)))


def toy_pairs(pairs: Pairs) -> Pairs:
    """Videos of four frames: the picture, turned by quarters."""
    def film(row: int) -> list:
        return [pairs["image"][row].rotate(90 * k) for k in range(4)]

    return pairs.with_columns(video=Lazy(list(range(len(pairs))), film, "video",
                                         version="quarters"))


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed),
                       dtype=torch.float64)


def tokens(n, t, seed):
    mask = torch.ones(n, t, dtype=torch.bool)
    mask[0, t - 2:] = mask[-1, t - 1:] = False
    return Tokens(drawn(n, t, D, seed=seed), mask)


@pytest.fixture
def pairs():
    return Pairs.make({"video_tokens": tokens(6, 5, 1), "text_tokens": tokens(6, 4, 2)},
                      item=[0, 1, 2, 3, 4, 4])


def made(pairs, kind=Glscl, **settings):
    torch.manual_seed(0)
    settings = {"queries": K, "heads": 2, "dropout": 0.0} | settings
    return kind(GlsclSettings(**settings), pairs).double().eval()


@torch.no_grad()
def encoded(method, pairs):
    found = method.encode(pairs.batch())
    return found["video"], found["text"]


# Plain loops: lists of scalars, so that values and slopes can be compared -------------
def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def cosine(a, b):
    return dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()


def linear(weight, bias, x):
    return [dot(weight[i], x) + bias[i] for i in range(len(weight))]


def softmax(x):
    total = sum(v.exp() for v in x)
    return [v.exp() / total for v in x]


def mix(weights, rows):
    return [sum(w * row[i] for w, row in zip(weights, rows, strict=True))
            for i in range(len(rows[0]))]


def added(a, b):
    return [x + y for x, y in zip(a, b, strict=True)]


def normed(layer, x):
    mean = sum(x) / len(x)
    deviation = (sum((v - mean) ** 2 for v in x) / len(x) + layer.eps).sqrt()
    return [layer.weight[i] * (v - mean) / deviation + layer.bias[i] for i, v in enumerate(x)]


def attended(module, x, memory):
    """Multi-head attention of the rows x to the rows of memory."""
    q, k, v = zip(module.in_proj_weight.split(D), module.in_proj_bias.split(D))
    asks = [linear(*q, row) for row in x]
    keys, values = ([linear(*of, row) for row in memory] for of in (k, v))
    wide, out = D // module.num_heads, []
    for ask in asks:
        row = []
        for h in range(0, D, wide):
            head = slice(h, h + wide)
            weights = softmax([dot(ask[head], key[head]) / math.sqrt(wide) for key in keys])
            row += mix(weights, [value[head] for value in values])
        out.append(linear(module.out_proj.weight, module.out_proj.bias, row))
    return out


def slow_read(reader, tokens):
    """What the queries find in one row's real tokens: K rows of length 1."""
    x = list(reader.rows)
    for layer in reader.decoder.layers:
        x = [normed(layer.norm1, added(*rows)) for rows in zip(x, attended(layer.self_attn, x, x))]
        seen = attended(layer.multihead_attn, x, tokens)
        x = [normed(layer.norm2, added(*rows)) for rows in zip(x, seen)]
        inner = [[v.clamp_min(0) for v in linear(layer.linear1.weight, layer.linear1.bias, row)]
                 for row in x]
        x = [normed(layer.norm3, added(row, linear(layer.linear2.weight, layer.linear2.bias, v)))
             for row, v in zip(x, inner)]
    return [[v / dot(row, row).sqrt() for v in row] for row in x]


def slow_tokens(method, pairs, name):
    """The mapped real tokens of every row."""
    weight, (values, mask) = method.matrices[name].weight, pairs[f"{name}_tokens"]
    return [[[dot(w, token) for w in weight] for token, real in zip(*row) if real]
            for row in zip(values, mask)]


def slow_guided(t, frames, tau):
    v = mix(softmax([dot(t, f) / tau for f in frames]), frames)
    return cosine(t, v)


def slow_consistency(video, text, s):
    pairs, mse, penalty = len(video), 0, 0
    for k in range(K):
        for i in range(D):
            gap = (sum(row[k][i] for row in video) - sum(row[k][i] for row in text)) / pairs
            mse = mse + gap**2 / (K * D)
        d = sum(dot(v[k], t[k]) for v, t in zip(video, text))
        penalty = penalty + (d / (K if s.official_target else pairs) - 0.75) ** 2
    return s.mse * mse + s.beta * penalty


def slow_diversity(queries, margin):
    g = [[sum(dot(row[i], row[j]) for row in queries) / len(queries) for j in range(K)]
         for i in range(K)]
    return sum((margin + g[i][j] - g[i][i]).clamp_min(0) + (margin + g[i][j] - g[j][j]).clamp_min(0)
               for i in range(K) for j in range(K) if i != j) / (K * (K - 1))


def slow_contrastive(scores, scale, item):
    total, n = 0, len(scores)
    for turn in (scores, [list(column) for column in zip(*scores)]):
        for i in range(n):
            norm = sum((scale * x).exp() for x in turn[i]).log()
            right = [j for j in range(n) if item[j] == item[i]]
            total = total - sum(scale * turn[i][j] - norm for j in right) / len(right) / n
    return total / 2


def slow_losses(method, pairs):
    """(scores [text][video], losses by name)."""
    s = method.settings
    frames, words = (slow_tokens(method, pairs, name) for name in ("video", "text"))
    score = [[slow_guided(t[-1], f, s.tau) for f in frames] for t in words]
    losses = {}
    if s.lam:
        a, c = ([slow_read(method.readers["both" if s.shared else name], row) for row in rows]
                for name, rows in (("video", frames), ("text", words)))
        score = [[score[i][j] + s.lam * sum(map(dot, c[i], a[j])) / K for j in range(len(a))]
                 for i in range(len(c))]
        losses = {"consistency_loss": slow_consistency(a, c, s),
                  "diversity_loss": s.alpha * slow_diversity(a, s.margin)}
    scale = method.temperature.log_scale.exp()
    return score, {"contrastive_loss": slow_contrastive(score, scale, pairs.item.tolist()),
                   **losses}


@pytest.mark.parametrize("settings", [{}, {"shared": False, "official_target": True},
                                      {"lam": 0.0}])
def test_scores_losses_and_slopes_are_those_of_the_loops(pairs, settings):
    pairs = pairs.select([0, 1, 4, 5])  # the last two of one item
    method = made(pairs, alpha=0.7, beta=0.2, mse=1.3, margin=0.9, tau=0.8, temperature=0.5,
                  **settings)
    score, want = slow_losses(method, pairs)
    losses = method(pairs.batch())
    outputs = method.encode(pairs.batch())
    found = method.score(outputs["text"], outputs["video"])
    close = dict(rtol=0, atol=1e-9)
    torch.testing.assert_close(found, torch.stack([torch.stack(row) for row in score]), **close)
    torch.testing.assert_close(method.score(outputs["video"], outputs["text"]), found.T)
    assert losses.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(losses[name], want[name], **close)
        assert float(want[name].detach()) > 0
    weights = [w for w in method.parameters()]
    for fast, slow in zip(*(torch.autograd.grad(sum(x.values()), weights) for x in (losses, want))):
        torch.testing.assert_close(fast, slow, **close)


def test_layers_over_the_frames_add_what_they_see(pairs):
    plain, method = made(pairs, lam=0.0), made(pairs, lam=0.0, frame_layers=2)
    frames = plain.encode(pairs.batch())["video"]
    out = method.encode(pairs.batch())["video"]
    layers, places = method.frames.layers, method.frames.places
    for row in range(6):  # alone, without padding
        x = frames["values"][row][frames["mask"][row]]
        seen = (x + places[:len(x)])[None]
        for layer in layers:
            seen = layer(seen)
        torch.testing.assert_close(out["values"][row][out["mask"][row]], x + seen[0])
    assert (out["values"][~out["mask"]] == 0).all()


def test_the_sentence_is_the_last_real_token(pairs):
    text = encoded(made(pairs), pairs)[1]
    values, mask = pairs["text_tokens"]
    for row in range(6):
        assert torch.equal(text["sentence"][row], values[row][mask[row]][-1])


def test_ends_of_the_temperature():
    text, frames = drawn(3, D), tokens(4, 5, 1)
    for b, (values, mask) in enumerate(zip(*frames)):
        real = values[mask]
        for a, t in enumerate(text):
            nearest = real[(real @ t).argmax()]
            assert float(guided(text, frames, math.inf)[a, b]) == pytest.approx(
                float(cosine(t, real.mean(0))))
            assert float(guided(text, frames, 1e-4)[a, b]) == pytest.approx(
                float(cosine(t, nearest)))
    one = Tokens(frames.values[:, :1], frames.mask[:, :1])
    for tau in (0.01, 1.0, math.inf):
        torch.testing.assert_close(guided(text, one, tau),
                                   unit(text) @ unit(one.values[:, 0]).T)


@pytest.mark.parametrize("kind, lam", [(Glscl, 0.5), (CrossAttended, 0.0)])
def test_order_of_frames_and_padding_change_nothing(pairs, kind, lam):
    method = made(pairs, kind, lam=lam)
    video, text = encoded(method, pairs)
    want = method.score(text, video)
    values, mask = pairs["video_tokens"]
    order = torch.tensor([3, 0, 4, 2, 1])
    junk = torch.full((6, 2, D), 7.0, dtype=torch.float64)
    for tokens_ in (Tokens(values[:, order], mask[:, order]),
                    Tokens(torch.cat([values, junk], 1),
                           torch.cat([mask, torch.zeros(6, 2, dtype=torch.bool)], 1)),
                    Tokens(values.masked_fill(~mask[:, :, None], -9.0), mask)):
        other = method.encode({"video_tokens": tokens_})["video"]
        torch.testing.assert_close(method.score(text, other), want)
    assert want.abs().max() <= 1.5


def test_an_aligned_start_stays_aligned(pairs):
    method = made(pairs, lam=0.0, tau=math.inf)
    video, text = encoded(method, pairs)
    assert set(method(pairs.batch())) == {"contrastive_loss"}
    for b in range(6):
        frames = pairs["video_tokens"].values[b][pairs["video_tokens"].mask[b]]
        for a in range(6):
            words = pairs["text_tokens"].values[a][pairs["text_tokens"].mask[a]]
            assert float(method.score(text, video)[a, b].detach()) == pytest.approx(
                float(cosine(words[-1], frames.mean(0))))
    assert [name for name, _ in method.named_parameters()] == [
        "matrices.video.weight", "matrices.text.weight", "temperature.log_scale"]


def test_equal_tokens_give_equal_queries(pairs):
    method = made(pairs)
    same = method.read(pairs["video_tokens"], "video")
    torch.testing.assert_close(agreement(same, same).diagonal(),
                               torch.ones(6, dtype=torch.float64))
    assert float(consistency(same, same, 0.0).detach()) == 0


def test_one_order_of_the_queries_for_both_sides_changes_nothing():
    a, c, order = unit(drawn(4, K, D, seed=1)), unit(drawn(4, K, D, seed=2)), [2, 0, 1]
    torch.testing.assert_close(agreement(a, c), agreement(a[:, order], c[:, order]))
    torch.testing.assert_close(consistency(a, c, 0.3),
                               consistency(a[:, order], c[:, order], 0.3))
    torch.testing.assert_close(diversity(a, 0.9), diversity(a[:, order], 0.9))
    assert not torch.allclose(agreement(a, c), agreement(a[:, order], c))


def test_diversity_is_idle_below_its_margin():
    apart = torch.eye(D, dtype=torch.float64)[:K].repeat(4, 1, 1).requires_grad_()
    loss = diversity(apart, 0.1)
    loss.backward()
    assert float(loss.detach()) == 0 and (apart.grad == 0).all()
    same = unit(drawn(4, 1, D)).repeat(1, K, 1)
    assert float(diversity(same, 0.1)) == pytest.approx(0.2)
    assert float(diversity(same[:, :1], 0.1)) == 0


def test_the_dear_head_is_its_equation(pairs):
    method = made(pairs, CrossAttended, lam=0.0)
    with torch.no_grad():  # off the start, where every matrix is 1
        for k, weight in enumerate(method.parameters()):
            weight.add_(0.1 * drawn(*weight.shape, seed=k))
    outputs, slow = method.encode(pairs.batch()), []
    video, text = outputs["video"], outputs["text"]
    m, n = method.maps, method.norms
    for t in text["sentence"]:
        for b in range(6):
            f = n["asks"](video["values"][b][video["mask"][b]])
            q = m["q"](n["asks"](t))
            weights = torch.softmax(torch.stack(
                [(q * m["k"](x)).sum() / math.sqrt(D) for x in f]), 0)
            seen = n["seen"](m["o"](sum(w * m["v"](x) for w, x in zip(weights, f))))
            slow.append(torch.cosine_similarity(t, n["pooled"](seen + m["w"](seen)), 0))
    fast, slow = method.score(text, video), torch.stack(slow).view(6, 6)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-9)
    weights = [w for name, w in method.named_parameters() if "temperature" not in name]
    at = drawn(6, 6, seed=9)
    for one, other in zip(*(torch.autograd.grad((x * at).sum(), weights, retain_graph=True)
                            for x in (fast, slow))):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_the_cheap_score_costs_a_fraction(pairs):
    from torch.utils.flop_counter import FlopCounterMode

    n = 40
    wide = Pairs.make({"video_tokens": Tokens(torch.randn(n, 8, 128),
                                              torch.ones(n, 8, dtype=torch.bool)),
                       "text_tokens": Tokens(torch.randn(n, 6, 128),
                                             torch.ones(n, 6, dtype=torch.bool))})
    cost = {}
    for kind, lam in ((Glscl, 0.5), (CrossAttended, 0.0)):
        method = kind(GlsclSettings(lam=lam), wide).eval()
        with torch.no_grad():
            video, text = encoded(method, wide)
            with FlopCounterMode(display=False) as counter:
                method.score(text, video)
        cost[kind] = counter.get_total_flops()
    # guided: 2 · 8 · d a pair, twice; queries: K · d twice. The head: d² twice and more.
    assert cost[Glscl] == n * n * (2 * 2 * 8 * 128 + 2 * 8 * 128)
    # Its maps of a pair: W_o and W, 2 · d² each; those of a text or a frame come once.
    assert cost[CrossAttended] == (n * n * (2 * 2 * 8 * 128 + 2 * 2 * 128**2)
                                   + (n + 2 * 8 * n) * 2 * 128**2)


@pytest.mark.parametrize("wrong", [{"tau": 0.0}, {"lam": -1.0}, {"queries": 0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="tau must be above 0"):
        GlsclSettings(**wrong)


def test_columns_of_two_widths_and_queries_for_the_dear_head_are_refused(pairs):
    wide = pairs.with_columns(text_tokens=Tokens(drawn(6, 4, 9), pairs["text_tokens"].mask))
    with pytest.raises(ValueError, match="one width"):
        made(wide)
    with pytest.raises(ValueError, match="lam must be 0"):
        made(pairs, CrossAttended)


@pytest.mark.parametrize("kind, lam", [(Glscl, 0.5), (CrossAttended, 0.0)])
def test_it_trains_and_is_measured_like_any_method(pairs, kind, lam):
    wide = Pairs.make({name: Tokens(pairs[name].values.float(), pairs[name].mask)
                       for name in ("video_tokens", "text_tokens")}, item=pairs.item)
    torch.manual_seed(0)
    method = kind(GlsclSettings(lam=lam, heads=2), wide)
    history = fit(method, wide, Budget(steps=30, batch_size=6, lr=3e-3), 0)
    assert sum(history.curve()[-5:]) < sum(history.curve()[:5])
    found = evaluate_retrieval(method, wide, "video", "text", chunk=4, once=())
    video, text = encoded(method.eval(), wide)
    best = method.score(text, video).argmax(1)
    right = wide.item[best] == wide.item
    assert found["text->video"]["hit@1"] == pytest.approx(right.float().mean())


# What the claims measure --------------------------------------------------------------
def reels_of(n: int, galleries: int) -> Pairs:
    """Captions of `galleries` reels each: the text is a direction, a reel has it twice among
    eight frames that are other captions'."""
    g = torch.Generator().manual_seed(0)
    rows = unit(torch.randn(2 * n, D, generator=g))
    item = torch.arange(n).repeat_interleave(galleries)
    values = rows[n + torch.randint(n, (len(item), 8), generator=g)]
    values[:, 2] = values[:, 5] = rows[item]
    real = torch.ones(len(item), 8, dtype=torch.bool)
    made = Pairs.make({"video_tokens": Tokens(values, real),
                       "text_tokens": Tokens(rows[item][:, None], real[:, :1])}, item=item)
    return replace(made, tables={"galleries": galleries})


def test_a_caption_asks_one_gallery_at_a_time():
    rows = reels_of(30, 4)
    method = Glscl(GlsclSettings(lam=0.0, tau=0.02), rows).eval()
    hits = []
    for k in range(4):
        part = rows.select(range(k, 120, 4))
        assert part.item.tolist() == list(range(30))
        outputs = method.encode(part.batch())
        best = method.score(outputs["text"], outputs["video"]).argmax(1)
        hits.append(float((best == torch.arange(30)).double().mean()))
    assert claims.found(method, rows) == pytest.approx(sum(hits) / 4) and hits[0] > 0.9
    even = Glscl(GlsclSettings(lam=0.0, tau=math.inf), rows).eval()
    assert claims.found(even, rows) < claims.found(method, rows)


def test_the_null_leaves_no_reel_its_caption():
    rows = reels_of(30, 4)
    test = replace(rows, tables=rows.tables | {claims.ALL: rows})
    moved = claims.others_captions(Splits(rows, rows, test), 0)
    for part in (*moved, moved.test.tables[claims.ALL]):
        own = (part["video_tokens"].values == rows["text_tokens"].values).all(2).sum(1)
        assert (own < 2).all() and part.tables["galleries"] == 4
    method = Glscl(GlsclSettings(lam=0.0, tau=0.02), rows).eval()
    assert claims.found(method, moved.test) < 0.15


@pytest.mark.parametrize("d, frames, times", [(128, 8, 11.3), (512, 12, 32.75)])
def test_how_much_dearer_the_dear_head_is(d, frames, times):
    wide = Pairs.make({"video_tokens": Tokens(torch.randn(16, frames, d),
                                              torch.ones(16, frames, dtype=torch.bool)),
                       "text_tokens": Tokens(torch.randn(16, 3, d),
                                             torch.ones(16, 3, dtype=torch.bool))})
    method = CrossAttended(GlsclSettings(lam=0.0), wide).eval()
    arm = claims.Trained(method, Splits(wide, wide, wide), None)
    assert claims.times_dearer(arm, GlsclSettings()) == pytest.approx(times, abs=0.05)


def test_own_pairs_have_the_sentence_last(monkeypatch):
    drawn_features = {"video": Tokens(torch.randn(70, 3, D), torch.ones(70, 3, dtype=torch.bool)),
                      "text": random_tokens(torch.randn(70, 4), D,
                                            torch.Generator().manual_seed(0))}
    whole = torch.randn(70, D)

    def add(pairs, column, encoder, tokens):
        return pairs.with_features(**{f"{column}_tokens": drawn_features[column],
                                      f"{column}_features": whole})

    monkeypatch.setattr(claims, "add_features", add)
    brought = Pairs.make({"video": torch.zeros(70, 1), "text": [str(i) for i in range(70)]})
    pairs = claims.data("gpu", brought)
    method = Glscl(replace(claims.settings(claims.SCALES["tiny"]), lam=0.0), pairs).eval()
    found = method.encode(pairs.batch())["text"]["sentence"]
    torch.testing.assert_close(found, unit(whole))
    assert {c.name for c in claims.claims(pairs, "gpu")} == {
        "cheap", "guided", "queries", "shared", "regularised"}
