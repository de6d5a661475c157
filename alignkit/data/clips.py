"""Composed clips: an emoji moves over a ground, with everything about its way known.

A clip and the one of the opposite direction hold the same frames in another order, so
that left and right, up and down are nowhere but in that order. Every result on them is
labelled 'composed'.
"""

import hashlib
import io
import math
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alignkit.data.columns import BY_PROVENANCE, Lazy, digest
from alignkit.data.emoji import sources_hash
from alignkit.data.fetch import asset
from alignkit.data.pairs import Pairs, Provenance
from alignkit.data.scenes import NOUNS, PASTELS, drawing

RECIPE = "clips 1"
CANVAS, FIGURE = 224, 72  # units; the side of the figure
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS = {"slow": 36, "fast": 84}  # units of way in a clip
SWING, PULSE, TIMES = 14, 0.25, 2  # units aside; share of the size; how often in a clip
LOW, HIGH = 90, 134  # where the middle of a way lies: the figure never leaves the frame
GROUNDS = {  # what a tile of 28 units of a ground holds; {mark} is its colour
    "plain": "",
    "striped": '<path d="M0 0H14V28H0Z" fill="{mark}"/>',
    "dotted": '<circle cx="14" cy="14" r="6" fill="{mark}"/>',
    "checked": '<path d="M0 0H14V28H28V14H0Z" fill="{mark}"/>',
}
MARKS = ("#ecdcb9", "#d3e5f5", "#d9e9cb", "#f6dce2", "#e0d8f5", "#e2e2e2")

WAYS = {
    "right": ("to the right", "rightwards", "from left to right"),
    "left": ("to the left", "leftwards", "from right to left"),
    "up": ("upwards", "towards the top", "from the bottom up"),
    "down": ("downwards", "towards the bottom", "from the top down"),
}
PACES = {"slow": ("slowly", "at a slow pace", "without haste"),
         "fast": ("quickly", "at a high speed", "in a hurry")}  # fmt: skip
MOTIONS = {  # what stands before the way, and at the end
    "steady": (("moves", ""), ("glides", ""), ("travels", "")),
    "zigzag": (("zigzags", ""), ("goes in zigzags", ""), ("weaves its way", "")),
    "rolling": (("rolls", ""), ("goes", ", turning over"), ("tumbles", "")),
    "pulsing": (("swells and shrinks as it goes", ""), ("goes", ", pulsing"),
                ("grows and shrinks by turns going", "")),
    "returning": (("goes", " and comes back"), ("heads", ", then turns back"),
                  ("sets out", " and returns")),
}  # fmt: skip
WORDINGS = ("{thing} {deed} {way} {pace}{end}", "{thing} {deed} {pace} {way}{end}",
            "{pace}, {thing} {deed} {way}{end}",
            "a film in which {thing} {deed} {way} {pace}{end}",
            "here {thing} {deed} {way} {pace}{end}")  # fmt: skip


class Clip(NamedTuple):
    """What a clip shows; x, y: the middle of the way, of 224 units."""

    noun: str  # of NOUNS, or the code of one of OpenMoji's drawings
    motion: str
    direction: str
    speed: str
    ground: str
    shade: int  # of PASTELS and MARKS
    x: int
    y: int


def clips(
    n: int = 1000, *, corpus_seed: int = 0, captions: int = 2, frames: int = 8,
    size: int = 112, held_out: Literal["object", "combination"] = "object",
) -> Pairs:  # fmt: skip
    """`n` clips of an OpenMoji figure that moves, each with a few captions.

    A row is a caption; the captions of a clip are one item. Columns: `video` (Lazy,
    uint8 frames [frames, size, size, 3]) and `text` ("quickly, a dog zigzags to the
    left"). ids are "clip 7 caption 0". Labels, true by construction: `object` (64),
    `motion` (`MOTIONS`), `direction`, `speed`, `ground` (which no caption names). Table
    `boxes` [n, frames, 4]: x0, y0, x1, y1 of the upright figure in pixels, by
    `pairs.item`, so that it holds after `select`.

    An nn.Module of yours gets the frames stacked, [b, t, h, w, 3]; for an encoder of
    pictures ask `add_features(pairs, "video", "frames:image:…", tokens=True)`.

    Args:
        n: clips; the first ones of a larger n are those of a smaller one.
        corpus_seed: draws the clips; splits have a seed of their own.
        captions: a clip, in different words; 1 to 5.
        frames: a clip, evenly in time, at least 6 (fewer would miss a zigzag).
        size: side of the frames in pixels.
        held_out: what splits keep on one side. "object": all clips of an object, so
            that test shows unseen ones. "combination": clips of equal object, motion,
            direction and speed, so that test shows known objects in a new way.

    Raises ValueError for a number out of range or an unknown `held_out`.
    """
    for name, value, low in (("n", n, 1), ("captions", captions, 1),
                             ("frames", frames, 6), ("size", size, 32)):
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")
    if captions > len(WORDINGS):
        raise ValueError(f"captions must be at most {len(WORDINGS)}, got {captions}")
    kept = {"object": 1, "combination": 4}.get(held_out)  # the first fields of a clip
    if kept is None:
        raise ValueError("held_out must be 'object' or 'combination', "
                         f"got {held_out!r}")
    made = [_compose(random.Random(f"{corpus_seed} {row}")) for row in range(n)]
    rows = [clip for clip in made for _ in range(captions)]
    text = [said for row, clip in enumerate(made) for said in
            _say(clip, random.Random(f"{corpus_seed} {row} words"))[:captions]]
    groups: dict[tuple, int] = {}
    known = {"object": list(NOUNS), "motion": list(MOTIONS),
             "direction": list(DIRECTIONS), "speed": list(SPEEDS),
             "ground": list(GROUNDS)}  # fmt: skip
    video = Lazy(rows, partial(draw_clip, folder=asset("openmoji") / "svg",
                               frames=frames, size=size), "video",
                 BY_PROVENANCE)  # fmt: skip
    recipe = f"{RECIPE} {n} {corpus_seed} {captions} {frames} {size} {held_out}"
    sha = hashlib.sha256((digest(video) + digest(text)
                          + sources_hash(["openmoji"], recipe)).encode())
    boxes = [[_box(clip, k / (frames - 1), frames) for k in range(frames)]
             for clip in made]
    return Pairs.make(
        {"video": video, "text": text},
        ids=[f"clip {row} caption {k}" for row in range(n) for k in range(captions)],
        item=torch.arange(n).repeat_interleave(captions),
        group=[groups.setdefault(clip[:kept], len(groups)) for clip in rows],
        labels={label: torch.tensor([values.index(clip[field]) for clip in rows])
                for field, (label, values) in enumerate(known.items())},
        label_names=known,
        tables={"boxes": torch.tensor(boxes) * (size / CANVAS)},
        provenance=Provenance("clips", "composed", "CC BY-SA 4.0 (drawings: OpenMoji)",
                              "OpenMoji 17.0.0, moved by alignkit", RECIPE,
                              sha.hexdigest()),
    )  # fmt: skip


