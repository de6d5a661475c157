"""Subspace, affine map and local CKA against slow loops, and their exact properties."""

from dataclasses import replace

import pytest
import torch

from alignkit.claims import platos_cave_3d as claims
from alignkit.claims.claim import Trained
from alignkit.data import Pairs, Splits
from alignkit.evaluation import cca, cka
from alignkit.methods.platos_cave_3d import PlatosCave3d, PlatosCave3dSettings, principal
from alignkit.training import fit


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def two_views(n: int = 90, p: int = 6, q: int = 5, seed: int = 0) -> Pairs:
    """Both sides show three causes, each with noise of its own, mixed and shifted."""
    seen = rows(n, 3, seed)
    return Pairs.from_features({
        "points_features": torch.cat([seen, rows(n, p - 3, seed + 1)], 1) @ rows(p, p, 7) + 2,
        "text_features": torch.cat([seen + 0.5 * rows(n, 3, seed + 2),
                                    rows(n, q - 3, seed + 3)], 1) @ rows(q, q, 8) - 1})


# For the tests of all papers (toys.py).
def toy_pairs(pairs: Pairs) -> Pairs:
    """A cloud of 32 points a row."""
    drawn = torch.Generator().manual_seed(0)
    return pairs.with_columns(points=torch.randn(len(pairs), 32, 3, generator=drawn))


def toy_features(pairs: Pairs) -> Pairs:
    """And features of it that know something of the picture's."""
    image = pairs["image_features"]
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    return toy_pairs(pairs).with_columns(points_features=image.flip(1) + noise)


def fitted(pairs: Pairs, **settings) -> PlatosCave3d:
    method = PlatosCave3d(PlatosCave3dSettings(**settings), pairs)
    history = fit(method, pairs)
    assert not history.steps  # a closed form
    return method


def scores(method: PlatosCave3d, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """[texts, shapes]"""
    outputs = method.encode({"points_features": x, "text_features": y})
    return method.score(outputs["text"], outputs["points"])


def centred_sums(a: list, b: list) -> list[list]:
    """Σ over rows of products of centred columns, one number at a time."""
    n = len(a)
    mean_a = [sum(r[i] for r in a) / n for i in range(len(a[0]))]
    mean_b = [sum(r[j] for r in b) / n for j in range(len(b[0]))]
    return [[sum((a[k][i] - mean_a[i]) * (b[k][j] - mean_b[j]) for k in range(n))
             for j in range(len(b[0]))] for i in range(len(a[0]))]


def loop_cka(a: list, b: list) -> torch.Tensor:
    """‖AᵀB‖² / (‖AᵀA‖ ‖BᵀB‖) of centred rows, in lists of scalar tensors."""
    def square(m):
        return sum(v * v for row in m for v in row)
    return square(centred_sums(a, b)) / (square(centred_sums(a, a))
                                         * square(centred_sums(b, b))).sqrt()


def listed(x: torch.Tensor) -> list[list]:
    return [list(row) for row in x]


# Local CKA ------------------------------------------------------------------------------
@pytest.mark.parametrize("subspace", ["cca", "none"])
def test_local_cka_is_the_loop(subspace):
    """(n + 1) times what a pair makes of the anchors' CKA, less theirs alone."""
    pairs = two_views(8, 4, 4)
    method = fitted(pairs, subspace=subspace, k=2, ridge=0.1, align="local-cka")
    u, v = (method.project(pairs[c], side) for side, c in
            enumerate(("points_features", "text_features")))
    x, y = rows(2, 4, 20) + 2, rows(3, 4, 21)
    fast = scores(method, x, y)
    slow = []
    for j in range(3):
        for i in range(2):
            with_pair = [listed(torch.cat([anchors, method.project(query[k:k + 1], side)]))
                         for side, (anchors, query, k) in enumerate(((u, x, i), (v, y, j)))]
            slow.append(9 * (loop_cka(*with_pair) - loop_cka(listed(u), listed(v))))
    slow = torch.stack(slow).reshape(3, 2)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)


