"""Flips: counted by hand, and their difference is the change of the score."""

import pytest
import torch

from alignkit.evaluation import flips, right_at


def test_five_queries_by_hand():
    before = torch.tensor([True, True, False, False, True])
    after = torch.tensor([True, False, True, True, False])
    assert flips(before, after) == {"positive": 2 / 5, "negative": 2 / 5, "gain": 0}
    assert flips(before, ~before) == {"positive": 2 / 5, "negative": 3 / 5, "gain": -1 / 5}
    assert flips(before, before) == {"positive": 0, "negative": 0, "gain": 0}


def test_which_queries_are_right_by_hand():
    """Three queries, items 0, 1, 2, in a gallery of items 2, 0, 0, 1."""
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    gallery = torch.tensor([[1.0, 0.9], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    items = torch.tensor([0, 1, 2]), torch.tensor([2, 0, 0, 1])
    # 0: ties with item 2; 1: ties with an item 0 above it; 2: first.
    assert right_at(query, gallery, *items, k=1).tolist() == [False, False, True]
    assert right_at(query, gallery, *items, k=2).tolist() == [True, True, True]
    assert right_at(query, -gallery, *items, k=2).tolist() == [True, False, False]


@pytest.mark.parametrize("seed", range(5))
def test_the_gain_is_the_change_of_the_score(seed):
    drawn = torch.rand(2, 37, generator=torch.Generator().manual_seed(seed)) < 0.4
    found, swapped = flips(*drawn), flips(*drawn.flip(0))
    change = int(drawn[1].sum()) - int(drawn[0].sum())
    assert round(found["gain"] * 37) == change == round(
        37 * (found["positive"] - found["negative"]))
    assert found["positive"] == swapped["negative"]


@pytest.mark.parametrize("before, after, named", [
    (torch.ones(3), torch.ones(3, dtype=torch.bool), "float32"),
    (torch.ones(3, dtype=torch.bool), torch.ones(2, dtype=torch.bool), r"\(3,\).*\(2,\)"),
    (torch.ones(0, dtype=torch.bool), torch.ones(0, dtype=torch.bool), "at least 1"),
])
def test_bad_input_is_named(before, after, named):
    with pytest.raises(ValueError, match=named):
        flips(before, after)
