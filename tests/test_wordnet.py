"""WordNet's definitions of the nouns that scenes draw."""

import pytest
from needs import needs_asset

from alignkit.data.scenes import NOUNS
from alignkit.data.wordnet import SENSES, definition, senses


@pytest.fixture(autouse=True, scope="module")
def here():
    needs_asset("wordnet")


def test_the_sense_that_is_drawn_is_told():
    assert definition("kite", words=8) == "kite: plaything consisting of a light frame covered"
    assert definition("kite", sense=1).startswith("kite: a bank check")
    assert len(senses("kite")) == 4 and senses("kite")[2].startswith("kite: plaything")


def test_the_synsets_around_follow_the_wider_first():
    told = definition("mouse", words=60)
    assert told.index("house mouse") > told.index("rodent, gnawer:") > told.index("rodents")
    assert len(told.split()) == 60


def test_every_noun_of_scenes_has_a_definition_of_its_own():
    told = [definition(noun) for noun in NOUNS]
    assert len(set(told)) == len(NOUNS) and set(SENSES) < set(NOUNS)
    assert definition("Guinea Pig", 2).startswith("guinea pig, Cavia cobaya:")


def test_an_unknown_noun_or_sense_is_named():
    with pytest.raises(ValueError, match="'qwertz' is not in WordNet"):
        definition("qwertz")
    with pytest.raises(ValueError, match="between 1 and 4, got 5"):
        definition("kite", sense=5)
