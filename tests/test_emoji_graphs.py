"""Emoji as entities: mentions by ambiguous words, and graphs in two languages."""

from collections import Counter

import pytest
import torch

from alignkit.data import Pairs
from alignkit.data.emoji import read_keywords
from alignkit.data.emoji_graphs import (
    SENTENCES, emoji_graphs, mentions, shared_word_edges, with_word_features,
)  # fmt: skip


@pytest.fixture(scope="module")
def linked():
    return mentions()


def keywords(pairs, row: int) -> list[str]:
    return pairs["text"][row].split(": ", 1)[1].split(", ")


def test_a_mention_is_an_ambiguous_word_of_its_entity(linked):
    one = linked.first_of_item()
    assert (len(linked), len(one)) == (1224, 549)
    # The words are counted among all emoji with six keywords, mentioned or not.
    count = Counter(w.lower() for row in one.tolist() for w in keywords(linked, row))
    for row, word in enumerate(linked["word"]):
        name = linked["text"][row].split(": ")[0]
        assert word in keywords(linked, row) and word.lower() not in name.lower()
        assert 3 <= linked.labels["candidates"][row] <= 15
        assert count[word.lower()] <= linked.labels["candidates"][row]
        assert linked["mention_text"][row] == SENTENCES[row % 6].format(word=word)
    assert int(linked.labels["candidates"].median()) == 6
    assert max(Counter(linked.item.tolist()).values()) == 3
    assert torch.equal(linked.group, linked.item)


def test_an_entity_and_its_mentions_are_drawn_by_two_hands(linked):
    row = linked.ids.index(next(i for i in linked.ids if i.startswith("1F436 ")))  # dog
    assert linked["text"][row].startswith("dog face: ")
    assert sorted(keywords(linked, row)) == sorted(read_keywords("en")["en"]["🐶"].split(", "))
    assert linked["mention_image"].sources[row][0] == "noto"
    assert linked["image"][row].tobytes() != linked["mention_image"][row].tobytes()
    same = (linked.item == linked.item[row]).nonzero()[:, 0].tolist()
    assert len({str(linked["mention_image"].sources[r]) for r in same}) == 1
    assert len({linked["word"][r] for r in same}) == len(same)


def test_mentions_stay_and_a_limit_is_even(linked):
    again, few = mentions(), mentions(limit=20)
    assert again.ids == linked.ids and again.provenance.hash == linked.provenance.hash
    assert len(few.item.unique()) == 20 and {*few.ids} <= {*linked.ids}
    assert few.ids[0] == linked.ids[0] and few.provenance.hash != linked.provenance.hash


def test_mentions_refuses():
    for wrong in ({"least": 0}, {"each": 0}, {"shared": (4, 3)}):
        with pytest.raises(ValueError, match="1 or more"):
            mentions(**wrong)
    with pytest.raises(ValueError, match="no emoji has 99 keywords"):
        mentions(least=99)


def test_edges_join_rows_that_share_a_rare_word():
    said = [["Cat", "pet"], ["cat"], ["pet"], ["pet"], ["alone"]]
    assert shared_word_edges(said, 2).tolist() == [[0, 1], [1, 0]]
    pairs = {(0, 1), (0, 2), (0, 3), (2, 3)}
    assert {tuple(e) for e in shared_word_edges(said, 3).T.tolist()} == {
        *pairs, *((b, a) for a, b in pairs)}
    assert shared_word_edges([["a"], ["b"]], 5).shape == (2, 0)


def test_the_two_graphs_are_sparse_and_apart():
    pairs = emoji_graphs()
    n = len(pairs)
    assert 1000 < n == len(pairs.item.unique())
    row = pairs.ids.index("1F436")
    words = {code: read_keywords(code)[code]["🐶"].split(", ") for code in ("en", "de")}
    assert sorted(pairs["text"][row].split(", ")) == sorted(words["en"])
    assert sorted(pairs["text_other"][row].split(", ")) == sorted(words["de"])
    for end, column in (("", "text"), ("_other", "text_other")):
        a, b = edges = pairs.tables[f"edges{end}"]
        assert 8 < edges.shape[1] / n < 25 and int(edges.max()) < n and (a != b).all()
        assert {*zip(a.tolist(), b.tolist())} == {*zip(b.tolist(), a.tolist())}
        for i, j in edges[:, ::997].T.tolist():  # what is joined shares a word
            assert {*pairs[column][i].lower().split(", ")} & {
                *pairs[column][j].lower().split(", ")}
    assert {*pairs.tables["words"]} != {*pairs.tables["words_other"]}
    with pytest.raises(ValueError, match="another language than en"):
        emoji_graphs("en")
    with pytest.raises(ValueError, match="no emoji has 99"):
        emoji_graphs(least=99)


def test_a_limit_is_even_and_edges_are_of_those_that_are_left():
    few, every = emoji_graphs(limit=50), emoji_graphs()
    assert len(few) == 50 and {*few.ids} <= {*every.ids} and few.ids[0] == every.ids[0]
    assert few.provenance.hash != every.provenance.hash
    said = [text.split(", ") for text in few["text"]]
    assert torch.equal(few.tables["edges"], shared_word_edges(said, 30))


def test_words_are_relations_or_attributes_and_languages_stay_apart():
    pairs = Pairs.make({"text": ["cat, pet, Face", "Cat, face", "pet, face", "alone"],
                        "text_other": ["cat, x", "y, x", "z, x", "cat, x"]})
    found = with_word_features(pairs, most=2)
    # Joining words: cat and pet of the first graph, cat of the second. Common: face, and x.
    a, b = found["text_relations"], found["text_other_relations"]
    assert a.sum(1).tolist() == [2, 1, 1, 0] and b.sum(1).tolist() == [1, 0, 0, 1]
    assert a.shape == b.shape == (4, 3) and not (a.any(0) & b.any(0)).any()
    assert found["text_attributes"].sum(1).tolist() == [1, 1, 1, 0]
    assert found["text_other_attributes"].sum(1).tolist() == [1, 1, 1, 1]
    assert found.tables["edges"].T.tolist() == [[0, 1], [0, 2], [1, 0], [2, 0]]
    assert found.tables["nodes"] == (4, 4) and found.labels["node_other"].tolist() == [0, 1, 2, 3]
    three = with_word_features(pairs, most=3)  # face joins each of three with two others
    assert three["text_relations"].sum(1).tolist() == [4, 3, 3, 0]
    assert with_word_features(pairs, most=2, kept=1)["text_relations"].shape == (4, 1)
    own = with_word_features(found.with_columns(text=["a"] * 4), most=2)
    assert torch.equal(own.tables["edges"], found.tables["edges"])  # those that are there stay
