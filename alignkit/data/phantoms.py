"""Generated chest pictures with findings, boxes and reports: no patient is in them.

A phantom is drawn from a few ellipses, bands and noise, so that all that its report says is
true by construction and no picture or word comes from a person. What is learned on phantoms
says how a method works and nothing about medicine. Every result on them is labelled
'generated'; `MARK` is for the note of a figure, `marked` writes it into a picture.
"""

import hashlib
import random
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from alignkit.data.columns import BY_PROVENANCE, Lazy, digest
from alignkit.data.pairs import Pairs, Provenance
from alignkit.data.reports import BOTH_SIDES, DEGREES, FINDINGS, SIDES, Finding, report

RECIPE = "phantoms 1"
MARK = "generated phantom, no patient"
SHARES = (0.38, 0.25, 0.19, 0.12, 0.06)  # of phantoms with 0, 1, … findings
NOISE, GRAIN = 0.045, 0.035  # deviation of the soft and the fine noise; the picture is 0 … 1
# How much a finding changes the picture where it is marked, of the whole range of grey.
# Noise and these were chosen by the features of EfficientNet-Lite0 alone: a linear probe has
# a macro AUROC of .91 with the labels of 840 phantoms (of a finding .81 to 1), .77 with 84
# and .60 with 8, so that there is room below and above.
CONTRAST = {"cardiomegaly": 0.2, "effusion": 0.32, "pneumothorax": 0.17,
            "consolidation": 0.27, "nodule": 0.3, "atelectasis": 0.27, "edema": 0.12,
            "fibrosis": 0.04, "emphysema": 0.1, "cavity": 0.27, "calcification": 0.45,
            "elevation": 0.3}  # fmt: skip
WEAKER = {"slight": 0.6, "moderate": 0.8, "marked": 1.0}

# A body's own coordinates: 0, 0 in the middle, the picture from −½ to ½ before it is moved
# and zoomed. Lungs are ellipses cut off below by the dome of the diaphragm.
LUNG_X, LUNG_Y, LUNG_WIDE, LUNG_HIGH, FLOOR, DOME = 0.19, -0.05, 0.15, 0.34, 0.18, 0.06

Box = tuple[float, float, float, float]  # x0, y0, x1, y1


class Body(NamedTuple):
    """How one phantom differs from the next: moved, zoomed, exposed; heart: half its width."""

    x: float
    y: float
    zoom: float
    heart: float
    bright: float
    gain: float
    seed: int  # of the noise


class Shown(NamedTuple):
    """A finding and the box it lies in, in the body's coordinates."""

    finding: Finding
    box: Box


