"""Losses on unit rows, scores and logits."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def positives_of(item: Tensor) -> Tensor:
    """Bool [n, n]: which rows are right answers to each other (`item` [n] equal)."""
    return item[:, None] == item[None, :]


def logits_of(a: Tensor, b: Tensor, scale: Tensor | float) -> Tensor:
    """`scale · a bᵀ` [n, m], in float32 at least whatever the precision of a and b."""
    with torch.autocast(a.device.type, enabled=False):
        wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
        return scale * (a.to(wide) @ b.to(wide).T)


def _logits(a: Tensor, b: Tensor, scale: Tensor | float) -> Tensor:
    """`logits_of`, if the shapes fit."""
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"a and b must be [n, d] and [m, d], got {tuple(a.shape)} and "
                         f"{tuple(b.shape)}")
    return logits_of(a, b, scale)


def _pairs_or(positives: Tensor | None, logits: Tensor) -> Tensor:
    """Right answers, bool [n, m]: `positives`, or the diagonal if there are none."""
    n, m = logits.shape
    if positives is None:
        if n != m:
            raise ValueError(f"a has {n} rows and b {m}: without positives they must "
                             "be pairs")
        return torch.eye(n, dtype=torch.bool, device=logits.device)
    if positives.shape != logits.shape or positives.dtype != torch.bool:
        raise ValueError(f"positives must be {(n, m)} and bool, got "
                         f"{tuple(positives.shape)} and {positives.dtype}")
    return positives


def _are_pairs(positives: Tensor) -> bool:
    """Whether each row's one right answer stands on the diagonal."""
    n, m = positives.shape
    return n == m and bool(positives.diagonal().all() & (positives.sum() == n))


