"""Concepts: things that four sets of emoji draw and CLDR describes in several keywords.

A concept is seen in several views (one drawing by each hand) and told in several captions
(its keywords), each of which says something new. Papers that need either share this
selection, so that the drawings are encoded once.
"""

import random
from dataclasses import replace

import torch

from alignkit.data.columns import take
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
