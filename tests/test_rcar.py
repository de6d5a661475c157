"""RCAR: scores, loss and gradient against plain loops in float64, and what must hold."""

import pytest
import torch
from torch import Tensor

from alignkit.claims import rcar as claims
from alignkit.claims.claim import Trained
from alignkit.data import Pairs, Splits, Tokens
from alignkit.data.scenes import COLOURS, NOUNS
from alignkit.evaluation import evaluate_retrieval
from alignkit.methods.rcar import Rcar, RcarSettings, attention, gathered
from alignkit.parts import triplet_loss, unit
from alignkit.parts.text import MASK, SPECIAL, alter_words
from alignkit.training import Budget, fit

D, S = 6, 4
KINDS = [("rcr", 0), ("rcr", 2), ("rar", 0), ("rar", 2), ("rcar", 1), ("rcar", 3)]


# The shared tests' small data ---------------------------------------------------------
def toy_features(pairs: Pairs) -> Pairs:
    """Regions, and captions of two of a few things, some with a filler."""
    nouns, colours = list(NOUNS)[:12], list(COLOURS)
    plain = [f"{nouns[i % 12]} on {colours[i // 12 % 6]} and {nouns[i // 2 % 12]} on "
             f"{colours[i % 5]}" for i in range(len(pairs))]
    some = [f"{claims.FILLERS[i % 3]} {text}" if i % 2 else text for i, text in enumerate(plain)]
    filled = [f"{claims.FILLERS[0]} {text} {claims.FILLERS[1]}" for text in plain]
    return pairs.with_columns(text=some, text_plain=plain, text_filled=filled).with_features(
        image_regions=pairs["image_tokens"])


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed),
                       dtype=torch.float64)


@pytest.fixture
def pairs():
    mask = torch.ones(5, 4, dtype=torch.bool)
    mask[0, 2:] = mask[3, 3:] = False
    values = drawn(5, 4, 7, seed=1).masked_fill(~mask[:, :, None], 9.0)
    return Pairs.make({"image_regions": Tokens(values, mask),
                       "text": ["dog on red", "cat", "bell on blue disc", "dog", "red cat"]},
                      item=[0, 1, 2, 3, 3])


def made(pairs, regulator="rcar", steps=2, **settings):
    torch.manual_seed(0)
    method = Rcar(RcarSettings(**{"width": D, "alignment": S, "words": 5, "vocabulary": 60,
                                  "regulator": regulator, "steps": steps} | settings), pairs)
    with torch.no_grad():  # no bias is 0
        for k, weight in enumerate(method.parameters()):
            weight.add_(0.1 * drawn(*weight.shape, seed=k))
    return method.double().eval()


def both(method, pairs):
    out = method.encode(method.collate(pairs, torch.Generator()))
    return Tokens(*out["text"].values()), Tokens(*out["image"].values())


# Plain loops, a caption with a picture at a time ---------------------------------------
def length(x: Tensor) -> Tensor:
    return sum(v * v for v in x).sqrt()


def slow_look(q: list, c: list, m: list, lam: list) -> list:
    """q: asking rows, c: rows that are asked -> what each asking row gathers."""
    a = [[sum(x * y * z for x, y, z in zip(qi, mi, cj)) for cj in c] for qi, mi in zip(q, m)]
    a = [[x if x > 0 else 0.1 * x for x in row] for row in a]
    found = []
    for i in range(len(q)):
        w = [(lam[i] * a[i][j] / length([row[j] for row in a])).exp() for j in range(len(c))]
        together = sum(w[j] / sum(w) * c[j] for j in range(len(c)))
        found.append(together / length(together))
    return found


