"""Questions and statements about scenes, generated from the tables of `scenes`.

Templates ask only what the tables hold, so that every answer is true by construction, and
answers are balanced: who knows the kind of question and nothing of the picture is right
as often as `words_alone` says. Every result on them is labelled 'generated'.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import NamedTuple

import torch

from alignkit.data.pairs import Pairs
from alignkit.data.scenes import COLOURS, NOUNS, RELATIONS, SHAPES, SIZES, things_of

TRUTHS = ("true", "false", "undecidable")
# Said of things in statements; no drawing shows it and no table holds it.
HIDDEN = ("borrowed", "cheap", "famous", "fragile", "heavy", "lost", "new", "noisy")


class Seen(NamedTuple):
    """A thing of a scene, in words."""

    noun: str
    size: str
    colour: str
    shape: str


class Statement(NamedTuple):
    """"there is a [hidden] [size] NOUN [on a [colour] shape]": what is '' is not said; of a
    plate whose shape is not said "plate" is. hidden: one of `HIDDEN`."""

    noun: str
    size: str = ""
    colour: str = ""
    shape: str = ""
    hidden: str = ""

    def __str__(self) -> str:
        plate = ""
        if self.colour or self.shape:
            plate = " on " + _with_article(self.colour, self.shape or "plate")
        return f"there is {_with_article(self.hidden, self.size, self.noun)}{plate}"


def truth(statement: Statement, things: Sequence[Seen]) -> str:
    """Whether a statement is true of a scene with these things: one of `TRUTHS`. It is
    false if anything it says is, undecidable if only what is hidden is left open."""
    for thing in things:
        if thing.noun == statement.noun:
            said = zip(statement[1:4], thing[1:], strict=True)
            if any(a and a != b for a, b in said):
                return "false"
            return "undecidable" if statement.hidden else "true"
    return "false"


class _Scene(NamedTuple):
    things: list[Seen]
    relations: set[tuple[str, str, str]]  # subject, relation, object

    def absent(self, draw: random.Random) -> str:
        """A noun that is not there."""
        there = {thing.noun for thing in self.things}
        return draw.choice([noun for noun in NOUNS if noun not in there])


def _exists(scene: _Scene, draw: random.Random) -> Iterator[tuple[str, str]]:
    for thing in scene.things:
        yield f"is there {_with_article(thing.noun)}", "yes"
        yield f"is there {_with_article(scene.absent(draw))}", "no"


def _noun(scene: _Scene, draw: random.Random) -> Iterator[tuple[str, str]]:
    looks = [thing[2:] for thing in scene.things]
    for thing in scene.things:
        if looks.count(thing[2:]) == 1:  # else there are two right answers
            yield f"what is on the {thing.colour} {thing.shape}", thing.noun


def _relation(scene: _Scene, draw: random.Random) -> Iterator[tuple[str, str]]:
    for a, b in permutations((thing.noun for thing in scene.things), 2):
        relation = draw.choice(RELATIONS)
        yield (f"is the {a} {relation} the {b}",
               "yes" if (a, relation, b) in scene.relations else "no")


Asks = Callable[[_Scene, random.Random], Iterator[tuple[str, str]]]
KINDS: dict[str, tuple[tuple[str, ...], Asks]] = {  # kind: its answers, what it asks a scene
    "colour": (tuple(COLOURS), lambda scene, draw: (
        (f"what colour is the {t.noun} on", t.colour) for t in scene.things)),
    "shape": (SHAPES, lambda scene, draw: (
        (f"what shape is the {t.noun} on", t.shape) for t in scene.things)),
    "size": (tuple(SIZES), lambda scene, draw: (
        (f"how large is the {t.noun}", t.size) for t in scene.things)),
    "noun": (tuple(NOUNS), _noun),
    "exists": (("no", "yes"), _exists),
    "count": (("2", "3", "4", "5"), lambda scene, draw: iter(
        [("how many things are there", str(len(scene.things)))])),
    "relation": (("no", "yes"), _relation),
}
ANSWERS = list(dict.fromkeys(a for answers, _ in KINDS.values() for a in answers))


def questions(pairs: Pairs, each: int | Mapping[str, int], seed: int = 0) -> Pairs:
    """Rows of a scene, a question about it, and its answer, in an order drawn from `seed`.

    `pairs` with its rows repeated and the column `question`; labels `answer` (into
    `ANSWERS`) and `kind` (into `KINDS`). A scene keeps its item and group, so that a split
    by group keeps all its questions on one side. Of each kind any answer occurs as often
    as any other, but for one question.

    each: how many questions of every kind, or {kind: how many}.

    Raises ValueError for an unknown kind, a number below 1, pairs without the tables of
    `scenes`, or too few scenes for so many questions (naming the kind and the answer).

    Example:
        >>> asked = questions(scenes(200), {"colour": 60, "exists": 40}, seed=0)
        >>> len(asked), words_alone({"colour": 60, "exists": 40})
        (100, 0.3)
    """
    number = dict.fromkeys(KINDS, each) if isinstance(each, int) else dict(each)
    for kind, n in number.items():
        if kind not in KINDS or n < 1:
            raise ValueError(f"each: a kind is one of {', '.join(KINDS)} and asked at least "
                             f"once, got {kind!r}: {n}")
    draw = random.Random(f"questions {seed}")
    known = _scenes(pairs)
    found = []
    for kind, n in number.items():
        answers, asks = KINDS[kind]
        ready = [(row, text, answer, kind) for row, scene in enumerate(known)
                 for text, answer in asks(scene, draw)]
        found += _balanced(ready, answers, n, draw, f"each[{kind!r}]")
    draw.shuffle(found)
    rows, texts, answers, kinds = zip(*found, strict=True)
    return _rows(pairs, rows, "question", texts,
                 {"answer": (answers, ANSWERS), "kind": (kinds, list(KINDS))})


# Of a hundred mixed questions, of each kind; no relations, of which the shipped fusion models
# were never asked.
MIX = {"colour": 25, "noun": 25, "shape": 13, "size": 12, "exists": 13, "count": 12}


def asked(pairs: Pairs, n: int, seed: int = 0) -> Pairs:
    """About n `questions` of all kinds in `MIX`, in the column `text`; of few questions or
    scenes none asks for a noun, there are 64 of these. Of pictures nothing is kept but them,
    their regions and boxes."""
    few = n < 60 or len(pairs) < 60
    each = {kind: max(1, n * share // 100) for kind, share in MIX.items()
            if not (few and kind == "noun")}
    made = questions(pairs.only("image", "image_regions", "image_boxes"), each, seed)
    return made.with_features(text=made["question"])


def every_question(pairs: Pairs, kind: str, seed: int = 0) -> Pairs:
    """Every question of a kind that the scenes can be asked, in the order of the scenes, as
    `questions` has them; answers occur as often as they come. seed: of what is drawn, as the
    absent things of `exists` are.

    Raises ValueError for an unknown kind or pairs without the tables of `scenes`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is one of {', '.join(KINDS)}, got {kind!r}")
    draw = random.Random(f"every question {seed}")
    found = [(row, text, answer) for row, scene in enumerate(_scenes(pairs))
             for text, answer in KINDS[kind][1](scene, draw)]
    rows, texts, answers = zip(*found, strict=True)
    return _rows(pairs, rows, "question", texts, {
        "answer": (answers, ANSWERS), "kind": ([kind] * len(rows), list(KINDS))})


