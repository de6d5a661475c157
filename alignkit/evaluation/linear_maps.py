"""Two spaces brought together by a linear map in closed form: CCA, Procrustes, ridge."""

from typing import NamedTuple

import torch
from torch import Tensor

from alignkit.evaluation.checks import matrix, same_rows


class CanonicalMaps(NamedTuple):
    """What :func:`cca` fits. All float64.

    x_map [d_x, k] and y_map [d_y, k] for centred rows; x_mean [d_x], y_mean [d_y];
    correlations [k], falling.
    """

    x_mean: Tensor
    x_map: Tensor
    y_mean: Tensor
    y_map: Tensor
    correlations: Tensor

    def project_x(self, x: Tensor) -> Tensor:
        """Rows of the first space, [m, d_x] -> [m, k]."""
        return (matrix(x, "x").double() - self.x_mean) @ self.x_map

    def project_y(self, y: Tensor) -> Tensor:
        """Rows of the second space, [m, d_y] -> [m, k]."""
        return (matrix(y, "y").double() - self.y_mean) @ self.y_map


def _whitening(covariance: Tensor, ridge: float) -> Tensor:
    """C^(-1/2) [d, rank] of C = covariance + ridge · its mean variance · I.

    Directions without variance (beside rounding) are left out.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(0) + ridge * values.mean()
    kept = values > 1e-10 * values.max()
    return vectors[:, kept] / values[kept].sqrt()


def cca(x: Tensor, y: Tensor, k: int | None = None, ridge: float = 1e-3
) -> CanonicalMaps:
    """Canonical correlation analysis of paired rows, in closed form.

    With C_x = cov(x) + ridge · (mean variance of x) · I, and C_y alike, the singular
    value decomposition U S Vᵀ of C_x^(-1/2) cov(x, y) C_y^(-1/2) gives the maps
    C_x^(-1/2) U, C_y^(-1/2) V and the correlations S (Hotelling 1936; regularised:
    Vinod 1976). Without ridge, S are the correlations of the projected training rows;
    they are 1 by necessity when a width is not below n - 1, so measure on other rows.

    Args:
        x: [n, d_x]. y: [n, d_y], rows paired with those of ``x``.
        k: how many pairs of directions; None: as many as there are.
        ridge: 0 or more; larger for fewer rows (choose it on validation).
    """
    x = matrix(x, "x", least=2).double()
    y = matrix(y, "y", least=2).double()
    same_rows(x, y, "x", "y")
    if not ridge >= 0:
        raise ValueError(f"ridge is {ridge}; it must be 0 or more")
    x_mean, y_mean, n = x.mean(0), y.mean(0), len(x)
    for name, rows, mean in (("x", x, x_mean), ("y", y, y_mean)):
        if (rows - mean).norm() <= 1e-12 * rows.norm():
            raise ValueError(f"every row of {name} is the same; CCA needs variation")
    x, y = x - x_mean, y - y_mean
    x_white = _whitening(x.T @ x / (n - 1), ridge)
    y_white = _whitening(y.T @ y / (n - 1), ridge)
    u, s, v = torch.linalg.svd(x_white.T @ (x.T @ y / (n - 1)) @ y_white, False)
    k = len(s) if k is None else k
    if not 1 <= k <= len(s):
        raise ValueError(f"k is {k}; these rows give 1 to {len(s)} pairs of directions")
    return CanonicalMaps(
        x_mean, x_white @ u[:, :k], y_mean, y_white @ v.T[:, :k], s[:k].clamp(max=1)
    )


def procrustes(x: Tensor, y: Tensor) -> Tensor:
    """The orthogonal map Q [d, d], float64, that minimises |x Q - y|.

    Q = U Vᵀ with U S Vᵀ = xᵀ y (Schönemann 1966). A rotation or a reflection. Rows are
    taken as they are: subtract the means first if a shift shall not count.

    Args:
        x, y: [n, d], rows paired.
    """
    x, y = matrix(x, "x").double(), matrix(y, "y").double()
    same_rows(x, y, "x", "y")
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"x has width {x.shape[1]} and y {y.shape[1]}; one width is needed: reduce "
            "the wider one first, or use cca"
        )
    u, _, v = torch.linalg.svd(x.T @ y)
    return u @ v


def ridge_map(x: Tensor, y: Tensor, ridge: float = 0.0) -> Tensor:
    """The map M [d_x, d_y], float64, that minimises |x M - y|² + λ |M|².

    λ = ridge · the mean squared column of x (Hoerl & Kennard 1970), so that one ridge
    means the same at every size; with ridge 0 the least squares map of smallest norm.
    Rows are taken as they are: subtract the means first for an affine map.

    Args:
        x: [n, d_x]. y: [n, d_y], rows paired with those of ``x``. ridge: 0 or more.
    """
    x, y = matrix(x, "x").double(), matrix(y, "y").double()
    same_rows(x, y, "x", "y")
    if not ridge >= 0:
        raise ValueError(f"ridge is {ridge}; it must be 0 or more")
    if ridge == 0:
        return torch.linalg.pinv(x) @ y
    products = x.T @ x
    products.diagonal().add_(ridge * products.diagonal().mean())
    return torch.linalg.solve(products, x.T @ y)
