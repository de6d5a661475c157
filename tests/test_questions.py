"""Generated questions and statements: right by an independent reading of the tables,
balanced, the same from the same seed; and what is refused."""

import re
from collections import Counter

import pytest
import torch

from alignkit.data import Pairs
from alignkit.data.questions import (
    ANSWERS, HIDDEN, KINDS, TRUTHS, Seen, Statement, every_question, questions, seen_in,
    statements, truth, words, words_alone,
)  # fmt: skip
from alignkit.data.scenes import COLOURS, NOUNS, SHAPES, captions_of, scenes

EACH = {"colour": 120, "shape": 80, "size": 60, "noun": 128, "exists": 80, "count": 60,
        "relation": 80}
GAPS = {"left of": lambda a, b: a[2] <= b[0], "right of": lambda a, b: b[2] <= a[0],
        "above": lambda a, b: a[3] <= b[1], "below": lambda a, b: b[3] <= a[1]}


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return scenes(160, corpus_seed=5)


def drawn(pairs: Pairs, row: int) -> list[dict]:
    """The things of a row as they were drawn: what the tables are made of, not the tables."""
    side = {"small": 52, "large": 84}
    return [{"noun": noun, "size": size, "colour": colour, "shape": shape,
             "box": (x, y, x + side[size], y + side[size])}
            for noun, size, colour, shape, x, y in pairs["image"].sources[row][1]]


def read(question: str, things: list[dict]) -> set[str]:
    """Every right answer to a question, read from its words."""
    said = re.fullmatch
    for field, pattern in (("colour", "what colour is the (.*) on"),
                           ("shape", "what shape is the (.*) on"),
                           ("size", "how large is the (.*)")):
        if found := said(pattern, question):
            return {t[field] for t in things if t["noun"] == found[1]}
    if found := said("what is on the (.*) (disc|square)", question):
        return {t["noun"] for t in things if (t["colour"], t["shape"]) == found.groups()}
    if found := said("is there an? (.*)", question):
        return {"yes" if found[1] in {t["noun"] for t in things} else "no"}
    if question == "how many things are there":
        return {str(len(things))}
    found = said(f"is the (.*) ({'|'.join(GAPS)}) the (.*)", question)
    a, b = ([t["box"] for t in things if t["noun"] == found[k]][0] for k in (1, 3))
    return {"yes" if GAPS[found[2]](a, b) else "no"}


# Questions --------------------------------------------------------------------------------
def test_every_answer_is_the_one_right_answer(pairs):
    asked = questions(pairs, EACH, seed=1)
    assert len(asked) == sum(EACH.values())
    for row, question in enumerate(asked["question"]):
        answer = asked.label_names["answer"][int(asked.labels["answer"][row])]
        assert read(question, drawn(asked, row)) == {answer}, (question, answer)


def test_answers_are_balanced_and_scenes_stay_together(pairs):
    asked = questions(pairs, EACH, seed=1)
    for kind, n in EACH.items():
        here = asked.labels["kind"] == list(KINDS).index(kind)
        counts = asked.labels["answer"][here].bincount(minlength=len(ANSWERS))
        mine = torch.tensor([ANSWERS.index(a) for a in KINDS[kind][0]])
        assert counts.sum() == n == counts[mine].sum()
        assert counts[mine].max() - counts[mine].min() <= 1
    parts = asked.split(0)
    held = [set(part.item.tolist()) for part in parts]
    assert not held[0] & held[1] and not held[0] & held[2]
    assert asked.provenance.kind == "generated" and pairs.provenance.kind == "composed"


@pytest.mark.parametrize("kind", ["noun", "colour", "exists"])
def test_every_question_is_asked_once_and_rightly(pairs, kind):
    asked = every_question(pairs, kind, seed=2)
    for row, question in enumerate(asked["question"]):
        answer = asked.label_names["answer"][int(asked.labels["answer"][row])]
        assert read(question, drawn(asked, row)) == {answer}, (question, answer)
    pairs_asked = [*zip(asked.item.tolist(), asked["question"])]
    if kind != "exists":  # where two absent things may be the same
        assert len(set(pairs_asked)) == len(pairs_asked)
    things = [drawn(pairs, row) for row in range(len(pairs))]
    looks = [[(t["colour"], t["shape"]) for t in scene] for scene in things]
    number = {"colour": sum(map(len, things)), "exists": 2 * sum(map(len, things)),
              "noun": sum(look.count(x) == 1 for look in looks for x in look)}
    assert len(asked) == number[kind]
    with pytest.raises(ValueError, match="kind is one of"):
        every_question(pairs, "smell")


def test_what_words_alone_can_know():
    assert words_alone({"colour": 60, "exists": 40}) == pytest.approx(0.3)
    assert words_alone({"noun": 5}) == pytest.approx(1 / 64)
    assert words_alone({"count": 1, "size": 1}) == pytest.approx(3 / 8)


