"""One-to-one matching of two sets of rows, and the score of a pair by local CKA."""

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from alignkit.evaluation.checks import matrix, same_rows


def assignment_accuracy(scores: Tensor, seed: int = 0) -> float:
    """Share of rows that the best one-to-one assignment gives their own column.

    It knows that the queries are a permutation, which hit@1 of the same scores does not:
    report both. The columns are shuffled by ``seed`` before the assignment is
    solved: among equal scores scipy goes by the index, and a collapsed model would be
    right everywhere.

    Args:
        scores: [n, n], row i and column i a pair, larger is more alike.

    Raises: ValueError if scores is not square or not finite.
    """
    scores = matrix(scores, "scores")
    n = len(scores)
    if scores.shape[1] != n:
        raise ValueError(f"scores has shape {tuple(scores.shape)}; one-to-one matching "
                         "needs as many columns as rows")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    _, columns = linear_sum_assignment(scores.cpu()[:, order].numpy(), maximize=True)
    return float((order[torch.as_tensor(columns)] == torch.arange(n)).double().mean())


class LocalCka(NamedTuple):
    """What :func:`local_cka` keeps of n anchor pairs, all float64: the means x_mean [p]
    and y_mean [q], and sums of products of centred rows, xx [p, p], yy [q, q], xy [p, q].
    """

    n: int
    x_mean: Tensor
    y_mean: Tensor
    xx: Tensor
    yy: Tensor
    xy: Tensor

    def cka(self) -> Tensor:
        """Linear CKA of the anchors alone, a scalar."""
        return self.xy.square().sum() / (self.xx.norm() * self.yy.norm())

    def x_rows(self, x: Tensor) -> Tensor:
        """Rows of the first space [m, p] -> [m, q + 2], see :meth:`scores`."""
        a = matrix(x, "x").to(self.x_mean) - self.x_mean
        return self._rows(a, a @ self.xy, self.xx)

    def y_rows(self, y: Tensor) -> Tensor:
        """Rows of the second space [m, q] -> [m, q + 2], see :meth:`scores`."""
        b = matrix(y, "y").to(self.y_mean) - self.y_mean
        return self._rows(b, b, self.yy)

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """CKA of the anchors with (x_i, y_j) as one more pair: [m_x, m_y].

        With a and b the two rows less the anchors' means and c = n / (n + 1), a pair
        adds c a bᵀ to xy, and c a aᵀ to xx. So its CKA is a dot product of a row that
        depends on x_i alone and one of y_j alone:
            ‖xy‖² + 2c aᵀ xy b + c² ‖a‖² ‖b‖²   over   √(‖xx + c a aᵀ‖² ‖yy + c b bᵀ‖²)
        Scores differ by little where anchors are many: keep float64.
        """
        return self.x_rows(x) @ self.y_rows(y).T

    def _rows(self, a: Tensor, linear: Tensor, own: Tensor) -> Tensor:
        c, square = self.n / (self.n + 1), a.square().sum(1)
        size = own.square().sum() + 2 * c * ((a @ own) * a).sum(1) + (c * square).square()
        first = self.xy.norm().expand(len(a))
        rows = torch.column_stack([first, (2 * c) ** 0.5 * linear, c * square])
        return rows / size.sqrt()[:, None]


def local_cka(x: Tensor, y: Tensor) -> LocalCka:
    """Local CKA on anchors: how alike two spaces are with one more pair among them.

    Maniparambil et al. 2024, Do Vision and Language Encoders Represent the World
    Similarly? (arXiv 2401.05224). A true pair lowers the CKA of the anchors less than a
    wrong one. n anchors cost one pass; then Q x Q pairs are one product of matrices.

    Args:
        x: [n, p]. y: [n, q], rows paired with those of ``x``. At least 2 rows.

    Raises: ValueError if the rows differ in number or all rows of a side are the same.
    """
    x, y = matrix(x, "x", least=2).double(), matrix(y, "y", least=2).double()
    same_rows(x, y, "x", "y")
    a, b = x - x.mean(0), y - y.mean(0)
    for name, rows, centred in (("x", x, a), ("y", y, b)):
        if centred.norm() <= 1e-12 * rows.norm():
            raise ValueError(f"every row of {name} is the same; CKA needs variation")
    return LocalCka(len(x), x.mean(0), y.mean(0), a.T @ a, b.T @ b, a.T @ b)
