"""Whole words of reports, which of them name a finding, and the cells that a box touches."""

import pytest
import torch

from alignkit.claims.phantom_pairs import naming_words, touched_cells, whole_words, words_of
from alignkit.data import Tokens
from alignkit.data.phantoms import phantoms
from alignkit.data.reports import PHRASES


def test_words_are_sums_of_their_pieces():
    texts = ["Marked cardiomegaly.", "no edema"]
    pieces = words_of(texts)
    words = [[w for w, *_ in row] for row in pieces]
    # [CLS] marked card ##iom ##ega ##ly . [SEP]: word pieces of one word have one number.
    assert words[0][:2] == [-1, 0] and words[0][-2:] == [2, -1]
    assert {*words[0][2:-2]} == {1} and len(words[0]) > 5
    assert [texts[0][a:b] for w, a, b in pieces[0] if w == 0] == ["Marked"]
    t = max(map(len, words)) + 2
    values = torch.randn(2, t, 3, generator=torch.Generator().manual_seed(0))
    found = whole_words(Tokens(values, torch.ones(2, t).bool()), texts)
    assert found.mask.sum(1).tolist() == [3, 1 + words[1][-2]]
    for row in range(2):
        for w in range(int(found.mask[row].sum())):
            wanted = sum(values[row, k] for k, x in enumerate(words[row]) if x == w)
            assert torch.allclose(found.values[row, w], wanted)
    assert (found.values[~found.mask] == 0).all()
    with pytest.raises(ValueError, match="row 1 has no word"):
        whole_words(Tokens(values, torch.ones(2, t).bool()), ["a", ""])


def test_the_words_that_name_a_finding():
    pairs = phantoms(60)
    pieces = words_of(pairs["text"])
    t = max(w for row in pieces for w, *_ in row) + 1
    mask = torch.tensor([[w < 1 + max(x for x, *_ in row) for w in range(t)] for row in pieces])
    pairs = pairs.with_features(text_tokens=Tokens(torch.zeros(60, t, 1), mask))
    named, table = naming_words(pairs), pairs.tables["findings"]
    assert named.shape == (len(table["item"]), t) and named.any(1).all()
    for k, words in enumerate(named):
        text = pairs["text"][int(table["item"][k])]
        spans = [(a, b) for w, a, b in pieces[int(table["item"][k])] if w >= 0 and words[w]]
        said = text[min(a for a, _ in spans):max(b for _, b in spans)]
        phrases = PHRASES[pairs.tables["names"]["finding"][int(table["finding"][k])]]
        assert said in [phrase.removeprefix("a ") for phrase in phrases]
        assert f"no {said}" not in text
    # Rows of a part in another order: the table's items are looked up.
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    assert torch.equal(naming_words(pairs.select(order)), named)


def test_cells_that_a_box_touches():
    boxes = torch.tensor([[0.0, 0, 10, 10], [9, 9, 11, 11], [10, 0, 20, 10], [35, 5, 40, 40]])
    found = touched_cells(boxes, size=40, side=4).view(-1, 4, 4)
    wanted = torch.zeros(4, 4, 4, dtype=torch.bool)
    wanted[0, 0, 0] = wanted[2, 0, 1] = True
    wanted[1, :2, :2] = True
    wanted[3, :, 3] = True
    assert torch.equal(found, wanted)
