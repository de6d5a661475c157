"""Attacks: a slow loop, closed forms of linear models, and what must hold of any attack."""

import pytest
import torch

from alignkit.evaluation import (
    fgsm_attack, pgd_attack, robust_accuracy, shortfall, square_attack, worst_of,
)  # fmt: skip
from alignkit.parts import pgd

EPS = 0.05


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed),
                      dtype=torch.float64)


def linear(classes: int, numbers: int = 48):
    weight = drawn(classes, numbers, seed=1) - 0.5
    return weight, lambda x: x.flatten(1) @ weight.T.to(x.dtype)


def bent(classes: int = 5, numbers: int = 48):
    """A small network with kinks."""
    first, last = drawn(20, numbers, seed=2) - 0.5, drawn(classes, 20, seed=3) - 0.5
    return lambda x: torch.tanh(4 * x.flatten(1) @ first.T) @ last.T


X = 0.2 + 0.6 * drawn(9, 3, 4, 4)
Y = torch.arange(9) % 5


def loop_pgd(objective, x, eps, steps, step, start):
    """The equation for one row, number by number."""
    low = [max(0.0, float(v) - eps) for v in x]
    high = [min(1.0, float(v) + eps) for v in x]
    at = [min(max(float(v), a), b) for v, a, b in zip(start, low, high, strict=True)]
    points = [x.tolist(), at]
    for _ in range(steps):
        leaf = torch.tensor(at, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(objective(leaf), leaf)
        at = [min(max(v + step * ((g > 0) - (g < 0)), a), b)
              for v, g, a, b in zip(at, slope.tolist(), low, high, strict=True)]
        points.append(at)
    values = [float(objective(torch.tensor(p, dtype=torch.float64))) for p in points]
    return points[values.index(max(values))]


def test_pgd_is_the_loop_row_by_row():
    scores, start = bent(), X + EPS * (2 * drawn(*X.shape, seed=4) - 1)
    found = pgd(lambda now: shortfall(scores(now), Y), X, EPS, 6, 0.02, start)
    for i in range(len(X)):
        def objective(flat, i=i):
            values = scores(flat[None])[0]
            return max(v for k, v in enumerate(values) if k != Y[i]) - values[Y[i]]
        slow = loop_pgd(objective, X[i].flatten(), EPS, 6, 0.02, start[i].flatten())
        assert (found[i].flatten() - torch.tensor(slow, dtype=torch.float64)).abs().max() < 1e-12


def test_shortfall():
    scores = torch.tensor([[0.5, 0.2, 0.1], [0.5, 0.2, 0.1], [0.4, 0.4, 0.0]])
    found = shortfall(scores, torch.tensor([0, 2, 1]))
    assert torch.allclose(found, torch.tensor([-0.3, 0.4, 0.0]))
    assert robust_accuracy(lambda x: scores, scores, torch.tensor([0, 2, 1])) == 1 / 3
    for bad in (scores[0], scores[:, :1]):
        with pytest.raises(ValueError, match="two classes or more"):
            shortfall(bad, torch.zeros(3).long())
    with pytest.raises(ValueError, match="labels"):
        shortfall(scores, torch.tensor([0, 1, 3]))


def test_the_worst_of_two_linear_classes_is_known():
    """m(x) + ε · |w_wrong − w_right|₁: PGD and FGSM reach it, Square comes near."""
    weight, scores = linear(2)
    y = torch.arange(9) % 2
    best = shortfall(scores(X), y) + EPS * (weight[0] - weight[1]).abs().sum()
    for attack in (pgd_attack, fgsm_attack):
        assert (shortfall(scores(attack(scores, X, y, EPS)), y) - best).abs().max() < 1e-12
    random = shortfall(scores(square_attack(scores, X, y, EPS, queries=600)), y)
    reached = (random - shortfall(scores(X), y)) / (best - shortfall(scores(X), y))
    assert reached.max() < 1 + 1e-9 and reached.min() > 0.8


def test_the_worst_of_several_linear_classes_is_bounded():
    weight, scores = linear(5)
    far = (weight[:, None] - weight[None]).abs().sum(2)[Y]
    values = scores(X)
    each = values - values.gather(1, Y[:, None]) + EPS * far
    bound = each.scatter(1, Y[:, None], -torch.inf).amax(1)
    found = shortfall(scores(pgd_attack(scores, X, Y, EPS, restarts=3)), Y)
    assert (found <= bound + 1e-12).all()
    assert (found > bound - 1e-9).sum() > 4  # it may end in a class that is not the worst


@pytest.mark.parametrize("attack", [pgd_attack, fgsm_attack, square_attack])
def test_what_holds_of_every_attack(attack):
    scores = bent()
    x = drawn(9, 3, 4, 4, seed=5)  # also at the edge of what is valid
    x[0, 0, 0], x[0, 0, 1] = 0.0, 1.0
    found = attack(scores, x, Y, EPS)
    assert (found - x).abs().max() <= EPS + 1e-12 and found.min() >= 0 and found.max() <= 1
    assert (shortfall(scores(found), Y) >= shortfall(scores(x), Y)).all()
    assert torch.equal(found, attack(scores, x, Y, EPS))  # the same seed, the same bits
    assert torch.equal(attack(scores, x, Y, 0.0), x)
    assert (attack(scores, x, Y, EPS, chunk=2) - found).abs().max() < 1e-9
    for bad in (x - 0.1, x + 0.1):
        with pytest.raises(ValueError, match="0 … 1|from 0 to 1"):
            attack(scores, bad, Y, EPS)
    with pytest.raises(ValueError, match="eps"):
        attack(scores, x, Y, -EPS)


def test_more_steps_and_restarts_never_do_less():
    scores = bent()
    last = torch.full((9,), -torch.inf, dtype=torch.float64)
    for steps in (0, 1, 3, 10):
        found = shortfall(scores(pgd_attack(scores, X, Y, EPS, steps=steps)), Y)
        assert (found >= last).all()
        last = found
    for restarts in (2, 4):
        found = shortfall(scores(pgd_attack(scores, X, Y, EPS, steps=10,
                                            restarts=restarts)), Y)
        assert (found >= last).all()
        last = found


def test_a_masked_gradient_is_found_by_the_attack_without_one():
    """Rounded scores have no slope: PGD stays at its start and Square does not care."""
    weight, smooth = linear(2)
    y = smooth(X).argmax(1)

    def masked(x):
        scores = smooth(x)
        return scores + (torch.round(2000 * scores) / 2000 - scores).detach() - (
            scores - scores.detach())
    eps = float(-2 * shortfall(smooth(X), y).max() / (weight[0] - weight[1]).abs().sum())
    still = pgd_attack(masked, X, y, eps, restarts=0)
    assert torch.equal(still, X)
    stands = [robust_accuracy(masked, x, y) for x in (
        still, square_attack(masked, X, y, eps, queries=600), pgd_attack(smooth, X, y, eps))]
    assert stands[0] == 1.0 > stands[1] >= stands[2]


def test_the_worst_of_versions():
    scores = bent()
    versions = [X, pgd_attack(scores, X, Y, EPS), drawn(*X.shape, seed=6)]
    found = shortfall(scores(worst_of(scores, versions, Y)), Y)
    assert torch.equal(found, torch.stack([shortfall(scores(v), Y) for v in versions]).amax(0))


def test_pgd_takes_no_gradient_of_weights_and_works_inside_no_grad():
    layer = torch.nn.Linear(48, 5).double()
    with torch.no_grad():
        found = pgd_attack(lambda x: layer(x.flatten(1)), X, Y, EPS)
    assert layer.weight.grad is None and not found.requires_grad
    with pytest.raises(ValueError, match="eps and steps must be 0 or more"):
        pgd(lambda x: x.flatten(1).sum(1), X, EPS, -1)


def test_square_wants_pictures():
    with pytest.raises(ValueError, match=r"\[n, channels, h, w\]"):
        square_attack(bent(), X.flatten(1), Y, EPS)


def test_as_adversarial_robustness_toolbox():
    """The same start, steps and loss; it keeps the last point, not the worst one."""
    art = pytest.importorskip(
        "art.attacks.evasion", reason="adversarial-robustness-toolbox is not installed: the "
        "loop above and the closed forms stand for it")
    from art.estimators.classification import PyTorchClassifier

    weight, scores = linear(2)
    y = torch.arange(9) % 2
    layer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2, bias=False))
    layer[1].weight.data = weight.float()
    model = PyTorchClassifier(layer, torch.nn.CrossEntropyLoss(), (3, 4, 4), 2,
                              clip_values=(0.0, 1.0), device_type="cpu")
    theirs = art.ProjectedGradientDescent(
        model, eps=EPS, eps_step=EPS / 4, max_iter=10, verbose=False,
    ).generate(X.float().numpy(), y.numpy())
    ours = pgd_attack(scores, X, y, EPS, steps=10, restarts=0)
    assert (torch.tensor(theirs) - ours).abs().max() < 1e-6
