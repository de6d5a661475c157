"""IRRA's losses against slow loops, its exact properties, the masking slip, the sampler
of identities, and the figures of its claims."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from alignkit.claims import irra as claims
from alignkit.course import irra as exercises
from alignkit.data import Pairs, Tokens
from alignkit.evaluation import encode_pairs
from alignkit.methods.irra import Irra, IrraSettings, identity_of, sdm_loss
from alignkit.parts import info_nce, logits_of, mask_words, positives_of, unit
from alignkit.training import Budget, fit, seed_all

NAMES = ("dog", "cat", "bell", "kite", "owl", "crab")


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def people(n: int = 60) -> Pairs:
    """Six identities, n / 6 rows each: a noun, and a word that only the row knows."""
    y = torch.arange(n) % 6
    hidden = rows(6, 4)[y]
    values = torch.stack([hidden @ rows(4, 7, seed=k) + 0.2 * rows(n, 7, seed=k + 5)
                          for k in (1, 2, 3)], 1).float()
    colours = ("red", "blue", "green")
    text = [f"a {NAMES[i % 6]} of {colours[i // 6 % 3]}" for i in range(n)]
    return Pairs.make({"image_tokens": Tokens(values, torch.ones(n, 3).bool()),
                       "text": text}, labels={"identity": y + 40})


def settings(**rest) -> IrraSettings:
    return IrraSettings(**({"width": 8, "heads": 2, "vocabulary": 60} | rest))


def model(**rest) -> tuple[Irra, Pairs]:
    seed_all(0)
    pairs = people()
    return Irra(settings(**rest), pairs), pairs


def loop_sdm(f, t, scale, y, eps=1e-8):
    """The card's equation, a number at a time; f and t unit rows."""
    n, total = len(f), 0.0
    for asking, asked in ((f, t), (t, f)):
        for i in range(n):
            s = [scale * sum(asking[i, k] * asked[j, k] for k in range(f.shape[1]))
                 for j in range(n)]
            z = sum(x.exp() for x in s)
            same = sum(int(y[i] == y[k]) for k in range(n))
            for j in range(n):
                p, q = s[j].exp() / z, int(y[i] == y[j]) / same
                total = total + p * (p.log() - math.log(q + eps)) / n
    return total


@pytest.mark.parametrize("y", [[0, 1, 2, 3, 4], [0, 1, 0, 2, 0], [3, 3, 3, 3, 3]])
def test_sdm_and_its_gradient_are_the_equation(y):
    f, t = (unit(rows(5, 3, seed=k)).requires_grad_() for k in (0, 1))
    y = torch.tensor(y)
    scale = torch.tensor(6.0, dtype=torch.float64, requires_grad=True)
    fast, slow = sdm_loss(f, t, scale, positives_of(y)), loop_sdm(f, t, scale, y)
    assert abs(fast - slow) < 1e-9 * abs(slow)
    gradients = [torch.autograd.grad(loss, (f, t, scale)) for loss in (fast, slow)]
    for found, wanted in zip(*gradients):
        assert wanted.norm() > 1e-4 and (found - wanted).norm() < 1e-9 * wanted.norm()


def test_the_method_is_the_sum_of_the_card():
    m, pairs = model(share=0.5)
    m = m.eval().double()
    batch = m.collate(pairs.select(range(12)), torch.Generator().manual_seed(1))
    batch["image_tokens"] = Tokens(*(x.double() if x.is_floating_point() else x
                                     for x in batch["image_tokens"]))
    torch.nn.init.normal_(m.classifier.weight)
    out, losses, y = m.encode(batch), m(batch), batch["item"]
    scale = m.temperature()
    wanted = loop_sdm(unit(out["image"]), unit(out["text"]), scale, y)
    assert scale.item() == pytest.approx(50)
    assert abs(losses["match_loss"] / wanted - 1) < 1e-9
    known = sorted(set(y.tolist()))  # the classifier's places
    total = 0.0
    for z in out.values():
        for i in range(12):
            logits = m.classifier.weight @ z[i] + m.classifier.bias
            total = total - (logits - logits.exp().sum().log())[known.index(int(y[i]))]
    assert torch.isclose(losses["identity_loss"], total / 24, rtol=1e-12)
    words, total, n = m.words(batch), 0.0, 0
    for i, place in (batch["text_targets"] >= 0).nonzero().tolist():
        logits, target = words[i, place], batch["text_targets"][i, place]
        total = total - (logits - logits.exp().sum().log())[target]
        n += 1
    assert n > 12 and torch.isclose(losses["word_loss"], total / n, rtol=1e-12)
    assert set(losses) == {"match_loss", "identity_loss", "word_loss"}


