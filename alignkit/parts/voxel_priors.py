"""Small frozen networks for pictures of voxels: encoders of one space for pictures, texts,
icons and speech; a denoiser that draws pictures from that space; and a judge of kinds that
shares nothing with them.

Eight come with the package, trained by `data_scripts/train_voxel_priors.py`, the judge of
each on other solids than the rest of it: `load_voxel_priors`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from alignkit.parts import shipped
from alignkit.parts.similarity import unit

FOLDER = shipped.FOLDER / "voxel-priors"
VIEW = 5  # numbers that tell a camera's place


@dataclass(frozen=True)
class PriorSettings:
    """side: of the pictures in pixels. shared: width of the space. channels: of the
    encoder's first layer. width, blocks: of the denoiser. heads: modality -> width of the
    frozen features that are mapped into the space. kinds: that the judge tells apart."""

    side: int = 16
    shared: int = 64
    channels: int = 16
    width: int = 192
    blocks: int = 3
    heads: Mapping[str, int] = field(
        default_factory=lambda: {"text": 384, "image": 1280, "speech": 384})
    kinds: int = 11


class PictureEncoder(nn.Module):
    """Pictures [n, 1, side, side] -> unit rows [n, shared]."""

    def __init__(self, s: PriorSettings):
        super().__init__()
        c = s.channels
        def block(d_in: int, d_out: int, stride: int) -> list[nn.Module]:
            return [nn.Conv2d(d_in, d_out, 3, stride, 1), nn.GroupNorm(4, d_out), nn.SiLU()]

        self.see = nn.Sequential(*block(1, c, 1), *block(c, 2 * c, 2), *block(2 * c, 4 * c, 2),
                                 nn.Flatten(),
                                 nn.Linear(4 * c * (s.side // 4) ** 2, s.shared))

    def forward(self, pictures: Tensor) -> Tensor:
        return unit(self.see(2 * pictures - 1))


class Denoiser(nn.Module):
    """eps^(x_t; condition, t, view): one network, two priors. With a view it is the one
    that knows where the camera is; without, the planar one.

    It learns the clean picture x^ (a few hundred numbers that say little; the noise in
    them would not pass its narrow middle), from which eps^ = (x_t - a x^) / s.
    """

    def __init__(self, s: PriorSettings):
        super().__init__()
        self.settings = s
        pixels, w = s.side**2, s.width
        self.into = nn.Linear(pixels, w)
        self.told = nn.Sequential(nn.Linear(s.shared + 33 + VIEW, w), nn.SiLU())
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"shift": nn.Linear(w, 2 * w), "norm": nn.LayerNorm(w),
                           "up": nn.Linear(w, w), "down": nn.Linear(w, w)})
            for _ in range(s.blocks))
        self.out = nn.Linear(w, pixels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def clean(self, x: Tensor, t: Tensor, condition: Tensor, view: Tensor) -> Tensor:
        """x^, from -1 to 1, of noisy pictures x [n, 1, side, side] at levels t [n] in (0, 1), given rows
        [n, shared] (0: nothing is told) and views [n, VIEW] (`view_of`; 0: none)."""
        scale = math.sqrt(condition.shape[1])  # entries of size 1, as those of the rest
        told = self.told(torch.cat([scale * condition, waves(t, 32).to(x), 3 * view,
                                    condition.norm(dim=1, keepdim=True)], 1))
        h = self.into(x.flatten(1))
        for block in self.blocks:
            scale, shift = block["shift"](told).chunk(2, 1)
            y = block["norm"](h) * (1 + scale) + shift
            h = h + block["down"](torch.nn.functional.silu(block["up"](y)))
        return self.out(h).view_as(x)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, view: Tensor,
                guidance: float = 1.0) -> Tensor:
        """eps^ with classifier-free guidance: nothing told + guidance · the difference
        (of the condition; the view is told both times)."""
        a, s = (part.view(-1, 1, 1, 1).to(x) for part in signal_and_noise(t))
        clean = self.clean(x, t, condition, view)
        if guidance != 1.0:
            free = self.clean(x, t, torch.zeros_like(condition), view)
            clean = free + guidance * (clean - free)
        return (x - a * clean) / s


class VoxelPriors(nn.Module):
    """All that is frozen: `pictures` and `heads` (encoders of one space), `denoiser`, and
    `judge` with its `kinds`."""

    def __init__(self, s: PriorSettings):
        super().__init__()
        self.settings = s
        self.pictures, self.denoiser = PictureEncoder(s), Denoiser(s)
        self.heads = nn.ModuleDict({name: nn.Linear(width, s.shared)
                                    for name, width in s.heads.items()})
        self.judge, self.kinds = PictureEncoder(s), nn.Parameter(torch.randn(s.kinds, s.shared))

    def embed(self, modality: str, features: Tensor) -> Tensor:
        """Frozen features [n, d] of a prompt -> unit rows of the shared space."""
        return unit(self.heads[modality](features))

    def judged(self, pictures: Tensor) -> Tensor:
        """The kind [n] that the judge sees in pictures [n, 1, side, side]."""
        return (self.judge(pictures) @ unit(self.kinds).T).argmax(1)


def signal_and_noise(t: Tensor) -> tuple[Tensor, Tensor]:
    """a and s of x_t = a x + s eps at levels t in [0, 1]: cos and sin, a² + s² = 1
    (Nichol and Dhariwal 2021, without their offset)."""
    return torch.cos(t * math.pi / 2), torch.sin(t * math.pi / 2)


def waves(t: Tensor, width: int) -> Tensor:
    """Levels [n] as cosines and sines [n, width] of growing frequency."""
    rate = torch.exp(torch.linspace(0, math.log(100), width // 2, device=t.device)).to(t)
    return torch.cat([torch.cos(t[:, None] * rate), torch.sin(t[:, None] * rate)], 1)


def view_of(azimuth: Tensor) -> Tensor:
    """What a denoiser is told of a camera: [n, VIEW]. Many things look alike from both
    sides, so the doubled angle is told too."""
    return torch.stack([torch.ones_like(azimuth), azimuth.cos(), azimuth.sin(),
                        (2 * azimuth).cos(), (2 * azimuth).sin()], 1)


@torch.no_grad()
def ancestral(denoiser: Denoiser, condition: Tensor, view: Tensor, steps: int = 40,
              guidance: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Pictures [n, 1, side, side] drawn from noise (DDPM, Ho et al. 2020), in `steps`
    levels; the estimate of the clean picture is held in [0, 1]·2 - 1."""
    n, side = len(condition), denoiser.settings.side
    x = torch.randn(n, 1, side, side, generator=generator).to(condition)
    levels = torch.linspace(0.98, 0.0, steps + 1)
    for now, then in zip(levels[:-1], levels[1:]):
        t = torch.full((n,), now.item())
        (a, s), (b, r) = signal_and_noise(now), signal_and_noise(then)
        clean = ((x - s * denoiser(x, t, condition, view, guidance)) / a).clamp(-1, 1)
        keep = a / b
        variance = (r / s) ** 2 * (1 - keep**2)
        mean = (b * (1 - keep**2) * clean + keep * r**2 * x) / s**2
        x = mean + variance.clamp(min=0).sqrt() * torch.randn(x.shape, generator=generator)
    return (x + 1) / 2


def load_voxel_priors(seed: int = 0, folder: Path = FOLDER) -> VoxelPriors:
    """Trained ones, frozen, in eval mode.

    Raises FileNotFoundError, ValueError: see `shipped.weights` and `shipped.fill`.
    """
    settings = PriorSettings(**shipped.recipe(folder)["settings"])
    return shipped.fill(VoxelPriors(settings), folder, seed)
