"""Voxels: the field, the renderer, solids, and the small networks that look at them."""

import math
import runpy
from pathlib import Path

import pytest
import torch

from alignkit.data import Pairs
from alignkit.data.solids import KINDS, dealt, kind_of, voxels_of
from alignkit.parts import shipped
from alignkit.parts.voxel_priors import (
    FOLDER, Denoiser, PriorSettings, VoxelPriors, ancestral, load_voxel_priors,
    signal_and_noise, view_of,
)  # fmt: skip
from alignkit.parts.voxels import FAR, LEVEL, SOLID, VoxelField, around, render, turned
from alignkit.training import Budget, fit, seed_all

SCRIPT = Path(__file__).parents[1] / "data_scripts" / "train_voxel_priors.py"


def drawn(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)).double()


# The renderer -------------------------------------------------------------------------
def loop_picture(density: torch.Tensor) -> torch.Tensor:
    """Volume rendering, ray by ray, from the front."""
    side = len(density)
    out = torch.zeros(side, side, dtype=density.dtype)
    for y in range(side):
        for x in range(side):
            light = 1.0
            for z in range(side):
                kept = math.exp(-density[y, z, x])
                out[y, x] += light * (1 - kept) * (1 + (FAR - 1) * z / (side - 1))
                light *= kept
    return out


def test_a_picture_is_the_loop_over_rays():
    density = 2 * drawn(3, 6, 6, 6)
    picture, covered = render(density, torch.zeros(3).double())
    for one, found, part in zip(density, picture, covered):
        assert torch.allclose(found[0], loop_picture(one), rtol=1e-9)
        assert torch.allclose(part[0], 1 - torch.exp(-one.sum(1)), rtol=1e-9)


def test_a_quarter_turn_is_exact_and_takes_the_right_side_to_the_front():
    density, quarter = drawn(2, 5, 5, 5), torch.full((2,), math.pi / 2, dtype=torch.float64)
    found = turned(density, quarter)
    assert torch.allclose(found, torch.rot90(density, 1, (2, 3)), atol=1e-9)
    assert torch.allclose(found[:, :, 0], density[:, :, :, -1], atol=1e-9)


def test_what_is_nearer_is_brighter_and_hides_what_is_behind():
    density = torch.zeros(1, 4, 4, 4)
    density[0, 1, 0, 2] = density[0, 2, 3, 1] = 50.0
    picture = render(density, torch.zeros(1))[0][0, 0]
    assert picture[1, 2] == pytest.approx(1.0) and picture[2, 1] == pytest.approx(FAR)
    assert (picture > 0).sum() == 2
    density[0, 1, 3, 2] = 50.0
    assert torch.equal(render(density, torch.zeros(1))[0][0, 0], picture)


def test_the_renderer_has_the_gradient_of_finite_differences():
    density, azimuth = (2 * drawn(1, 4, 4, 4)).requires_grad_(), torch.tensor([0.3]).double()
    assert torch.autograd.gradcheck(lambda d: render(d, azimuth)[0], density)


def test_a_field_is_empty_outside_the_ball_and_a_surface_is_steep():
    field = VoxelField(2, 8)
    soft, steep = (field(torch.tensor([1, 0]), s) for s in (False, True))
    assert soft.shape == (2, 8, 8, 8) and (soft[:, 0, 0, 0] == 0).all()
    with torch.no_grad():
        field.raw.fill_(math.log(math.expm1(LEVEL)))  # softplus = LEVEL: the surface itself
    assert torch.allclose(field(torch.tensor([0]), True)[0, 4, 4, 4],
                          torch.tensor(SOLID / 2), rtol=1e-5)
    middle, edge = (4, 4, 4), (4, 4, 7)
    assert steep[0][middle] > soft[0][middle] and steep[0][middle] > 0.9 * SOLID
    assert steep[0][edge] < 0.1 * SOLID and 0 < soft[0][edge] < LEVEL * SOLID


def test_azimuths_go_once_around():
    assert torch.allclose(around(4), torch.tensor([0, 0.5, 1, 1.5]) * math.pi)


# Solids -------------------------------------------------------------------------------
def test_names_speak_of_one_kind_or_none():
    assert [kind_of(n) for n in ("Oak chair", "Coffee table", "Palm tree")] == [
        list(KINDS).index(k) for k in ("chair", "table", "plant")]
    assert {kind_of(n) for n in ("Plug", "Sitting male", "Glass table", "Toaster")} == {-1}


def test_points_fill_the_cells_around_them():
    cloud = torch.tensor([[[0.0, 1.0, 0.0]] * 8])  # at the top
    voxels = voxels_of(cloud, 8)[0]
    assert voxels[0].sum() > 0 and voxels[1:].sum() == 0  # y points down
    assert torch.equal(voxels[0, 3:5, 3:5], torch.ones(2, 2)) and voxels.sum() == 4
    front = voxels_of(torch.tensor([[[0.0, 0.0, 1.0]] * 8]), 8)[0]
    assert front[:, 0].sum() == 4 and front[:, 1:].sum() == 0  # z away from who looks
    with pytest.raises(ValueError, match="at least 4"):
        voxels_of(cloud, 3)


