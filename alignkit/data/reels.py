"""Composed reels: a few frames show what the caption tells, the others something else.

A frame is a drawn picture of `data.objects`: one thing on a plate, which a caption names,
beside clutter, which none does. Frames of some things are put together to a reel, as shots
are to a film that a caption tells only a part of. Every result on them is labelled
'composed'.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import numpy as np
import torch
from torch import Tensor

from alignkit.data.columns import BY_PROVENANCE, Lazy, Tokens, digest, made_of, take
from alignkit.data.corpora import choose
from alignkit.data.emoji import sources_hash
from alignkit.data.fetch import asset
from alignkit.data.objects import CANVAS, compose, draw_objects, plate_caption
from alignkit.data.pairs import Pairs, Provenance, Splits
from alignkit.data.scenes import COLOURS, NOUNS, SHAPES

RECIPE = "frames 1"


def frames(each: int = 8, *, nouns: Sequence[str] = tuple(NOUNS), corpus_seed: int = 0,
           size: int = CANVAS) -> Pairs:
    """The pool of which reels are made: `each` pictures of every thing, a noun on one of
    twelve plates (768 things with all 64 nouns).

    Columns: `image` (Lazy, RGB of size × size) and `text` ("a dog on a blue disc"). Rows
    of one item show the same thing, drawn anew, and have one caption. Labels `noun`,
    `colour`, `shape`. They are drawn apart from `objects` of the same corpus_seed.

    Encode the frames here, `add_features(pool, "image", …)`: each is then encoded once,
    however many reels it stands in. Frames of few pixels, made larger for the encoder,
    are harder to recognise, so that reels told in all their frames are not all found.

    Raises ValueError for a number out of range, fewer than four nouns, or one that is
    unknown or given twice.
    """
    if each < 1 or size < 8:
        raise ValueError(f"each must be at least 1 and size at least 8, got {each} and "
                         f"{size}")
    if len(nouns := choose(nouns, NOUNS, "noun")) < 4:
        raise ValueError(f"nouns: four at least, got {len(nouns)}")
    things = list(product(nouns, COLOURS, SHAPES))
    rows = [thing for thing in things for _ in range(each)]
    made = [_frame(*thing, nouns, random.Random(f"frame {corpus_seed} {thing} {k}"))
            for thing in things for k in range(each)]
    image = Lazy(made, partial(draw_objects, folder=asset("openmoji") / "svg", size=size),
                 version=BY_PROVENANCE)
    hash_ = hashlib.sha256(digest(image).encode() + sources_hash(
        ["openmoji"], f"{RECIPE} {each} {corpus_seed} {size}").encode())
    known = {"noun": list(NOUNS), "colour": list(COLOURS), "shape": list(SHAPES)}
    return Pairs.make(
        {"image": image, "text": [plate_caption(colour, shape, noun)
                                  for noun, colour, shape in rows]},
        ids=[f"frame {corpus_seed} {row}" for row in range(len(rows))],
        item=torch.arange(len(things)).repeat_interleave(each),
        labels={name: torch.tensor([values.index(thing[field]) for thing in rows])
                for field, (name, values) in enumerate(known.items())},
        label_names=known,
        provenance=Provenance("reels", "composed", "CC BY-SA 4.0 (drawings: OpenMoji)",
                              "OpenMoji 17.0.0, placed by alignkit", RECIPE,
                              hash_.hexdigest()))


def reels(pool: Pairs, seed: int, *, told: int = 2, length: int = 8,
          each: int | Sequence[int] = 1, captioned: float = 0.5,
          fractions: Sequence[float] = (0.4, 0.2, 0.4)) -> Splits:
    """Training, validation and test reels of `length` frames, composed from the `pool`
    (of `frames`, or pairs of yours whose items have several pictures).

    The pool is split first, by thing: no frame and no thing stands in two parts. Then, in
    each part, some things get captions and the others fill up. A reel has `told` frames of
    one captioned thing, in random places; each of its other frames shows another thing,
    of those that no caption of the part tells. So a caption fits its own reels alone.
    For one seed, reels with more `told` frames keep their captions and those told before.

    Columns: `video` (Lazy, frames [length, h, w, 3]), `text` and what is made of it, as
    the pool has it, `frame` [n, length] (rows of the pool), `told` [n, length] (bool:
    which frames the caption tells), and `video_tokens`, a token a frame, where the pool
    has `image_features`. Reels of one caption are one item, the pool's. Labels: those of
    the told thing. Table `frames`: what every frame of the pool shows, its item and labels.

    Args:
        seed: draws the split and the reels.
        told: frames that the caption tells, 1 to length.
        each: reels of a training caption (in validation and test each has one), or a
            number for each part. Those of one caption come one after the other.
        captioned: share of a part's things that get captions.
        fractions: of the things, for training, validation and test.

    Raises ValueError for a number out of range, for a pool without pictures or with two
    things of one caption, and where a part has too few things to fill a reel or a thing
    too few frames to be told.
    """
    counts = (each, 1, 1) if isinstance(each, int) else tuple(each)
    if not 1 <= told <= length or len(counts) != 3 or min(counts) < 1 or not 0 < captioned < 1:
        raise ValueError("told must lie in 1 to length, each be at least 1, or three such "
                         "numbers, and captioned lie between 0 and 1, got "
                         f"{told} of {length}, {each} and {captioned}")
    _check(pool)
    numbered = pool.only("text").with_features(row=torch.arange(len(pool)))
    parts = zip(numbered.split(seed, fractions), Splits._fields, counts, strict=True)
    recipe = f"{told} {length} {each} {captioned} {tuple(fractions)}"

    def made(rows: Tensor, name: str, each: int) -> Pairs:
        draw = random.Random(f"reels {seed} {name}")
        frame, places = _compose(_of_items(pool, rows), draw, told, length, each, captioned,
                                 name)
        return _pairs(pool, frame, places, told, f"reels 1 {seed} {name} {recipe}")

    return Splits(*(made(part["row"], name, each) for part, name, each in parts))


def stack(sources: Sequence, read: Callable) -> Tensor:
    """The frames [t, h, w, 3] (uint8) of a reel, from its pictures' sources."""
    return torch.from_numpy(np.stack([np.asarray(read(source)) for source in sources]))


