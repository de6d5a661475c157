"""CSLS: by hand, by loops, and what it must not change."""

from fractions import Fraction

import pytest
import torch

from alignkit.evaluation import csls, ranks


def test_csls_by_hand():
    """Two askers, two answers: the first answer is near to both."""
    scores = torch.tensor([[0.8, 0.6], [0.9, 0.7]], dtype=torch.float64)
    # k = 1: rows .8 and .9, columns .9 and .7.
    want = [[Fraction(16 - 8 - 9, 10), Fraction(12 - 8 - 7, 10)],
            [Fraction(18 - 9 - 9, 10), Fraction(14 - 9 - 7, 10)]]
    found = csls(scores, k=1)
    assert torch.allclose(found, torch.tensor([[float(x) for x in row] for row in want],
                                              dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_csls_is_the_loop(k):
    scores = torch.rand(5, 7, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    found = csls(scores, k)
    for i in range(5):
        near = sorted(scores[i].tolist())[-k:]
        for j in range(7):
            other = sorted(scores[:, j].tolist())[-k:]
            want = 2 * scores[i, j] - sum(near) / k - sum(other) / k
            assert found[i, j].item() == pytest.approx(want.item(), abs=1e-12)
    assert torch.allclose(found.T, csls(scores.T, k), rtol=0, atol=1e-12)


def test_a_hub_loses_and_equal_columns_keep_their_order():
    right = torch.eye(3, dtype=torch.bool)
    hub = torch.tensor([[0.9, 0.5, 0.3], [0.8, 0.7, 0.2], [0.9, 0.2, 0.8]])
    assert ranks(hub, right).tolist() == [1, 2, 2]
    assert ranks(csls(hub, k=2), right).tolist() == [1, 1, 1]
    # Each row and column holds the same numbers: no column is nearer to all than another.
    turned = torch.stack([torch.tensor([0.3, 0.9, 0.1, 0.5]).roll(k) for k in range(4)])
    assert torch.equal(csls(turned, k=2).argsort(1), turned.argsort(1))


@pytest.mark.parametrize("scores, k, said", [
    (torch.zeros(3), 1, "must be finite and"), (torch.full((2, 2), torch.nan), 1, "4 that are"),
    (torch.zeros(3, 2), 3, "between 1 and 2"), (torch.zeros(3, 2), 0, "got 0")])
def test_csls_refuses(scores, k, said):
    with pytest.raises(ValueError, match=said):
        csls(scores, k)
