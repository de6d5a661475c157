"""What every measure asks of its input, said once and in plain words."""

import torch
import torch.nn.functional as F
from torch import Tensor


def matrix(x: Tensor, name: str, *, least: int = 1) -> Tensor:
    """``x`` detached and in float32 or wider, if it is a finite matrix [n, d].

    Raises:
        TypeError: not a tensor. ValueError: wrong shape, fewer than ``least`` rows,
            or values that are not finite.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; give a torch tensor [n, d]")
    if x.ndim != 2 or len(x) < least or x.shape[1] == 0:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; "
            f"it must be [n, d] with at least {least} rows"
        )
    if x.is_complex():
        raise ValueError(f"{name} is {x.dtype}; give real numbers")
    x = x.detach()
    x = x if x.dtype == torch.float64 else x.float()
    if not x.isfinite().all():
        rows = (~x.isfinite()).any(dim=1).nonzero().flatten()
        raise ValueError(
            f"{name} holds NaN or infinite values in {len(rows)} of {len(x)} rows "
            f"(first: row {int(rows[0])}); mend the encoder that made them"
        )
    return x


def one_space(query: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
    """Both as :func:`matrix`, the gallery in the query's type; refused if their widths
    differ."""
    query = matrix(query, "query")
    gallery = matrix(gallery, "gallery").to(query.dtype)
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query has width {query.shape[1]} and gallery {gallery.shape[1]}; "
            "both must lie in one space"
        )
    return query, gallery


def unit_rows(x: Tensor, name: str, *, least: int = 1) -> Tensor:
    """:func:`matrix`, then every row divided by its length; no row may be zero."""
    x = matrix(x, name, least=least)
    zero = (x == 0).all(dim=1).nonzero().flatten()
    if len(zero):
        raise ValueError(
            f"{name} has {len(zero)} rows of zeros (first: row {int(zero[0])}); "
            "a direction needs rows that are not zero"
        )
    # Dividing by the largest entry first keeps the norm from over- or underflowing.
    return F.normalize(x / x.abs().amax(dim=1, keepdim=True), dim=1)


def same_rows(x: Tensor, y: Tensor, x_name: str, y_name: str) -> None:
    """Refuse two tensors whose numbers of rows differ."""
    if len(x) != len(y):
        raise ValueError(f"{x_name} has {len(x)} rows and {y_name} {len(y)}; pair them")


def class_labels(y: Tensor, name: str, n: int, n_classes: int | None = None) -> Tensor:
    """``y`` as LongTensor [n] with values from 0 (and below ``n_classes``)."""
    if not isinstance(y, Tensor) or y.is_floating_point() or y.shape != (n,):
        got = (
            f"{y.dtype} {tuple(y.shape)}"
            if isinstance(y, Tensor)
            else type(y).__name__
        )
        raise ValueError(f"{name} is {got}; it must be a tensor of {n} integers")
    y = y.long()
    if y.min() < 0 or (n_classes is not None and y.max() >= n_classes):
        top = "" if n_classes is None else f" below {n_classes}"
        raise ValueError(
            f"{name} runs from {int(y.min())} to {int(y.max())}; "
            f"it must be 0 or more{top}"
        )
    return y
