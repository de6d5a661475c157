"""Pictures of things in corners: what the columns say is what is drawn and told."""

import pytest
import torch

from alignkit.data.corners import UNNAMED, corners
from alignkit.data.scenes import COLOURS, NOUNS


def test_columns_and_labels_say_what_is_placed_and_told():
    pairs = corners(2, nouns=["dog", "cat", "bus", "key", "hat"], corpus_seed=1)
    names, half = list(NOUNS), 32
    for row, (_, placed) in enumerate(pairs["image"].sources):
        assert 2 <= len(placed) <= 4 and len({t[0] for t in placed}) == len(placed)
        assert [t[5] == UNNAMED for t in placed] == [False] + [True] * (len(placed) - 1)
        there = torch.full((4,), -1)
        for noun, x, y, side, _, colour, shape in placed:
            corner = 2 * (y >= half) + (x >= half)
            there[corner] = names.index(noun)
            low = torch.tensor([half * (corner % 2), half * (corner // 2)])
            box = pairs["boxes"][row, corner] * 64
            assert torch.allclose(box, torch.tensor([x, y, x + side, y + side]))
            assert (box[:2] >= low).all() and (box[2:] <= low + half).all()
        assert torch.equal(pairs["nouns"][row], there)
        noun, x, y, _, _, colour, shape = placed[0]
        assert pairs["text"][row].endswith(f"{noun} on a{'n' * (colour == 'orange')} "
                                           f"{colour} {shape}")
        labels = {name: int(pairs.labels[name][row]) for name in pairs.labels}
        assert labels == {"noun": names.index(noun), "colour": list(COLOURS).index(colour),
                          "shape": ("disc", "square").index(shape),
                          "corner": int(2 * (y >= half) + (x >= half))}
    red = torch.tensor(pairs["image"][0].size)
    assert red.tolist() == [128, 128]


def test_rows_of_one_caption_are_one_item_and_stay_together():
    pairs = corners(12, nouns=["dog", "cat", "bus", "key"])
    for a in range(len(pairs)):
        for b in range(a):
            assert (pairs["text"][a] == pairs["text"][b]) == (pairs.item[a] == pairs.item[b])
    train, _, test = pairs.split(0)
    assert not set(train["text"]) & set(test["text"])


def test_the_same_numbers_give_the_same_pictures_and_others_do_not():
    a, b, c = (corners(1, nouns=["dog", "cat", "bus", "key"], corpus_seed=k) for k in (1, 1, 2))
    assert a.provenance.hash == b.provenance.hash != c.provenance.hash
    assert a["image"][0].tobytes() == b["image"][0].tobytes() != c["image"][0].tobytes()


@pytest.mark.parametrize("wrong", [dict(each=0), dict(size=16), dict(nouns=["dog", "cat"])])
def test_numbers_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        corners(**wrong)