def _check(pool: Pairs) -> None:
    """Refuse pairs that no reels can be made of."""
    image = pool["image"]
    if not isinstance(image, Lazy) or image.kind != "picture" \
            or not pool.present["image"].all():
        raise ValueError("pool: the column 'image' must hold pictures (Lazy), none missing")
    item_of: dict[str, int] = {}
    for text, item in zip(pool["text"], pool.item.tolist(), strict=True):
        if item_of.setdefault(text, item) != item:
            raise ValueError(f"pool: {text!r} is said of two items: a frame of one would fit "
                             "the caption of the other; make them one item")


def _frame(noun: str, colour: str, shape: str, nouns: Sequence[str],
           draw: random.Random) -> tuple[str, tuple]:
    """A picture of `objects` whose named thing stands on the plate that is asked for."""
    background, placed = compose(draw, noun, nouns)
    placed[-1] = placed[-1]._replace(colour=colour, shape=shape)
    return background, tuple(map(tuple, placed))


def _of_items(pool: Pairs, rows: Tensor) -> dict[int, list[int]]:
    """Item -> its rows of the pool, of those in `rows`."""
    found: dict[int, list[int]] = {}
    for row, item in zip(rows.tolist(), pool.item[rows].tolist(), strict=True):
        found.setdefault(item, []).append(row)
    return found


def _compose(frames_of: dict[int, list[int]], draw: random.Random, told: int, length: int,
             each: int, captioned: float, part: str) -> tuple[Tensor, Tensor]:
    """Rows of the pool [n, length], those told first, and where in the reel each comes.

    What is drawn does not depend on `told`."""
    things = draw.sample(sorted(frames_of), len(frames_of))
    n = round(captioned * len(things))
    named, others = things[:n], things[n:]
    if not named or len(others) < length - 1:
        raise ValueError(f"{part} has {len(things)} things, of which {len(others)} have no "
                         f"caption: reels of {length} need {length - 1} such and a "
                         "captioned one; make the pool larger or captioned smaller")
    if (fewest := min(len(frames_of[thing]) for thing in named)) < told:
        raise ValueError(f"told: {told} frames of a thing are needed, one has {fewest}")
    frame, places = [], []
    for thing in (thing for thing in named for _ in range(each)):
        own = draw.sample(frames_of[thing], len(frames_of[thing]))
        filling = [draw.choice(frames_of[k]) for k in draw.sample(others, length - 1)]
        frame.append(own[:told] + filling[told - 1:])
        places.append(draw.sample(range(length), length))
    return torch.tensor(frame), torch.tensor(places)


def _pairs(pool: Pairs, frame: Tensor, places: Tensor, told: int, recipe: str) -> Pairs:
    """The reels of `_compose` in order, as pairs."""
    first, image = frame[:, 0], pool["image"]  # the first is told
    frame = torch.empty_like(frame).scatter_(1, places, frame)
    is_told = torch.zeros_like(frame, dtype=torch.bool).scatter_(1, places[:, :told], True)
    video = Lazy([tuple(image.sources[i] for i in row) for row in frame.tolist()],
                 partial(stack, read=image.read), "video", image.version)
    columns = {"video": video, "frame": frame, "told": is_told,
               **{name: take(pool[name], first) for name in made_of("text", pool.columns)}}
    if "image_features" in pool.columns:
        columns["video_tokens"] = Tokens(pool["image_features"][frame],
                                         torch.ones_like(is_told))
    return Pairs.make(
        columns, ids=[f"reel {n}" for n in range(len(frame))], item=pool.item[first],
        labels={name: label[first] for name, label in pool.labels.items()},
        label_names=pool.label_names,
        tables={"frames": {"item": pool.item, **pool.labels}},
        provenance=pool.provenance.derive(recipe))
