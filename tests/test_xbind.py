"""XBind: the losses against a plain loop, and what must hold exactly."""

import math

import pytest
import torch
from torch.nn import functional as F

from alignkit.data import Pairs
from alignkit.methods.xbind import XBind, XBindSettings, sds, similarity_loss
from alignkit.parts.voxel_priors import PriorSettings
from alignkit.training import Budget, fit, seed_all

SMALL = PriorSettings(side=8, shared=6, channels=4, width=16, blocks=1, heads={"text": 5})


def prompts(n: int = 5) -> Pairs:
    g = torch.Generator().manual_seed(0)
    return Pairs.from_features({"prompt": F.normalize(torch.randn(n, 6, generator=g))})


def built(pairs: Pairs | None = None, **settings) -> XBind:
    seed_all(0)
    method = XBind(XBindSettings(priors=SMALL, **settings), pairs or prompts())
    torch.nn.init.normal_(method.priors.denoiser.out.weight, std=0.1)
    return method.double()


def batch_of(method: XBind, pairs: Pairs) -> dict:
    batch = method.collate(pairs, torch.Generator().manual_seed(1))
    return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


def loop_hybrid(method: XBind, batch: dict, pictures: torch.Tensor):
    """Value and gradient in the pictures of the mean L_HDS, row by row."""
    s, value, slopes = method.settings, 0.0, []
    denoiser = method.priors.denoiser
    for i, picture in enumerate(pictures):
        x, t, e = 2 * picture - 1, batch["t"][i], batch["prompt"][i]
        a, sigma = math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)
        noisy = (a * x + sigma * batch["noise"][i])[None]
        c = batch["azimuth"][i]
        camera = torch.tensor([1, math.cos(c), math.sin(c), math.cos(2 * c),
                               math.sin(2 * c)], dtype=torch.float64)
        g = torch.zeros_like(x)
        for weight, view in ((s.planar, 0 * camera), (s.view, camera)):
            told, free = ((noisy - a * denoiser.clean(noisy, t[None], one[None], view[None]))
                          [0] / sigma for one in (e, 0 * e))
            guided = free + s.guidance * (told - free)
            g += weight * sigma * (guided - batch["noise"][i]) / (s.planar + s.view)
        value += (g**2).sum() / 2 / len(pictures)
        slopes.append(2 * g / len(pictures))  # dx/dI = 2
    return value, torch.stack(slopes)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 2.0), (0.5, 1.5)])
def test_hybrid_supervision_is_the_loop_in_value_and_gradient(weights):
    pairs = prompts()
    method = built(pairs, planar=weights[0], view=weights[1])
    batch = batch_of(method, pairs)
    pictures = torch.rand(5, 1, 8, 8).double().requires_grad_()
    found = method.hybrid(pictures, batch).mean()
    with torch.no_grad():
        value, slope = loop_hybrid(method, batch, pictures)
    assert torch.allclose(found, value, rtol=1e-9)
    gradient = torch.autograd.grad(found, pictures)[0]
    assert torch.allclose(gradient, slope, rtol=1e-9, atol=1e-12)


def test_similarity_is_the_loop_and_takes_no_length():
    g = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 7, 6, generator=g).double()
    loop = torch.tensor([1 - float(x @ y) / math.sqrt(float(x @ x) * float(y @ y))
                         for x, y in zip(a, b)], dtype=torch.float64)
    assert torch.allclose(similarity_loss(a, b), loop, rtol=1e-9)
    assert torch.allclose(similarity_loss(3 * a, b / 7), loop, rtol=1e-9)
    assert ((loop >= 0) & (loop <= 2)).all()


# Exact properties ---------------------------------------------------------------------
def test_where_the_prior_finds_the_noise_the_gradient_is_exactly_zero():
    x = torch.rand(3, 1, 4, 4).requires_grad_()
    noise = torch.randn(3, 1, 4, 4)
    loss = sds(x, noise.clone(), noise, torch.ones(3, 1, 1, 1)).sum()
    assert loss == 0 and (torch.autograd.grad(loss, x)[0] == 0).all()


def test_without_camera_prior_and_similarity_it_is_plain_sds_step_by_step():
    pairs, budget = prompts(), Budget(steps=4, batch_size=5, lr=0.05, clip=0.0)
    method = built(pairs, view=0.0, similarity=0.0, coarse=1.0).float()
    plain = built(pairs, view=0.0, similarity=0.0, coarse=1.0).float()

    def losses(outputs, batch, progress):
        x = 2 * plain.picture(batch["row"], batch["azimuth"]) - 1
        a, s = (torch.cos(batch["t"] * math.pi / 2).view(-1, 1, 1, 1),
                torch.sin(batch["t"] * math.pi / 2).view(-1, 1, 1, 1))
        with torch.no_grad():
            found = plain.priors.denoiser(a * x + s * batch["noise"], batch["t"],
                                          batch["prompt"], torch.zeros(5, 5), 2.0)
            g = s * (found - batch["noise"])
        return {"plain_loss": (x * g).flatten(1).sum(1).mean()}

    plain.losses = losses
    fit(method, pairs, budget, 3)
    fit(plain, pairs, budget, 3)
    assert torch.allclose(method.fields.raw, plain.fields.raw, atol=1e-5)
    assert not torch.allclose(method.fields.raw, built(pairs).fields.raw.float(), atol=1e-2)


def test_only_the_fields_of_the_batch_get_a_gradient():
    pairs = prompts()
    method = built(pairs)
    few = pairs.select([3, 1])
    sum(method(batch_of(method, few), 0.0).values()).backward()
    moved = method.fields.raw.grad.flatten(1).abs().sum(1) > 0
    assert moved.tolist() == [False, True, False, True, False]
    assert all(p.grad is None for p in method.priors.parameters())


# Phases and settings ------------------------------------------------------------------
def test_the_second_phase_has_the_priors_alone_and_a_steep_field():
    pairs = prompts()
    method = built(pairs)
    batch = batch_of(method, pairs)
    first, second = (method(batch, p) for p in (0.0, 0.9))
    assert set(first) == {"hybrid_loss", "similarity_loss"}
    assert set(second) == {"hybrid_loss"} and second["hybrid_loss"] != first["hybrid_loss"]
    assert set(built(pairs, planar=0.0, view=0.0)(batch, 0.9)) == {"similarity_loss"}


def test_augmentation_changes_the_similarity_alone():
    pairs = prompts()
    with_it, without = built(pairs), built(pairs, augment=False)
    batch = batch_of(with_it, pairs)
    one, two = with_it(batch, 0.0), without(batch, 0.0)
    assert one["hybrid_loss"] == two["hybrid_loss"]
    assert one["similarity_loss"] != two["similarity_loss"]


def test_a_turntable_shows_every_solid_from_all_sides():
    found = built(prompts(3)).turntable(4)
    assert found.shape == (3, 4, 1, 8, 8) and (0 <= found).all() and (found <= 1).all()


@pytest.mark.parametrize("wrong, said", [
    ({"planar": -1.0}, "at least 0"),
    ({"planar": 0.0, "view": 0.0, "similarity": 0.0}, "one above"),
    ({"levels": (0.5, 0.2)}, "levels must rise")])
def test_settings_that_mean_nothing_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        XBindSettings(**wrong)
