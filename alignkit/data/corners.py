"""Composed pictures of a few things, each in a corner of its own, of which one is named.

The named thing stands on a plate whose colour the caption tells; the others stand on purple
plates, of which no caption speaks. So what every part of a picture shows is known, and most
of it is in no caption. Every result on them is labelled 'composed'.
"""

import hashlib
import random
from collections.abc import Sequence
from functools import partial

import torch

from alignkit.data.columns import BY_PROVENANCE, Lazy, digest
from alignkit.data.corpora import choose
from alignkit.data.emoji import sources_hash
from alignkit.data.fetch import asset
from alignkit.data.objects import (
    CANVAS, Placed, by_caption, draw_objects, plate_caption,
)  # fmt: skip
from alignkit.data.pairs import Pairs, Provenance
from alignkit.data.scenes import COLOURS, NOUNS, PASTELS, SHAPES

RECIPE = "corners 1"
UNNAMED = "purple"  # the plates of which no caption speaks


def corners(each: int = 24, *, nouns: Sequence[str] = tuple(NOUNS), corpus_seed: int = 0,
            size: int = 2 * CANVAS) -> Pairs:
    """`each` pictures of every one of the `nouns` (of `scenes`; all 64 by default), beside one
    to three others of them.

    Columns: `image` (Lazy, RGB of size × size), `text` ("a dog on a blue disc"); for the four
    corners, row by row, `nouns` [n, 4] (long, −1 where there is nothing) and `boxes` [n, 4, 4]
    (x0, y0, x1, y1 of the plate as parts of the picture). Labels `noun`, `colour`, `shape` and
    `corner` of what is named. Rows of one caption are one item.

    Raises ValueError for a number out of range, or fewer than four nouns.
    """
    if each < 1 or size < 32:
        raise ValueError(f"each must be at least 1 and size at least 32, got {each} and {size}")
    if len(nouns := choose(nouns, NOUNS, "noun")) < 4:
        raise ValueError(f"nouns: four at least, got {len(nouns)}")
    made = [_composed(random.Random(f"{corpus_seed} {noun} {k}"), noun, nouns)
            for k in range(each) for noun in nouns]
    names = {"noun": list(NOUNS), "colour": list(COLOURS), "shape": list(SHAPES)}
    first = [placed[0] for _, placed in made]
    texts = [plate_caption(t.colour, t.shape, t.noun) for t in first]
    there, boxes = torch.full((len(made), 4), -1), torch.zeros(len(made), 4, 4)
    for row, (_, placed) in enumerate(made):
        for t in placed:
            there[row, _corner(t)] = names["noun"].index(t.noun)
            boxes[row, _corner(t)] = torch.tensor(
                [t.x, t.y, t.x + t.side, t.y + t.side]) / CANVAS
    image = Lazy([(background, tuple(map(tuple, placed))) for background, placed in made],
                 partial(draw_objects, folder=asset("openmoji") / "svg", size=size),
                 version=BY_PROVENANCE)
    hash_ = hashlib.sha256(digest(image).encode() + sources_hash(
        ["openmoji"], f"{RECIPE} {each} {corpus_seed} {size}").encode())
    labels = {name: torch.tensor([known.index(getattr(t, name)) for t in first])
              for name, known in names.items()}
    return by_caption(Pairs.make(
        {"image": image, "text": texts},
        ids=[f"corners {corpus_seed} {row}" for row in range(len(made))],
        labels=labels | {"corner": torch.tensor([*map(_corner, first)])},
        label_names=names | {"corner": ["top left", "top right", "bottom left", "bottom right"]},
        provenance=Provenance("corners", "composed", "CC BY-SA 4.0 (drawings: OpenMoji)",
                              "OpenMoji 17.0.0, placed by alignkit", RECIPE,
                              hash_.hexdigest()),
    )).with_features(nouns=there, boxes=boxes)  # fmt: skip


def _corner(thing: Placed) -> int:
    half = CANVAS / 2
    return 2 * int(thing.y >= half) + int(thing.x >= half)


def _composed(draw: random.Random, noun: str, nouns: Sequence[str]) -> tuple[str, list[Placed]]:
    """A background, and the named thing first."""
    others = draw.sample([n for n in nouns if n != noun], draw.randint(1, 3))
    free, placed = draw.sample(range(4), 4), []
    for name, corner in zip([noun, *others], free):
        side = draw.uniform(21, 28)
        x, y = (CANVAS / 2 * at + draw.uniform(0, CANVAS / 2 - side)
                for at in (corner % 2, corner // 2))
        colour = UNNAMED if placed else draw.choice([c for c in COLOURS if c != UNNAMED])
        placed.append(Placed(name, x, y, side, draw.uniform(-10, 10), colour,
                             draw.choice(SHAPES)))
    return draw.choice(PASTELS), placed