def test_features_are_means_of_real_tokens():
    m, pairs = model()
    batch = m.eval().collate(pairs.select(range(7)), torch.Generator())
    values, real = m.read(batch["text_ids"])
    out = m.encode(batch)
    for i in range(7):
        assert torch.allclose(out["text"][i], values[i][real[i]].mean(0), atol=1e-6)
    patches = m.patches(batch["image_tokens"].values.mean(1))
    assert torch.allclose(out["image"], patches, atol=1e-5)
    assert not torch.allclose(out["image"].norm(dim=1), torch.ones(7))  # raw, for W


# The exact properties of the paper's loss ---------------------------------------------
def test_a_sdm_is_nothing_only_where_p_is_q():
    y = torch.tensor([0, 0, 1, 1, 2])
    corners = torch.eye(3, dtype=torch.float64)[y]
    assert sdm_loss(corners, corners, 100.0, positives_of(y)).abs() < 1e-6
    f, t = corners.clone(), corners.clone()
    f[0] = unit(torch.tensor([[1.0, 0.3, 0.0]]))  # still nearest to its own
    assert sdm_loss(f, t, 10.0, positives_of(y)) > 0.01
    wrong = corners[[2, 3, 0, 1, 4]]
    assert sdm_loss(wrong, t, 100.0, positives_of(y)) > 28  # 2 · 4/5 · (18.4 − ln 2)


def test_b_of_distinct_identities_it_is_a_linear_price_less_entropy():
    f, t = (unit(rows(6, 3, seed=k)) for k in (0, 1))
    wanted = 0.0
    for scores in (f @ t.T, t @ f.T):
        p = (9 * scores).softmax(1)
        entropy = -(p * p.log()).sum(1)
        wanted = wanted + ((1 - p.diagonal()) * -math.log(1e-8) - entropy).mean()
    assert torch.isclose(sdm_loss(f, t, 9.0, torch.eye(6).bool()), wanted, atol=1e-7)


def test_b_its_gradient_fades_at_both_ends():
    """By the logit of the pair; cross entropy's does not fade where p_ii is 0."""
    def slope(gap: float, loss) -> float:
        logits = torch.tensor([[gap, 0, 0]], dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(loss(logits), logits)[0][0, 0].abs().item()

    target = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)

    def reverse(x):
        p = x.log_softmax(1)
        return (p.exp() * (p - (target + 1e-8).log())).sum()

    def cross_entropy(x):
        return -(target * x.log_softmax(1)).sum()

    ends = [slope(gap, reverse) for gap in (-12.0, 0.0, 12.0)]
    assert ends[1] > 3 and ends[0] < 0.01 and ends[2] < 0.01
    assert slope(-12.0, cross_entropy) > 0.99 and slope(12.0, cross_entropy) < 0.01


def test_c_other_names_of_identities_change_nothing():
    f, t = (unit(rows(6, 3, seed=k)) for k in (0, 1))
    y = torch.tensor([4, 4, 7, 9, 7, 4])
    named = torch.tensor([0, 0, 50, 2, 50, 0])
    loss = sdm_loss(f, t, 9.0, positives_of(y))
    assert loss == sdm_loss(f, t, 9.0, positives_of(named))
    assert loss != sdm_loss(f, t, 9.0, positives_of(torch.arange(6)))


def test_d_what_is_retrieved_does_not_need_the_training_branches():
    whole, pairs = model()
    bare, _ = model(identity=False, words=False)
    bare.load_state_dict(whole.state_dict(), strict=False)
    for z, same in zip(*(encode_pairs(m, pairs, ("image", "text")).values()
                         for m in (whole, bare))):
        assert torch.equal(z, same)
    extra = set(whole.state_dict()) - set(bare.state_dict())
    assert {name.split(".")[0] for name in extra} == {"classifier", "look", "reason",
                                                      "word_head"}


