"""Crops with identities: what one is, how it is split, shown and put in words."""

import numpy as np
import pytest
import torch

from alignkit.data import Pairs
from alignkit.data.identities import WORDINGS, caption, identities
from alignkit.data.scenes import scenes


@pytest.fixture(scope="module")
def crops() -> Pairs:
    return identities(scenes(30), ("colour", "shape"), 5)


def test_identities_have_equal_rows_and_stay_on_one_side(crops):
    identity, names = crops.labels["identity"], crops.label_names["identity"]
    assert set(identity.bincount().tolist()) == {5} and len(names) == identity.max() + 1
    for text, y in zip(crops["text"], identity.tolist()):
        colour, shape = names[y].split()
        assert f"{colour} " in text and shape in text
    for y in identity.unique():
        assert len({text for text, i in zip(crops["text"], identity) if i == y}) == 5
    for seed in range(5):
        parts = [set(part.labels["identity"].tolist()) for part in crops.split(seed)]
        assert not (parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2])


def test_a_crop_is_its_plate(crops):
    wanted = {"red": (229, 72, 77), "blue": (63, 142, 252), "green": (76, 175, 80)}
    seen = 0
    for row, text in enumerate(crops["text"][:20]):
        for colour, rgb in wanted.items():
            if colour in text:
                pixels = torch.tensor(np.array(crops["image"][row])).long()
                near = (pixels - torch.tensor(rgb)).abs().sum(2) < 40
                assert near.double().mean() > 0.1, text
                seen += 1
    assert seen > 3


def test_wordings_say_what_is_there():
    thing = {"noun": "owl", "size": "large", "colour": "orange", "shape": "disc"}
    found = [caption(thing, k) for k in range(7)]
    assert found[0] == "a large owl on an orange disc" == found[6]
    assert len(set(found)) == 6
    assert all(text.count(word) == 1 for text in found for word in thing.values())


def test_objects_of_an_identity_are_those_equal_in_its_fields():
    whole = scenes(60)
    pairs, objects = identities(whole, ("noun",), 3), whole.tables["objects"]
    names = pairs.label_names["identity"]
    for row, y in zip(pairs.ids, pairs.labels["identity"].tolist()):
        noun = objects["noun"][int(row.split()[1])]
        assert whole.tables["vocabulary"][noun] == names[y]
    counts = objects["noun"].bincount()
    assert len(names) == (counts >= 3).sum() < (counts > 0).sum()
    assert len(set(pairs.ids)) == len(pairs) == 3 * len(names)


@pytest.mark.parametrize("fields, each, words", [
    (("noun",), len(WORDINGS) + 1, "each must lie in"),
    (("smell",), 2, "fields be some"),
    ((), 2, "fields be some"), (("noun", "size", "colour", "shape"), 6, "more scenes")])
def test_what_cannot_be_cut_is_refused(fields, each, words):
    with pytest.raises(ValueError, match=words):
        identities(scenes(20), fields, each)
