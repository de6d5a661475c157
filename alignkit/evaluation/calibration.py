"""Whether a probability means what it says."""

import torch
from torch import Tensor

from alignkit.evaluation.checks import class_labels, matrix


def expected_calibration_error(
    probabilities: Tensor, labels: Tensor, bins: int = 15
) -> float:
    """Σ over bins of (share of samples) · |accuracy - mean confidence|, in [0, 1].

    Guo et al. 2017 (arXiv 1706.04599), eq. 3: confidence is the largest probability,
    bins are equally wide and each includes its upper end. Among equal largest
    probabilities the first class is the prediction.

    Args:
        probabilities: [n, n_classes], rows sum to 1 (within 0.001, and what the type can
            hold: 0.008 in bfloat16). labels: LongTensor [n].

    Raises ValueError for rows that are no probabilities, and as `matrix` does.
    """
    slack = 1e-3
    if isinstance(probabilities, Tensor) and probabilities.is_floating_point():
        slack = max(slack, torch.finfo(probabilities.dtype).eps)
    probabilities = matrix(probabilities, "probabilities").double()
    sums = probabilities.sum(1)
    if (probabilities < 0).any() or ((sums - 1).abs() > slack).any():
        raise ValueError(
            f"rows of probabilities sum to {float(sums.min()):.4g} .. "
            f"{float(sums.max()):.4g} with minimum {float(probabilities.min()):.4g}; "
            "apply softmax first"
        )
    if bins < 1:
        raise ValueError(f"bins is {bins}; at least 1 is needed")
    labels = class_labels(labels, "labels", *probabilities.shape)
    confidence, prediction = probabilities.max(1)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    index = torch.bucketize(confidence, edges.to(confidence.device))
    error = (prediction == labels.to(prediction.device)).double() - confidence
    gaps = torch.zeros(bins, dtype=torch.float64, device=error.device)
    return float(gaps.index_add(0, index, error).abs().sum() / len(error))