def phantoms(n: int = 1200, *, corpus_seed: int = 0, most: int = 4, absent: int = 3,
             size: int = 224) -> Pairs:
    """`n` generated chest pictures with none to four of twelve findings, and their reports.

    Columns: `image` (Lazy, RGB of size × size, grey) and `text`, the report: "a marked left
    nodule is seen. no edema.", which `findings_of` reads back exactly. Labels: one for each
    of `FINDINGS`, 1 where it is present, `findings`, equal where the same findings (of
    whatever side and degree) are present, and `report`, equal where the report is. Rows of
    equal report are items of their own: a method that must not take them for negatives is
    told by these labels. By default 18 % of the reports stand more than once, and of 127
    other phantoms 19 have the same findings as one.

    Tables: findings (item, finding, side, degree [m] long, box [m, 4] in pixels; item is
    that of `pairs.item`; the side of `BOTH_SIDES` is −1), names (what the numbers of
    finding, side and degree stand for).

    The first phantoms of a larger `n` are those of a smaller one.

    Args:
        most: findings at most, 1 to 4; a phantom drawn to have more has `most`.
        absent: sentences at most, 0 or more, on what is not there.

    Raises: ValueError for a number out of range.
    """
    if n < 1 or size < 32 or not 1 <= most < len(SHARES) or not 0 <= absent <= 8:
        raise ValueError("n must be at least 1, size 32, most 1 to 4 and absent 0 to 8, got "
                         f"{n}, {size}, {most} and {absent}")
    made = [_compose(random.Random(f"{corpus_seed} {row}"), most, absent) for row in range(n)]
    image = Lazy([(tuple(body), tuple(map(tuple, shown))) for body, shown, _ in made],
                 partial(draw_phantom, size=size), version=BY_PROVENANCE)
    texts = [text for _, _, text in made]
    told = [digest(image), digest(texts), RECIPE, NOISE, GRAIN, CONTRAST, WEAKER, size]
    hash_ = hashlib.sha256(repr(told).encode())
    present = [frozenset(s.finding.name for s in shown) for _, shown, _ in made]
    return Pairs.make(
        {"image": image, "text": texts},
        ids=[f"phantom {corpus_seed} {row}" for row in range(n)],
        labels={**{name: [name in names for names in present] for name in FINDINGS},
                "findings": _numbered(present), "report": _numbered(texts)},
        label_names={name: ["absent", "present"] for name in FINDINGS},
        tables=_tables([(body, shown) for body, shown, _ in made], size),
        provenance=Provenance("phantoms", "generated", "none needed: nothing is taken",
                              "drawn and worded by alignkit; no patient", RECIPE,
                              hash_.hexdigest()),
    )  # fmt: skip


def marked(picture: Image.Image) -> Image.Image:
    """A copy with `MARK` written along its lower edge, for figures and files."""
    copy = picture.copy()
    pen = ImageDraw.Draw(copy)
    pen.rectangle((0, copy.height - 13, copy.width, copy.height), fill="black")
    pen.text((4, copy.height - 12), MARK, fill="white")
    return copy


# Composing ----------------------------------------------------------------------------
def _compose(draw: random.Random, most: int, absent: int) -> tuple[Body, list[Shown], str]:
    """A body, its findings in the order of the report, and the report."""
    body = Body(*(round(draw.uniform(-b, b), 4) for b in (0.02, 0.02)),
                round(draw.uniform(0.92, 1.06), 4), round(draw.uniform(0.085, 0.1), 4),
                round(draw.uniform(-0.05, 0.05), 4), round(draw.uniform(0.85, 1.1), 4),
                draw.randrange(2**32))
    count = min(most, draw.choices(range(len(SHARES)), SHARES)[0])
    shown = []
    for name in draw.sample(FINDINGS, count):
        side = "" if name in BOTH_SIDES else draw.choice(SIDES)
        finding = Finding(name, side, draw.choice(DEGREES))
        shown.append(Shown(finding, _box(finding, body, draw)))
    others = [name for name in FINDINGS if name not in {s.finding.name for s in shown}]
    denied = draw.sample(others, draw.randint(0, absent))
    return body, shown, report([s.finding for s in shown], denied, draw)


def _box(finding: Finding, body: Body, draw: random.Random) -> Box:
    """Where a finding lies: given by the body, or a place drawn within the lung."""
    d = DEGREES.index(finding.degree)
    s = {"left": 1, "right": -1, "": 0}[finding.side]
    outer, low = LUNG_X + LUNG_WIDE, FLOOR + DOME
    whole, half = (sorted((s * inner, s * outer)) for inner in (LUNG_X - LUNG_WIDE,
                                                                LUNG_X - 0.05))
    fixed = {
        "cardiomegaly": (0.04 - body.heart - 0.028 * (d + 1), -0.01,
                         0.04 + body.heart + 0.028 * (d + 1), 0.23),
        "effusion": (whole[0], low - 0.12 - 0.035 * d, whole[1], low),
        "elevation": (whole[0], low - 0.09 - 0.02 * d, whole[1], low),
        "pneumothorax": (half[0], LUNG_Y - LUNG_HIGH, half[1], LUNG_Y - 0.1 + 0.06 * d),
        "edema": (-outer, -0.17, outer, 0.09),
        "fibrosis": (-outer, 0.02, outer, low),
        "emphysema": (-outer, LUNG_Y - LUNG_HIGH, outer, low),
    }
    if finding.name in fixed:
        return _rounded(*fixed[finding.name])
    wide, high = {"consolidation": (0.05 + 0.01 * d,) * 2, "nodule": (0.018 + 0.005 * d,) * 2,
                  "atelectasis": (0.07 + 0.01 * d, 0.028), "cavity": (0.032 + 0.006 * d,) * 2,
                  "calcification": (0.045,) * 2}[finding.name]
    x = s * LUNG_X + draw.uniform(-1, 1) * max(LUNG_WIDE * 0.8 - wide, 0)
    y = draw.uniform(-0.24, 0.12) if finding.name != "atelectasis" else draw.uniform(0, 0.12)
    return _rounded(x - wide, y - high, x + wide, y + high)


