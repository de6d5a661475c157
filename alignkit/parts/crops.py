"""Random crops of pictures in whole patches, for what is asked of a region (Li et al. 2022,
arXiv 2112.09583, section 3.3)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def boxes_at(n: int, side: int, generator: torch.Generator,
             area: tuple[float, float] = (0.3, 0.5),
             aspect: tuple[float, float] = (0.3, 1 / 0.3)) -> Tensor:
    """Random crops [n, 4] of a grid of side × side patches: top, left, height, width. Area
    and aspect are drawn, rounded down to whole patches, and drawn again where they stick out."""
    found, left = torch.zeros(n, 4, dtype=torch.long), torch.arange(n)
    while len(left):
        part, by = (low + (high - low) * torch.rand(len(left), generator=generator)
                    for low, high in (area, aspect))
        size = (side * torch.stack([part * by, part / by], 1).sqrt()).long()
        corner = torch.randint(side, (len(left), 2), generator=generator)
        found[left] = torch.cat([corner, size], 1)
        left = left[(corner + size > side).any(1) | (size < 1).any(1)]
    return found


def inside(boxes: Tensor, side: int) -> Tensor:
    """Bool [n, side · side]: which patches, row by row, lie in the boxes."""
    at = torch.arange(side, device=boxes.device)
    rows, columns = ((at >= boxes[:, [k]]) & (at < boxes[:, [k]] + boxes[:, [k + 2]])
                     for k in (0, 1))
    return (rows[:, :, None] & columns[:, None]).flatten(1)


def cropped(pixels: Tensor, boxes: Tensor, side: int, in_place: bool = False,
            size: int | None = None) -> Tensor:
    """Of pixels [n, 3, s, s] the boxes alone, as pictures of `size` (None: s): stretched to it,
    or `in_place` among zeros, as the paper has them."""
    size = size or pixels.shape[-1]
    if in_place:
        seen = inside(boxes, side).view(-1, 1, side, side).to(pixels)
        cut = (pixels * F.interpolate(seen, pixels.shape[2:])).split(1)
    else:
        patch = pixels.shape[-1] // side
        cut = [x[None, :, t:t + h, a:a + w] for x, (t, a, h, w) in
               zip(pixels, (boxes * patch).tolist(), strict=True)]
    return torch.cat([F.interpolate(x, (size, size), mode="bilinear") for x in cut])
