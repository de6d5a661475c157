"""Composed pictures of one named thing: an emoji on a coloured plate, beside clutter.

The caption names the thing on the plate, and the plate or not; the clutter is never
named. So which pictures show the same noun is known, and a picture holds much that no
caption says. Every result on them is labelled 'composed'.
"""

import hashlib
import io
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from alignkit.data.columns import BY_PROVENANCE, Lazy, digest
from alignkit.data.corpora import choose
from alignkit.data.emoji import sources_hash
from alignkit.data.fetch import asset
from alignkit.data.pairs import Pairs, Provenance
from alignkit.data.scenes import COLOURS, NOUNS, PASTELS, SHAPES, drawing

RECIPE = "objects 1"
CANVAS = 64


class Placed(NamedTuple):
    """One drawing; x, y: its upper left corner, side: its size, of 64; turn: degrees.
    colour and shape of its plate, both empty for clutter."""

    noun: str
    x: float
    y: float
    side: float
    turn: float
    colour: str = ""
    shape: str = ""


def objects(each: int = 20, *, nouns: Sequence[str] = tuple(NOUNS), corpus_seed: int = 0,
            size: int = CANVAS) -> Pairs:
    """`each` pictures of every one of the `nouns` (of `scenes`; all 64 by default).

    Columns: `image` (Lazy, RGB of size × size), `text` ("a dog on a blue disc") and
    `text_short` ("a photo of a dog"). Labels `noun`, `colour` and `shape`. Beside the
    named thing stand none to three others of the nouns, smaller, without a plate.

    Raises ValueError for a number out of range, fewer than four nouns, or one that is
    unknown or given twice.
    """
    if each < 1 or size < 16:
        raise ValueError(f"each must be at least 1 and size at least 16, got {each} and "
                         f"{size}")
    if len(nouns := choose(nouns, NOUNS, "noun")) < 4:
        raise ValueError(f"nouns: four at least, got {len(nouns)}")
    made = [compose(random.Random(f"{corpus_seed} {noun} {k}"), noun, nouns)
            for k in range(each) for noun in nouns]
    things = [placed[-1] for _, placed in made]
    image = Lazy([(background, tuple(map(tuple, placed))) for background, placed in made],
                 partial(draw_objects, folder=asset("openmoji") / "svg", size=size),
                 version=BY_PROVENANCE)
    hash_ = hashlib.sha256(digest(image).encode() + sources_hash(
        ["openmoji"], f"{RECIPE} {each} {corpus_seed} {size}").encode())
    names = {"noun": list(NOUNS), "colour": list(COLOURS), "shape": list(SHAPES)}
    return Pairs.make(
        {"image": image, "text": [plate_caption(*t[-2:], t.noun) for t in things],
         "text_short": [short_caption(t.noun) for t in things]},
        ids=[f"object {corpus_seed} {row}" for row in range(len(made))],
        labels={name: torch.tensor([known.index(getattr(t, name)) for t in things])
                for name, known in names.items()},
        label_names=names,
        provenance=Provenance("objects", "composed", "CC BY-SA 4.0 (drawings: OpenMoji)",
                              "OpenMoji 17.0.0, placed by alignkit", RECIPE,
                              hash_.hexdigest()),
    )  # fmt: skip


def by_caption(pairs: Pairs) -> Pairs:
    """The same rows, of which those with one caption are one item and stay together."""
    known = sorted(set(pairs["text"]))
    item = torch.tensor([known.index(text) for text in pairs["text"]])
    return replace(pairs, item=item, group=item)


def short_caption(noun: str) -> str:
    """ "a photo of a dog" """
    return f"a photo of {_article(noun)} {noun}"


def plate_caption(colour: str, shape: str, noun: str) -> str:
    """ "a dog on a blue disc" """
    return f"{_article(noun)} {noun} on {_article(colour)} {colour} {shape}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def draw_objects(source: tuple[str, tuple], folder: Path, size: int) -> Image.Image:
    """Draw (background, placed things) as an RGB picture of size × size."""
    import resvg_py

    background, placed = source
    parts = [f'<rect width="{CANVAS}" height="{CANVAS}" fill="{background}"/>']
    for thing in (Placed(*p) for p in placed):
        half = thing.side / 2
        if thing.colour:
            corner = half if thing.shape == "disc" else 2
            parts.append(f'<rect x="{thing.x}" y="{thing.y}" width="{thing.side}" '
                         f'height="{thing.side}" rx="{corner}" '
                         f'fill="{COLOURS[thing.colour]}"/>')
        parts.append(
            f'<g transform="translate({thing.x + half} {thing.y + half}) '
            f'rotate({thing.turn}) scale({thing.side / 72}) translate(-36 -36)">'
            f'{drawing(folder, NOUNS[thing.noun])}</g>')
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {CANVAS} {CANVAS}">'
           f'{"".join(parts)}</svg>')  # fmt: skip
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


def compose(draw: random.Random, noun: str,
            nouns: Sequence[str]) -> tuple[str, list[Placed]]:
    """A background; clutter of `nouns` first, then the named thing on its plate, in front."""
    placed = []
    for other in draw.sample([n for n in nouns if n != noun], draw.randint(0, 3)):
        side = draw.uniform(16, 26)
        placed.append(Placed(other, draw.uniform(0, CANVAS - side),
                             draw.uniform(0, CANVAS - side), side, draw.uniform(-30, 30)))
    side = draw.uniform(42, 56)
    placed.append(Placed(noun, draw.uniform(0, CANVAS - side),
                         draw.uniform(0, CANVAS - side), side, draw.uniform(-10, 10),
                         draw.choice(list(COLOURS)), draw.choice(SHAPES)))
    return draw.choice(PASTELS), placed
