"""Pictures found by a name: their web texts never say it, their definitions do."""

import pytest
from needs import needs_asset

from alignkit.data.searched import keywords, searched


@pytest.fixture(scope="module")
def found():
    needs_asset("wordnet"), needs_asset("emoji-keywords")
    return searched(2, 8)


def test_a_text_is_two_keywords_of_its_noun_and_one_of_another(found):
    names = found.label_names["class"]
    assert len(found) == 16 and len(names) == 8
    for text, k in zip(found["text"], found.labels["class"].tolist()):
        words = text.split(", ")
        assert len(words) == 3 and names[k] not in words
        assert sum(word in keywords()[names[k]] for word in words) >= 2


def test_the_same_pictures_have_the_same_texts_and_the_classes_their_definitions(found):
    assert searched(2, 8)["text"] == found["text"]
    classes = found.tables["classes"]
    assert classes.ids == found.label_names["class"]
    assert classes["text"][0].startswith("cat, true cat: feline mammal")


def test_no_keyword_holds_its_noun(found):
    told = keywords()
    assert len(told) == 31 and all(len(words) >= 4 for words in told.values())
    assert not [noun for noun, words in told.items() if any(noun in w for w in words)]
