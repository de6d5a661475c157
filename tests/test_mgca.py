"""MGCA's three levels against loops from the equations, and what must hold exactly."""

import math

import pytest
import torch

from alignkit.data import Pairs, Tokens
from alignkit.methods.mgca import Mgca, MgcaSettings, attended, prototype_loss, token_loss
from alignkit.parts import sinkhorn, unit


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed),
                       dtype=torch.float64)


def tokens(n: int, t: int, lengths: list[int], seed: int) -> Tokens:
    return Tokens(unit(drawn(n, t, 6, seed=seed)),
                  torch.arange(t) < torch.tensor(lengths)[:, None])


def slow_token_loss(asking: Tokens, asked: Tokens, tau: float) -> float:
    total = 0.0
    for i in range(len(asking.values)):
        w = asking.values[i][asking.mask[i]]
        p = asked.values[i][asked.mask[i]]
        a = []
        for m in range(len(w)):
            e = [math.exp(float(w[m] @ p[n]) / tau) for n in range(len(p))]
            mixed = sum(x / sum(e) * p[n] for n, x in enumerate(e))
            a.append(mixed / mixed.norm())
        loss = 0.0
        for m in range(len(w)):
            own = math.exp(float(w[m] @ a[m]) / tau)
            row = sum(math.exp(float(w[m] @ a[k]) / tau) for k in range(len(w)))
            column = sum(math.exp(float(w[k] @ a[m]) / tau) for k in range(len(w)))
            loss -= (math.log(own / row) + math.log(own / column)) / len(w)
        total += loss / 2 / len(asking.values)
    return total


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_token_loss_is_the_loop_and_padding_changes_nothing(tau):
    words, patches = tokens(3, 5, [5, 2, 1], 0), tokens(3, 4, [4, 4, 3], 1)
    for a, b in ((words, patches), (patches, words)):
        assert float(token_loss(a, b, tau)) == pytest.approx(slow_token_loss(a, b, tau))
    longer = Tokens(torch.cat([words.values, 9 * drawn(3, 2, 6)], 1),
                    torch.nn.functional.pad(words.mask, (0, 2)))
    for pair in ((longer, patches), (patches, longer)):
        plain = tuple(words if t is longer else t for t in pair)
        assert torch.allclose(token_loss(*pair, tau), token_loss(*plain, tau))


def test_one_word_has_no_loss_and_weights_sum_to_one():
    one, patches = tokens(2, 3, [1, 1], 0), tokens(2, 4, [4, 2], 1)
    assert abs(float(token_loss(one, patches))) < 1e-12
    own, weights = attended(one, patches, 0.1)
    assert torch.allclose(weights.sum(2), torch.ones(2, 3).double())
    assert (weights[1, :, 2:] == 0).all() and torch.allclose(own.norm(dim=2),
                                                             torch.ones(2, 3).double())


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
    assert loss.item() == pytest.approx(slow)
    for found, scores, q in zip(torch.autograd.grad(loss, (image, text)), (image, text),
                                codes[::-1]):
        wanted = ((scores / 0.2).softmax(1) - q) / (2 * 6 * 0.2)
        assert torch.allclose(found, wanted.detach(), atol=1e-12)


def toy(n: int = 12) -> Pairs:
    mask = torch.ones(n, 4, dtype=torch.bool)
    return Pairs.make({"image_features": drawn(n, 10).float(),
                       "text_features": drawn(n, 8, seed=1).float(),
                       "image_tokens": Tokens(drawn(n, 4, 10, seed=2).float(), mask),
                       "text_tokens": Tokens(drawn(n, 4, 8, seed=3).float(), mask)})


def test_levels_and_prototypes_that_are_held():
    pairs = toy()
    torch.manual_seed(0)
    full = Mgca(MgcaSettings(prototypes=5), pairs)
    found = full(pairs.batch(), progress=0.5)
    assert {*found} == {"ita_loss", "cta_loss", "cpa_loss"}
    sum(found.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in full.parameters())
    full.zero_grad()
    sum(full(pairs.batch(), progress=0.0).values()).backward()
    assert full.prototypes.grad is None
    full.after_step()
    assert torch.allclose(full.prototypes.norm(dim=1), torch.ones(5))
    assert {*Mgca(MgcaSettings(levels=("ita",)), pairs)(pairs.batch())} == {"ita_loss"}
    with pytest.raises(ValueError, match="levels must be of"):
        MgcaSettings(levels=("cpa",))