def moving(codes: Sequence[str], *, frames: int = 6, size: int = 112) -> Lazy:
    """A video column: for each of OpenMoji's `codes` ("1F436") a clip in which its drawing
    moves, as in `clips`; way, pace and ground are drawn by the code, the same each time.

    Raises ValueError for fewer than 2 frames or a side below 32 pixels.
    """
    if frames < 2 or size < 32:
        raise ValueError(f"frames must be at least 2 and size at least 32, got {frames}, "
                         f"{size}")
    made = [_compose(random.Random(f"{RECIPE} {code}"))._replace(noun=code)
            for code in codes]
    return Lazy(made, partial(draw_clip, folder=asset("openmoji") / "svg", frames=frames,
                              size=size), "video", f"{RECIPE} {frames} {size}")


def draw_clip(clip: Clip, folder: Path, frames: int, size: int) -> Tensor:
    """The frames of a clip, uint8 [frames, size, size, 3]."""
    import resvg_py

    inside = drawing(folder, NOUNS.get(clip.noun, clip.noun))
    tile = GROUNDS[clip.ground].format(mark=MARKS[clip.shade])
    ground = (f'<pattern id="g" width="28" height="28" patternUnits="userSpaceOnUse">'
              f'<path d="M0 0H28V28H0Z" fill="{PASTELS[clip.shade]}"/>{tile}</pattern>'
              f'<path d="M0 0H{CANVAS}V{CANVAS}H0Z" fill="url(#g)"/>')
    shown = []
    for k in range(frames):
        x, y, scale, angle = _pose(clip, k / (frames - 1), frames)
        png = resvg_py.svg_to_bytes(width=size, height=size, svg_string=(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {CANVAS} {CANVAS}">'
            f'{ground}<g transform="translate({x:.2f} {y:.2f}) rotate({angle:.2f}) '
            f'scale({scale * FIGURE / 72:.4f}) translate(-36 -36)">{inside}</g></svg>'
        ))  # fmt: skip
        shown.append(np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB")))
    return torch.from_numpy(np.stack(shown))


def _compose(draw: random.Random) -> Clip:
    fields = (NOUNS, MOTIONS, DIRECTIONS, SPEEDS, GROUNDS)
    return Clip(*(draw.choice(list(field)) for field in fields),
                draw.randrange(len(MARKS)), draw.randint(LOW, HIGH),
                draw.randint(LOW, HIGH))


def _pose(clip: Clip, u: float, frames: int) -> tuple[float, float, float, float]:
    """(x, y, scale, angle in degrees) at the time u from 0 to 1.

    The opposite direction at the time 1 − u has the same pose, returning ones apart,
    which pass the same places in another order.
    """
    dx, dy = DIRECTIONS[clip.direction]
    along, aside, scale, angle = SPEEDS[clip.speed] * (u - 0.5), 0.0, 1.0, 0.0
    if clip.motion == "zigzag":
        aside = SWING * math.cos(2 * math.pi * TIMES * u)
    elif clip.motion == "pulsing":
        scale = 1 + PULSE * math.cos(2 * math.pi * TIMES * u)
    elif clip.motion == "rolling":
        angle = (dx + dy) * 360 * u % 360
    elif clip.motion == "returning":
        last = (frames - 1) // 2 / (frames - 1)  # the farthest frame, out of 0 to 1
        along = SPEEDS[clip.speed] * (min(u, 1 - u) - last / 2)
    x, y = clip.x + dx * along + abs(dy) * aside, clip.y + dy * along + abs(dx) * aside
    return x, y, scale, angle


def _box(clip: Clip, u: float, frames: int) -> tuple[float, float, float, float]:
    x, y, scale, _ = _pose(clip, u, frames)
    half = FIGURE * scale / 2
    return x - half, y - half, x + half, y + half


def _say(clip: Clip, draw: random.Random) -> list[str]:
    """A caption in each of the wordings, in an order that is drawn too."""
    said = []
    for wording in draw.sample(WORDINGS, len(WORDINGS)):
        deed, end = draw.choice(MOTIONS[clip.motion])
        said.append(wording.format(
            thing=f"{'an' if clip.noun[0] in 'aeiou' else 'a'} {clip.noun}", deed=deed,
            end=end, way=draw.choice(WAYS[clip.direction]),
            pace=draw.choice(PACES[clip.speed])))  # fmt: skip
    return said