def test_two_captions_of_one_identity_share_the_row():
    """SDM's optimum is one half each; InfoNCE still wants one and not the other."""
    y = torch.tensor([0, 0, 1])
    f = t = torch.eye(2, dtype=torch.float64)[y]
    p = logits_of(f, t, 50.0).softmax(1)
    assert torch.allclose(p[0, :2], torch.full((2,), 0.5).double())
    assert sdm_loss(f, t, 50.0, positives_of(y)).abs() < 1e-6
    assert info_nce(f, t, 50.0) > 0.4  # two thirds of ln 2
    assert torch.isclose(info_nce(f, t, 50.0, positives_of(y)),
                         torch.tensor(2 / 3 * math.log(2)).double())


@pytest.mark.parametrize("wrong", [torch.eye(4).bool(), torch.zeros(5, 5).bool()])
def test_positives_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must be \(5, 5\) with a right answer"):
        sdm_loss(rows(5, 3), rows(5, 3, seed=1), 9.0, wrong)


# The arms -----------------------------------------------------------------------------
def test_each_match_is_its_loss():
    found = {}
    for match in ("sdm", "itc", "multi"):
        m, pairs = model(match=match, identity=False, words=False)
        m.eval()
        batch = m.collate(pairs.select(range(20)), torch.Generator())
        found[match] = m(batch)["match_loss"]
        z = {k: unit(v) for k, v in m.encode(batch).items()}
    same = positives_of(batch["item"])
    assert torch.isclose(found["sdm"], sdm_loss(*z.values(), 50.0, same), rtol=1e-5)
    assert torch.isclose(found["itc"], info_nce(*z.values(), 50.0), rtol=1e-5)
    assert torch.isclose(found["multi"], info_nce(*z.values(), 50.0, same), rtol=1e-5)
    assert len({round(x.item(), 3) for x in found.values()}) == 3
    with pytest.raises(ValueError, match="'sdm', 'itc' or 'multi'"):
        settings(match="clip")


def test_rows_without_the_label_are_known_by_their_item():
    pairs = people(12)
    assert identity_of(pairs).tolist() == [40, 41, 42, 43, 44, 45] * 2
    assert torch.equal(identity_of(replace(pairs, labels={})), pairs.item)


@pytest.mark.parametrize("odd", [39, 46])  # below the smallest, above the largest
def test_an_identity_that_the_classifier_does_not_know_is_refused(odd):
    m, pairs = model(words=False)
    batch = m.eval().collate(pairs.select(range(8)), torch.Generator())
    assert m(batch)["identity_loss"].isfinite()
    batch["item"][3] = odd
    with pytest.raises(ValueError, match=rf"identities \[{odd}\] are not among the 6 "):
        m(batch)


def test_the_slip_masks_captions_in_training_alone():
    clean, pairs = model()
    slip, _ = model(leak=True)
    for m, training, same in ((clean, True, True), (slip, True, False),
                              (slip, False, True)):
        batch = m.train(training).collate(pairs, torch.Generator().manual_seed(0))
        whole = m.pieces(pairs["text"])
        assert torch.equal(batch["text_ids"].values, whole.values) is same
        assert not torch.equal(batch["text_masked"].values, whole.values)


# The sampler --------------------------------------------------------------------------
@pytest.mark.parametrize("together", [1, 2, 4])
def test_a_training_batch_holds_so_many_rows_of_each_identity(together):
    m, pairs = model(instances=together)
    drawn = torch.Generator().manual_seed(0)
    batches = [m.drawn(12 if together > 1 else 6, drawn) for _ in range(60)]
    for found in batches:
        counts = identity_of(pairs)[found].bincount()
        assert set(counts[counts > 0].tolist()) == {together}
        assert len(found.unique()) == len(found) == (12 if together > 1 else 6)
    assert len(torch.cat(batches).unique()) == 60  # every row has its turn
    again = torch.Generator().manual_seed(0)
    assert torch.equal(m.drawn(len(batches[0]), again), batches[0])


