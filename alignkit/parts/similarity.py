"""Scores between the rows of two modalities."""

from torch import Tensor
from torch.nn import functional as F


def unit(x: Tensor) -> Tensor:
    """Rows divided by their length, in float32 at least; a zero row stays zero."""
    return F.normalize(x if x.dtype.itemsize >= 4 else x.float(), dim=-1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every row of a [n, d] with every row of b [m, d]: [n, m]."""
    return unit(a) @ unit(b).T
