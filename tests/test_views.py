"""Random views: their geometry, and that pictures and points move alike."""

import pytest
import torch

from alignkit.parts.views import (
    cell_points, corners, local_contrast, random_homographies, transfer, warp,
)  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_pictures_and_points_move_alike():
    """A picture whose brightness is its own x (or y): a view shows where it comes from."""
    side, view = 64, 48
    ramp = torch.arange(side).double().expand(side, side)
    pictures = torch.stack([ramp, ramp.T])[None].expand(5, 2, side, side)
    h = random_homographies(5, side, view, generator()).double()
    shown = warp(pictures, h, view)
    points = cell_points(view, 4)
    source = transfer(torch.linalg.inv(h), points)
    x, y = points.long().unbind(1)
    assert torch.allclose(shown[:, :, y, x].mT, source, atol=1e-4)


def test_views_lie_inside_the_picture_and_differ():
    h = random_homographies(300, 128, 96, generator())
    inside = transfer(torch.linalg.inv(h), corners(96, torch.zeros(())))
    assert -1e-3 <= inside.min() and inside.max() <= 127 + 1e-3
    side = (inside[:, 1] - inside[:, 0]).norm(dim=-1)
    assert 65 < side.min() < 80 and 94 < side.max() < 106
    turn = (inside[:, 1] - inside[:, 0]).unbind(1)
    degrees = torch.rad2deg(torch.atan2(turn[1], turn[0]))
    assert 8 < degrees.abs().max() < 16 and degrees.std() > 4


def test_without_any_change_a_view_is_the_picture():
    h = random_homographies(2, 20, 20, generator(), angle=0, scale=0, perspective=0)
    assert torch.allclose(h / h[:, 2:, 2:], torch.eye(3).expand(2, 3, 3), atol=1e-5)


def test_cells_sit_where_strided_convolutions_look():
    """The gradient of one output cell has its middle on the cell's point."""
    net = torch.nn.Sequential(*(torch.nn.Conv2d(1, 1, 3, 2, 1) for _ in range(2))).double()
    for layer in net:
        torch.nn.init.constant_(layer.weight, 1.0)
    x = torch.zeros(1, 1, 32, 32, dtype=torch.double, requires_grad=True)
    (seen,) = torch.autograd.grad(net(x)[0, 0, 3, 5], x)
    y, x = seen[0, 0].nonzero().double().mean(0)
    assert [x, y] == cell_points(32, 4).view(8, 8, 2)[3, 5].tolist() == [20, 12]


@pytest.mark.parametrize("value, wanted", [(0.0, 0.0), (1.0, 1 / 9 * (1 - 1 / 81) ** 0.5)])
def test_contrast_is_the_standard_deviation_of_a_window(value, wanted):
    grey = torch.zeros(1, 1, 21, 21, dtype=torch.double)
    grey[..., 10, 10] = value
    found = local_contrast(grey)[0, 0]
    assert found[10, 10].item() == pytest.approx(wanted) == found[6, 14].item()
    assert found[5, 10] == 0
