"""Matches and homographies against answers found by hand."""

import math

import pytest
import torch

from alignkit.evaluation import (
    corner_error, error_auc, estimate_homography, match_accuracy, nearest_cells,
)  # fmt: skip

SQUARE = torch.tensor([[0.0, 0], [9, 0], [9, 9], [0, 9]])


def test_nearest_cells_and_whether_both_agree():
    scores = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.2, 0.1], [0.0, 0.1, 0.7]])
    best, mutual = nearest_cells(scores)
    assert best.tolist() == [0, 0, 2] and mutual.tolist() == [True, False, True]
    both = nearest_cells(torch.stack([scores, scores.T]))
    assert both[0][0].tolist() == best.tolist() and both[1].shape == (2, 3)
    wide = nearest_cells(torch.tensor([[0.0, 0.5, 0.1, 0.9]]))
    assert wide[0].tolist() == [3] and wide[1].tolist() == [True]


def test_accuracy_counts_what_is_counted_up_to_the_radius():
    truth = torch.zeros(2, 4, 2)
    found = torch.tensor([[3.5, 0], [2.5, 2.5], [0, 0], [9, 9.0]]).expand(2, 4, 2)
    counted = torch.tensor([[True, True, True, False], [False] * 4])
    shares = match_accuracy(found, truth, counted)
    assert shares[0].item() == pytest.approx(2 / 3) and shares[1].isnan()
    assert match_accuracy(found, truth, counted, radius=3.6)[0] == 1
    with pytest.raises(ValueError, match="one shape"):
        match_accuracy(found[0], truth, counted)


def test_corner_errors_keep_the_corners_apart():
    shift = torch.eye(3)
    shift[0, 2], shift[1, 2] = 3.0, 4.0
    mirror = torch.tensor([[-1.0, 0, 9], [0, 1, 0], [0, 0, 1]])
    errors = corner_error(torch.stack([torch.eye(3), shift, mirror, torch.full((3, 3), math.nan)]),
                          torch.eye(3).expand(4, 3, 3), SQUARE)
    # The mirrored square has the same four corners: sorted, its error would be 0.
    assert errors.tolist() == [0, 5, 9, math.inf]


@pytest.mark.parametrize("seed", range(3))
def test_a_homography_is_found_among_wrong_matches(seed):
    g = torch.Generator().manual_seed(seed)
    true = torch.tensor([[1.05, 0.1, 3], [-0.08, 0.95, 2], [5e-4, -3e-4, 1]])
    first = 96 * torch.rand(200, 2, generator=g)
    sent = torch.cat([first, torch.ones(200, 1)], 1) @ true.T
    second = sent[:, :2] / sent[:, 2:]
    second[:100] = 96 * torch.rand(100, 2, generator=g)
    found = estimate_homography(first, second)
    assert corner_error(found[None], true[None], 10 * SQUARE).item() < 0.5
    assert torch.equal(found, estimate_homography(first, second))  # no chance of its own
    assert estimate_homography(first[:3], second[:3]).isnan().all()


def test_auc_by_hand():
    # Recall 1/2 at error 2, 1 at error 6: up to 4 a triangle of 1/2 and two flat pixels.
    errors = torch.tensor([6.0, 2.0])
    assert error_auc(errors, [4.0]) == [pytest.approx((2 * 0.5 / 2 + 2 * 0.5) / 4)]
    # Up to 10: triangle, trapezoid from 1/2 to 1 over four pixels, four pixels of 1.
    assert error_auc(errors, [10.0]) == [pytest.approx((0.5 + 3 + 4) / 10)]
    assert error_auc(torch.tensor([math.inf, 20.0])) == [0, 0, 0]
    assert error_auc(torch.zeros(3), [5.0]) == [1]
    assert error_auc(torch.tensor([math.inf, 0.0]), [5.0]) == [0.5]
    for bad in (torch.zeros(0), torch.tensor([math.nan])):
        with pytest.raises(ValueError, match="a failure is inf"):
            error_auc(bad)


def test_auc_is_that_of_the_usual_code():
    """SuperGlue's rule, which the paper uses, with numpy."""
    import numpy as np

    values = torch.rand(50, generator=torch.Generator().manual_seed(0)) * 20
    for threshold in (3.0, 5.0, 10.0):
        errors = [0.0, *sorted(values.double().tolist())]
        recall = np.linspace(0, 1, len(errors))
        last = np.searchsorted(errors, threshold)
        area = np.trapezoid([*recall[:last], recall[last - 1]], [*errors[:last], threshold])
        assert error_auc(values, [threshold])[0] == pytest.approx(area / threshold)
