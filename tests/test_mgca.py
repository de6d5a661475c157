"""MGCA's three levels against loops from the equations, and what must hold exactly."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from alignkit.claims import mgca as claims_file
from alignkit.data import Pairs, Tokens
from alignkit.methods.mgca import (
    Mgca,
    MgcaSettings,
    attended,
    instance_loss,
    prototype_loss,
    token_loss,
    weights_of,
)
from alignkit.parts import info_nce, sinkhorn, unit


def toy_features(pairs: Pairs) -> Pairs:
    return replace(pairs, labels={"finding": torch.arange(len(pairs)) % 4})


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed),
                       dtype=torch.float64)


def tokens(n: int, t: int, lengths: list[int], seed: int) -> Tokens:
    return Tokens(unit(drawn(n, t, 6, seed=seed)),
                  torch.arange(t) < torch.tensor(lengths)[:, None])


def slow_token_loss(asking: Tokens, asked: Tokens, tau: float, omega) -> torch.Tensor:
    """Word by word, from the equation; omega: of each row's real tokens."""
    total = 0.0
    for i in range(len(asking.values)):
        w = asking.values[i][asking.mask[i]]
        p = asked.values[i][asked.mask[i]]
        a = []
        for m in range(len(w)):
            e = [torch.exp(w[m] @ p[n] / tau) for n in range(len(p))]
            mixed = sum(x / sum(e) * p[n] for n, x in enumerate(e))
            a.append(mixed / mixed.norm())
        for m in range(len(w)):
            own = torch.exp(w[m] @ a[m] / tau)
            row = sum(torch.exp(w[m] @ a[k] / tau) for k in range(len(w)))
            column = sum(torch.exp(w[k] @ a[m] / tau) for k in range(len(w)))
            total = total - omega[i][m] * ((own / row).log() + (own / column).log()) / 2
    return total / len(asking.values)


@pytest.mark.parametrize("tau", [0.1, 1.0])
@pytest.mark.parametrize("weighed", [False, True])
def test_token_loss_and_its_gradient_are_the_loops(tau, weighed):
    words, patches = tokens(3, 5, [5, 2, 1], 0), tokens(3, 4, [4, 4, 3], 1)
    for a, b in ((words, patches), (patches, words)):
        lengths = a.mask.sum(1).tolist()
        omega = [[(m + 1) / sum(range(1, n + 1)) if weighed else 1 / n for m in range(n)]
                 for n in lengths]
        padded = torch.zeros(a.mask.shape, dtype=torch.float64)
        for row, each in zip(padded, omega):
            row[:len(each)] = torch.tensor(each, dtype=torch.float64)
        leaves = [x.values.requires_grad_() for x in (a, b)]
        fast = token_loss(a, b, tau, padded if weighed else None)
        slow = slow_token_loss(a, b, tau, omega)
        near = 1e-9
        assert fast.item() == pytest.approx(slow.item(), rel=near)
        for one, other in zip(*(torch.autograd.grad(x, leaves) for x in (fast, slow))):
            assert torch.allclose(one, other, rtol=near, atol=near)


def test_padding_changes_nothing():
    words, patches = tokens(3, 5, [5, 2, 1], 0), tokens(3, 4, [4, 4, 3], 1)
    longer = Tokens(torch.cat([words.values, 9 * drawn(3, 2, 6)], 1),
                    nn.functional.pad(words.mask, (0, 2)))
    for a, b, c, d in ((longer, patches, words, patches), (patches, longer, patches, words)):
        assert torch.allclose(token_loss(a, b), token_loss(c, d), rtol=1e-9)
    method = Mgca(MgcaSettings(), toy()).eval()
    raw = toy()["text_tokens"]
    here = Tokens(raw.values, torch.arange(4) < torch.tensor([4, 2] * 6)[:, None])
    other = Tokens(raw.values + 7 * ~here.mask[..., None], here.mask)
    assert torch.equal(*(method.train().tokens("text", x).values for x in (here, other)))