def test_few_rows_of_an_identity_are_made_up_by_others():
    pairs = people()
    m = Irra(settings(instances=4), pairs.select(range(9)))  # one or two rows each
    assert len(m.drawn(8, torch.Generator().manual_seed(0)).unique()) == 8
    assert len(m.drawn(50, torch.Generator().manual_seed(0))) == 9


def test_only_training_batches_are_drawn_also_after_a_validation(monkeypatch):
    m, pairs = model(instances=4)
    rows_of = pairs.select(range(8))
    batch = m.eval().collate(rows_of, torch.Generator())
    assert torch.equal(batch["item"], identity_of(rows_of))
    calls, draw = [], m.drawn
    monkeypatch.setattr(m, "drawn", lambda *given: calls.append(1) or draw(*given))
    fit(m, pairs, Budget(steps=5, batch_size=8, validate_every=1),
        validate=lambda m: {"mAP": claims.identity_map(m, rows_of)})
    assert len(calls) == 5


@pytest.mark.parametrize("match", ["sdm", *(
    pytest.param(name, marks=pytest.mark.slow) for name in ("itc", "multi"))])
@pytest.mark.slow
def test_it_learns_identities_and_to_fill_in_words(match):
    m, pairs = model(match=match, instances=4, width=16)
    before = claims.identity_map(m, pairs), claims.filled(m, pairs)
    fit(m, pairs, Budget(steps=150, batch_size=24, lr=1e-2))
    assert claims.identity_map(m, pairs) > before[0] + 0.3
    assert claims.filled(m, pairs) > before[1] + 0.3


# The figures of the claims ------------------------------------------------------------
def test_the_tokens_are_those_under_the_quarters():
    values = torch.arange(49.0).view(1, 49, 1)
    box = torch.tensor([[32.0, 64.0, 96.0, 128.0]])  # columns 1 and 2, rows 2 and 3
    assert claims.quarters(values, box).values.flatten().tolist() == [15, 16, 22, 23]


def test_map_counts_every_row_of_an_identity():
    m, pairs = model()
    few = pairs.select(range(14))
    z = encode_pairs(m, few, ("image", "text"))
    scores = F.cosine_similarity(z["image"][:, None], z["text"][None], dim=2)
    y, total = identity_of(few), 0.0
    for s in (scores, scores.T):
        for i in range(14):
            order = (-s[i]).argsort().tolist()
            right = [k for k, j in enumerate(order, 1) if y[j] == y[i]]
            total += sum((n / k) for n, k in enumerate(right, 1)) / len(right) / 28
    assert claims.identity_map(m, few) == pytest.approx(total, abs=1e-6)


@pytest.mark.slow
def test_words_are_filled_in_from_the_picture_that_is_given():
    """A picture that says which noun: its own helps, another one does not."""
    m, pairs = model(width=16, instances=4)
    fit(m, pairs, Budget(steps=200, batch_size=24, lr=1e-2))
    trained = claims.Trained(m, pairs.split(0)._replace(test=pairs), None)
    figures = claims.words_seen({"other-picture": trained, "own-picture": trained})
    assert figures["own-picture"] > figures["other-picture"] + 0.05
    assert claims.rows_together(trained) == 4.0


# The exercises teach what the package computes ----------------------------------------
@pytest.mark.parametrize("exercise, function", [
    (exercises.hide, lambda *given: _hidden(*given)),
    (exercises.partly_known, lambda y: F.normalize(positives_of(_alone(y)).float(), p=1,
                                                   dim=1))],
    ids=lambda x: getattr(x, "name", ""))
def test_the_package_passes_the_exercise(exercise, function):
    assert exercise.grade(function).startswith(exercise.name)


def _alone(identity):
    """Each unknown identity, -1, becomes one of its own."""
    return torch.where(identity < 0, 1000 + torch.arange(len(identity)), identity)


def _hidden(ids, draw, share):
    """`mask_words` with this very draw: always [MASK], and at least what was drawn."""
    kinds = torch.stack([draw, torch.zeros_like(draw)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *size, generator: kinds)
        hidden, _ = mask_words(Tokens(ids, ids > 0), 40, torch.Generator(), share)
    drawn = (draw < share) & (ids >= 5)
    return torch.where(drawn, hidden.values, ids)
