"""Concepts: what is drawn by four hands and told by several keywords."""

import pytest
import torch

from alignkit.data.concepts import VIEWS, concepts, one_view_a_row, phrases
from alignkit.data.emoji import emoji, read_keywords
from alignkit.data.pairs import Pairs


@pytest.fixture(scope="module")
def known() -> Pairs:
    return emoji()


@pytest.fixture(scope="module")
def pairs(known) -> Pairs:
    return concepts(known)


def test_each_concept_has_four_drawings_and_its_own_keywords(pairs):
    assert len(pairs) == len(pairs.item.unique()) == len(pairs.group.unique()) == 597
    assert VIEWS == ("image", "image_noto", "image_twemoji", "image_fluent")
    row = pairs.ids.index("1F436")  # a dog's face
    drawn = [pairs[view][row] for view in VIEWS]
    assert all(picture.size == (224, 224) for picture in drawn)
    assert len({picture.tobytes() for picture in drawn}) == 4
    assert [pairs[view].sources[row][0] for view in VIEWS[1:]] == ["noto", "twemoji", "fluent"]
    words = pairs["keywords"][row].split(", ")
    assert sorted(words) == sorted(read_keywords("en")["en"]["🐶"].split(", "))
    assert min(len(k.split(", ")) for k in pairs["keywords"]) == 6


@pytest.mark.slow
def test_the_order_of_keywords_is_drawn_and_stays(known, pairs):
    orders = [k.split(", ") for k in pairs["keywords"]]
    assert sum(words == sorted(words) for words in orders) < 10  # CLDR's is alphabetical
    assert concepts(known)["keywords"] == pairs["keywords"]
    # With more wanted, the same words: but another of a group may be the first to have them.
    fewer, told = concepts(known, 8), dict(zip(pairs.ids, pairs["keywords"]))
    shared = [i for i, code in enumerate(fewer.ids) if code in told]
    assert 250 < len(shared) <= len(fewer) < 597
    assert all(fewer["keywords"][i] == told[fewer.ids[i]] for i in shared)


@pytest.mark.slow
def test_features_are_kept_and_the_hash_tells():
    known = emoji()
    known = known.with_features(image_layer0=known.item[:, None].float())
    pairs = concepts(known)
    assert pairs["image_layer0"][:, 0].tolist() == pairs.item.tolist()
    hashes = {known.provenance.hash, pairs.provenance.hash, concepts(known, 7).provenance.hash}
    assert len(hashes) == 3 and "MIT (Fluent)" in pairs.provenance.licence


def test_concepts_refuses():
    with pytest.raises(ValueError, match="least must be at least 1"):
        concepts(emoji(), 0)
    for pairs, least in ((emoji(), 99), (Pairs.make({"text": ["a"]}), 6)):
        with pytest.raises(ValueError, match="no row of pairs"):
            concepts(pairs, least)


def test_one_view_a_row_keeps_what_belongs_together(pairs):
    order = torch.arange(len(pairs), dtype=torch.float32)[:, None]
    pairs = pairs.with_features(text_x=order, **{
        f"{view}_x": order + 1000 * k for k, view in enumerate(VIEWS)})
    rows = one_view_a_row(pairs, ["x"])
    assert len(rows) == 4 * len(pairs) and len(rows.item.unique()) == len(pairs)
    for row in (0, 5, len(pairs) + 5, 3 * len(pairs) + 11):
        hand, at = divmod(row, len(pairs))
        assert rows.ids[row] == f"{pairs.ids[at]} {VIEWS[hand]}"
        assert rows["image_x"][row].item() == at + 1000 * hand and rows["text_x"][row] == at
        assert rows["text"][row] == pairs["text"][at] and rows.item[row] == pairs.group[at]
        assert rows["image"][row].tobytes() == pairs[VIEWS[hand]][at].tobytes()
    with pytest.raises(KeyError, match="image_y"):
        one_view_a_row(pairs, ["y"])


def test_phrases_are_names_and_keywords():
    texts = phrases()
    assert texts == sorted(set(texts)) and len(texts) > 4000
    assert {"dog face", "pet", "puppy"} <= set(texts)
    assert all(any(c.isalpha() for c in text) for text in texts)
