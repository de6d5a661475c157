"""A field of density in voxels and a differentiable renderer of it.

A density [n, y, z, x] is turned about the upright axis and looked at along z, in parallel
rays (volume rendering, Kajiya and Von Herzen 1984). There is no colour: what is near is
bright, so a picture shows outline and depth.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, softplus

FAR = 0.4  # brightness of the last cell; the first has 1
SOLID = 6.0  # density of a full cell: a ray that crosses it keeps 1/400 of its light
LEVEL, STEEP = 0.05, 4  # of a surface: at twice LEVEL a cell is 94 % full, at half 6 %


class VoxelField(nn.Module):
    """n densities of side³ cells, softplus of what is trained, 0 outside the unit ball.

    They start as balls: `raw` is highest in the middle and falls with the radius. The
    pictures are SOLID times as dense as softplus(raw), so that steps of Adam are small
    beside what fills a cell.
    """

    def __init__(self, n: int, side: int, ball: float = 0.5):
        super().__init__()
        radius = cell_radius(side)
        self.raw = nn.Parameter((4 * (ball - radius) - 2).expand(n, -1, -1, -1).clone())
        self.register_buffer("inside", (radius <= 1).float())

    def forward(self, rows: Tensor, steep: bool = False) -> Tensor:
        """Densities [b, y, z, x] of these fields. steep: as surfaces, which are where the
        density is LEVEL of a full cell: inside it is nearly full, outside nearly empty."""
        soft = softplus(self.raw[rows])
        if steep:
            soft = 1 / (1 + (LEVEL / soft.clamp(min=1e-6)) ** STEEP)
        return SOLID * soft * self.inside


def cell_radius(side: int) -> Tensor:
    """How far each cell's middle lies from that of the cube, [side, side, side]; the
    cube's faces have distance 1."""
    places = (torch.arange(side) + 0.5) / side * 2 - 1
    return torch.stack(torch.meshgrid(places, places, places, indexing="ij")).norm(dim=0)


def turned(density: Tensor, azimuth: Tensor) -> Tensor:
    """Densities [n, y, z, x] turned about the upright axis by azimuth [n], in radians
    (bilinear; what turns in from outside is empty)."""
    c, s, zero = azimuth.cos(), azimuth.sin(), torch.zeros_like(azimuth)
    matrix = torch.stack([torch.stack([c, -s, zero], 1), torch.stack([s, c, zero], 1)], 1)
    grid = affine_grid(matrix.to(density), list(density.shape), align_corners=False)
    return grid_sample(density, grid, align_corners=False)


def render(density: Tensor, azimuth: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures [n, 1, y, x] of densities [n, y, z, x] at these azimuths [n], and how much
    of each pixel is covered.

    Cell k of a ray keeps exp(-density_k) of the light; pixel = sum over k of light that comes so far · (1 - kept) · brightness.
    """
    x = turned(density, azimuth)
    dark = torch.cumsum(x, 2)
    before = torch.exp(x - dark)  # exp(-sum of the cells before)
    seen = before - torch.exp(-dark)
    shade = torch.linspace(1.0, FAR, x.shape[2], dtype=x.dtype, device=x.device)
    return (seen * shade[:, None]).sum(2)[:, None], seen.sum(2)[:, None]


def around(views: int) -> Tensor:
    """So many azimuths at equal steps, the first from the front."""
    return torch.arange(views) * (2 * math.pi / views)
