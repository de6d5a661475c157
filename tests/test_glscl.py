"""GLSCL: both scores and all losses against plain loops in float64, and what must hold."""

import math

import pytest
import torch

from alignkit.data import Pairs, Tokens
from alignkit.evaluation import evaluate_retrieval
from alignkit.methods.glscl import (
    CrossAttended, Glscl, GlsclSettings, agreement, consistency, diversity, guided, likeness,
)  # fmt: skip
from alignkit.parts import unit
from alignkit.training import Budget, fit
from toys import random_tokens

D, K = 8, 3


# The shared tests' small data ---------------------------------------------------------
def toy_features(pairs: Pairs) -> Pairs:
    """Frames and words of a width that several heads can share, of one hidden state."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(len(pairs), 4, generator=generator)
    return pairs.with_features(**{f"{name}_tokens": random_tokens(hidden, D, generator)
                                  for name in ("video", "text")})



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


# Plain loops --------------------------------------------------------------------------
def dot(a, b):
    return sum(x * y for x, y in zip(torch.as_tensor(a).tolist(), torch.as_tensor(b).tolist()))


def cosine(a, b):
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def slow_guided(text, frames, tau):
    out = torch.zeros(len(text), len(frames.values), dtype=torch.float64)
    for a, t in enumerate(text):
        for b, (values, mask) in enumerate(zip(*frames)):
            real = [f for f, r in zip(values, mask) if r]
            weights = [math.exp(dot(t, f) / tau) for f in real]
            v = [sum(w * float(f[i]) for w, f in zip(weights, real)) / sum(weights)
                 for i in range(D)]
            out[a, b] = cosine(t, v)
    return out


def slow_agreement(text, video):
    out = torch.zeros(len(text), len(video), dtype=torch.float64)
    for a, c in enumerate(text):
        for b, v in enumerate(video):
            out[a, b] = sum(dot(c[k], v[k]) for k in range(K)) / K
    return out


def slow_consistency(video, text, beta, over):
    mse = penalty = 0.0
    for k in range(K):
        for i in range(D):
            gap = (sum(float(row[k, i]) for row in video)
                   - sum(float(row[k, i]) for row in text)) / len(video)
            mse += gap**2 / (K * D)
        d = sum(dot(v[k], t[k]) for v, t in zip(video, text)) / over
        penalty += (d - 0.75) ** 2
    return mse + beta * penalty


def slow_diversity(queries, margin):
    n = len(queries)
    g = [[sum(dot(row[i], row[j]) for row in queries) / n for j in range(K)]
         for i in range(K)]
    total = sum(max(0, margin + g[i][j] - g[i][i]) + max(0, margin + g[i][j] - g[j][j])
                for i in range(K) for j in range(K) if i != j)
    return total / (K * (K - 1))


def slow_contrastive(scores, scale, item):
    total, n = 0.0, len(scores)
    for turn in (scores, scores.T):
        for i in range(n):
            norm = math.log(sum(math.exp(scale * float(x)) for x in turn[i]))
            right = [j for j in range(n) if item[j] == item[i]]
            total -= sum(scale * float(turn[i, j]) - norm for j in right) / len(right) / n
    return total / 2


@pytest.mark.parametrize("tau", [0.5, 3.0])
def test_guided_pooling_is_the_loop(tau):
    text, frames = drawn(3, D), tokens(4, 5, 1)
    torch.testing.assert_close(guided(text, frames, tau), slow_guided(text, frames, tau))


def test_agreement_and_both_regularisers_are_the_loops():
    a, c = unit(drawn(4, K, D, seed=1)), unit(drawn(4, K, D, seed=2))
    torch.testing.assert_close(agreement(c, a), slow_agreement(c, a))
    for official, over in ((False, 4), (True, K)):
        assert float(consistency(a, c, 0.3, official)) == pytest.approx(
            slow_consistency(a, c, 0.3, over), rel=1e-12)
    close = unit(drawn(4, 1, D, seed=3) + 0.3 * drawn(4, K, D, seed=4))
    assert likeness(close)[0, 1] > 0.5
    for queries, margin in ((close, 0.1), (close, 0.8), (a, 1.2)):
        found = float(diversity(queries, margin))
        assert found == pytest.approx(slow_diversity(queries, margin), abs=1e-12)
    assert slow_diversity(close, 0.8) > 0.1


def test_the_whole_loss_is_the_loops_and_so_is_its_slope(pairs):
    method = made(pairs, alpha=0.7, beta=0.2, margin=0.9, tau=0.8, temperature=0.5)
    video, text = encoded(method, pairs)
    frames = Tokens(video["values"], video["mask"])
    score = slow_guided(text["sentence"], frames, 0.8) \
        + 0.5 * slow_agreement(text["queries"], video["queries"])
    losses = method(pairs.batch())
    want = {"contrastive_loss": slow_contrastive(score, 2.0, pairs.item.tolist()),
            "consistency_loss": slow_consistency(video["queries"], text["queries"], 0.2, 6),
            "diversity_loss": 0.7 * slow_diversity(video["queries"], 0.9)}
    assert {name: float(x.detach()) for name, x in losses.items()} == pytest.approx(want, rel=1e-6)
    assert want["diversity_loss"] > 0
    torch.testing.assert_close(method.score(text, video), score)
    torch.testing.assert_close(method.score(video, text), score.T)
    sum(losses.values()).backward()
    for name, weight in method.named_parameters():  # against a finite difference
        with torch.no_grad():
            place = int(weight.grad.abs().argmax())
            flat, step, found = weight.view(-1), 1e-5, []
            for sign in (1, -1):
                flat[place] += sign * step
                found.append(float(sum(method(pairs.batch()).values())))
                flat[place] -= sign * step
        assert (found[0] - found[1]) / (2 * step) == pytest.approx(
            float(weight.grad.view(-1)[place]), rel=1e-4, abs=1e-8), name


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
                cosine(t, real.mean(0)))
            assert float(guided(text, frames, 1e-4)[a, b]) == pytest.approx(cosine(t, nearest))
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
                cosine(words[-1], frames.mean(0)))
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
    video, text = encoded(method, pairs)
    m, n = method.maps, method.norms
    for a, t in enumerate(text["sentence"]):
        for b in range(6):
            f = n["asks"](video["values"][b][video["mask"][b]])
            q = m["q"](n["asks"](t))
            weights = torch.softmax(torch.stack(
                [(q * m["k"](x)).sum() / math.sqrt(D) for x in f]), 0)
            seen = n["seen"](m["o"](sum(w * m["v"](x) for w, x in zip(weights, f))))
            pooled = n["pooled"](seen + m["w"](seen))
            assert float(method.score(text, video)[a, b].detach()) == pytest.approx(
                cosine(t.detach(), pooled.detach()))


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