def test_every_kind_is_dealt_three_to_two_anew_with_each_seed():
    kind = torch.arange(3).repeat_interleave(10)
    one, two = dealt(kind, 0), dealt(kind, 1)
    assert [int(one[kind == k].sum()) for k in range(3)] == [6] * 3
    assert torch.equal(one, dealt(kind, 0)) and not torch.equal(one, two)


# The priors ---------------------------------------------------------------------------
def test_levels_keep_the_variance():
    a, s = signal_and_noise(torch.linspace(0, 1, 7))
    assert torch.allclose(a**2 + s**2, torch.ones(7)) and a[0] == 1 and s[-1] == 1


def test_an_untrained_denoiser_finds_grey_and_guidance_is_linear():
    s = PriorSettings(side=4, shared=6, width=16, blocks=1)
    net = Denoiser(s)
    x, t, e = torch.randn(3, 1, 4, 4), torch.tensor([0.2, 0.5, 0.9]), torch.randn(3, 6)
    view = view_of(torch.rand(3))
    noise = signal_and_noise(t)[1].view(-1, 1, 1, 1)
    assert torch.allclose(net(x, t, e, view), x / noise)  # all of it but grey, 0
    torch.nn.init.normal_(net.out.weight)
    free, told = (net(x, t, c, view) for c in (torch.zeros_like(e), e))
    assert torch.allclose(net(x, t, e, view, 3.0), free + 3 * (told - free), atol=1e-3)


class Exact(torch.nn.Module):
    """The best denoiser of one picture: it knows it."""

    settings = PriorSettings(side=4)

    def __init__(self, picture):
        super().__init__()
        self.picture = picture

    def forward(self, x, t, condition, view, guidance):
        a, s = (p.view(-1, 1, 1, 1) for p in signal_and_noise(t))
        return (x - a * self.picture) / s


def test_drawing_with_the_exact_denoiser_gives_its_picture():
    picture = 2 * torch.rand(1, 1, 4, 4) - 1
    found = ancestral(Exact(picture), torch.zeros(5, 2), torch.zeros(5, 5), 20,
                      generator=torch.Generator().manual_seed(0))
    assert torch.allclose(found, (picture.expand(5, -1, -1, -1) + 1) / 2, atol=1e-5)


def test_eight_priors_are_shipped_that_differ_and_pass_the_gate():
    units = shipped.units(FOLDER)
    assert units == list(range(8))
    files = shipped.recipe(FOLDER)["files"].values()
    assert min(entry["drawn"] for entry in files) >= 0.4
    one, two = (load_voxel_priors(seed) for seed in (0, 1))
    assert not one.training and not any(p.requires_grad for p in one.parameters())
    x = torch.rand(2, 1, 16, 16)
    assert one.pictures(x).shape == (2, 64) and one.judged(x).shape == (2,)
    assert not torch.equal(one.pictures(x), two.pictures(x))
    with pytest.raises(FileNotFoundError):
        load_voxel_priors(99)


# The script that trains them ----------------------------------------------------------
def bars(n: int = 30) -> Pairs:
    """Lying and standing bars, as solids of two kinds."""
    voxels, kind = torch.zeros(n, 8, 8, 8), torch.arange(n) % 2
    voxels[kind == 0, 3:5, 3:5, :], voxels[kind == 1, :, 3:5, 3:5] = 1.0, 1.0
    hot = torch.nn.functional.one_hot(kind, 4).float()
    return Pairs.make({"voxels": voxels, **{f"{name}_features": hot for name in
                                            ("text", "image", "speech")}},
                      labels={"kind": kind})


@pytest.mark.slow
def test_the_script_teaches_what_a_solid_looks_like():
    script, pairs = runpy.run_path(str(SCRIPT)), bars()
    own = dealt(pairs.labels["kind"], 0)
    seed_all(0)
    net = VoxelPriors(PriorSettings(side=8, shared=8, channels=4, width=64, blocks=1, kinds=2,
                                    heads={n: 4 for n in ("text", "image", "speech")}))
    for kind, part, steps in (("Encoders", own, 60), ("Judge", ~own, 60), ("Drawing", own, 250)):
        rows = script["balanced"](pairs.select(part.nonzero()[:, 0]), 0)
        history = fit(script[kind](net, rows), rows, Budget(steps=steps, batch_size=16,
                                                            lr=5e-3), 0)
        assert history.curve()[-1] < 0.7 * history.curve()[0], kind
    found = script["figures"](net.eval(), pairs, own)
    assert set(found) == {"pictures", "judge", "image", "speech", "drawn", "drawn_with_view"}
    assert min(found.values()) > 0.7, found


def test_pictures_of_solids_come_from_all_sides_and_stretched():
    script, pairs = runpy.run_path(str(SCRIPT)), bars(4)
    found = script["pictures_of"](pairs["voxels"], 0)
    assert found.shape == (4, script["STRETCHES"] * script["VIEWS"], 1, 8, 8)
    plain = render(SOLID * pairs["voxels"], torch.zeros(4))[0]
    assert torch.allclose(found[:, 0], plain, atol=1e-5)
    assert not torch.allclose(found[:, script["VIEWS"]], plain, atol=1e-2)