def shares(weights: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weights of answers [n, m] (bool: the right ones) divided by their sum in each row,
    as a cross entropy wants its target. NaN stays NaN, for the loop to name its rows.

    Raises:
        ValueError: a row has no right answer.
    """
    if (weights == 0).all(1).any():
        raise ValueError("positives has a row or column with no right answer")
    weights = weights.to(dtype)
    return weights / weights.sum(1, keepdim=True)


def two_way_cross_entropy(rows: Tensor, target: Tensor, columns: Tensor | None = None,
                          back: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Cross entropy with soft targets in both directions, their mean.

    L = −½ [ mean_i Σ_j target_ij log softmax_j(rows_ij)
           + mean_j Σ_i back_ji log softmax_i(columns_ij) ]

    Args:
        rows: logits [n, m], each row a question. target: weights [n, m], as `shares`
            makes them; other sums of a row weigh it more or less.
        columns: logits [n, m], each column a question (None: rows).
        back: weights [m, n] (None: target transposed).
        smoothing: the share of the weight that is spread evenly over all answers.
    Raises:
        ValueError: shapes do not fit.
    """
    columns = rows if columns is None else columns
    back = target.T if back is None else back
    if not rows.shape == columns.shape == target.shape == back.T.shape:
        raise ValueError(f"rows, columns and target must have one shape [n, m] and back "
                         f"[m, n], got {tuple(rows.shape)}, {tuple(columns.shape)}, "
                         f"{tuple(target.shape)} and {tuple(back.shape)}")
    forth = F.cross_entropy(rows, target, label_smoothing=smoothing)
    return (forth + F.cross_entropy(columns.T, back, label_smoothing=smoothing)) / 2


def info_nce(a: Tensor, b: Tensor, scale: Tensor | float,
             positives: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE, the mean of both directions.

    L = ½ mean_i[ −1/|P_i| Σ_{j∈P_i} log softmax_j(scale · a_i·b_j) ] + the same from b.
    With one right answer a row this is CLIP's loss (Radford et al. 2021, figure 3);
    with several it is SupCon's L_out (Khosla et al. 2020, equation 2).

    Args:
        a, b: unit rows [n, d] and [m, d]; row i of both is a pair if no `positives`.
        scale: 1 / temperature, a number or a scalar tensor.
        positives: bool [n, m], True at right answers. Where they are the diagonal alone,
            the gradient is that without them, bit for bit, and costs no more memory.
    Raises:
        ValueError: shapes do not fit, or a row or column has no right answer.
    """
    logits = _logits(a, b, scale)
    if positives is None:
        _pairs_or(None, logits)
    elif _are_pairs(_pairs_or(positives, logits)):
        positives = None
    if positives is None:  # numbers of columns, no [n, n] of shares kept for the gradient
        rows = torch.arange(len(a), device=a.device)
        return (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2
    return two_way_cross_entropy(logits, shares(positives, logits.dtype),
                                 back=shares(positives.T, logits.dtype))


def sigmoid_loss(a: Tensor, b: Tensor, scale: Tensor | float, bias: Tensor | float,
                 positives: Tensor | None = None) -> Tensor:
    """Every pair of rows judged by itself: is it a right answer or not?

    L = −1/n Σ_i Σ_j log σ( sign_ij · (scale · a_i·b_j + bias) ), sign_ij = 1 at right
    answers, else −1 (Zhai et al. 2023, section 3.2: there scale = exp(t'), at
    first 10, and bias, at first −10, are learned). No softmax, so a row may have any
    number of right answers, also none.

    Args:
        a, b: unit rows [n, d] and [m, d]; row i of both is a pair if no `positives`.
        scale, bias: numbers or scalar tensors.
        positives: bool [n, m], True at right answers.
    Raises:
        ValueError: shapes do not fit.
    """
    logits = _logits(a, b, scale) + bias
    positives = _pairs_or(positives, logits)
    return -F.logsigmoid(torch.where(positives, logits, -logits)).sum() / len(a)


def triplet_loss(scores: Tensor, margin: float = 0.2, positives: Tensor | None = None,
                 hardest: bool = True) -> Tensor:
    """Hinge against the hardest negative in the batch, both directions.

    L = mean_i ( max_j [margin + s_ij − s_ii]₊ + max_j [margin + s_ji − s_ii]₊ ) over
    wrong answers j (Faghri et al. 2018, VSE++, equation 6; with hardest=False the sum
    over j stands for the maximum, equation 5, which does not collapse at the start).
    A row without a wrong answer adds 0.

    Args:
        scores: s [n, n], `logits_of(a, b, 1.0)` or any other; row i's pair is column i.
        positives: bool [n, n], True where j is no wrong answer to i; pairs never are.
    Raises:
        ValueError: shapes do not fit.
    """
    if scores.dim() != 2 or len(scores) != scores.shape[1]:
        raise ValueError(f"scores must be [n, n], pairs on the diagonal, got "
                         f"{tuple(scores.shape)}")
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    pairs = _pairs_or(None, scores)
    right = pairs if positives is None else pairs | _pairs_or(positives, scores)
    own = scores.diagonal()
    total = 0
    for side, rights in ((scores, right), (scores.T, right.T)):
        hinge = (margin + side - own[:, None]).relu().masked_fill(rights, 0)
        total = total + (hinge.amax(1) if hardest else hinge.sum(1)).mean()
    return total


def distillation_loss(student: Tensor, teacher: Tensor,
                      temperature: float = 1.0) -> Tensor:
    """The student's softmax towards the teacher's, softened.

    L = temperature² · mean over rows of KL( softmax(teacher / temperature) ‖
    softmax(student / temperature) ) (Hinton et al. 2015, section 2: the square keeps
    the gradient's size as temperature grows). No gradient reaches the teacher.

    Args:
        student, teacher: finite logits [..., c].
    Raises:
        ValueError: shapes differ, or temperature is not above 0.
    """
    if student.shape != teacher.shape or student.dim() == 0 or not temperature > 0:
        raise ValueError(f"student is {tuple(student.shape)}, teacher "
                         f"{tuple(teacher.shape)} and temperature {temperature}: "
                         "shapes must be the same and temperature above 0")
    wide = torch.promote_types(student.dtype, torch.float32)
    soft = F.log_softmax(teacher.detach().to(wide) / temperature, dim=-1)
    found = F.log_softmax(student.to(wide) / temperature, dim=-1)
    return temperature**2 * (soft.exp() * (soft - found)).sum(-1).mean()


def alignment_loss(a: Tensor, b: Tensor, alpha: float = 2) -> Tensor:
    """mean_i |a_i − b_i|^alpha over paired unit rows [n, d] (Wang & Isola 2020,
    section 4.1). For alpha = 2 it is 2 − 2 · mean cosine.

    Raises:
        ValueError: shapes differ.
    """
    if a.dim() != 2 or a.shape != b.shape:
        raise ValueError(f"a and b must be paired rows [n, d], got {tuple(a.shape)} "
                         f"and {tuple(b.shape)}")
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return (a.to(wide) - b.to(wide)).norm(dim=1).pow(alpha).mean()


def uniformity_loss(x: Tensor, t: float = 2) -> Tensor:
    """log of the mean over pairs i ≠ j of exp(−t |x_i − x_j|²), unit rows x [n, d]
    (Wang & Isola 2020, section 4.1). 0, its largest value, when all rows are equal.

    Raises:
        ValueError: x is no matrix of at least two rows.
    """
    if x.dim() != 2 or len(x) < 2:
        raise ValueError(f"x must be [n, d] with at least 2 rows, got {tuple(x.shape)}")
    with torch.autocast(x.device.type, enabled=False):
        far = F.pdist(x.to(torch.promote_types(x.dtype, torch.float32))).square()
    return torch.logsumexp(-t * far, dim=0) - math.log(len(far))
