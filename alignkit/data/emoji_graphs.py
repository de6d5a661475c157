"""Emoji as entities of a knowledge base: mentions to be linked, and two graphs to be
aligned.

An entity is a thing that OpenMoji and Noto draw and that CLDR describes in keywords. One
hand's drawing and the words stand in the knowledge base; the other hand's drawing comes
with a sentence that is generated, or with keywords and a graph in another language.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from alignkit.data.columns import take
from alignkit.data.emoji import emoji
from alignkit.data.pairs import Pairs

SEPARATOR = ", "
SENTENCES = (
    "somebody sent this when we spoke of {word}",
    "with it stood a single word: {word}",
    "she posted it under {word} last night",
    "a message about {word} came with this picture",
    "he always answers {word} with this one",
    "what we saw there had to do with {word}",
)


class _Things(NamedTuple):
    """Rows of `every`, one a thing, in OpenMoji's hand and in Noto's, and its keywords."""

    every: Pairs
    ours: list[int]
    theirs: list[int]
    words: dict[str, list[list[str]]]  # by language


def mentions(least: int = 6, shared: tuple[int, int] = (3, 15), each: int = 3,
             limit: int | None = None) -> Pairs:
    """Mentions of 549 emoji, each told by an ambiguous word and a drawing: 1,224 rows.

    Columns: of the entity `image` (OpenMoji's drawing) and `text` (its name and all its
    keywords); of the mention `mention_image` (Noto's drawing) and `mention_text`, a
    sentence generated about `word`, a keyword that several entities have and that does
    not stand in this one's name. item and group are the entity, whose mentions share
    their drawings; first rows of items are the knowledge base. Labels: `subgroup` (of
    Unicode) and `candidates`, how many emoji with enough keywords have the word; a few of
    them have no mention and are not in the knowledge base (for 11 mentions of 1,224 fewer
    than three are in it).

    Args:
        least: keywords of an entity, at least 1.
        shared: how many entities, at least and at most, have a word that is mentioned.
        each: mentions of an entity at most, of different words.
        limit: only so many entities, evenly from the first to the last.

    Raises: ValueError for numbers that leave no entity; FetchError, which says what to
        install or bring.
    """
    if least < 1 or each < 1 or not 1 <= shared[0] <= shared[1]:
        raise ValueError("least, each and shared must be 1 or more and shared in order, got "
                         f"{least}, {each} and {shared}")
    things = _things(least, ("en",))
    names = [things.every["text"][row] for row in things.ours]
    words = things.words["en"]
    count = Counter(word.lower() for said in words for word in {*said})
    chosen = []
    for thing, said in enumerate(words):
        fit = [word for word in said if shared[0] <= count[word.lower()] <= shared[1]
               and word.lower() not in names[thing].lower() and len(word) > 2]
        drawn = random.Random(things.every.ids[things.ours[thing]])
        if fit:
            chosen.append((thing, drawn.sample(fit, min(each, len(fit)))))
    if not chosen:
        raise ValueError(f"no emoji has {least} keywords of which {shared[0]} to {shared[1]} "
                         "have one: take fewer keywords, or a wider range")
    if limit is not None:
        chosen = [chosen[i] for i in torch.linspace(0, len(chosen) - 1, limit).long()]
    rows = [(thing, word) for thing, said in chosen for word in said]
    ours = [things.ours[thing] for thing, _ in rows]
    theirs = [things.theirs[thing] for thing, _ in rows]
    order = {thing: k for k, (thing, _) in enumerate(chosen)}
    every, subgroups = things.every, things.every.label_names["subgroup"]
    return Pairs.make(
        {"image": take(every["image"], torch.tensor(ours)),
         "text": [f"{names[thing]}: {SEPARATOR.join(words[thing])}" for thing, _ in rows],
         "mention_image": take(every["image"], torch.tensor(theirs)),
         "mention_text": [SENTENCES[k % len(SENTENCES)].format(word=word)
                          for k, (_, word) in enumerate(rows)],
         "word": [word for _, word in rows]},
        ids=[f"{every.ids[row].split()[0]} {word}" for row, (_, word) in zip(ours, rows)],
        item=[order[thing] for thing, _ in rows],
        labels={"subgroup": every.labels["subgroup"][torch.tensor(ours)],
                "candidates": torch.tensor([count[word.lower()] for _, word in rows])},
        label_names={"subgroup": subgroups},
        provenance=every.provenance.derive(f"mentions 1 {least} {shared} {each} {limit}"),
    )  # fmt: skip


def emoji_graphs(other: str = "de", least: int = 3, most: int = 30,
                 limit: int | None = None) -> Pairs:
    """Two graphs of the same emoji, a row for each: English keywords with OpenMoji's
    drawings, and another language's with Noto's.

    Columns: `image` and `text` (English keywords), `image_other` and `text_other`. Two
    emoji are joined in a language where they share a keyword that at most `most` of them
    have. Tables `edges` and `edges_other` [2, e] (each edge in both directions) hold
    items, which are numbered as the rows are; `words` and `words_other` are the
    vocabularies, apart by language: "gorilla" of one is not that of the other. The
    training rows of a split are the seed links.

    Args:
        other: a language of `emoji`'s keywords. least: keywords in either language.
        most: emoji that a joining keyword may have: more would join them all.
        limit: only so many emoji, evenly from the first to the last; edges are theirs.

    Raises: ValueError for numbers below 1, or that leave no emoji; FetchError, which says
        what to install or bring.
    """
    if least < 1 or most < 2 or other == "en":
        raise ValueError("least must be 1, most 2 or more, and other another language than "
                         f"en, got {least}, {most} and {other!r}")
    things = _things(least, ("en", other))
    if not things.ours:
        raise ValueError(f"no emoji has {least} keywords in en and {other}")
    if limit is not None:
        things = _some(things, torch.linspace(0, len(things.ours) - 1, limit).long().tolist())
    every, tables = things.every, {}
    for end, said in zip(("", "_other"), things.words.values(), strict=True):
        tables[f"edges{end}"] = shared_word_edges(said, most)
        tables[f"words{end}"] = sorted({word.lower() for words in said for word in words})
    first, second = ([SEPARATOR.join(words) for words in said]
                     for said in things.words.values())
    return Pairs.make(
        {"image": take(every["image"], torch.tensor(things.ours)), "text": first,
         "image_other": take(every["image"], torch.tensor(things.theirs)),
         "text_other": second},
        ids=[every.ids[row].split()[0] for row in things.ours], tables=tables,
        provenance=every.provenance.derive(f"graphs 1 {other} {least} {most}"
                                         + f" {limit}" * (limit is not None)))


def shared_word_edges(said: Sequence[Sequence[str]], most: int) -> Tensor:
    """Edges [2, e] between rows that share a word, whatever its case, that at most `most`
    rows have; each in both directions, none twice, sorted."""
    having: dict[str, list[int]] = {}
    for row, words in enumerate(said):
        for word in {word.lower() for word in words}:
            having.setdefault(word, []).append(row)
    edges = {(a, b) for rows in having.values() if len(rows) <= most
             for a in rows for b in rows if a != b}
    return torch.tensor(sorted(edges), dtype=torch.long).reshape(-1, 2).T


def with_word_features(pairs: Pairs, most: int = 30, kept: int = 1000) -> Pairs:
    """Pairs of two graphs, as of `emoji_graphs`, with what their words say.

    A word that 2 to `most` entities of a graph have joins them: `text_relations` counts at
    each word how many it joins one with. `text_attributes` is 1 at the entity's more common
    words. Columns are the `kept` most frequent of either kind, of both graphs; no word of
    one is a word of the other. Also labels `node` and `node_other`, the rows' nodes, the
    table `nodes`, how many there are, and edges where there are none.
    """
    ends, features, tables = ("", "_other"), {}, {"nodes": (len(pairs), len(pairs))}
    said = {end: [{word.lower() for word in text.split(SEPARATOR) if word}
                  for text in pairs[f"text{end}"]] for end in ends}
    count = Counter((end, word) for end, rows in said.items() for words in rows
                    for word in sorted(words))
    joins = [word for word, n in count.most_common() if 2 <= n <= most][:kept]
    common = [word for word, n in count.most_common() if n > most][:kept]
    joined = torch.tensor([count[word] - 1.0 for word in joins])
    for end, rows in said.items():
        for kind, known in (("relations", joins), ("attributes", common)):
            features[f"text{end}_{kind}"] = torch.tensor(
                [[float(own == end and word in words) for own, word in known]
                 for words in rows]).reshape(len(rows), len(known))
        features[f"text{end}_relations"] *= joined
        name = f"edges{end}"
        tables[name] = pairs.tables.get(name, shared_word_edges([*map(sorted, rows)], most))
    labels = {f"node{end}": torch.arange(len(pairs)) for end in ends}
    pairs = pairs.with_features(**features)
    return replace(pairs, tables=pairs.tables | tables, labels=pairs.labels | labels)


def _some(things: _Things, at: Sequence[int]) -> _Things:
    """The things that stand at these places."""
    return _Things(things.every, [things.ours[k] for k in at], [things.theirs[k] for k in at],
                   {code: [said[k] for k in at] for code, said in things.words.items()})


def _things(least: int, languages: Sequence[str]) -> _Things:
    """One emoji a group, drawn by both hands, with at least `least` keywords in each of the
    languages."""
    every = emoji(style=["openmoji", "noto"], keywords=list(languages))
    columns = ["keywords", *(f"keywords_{code}" for code in languages[1:])]
    at = {name: row for row, name in enumerate(every.ids)}
    found, groups = _Things(every, [], [], {code: [] for code in languages}), set()
    for row, name in enumerate(every.ids):
        code, style = name.split()
        twin, group = at.get(f"{code} noto"), int(every.group[row])
        said = [[word for word in every[c][row].split(SEPARATOR) if word] for c in columns]
        if style != "openmoji" or twin is None or group in groups \
                or min(map(len, said)) < least:
            continue
        groups.add(group)
        found.ours.append(row)
        found.theirs.append(twin)
        for code, words in zip(languages, said, strict=True):
            found.words[code].append(words)
    return found
