"""Features of regions of a picture: what a frozen encoder saw within given boxes.

A detector's part is played by boxes that are known (of `scenes`, the plates): LXMERT and
its kin take such a set of regions, each with its box, in place of a grid of places.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from alignkit.data.columns import Tokens
from alignkit.data.pairs import Pairs
from alignkit.data.scenes import boxes_of
from alignkit.encoders.encoder import Encoder, Output, around, joined
from alignkit.encoders.features import load, named
from alignkit.encoders.stored import read_or_make

WHOLE = "whole picture"  # how the preprocessing of an encoder that cuts nothing begins


def add_regions(pairs: Pairs, column: str, encoder: str | Encoder, *,
                layers: Sequence[int] = (-1,), boxes: Tokens | None = None) -> Pairs:
    """`pairs` with a feature for each box of a row's picture, cached as `add_features` does.

    Layer −1 becomes `<column>_regions`, tokens [n, r, d]; a layer k ≥ 0
    `<column>_layer<k>_regions`; all layers are made in one pass. `<column>_boxes` are
    their boxes, tokens [n, r, 4]: x0, y0, x1, y1 as parts of width and height.

    boxes: such tokens; by default the plates of `scenes`, in the order of the table
    `objects`. Rows of a missing picture need none and get none.

    Raises ValueError for boxes that are not such (naming the row and the box), pairs
    without boxes, or an encoder that gives no map of the whole picture.

    Example:
        >>> pairs = add_regions(scenes(50), "image", "image:efficientnet-lite0", layers=(5, 6))
        >>> pairs["image_layer5_regions"].values.shape
        torch.Size([50, 5, 192])
    """
    inner = encoder if isinstance(encoder, Encoder) else load(encoder)
    boxes = boxes_of(pairs, column) if boxes is None else boxes
    present = pairs.present[column]
    check_boxes(boxes, present)
    rows = [tuple(map(tuple, values[real].tolist())) for values, real in
            zip(*boxes, strict=True)]
    wanted = {named(column, k, "regions"): (k, True) for k in layers}
    found = read_or_make(pairs, column, regions(inner), wanted, beside=rows)
    mask = boxes.mask & present[:, None]
    here = mask.sum(1).max()
    places = mask.int().argsort(dim=1, descending=True, stable=True)[:, :here]  # real first
    values = boxes.values.float().gather(1, places[:, :, None].expand(-1, -1, 4))
    mask = mask.gather(1, places)
    found[f"{column}_boxes"] = Tokens(values * mask[:, :, None], mask)
    return pairs.with_features(**found)


def check_boxes(boxes: Tokens, present: Tensor) -> None:
    """Refuse what are no boxes, by row and box; see `add_regions`."""
    values, mask = boxes
    n = len(present)
    if values.shape != (n, mask.shape[1], 4) or mask.dtype != torch.bool:
        raise ValueError(f"boxes must be Tokens of values [{n}, r, 4] and a bool mask "
                         f"[{n}, r], got {tuple(values.shape)} and {mask.dtype} "
                         f"{tuple(mask.shape)}")
    x0, y0, x1, y1 = values.unbind(2)
    right = (0 <= x0) & (x0 < x1) & (x1 <= 1) & (0 <= y0) & (y0 < y1) & (y1 <= 1)
    wrong = (mask & present[:, None] & ~right).nonzero()
    if len(wrong):
        row, box = wrong[0].tolist()
        raise ValueError(f"boxes: {len(wrong)} are wrong, the first is box {box} of row {row}: "
                         f"{values[row, box].tolist()}; needed are x0 < x1 and y0 < y1 "
                         "from 0 to 1, parts of the picture's width and height")
    if (empty := (~mask.any(1) & present).nonzero()[:, 0]).numel():
        raise ValueError(f"boxes: {len(empty)} rows have none, the first is row "
                         f"{int(empty[0])}; give it the whole picture, (0, 0, 1, 1)")


def regions(inner: Encoder) -> Encoder:
    """Encodes pairs (picture, boxes), boxes as `add_regions` has them, a tuple of four a
    box: a token a box, the mean of `inner`'s map within it (`roi_align` of torchvision, one
    cell, bilinear points one map cell apart or closer), and the mean over the boxes.

    Where a box covers whole cells of the map this is their mean.
    Raises ValueError if `inner` encodes no whole pictures.
    """
    if inner.modality != "image" or not inner.preprocessing.startswith(WHOLE):
        raise ValueError(f"regions: {inner.name} encodes {inner.modality}, or cuts its "
                         "pictures; give an encoder of whole pictures, "
                         "image:efficientnet-lite0 or timm:<model>")

    def run(rows: list, layers: Sequence[int]) -> dict[int, Output]:
        pictures, boxes = zip(*rows, strict=True)
        boxes = [torch.tensor(each, dtype=torch.float32).view(-1, 4) for each in boxes]
        found = inner.outputs(list(pictures), layers, tokens=True)
        return {k: _pooled(as_map(out.tokens.values, inner.name), boxes)
                for k, out in found.items()}

    return around(inner, "regions", "image", "roi_align of boxes; 1", run)


def grid_boxes(n: int, side: int = 6) -> Tokens:
    """For n pictures the boxes of side² equal cells [n, side², 4], where nothing is known of
    what they show; row by row."""
    y, x = torch.cartesian_prod(*[torch.arange(side)] * 2).T
    boxes = torch.stack([x, y, x + 1, y + 1], 1) / side
    return Tokens(boxes.expand(n, -1, -1).clone(), torch.ones(n, side**2, dtype=torch.bool))


def other_regions(rows: Pairs, by: int = 1) -> Pairs:
    """The rows, each with `image_regions` and `image_boxes` of the row before it (or `by` rows
    before): what a model says then, it says from the words."""
    return rows.with_features(**{c: Tokens(*(x.roll(by, 0) for x in rows[c]))
                                 for c in ("image_regions", "image_boxes")})


def as_map(tokens: Tensor, name: str) -> Tensor:
    """Tokens [n, side², d], row by row -> [n, d, side, side]."""
    n, t, d = tokens.shape
    side = math.isqrt(t)
    if side**2 != t:
        raise ValueError(f"regions: {name} gives {t} tokens, which are no square map")
    return tokens.transpose(1, 2).reshape(n, d, side, side)


def _pooled(maps: Tensor, boxes: list[Tensor]) -> Output:
    from torchvision.ops import roi_align

    side = maps.shape[-1]
    cells = roi_align(maps, [b * side for b in boxes], output_size=1, aligned=True)
    rows = cells.flatten(1).split([len(b) for b in boxes])
    parts = [Tokens(row[None], torch.ones(1, len(row), dtype=torch.bool)) for row in rows]
    return Output(torch.stack([row.mean(0) for row in rows]), joined(parts))


