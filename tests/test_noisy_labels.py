"""What is done about wrong labels, against loops and by hand."""

import pytest
import torch

from alignkit.parts import unit
from alignkit.parts.noisy_labels import (
    misfit, moved_centres, relabelled, rows_of_classes, votes,
)  # fmt: skip


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def test_centres_move_row_by_row():
    centres, z, y = unit(rows(3, 4)), unit(rows(7, 4, 1)), torch.tensor([0, 2, 0, 0, 2, 1, 0])
    kept = torch.tensor([True, True, False, True, True, False, True])
    slow = centres.clone()
    for row, label, counts in zip(z, y, kept):
        if counts:
            slow[label] = 0.9 * slow[label] + 0.1 * row
    found = moved_centres(centres, z, y, kept, 0.9)
    assert torch.allclose(found, unit(slow), rtol=0, atol=1e-12)
    assert torch.allclose(moved_centres(centres, z, y, kept, 1.0), centres)


def test_labels_are_changed_kept_or_dropped_in_that_order():
    shares = torch.tensor([[0.6, 0.4, 0.0], [0.5, 0.4, 0.1], [0.5, 0.4, 0.1], [0.9, 0.1, 0.0]])
    trusted = torch.tensor([False, False, False, True])
    labels, counts = relabelled(shares, torch.tensor([1, 1, 2, 1]), 0.6, trusted)
    assert labels.tolist() == [0, 1, 2, 1] and counts.tolist() == [True, True, False, True]


def test_two_even_shares_keep_their_label():
    labels, counts = relabelled(torch.full((1, 2), 0.5), torch.tensor([1]), 0.6,
                                torch.tensor([False]))
    assert labels.tolist() == [1] and counts.tolist() == [True]


def test_votes_are_weighed_by_likeness_and_sum_to_one():
    keys = torch.eye(3)[:2]
    soft = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    found = votes(torch.tensor([[0.6, 0.8, 0.0], [-1.0, 0.0, 0.0]]), keys, soft)
    assert torch.allclose(found[0], (0.6 * soft[0] + 0.8 * soft[1]) / 1.4, atol=1e-6)
    assert torch.allclose(found[1], soft.mean(0))  # like nobody: all count the same
    assert torch.allclose(found.sum(1), torch.ones(2))


def test_equal_texts_fit_equally():
    text, definition = torch.tensor([0.6, 0.8, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    found = misfit(text.expand(9, 3), definition, (3, 2, 0.3))  # more rows than k1
    assert torch.equal(found, found[:1].expand(9))


def test_the_text_that_is_the_definition_fits_best():
    texts = unit(rows(8, 3))
    assert misfit(texts, texts[5], (3, 2, 0.3)).argmin() == 5


def test_rows_of_classes_names_an_empty_one():
    found = rows_of_classes(torch.tensor([1, 0, 1]), 2)
    assert [own.tolist() for own in found] == [[1], [0, 2]]
    with pytest.raises(ValueError, match="labelled as class 1, of 3"):
        rows_of_classes(torch.tensor([0, 2]), 3)
