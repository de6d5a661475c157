"""Partitions compared, and k-means, against scikit-learn and cases known by hand."""

import math

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from alignkit.evaluation import k_means, mutual_information


def test_mutual_information_is_scikit_learns():
    g = torch.Generator().manual_seed(0)
    for _ in range(5):
        a, b = (torch.randint(k, (60,), generator=g) for k in (4, 7))
        wanted = normalized_mutual_info_score(a, b)
        assert mutual_information(a, b) == pytest.approx(wanted)
        assert mutual_information(b, a) == pytest.approx(wanted)


def test_mutual_information_by_hand():
    a = torch.tensor([0, 0, 1, 1])
    assert mutual_information(a, 5 - a) == pytest.approx(1)
    assert mutual_information(a, torch.tensor([0, 1, 0, 1])) == pytest.approx(0)
    # Groups of one: I = ln 2, entropies ln 2 and ln 4.
    assert mutual_information(a, torch.arange(4)) == pytest.approx(
        math.log(2) / (1.5 * math.log(2)))
    assert mutual_information(a, torch.zeros(4)) == 0
    assert mutual_information(torch.zeros(4), torch.ones(4)) == 1
    for wrong in ((a, a[:2]), (a[:0], a[:0]), (a[None], a[None])):
        with pytest.raises(ValueError, match="a and b must be"):
            mutual_information(*wrong)


def test_k_means_finds_far_groups_and_as_good_ones_as_scikit_learn():
    g = torch.Generator().manual_seed(0)
    true = torch.arange(90) % 3
    x = torch.randn(90, 4, generator=g) + 20 * torch.eye(3, 4)[true]
    assert mutual_information(k_means(x, 3, seed=0), true) == 1
    x = torch.randn(200, 5, generator=g)
    found = k_means(x, 6, seed=1, starts=20)
    spread = sum(((x[found == k] - x[found == k].mean(0)) ** 2).sum() for k in range(6))
    best = KMeans(6, n_init=20, random_state=0).fit(x.numpy()).inertia_
    assert float(spread) < 1.02 * best and torch.equal(found, k_means(x, 6, seed=1, starts=20))
    with pytest.raises(ValueError, match="k is 201"):
        k_means(x, 201, seed=0)
