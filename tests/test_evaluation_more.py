"""CCA, Procrustes, detection and nearest neighbours: by hand, against libraries, and
properties."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from sklearn.cross_decomposition import CCA
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, roc_curve
from sklearn.neighbors import KNeighborsClassifier
from torch.nn.functional import normalize

from alignkit.evaluation import (
    auroc,
    best_probe,
    cca,
    fpr_at_95,
    knn_probe,
    linear_probe,
    maximum_concept_matching,
    outside_subspace,
    procrustes,
)

torch.set_num_threads(1)
QUICK = settings(max_examples=60, deadline=None, derandomize=True)


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rotation(d, seed=0):
    return torch.linalg.qr(randn(d, d, seed=seed)).Q


# -------------------------------------------------------------------------------- CCA


def two_views(n=300, seed=0):
    """Two causes seen by both sides, each with its own noise, linearly mixed."""
    z = randn(n, 2, seed=seed)
    x = torch.cat([z, randn(n, 3, seed=seed + 1)], 1) @ randn(5, 5, seed=7) + 3
    y = torch.cat([z * torch.tensor([1.0, -2.0]), randn(n, 2, seed=seed + 2)], 1)
    return x + 0.1 * randn(n, 5, seed=seed + 3), (
        y + torch.tensor([0.2, 1.5, 0, 0]) * randn(n, 4, seed=seed + 4)
    ) @ randn(4, 4, seed=8)


def slow_correlations(x, y, ridge):
    """Square roots of the eigenvalues of C_x⁻¹ C_xy C_y⁻¹ C_yx."""
    x, y = x.numpy(), y.numpy()
    n = len(x)
    mean_x, mean_y = x.sum(0) / n, y.sum(0) / n
    c_x, c_y = np.zeros((x.shape[1],) * 2), np.zeros((y.shape[1],) * 2)
    c_xy = np.zeros((x.shape[1], y.shape[1]))
    for row_x, row_y in zip(x - mean_x, y - mean_y, strict=True):
        c_x += np.outer(row_x, row_x) / (n - 1)
        c_y += np.outer(row_y, row_y) / (n - 1)
        c_xy += np.outer(row_x, row_y) / (n - 1)
    c_x += ridge * np.trace(c_x) / len(c_x) * np.eye(len(c_x))
    c_y += ridge * np.trace(c_y) / len(c_y) * np.eye(len(c_y))
    product = np.linalg.inv(c_x) @ c_xy @ np.linalg.inv(c_y) @ c_xy.T
    values = np.sort(np.linalg.eigvals(product).real)[::-1]
    return np.sqrt(values.clip(0))[: min(x.shape[1], y.shape[1])]


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.5])
def test_cca_is_the_eigenvalue_problem(ridge):
    x, y = two_views()
    found = cca(x, y, ridge=ridge)
    wanted = torch.from_numpy(slow_correlations(x, y, ridge))
    assert found.correlations.shape == (4,)
    assert (found.correlations - wanted).norm() / wanted.norm() < 1e-9
    assert cca(x, y, k=2, ridge=ridge).x_map.shape == (5, 2)


def test_cca_agrees_with_scikit_learn():
    x, y = two_views()
    theirs = CCA(4, max_iter=5000, tol=1e-12).fit(x.numpy(), y.numpy())
    u, v = theirs.transform(x.numpy(), y.numpy())
    wanted = [np.corrcoef(u[:, i], v[:, i])[0, 1] for i in range(4)]
    ours = cca(x, y, ridge=0)
    assert ours.correlations.tolist() == pytest.approx(wanted, abs=1e-6)
    for i in range(2):
        cosine = np.corrcoef(u[:, i], ours.project_x(x)[:, i])[0, 1]
        assert abs(cosine) == pytest.approx(1, abs=1e-6)


def test_projected_rows_are_white_and_correlated_as_said():
    x, y = two_views()
    maps = cca(x, y, ridge=0)
    u, v = maps.project_x(x), maps.project_y(y)
    n = len(x) - 1
    assert torch.allclose(u.T @ u / n, torch.eye(4).double(), atol=1e-9)
    assert torch.allclose(v.T @ v / n, torch.eye(4).double(), atol=1e-9)
    assert torch.allclose(u.T @ v / n, maps.correlations.diag(), atol=1e-9)
    new_x, new_y = two_views(seed=20)
    held = [np.corrcoef(a, b)[0, 1]
            for a, b in zip(maps.project_x(new_x).T, maps.project_y(new_y).T)]
    assert held[0] > 0.8 and abs(held[3]) < 0.2


@given(st.integers(0, 10**6))
@QUICK
def test_correlations_do_not_see_invertible_maps_nor_sides(seed):
    x, y = two_views(60, seed)
    plain = cca(x, y, ridge=0).correlations
    mix = rotation(5, seed) * (1 + torch.arange(5.0))
    assert torch.allclose(cca(x @ mix - 4, 100 * y, ridge=0).correlations, plain, atol=1e-8)
    assert torch.allclose(cca(y, x, ridge=0).correlations, plain, atol=1e-9)
    turned = cca(7 * x @ rotation(5, seed), y, ridge=0.1)  # scale and rotation: any ridge
    assert torch.allclose(turned.correlations, cca(x, y, ridge=0.1).correlations, atol=1e-9)
    assert (plain.diff() <= 1e-12).all() and plain[0] <= 1


def test_cca_of_degenerate_rows():
    x, _ = two_views()
    doubled = torch.cat([x, x], 1)  # rank 5 of 10
    found = cca(doubled, x, ridge=0)
    assert torch.allclose(found.correlations, torch.ones(5).double(), atol=1e-9)
    few = cca(randn(4, 10), randn(4, 10, seed=1), ridge=0)  # width above n - 1
    assert torch.allclose(few.correlations, torch.ones(3).double(), atol=1e-6)


# ------------------------------------------------------------------------- Procrustes


def test_procrustes():
    x, y = randn(20, 4), randn(20, 4, seed=1)
    turn = rotation(4, 3)
    assert torch.allclose(procrustes(x, x @ turn), turn, atol=1e-12)
    q = procrustes(x, y)
    assert torch.allclose(q.T @ q, torch.eye(4).double(), atol=1e-12)
    wanted, _ = orthogonal_procrustes(x.numpy(), y.numpy())
    assert torch.allclose(q, torch.from_numpy(wanted), atol=1e-12)
    for seed in range(50):  # no other orthogonal map is better
        assert (x @ q - y).norm() <= (x @ rotation(4, seed) - y).norm()


# -------------------------------------------------------------------------- Detection

INSIDE, OUTSIDE = torch.tensor([3.0, 2.0, 2.0, 0.0]), torch.tensor([2.0, 1.0, -1.0])
# 3: above three; 2, twice: above two, equal to one; 0: above one
GOLDEN = (3 + 2 * (2 + Fraction(1, 2)) + 1) / Fraction(12)


def test_auroc_and_fpr_by_hand():
    assert auroc(INSIDE, OUTSIDE) == pytest.approx(float(GOLDEN), abs=1e-12)
    assert fpr_at_95(INSIDE, OUTSIDE) == pytest.approx(2 / 3)  # all four needed: 0
    # 19 of 20 suffice: the lowest inside score need not be accepted
    inside = torch.cat([torch.tensor([-9.0]), torch.arange(1.0, 20)])
    assert fpr_at_95(inside, torch.tensor([0.0, 1.0, 5.0])) == pytest.approx(2 / 3)
    same = torch.ones(7)
    assert auroc(same, same[:3]) == 0.5 and fpr_at_95(same, same[:3]) == 1
    assert auroc(same, -same) == 1 and fpr_at_95(same, -same) == 0


def test_fpr_is_read_at_an_inside_row_and_not_interpolated():
    # np.interp on the curve, as OoD papers do, takes the far end of a step where exactly
    # 95 % are accepted (19 of 20), and goes half of a tie's way where 9.5 of 10 are.
    for n, other, ours, theirs in ((20, (1.5, 1.2), 0, 1), (10, (1, 0.2), 1 / 2, 1 / 4)):
        inside, outside = torch.arange(1.0, n + 1), torch.tensor(other)
        fpr, tpr, _ = roc_curve([1] * n + [0] * 2, torch.cat([inside, outside]).numpy())
        assert fpr_at_95(inside, outside) == ours
        assert np.interp(0.95, tpr, fpr) == pytest.approx(theirs)


@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 60))
@QUICK
def test_auroc_and_fpr_agree_with_loops_and_scikit_learn(seed, n, m):
    generator = torch.Generator().manual_seed(seed)
    inside = torch.randint(0, 9, (n,), generator=generator).double()
    outside = torch.randint(-3, 7, (m,), generator=generator).double()
    pairs = [(a > b) + (a == b) / 2 for a in inside.tolist() for b in outside.tolist()]
    assert auroc(inside, outside) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    truth = np.r_[np.ones(n), np.zeros(m)]
    scores = torch.cat([inside, outside]).numpy()
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    wanted = fpr[np.argmax(tpr >= 0.95 - 1e-12)]
    assert fpr_at_95(inside, outside) == pytest.approx(wanted, abs=1e-12)
    assert auroc(inside.exp(), outside.exp()) == auroc(inside, outside)
    assert auroc(-inside, -outside) == pytest.approx(1 - auroc(inside, outside))


def test_maximum_concept_matching():
    z, classes = randn(6, 4), randn(3, 4, seed=1)
    for temperature in (1.0, 0.1):
        found = maximum_concept_matching(z, 5 * classes, temperature)
        for row, score in zip(z, found, strict=True):
            powers = [math.exp(float(row @ c / row.norm() / c.norm()) / temperature)
                      for c in classes]
            assert float(score) == pytest.approx(max(powers) / sum(powers), rel=1e-12)
    assert torch.allclose(maximum_concept_matching(z, classes.flip(0)),
                          maximum_concept_matching(z, classes))
    flat = maximum_concept_matching(z, classes[:1].repeat(3, 1))
    assert torch.allclose(flat, torch.full((6,), 1 / 3).double())


# ------------------------------------------------------------------ Nearest neighbours


def labelled(n, seed=0, n_classes=2, d=5):
    y = torch.randint(0, n_classes, (n,), generator=torch.Generator().manual_seed(seed))
    return randn(n, d, seed=seed) + randn(n_classes, d, seed=99)[y], y


@pytest.mark.parametrize("k", [1, 3, 11])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_knn_agrees_with_scikit_learn(k, chunk):
    (train_x, train_y), (test_x, test_y) = labelled(200), labelled(90, seed=1)
    theirs = KNeighborsClassifier(k, metric="cosine").fit(train_x, train_y)
    found = knn_probe(train_x, train_y, test_x, test_y, k=k, chunk=chunk)
    guess = theirs.predict(test_x)
    assert found["accuracy"] == pytest.approx(float((guess == test_y.numpy()).mean()))
    assert found["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(test_y, guess)
    )
    assert {n: found[n] for n in ("k", "n_train", "n_test", "n_classes")} == {
        "k": k, "n_train": 200, "n_test": 90, "n_classes": 2
    }


def test_knn_by_hand():
    def at(*degrees):
        angle = torch.tensor(degrees).double() * math.pi / 180
        return torch.stack([angle.cos(), angle.sin()], 1)

    train_x, train_y = at(0, 20, 100, 120, 130), torch.tensor([0, 0, 1, 1, 1])
    test_x, test_y = at(10, 125, 59, 180), torch.tensor([0, 1, 0, 0])
    assert knn_probe(train_x, train_y, test_x, test_y, k=1)["accuracy"] == 0.75
    # 59° has 20° and 100° nearest: the classes tie, and a tie is no right answer
    assert knn_probe(train_x, train_y, test_x, test_y, k=2)["accuracy"] == 0.5
    # Tied rows share the last place: at 0°, 1 + 1/3 votes against 2/3, then 1 against 1
    train_x, near = at(5, 10, 10, 10), torch.tensor([0])
    for others, label, right in (((0, 0, 1), 1, 1), ((0, 0, 1), 0, 0), ((0, 0, 0), 0, 0)):
        votes = torch.tensor([1, *others])
        found = knn_probe(train_x, votes, at(0), near + label, k=2)
        assert found["accuracy"] == right
    train_x = at(0, 20, 100, 120, 130)
    unknown = knn_probe(train_x, train_y, test_x, torch.tensor([0, 1, 5, 5]), k=1)
    assert unknown["accuracy"] == 0.5


def test_a_collapsed_space_gives_the_largest_class():
    row = normalize(randn(1, 33).float(), dim=1)
    train_y, test_y = torch.tensor([1] * 6 + [0] * 4), torch.tensor([0, 1, 1, 0, 0])
    for order in (torch.arange(10), torch.arange(10).flip(0)):
        found = knn_probe(row.repeat(10, 1), train_y[order], row.repeat(5, 1), test_y, k=3)
        assert found["accuracy"] == 0.4
    even = knn_probe(row.repeat(8, 1), train_y[2:], row.repeat(5, 1), test_y, k=3)
    assert even["accuracy"] == 0


X, Y = randn(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])


@pytest.mark.parametrize("call, message", [
    (lambda: cca(X, X[:5]), "x has 6 rows and y 5"),
    (lambda: cca(X, X, k=4), "k is 4; these rows give 1 to 3"),
    (lambda: cca(X, X, ridge=-1.0), "ridge is -1.0"),
    (lambda: cca(X, torch.ones(6, 2)), "every row of y is the same"),
    (lambda: procrustes(X, X[:, :2]), "x has width 3 and y 2"),
    (lambda: auroc(X, X[:, 0]), "inside must be"),
    (lambda: fpr_at_95(X[:, 0], torch.tensor([math.nan])), "outside holds NaN"),
    (lambda: maximum_concept_matching(X, X[:, :2]), "z has width 3, class_z 2"),
    (lambda: maximum_concept_matching(X, X, 0.0), "temperature is 0.0"),
    (lambda: knn_probe(X, Y, X, Y, k=7), "k is 7 .* 1 and 6"),
    (lambda: knn_probe(X, Y, X[:, :2], Y, k=1), "train_x has width 3 and test_x 2"),
    (lambda: knn_probe(X, Y[:4], X, Y, k=1), "train_y is"),
])
def test_refusals_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ------------------------------------------------- a tuned probe; outside a subspace


def noisy_classes(n=60, d=90, seed=0):
    y = torch.arange(n) % 3
    return randn(3, d, seed=1)[y] * 0.4 + randn(n, d, seed=seed), y


def test_best_probe_takes_the_penalty_that_is_right_most_often_on_folds_left_out():
    (x, y), (other, labels) = noisy_classes(seed=2), noisy_classes(seed=3)
    fold, l2s = torch.arange(60) // 20, (0.01, 1.0, 1e4)
    right = {l2: sum(linear_probe(x[fold != f], y[fold != f], x[fold == f], y[fold == f],
                                  l2)["accuracy"] for f in range(3)) for l2 in l2s}
    found = best_probe(x, y, other, labels, fold, l2s)
    assert found["l2"] == max(l2s, key=right.get)
    assert found == linear_probe(x, y, other, labels, found["l2"]) | {"l2": found["l2"]}


def test_a_probe_of_more_columns_than_rows_is_that_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    (x, y), (other, _) = noisy_classes(seed=2), noisy_classes(200, seed=3)
    mean, scale = x.mean(0), x.std(0)
    model = LogisticRegression(C=1 / 3, tol=1e-10, max_iter=5000)
    model.fit(((x - mean) / scale).numpy(), y.numpy())
    labels = torch.from_numpy(model.predict(((other - mean) / scale).numpy()))
    assert linear_probe(x, y, other, labels, l2=3.0)["accuracy"] == 1


@pytest.mark.parametrize("fold, l2s", [(torch.zeros(60), (1.0,)), (torch.arange(9), (1.0,)),
                                       (torch.arange(60), ())])
def test_best_probe_refuses(fold, l2s):
    x, y = noisy_classes()
    with pytest.raises(ValueError, match="one fold a training row, two different ones"):
        best_probe(x, y, x, y, fold, l2s)


def test_outside_subspace_by_hand():
    """y varies along the first axis most, then along the second, and never along the third."""
    y = torch.tensor([[3.0, 0, 5], [-3, 0, 5], [0, 1, 5], [0, -1, 5]])
    x = torch.tensor([[2.0, 0, 0], [0, 3, 0], [3, 0, 4], [0, 0, 7]])
    assert outside_subspace(x, y, 1) == pytest.approx((0 + 1 + 4 / 5 + 1) / 4)
    assert outside_subspace(x, y) == pytest.approx((0 + 0 + 4 / 5 + 1) / 4)
    turn = rotation(3)
    assert outside_subspace(9 * x.double() @ turn, y.double() @ turn, 1) == pytest.approx(0.7)
    for k in (0, 3):
        with pytest.raises(ValueError, match="between 1 and 2, the rank of y"):
            outside_subspace(x, y, k)
    with pytest.raises(ValueError, match="one space"):
        outside_subspace(x[:, :2], y)
