"""How two spaces are shaped, and how alike they are.

CKA, spectra and uniformity are computed in float64, neighbours in the given
precision (at least float32). No function holds an n x n matrix.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from alignkit.evaluation.checks import matrix, same_rows, unit_rows

TIE = 1e-6  # cosines closer than this are equal: float32 cannot tell them apart


def _centred(x: Tensor, y: Tensor, least: int) -> tuple[Tensor, Tensor]:
    x = matrix(x, "x", least=least).double()
    y = matrix(y, "y", least=least).double()
    same_rows(x, y, "x", "y")
    centred = x - x.mean(0), y - y.mean(0)
    for name, before, after in zip("xy", (x, y), centred, strict=True):
        if after.norm() <= 1e-12 * before.norm():
            raise ValueError(f"every row of {name} is the same; CKA needs variation")
    return centred


def cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of paired rows, in [0, 1].

    Kornblith et al. 2019 (arXiv 1905.00414), eq. of section 3 in its feature form:
    |YᵀX|² / (|XᵀX| |YᵀY|), Frobenius norms, columns centred. Biased upwards when n is
    not much larger than the widths: see :func:`cka_debiased`.

    Args:
        x: [n, d_x]. y: [n, d_y], rows paired with those of ``x``.
    """
    x, y = _centred(x, y, least=2)
    return float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def _hsic(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased linear HSIC (Song et al. 2012, eq. 5) times n (n - 3).

    With K = X Xᵀ and L = Y Yᵀ, diagonals set to zero, it is
    tr(K L) + 1ᵀK1 · 1ᵀL1 / ((n - 1)(n - 2)) - 2/(n - 2) · 1ᵀK L 1,
    each term worked out from features so that K and L are never formed.
    """
    n = len(x)
    x_diagonal, y_diagonal = x.square().sum(1), y.square().sum(1)
    x_sums, y_sums = x @ x.sum(0) - x_diagonal, y @ y.sum(0) - y_diagonal
    trace = (x.T @ y).square().sum() - x_diagonal @ y_diagonal
    corner = x_sums.sum() * y_sums.sum() / ((n - 1) * (n - 2))
    return trace + corner - 2 / (n - 2) * (x_sums @ y_sums)


def cka_debiased(x: Tensor, y: Tensor) -> float:
    """Linear CKA from unbiased HSIC: about 0 for unrelated rows, and may be below 0.

    Same arguments as :func:`cka`; at least 4 rows.
    """
    x, y = _centred(x, y, least=4)
    x_self, y_self = _hsic(x, x), _hsic(y, y)
    if x_self <= 0 or y_self <= 0:
        raise ValueError(
            f"the unbiased HSIC of x ({float(x_self):.2g}) or y ({float(y_self):.2g}) "
            "with itself is not positive; give more rows, or use cka"
        )
    return float(_hsic(x, y) / (x_self * y_self).sqrt())


def _neighbour_weights(x: Tensor, start: int, stop: int, k: int) -> Tensor:
    """[rows, n]: probability that each row of x is among the k nearest of a row."""
    cosines = x[start:stop] @ x.T
    rows = torch.arange(stop - start, device=x.device)
    cosines[rows, rows + start] = -torch.inf  # not its own neighbour
    kth = cosines.topk(k, dim=1).values[:, -1:]
    inside = cosines > kth + TIE
    tied = ~inside & (cosines >= kth - TIE)
    left = k - inside.sum(1, keepdim=True)
    return inside + tied * (left / tied.sum(1, keepdim=True))


@torch.no_grad()
def mutual_knn_grid(
    xs: Sequence[Tensor], ys: Sequence[Tensor], k: int, chunk: int = 256
) -> Tensor:
    """:func:`mutual_knn` of each of ``xs`` with each of ``ys``: [len(xs), len(ys)].

    For choosing a layer of each encoder: every neighbourhood is found once, not once
    a pair. Holds (len(xs) + len(ys)) * chunk * n similarities.
    """
    xs = [unit_rows(x, f"xs[{i}]", least=2) for i, x in enumerate(xs)]
    ys = [unit_rows(y, f"ys[{i}]", least=2) for i, y in enumerate(ys)]
    if not xs or not ys:
        raise ValueError("xs and ys need at least one tensor each")
    n = len(xs[0])
    for other in xs + ys:
        same_rows(xs[0], other, "the first of xs", "another tensor")
    if not 1 <= k < n:
        raise ValueError(f"k is {k}; with {n} rows it must lie between 1 and {n - 1}")
    grid = torch.zeros(len(xs), len(ys), dtype=torch.float64)
    for start in range(0, n, chunk):
        stop = min(start + chunk, n)
        x_near = torch.stack([_neighbour_weights(x, start, stop, k) for x in xs])
        y_near = torch.stack([_neighbour_weights(y, start, stop, k) for y in ys])
        grid += (x_near.flatten(1) @ y_near.to(x_near).flatten(1).T).double().cpu()
    return grid / (n * k)


def mutual_knn(x: Tensor, y: Tensor, k: int, chunk: int = 256) -> float:
    """Mean share of a row's k nearest neighbours that both spaces agree on, in [0, 1].

    Huh et al. 2024, The Platonic Representation Hypothesis (arXiv 2405.07987): cosine
    neighbours among the rows, the row itself left out. Unrelated spaces score about
    k / (n - 1), so compare values of one k and one n only.

    Rows that tie for the last places share them: each counts with the probability of
    being drawn. So a collapsed space scores chance, k / (n - 1), and not 1, which
    an index order common to both spaces would give it.

    Args:
        x: [n, d_x]. y: [n, d_y], rows paired with those of ``x``. k: 1 to n - 1.
    """
    return float(mutual_knn_grid([x], [y], k, chunk)[0, 0])


def rice_k(n: int) -> int:
    """Rice's rule ⌈2 n^(1/3)⌉: 6 for n = 27, 35 for n = 5000."""
    if n < 1:
        raise ValueError(f"n is {n}; it must be at least 1")
    return math.ceil(2 * n ** (1 / 3))


def _same_width(x: Tensor, y: Tensor) -> None:
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"x has width {x.shape[1]} and y {y.shape[1]}; both must lie in one space"
        )


