"""STRUCTURE's regulariser against a slow loop, its exact properties, its layer choice."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from alignkit.data import Pairs
from alignkit.methods.structure import (
    Structure, StructureSettings, choose_layers, divergence, neighbourhoods, structure_loss,
)  # fmt: skip
from alignkit.parts import DualEncoder, Settings
from alignkit.training import Budget, fit, seed_all


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).detach().norm() / wanted.detach().norm())


def rotation(d: int, seed: int = 9) -> torch.Tensor:
    return torch.linalg.qr(rows(d, d, seed)).Q


def loop_matrix(x, tau) -> list[list]:
    """softmax over each row of x̂ x̂ᵀ / tau, x̂ = x/‖x‖ − mean of x/‖x‖; one number at a
    time, as scalar tensors so that it can be differentiated."""
    n, d = x.shape
    unit = [[x[i, k] / sum(x[i, m] ** 2 for m in range(d)).sqrt() for k in range(d)]
            for i in range(n)]
    mean = [sum(unit[i][k] for i in range(n)) / n for k in range(d)]
    hat = [[unit[i][k] - mean[k] for k in range(d)] for i in range(n)]
    matrix = []
    for i in range(n):
        exps = [(sum(hat[i][k] * hat[j][k] for k in range(d)) / tau).exp() for j in range(n)]
        matrix.append([e / sum(exps) for e in exps])
    return matrix


def loop_product(a, b) -> list[list]:
    n = len(a)
    return [[sum(a[i][k] * b[k][j] for k in range(n)) for j in range(n)] for i in range(n)]


def loop_loss(x, z, tau, levels) -> torch.Tensor:
    """R = 1/L Σ_l 1/l · ½ [KL(m ‖ qˡ) + KL(m ‖ pˡ)], KL over columns, mean over rows."""
    p, q, n = loop_matrix(x, tau), loop_matrix(z, tau), len(x)
    p_l, q_l, total = p, q, 0.0
    for level in range(1, levels + 1):
        if level > 1:
            p_l, q_l = loop_product(p_l, p), loop_product(q_l, q)
        for i in range(n):
            for j in range(n):
                a, b = p_l[i][j], q_l[i][j]
                m = (a + b) / 2
                total = total + m * ((m / b).log() + (m / a).log()) / (2 * n * level)
    return total / levels


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_loss_and_gradient_are_the_equation(levels):
    x, z = rows(4, 3), rows(4, 2, seed=1).requires_grad_()
    fast, slow = structure_loss(x, z, 0.3, levels), loop_loss(x, z, 0.3, levels)
    assert relative(fast, slow) < 1e-9
    gradients = [torch.autograd.grad(loss, z)[0] for loss in (fast, slow)]
    assert relative(*gradients) < 1e-9


def test_gradient_agrees_with_finite_differences():
    x, z = rows(5, 3), rows(5, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: structure_loss(x, z, 0.3, 2), z)


def test_all_gradient_flows_through_the_outputs():
    x, z = rows(5, 3).requires_grad_(), rows(5, 2, seed=1).requires_grad_()
    structure_loss(x, z).backward()
    assert x.grad is None and z.grad.abs().sum() > 0


# The paper's exact properties -----------------------------------------------------------
@pytest.mark.parametrize("levels", [1, 2, 5])
def test_a_scaled_rotation_costs_nothing(levels):
    x = rows(30, 6)
    z = (3.7 * x @ rotation(6)).requires_grad_()
    loss = structure_loss(x, z, 0.1, levels)
    assert abs(loss.item()) < 1e-12
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient.norm() < 1e-9  # a minimum
    assert structure_loss(x, z + 0.1 * rows(30, 6, 3), 0.1, levels) > 1e-6
    assert structure_loss(x, 3.7 * x @ rotation(6)[:, :3], 0.1, levels) > 1e-3


@pytest.mark.parametrize("levels", [1, 3])
def test_b_positive_symmetric_and_blind_to_order_and_length(levels):
    x, z, order = rows(12, 5), rows(12, 4, seed=1), rows(12, 1, seed=4)[:, 0].argsort()
    loss = structure_loss(x, z, 0.1, levels)
    assert loss > 0
    assert relative(structure_loss(z, x, 0.1, levels), loss) < 1e-12
    assert relative(structure_loss(x[order], z[order], 0.1, levels), loss) < 1e-12
    lengths = 0.1 + rows(12, 2, seed=2).abs()
    assert relative(structure_loss(x * lengths[:, :1], z * lengths[:, 1:], 0.1, levels),
                    loss) < 1e-12
    assert abs(structure_loss(x[order], z, 0.1, levels) / loss - 1) > 1e-4


def features(n: int = 40) -> Pairs:
    hidden = rows(n, 4).float()
    return Pairs.from_features({f"{name}_features": hidden @ rows(4, 6, i).float()
                                for i, name in enumerate(("image", "text"), 1)})


def test_c_without_strength_it_is_the_dual_encoder():
    pairs, ends = features(), []
    for method, settings in ((DualEncoder, Settings), (Structure, StructureSettings)):
        seed_all(0)
        extra = {"strength": 0.0} if method is Structure else {}
        model = method(settings(width=3, **extra), pairs)
        history = fit(model, pairs, Budget(steps=5, batch_size=16, lr=1e-2))
        ends.append((model.state_dict(), history.curve()))
    (weights, losses), (same_weights, same_losses) = ends
    assert losses == same_losses
    for name, tensor in weights.items():
        assert torch.equal(tensor, same_weights[name]), name


def test_d_rows_of_every_power_sum_to_one():
    p = neighbourhoods(rows(20, 5), 0.1)
    for power in (1, 2, 3, 8):
        assert (torch.linalg.matrix_power(p, power).sum(1) - 1).abs().max() < 1e-12


def test_e_high_powers_tend_to_the_stationary_distribution():
    x = rows(20, 5)
    hat = F.normalize(x) - F.normalize(x).mean(0)
    weight = (hat @ hat.T / 0.2).exp().sum(1)  # of a symmetric kernel: its row sums
    power = torch.linalg.matrix_power(neighbourhoods(x, 0.2), 300)
    assert (power - weight / weight.sum()).abs().max() < 1e-9


# What random features give ------------------------------------------------------------
def official(x, z, tau: float = 0.05) -> torch.Tensor:
    """The authors' rule for small entries: 1e-12 is added to p, q and m."""
    p, q = neighbourhoods(x, tau), neighbourhoods(z, tau)
    m = (p + q) / 2 + 1e-12
    return sum((m * (m.log() - (a + 1e-12).log())).sum(1).mean() for a in (p, q)) / 2