def _rounded(*box: float) -> Box:
    return tuple(round(edge, 4) for edge in box)


def _numbered(values: list) -> list[int]:
    """Equal values get equal numbers, from 0 in the order in which they come."""
    numbers: dict = {}
    return [numbers.setdefault(value, len(numbers)) for value in values]


def _tables(made: list[tuple[Body, list[Shown]]], size: int) -> dict[str, object]:
    rows, boxes = [], []
    for item, (body, shown) in enumerate(made):
        for (name, side, degree), box in shown:
            rows.append((item, FINDINGS.index(name), SIDES.index(side) if side else -1,
                         DEGREES.index(degree)))
            shift = (body.x, body.y) * 2
            boxes.append([(0.5 + s + body.zoom * edge) * size for s, edge in zip(shift, box)])
    columns = torch.tensor(rows, dtype=torch.long).reshape(-1, 4).T.contiguous()
    return {"findings": {**dict(zip(("item", "finding", "side", "degree"), columns)),
                         "box": torch.tensor(boxes).reshape(-1, 4).clamp(0, size)},
            "names": {"finding": list(FINDINGS), "side": list(SIDES),
                      "degree": list(DEGREES)}}


# Drawing ------------------------------------------------------------------------------
def draw_phantom(source: tuple, size: int, noise: bool = True) -> Image.Image:
    """Draw (body, findings in their boxes) as a grey picture of size × size, mode RGB."""
    body = Body(*source[0])
    x, y = _grid(size)
    x, y = (x - body.x) / body.zoom, (y - body.y) / body.zoom
    lungs = sum(_lung(x, y, side) for side in (-1, 1))
    heart = _disc((x - 0.04) / body.heart, (y - 0.11) / 0.115, 0.25)
    grey = _chest(x, y) - 0.4 * lungs + CONTRAST["cardiomegaly"] * heart
    for (name, side, degree), (x0, y0, x1, y1) in source[1]:
        a, b = (2 * x - x0 - x1) / (x1 - x0), (2 * y - y0 - y1) / (y1 - y0)
        outward = -a if side == "right" else a  # −1 at the box's inner edge, 1 at the outer
        grey += CONTRAST[name] * WEAKER[degree] * PAINT[name](outward, b, lungs, heart)
    grey = body.bright + body.gain * grey
    if noise:
        grey += _noise(size, body.seed)
    pixels = (255 * grey.clip(0, 1)).round().astype(np.uint8)
    return Image.fromarray(pixels).convert("RGB")


def _chest(x, y):
    """A healthy chest without lungs and heart: trunk, ribs, spine and collar bones."""
    trunk = _step(1 - (x / 0.46) ** 4 - ((y - 0.15) / 0.62) ** 4, 0.2)
    ribs = sum(_line(y + 0.33 - 0.07 * k - 0.9 * (abs(x) - 0.16) ** 2 - 0.15 * abs(x), 0.008)
               for k in range(8))
    collar = _line(y + 0.33 + 0.15 * abs(x), 0.012) * (abs(x) > 0.05) * (abs(x) < 0.34)
    spine = _step(1 - abs(x) / 0.045, 0.6)
    return 0.62 * trunk + 0.06 * ribs * trunk + 0.1 * collar + 0.08 * spine


