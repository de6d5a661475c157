"""Out of distribution or not: scores, and how well a score tells the two apart."""

import math

import torch
from torch import Tensor

from alignkit.evaluation.checks import unit_rows


def maximum_concept_matching(
    z: Tensor, class_z: Tensor, temperature: float = 1.0
) -> Tensor:
    """Score [n] of how well a row fits one of the known classes; high = inside.

    max_c softmax_c(cosine / temperature) (Ming et al. 2022, MCM, section 3); with
    unscaled cosines, temperature 1, it lies not far above 1 / n_classes.

    Args:
        z: [n, d]. class_z: [n_classes, d], as by :func:`class_embeddings`.
    """
    z, class_z = unit_rows(z, "z"), unit_rows(class_z, "class_z", least=2)
    if z.shape[1] != class_z.shape[1] or not temperature > 0:
        raise ValueError(
            f"z has width {z.shape[1]}, class_z {class_z.shape[1]}, temperature is "
            f"{temperature}; the widths must agree and temperature be above 0"
        )
    return (z @ class_z.to(z).T / temperature).softmax(1).amax(1)


def _scores(scores: Tensor, name: str) -> Tensor:
    if not isinstance(scores, Tensor) or scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"{name} must be a tensor [n] of scores, got {scores!r:.80}")
    if not scores.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinite scores")
    return scores.detach().double()


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Chance that a row from inside scores above one from outside, ties half.

    The area under the ROC curve with ``inside`` as the positive class: 1/2 for a score
    that says nothing, also for one that is constant.

    Args:
        inside: scores [n]. outside: scores [m].
    """
    inside, outside = _scores(inside, "inside"), _scores(outside, "outside")
    order = outside.to(inside.device).sort().values
    below = torch.searchsorted(order, inside)
    not_above = torch.searchsorted(order, inside, right=True)
    return float((below + not_above).double().mean() / (2 * len(order)))


def fpr_at_95(inside: Tensor, outside: Tensor) -> float:
    """Share of outside rows accepted when at least 95 % of the inside rows are.

    The threshold is the highest one that accepts 95 % of ``inside``; a score equal to
    it is accepted. Lower is better, and a constant score gives 1. Others interpolate
    the curve at 95 %, which gives other digits where rows are few.

    Args:
        inside: scores [n]. outside: scores [m].
    """
    inside, outside = _scores(inside, "inside"), _scores(outside, "outside")
    needed = math.ceil(len(inside) * 95 / 100)
    threshold = inside.topk(needed).values[-1]
    return float((outside.to(inside.device) >= threshold).double().mean())
