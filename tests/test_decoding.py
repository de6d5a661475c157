"""Greedy and beam search against loops over all texts."""

from itertools import product

import pytest
import torch

from alignkit.parts.decoding import beam_search
from alignkit.parts.text import END, PAD, START

WORDS, ROWS = 8, 4


def scorer(seed: int = 0):
    """A next word that depends on the last one, the place and the row."""
    draw = torch.Generator().manual_seed(seed)
    last, place, row = (2 * torch.randn(n, WORDS, generator=draw, dtype=torch.float64)
                        for n in (WORDS, 9, ROWS))
    return lambda ids, rows: last[ids[:, -1]] + place[ids.shape[1]] + row[rows]


def logs_of(next_word, ids: list[int], row: int, longest: int) -> torch.Tensor:
    """Log-probabilities of the word after `ids`, as the search may take them."""
    logs = next_word(torch.tensor([ids]), torch.tensor([row]))[0].float().log_softmax(0)
    logs[[PAD, START]] = -torch.inf
    if len(ids) == longest - 1:
        logs[torch.arange(WORDS) != END] = -torch.inf
    return logs


def padded(ids: list[int], length: int) -> list[int]:
    return ids + [PAD] * (length - len(ids))


@pytest.mark.parametrize("seed", range(4))
def test_one_beam_is_the_likeliest_word_at_each_step(seed):
    next_word, longest = scorer(seed), 7
    found = beam_search(next_word, ROWS, longest)
    for row in range(ROWS):
        ids = [START]
        while ids[-1] != END:
            ids.append(int(logs_of(next_word, ids, row, longest).argmax()))
        assert found[row].tolist() == padded(ids, found.shape[1])


@pytest.mark.parametrize("seed", range(4))
def test_many_beams_find_the_best_of_all_texts(seed):
    """With as many beams as there are texts nothing is cut off."""
    next_word, longest = scorer(seed), 4
    found = beam_search(next_word, ROWS, longest, beams=400)
    for row in range(ROWS):
        best, mean = None, -torch.inf
        for length in range(longest - 1):
            for middle in product([1, *range(END + 1, WORDS)], repeat=length):
                ids, total = [START], 0.0
                for word in (*middle, END):
                    total += float(logs_of(next_word, ids, row, longest)[word])
                    ids.append(word)
                if total / (len(ids) - 1) > mean:
                    best, mean = ids, total / (len(ids) - 1)
        assert found[row].tolist() == padded(best, found.shape[1])


def test_rows_do_not_meet():
    next_word = scorer(5)
    together = beam_search(next_word, ROWS, 7, 3)
    for row in range(ROWS):
        alone = beam_search(lambda ids, rows: next_word(ids, rows + row), 1, 7, 3)
        assert together[row, :alone.shape[1]].tolist() == alone[0].tolist()


@pytest.mark.parametrize("rows, longest, beams", [(0, 5, 1), (2, 1, 1), (2, 5, 0)])
def test_bad_numbers_are_refused(rows, longest, beams):
    with pytest.raises(ValueError, match="must be"):
        beam_search(scorer(), rows, longest, beams)