def _lung(x, y, side: int):
    """1 within the lung on this side (of the picture: 1 right), 0 outside."""
    a, b = (x - side * LUNG_X) / LUNG_WIDE, (y - LUNG_Y) / LUNG_HIGH
    return _disc(a, b, 0.12) * _step(FLOOR + DOME * a**2 - y, 0.02)


def _noise(size: int, seed: int):
    """Soft clouds and fine grain."""
    draw = np.random.default_rng(seed)
    clouds = sum(np.asarray(Image.fromarray(draw.standard_normal((k, k), np.float32)).resize(
        (size, size), Image.Resampling.BICUBIC)) for k in (8, 28))
    return NOISE * clouds / 1.4 + GRAIN * draw.standard_normal((size, size), np.float32)


def _dots(a, b):
    """Nine dots on a spiral."""
    turn, far = np.arange(9) * 2.4, np.sqrt(np.arange(1, 10) / 11)
    return sum(_disc((a - r * np.cos(t)) / 0.14, (b - r * np.sin(t)) / 0.14, 0.8)
               for t, r in zip(turn, far))


def _free_air(a, b, lungs, _):
    """Dark between the lung's border and the chest wall, with the border as a bright line."""
    away = ((a + 1) / 1.5) ** 2 + ((b - 1) / 1.7) ** 2 - 1
    inside = lungs * (abs(a) < 1) * (abs(b) < 1)
    return inside * (_line(away, 0.1) - _step(away, 0.1))


# Of each finding the change of grey, from −1 to 1: a, b run from −1 to 1 across its box, a
# from the middle of the body outward where the finding has a side.
PAINT = {
    "cardiomegaly": lambda a, b, lungs, heart: (_disc(a, b, 0.2) - heart).clip(0),
    "effusion": lambda a, b, lungs, _: lungs * (abs(a) < 1) * _step(b + 0.4 + 0.6 * a, 0.15),
    "elevation": lambda a, b, lungs, _: lungs * (abs(a) < 1) * _step(b + 1 - 1.2 * a**2, 0.15),
    "pneumothorax": _free_air,
    "consolidation": lambda a, b, *_: (1 - a**2 - b**2).clip(0, 1) ** 0.7,
    "nodule": lambda a, b, *_: _disc(a, b, 0.3),
    "atelectasis": lambda a, b, *_: _line(b - 0.5 * a, 0.35) * _step(0.9 - abs(a), 0.2),
    "edema": lambda a, b, lungs, _: lungs * (1 - (2 * abs(a) - 0.8) ** 2 - b**2).clip(0, 1),
    "fibrosis": lambda a, b, lungs, _: lungs * (abs(b) < 1) * np.maximum(
        np.sin(40 * (a + 0.4 * b)), np.sin(40 * (a - 0.4 * b))),
    "emphysema": lambda a, b, lungs, _: -lungs,
    "cavity": lambda a, b, *_: _line(np.hypot(a, b) - 0.75, 0.25),
    "calcification": lambda a, b, *_: _dots(a, b),
}


def _step(x, soft: float):
    """0 below 0, 1 above, over a stretch of `soft`."""
    return (x / soft + 0.5).clip(0, 1)


def _line(x, wide: float):
    """1 where x is 0, 0 from `wide` on to both sides."""
    return (1 - abs(x) / wide).clip(0, 1)


def _disc(a, b, soft: float):
    """1 within the unit circle, its edge of width `soft` inside it."""
    return ((1 - np.hypot(a, b)) / soft).clip(0, 1)


@cache
def _grid(size: int):
    line = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    return line[None, :], line[:, None]