def test_local_cka_puts_true_pairs_first():
    pairs = two_views(400)
    anchors, queries = pairs.select(range(300)), pairs.select(range(300, 400))
    for align in ("local-cka", "affine"):
        method = fitted(anchors, k=3, align=align)
        s = scores(method, queries["points_features"], queries["text_features"])
        right = (s.diagonal()[:, None] >= s).double().mean(1)
        assert right.mean() > 0.9, align


def test_local_cka_carries_no_gradient_and_affine_does():
    """As the card says: what `evaluation` measures is detached."""
    for align, carries in (("local-cka", False), ("affine", True)):
        method = fitted(two_views(30), k=2, align=align)
        y = rows(3, 5).requires_grad_()
        assert scores(method, rows(2, 6), y).requires_grad == carries


# The subspace and the map -----------------------------------------------------------------
def loop_map(v: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """R and b of the least squares Σ ‖v R + b − u‖², by the normal equations with a
    column of ones."""
    ones = torch.cat([v, torch.ones(len(v), 1, dtype=v.dtype)], 1)
    d = ones.shape[1]
    gram = torch.stack([torch.stack([sum(r[i] * r[j] for r in ones) for j in range(d)])
                        for i in range(d)])
    right = torch.stack([torch.stack([sum(r[i] * t[j] for r, t in zip(ones, u))
                                      for j in range(u.shape[1])]) for i in range(d)])
    return torch.linalg.solve(gram, right)


def test_affine_scores_and_their_gradient_are_the_loop():
    pairs = two_views(60)
    method = fitted(pairs, k=3, ridge=0.0)
    x, y = (pairs[f"{side}_features"] for side in ("points", "text"))
    u, v = method.project(x, 0), method.project(y, 1)
    solved = loop_map(v, u)
    new_x, new_y = rows(4, 6, 30), rows(5, 5, 31).requires_grad_()
    mapped = method.project(new_y, 1) @ solved[:-1] + solved[-1]
    target = method.project(new_x, 0)
    slow = torch.stack([torch.stack([(m * t).sum() / (m.square().sum() * t.square().sum()).sqrt()
                                     for t in target]) for m in mapped])
    fast = scores(method, new_x, new_y)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    weights = rows(5, 4, 32)
    gradients = [torch.autograd.grad((s * weights).sum(), new_y)[0] for s in (fast, slow)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_without_ridge_the_map_is_the_canonical_correlations():
    pairs = two_views(200)
    x, y = pairs["points_features"], pairs["text_features"]
    method, found = fitted(pairs, k=4, ridge=0.0), cca(x, y, 4, 0.0)
    assert (method.R - torch.diag(found.correlations)).abs().max() < 1e-12
    solved = loop_map(method.project(y, 1), method.project(x, 0))
    assert solved[-1].abs().max() < 1e-12  # the shift
    u = method.project(x, 0)
    assert (u.T @ u / 199 - torch.eye(4)).abs().max() < 1e-10  # unit variance
    # With a ridge it is not: variates are shorter, and no longer uncorrelated.
    ridged = fitted(pairs, k=4, ridge=1.0)
    assert (ridged.R - torch.diag(ridged.R.diagonal())).abs().max() > 1e-3


@pytest.mark.parametrize("align", ["affine", "local-cka"])
def test_any_invertible_map_of_a_side_changes_no_score(align):
    pairs, x, y = two_views(200), rows(5, 6, 40), rows(5, 5, 41)
    turned = pairs.with_columns(
        points_features=pairs["points_features"] @ rows(6, 6, 42) + 3)
    moved = x @ rows(6, 6, 42) + 3
    for ridge, same in ((0.0, True), (0.3, False)):
        before = scores(fitted(pairs, k=3, ridge=ridge, align=align), x, y)
        after = scores(fitted(turned, k=3, ridge=ridge, align=align), moved, y)
        assert ((before - after).abs().max() < 1e-9) == same
    # CKA bears a rotation, and nothing more.
    a, b = pairs["points_features"], pairs["text_features"]
    rotated = a @ torch.linalg.qr(rows(6, 6, 43)).Q
    assert abs(cka(rotated, b) - cka(a, b)) < 1e-12
    assert abs(cka(turned["points_features"], b) - cka(a, b)) > 1e-3


def test_principal_directions_hold_most_of_the_variance():
    x = rows(50, 4) * torch.tensor([1.0, 5.0, 0.1, 3.0])
    mean, directions = principal(x, 2)
    values = torch.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0)))
    assert torch.allclose(((x - mean) @ directions).square().sum(), values[-2:].sum())


