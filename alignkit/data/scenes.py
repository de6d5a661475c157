"""Composed scenes: a few emoji on coloured plates, with everything about them known.

Each object stands on a plate, and the caption names the plate's colour and shape, so
that the attributes in a caption are true by construction, whatever the drawing's own
colours are. Every result on them is labelled 'composed'.
"""

import hashlib
import io
import random
import re
from functools import cache, partial
from itertools import pairwise, permutations
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from alignkit.data.columns import BY_PROVENANCE, Lazy, Tokens, digest
from alignkit.data.emoji import sources_hash
from alignkit.data.fetch import asset
from alignkit.data.pairs import Pairs, Provenance

RECIPE = "scenes 1"
NOUNS = {  # noun: OpenMoji file; drawings that show one whole thing and no other
    "dog": "1F415", "cat": "1F408", "horse": "1F40E", "cow": "1F404", "pig": "1F416",
    "rabbit": "1F407", "elephant": "1F418", "camel": "1F42A", "fish": "1F41F",
    "turtle": "1F422", "snail": "1F40C", "butterfly": "1F98B", "bee": "1F41D",
    "duck": "1F986", "owl": "1F989", "penguin": "1F427", "octopus": "1F419",
    "whale": "1F433", "crab": "1F980", "mouse": "1F401", "hedgehog": "1F994",
    "squirrel": "1F43F", "snake": "1F40D", "giraffe": "1F992", "apple": "1F34E",
    "banana": "1F34C", "strawberry": "1F353", "pineapple": "1F34D", "lemon": "1F34B",
    "pear": "1F350", "carrot": "1F955", "tomato": "1F345", "mushroom": "1F344",
    "hamburger": "1F354", "cake": "1F382", "doughnut": "1F369", "pretzel": "1F968",
    "pizza": "1F355", "car": "1F697", "bus": "1F68C", "bicycle": "1F6B2",
    "train": "1F682", "tractor": "1F69C", "airplane": "2708", "helicopter": "1F681",
    "sailboat": "26F5", "rocket": "1F680", "book": "1F4D5", "key": "1F511",
    "umbrella": "2602", "clock": "23F0", "camera": "1F4F7", "guitar": "1F3B8",
    "hammer": "1F528", "chair": "1FA91", "telephone": "260E", "balloon": "1F388",
    "kite": "1FA81", "hat": "1F3A9", "house": "1F3E0", "cactus": "1F335",
    "bell": "1F514", "crown": "1F451", "anchor": "2693",
}  # fmt: skip
COLOURS = {"red": "#e5484d", "orange": "#f5902e", "yellow": "#ffd84a",
           "green": "#4caf50", "blue": "#3f8efc", "purple": "#9b59d0"}  # fmt: skip
SHAPES = ("disc", "square")
SIZES = {"small": 52, "large": 84}  # side of the plate on a canvas of 224
RELATIONS = ("left of", "right of", "above", "below")
PASTELS = ("#fdf6e3", "#eef7ff", "#f1f8e9", "#fff0f3", "#f3f0ff", "#f5f5f5")
CANVAS, MARGIN, MOST_LARGE = 224, 4, 2


class Thing(NamedTuple):
    """One object of a scene; x, y: the upper left corner of its plate, of 224."""

    noun: str
    size: str
    colour: str
    shape: str
    x: int
    y: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        side = SIZES[self.size]
        return self.x, self.y, self.x + side, self.y + side

    def __str__(self) -> str:
        article = "an" if self.colour == "orange" else "a"
        return f"a {self.size} {self.noun} on {article} {self.colour} {self.shape}"