def test_the_seed_decides(pairs):
    first, again, other = (questions(pairs, {"colour": 60}, seed=s) for s in (0, 0, 1))
    assert first["question"] == again["question"] and first.ids == again.ids
    assert first.provenance.hash == again.provenance.hash != other.provenance.hash
    assert first["question"] != other["question"] and len(set(first.ids)) == 60
    assert len(questions(pairs, 7)) == 7 * len(KINDS)


def test_what_is_refused(pairs):
    with pytest.raises(ValueError, match="a kind is one of colour.*got 'weight': 3"):
        questions(pairs, {"weight": 3})
    with pytest.raises(ValueError, match="at least once, got 'colour': 0"):
        questions(pairs, {"colour": 0})
    with pytest.raises(ValueError, match=r"each\['count'\]: 320 are too many for these scenes: of .* needed"):
        questions(pairs.select(range(20)), {"count": 320})
    with pytest.raises(ValueError, match="no table 'objects'"):
        questions(Pairs.make({"text": ["a"]}), 1)


# Statements ---------------------------------------------------------------------------------
def judged(statement: str, things: list[dict]) -> str:
    """A statement's truth, read from its words."""
    found = re.fullmatch(r"there is an? (?:(small|large) )?([a-z]+)(?: on an? (?:([a-z]+) )?"
                         r"(disc|square|plate))?", " ".join(
                             w for w in statement.split() if w not in HIDDEN))
    hidden = set(statement.split()) & set(HIDDEN)
    size, noun, colour, shape = found.groups()
    same = [t for t in things if t["noun"] == noun]
    if not same or any(said not in (None, "plate", same[0][field]) for field, said in
                       (("size", size), ("colour", colour), ("shape", shape))):
        return "false"
    return "undecidable" if hidden else "true"


def test_every_statement_is_what_its_label_says(pairs):
    said = statements(pairs, 150, seed=3)
    assert said.labels["truth"].bincount().tolist() == [150] * 3
    for row, statement in enumerate(said["statement"]):
        label = TRUTHS[int(said.labels["truth"][row])]
        assert judged(statement, drawn(said, row)) == label, statement


def test_words_tell_what_is_said_they_tell(pairs):
    said = statements(pairs, 300, seed=3)
    hidden = torch.tensor([bool(set(s.split()) & set(HIDDEN)) for s in said["statement"]])
    shares = [hidden[said.labels["truth"] == k].float().mean().item() for k in range(3)]
    assert shares[0] == 0 and shares[2] == 1 and 0.4 < shares[1] < 0.6
    for mark in (" on ", " small | large "):  # which attributes are named tells nothing
        named = torch.tensor([bool(re.search(mark, s)) for s in said["statement"]])
        by_truth = [named[said.labels["truth"] == k].float().mean().item() for k in range(3)]
        assert max(by_truth) - min(by_truth) < 0.13, (mark, by_truth)


def test_a_statement_by_hand():
    things = [Seen("dog", "small", "blue", "disc"), Seen("owl", "large", "orange", "square")]
    cases = {Statement("dog"): "true", Statement("cat"): "false",
             Statement("owl", colour="orange"): "true", Statement("owl", "small"): "false",
             Statement("dog", hidden="cheap"): "undecidable",
             Statement("dog", shape="square", hidden="cheap"): "false",
             Statement("cat", hidden="new"): "false"}
    assert {s: truth(s, things) for s in cases} == cases
    assert str(Statement("owl", colour="orange")) == "there is an owl on an orange plate"
    assert str(Statement("dog", "small", "blue", "disc", "cheap")) == (
        "there is a cheap small dog on a blue disc")
    assert truth(Statement("dog"), things[:0]) == "false"


def test_things_in_words(pairs):
    for row, things in enumerate(seen_in(pairs.select(range(9)))):
        assert [t._asdict() for t in things] == [
            {k: v for k, v in t.items() if k != "box"} for t in drawn(pairs, row)]


# Words and captions ---------------------------------------------------------------------------
def test_the_vocabulary_has_every_word(pairs):
    known = set(words())
    assert len(known) == len(words()) and known >= {*NOUNS, *COLOURS, *SHAPES}
    texts = [*pairs["text"], *pairs["text_long"], *questions(pairs, 40)["question"],
             *statements(pairs, 40)["statement"]]
    used = Counter(w for text in texts for w in text.lower().replace(".", " .").split())
    assert not used.keys() - known


def test_captions_of_every_two_things(pairs):
    for row, (text, captions) in enumerate(zip(pairs["text"], captions_of(pairs))):
        things = drawn(pairs, row)
        assert captions[0] == text and len(captions) == len(things) * (len(things) - 1)
        for caption in captions:
            found = re.fullmatch(r"a (\w+) (\w+) on an? \w+ \w+ (left of|right of|above|below)"
                                 r" a (\w+) (\w+) on an? \w+ \w+", caption)
            a, b = ([t for t in things if t["noun"] == found[k]][0] for k in (2, 5))
            assert GAPS[found[3]](a["box"], b["box"])
            assert (a["size"], b["size"]) == (found[1], found[4])
