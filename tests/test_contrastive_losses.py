"""The second opening notebook's claims: what their arms are, and the lowest InfoNCE."""

import math

import torch

from alignkit.claims.contrastive_losses import SCALES, SigmoidEncoder, claims
from alignkit.claims.runs import Runs
from alignkit.data import Pairs
from alignkit.parts import Settings, info_nce, sigmoid_loss, unit


def rows(n: int = 80) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    return Pairs.from_features({name: torch.randn(n, 6, generator=generator)
                                for name in ("image_features", "text_features")})


def test_the_sigmoid_arm_starts_as_siglip_and_learns_both_numbers():
    pairs = rows()
    method, batch = SigmoidEncoder(Settings(width=4), pairs), pairs.batch()
    first, second = method.encode(batch).values()
    (loss,) = method(batch).values()
    assert torch.isclose(loss, sigmoid_loss(first, second, 10.0, -10.0))
    learned = dict(method.named_parameters())
    numbers = [learned["log_scale"], learned["bias"]]
    assert all(torch.autograd.grad(loss, numbers))


def test_the_arms_start_where_their_papers_do():
    """The runner gives arms equal starts: it must not give one the other's scale."""
    small, warm = claims(rows(), "tiny")
    assert small.budget.batch_size == SCALES["tiny"].small_batch
    runs = Runs([small, warm])
    built = {name: runs.build(claim, name, 0, False)[0]
             for claim in (small, warm) for name in claim.arms}
    for name, scale in (("infonce-small", 1 / 0.07), ("learned", 1 / 0.07),
                        ("fixed-1", 1.0)):
        assert math.isclose(built[name].temperature().item(), scale, rel_tol=1e-5), name
    assert math.isclose(built["sigmoid-small"].log_scale.exp().item(), 10, rel_tol=1e-5)
    weights = [m.heads["image"].weight for m in built.values()]
    assert all(torch.equal(weights[0], other) for other in weights[1:])


def test_no_unit_rows_have_a_lower_infonce_than_a_simplex():
    """Found by descent from random rows, not by the formula."""
    n, scale = 6, 3.0
    lowest = math.log1p((n - 1) * math.exp(-scale * n / (n - 1)))
    simplex = unit(torch.eye(n).double() - 1 / n)
    assert math.isclose(info_nce(simplex, simplex, scale), lowest, rel_tol=1e-9)
    torch.manual_seed(0)
    a, b = (torch.randn(n, 8).double() for _ in range(2))
    for _ in range(500):
        a, b = (x.detach().requires_grad_() for x in (a, b))
        loss = info_nce(unit(a), unit(b), scale)
        assert loss > lowest - 1e-9
        down = torch.autograd.grad(loss, (a, b))
        a, b = a - 3 * down[0], b - 3 * down[1]
    assert abs(loss.item() - lowest) < 1e-3