def words_alone(each: Mapping[str, int]) -> float:
    """The share of right answers of who knows a question's kind and no picture: what
    questions drawn with `each` give to words alone, but for chance."""
    return sum(n / len(KINDS[kind][0]) for kind, n in each.items()) / sum(each.values())


def statements(pairs: Pairs, each: int, seed: int = 0) -> Pairs:
    """Rows of a scene and a `Statement` about it: `pairs` with its rows repeated, the
    column `statement` and the label `truth` (into `TRUTHS`), `each` of every one.

    Which attributes a statement names tells nothing of its truth. The hidden word tells
    something: with it a statement is undecidable, or false (half of the false ones have
    one); without it true or false. So words alone are right for 2 in 3.

    Raises ValueError for pairs without the tables of `scenes`, or too few scenes.
    """
    draw, known = random.Random(f"statements {seed}"), _scenes(pairs)
    found = []
    for wanted in TRUTHS:
        ready = [(row, str(_statement(wanted, thing, scene, draw)), wanted)
                 for row, scene in enumerate(known) for thing in scene.things]
        found += _balanced(ready, (wanted,), each, draw, "each")
    draw.shuffle(found)
    rows, texts, truths = zip(*found, strict=True)
    return _rows(pairs, rows, "statement", texts, {"truth": (truths, list(TRUTHS))})