def slow_score(method, q: list, c: list) -> Tensor:
    s, parts = method.settings, method.similarity

    def layers(sequence, x):
        first, _, last = sequence
        return last.weight @ (first.weight @ x + first.bias).tanh() + last.bias

    def vectors(k, found):
        rows = [parts["alignments"][k].map.weight @ (qi - ci)**2
                + parts["alignments"][k].map.bias for qi, ci in zip(q, found)]
        return [r / length(r) for r in rows]

    def regulated(k, r, m, lam):
        rcr = parts["looks"][k]
        m = [(layers(rcr.m, ri).tanh() + mi).clamp(-1, 1) for ri, mi in zip(r, m)]
        lam = [(layers(rcr.lam, ri)[0] + li).clamp_min(0) for ri, li in zip(r, lam)]
        return m, lam

    def pooled(k, r, g):
        rar = parts["pools"][k]
        ask = (rar.q[0].weight @ g + rar.q[0].bias).tanh()
        e = [(rar.weigh.weight[0] @ ((rar.k[0].weight @ ri + rar.k[0].bias).tanh() * ask)
              + rar.weigh.bias[0]).exp() for ri in r]
        g = sum(x / sum(e) * ri for x, ri in zip(e, r))
        return g / length(g)

    m = [torch.ones(D, dtype=torch.float64) for _ in q]
    lam = [torch.tensor(s.lam, dtype=torch.float64) for _ in q]
    if s.regulator == "rcr":
        for k in range(s.steps):
            m, lam = regulated(k, vectors(k, slow_look(q, c, m, lam)), m, lam)
        found = slow_look(q, c, m, lam)
        return sum((qi * ci).sum() for qi, ci in zip(q, found)) / len(q)
    r = vectors(0, slow_look(q, c, m, lam))
    g = sum(r) / len(r)
    for k in range(s.steps):
        if s.regulator == "rcar" and k > 0:
            r = vectors(k, slow_look(q, c, m, lam))
        if s.regulator == "rcar" and k < s.steps - 1:
            m, lam = regulated(k, r, m, lam)
        g = pooled(k, r, g)
    return 1 / (1 + (-(parts["judge"].weight[0] @ g + parts["judge"].bias[0])).exp())


def slow_hinge(scores, item, margin, hardest):
    n, total = len(item), 0
    for i in range(n):
        for turned in (scores, scores.T):
            cost = [(margin + turned[i, j] - scores[i, i]).clamp_min(0)
                    for j in range(n) if item[j] != item[i]]
            total = total + (max(cost) if hardest else sum(cost)) / n
    return total


