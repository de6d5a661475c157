"""Windows of photographs: Tux Paint's cut-out photos, for what looks at pixels alone."""

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from alignkit.data.columns import BY_PROVENANCE, Lazy
from alignkit.data.corpora import in_order
from alignkit.data.emoji import sources_hash
from alignkit.data.pairs import Pairs, Provenance
from alignkit.data.stamps import groups, read_stamps

COLOURS = 5000  # at most so many different ones has a drawing
OPAQUE = 0.55  # the least opaque part of a window
SMALLEST = 80  # a photo's short side in pixels: less would be blurred by enlarging it
RECIPE = "photographs 1"


def photographs(size: int = 128, *, most: int = 3, limit: int | None = None) -> Pairs:
    """Square windows of Tux Paint's photographs (and of a few painted pictures).

    Column: `image` (Lazy, RGB of size × size; what is cut out has the mean colour of the
    rest). Each photo is scaled so that its short side is `size`; large ones are also taken
    as they are. Windows of one photo, and of photos of one thing, are one group.

    Args:
        size: side of a window in pixels.
        most: windows of a photo at one scale.
        limit: only so many groups, the same at each call (for tests and small runs).

    Raises: ValueError for a number out of range; FetchError where the package is not here.
    """
    if size < 16 or most < 1 or limit is not None and limit < 1:
        raise ValueError("size must be at least 16, most and limit at least 1, got "
                         f"{size}, {most}, {limit}")
    found, group = read_stamps(), groups(["en"])
    rows_of: dict[int, list[int]] = {}
    for row, stamp in enumerate(found):
        if stamp.picture.suffix == ".png":
            rows_of.setdefault(group[row], []).append(row)
    places, taken = [], 0
    for one in in_order(group, [stamp.name for stamp in found]):
        if taken == limit:
            break  # to look for windows means to open every photograph
        new = [(row, place) for row in rows_of.get(one, ())
               for place in windows(found[row].picture, size, most)]
        places, taken = places + new, taken + bool(new)
    places.sort(key=lambda place: place[0])
    names = [f"{found[row].name} {box[0]},{box[1]} of {sides[0]}×{sides[1]}"
             for row, (sides, box) in places]
    few = "" if limit is None else ", the first by their stamps' names"
    sources = [(found[row].picture, *place) for row, place in places]
    return Pairs.make(
        {"image": Lazy(sources, partial(cut, size=size), version=BY_PROVENANCE)},
        ids=names, group=[group[row] for row, _ in places],
        provenance=Provenance(
            "photographs", "real", "GPL-2 (Tux Paint)",
            "tuxpaint-stamps-default 2022.06.04 (Debian)", RECIPE,
            sources_hash(["stamps"], f"{RECIPE} {size} {most} {limit}{few}")))


@cache
def _opened(path: Path) -> Image.Image | None:
    """The opaque part of a photograph, RGBA; None for a drawing or a small picture."""
    with Image.open(path) as picture:
        picture = picture.convert("RGBA")
    box = picture.getchannel("A").getbbox()
    if box is None or min(box[2] - box[0], box[3] - box[1]) < SMALLEST:
        return None
    picture = picture.crop(box)
    return None if _on(picture, (0, 0, 0)).getcolors(COLOURS) else picture  # None: more


def _on(picture: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    ground = Image.new("RGBA", picture.size, (*colour, 255))
    ground.alpha_composite(picture)
    return ground.convert("RGB")


@cache
def windows(path: Path, size: int, most: int) -> list[tuple]:
    """((width, height) that the photo is scaled to, (left, top)) of each window."""
    picture = _opened(path)
    if picture is None:
        return []
    fit = size / min(picture.size)
    found = []
    for scale in (fit, 1.0) if fit < 0.6 else (fit,):
        sides = tuple(max(size, round(side * scale)) for side in picture.size)
        opaque = np.asarray(picture.getchannel("A").resize(sides)) > 250
        inside = [(left, top) for left, top in _grid(*sides, size)
                  if opaque[top:top + size, left:left + size].mean() >= OPAQUE]
        found += [(sides, place) for place in inside[:most]]
    return found


def _grid(width: int, height: int, size: int) -> Iterator[tuple[int, int]]:
    """Left and top of the windows that fit side by side."""
    for top in range(0, height - size + 1, size):
        for left in range(0, width - size + 1, size):
            yield left, top


def cut(source: tuple, size: int) -> Image.Image:
    """A window of (path, scaled sides, place) as RGB."""
    path, sides, (left, top) = source
    picture = _opened(path)
    pixels = np.asarray(picture)
    mean = pixels[pixels[..., 3] > 250][:, :3].mean(0).round().astype(int)
    scaled = _on(picture, tuple(mean.tolist())).resize(sides, Image.Resampling.BICUBIC)
    return scaled.crop((left, top, left + size, top + size))