def test_one_word_has_no_loss_and_weights_sum_to_one():
    one, patches = tokens(2, 3, [1, 1], 0), tokens(2, 4, [4, 2], 1)
    assert abs(float(token_loss(one, patches))) < 1e-12
    own, weights = attended(one, patches, 0.1)
    assert torch.allclose(weights.sum(2), torch.ones(2, 3).double())
    assert (weights[1, :, 2:] == 0).all() and torch.allclose(own.norm(dim=2),
                                                             torch.ones(2, 3).double())


def test_attention_is_clipped_to_its_quantiles():
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    attention = torch.tensor([[0.0, 1, 2, 3, 14], [1.0, 3, 9, 9, 9]], requires_grad=True)
    # Quantiles .1 and .9 of 0, 1, 2, 3, 14 are .4 and 9.6; of 1 and 3 they are 1.2 and 2.8.
    wanted = torch.tensor([[0.4, 1, 2, 3, 9.6], [1.2, 2.8, 0, 0, 0]])
    found = weights_of(mask, attention)
    assert torch.allclose(found, wanted / wanted.sum(1, keepdim=True)) and not found.requires_grad
    assert torch.equal(weights_of(mask)[1], torch.tensor([0.5, 0.5, 0, 0, 0]))
    assert torch.equal(weights_of(mask[1:, :1], attention[1:, :1]), torch.ones(1, 1))


def test_prototype_loss_and_its_gradient_are_the_cards():
    image, text = (x.requires_grad_() for x in (drawn(6, 4) / 3, drawn(6, 4, seed=1) / 3))
    loss = prototype_loss(image, text, 0.2, 0.05)
    codes = [sinkhorn(x.detach(), 0.05) for x in (image, text)]
    slow = 0.0
    for i in range(6):
        for k in range(4):
            for q, other in ((codes[0], text.detach()), (codes[1], image.detach())):
                e = [math.exp(float(other[i, j]) / 0.2) for j in range(4)]
                slow -= float(q[i, k]) * math.log(e[k] / sum(e)) / 2 / 6
    assert loss.item() == pytest.approx(slow, rel=1e-9)
    for found, scores, q in zip(torch.autograd.grad(loss, (image, text)), (image, text),
                                codes[::-1]):
        wanted = ((scores / 0.2).softmax(1) - q) / (2 * 6 * 0.2)
        assert torch.allclose(found, wanted.detach(), atol=1e-12)


def test_instance_loss_is_both_directions_and_leaves_equal_rows_out():
    image, text = unit(drawn(5, 3)), unit(drawn(5, 3, seed=1))
    assert torch.allclose(instance_loss(image, text), 2 * info_nce(image, text, 1 / 0.07))
    same = torch.tensor([0, 1, 0, 2, 1])
    slow = 0.0
    for i in range(5):
        left = [j for j in range(5) if j == i or same[j] != same[i]]
        for a, b in ((image, text), (text, image)):
            e = {j: math.exp(float(a[i] @ b[j]) / 0.07) for j in left}
            slow -= math.log(e[i] / sum(e.values())) / 5
    assert instance_loss(image, text, same=same).item() == pytest.approx(slow, rel=1e-9)
    assert float(instance_loss(image, text, same=torch.zeros(5))) == 0


