"""Word pieces and masking."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.data import Tokens
from alignkit.parts import WordPieces, mask_words
from alignkit.parts.text import END, IGNORED, MASK, PAD, SPECIAL, START, UNKNOWN, frequent_words

QUICK = settings(max_examples=25, deadline=None, derandomize=True)
TEXTS = [f"a {colour} {thing} near the {other}" for colour in ("red", "green", "blue")
         for thing in ("house", "horse", "mouse") for other in ("river", "riverside")]


def test_word_pieces():
    pieces = WordPieces.train(TEXTS, 80)
    assert pieces.vocabulary[:5] == list(SPECIAL) and len(set(pieces.vocabulary)) == len(pieces)
    assert len(pieces) <= 80 and {"house", "near", "##s"} <= {*pieces.vocabulary}
    found = pieces(["A  RED horse", "", "the house xq", "a red green blue house"], longest=6)
    assert found.values.shape == (4, 6) and found.values.dtype == torch.long
    assert torch.equal(found.mask, found.values != PAD)
    assert found.values[1].tolist() == [START, END, PAD, PAD, PAD, PAD]
    assert found.values[2].tolist().count(UNKNOWN) == 1
    assert (found.values[:, 0] == START).all() and ((found.values == END).sum(1) == 1).all()
    assert pieces.decode(found.values) == ["a red horse", "", "the house [UNK]",
                                           "a red green blue"]
    assert pieces.decode(pieces(TEXTS).values) == TEXTS
    assert not (pieces(["[PAD] [MASK] [SEP]"]).values[:, 1:-1] < UNKNOWN).any()
    again = WordPieces(pieces.vocabulary)
    assert torch.equal(again(TEXTS).values, pieces(TEXTS).values)
    assert pieces([]).values.shape == (0, 0)


def test_the_same_texts_always_give_the_same_pieces():
    # Many equal counts; each training walks its hash maps in an order of its own.
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefgh", k=5)) for _ in range(200)]
    texts = [" ".join(chance.choices(words, k=8)) for _ in range(300)]
    first = WordPieces.train(texts, 300).vocabulary
    assert all(WordPieces.train(texts, 300).vocabulary == first for _ in range(5))


@pytest.mark.parametrize("call, message", [
    (lambda: WordPieces.train(TEXTS, 20), "size is 20"),
    (lambda: WordPieces.train(["  "], 20), "there must be some"),
    (lambda: WordPieces(["a"]), "vocabulary must begin with"),
    (lambda: WordPieces.train(TEXTS, 80)(["a"], longest=1), "longest is 1"),
    (lambda: mask_words(Tokens(torch.zeros(1, 1), torch.ones(1, 1).bool()), 9,
                        torch.Generator(), share=0.0), "share is 0.0"),
])
def test_word_pieces_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.15, 1.0]))
@QUICK
def test_masking(seed, share):
    tokens = WordPieces.train(TEXTS, 80)([*TEXTS, ""])
    hidden, targets = mask_words(tokens, 80, torch.Generator().manual_seed(seed), share)
    asked = targets != IGNORED
    ready = tokens.mask & (tokens.values >= len(SPECIAL))
    assert torch.equal(hidden.mask, tokens.mask) and not (asked & ~ready).any()
    assert torch.equal(hidden.values[~asked], tokens.values[~asked])
    assert torch.equal(targets[asked], tokens.values[asked])
    assert asked[:-1].any(1).all() and not asked[-1].any()
    again = mask_words(tokens, 80, torch.Generator().manual_seed(seed), share)
    assert torch.equal(again[0].values, hidden.values) and torch.equal(again[1], targets)
    assert share < 1 or torch.equal(asked, ready)


def test_masking_is_80_10_10_of_15_percent():
    ids = torch.full((400, 100), 7)
    tokens = Tokens(ids, torch.ones_like(ids).bool())
    hidden, targets = mask_words(tokens, 1005, torch.Generator().manual_seed(0))
    asked = targets != IGNORED
    found = hidden.values[asked]
    # 40,000 pieces, 6,000 asked: five standard errors
    assert abs(asked.double().mean() - 0.15) < 0.009
    assert abs((found == MASK).double().mean() - 0.8) < 0.026
    assert abs((found == 7).double().mean() - 0.1) < 0.02
    other = found[(found != MASK) & (found != 7)]
    assert len(other.unique()) > 300 and other.min() >= len(SPECIAL)


def test_frequent_words_are_of_letters_alone_and_not_short():
    said = ["A dog on a beach", "the dogs bark", "a Beach, a boat", "boat on a beach"]
    assert frequent_words(said, 2) == ["beach", "boat"]
    assert frequent_words(said, 9, shortest=1)[0] == "a"