def test_relative_scores_are_cosines_of_cosines():
    pairs = two_views(12)
    method = fitted(pairs, subspace="none", align="relative")
    x, y = rows(2, 6, 50), rows(2, 5, 51)

    def relative(query, anchors):
        q, a = query - anchors.mean(0), anchors - anchors.mean(0)
        return torch.stack([torch.stack([torch.cosine_similarity(r, s, 0) for s in a])
                            for r in q])

    slow = torch.cosine_similarity(relative(y, pairs["text_features"])[:, None],
                                   relative(x, pairs["points_features"])[None], 2)
    torch.testing.assert_close(scores(method, x, y), slow, rtol=1e-9, atol=1e-12)


def test_the_subspace_never_sees_a_query():
    pairs = two_views(100)
    anchors = pairs.select(range(60))
    method = fitted(anchors, k=3)
    again = fitted(two_views(100).select(range(60)), k=3)
    for name, tensor in method.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert torch.allclose(method.x_mean, anchors["points_features"].mean(0))


def test_the_subspace_is_no_wider_than_the_anchors_allow():
    assert fitted(two_views(5), k=50, ridge=1.0).x_map.shape == (6, 4)
    assert fitted(two_views(90), k=50, ridge=1.0).x_map.shape == (6, 5)


@pytest.mark.parametrize("change", [{"subspace": "ica"}, {"align": "linear"}, {"k": 0},
                                    {"ridge": -1.0}, {"ridge": float("nan")},
                                    {"towers": {"points": "a"}}])
def test_bad_settings_are_named(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        PlatosCave3dSettings(**change)


# The claims -------------------------------------------------------------------------------
def arm(pairs: Pairs, **settings) -> Trained:
    return Trained(fitted(pairs, **settings), Splits(pairs, pairs, pairs), None)


def test_matched_and_same_category_on_a_case_by_hand():
    """Equal spaces of two far clusters: everything is matched, and neighbours are of one
    category; with other categories they are not."""
    x = rows(20, 4) + 100 * (torch.arange(20) % 2)[:, None]
    pairs = Pairs.from_features({"points_features": x, "text_features": x},
                                labels={"category": torch.arange(20) % 2})
    done = arm(pairs, subspace="none", ridge=0.0)
    assert claims.matched(done) == 1 and claims.same_category(done) == 1
    mixed = claims.other_categories(done.splits, 0)
    assert claims.same_category(done._replace(splits=mixed)) < 0.8
    assert sorted(mixed.test.labels["category"]) == sorted(pairs.labels["category"])
    assert claims.found(done.method, pairs)["hit@1"] == 1
    assert claims.likeness("points_features", "text_features")(done) == pytest.approx(1)


def test_data_says_what_is_missing():
    with pytest.raises(ValueError, match="--pairs FOLDER"):
        claims.data("full")
    with pytest.raises(ValueError, match="8 different items"):
        claims.data("gpu", two_views(8))


def test_features_of_ones_own_are_kept():
    pairs = two_views(70).with_columns(points=rows(70, 20, 60).reshape(70, 20, 1).expand(
        70, 20, 3).float(), text=[f"thing {i}" for i in range(70)])
    pairs = replace(pairs, columns={**pairs.columns, "points_features": rows(70, 6, 61)})
    kept = claims.data("tiny", pairs.with_features(text_features=rows(70, 5, 62)))
    assert torch.equal(kept["points_features"], rows(70, 6, 61))
    named = [claim.name for claim in claims.claims(kept, "tiny")]
    assert "weak-structure" not in named and "meaning" not in named
