"""A picture tower that looks at spectrograms: the same layers, another first step.

`AudioTower(tower, bands, frames, stride)` copies `two_towers.TwoTowers`' picture tower, or a
CLIP picture tower of transformers, weights and all. Only what meets the input changes: the
first kernel is averaged over the colours, the last step of the stem is taken finer, and the
places, a square grid for pictures, are stretched over the grid that then comes out.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignkit.data import Tokens
from alignkit.parts.two_towers import TwoTowers


class AudioTower(nn.Module):
    """Spectrograms [n, 1, bands, frames] -> rows [n, d], not of unit length.

    Args:
        tower: `TwoTowers`, or transformers' CLIPVisionModelWithProjection; it is copied.
        bands, frames: the size of all spectrograms.
        stride: of the stem's last convolution, (bands, frames): patches overlap where it is
            smaller than that of the picture tower.
    """

    def __init__(self, tower: nn.Module, bands: int, frames: int, stride: tuple[int, int]):
        super().__init__()
        stem, first, places, self.read = inside(copy.deepcopy(tower))
        stem[0] = one_channel(stem[0])
        stem[-1].stride = tuple(stride)
        kernel = stem[0].kernel_size if len(stem) == 1 else (1, 1)
        self.size = max(bands, kernel[0]), max(frames, kernel[1])
        self.stem, self.first = stem, nn.Parameter(first.detach().clone())
        grid = stem(self.first.new_zeros(1, 1, *self.size)).shape[2:]
        self.places = nn.Parameter(stretched(places.detach(), grid))
        self.requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        missing = [wanted - there for wanted, there in zip(self.size, x.shape[2:], strict=True)]
        if min(missing) < 0:
            raise ValueError(f"spectrograms must be at most {self.size}, got "
                             f"{tuple(x.shape[2:])}: cut them first")
        x = self.stem(F.pad(x, (0, missing[1], 0, missing[0]))).flatten(2).transpose(1, 2)
        return self.read(torch.cat([self.first.expand(len(x), 1, -1), x], 1) + self.places)


def one_channel(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution for one channel that gives a third of what `conv` gives for three
    equal ones (before its bias): the kernel's mean over the colours."""
    new = nn.Conv2d(1, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
                    bias=conv.bias is not None)
    with torch.no_grad():
        new.weight.copy_(conv.weight.mean(1, keepdim=True))
        if conv.bias is not None:
            new.bias.copy_(conv.bias)
    return new


def stretched(places: Tensor, grid: tuple[int, int]) -> Tensor:
    """Places [1 + s·s, d] -> [1 + h·w, d]: the class token's stays, those of the square are
    interpolated bilinearly over `grid` = (h, w)."""
    side = round((len(places) - 1) ** 0.5)
    square = places[1:].T.reshape(1, -1, side, side)
    new = F.interpolate(square, tuple(grid), mode="bilinear", align_corners=False)
    return torch.cat([places[:1], new[0].flatten(1).T])


def inside(tower: nn.Module) -> tuple[nn.Sequential, Tensor, Tensor, nn.Module]:
    """Of a picture tower: the stem (convolutions from pixels to patches), the class token,
    the places, and what reads tokens [n, 1 + p, width] out as rows [n, d].

    Raises TypeError for another kind of tower.
    """
    if isinstance(tower, TwoTowers):
        return (tower.stem, tower.class_token, tower.image_places,
                _Read(tower.image_encoder, tower.image_head))
    if not hasattr(tower, "vision_model"):
        raise TypeError("tower must be TwoTowers or a CLIPVisionModelWithProjection, got "
                        f"{type(tower).__name__}")
    clip = tower.vision_model
    return (nn.Sequential(clip.embeddings.patch_embedding),
            clip.embeddings.class_embedding, clip.embeddings.position_embedding.weight,
            _ReadClip(clip, tower.visual_projection))


class _Read(nn.Module):
    """`TwoTowers`' layers, read at the class token."""

    def __init__(self, encoder: nn.Module, head: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, x: Tensor) -> Tensor:
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return self.head(self.encoder(Tokens(x, real)).values[:, 0])


class _ReadClip(nn.Module):
    """The same of CLIP's picture tower."""

    def __init__(self, clip: nn.Module, head: nn.Module):
        super().__init__()
        self.before, self.encoder = clip.pre_layrnorm, clip.encoder
        self.after, self.head = clip.post_layernorm, head

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(inputs_embeds=self.before(x)).last_hidden_state
        return self.head(self.after(x[:, 0]))