def toy(n: int = 12) -> Pairs:
    mask = torch.ones(n, 4, dtype=torch.bool)
    return Pairs.make({"image_features": drawn(n, 10).float(),
                       "text_features": drawn(n, 8, seed=1).float(),
                       "image_tokens": Tokens(drawn(n, 4, 10, seed=2).float(), mask),
                       "text_tokens": Tokens(drawn(n, 4, 8, seed=3).float(), mask)},
                      labels={"findings": torch.arange(n) // 2})


def test_levels_and_prototypes_that_are_held():
    pairs = toy()
    torch.manual_seed(0)
    full = Mgca(MgcaSettings(prototypes=5), pairs)
    found = full(pairs.batch(), progress=0.5)
    assert {*found} == {"ita_loss", "cta_loss", "cpa_loss"}
    sum(found.values()).backward()
    # A batch norm takes the bias before it away; its gradient is rounding alone.
    assert all(p.grad is not None and p.grad.abs().sum() > 0
               for name, p in full.named_parameters() if not name.endswith(("0.bias", "3.bias")))
    full.zero_grad()
    sum(full(pairs.batch(), progress=0.0).values()).backward()
    assert full.prototypes.grad is None
    with torch.no_grad():
        full.prototypes.mul_(torch.tensor([3.0, 0.1, 1, 2, 5])[:, None])
    full.after_step()
    assert torch.allclose(full.prototypes.norm(dim=1), torch.ones(5))
    one = Mgca(MgcaSettings(levels=("ita",), same="findings"), pairs)
    assert {*one(pairs.batch())} == {"ita_loss"} and one.traits == frozenset()
    assert not any("token" in name or "proto" in name for name, _ in one.named_parameters())
    with pytest.raises(ValueError, match="levels must be of"):
        MgcaSettings(levels=("cpa",))


def test_attention_weighs_words():
    pairs = toy()
    torch.manual_seed(0)
    method = Mgca(MgcaSettings(levels=("ita", "cta")), pairs).eval()
    plain, even = method(pairs.batch()), torch.full((12, 4), 0.3)
    same = method(pairs.with_features(text_attention=even).batch())
    more = method(pairs.with_features(text_attention=even.cumsum(1)).batch())
    assert torch.allclose(plain["cta_loss"], same["cta_loss"])
    assert (plain["cta_loss"] - more["cta_loss"]).abs() > 1e-4


# The claims' own figures --------------------------------------------------------------
def test_labels_become_findings_and_sets():
    pairs = replace(toy(6), labels={"finding": torch.tensor([0, 1, 2, 0, 1, 2]),
                                    "fever": torch.tensor([0, 0, 1, 0, 1, 1])})
    rows = claims_file.labelled(pairs)
    assert claims_file.findings(rows).int().tolist() == [
        [0, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1], [0, 1, 1]]
    sets = rows.labels["findings"].tolist()
    assert sets[0] == sets[3] and sets[2] == sets[5] and len({*sets}) == 4
    with pytest.raises(ValueError, match="finding"):
        claims_file.data("tiny", replace(toy(6), labels={}))


def test_pointing_wants_the_right_words():
    """Each row has one finding in a cell of its own; words that point there hit, and the
    words of the other finding do not."""
    class Plain(nn.Module):
        def tokens(self, name, tokens):
            return tokens

    cell = torch.arange(8) % 4
    picture = torch.eye(4).expand(8, 4, 4).clone()
    said = torch.stack([torch.eye(4)[cell], -torch.eye(4)[cell]], 1)
    box = torch.stack([cell % 2, cell // 2, cell % 2 + 1, cell // 2 + 1], 1) * 50.0
    from PIL import Image

    pairs = Pairs.make(
        {"image_tokens": Tokens(picture, torch.ones(8, 4).bool()),
         "text_tokens": Tokens(said, torch.ones(8, 2).bool())}, tables={"findings": {
             "item": torch.arange(8), "finding": cell, "box": box,
             "words": torch.tensor([[True, False]]).expand(8, 2)}})
    pairs = replace(pairs, columns={**pairs.columns, "image": [Image.new("RGB", (100, 100))] * 8})
    assert claims_file.points_at(Plain(), pairs) == 1
    assert claims_file.points_at(Plain(), pairs.select([4, 1, 3])) == 1
    other = {**pairs.tables["findings"], "box": box.roll(1, 0)}
    assert claims_file.points_at(Plain(), replace(pairs, tables={"findings": other})) < 0
