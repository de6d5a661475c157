"""Concepts: things that four sets of emoji draw and CLDR describes in several keywords.

A concept is seen in several views (one drawing by each hand) and told in several captions
(its keywords), each of which says something new. Papers that need either share this
selection, so that the drawings are encoded once.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from alignkit.data.columns import Lazy, take
from alignkit.data.emoji import emoji
from alignkit.data.pairs import Pairs
from alignkit.data.styles import STYLES

VIEWS = ("image", *(f"image_{style}" for style in list(STYLES)[1:]))  # first: OpenMoji
SEPARATOR = ", "


def concepts(pairs: Pairs, least: int = 6) -> Pairs:
    """The rows of `pairs` that are concepts: one a group, drawn in every style of `STYLES`
    and with at least `least` English keywords (597 of `emoji()` with six).

    Columns beside those of `pairs`: the drawings of the other styles (`VIEWS` names all
    four) and `keywords`, "tail, animal, pet": all that CLDR has, in an order drawn once
    for each concept, where CLDR's is alphabetical.

    Args:
        pairs: `emoji()`, perhaps with features, which are kept.
        least: keywords, at least 1.

    Raises: ValueError for a `least` that no concept has, or pairs that are not of
        `emoji()`; FetchError, which says what to install or bring.
    """
    if least < 1:
        raise ValueError(f"least must be at least 1 keyword, got {least}")
    every = emoji(style=list(STYLES), keywords="en")
    at = {name: row for row, name in enumerate(every.ids)}
    chosen, drawn, said, groups = [], [], [], set()
    for row, code in enumerate(pairs.ids):
        views = [at.get(f"{code} {style}") for style in STYLES]
        if None in views or (group := int(every.group[views[0]])) in groups:
            continue
        words = [word for word in every["keywords"][views[0]].split(SEPARATOR) if word]
        if len(words) >= least:
            random.Random(code).shuffle(words)
            groups.add(group)
            chosen.append(row)
            drawn.append(views)
            said.append(SEPARATOR.join(words))
    if not chosen:
        raise ValueError(f"no row of pairs (ids such as {pairs.ids[0]!r}) is a concept with "
                         f"{least} keywords: give emoji(), and at most 16 keywords")
    images = {name: take(every["image"], torch.tensor(rows))
              for name, rows in zip(VIEWS[1:], list(zip(*drawn))[1:], strict=True)}
    found = pairs.select(chosen).with_columns(**images, keywords=said)
    return replace(found, provenance=every.provenance.derive(f"concepts {least}"))


def one_view_a_row(pairs: Pairs, ends: Sequence[str] = ()) -> Pairs:
    """`concepts()` with a row for each drawing, all of the first hand, then all of the next;
    the drawings of a concept are one item and have its text.

    Args:
        ends: of features to take along: "features" takes `image_features`,
            `image_noto_features` and so on into `image_features`, and `text_features`.

    Raises: KeyError for features that are not there.
    """
    hands = len(VIEWS)
    pictures = Lazy([source for view in VIEWS for source in pairs[view].sources],
                    pairs["image"].read, version=pairs["image"].version)
    columns = {"image": pictures, "text": pairs["text"] * hands}
    for end in ends:
        columns[f"image_{end}"] = torch.cat([pairs[f"{view}_{end}"] for view in VIEWS])
        columns[f"text_{end}"] = pairs[f"text_{end}"].repeat(hands, 1)
    return Pairs.make(columns, ids=[f"{i} {view}" for view in VIEWS for i in pairs.ids],
                      item=pairs.group.repeat(hands),
                      provenance=pairs.provenance.derive("one view a row"))


def phrases() -> list[str]:
    """The names of all emoji and their English keywords, each once, sorted; those without
    a letter ("!?") are left out."""
    every = emoji(keywords="en")
    words = {word for said in every["keywords"] for word in said.split(SEPARATOR)}
    return sorted(text for text in words | {*every["text"]} if any(map(str.isalpha, text)))