def _statement(wanted: str, thing: Seen, scene: _Scene, draw: random.Random) -> Statement:
    size, plate = draw.choice([(False, False), (True, False), (False, True), (True, True)])
    said = {"noun": thing.noun}
    if size:
        said["size"] = thing.size
    if plate:
        said |= {"colour": thing.colour, "shape": thing.shape}
    if wanted == "false":
        wrong = draw.choice([field for field in said if field != "noun"] or ["noun"])
        if wrong == "noun" or draw.random() < 0.5:
            said["noun"] = scene.absent(draw)
        else:
            known = {"size": SIZES, "colour": COLOURS, "shape": SHAPES}[wrong]
            said[wrong] = draw.choice([x for x in known if x != said[wrong]])
    if wanted == "undecidable" or wanted == "false" and draw.random() < 0.5:
        said["hidden"] = draw.choice(HIDDEN)
    return Statement(**said)


def words() -> list[str]:
    """Every word of the captions of `scenes`, of questions and statements, in order of the
    alphabet: the vocabulary of a model that reads no others."""
    made = ["what is colour shape on how large many things are there the a an plate .",
            *NOUNS, *COLOURS, *SHAPES, *SIZES, *RELATIONS, *HIDDEN]
    return sorted({word for text in made for word in text.split()})


def seen_in(pairs: Pairs) -> list[list[Seen]]:
    """Each row's things in words, in the order of the table; what `truth` asks for."""
    return [scene.things for scene in _scenes(pairs)]


def _scenes(pairs: Pairs) -> list[_Scene]:
    """Each row's things and relations in words."""
    names = {**pairs.tables.get("names", {}), "noun": pairs.tables.get("vocabulary", [])}
    columns = {field: things_of(pairs, field) for field in Seen._fields}
    by_item: dict[int, set] = {}
    table = pairs.tables["objects"]["noun"].tolist()
    related = pairs.tables["relations"]
    for item, a, relation, b in zip(*(related[k].tolist() for k in (
            "item", "subject", "relation", "object")), strict=True):
        by_item.setdefault(item, set()).add(
            (names["noun"][table[a]], RELATIONS[relation], names["noun"][table[b]]))
    found = []
    for row, item in enumerate(pairs.item.tolist()):
        real = columns["noun"].mask[row]
        values = [[names[field][i] for i in columns[field].values[row, real].tolist()]
                  for field in Seen._fields]
        found.append(_Scene([Seen(*x) for x in zip(*values, strict=True)],
                            by_item.get(item, set())))
    return found


def _balanced(ready: list[tuple], answers: Sequence[str], n: int, draw: random.Random,
              name: str) -> list[tuple]:
    """n of them (row, text, answer, …), each answer as often as any other, but for one.
    name: of n in the message where there are too few."""
    order = draw.sample(list(answers), len(answers))
    found = []
    for place, answer in enumerate(order):
        mine = [entry for entry in ready if entry[2] == answer]
        wanted = n // len(order) + (place < n % len(order))
        if wanted > len(mine):
            raise ValueError(f"{name}: {n} are too many for these scenes: of {answer!r} "
                             f"there are {len(mine)}, {wanted} are needed")
        found += draw.sample(mine, wanted)
    return found


def _rows(pairs: Pairs, rows: Sequence[int], column: str, texts: Sequence[str],
          labels: dict[str, tuple[Sequence[str], list[str]]]) -> Pairs:
    """The rows `rows` with a text each, and labels: name -> (values, what they are of)."""
    made = pairs.select(list(rows)).with_columns(**{column: list(texts)})
    return replace(
        made, ids=[f"{name} {column} {k}" for k, name in enumerate(made.ids)],
        labels={**made.labels, **{name: torch.tensor([known.index(v) for v in values])
                                  for name, (values, known) in labels.items()}},
        label_names={**made.label_names, **{k: known for k, (_, known) in labels.items()}},
        provenance=replace(made.provenance, kind="generated"))


def _with_article(*words: str) -> str:
    """ "an orange disc" """
    said = " ".join(word for word in words if word)
    return f"an {said}" if re.match("[aeiou]", said) else f"a {said}"
