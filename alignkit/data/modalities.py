"""Other modalities of a photograph, pixel by pixel: what another sensor might see.

All take and give pictures [n, 1, h, w] in 0 … 1 (grey), and keep every pixel where it is.
Only `event` is a rule that its authors published; the others are cheap stand-ins for
networks: they keep the kind of difference (tones remapped, texture lost, edges alone), not
what a real camera would record.
"""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from alignkit.data.pictures import to_rgb

POSITIVE, NEGATIVE = 29 / 255, 76 / 255  # pure blue and pure red, as grey


def event(grey: Tensor, threshold: Tensor, shift: Tensor) -> Tensor:
    """An event camera that moved by `shift` [n, 2] (dy, dx) whole pixels.

    g = log(1 + 255 · grey), D = g(i + dy, j + dx) − g(i, j); white, but dark where
    |D| > threshold [n], in two tones by the sign of D; a border of |shift| stays white.
    """
    light = (255 * grey).log1p()
    out = torch.ones_like(grey)
    h, w = grey.shape[-2:]
    for k, (dy, dx) in enumerate(shift.tolist()):
        y, x = slice(abs(dy), h - abs(dy)), slice(abs(dx), w - abs(dx))
        there = light[k, 0].roll((-dy, -dx), (0, 1))[y, x]
        change = there - light[k, 0, y, x]
        drawn = out[k, 0, y, x]  # a view: written through
        drawn[change > threshold[k]] = POSITIVE
        drawn[change < -threshold[k]] = NEGATIVE
    return out


def infrared(rgb: Tensor, mix: Tensor, curve: Tensor) -> Tensor:
    """Heat-like: colours [n, 3, h, w] mixed by `mix` [n, 3] (sums to 1), tones mapped by a
    `curve` [n, k] of k heights at equal distances, which need not rise; then blurred."""
    from kornia.filters import gaussian_blur2d

    tone = (rgb * mix[:, :, None, None]).sum(1, keepdim=True).clamp(0, 1)
    k = curve.shape[1]
    place = tone * (k - 1)
    low = place.floor().clamp(max=k - 2).long()
    heights = [curve.gather(1, (low + step).flatten(1)).view_as(tone) for step in (0, 1)]
    mapped = torch.lerp(*heights, place - low)
    return gaussian_blur2d(mapped, (5, 5), (1.0, 1.0))


def relief(grey: Tensor) -> Tensor:
    """What is brighter is nearer, fine texture smoothed away and edges kept; 0 … 1."""
    from kornia.filters import bilateral_blur

    smooth = bilateral_blur(grey, (7, 7), 0.1, (2.0, 2.0))
    low, high = (f(smooth, (2, 3), keepdim=True) for f in (torch.amin, torch.amax))
    return (smooth - low) / (high - low).clamp(min=1e-6)


def depth(near: Tensor) -> Tensor:
    """Depth-like: a `relief` in the colours of the map `Spectral_r`, as grey, so that
    both ends are dark and the middle is bright."""
    import matplotlib

    map256 = torch.tensor(matplotlib.colormaps["Spectral_r"](range(256))[:, :3])
    tones = luminance(map256.T[None, :, :, None]).flatten().to(near)
    return tones[(255 * near).long().clamp(0, 255)]


def normal(near: Tensor, height: float = 4.0) -> Tensor:
    """Surface normals of a `relief`, (n + 1) / 2 as colours, then as grey."""
    from kornia.filters import spatial_gradient

    dx, dy = (height * spatial_gradient(near)).unbind(2)
    n = torch.cat([-dx, -dy, torch.ones_like(dx)], 1)
    return luminance((n / n.norm(dim=1, keepdim=True) + 1) / 2)


def sketch(grey: Tensor, strength: float = 12.0) -> Tensor:
    """Dark lines on white where a difference of Gaussians is negative."""
    from kornia.filters import gaussian_blur2d

    fine, coarse = (gaussian_blur2d(grey, (9, 9), (s, s)) for s in (0.7, 1.6))
    return (1 + strength * (fine - coarse)).clamp(0, 1)


def paint(grey: Tensor, side: int = 4) -> Tensor:
    """Flat strokes: the mean of the evenest of four squares around a pixel (Kuwahara)."""
    h, w = grey.shape[-2:]
    wide = pad(grey, (side - 1,) * 4, mode="reflect")
    mean = avg_pool2d(wide, side, 1)
    spread = avg_pool2d(wide**2, side, 1) - mean**2
    places = [(y, x) for y in (0, side - 1) for x in (0, side - 1)]
    means, spreads = (torch.stack([m[..., y:y + h, x:x + w] for y, x in places])
                      for m in (mean, spread))
    return means.gather(0, spreads.argmin(0, keepdim=True))[0]


def luminance(rgb: Tensor) -> Tensor:
    """Grey [n, 1, h, w] of colours [n, 3, h, w] (0.299, 0.587, 0.114)."""
    weights = torch.tensor([0.299, 0.587, 0.114]).to(rgb)
    return (rgb * weights[:, None, None]).sum(1, keepdim=True)


def as_tensor(picture: Image.Image, size: int) -> Tensor:
    """A picture as colours [1, 3, size, size] in 0 … 1: the square in its middle."""
    rgb = ImageOps.fit(to_rgb(picture), (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None].float() / 255
