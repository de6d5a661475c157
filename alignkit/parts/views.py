"""Views of a flat picture through random homographies, with the geometry that joins them.

Points are (x, y) in pixels, (0, 0) the centre of the first pixel; a homography [n, 3, 3]
takes points of one picture to another. The geometry is kornia's (imported inside).
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad


def corners(side: int, like: Tensor) -> Tensor:
    """The four corners [4, 2] of a square picture, clockwise from the first pixel."""
    last = side - 1
    return torch.tensor([[0, 0], [last, 0], [last, last], [0, last]]).to(like)


def random_homographies(n: int, side: int, view: int, generator: torch.Generator, *,
                        angle: float = 10.0, scale: float = 0.2,
                        perspective: float = 0.1) -> Tensor:
    """Picture of side² pixels -> view of view², [n, 3, 3] float32.

    The view shows a square of `view` pixels around the middle, turned by at most `angle`
    degrees, smaller by at most `scale`, each corner moved by at most `perspective` / 2 of
    half its side, and shifted by what the picture leaves free. With the defaults and
    view ≤ 0.75 · side it lies inside the picture.
    """
    from kornia.geometry.transform import get_perspective_transform

    def within(bound: float, *shape: int) -> Tensor:
        return bound * (2 * torch.rand(shape, generator=generator) - 1)

    square = corners(view, torch.zeros(())) - (view - 1) / 2
    shown = square + within(perspective * view / 4, n, 4, 2)
    shown = shown * (1 - scale * torch.rand((n, 1, 1), generator=generator))
    turn = torch.deg2rad(within(angle, n))
    turned = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], 1)
    shown = shown @ turned.view(n, 2, 2)
    low, high = shown.amin(1), shown.amax(1)
    free_low, free_high = -low, side - 1 - high  # where the middle may lie
    middle = torch.lerp(free_low, free_high, torch.rand((n, 2), generator=generator))
    return get_perspective_transform(shown + middle[:, None],
                                     corners(view, shown).expand(n, 4, 2))


def warp(pictures: Tensor, homographies: Tensor, view: int) -> Tensor:
    """Views [n, c, view, view] of pictures [n, c, h, w], bilinear; outside is 0."""
    from kornia.geometry.transform import warp_perspective

    return warp_perspective(pictures, homographies.to(pictures), (view, view),
                            align_corners=True)


def transfer(homographies: Tensor, points: Tensor) -> Tensor:
    """Points [p, 2] or [n, p, 2] through homographies [n, 3, 3] -> [n, p, 2]."""
    from kornia.geometry.linalg import transform_points

    return transform_points(homographies, points.to(homographies).expand(
        len(homographies), -1, 2))


def cell_points(side: int, stride: int) -> Tensor:
    """(x, y) [cells², 2] on which the cells of a map of that stride sit, row by row: cell
    k is centred on pixel k · stride, as strided convolutions with odd kernels have it."""
    places = stride * torch.arange(-(-side // stride), dtype=torch.float32)
    y, x = torch.meshgrid(places, places, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def local_contrast(grey: Tensor, window: int = 9) -> Tensor:
    """Standard deviation of the window around each pixel, [n, 1, h, w] -> the same."""
    wide = pad(grey, (window // 2,) * 4, mode="reflect")
    mean = avg_pool2d(wide, window, 1)
    return (avg_pool2d(wide**2, window, 1) - mean**2).clamp(min=0).sqrt()
