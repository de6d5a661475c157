"""Token sequences with a mask."""

import torch
from torch import Tensor

from alignkit.data import Tokens


def clean(tokens: Tokens, name: str) -> Tokens:
    """Tokens with zeros at padding, if every row has a real one.

    Raises:
        ValueError: wrong shapes, or a row without a real token (nothing to attend to).
    """
    values, mask = tokens
    if values.dim() != 3 or mask.shape != values.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(f"{name} must be values [n, t, d] with a bool mask [n, t], "
                         f"got {tuple(values.shape)} and {mask.dtype} "
                         f"{tuple(mask.shape)}")
    if not mask.any(1).all():
        empty = (~mask.any(1)).nonzero().flatten()
        raise ValueError(f"{name} has {len(empty)} rows without a real token (first: "
                         f"row {int(empty[0])}); leave those rows out")
    return Tokens(values.masked_fill(~mask[:, :, None], 0), mask)


def mean_pool(tokens: Tokens) -> Tensor:
    """Mean of each row's real tokens: [n, d]."""
    values, mask = clean(tokens, "tokens")
    return values.sum(1) / mask.sum(1, keepdim=True)


def leading_directions(tokens: Tokens, width: int, rows: int = 200) -> Tensor:
    """The `width` directions [d, width] in which the real tokens of the first rows vary
    most (all d of them if there are fewer): `values @ directions` keeps what they tell
    apart at a fraction of the price."""
    real = tokens.values[:rows][tokens.mask[:rows]]
    real = (real - real.mean(0)).double()
    return torch.linalg.eigh(real.T @ real).eigenvectors[:, -width:].float()
