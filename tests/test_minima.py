"""MINIMA's loss and labels against slow loops, its engine and its exact properties."""

import math

import pytest
import torch

from alignkit.data import Lazy, Pairs
from alignkit.data import modalities as make
from alignkit.methods.minima import (
    MODALITIES, TRAINED, Minima, MinimaSettings, cell_labels, dual_softmax, engine,
    focal_loss,
)  # fmt: skip
from alignkit.parts.views import cell_points, random_homographies
from alignkit.training import seed_all


def drawn(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def textured(n: int = 6, side: int = 64) -> Pairs:
    """Rows with a smooth random picture for every modality."""
    g, columns = torch.Generator().manual_seed(3), {}
    for name in MODALITIES:
        coarse = torch.rand(n, 1, side // 4, side // 4, generator=g)
        columns[name] = torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")
    return Pairs.from_features(columns)


def toy_features(pairs: Pairs) -> Pairs:
    """For the tests of all papers (toys.py): a random picture of 32 × 32 pixels, with edges,
    in each modality."""
    g = torch.Generator().manual_seed(0)
    return pairs.with_columns(**{name: torch.rand(len(pairs), 1, 8, 8, generator=g)
                                 .repeat_interleave(4, 2).repeat_interleave(4, 3)
                                 for name in MODALITIES})


def built(modalities=TRAINED, pairs: Pairs | None = None) -> Minima:
    seed_all(0)
    return Minima(MinimaSettings(tuple(modalities), width=16), pairs or textured())


# The loss and its labels ----------------------------------------------------------------
def loop_loss(f, g, labels, t: float, alpha: float, gamma: float) -> torch.Tensor:
    """The card's equation, one number at a time; labels: (n, i, j) of right cells."""
    total, width = 0.0, f.shape[-1]
    for n, i, j in labels:
        s = [[sum(f[n, a, c] * g[n, b, c] for c in range(width)) / (width * t)
              for b in range(g.shape[1])] for a in range(f.shape[1])]
        row = s[i][j].exp() / sum(s[i][b].exp() for b in range(g.shape[1]))
        column = s[i][j].exp() / sum(s[a][j].exp() for a in range(f.shape[1]))
        p = (row * column).clamp(1e-6, 1 - 1e-6)
        total = total - alpha * (1 - p) ** gamma * p.log() / len(labels)
    return total


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (1.0, 0.0)])
def test_loss_and_gradient_are_the_equation(alpha, gamma):
    f, g = drawn(2, 4, 3).requires_grad_(), drawn(2, 4, 3, seed=1).requires_grad_()
    labels = [(0, 0, 1), (0, 2, 2), (1, 3, 0)]
    fast = focal_loss(f @ g.mT / (3 * 0.1), torch.tensor(labels), alpha, gamma)
    slow = loop_loss(f, g, labels, 0.1, alpha, gamma)
    assert abs(fast - slow).item() < 1e-9
    for a, b in zip(*(torch.autograd.grad(x, (f, g)) for x in (fast, slow))):
        assert (a - b).norm() < 1e-9 * b.norm()


def test_the_loss_is_that_of_clamped_p():
    """Cells that are all but sure, or hopeless, get no gradient, as in the authors' code."""
    s = (200 * torch.eye(3, dtype=torch.float64))[None].requires_grad_()
    sure, hopeless = (focal_loss(s, torch.tensor([[0, 0, j]])) for j in (0, 1))
    assert sure.item() == pytest.approx(0.25 * 1e-12 * -math.log1p(-1e-6))
    assert hopeless.item() == pytest.approx(0.25 * (1 - 1e-6) ** 2 * -math.log(1e-6))
    assert torch.autograd.grad(sure + hopeless, s)[0].abs().sum() == 0
    assert focal_loss(s, torch.zeros(0, 3, dtype=torch.long)).item() == 0


