"""The occupancy grid of point clouds and its twin, a random PointNet."""

import math
from itertools import product

import pytest
import torch
from needs import needs_asset
from test_encoders import cosines
from torch.nn import functional as F

from alignkit.data import Pairs
from alignkit.encoders import add_features, load
from alignkit.encoders.points import farthest, to_unit_sphere

BOTH = ("points:grid", "random:points:grid")


def cloud(number: int, n: int = 300) -> torch.Tensor:
    """Points in two boxes that differ by number, no two at equal distances."""
    generator = torch.Generator().manual_seed(number)
    sides, place = torch.rand(2, 2, 3, generator=generator)
    x = torch.rand(n, 3, generator=generator)
    return x * sides[torch.arange(n) % 2] + 2 * place[torch.arange(n) % 2]


@pytest.mark.parametrize("layer, n", [(0, 2), (1, 4), (2, 8)])
def test_the_grid_is_its_formula(layer, n):
    x = cloud(0, 20)
    centre = x.mean(0)
    radius = max(math.dist(point, centre) for point in x.tolist())
    shares = torch.zeros(n, n, n)
    for point in ((x - centre) / radius).tolist():
        weights = []
        for where in point:
            w = [math.exp(-(where - (-1 + (2 * c + 1) / n)) ** 2 / (2 * (1 / n) ** 2))
                 for c in range(n)]
            weights.append([v / sum(w) for v in w])
        for a, b, c in product(range(n), repeat=3):
            shares[a, b, c] += weights[0][a] * weights[1][b] * weights[2][c] / len(x)
    encoder = load("points:grid")
    got = encoder.encode([x], layers=[layer])[layer][0]
    torch.testing.assert_close(got, shares.flatten().sqrt(), atol=1e-5, rtol=1e-4)
    assert encoder.widths[layer] == n**3 and abs(got.norm() - 1) < 1e-5


def test_the_tokens_add_up_to_the_feature():
    x = [cloud(1), cloud(2)]
    shares, network = (load(name) for name in BOTH)
    for k in range(3):
        tokens = shares.encode(x, layers=[k], tokens=True)[k]
        assert tokens.mask.shape == (2, 32) and tokens.mask.all()
        torch.testing.assert_close(tokens.values.square().sum(1),
                                   shares.encode(x, layers=[k])[k].square())
        tokens = network.encode(x, layers=[k], tokens=True)[k]
        assert torch.equal(tokens.values.amax(1), network.encode(x, layers=[k])[k])


@pytest.mark.parametrize("name", BOTH)
def test_order_place_and_size_are_no_matter(name):
    encoder, x = load(name), cloud(3)
    mixed = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    others = [x, mixed, x + torch.tensor([5.0, -3, 1]), 0.01 * x]
    for tokens in (False, True):
        found = encoder.encode(others, tokens=tokens)[-1]
        found = found.values if tokens else found
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], atol=1e-4, rtol=1e-3)
    there, turned = encoder.encode([x, x[:, [2, 1, 0]]])[-1]  # the front counts
    assert (there - turned).norm() > 0.05 * there.norm()


def test_random_twin_of_the_grid():
    clouds = [cloud(i) for i in range(4)]
    first, again, other = (load("random:points:grid", seed=s) for s in (1, 1, 2))
    a, b, c = (e.encode(clouds)[-1] for e in (first, again, other))
    assert torch.equal(a, b) and first.weights_hash == again.weights_hash
    assert first.weights_hash != other.weights_hash
    assert cosines(a - a.mean(0), c - c.mean(0)).abs().max() < 0.9
    assert a.std(0).mean() > 0.1 * a.abs().mean()
    torch.testing.assert_close(first.encode(clouds[:1])[-1], a[:1])
    assert first.widths == {0: 64, 1: 128, 2: 512}


def test_farthest_points_by_hand():
    x = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [-1, 0, 0], [2, 0, 0], [2, 0, 0]])
    assert farthest(x, 3).tolist() == [3, 2, 1]  # 0.5 is 1.5 from both, 0 only 1
    assert farthest(x, 99).tolist() == [3, 2, 1, 0]  # the double is no fifth place


@pytest.mark.parametrize("name", BOTH)
def test_parts_of_clouds_of_different_size(name):
    places = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 0.5]])
    few, many = places.repeat(40, 1), cloud(4, 50)
    tokens = load(name).encode([few, many], tokens=True)[-1]
    assert tokens.mask.sum(1).tolist() == [3, 32]
    assert (tokens.values[0, 3:] == 0).all() and (tokens.values[1].sum(1) > 0).all()


@pytest.mark.parametrize("bad, message", [
    ("a chair", "needs tensors .p, 3., got str"),
    (torch.zeros(9, 6), r"got \(9, 6\); of points with normals"),
    (torch.zeros(0, 3), r"got \(0, 3\)"), (torch.ones(9, 3), "9 points in one place"),
    (torch.full((9, 3), torch.nan), "must be finite")])
def test_what_is_no_cloud_is_refused(bad, message):
    with pytest.raises((TypeError, ValueError), match=message):
        to_unit_sphere(bad)


def test_clouds_of_a_column(tmp_path, monkeypatch):
    monkeypatch.setattr("alignkit.encoders.cache.cache_dir", lambda: tmp_path)
    x = torch.stack([cloud(i) for i in range(5)])
    found = add_features(Pairs.make({"points": x, "text": ["a"] * 5}), "points",
                         "points:grid", layers="all", tokens=True)
    assert found["points_layer0"].shape == (5, 8)
    assert found["points_tokens"].values.shape == (5, 32, 512)
    assert torch.equal(found["points_layer2"], load("points:grid").encode(list(x))[-1])
    with pytest.raises(ValueError, match="'text' holds text; points:grid encodes poi"):
        add_features(found, "text", "points:grid")


def test_furniture_of_a_category_is_near():
    needs_asset("furniture")
    from alignkit.data.furniture import furniture

    pairs = furniture()
    label = pairs.labels["category"]
    same = torch.stack([label == label[i] for i in range(len(label))])

    def nearest_fits(name: str, apart: torch.Tensor) -> float:
        """How often the nearest piece, of those not set apart, has the category."""
        x = F.normalize(add_features(pairs, "points", name)["points_features"])
        near = (x @ x.T).masked_fill(apart, -2).argmax(1)
        return same[torch.arange(len(x)), near].float().mean().item()

    assert label.bincount().max() / len(label) < 0.18
    itself = torch.eye(len(label), dtype=torch.bool)
    group = pairs.group[:, None] == pairs.group  # "Concept Sedan 02" beside 03
    assert nearest_fits("points:grid", itself) > 0.47
    assert nearest_fits("points:grid", group) > 0.40
    assert 0.3 < nearest_fits("random:points:grid", group) < 0.39