def scenes(n: int = 2000, *, corpus_seed: int = 0, size: int = 224) -> Pairs:
    """`n` scenes of 2–5 different objects without overlap, drawn from OpenMoji.

    Columns: `image` (Lazy, RGB of size × size), `text` (two of the objects and how they
    stand: "a small dog on a blue disc left of a large bell on an orange square"),
    `text_long` (a sentence an object, and how each stands to the next). Label `count`:
    the number of objects. `group`: scenes of the same set of nouns stay together.

    Tables, whose `item` is the scene's `pairs.item`, so that they hold after `select`:

    - objects: item, noun, size, colour, shape [m] (long), box [m, 4] (x0, y0, x1, y1 of
      the plate in pixels);
    - relations: item, subject, relation, object [k] (long); subject and object are rows
      of objects. Each ordered pair has every relation in which the boxes are apart;
    - vocabulary: the nouns; names: what the numbers of size, colour, shape and relation
      stand for.

    The first scenes of a larger `n` are those of a smaller one. Raises ValueError for a
    number out of range.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 scene, got {n}")
    if size < 32:
        raise ValueError(f"size must be at least 32 pixels, got {size}")
    made = [_compose(random.Random(f"{corpus_seed} {row}")) for row in range(n)]
    sets: dict[frozenset, int] = {}
    group = [sets.setdefault(frozenset(thing.noun for thing in things), len(sets))
             for _, things in made]  # fmt: skip
    sources = [(background, tuple(map(tuple, things))) for background, things in made]
    image = Lazy(sources,
                 partial(draw_scene, folder=asset("openmoji") / "svg", size=size),
                 version=BY_PROVENANCE)
    hash_ = hashlib.sha256(digest(image).encode() + sources_hash(
        ["openmoji"], f"{RECIPE} {n} {corpus_seed} {size}").encode())
    return Pairs.make(
        {"image": image,
         "text": [f"{a} {_relation(a, b)} {b}" for _, (a, b, *_) in made],
         "text_long": [_describe(things) for _, things in made]},
        ids=[f"scene {row}" for row in range(n)],
        group=group,
        labels={"count": torch.tensor([len(things) - 2 for _, things in made])},
        label_names={"count": ["2", "3", "4", "5"]},
        tables=_tables([things for _, things in made], size),
        provenance=Provenance("scenes", "composed", "CC BY-SA 4.0 (drawings: OpenMoji)",
                              "OpenMoji 17.0.0, placed by alignkit", RECIPE,
                              hash_.hexdigest()),
    )  # fmt: skip


def things_of(pairs: Pairs, field: str) -> Tokens:
    """What the table `objects` says of each row's things, in its order: `field` noun, size,
    colour or shape as numbers [n, r] (long), or box [n, r, 4] in pixels.

    Raises ValueError where the pairs have no such table, or a row no thing in it.
    """
    objects = pairs.tables.get("objects")
    if not isinstance(objects, dict) or field not in objects or "item" not in objects:
        raise ValueError(f"pairs have no table 'objects' with item and {field!r}: those of "
                         "`scenes` have one; of others name the boxes yourself")
    rows_of: dict[int, list[int]] = {}
    for row, item in enumerate(objects["item"].tolist()):
        rows_of.setdefault(item, []).append(row)
    found = [rows_of.get(item, []) for item in pairs.item.tolist()]
    if not all(found):
        row = found.index([])
        raise ValueError(f"row {row} ({pairs.ids[row]}) has no thing in the table 'objects'")
    mask = (torch.arange(max(map(len, found)))
            < torch.tensor([len(rows) for rows in found])[:, None])
    column = objects[field]
    values = column.new_zeros(*mask.shape, *column.shape[1:])
    values[mask] = column[torch.tensor([row for rows in found for row in rows])]
    return Tokens(values, mask)


def boxes_of(pairs: Pairs, column: str = "image") -> Tokens:
    """The plates' boxes [n, r, 4] as parts of the pictures' width and height; all pictures
    have the size of the first. Raises as `things_of`."""
    values, mask = things_of(pairs, "box")
    width, height = pairs[column][0].size
    return Tokens(values / torch.tensor([width, height, width, height]), mask)


def captions_of(pairs: Pairs) -> list[list[str]]:
    """For each row of `scenes` a caption of every two things in either order, made as
    `text` is of the first two."""
    made = [[Thing(*thing) for thing in things] for _, things in pairs["image"].sources]
    return [[f"{a} {_relation(a, b)} {b}" for a, b in permutations(things, 2)]
            for things in made]


def draw_scene(scene: tuple[str, tuple], folder: Path, size: int) -> Image.Image:
    """Draw (background, things) as an RGB picture of size × size."""
    import resvg_py

    background, things = scene
    parts = [f'<rect width="{CANVAS}" height="{CANVAS}" fill="{background}"/>']
    for thing in (Thing(*t) for t in things):
        side = SIZES[thing.size]
        corner = side // 2 if thing.shape == "disc" else 4
        parts.append(
            f'<rect x="{thing.x}" y="{thing.y}" width="{side}" height="{side}" '
            f'rx="{corner}" fill="{COLOURS[thing.colour]}"/>'
        )
        inner = 0.95 * side  # of 72 units; the drawing has a margin of its own
        shift = (side - inner) / 2
        parts.append(
            f'<g transform="translate({thing.x + shift} {thing.y + shift}) '
            f'scale({inner / 72})">{drawing(folder, NOUNS[thing.noun])}</g>'
        )
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {CANVAS} {CANVAS}">'
           f'{"".join(parts)}</svg>')  # fmt: skip
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


@cache
def drawing(folder: Path, code: str) -> str:
    """What stands inside the <svg> of an OpenMoji file, of 72 × 72 units."""
    path = folder / f"{code}.svg"
    if not path.is_file():
        path = folder / f"{code}-FE0F.svg"
    return re.search(r"<svg[^>]*>(.*)</svg>", path.read_text("utf-8"), re.DOTALL)[1]


def _compose(draw: random.Random) -> tuple[str, list[Thing]]:
    """A background and 2–5 things with different nouns, their plates apart."""
    nouns = draw.sample(list(NOUNS), draw.randint(2, 5))
    sizes = [draw.choice(list(SIZES)) for _ in nouns]
    while sizes.count("large") > MOST_LARGE:  # more would not fit
        sizes[draw.randrange(len(sizes))] = "small"
    looks = [(draw.choice(list(COLOURS)), draw.choice(SHAPES)) for _ in nouns]
    background = draw.choice(PASTELS)
    while True:
        things: list[Thing] = []
        for noun, size, look in zip(nouns, sizes, looks, strict=True):
            high = CANVAS - MARGIN - SIZES[size]
            for _ in range(50):
                thing = Thing(noun, size, *look, draw.randint(MARGIN, high),
                              draw.randint(MARGIN, high))
                if all(max(_gaps(thing, other)) >= MARGIN for other in things):
                    things.append(thing)
                    break
        if len(things) == len(nouns):
            return background, things


def _gaps(a: Thing, b: Thing) -> tuple[int, int, int, int]:
    """How far apart the plates are when a is left of, right of, above, below b."""
    ax0, ay0, ax1, ay1 = a.box
    bx0, by0, bx1, by1 = b.box
    return bx0 - ax1, ax0 - bx1, by0 - ay1, ay0 - by1


def _relation(a: Thing, b: Thing) -> str:
    """The relation in which a and b are farthest apart."""
    gaps = _gaps(a, b)
    return RELATIONS[gaps.index(max(gaps))]


def _describe(things: list[Thing]) -> str:
    sentences = [f"There is {thing}." for thing in things]
    sentences += [f"The {a.noun} is {_relation(a, b)} the {b.noun}."
                  for a, b in pairwise(things)]  # fmt: skip
    return " ".join(sentences)


def _tables(made: list[list[Thing]], size: int) -> dict[str, object]:
    names = {"size": list(SIZES), "colour": list(COLOURS), "shape": list(SHAPES),
             "relation": list(RELATIONS)}  # fmt: skip
    nouns = list(NOUNS)
    objects, relations = [], []
    for item, things in enumerate(made):
        first = len(objects)
        for thing in things:
            objects.append((item, nouns.index(thing.noun), *(
                names[field].index(getattr(thing, field))
                for field in ("size", "colour", "shape"))))  # fmt: skip
        for (i, a), (j, b) in permutations(enumerate(things, first), 2):
            relations += [(item, i, relation, j)
                          for relation, gap in enumerate(_gaps(a, b)) if gap >= 0]
    boxes = torch.tensor([t.box for things in made for t in things]) * (size / CANVAS)
    return {
        "objects": {**_columns(objects, "item noun size colour shape"), "box": boxes},
        "relations": _columns(relations, "item subject relation object"),
        "vocabulary": nouns,
        "names": names,
    }


def _columns(rows: list[tuple], fields: str) -> dict[str, Tensor]:
    return dict(zip(fields.split(), torch.tensor(rows).T.contiguous(), strict=True))