def loop_labels(h, usable, view: int, stride: int) -> set:
    """Nearest cells both ways, point by point."""
    side = -(-view // stride)

    def nearest(matrix, cell):
        x, y = stride * (cell % side), stride * (cell // side)
        u, v, w = (matrix @ torch.tensor([x, y, 1.0], dtype=matrix.dtype)).tolist()
        column, row = round(u / w / stride), round(v / w / stride)
        inside = 0 <= column < side and 0 <= row < side
        return row * side + column if inside else None

    found = set()
    for n, (there, back) in enumerate(zip(h, torch.linalg.inv(h))):
        for i in range(side**2):
            j = nearest(there, i)
            if usable[n, i] and j is not None and nearest(back, j) == i:
                found.add((n, i, j))
    return found


def test_labels_are_the_cells_nearest_to_each_other():
    g = torch.Generator().manual_seed(0)
    h0, h1 = (random_homographies(3, 64, 48, g, angle=25).double() for _ in range(2))
    h, usable = h1 @ torch.linalg.inv(h0), torch.rand(3, 144, generator=g) < 0.7
    found = cell_labels(h, usable, 48, 4)
    assert {tuple(row) for row in found.tolist()} == loop_labels(h, usable, 48, 4)
    assert 100 < len(found) < 300


def test_of_one_view_and_itself_every_cell_is_its_own_answer():
    usable = torch.ones(1, 144, dtype=torch.bool)
    labels = cell_labels(torch.eye(3)[None], usable, 48, 4)
    assert torch.equal(labels[:, 1], torch.arange(144))
    assert torch.equal(labels[:, 1], labels[:, 2])


# Exact properties ---------------------------------------------------------------------
def test_p_changes_places_with_the_views_and_sums_to_at_most_one():
    s = 5 * drawn(2, 7, 9)
    p = dual_softmax(s)
    assert torch.allclose(dual_softmax(s.mT), p.mT, rtol=1e-12)
    assert (p.sum(1) <= 1 + 1e-12).all() and (p.sum(2) <= 1 + 1e-12).all()
    assert p.sum() < 2 * 7 - 0.1  # of two softmaxes one alone would reach it


def test_where_all_is_visible_the_loss_is_the_visible_matchers_bit_for_bit():
    pairs = textured()
    null = pairs.with_features(**{name: pairs["visible"] for name in MODALITIES})
    visible, mixed = built(["visible"]), built()
    losses = [m(m.collate(rows, torch.Generator().manual_seed(5)))["coarse_loss"]
              for m, rows in ((visible, pairs), (mixed, null), (mixed, pairs))]
    assert torch.equal(losses[0], losses[1]) and losses[2] != losses[0]


def test_labels_do_not_depend_on_the_modality_or_the_side():
    pairs, method = textured(), built()
    batches = [method.views(pairs["visible"], pairs[name], side,
                            torch.Generator().manual_seed(5))
               for name, side in (("visible", 0), ("depth", 0), ("event", 1))]
    for batch in batches[1:]:
        assert torch.equal(batch["homography"], batches[0]["homography"])
        assert torch.equal(batch["usable"], batches[0]["usable"])
    same, second, first = batches
    assert torch.equal(second["first"], same["first"])
    assert torch.equal(first["second"], same["second"])
    assert not torch.equal(second["second"], same["second"])


def test_one_view_of_each_training_pair_is_visible_and_modalities_are_even():
    n = 400
    pairs = Pairs.from_features({name: torch.full((n, 1, 32, 32), float(k))
                                 for k, name in enumerate(MODALITIES)})
    batch = built(pairs=pairs).collate(pairs, torch.Generator().manual_seed(0))
    first, second = (batch[name].mean((1, 2, 3)) for name in ("first", "second"))
    assert ((first == 0) | (second == 0)).all()
    counts = [int(((first + second).round() == k).sum()) for k in range(len(MODALITIES))]
    assert all(70 < c < 130 for c in counts[:4]) and sum(counts[4:]) == 0
    assert 100 < (first > 0).sum() < 200


def loop_event(grey, c: float, dy: int, dx: int) -> torch.Tensor:
    h, w = grey.shape
    out = torch.ones(h, w, dtype=grey.dtype)
    for i in range(abs(dy), h - abs(dy)):
        for j in range(abs(dx), w - abs(dx)):
            d = math.log1p(255 * grey[i + dy, j + dx]) - math.log1p(255 * grey[i, j])
            out[i, j] = 29 / 255 if d > c else 76 / 255 if d < -c else 1.0
    return out


@pytest.mark.parametrize("dy, dx", [(1, 3), (-2, 1), (3, -3)])
def test_events_are_the_authors_rule(dy, dx):
    grey = torch.rand(1, 1, 12, 15, generator=torch.Generator().manual_seed(1)).double()
    c, shift = torch.tensor([0.3]), torch.tensor([[dy, dx]])
    found = make.event(grey, c, shift)
    assert torch.allclose(found[0, 0], loop_event(grey[0, 0], 0.3, dy, dx))
    assert len(found.unique()) == 3
    mirrored = make.event(grey.flip(-1), c, shift * torch.tensor([1, -1]))
    assert torch.equal(mirrored, found.flip(-1))
    assert (make.event(grey, torch.tensor([5.6]), shift) == 1).all()  # log 256 = 5.55
    assert (make.event(torch.full_like(grey, 0.4), c, shift) == 1).all()


# The engine ---------------------------------------------------------------------------
def pictures(n: int = 4) -> Pairs:
    from PIL import Image

    def read(i: int) -> Image.Image:
        noise = torch.rand(3, 10, 10, generator=torch.Generator().manual_seed(i))
        array = (255 * noise).byte().permute(1, 2, 0).numpy()
        return Image.fromarray(array).resize((40, 40), Image.Resampling.BICUBIC)

    return Pairs.make({"image": Lazy(range(n), read)}, ids=[f"picture {i}" for i in range(n)])


def test_the_engine_gives_every_modality_and_depends_on_seed_and_id_alone():
    pairs = pictures()
    made = engine(pairs, seed=1, size=32)
    for name in MODALITIES:
        assert made[name].shape == (4, 1, 32, 32)
        assert 0 <= made[name].min() and made[name].max() <= 1 + 1e-6
        assert made[name].std() > 0.01
    turned = engine(pairs.select([2, 0]), seed=1, size=32)
    other = engine(pairs, seed=2, size=32)
    for name in MODALITIES:
        assert torch.equal(turned[name], made[name][[2, 0]])
        assert torch.equal(other[name], made[name]) == (name not in ("infrared", "event"))
    assert made.provenance.hash != pairs.provenance.hash
    with pytest.raises(ValueError, match="column image"):
        engine(textured())


def test_every_modality_stays_where_its_pixels_are():
    """A spot of light changes its surroundings and nothing else, by shift and blur at most."""
    rgb = torch.full((1, 3, 33, 33), 0.3)
    rgb[..., 10, 20] = 1.0
    one = {"visible": make.luminance(rgb), "paint": make.paint(make.luminance(rgb)),
           "sketch": make.sketch(make.luminance(rgb)),
           "infrared": make.infrared(rgb, torch.full((1, 3), 1 / 3), torch.rand(1, 5)),
           "normal": make.normal(make.relief(make.luminance(rgb))),
           "event": make.event(make.luminance(rgb), torch.tensor([0.1]),
                               torch.tensor([[2, -1]]))}
    for name, picture in one.items():
        y, x = (picture[0, 0] - picture[0, 0, 30, 3]).abs().gt(1e-4).nonzero().unbind(1)
        if name != "paint":  # strokes swallow a spot
            assert len(y) and (y - 10).abs().max() <= 6 and (x - 20).abs().max() <= 6, name


def test_depth_is_folded_as_its_colours_are():
    """Both ends of Spectral_r are dark, so grey does not tell near from far."""
    steps = torch.linspace(0, 1, 128).repeat(16, 1)[None, None]
    tones = make.depth(make.relief(steps))[0, 0, 8]
    assert tones[0] < 0.5 and tones[-1] < 0.5 and tones[64] > 0.85


# The matcher --------------------------------------------------------------------------
def test_a_view_finds_itself():
    method, pairs = built(), textured()
    view = pairs["visible"][..., :48, :48]
    batch = {"first": view, "second": view}
    points, there, mutual = method.match(batch)
    assert torch.equal(points, cell_points(48, 4)) and there.shape == (6, 144, 2)
    assert ((there - points).norm(dim=-1) < 4.1)[mutual].float().mean() > 0.5


def test_loftrs_level_has_the_same_contract():
    pairs = textured(2)
    seed_all(0)
    method = Minima(MinimaSettings(matcher="loftr"), pairs)
    batch = method.collate(pairs, torch.Generator().manual_seed(0))
    outputs = method.encode(batch)
    assert outputs["first"].shape == (2, 256, 6, 6)
    assert torch.isfinite(method.losses(outputs, batch, 0.0)["coarse_loss"])
    assert method.match(batch)[1].shape == (2, 36, 2)
    assert method.score(outputs["first"], outputs["second"]).shape == (2, 2)
