"""Matches between two pictures against a known homography.

Points are (x, y) in pixels. kornia estimates homographies (imported inside).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def nearest_cells(scores: Tensor) -> tuple[Tensor, Tensor]:
    """For scores [..., p, q]: the best column of each row [..., p], and whether that
    column's best row is this one, bool [..., p]."""
    best = scores.argmax(-1)
    back = scores.argmax(-2).gather(-1, best)
    return best, back == torch.arange(scores.shape[-2], device=scores.device)


def match_accuracy(found: Tensor, truth: Tensor, counted: Tensor,
                   radius: float = 3.5) -> Tensor:
    """The share [n] of counted points whose match lies within `radius` pixels of the
    truth; NaN where none is counted.

    found, truth [n, p, 2]; counted bool [n, p] (points whose truth is in the picture).
    """
    if found.shape != truth.shape or counted.shape != truth.shape[:-1]:
        raise ValueError(f"found and truth need one shape [n, p, 2] and counted [n, p], got "
                         f"{tuple(found.shape)}, {tuple(truth.shape)}, "
                         f"{tuple(counted.shape)}")
    right = (found - truth).norm(dim=-1) <= radius
    return (right & counted).sum(-1) / counted.sum(-1)


def corner_error(found: Tensor, truth: Tensor, corners: Tensor) -> Tensor:
    """Mean distance [n] in pixels between where two homographies [n, 3, 3] send the same
    corners [k, 2], each with itself: sorting them first would hide a mirrored answer.
    Infinite where the found one is not finite."""
    from kornia.geometry.linalg import transform_points

    def sent(homographies: Tensor) -> Tensor:
        points = corners.to(homographies).expand(len(homographies), -1, 2)
        return transform_points(homographies, points)

    error = (sent(found) - sent(truth)).norm(dim=-1).mean(-1)
    return error.nan_to_num(nan=torch.inf, posinf=torch.inf)


def estimate_homography(first: Tensor, second: Tensor, *, radius: float = 3.0,
                        seed: int = 0) -> Tensor:
    """The homography [3, 3] that most matches first [m, 2] -> second [m, 2] agree with up
    to `radius` pixels (RANSAC); not finite with fewer than four matches or if none is
    found."""
    from kornia.geometry import RANSAC

    lost = first.new_full((3, 3), torch.nan)
    if len(first) < 4:
        return lost
    ransac = RANSAC("homography", inl_th=radius, batch_size=512, max_iter=4, seed=seed)
    found, inliers = ransac(first, second)
    return found.to(first) if int(inliers.sum()) >= 4 else lost


def error_auc(errors: Tensor, thresholds: Sequence[float] = (3.0, 5.0, 10.0)) -> list[float]:
    """Area under the recall curve of errors [n] up to each threshold, as a share of it.

    Recall rises by 1/n at each error, linearly from one error to the next, from (0, 0) on,
    and stays flat from the last error below the threshold to it (SuperGlue's evaluation).
    Infinite errors are never recalled.

    Raises ValueError for no errors or a NaN.
    """
    if not len(errors) or errors.isnan().any():
        raise ValueError("errors must be at least one number and no NaN; a failure is inf")
    sorted_errors = [0.0, *errors.double().sort().values.tolist()]
    recall = [k / len(errors) for k in range(len(sorted_errors))]
    areas = []
    for threshold in thresholds:
        below = [(e, r) for e, r in zip(sorted_errors, recall) if e < threshold]
        curve = [*below, (threshold, below[-1][1])]
        area = sum((b - a) * (p + q) / 2 for (a, p), (b, q) in pairwise(curve))
        areas.append(area / threshold)
    return areas