@pytest.mark.parametrize("d, low, high", [(4, 1e-3, 5e-2), (128, 0, 3e-3)])
def test_the_rule_for_small_entries_differs_from_the_authors_by_little(d, low, high):
    x, z = rows(64, d), rows(64, d, 1).requires_grad_()
    ours, theirs = structure_loss(x, z), official(x, z)
    assert math.isclose(ours.item(), theirs.item(), rel_tol=1e-2)
    found, wanted = (torch.autograd.grad(loss, z)[0] for loss in (ours, theirs))
    assert low < relative(found, wanted) < high
    small = (neighbourhoods(z, 0.05) < 1e-12).double().mean()
    assert small > 0.1 if d == 4 else small == 0


def test_entries_below_the_floor_get_no_gradient_of_their_logarithm():
    p = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)
    q = torch.tensor([[0.5, 0.5 - 1e-13, 1e-13]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(divergence(p, q), q)
    # At the floor in all three logarithms, so 2 log m − log p − log q is 0, and stays 0.
    assert slope[0, 2] == 0 and q[0, 2] < 1e-12


def test_the_mixture_stands_first():
    """By hand, for one row p = (¾, ¼), q = (¼, ¾): m = (½, ½) and both divergences are
    KL(m ‖ p) = ½ ln(½ / ¾) + ½ ln(½ / ¼) = ½ ln(4/3)."""
    p, q = torch.tensor([[0.75, 0.25]]).double(), torch.tensor([[0.25, 0.75]]).double()
    textbook = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)  # KL(p ‖ m)
    assert abs(divergence(p, q).item() - math.log(4 / 3) / 2) < 1e-12
    assert abs(divergence(p, q).item() - textbook) > 0.01


def test_the_order_changes_the_size_by_a_factor():
    """So a strength for one of the two divergences is wrong for the other."""
    x = rows(64, 40)
    p, q = neighbourhoods(x, 0.1), neighbourhoods(x @ rows(40, 16, seed=1), 0.1)
    m = (p + q) / 2
    textbook = ((p * (p / m).log() + q * (q / m).log()).sum(1).mean() / 2).item()
    assert divergence(p, q).item() > 2 * textbook


@pytest.mark.parametrize("tau, mass, off", [(0.05, 0.99999, 1e-5), (0.1, 0.990, 5e-3),
                                            (0.2, 0.64, 0.03)])
def test_diagonal_mass_of_isotropic_features(tau, mass, off):
    drawn = [neighbourhoods(rows(64, 40, seed), tau).diagonal().mean().item()
             for seed in range(20)]
    assert abs(sum(drawn) / len(drawn) - mass) < off


def test_where_the_diagonal_has_all_the_mass_the_regulariser_is_silent():
    losses = [structure_loss(rows(64, 40, seed), rows(64, 40, seed + 50), 0.05).item()
              for seed in range(10)]
    assert sum(losses) / 10 < 2e-4  # 4e-5 was measured for unrelated z
    assert structure_loss(rows(64, 40), rows(64, 40, 50), 0.2) > 100 * sum(losses) / 10


# The method ---------------------------------------------------------------------------
def test_the_ramp_reaches_its_strength_at_a_third():
    pairs = features()
    settings = StructureSettings(width=3, strength=7.0, tau=0.2)
    seed_all(0)
    method = Structure(settings, pairs)
    batch = pairs.batch()
    outputs = method.encode(batch)
    whole = 7.0 * sum(structure_loss(batch[f"{n}_features"], outputs[n], 0.2)
                      for n in ("image", "text")) / 2
    for progress, part in ((0.0, 0.0), (1 / 6, 0.5), (1 / 3, 1.0), (0.9, 1.0)):
        losses = method.losses(outputs, batch, progress)
        assert set(losses) == {"contrastive_loss", "structure_loss"}
        assert torch.allclose(losses["structure_loss"], part * whole, rtol=1e-6)


def test_the_regulariser_keeps_neighbourhoods():
    pairs, kept = features(), []
    for strength in (0.0, 50.0):
        seed_all(0)
        settings = StructureSettings(width=3, strength=strength, tau=0.2)
        method = Structure(settings, pairs)
        fit(method, pairs, Budget(steps=150, lr=1e-2))
        with torch.no_grad():
            outputs = method.encode(pairs.batch())
        kept.append(sum(structure_loss(pairs[f"{n}_features"], outputs[n], 0.2).item()
                        for n in ("image", "text")))
    assert kept[1] < 0.5 * kept[0]


def test_it_is_computed_in_float32_under_autocast():
    x, z = rows(30, 6).float(), rows(30, 4, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = structure_loss(x, z, 0.1)
    assert torch.equal(inside, structure_loss(x, z, 0.1))


def test_structure_loss_refuses():
    x = rows(4, 3)
    for arguments in ((x, rows(3, 3)), (x[:1], x[:1]), (x, x, 0.0), (x, x, 0.1, 0)):
        with pytest.raises(ValueError, match="rows, two at least|tau must be positive"):
            structure_loss(*arguments)


def layers(n: int, image: int, text: int) -> Pairs:
    """Three image and four text layers of noise; the planted two share what they show."""
    columns = {f"image_layer{i}": rows(n, 8, 10 + i) for i in range(3)}
    columns |= {f"text_layer{i}": rows(n, 6, 20 + i) for i in range(4)}
    shown = rows(n, 3, 30)
    columns[f"image_layer{image}"] = shown @ rows(3, 8, 31) + 0.1 * rows(n, 8, 32)
    columns[f"text_layer{text}"] = shown @ rows(3, 6, 33) + 0.1 * rows(n, 6, 34)
    return Pairs.from_features({k: v.float() for k, v in columns.items()})


@pytest.mark.parametrize("image, text", [(0, 3), (2, 0), (1, 2)])
def test_the_layers_that_agree_are_chosen(image, text):
    names = [[f"image_layer{i}" for i in range(3)], [f"text_layer{i}" for i in range(4)]]
    best = choose_layers(layers(150, image, text), *names)
    assert best[:2] == (f"image_layer{image}", f"text_layer{text}")
    assert best.overlap.shape == (3, 4)
    assert best.overlap.argmax() == image * 4 + text
    others = best.overlap.flatten().sort().values[:-1]
    assert others.max() < best.overlap.max() / 2  # chance is k / (n − 1) = 0.07


def test_only_the_first_rows_are_looked_at():
    """The first 60 rows agree in one pair of layers, all the others in another."""
    first, then = layers(60, 0, 1), layers(300, 2, 3)
    names = [[f"image_layer{i}" for i in range(3)], [f"text_layer{i}" for i in range(4)]]
    both = Pairs.from_features({c: torch.cat([first[c], then[c]]) for c in first.columns})
    assert choose_layers(both, *names, most=60)[:2] == ("image_layer0", "text_layer1")
    assert choose_layers(both, *names)[:2] == ("image_layer2", "text_layer3")


def test_settings_are_the_dual_encoders_and_more():
    settings = StructureSettings()
    assert (settings.tau, settings.strength, settings.levels) == (0.05, 10.0, 1)
    assert settings.ramp == pytest.approx(1 / 3)
    assert replace(settings, width=7).temperature == Settings().temperature == 0.05