@pytest.mark.parametrize("asks", ["text", "image"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_loss_and_slopes_are_those_of_the_loops(pairs, kind, asks):
    method = made(pairs, *kind, asks=asks, lam=1.5, chunk=2)
    batch = method.collate(pairs, torch.Generator())
    out = method.encode(batch)
    fast = method.score(out["text"], out["image"])
    text, image = ([list(x[real]) for x, real in zip(*out[m].values())]
                   for m in ("text", "image"))
    slow = torch.stack([torch.stack([
        slow_score(method, t, v) if asks == "text" else slow_score(method, v, t)
        for v in image]) for t in text])
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-9)
    torch.testing.assert_close(method.score(out["image"], out["text"]), fast.T)
    low, high = (-1, 1) if kind[0] == "rcr" else (0, 1)
    assert (fast >= low).all() and (fast <= high).all()
    weights = [*method.parameters()]
    for progress in (0.0, 1.0):
        loss = method(batch, progress)["hinge_loss"]
        want = slow_hinge(slow, pairs.item, 0.2, progress > 0)
        torch.testing.assert_close(loss, want, rtol=0, atol=1e-9)
        for one, other in zip(*(torch.autograd.grad(x, weights, retain_graph=True,
                                                    materialize_grads=True)
                                for x in (loss, want))):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_tokens_are_those_of_each_row_alone(pairs):
    method = made(pairs)
    words, regions = both(method, pairs)
    for row in range(5):
        x = pairs["image_regions"].values[row][pairs["image_regions"].mask[row]]
        first, norm, _, last = method.beside
        y = first(x)
        y = (y - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        y = last((y * norm.weight + norm.bias).relu())
        torch.testing.assert_close(regions.values[row][regions.mask[row]],
                                   unit(method.regions(x) + y))
        ids = method.pieces([pairs["text"][row]]).values
        out = method.rnn(method.embedding(ids))[0][0]
        torch.testing.assert_close(words.values[row][words.mask[row]],
                                   unit((out[:, :D] + out[:, D:]) / 2))
    assert (words.values[~words.mask] == 0).all() and (regions.values[~regions.mask] == 0).all()


# Exact properties ---------------------------------------------------------------------
def test_a_regulator_that_says_nothing_is_the_baseline(pairs):
    """W₂ = U₂ = 0: m stays 1, λ stays λ₀, so any number of steps is the one look."""
    plain = made(pairs, "rcr", 0)
    words, regions = both(plain, pairs)
    for steps in (1, 3):
        method = made(pairs, "rcr", steps)
        with torch.no_grad():
            for look in method.similarity["looks"]:
                for last in (look.m[2], look.lam[2]):
                    last.weight.zero_(), last.bias.zero_()
        read = method.read(words, regions)
        assert torch.equal(read.scores, plain.read(words, regions).scores)
        assert all((m == 1).all() for m in read.m) and all((x == 10).all() for x in read.lam)
    assert not torch.allclose(made(pairs, "rcr", 1).read(words, regions).scores, read.scores)


def test_a_pool_without_preference_is_the_mean(pairs):
    """w_v = 0: g = unit(mean r), however many steps."""
    found = []
    for steps in (1, 3):
        method = made(pairs, "rar", steps)
        words, regions = both(method, pairs)
        with torch.no_grad():
            for pool in method.similarity["pools"]:
                pool.weigh.weight.zero_()
        read = method.read(words, regions)
        even = words.mask / words.mask.sum(1, keepdim=True)
        torch.testing.assert_close(read.counted[-1], even.double().expand(5, -1, -1))
        r = method.similarity["alignments"][0](words.values, gathered(
            read.attention[0], regions))
        g = unit((r * even[:, :, None]).sum(2))
        found.append(read.scores)
        torch.testing.assert_close(read.scores, method.similarity["judge"](g)[..., 0].sigmoid())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asks", ["text", "image"])
def test_order_and_padding_of_the_tokens_change_nothing(pairs, kind, asks):
    method = made(pairs, *kind, asks=asks)
    words, regions = both(method, pairs)
    query, context = (words, regions) if asks == "text" else (regions, words)
    want = method.read(query, context).scores

    def other(tokens):
        order = torch.randperm(tokens.mask.shape[1], generator=torch.Generator().manual_seed(3))
        values = torch.cat([tokens.values[:, order], torch.full((5, 2, D), 7.0).double()], 1)
        return Tokens(values, torch.cat([tokens.mask[:, order], torch.zeros(5, 2).bool()], 1))

    torch.testing.assert_close(method.read(other(query), context).scores, want)
    torch.testing.assert_close(method.read(query, other(context)).scores, want)


def test_no_temperature_is_an_even_look_and_only_the_pattern_over_the_words_counts(pairs):
    words, regions = both(made(pairs), pairs)
    even = attention(words, regions, torch.ones(D), torch.tensor(0.0))
    share = regions.mask / regions.mask.sum(1, keepdim=True)
    torch.testing.assert_close(even, share[:, None, None].expand_as(even).to(even))
    # A region twice as long: its products double, their length over the words as well.
    weights = attention(words, regions, torch.ones(D), torch.tensor(5.0))
    longer = Tokens(regions.values * torch.tensor([2.0, 1, 3, 1])[:, None], regions.mask)
    torch.testing.assert_close(attention(words, longer, torch.ones(D), torch.tensor(5.0)), weights)


def test_of_two_pairs_the_hardest_is_the_only_one():
    scores = drawn(2, 2)
    torch.testing.assert_close(triplet_loss(scores, hardest=True),
                               triplet_loss(scores, hardest=False))


# The rest -----------------------------------------------------------------------------
def test_altered_words():
    ids = torch.randint(len(SPECIAL), 40, (2000, 6))
    ids[:, 0], ids[:, 5] = 2, 3
    real = torch.ones_like(ids, dtype=torch.bool)
    real[:50, 4:] = False
    new = alter_words(Tokens(ids, real), 40, torch.Generator().manual_seed(0), 0.5)
    n = float((real & (ids >= len(SPECIAL))).sum())
    assert float((new.values == MASK).sum()) / n == pytest.approx(0.25, abs=0.02)
    assert float(real.sum() - new.mask.sum()) / n == pytest.approx(0.2, abs=0.02)
    assert (new.values[:, 0] == 2).all() and (new.values[~new.mask] == 0).all()
    assert (new.mask.int().diff(dim=1) <= 0).all()  # what stays moves to the left
    same = alter_words(Tokens(ids, real), 40, torch.Generator(), 0.0)
    assert torch.equal(same.mask, real) and torch.equal(same.values, ids * real)


def test_what_is_plugged_in_has_a_rate_of_its_own(pairs):
    (only,) = made(pairs, rate=0.0).stages()
    (scan,) = made(pairs, "rcr", 0, rate=0.1).stages()
    assert only.parameters is None and scan.parameters is None  # nothing is plugged in
    method = made(pairs, rate=0.1)
    (stage,) = method.stages()
    old, new = stage.parameters
    assert "lr" not in old and new["lr"] == 0.1
    assert {*map(id, new["params"])} == {*map(id, method.similarity.parameters())}
    assert len(old["params"]) + len(new["params"]) == len([*method.parameters()])


@pytest.mark.parametrize("wrong", [{"regulator": "both"}, {"regulator": "rcar", "steps": 0},
                                   {"steps": -1, "regulator": "rcr"}, {"asks": "sound"}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="regulator must be of"):
        RcarSettings(**wrong)


def test_it_trains_and_is_measured_like_any_method(pairs):
    wide = pairs.with_columns(image_regions=Tokens(pairs["image_regions"].values.float(),
                                                   pairs["image_regions"].mask))
    torch.manual_seed(0)
    method = Rcar(RcarSettings(width=8, alignment=8, words=8, dropout=0.0, altered=0.0,
                               vocabulary=60, summed=2.0), wide)
    history = fit(method, wide, Budget(steps=60, batch_size=5, lr=1e-2), 0)
    assert sum(history.curve()[-5:]) < 0.7 * sum(history.curve()[:5])
    report = evaluate_retrieval(method, wide, "text", "image", once=())
    assert report["mean"]["hit@1"] == pytest.approx(claims.found(method, wide), abs=1e-6)


# What the claims measure --------------------------------------------------------------
def test_captions_with_fillers():
    from alignkit.data.scenes import scenes

    pairs = claims.with_fillers(scenes(60), 3)
    for some, plain, filled in zip(*(pairs[c] for c in ("text", "text_plain", "text_filled"))):
        for text in (some, filled):
            assert " ".join(w for w in text.split() if w not in claims.FILLERS) == plain
        assert len(filled.split()) == len(plain.split()) + 3 == 10
    lengths = {len(text.split()) for text in pairs["text"]}
    assert lengths == {7, 8, 9, 10} and not {*NOUNS, *COLOURS} & {*claims.FILLERS}
    same = pairs["text_plain"].index(pairs["text_plain"][5])
    assert pairs.item[5] == pairs.item[same]


def test_the_null_leaves_no_caption_its_picture(pairs):
    moved = claims.other_pictures(Splits(pairs, pairs, pairs), 0)
    for part in moved:
        assert part["text"] == pairs["text"]
        same = (part["image_regions"].values == pairs["image_regions"].values).all(2).all(1)
        assert not same.any()


def test_the_temperature_of_nouns_and_fillers(pairs):
    rows = pairs.with_columns(text_filled=["well dog now", "cat now", "bell well", "dog now",
                                           "now cat well"])
    rows = rows.with_columns(text=rows["text_filled"])
    method = made(rows, "rcr", 1)
    arm = Trained(method, Splits(rows, rows, rows), None)
    words, regions = both(method, rows)
    lam = method.read(words, regions).lam[-1][torch.arange(5), torch.arange(5), :, 0]
    noun, filler = [], []
    for row, text in enumerate(rows["text"]):
        pieces = ["[CLS]", *text.split()]
        for place, word in enumerate(pieces):
            (noun if word in NOUNS else filler if word in claims.FILLERS else []).append(
                lam[row, place])
    want = (sum(noun) / len(noun) - sum(filler) / len(filler)) / 10
    assert claims.sharper_on_nouns(arm) == pytest.approx(float(want.detach()), abs=1e-6)
    plain = Trained(made(rows, "rcr", 0), arm.splits, None)
    assert claims.sharper_on_nouns(plain) == 0
    share = claims.fillers_a_word(arm)
    assert share == pytest.approx(7 / 12)