def modality_gap(x: Tensor, y: Tensor) -> float:
    """Distance between the centroids of the unit rows, in [0, 2].

    Liang et al. 2022, Mind the Gap (arXiv 2203.02053). The numbers of rows may differ.
    """
    x, y = unit_rows(x, "x"), unit_rows(y, "y")
    _same_width(x, y)
    return float((x.double().mean(0) - y.double().mean(0)).norm())


def alignment(x: Tensor, y: Tensor, alpha: float = 2) -> float:
    """Mean of |x_i - y_i|^alpha over paired unit rows (lower is better).

    Wang & Isola 2020 (arXiv 2005.10242). Rows are scaled to unit length here.
    """
    x, y = unit_rows(x, "x").double(), unit_rows(y, "y").double()
    same_rows(x, y, "x", "y")
    _same_width(x, y)
    return float((x - y).norm(dim=1).pow(alpha).mean())


@torch.no_grad()
def uniformity(x: Tensor, t: float = 2, chunk: int = 1024) -> float:
    """log of the mean of exp(-t |x_i - x_j|²) over pairs i ≠ j (lower is better).

    Wang & Isola 2020. Rows are scaled to unit length here. 0 for a collapsed space.
    """
    x = unit_rows(x, "x", least=2).double()
    n, parts = len(x), []
    for start in range(0, n, chunk):
        rows = x[start : start + chunk]
        exponent = -t * (2 - 2 * rows @ x.T)
        own = torch.arange(len(rows), device=x.device)
        exponent[own, own + start] = -torch.inf
        parts.append(exponent.flatten().logsumexp(0))
    total = torch.stack(parts).logsumexp(0)
    return float(total) - math.log(n * (n - 1))


def outside_subspace(x: Tensor, y: Tensor, k: int | None = None) -> float:
    """Mean share of a row's length in x that lies outside y's principal subspace, in [0, 1].

    |(I - P) x| / |x| with P = V Vᵀ, V [d, k] the k directions in which the rows of y vary
    most about their mean. x is taken as it is: y's mean is not subtracted from it.

    Args:
        x: [n, d], no row zero. y: [m, d]. k: 1 to the rank of the centred y (None: all).
    """
    x, y = matrix(x, "x").double(), matrix(y, "y", least=2).double()
    _same_width(x, y)
    _, values, directions = torch.linalg.svd(y - y.mean(0), full_matrices=False)
    rank = int((values > 1e-10 * values[0]).sum())
    if not 1 <= (k := rank if k is None else k) <= rank:
        raise ValueError(f"k is {k}; it must lie between 1 and {rank}, the rank of y")
    x = unit_rows(x, "x")
    inside = x @ directions[:k].T
    return float((1 - inside.square().sum(1)).clamp_min(0).sqrt().mean())


def effective_rank(x: Tensor) -> float:
    """exp of the entropy of the singular values, each divided by their sum.

    Roy & Vetterli 2007; between 1 and min(n, d). Rows are taken as they are: subtract
    the mean first if the mean direction shall not count.
    """
    values = torch.linalg.svdvals(matrix(x, "x").double())
    if values[0] == 0:
        raise ValueError("x is all zeros; it has no spectrum")
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())
