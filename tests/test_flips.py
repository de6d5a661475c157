"""Flips: counted by hand, and their difference is the change of the score."""

from fractions import Fraction

import pytest
import torch

from alignkit.evaluation import flips


def test_five_queries_by_hand():
    before = torch.tensor([True, True, False, False, True])
    after = torch.tensor([True, False, True, True, False])
    assert flips(before, after) == {"positive": Fraction(2, 5), "negative": Fraction(2, 5),
                                    "gain": 0}
    assert flips(before, ~before) == {"positive": Fraction(2, 5), "negative": Fraction(3, 5),
                                      "gain": Fraction(-1, 5)}
    assert flips(before, before) == {"positive": 0, "negative": 0, "gain": 0}


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
