"""Scores between the rows of two modalities."""

from collections.abc import Sequence

import torch
from torch import Tensor

from alignkit.data import Tokens
from alignkit.parts.tokens import clean


def unit(x: Tensor) -> Tensor:
    """Rows divided by their length, in float32 at least; a zero row stays zero and gets
    no gradient. Rows shorter than 1e-12 are divided by that, as by `F.normalize`."""
    x = x if x.dtype.itemsize >= 4 else x.float()
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.clamp_min(1e-12).masked_fill(length == 0, torch.inf)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every row of a [n, d] with every row of b [m, d]: [n, m]."""
    return unit(a) @ unit(b).T


def _without_padding(tokens: Tokens, name: str) -> Tokens:
    """Padding replaced by the row's first real token: a maximum does not see it, and
    the products need no mask, which would cost more than they do."""
    values, mask = clean(tokens, name)
    places = torch.arange(mask.shape[1], device=mask.device)
    places = torch.where(mask, places, mask.int().argmax(1, keepdim=True))
    return Tokens(values.gather(1, places[:, :, None].expand_as(values)), mask)


def _largest(products: Tensor, dim: int) -> Tensor:
    """`amax`, several times as fast, keeps all products for the backward pass; `max`
    keeps the places of the maxima only."""
    return products.max(dim).values if products.requires_grad else products.amax(dim)


def late_interaction(a: Tokens, b: Tokens, *, chunk: int = 8) -> tuple[Tensor, Tensor]:
    """Token-wise scores of every row of a with every row of b, in both directions.

    a_to_b[i, j] = mean over a_i's real tokens x of max over b_j's real tokens y of x·y
    b_to_a[i, j] = mean over b_j's real tokens y of max over a_i's real tokens x of x·y
    (Yao et al. 2022, section 3.1.) The two differ in general: softmax the rows of
    a_to_b and the columns of b_to_a. A maximum's gradient goes to one token.

    Args:
        a, b: unit tokens, values [n, t, d] and [m, u, d] with mask [n, t] and [m, u].
        chunk: rows of a at a time. chunk · m · t · u products exist at once; for the
            backward pass only the places of the maxima are kept, n · m · (t + u).
    Returns:
        a_to_b, b_to_a: both [n, m], float32 at least; at most 1 for unit tokens.
    Raises:
        ValueError: shapes do not fit, or a row has no real token.
    """
    (x, real_x), (y, real_y) = _without_padding(a, "a"), _without_padding(b, "b")
    if x.shape[2] != y.shape[2] or chunk < 1:
        raise ValueError(f"a has width {x.shape[2]}, b {y.shape[2]}, chunk is {chunk}: "
                         "the widths must agree and chunk be at least 1")
    wide = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    x, y = x.to(wide), y.to(wide)
    share_x = real_x.to(wide) / real_x.sum(1, keepdim=True)
    share_y = real_y.to(wide) / real_y.sum(1, keepdim=True)
    t, m, u = x.shape[1], *y.shape[:2]
    a_to_b, b_to_a = [], []
    with torch.autocast(x.device.type, enabled=False):
        for some, share in zip(x.split(chunk), share_x.split(chunk), strict=True):
            products = (some.flatten(0, 1) @ y.flatten(0, 1).T).view(-1, t, m, u)
            a_to_b.append((_largest(products, 3) * share[:, :, None]).sum(1))
            b_to_a.append((_largest(products, 1) * share_y).sum(2))
    return torch.cat(a_to_b), torch.cat(b_to_a)


def _volume(products: Tensor) -> Tensor:
    """√det of Gram matrices [..., k, k]. Where the determinant is 0 (or, by rounding,
    below) the volume is at its minimum, and the gradient there is 0, not infinite."""
    squared = torch.linalg.det(products)
    positive = ~(squared <= 0)  # NaN stays NaN
    return torch.where(positive, squared, 1.0).sqrt() * positive


def _rows_of(groups: Sequence[Tensor], name: str) -> Tensor:
    """The modalities' rows as one tensor [n, k, d], in float32 at least."""
    shapes = [tuple(rows.shape) for rows in groups]
    if not shapes or len(shapes[0]) != 2 or len(set(shapes)) > 1:
        raise ValueError(f"{name} must be tensors [n, d] of one shape, one a modality, "
                         f"got {shapes}")
    x = torch.stack(list(groups), dim=1)
    return x.to(torch.promote_types(x.dtype, torch.float32))


def gramian_volume(modalities: Sequence[Tensor]) -> Tensor:
    """Volume [n] spanned by the k vectors that each row has, one a modality.

    volume_i = √det G_i, G_i[p, q] = modalities[p][i] · modalities[q][i] (Cicchetti et
    al. 2025, section 3). Between 0 (dependent vectors: equal, opposite)
    and 1 (orthogonal); for k = 2 it is |sin| of the angle. The gradient at 0 is 0.

    Args:
        modalities: k tensors of unit rows [n, d]; k up to d, or all volumes are 0.
    """
    x = _rows_of(modalities, "modalities")
    with torch.autocast(x.device.type, enabled=False):
        return _volume(x @ x.mT)


def gramian_volumes(anchor: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Volumes [n, m] of every row of `anchor` [n, d] with every tuple of `others`.

    Entry (i, j) is the `gramian_volume` of anchor_i and others[0][j], others[1][j], …:
    low where they fit, so −volume / temperature is the logit and −volume the score.
    """
    x = _rows_of(others, "others")
    if anchor.dim() != 2 or anchor.shape[1] != x.shape[2]:
        raise ValueError(f"anchor must be [n, {x.shape[2]}] as others are, got "
                         f"{tuple(anchor.shape)}")
    with torch.autocast(x.device.type, enabled=False):
        wide = torch.promote_types(anchor.dtype, x.dtype)
        anchor, x = anchor.to(wide), x.to(wide)
        n, m, k = len(anchor), len(x), x.shape[1]
        across = torch.einsum("id,jkd->ijk", anchor, x)  # [n, m, k]
        own = anchor.square().sum(1)[:, None, None].expand(n, m, 1)
        top = torch.cat([own, across], dim=2)[:, :, None]  # [n, m, 1, 1 + k]
        rest = torch.cat([across[..., None], (x @ x.mT).expand(n, m, k, k)], dim=3)
        return _volume(torch.cat([top, rest], dim=2))
