"""Tux Paint's stamps: a picture, a sentence in up to 78 languages, the sentence spoken
in up to 11, and what the thing sounds like."""

import io
import re
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from alignkit.data.columns import BY_PROVENANCE, Lazy
from alignkit.data.corpora import (
    choose, column, hear, on_white, plain, some_groups, together,
)  # fmt: skip
from alignkit.data.emoji import sources_hash
from alignkit.data.fetch import asset
from alignkit.data.pairs import Pairs, Provenance

# Languages with 65 recordings or more of sentences that are there as text too: the 88
# Lithuanian ones have none, Malayalam has 6, Brazilian Portuguese 15.
SPOKEN = ("en", "be", "bg", "ca", "da", "el", "es", "fr", "nl", "ro", "ru")
SILENT = ("animals/birds/nandou", "animals/lizards/iguana", "animals/mammals/giraffe",
          "animals/marsupials/wombat")  # files of zeros
# What is heard there is a letter or a number read out, no sound of the thing.
READ_OUT = ("symbols/alphabets/", "symbols/math/")
# Drawn on black, as they are white themselves.
WHITE = ("naturalforces/lightningbolt", "seasonal/newyears/fireworks")
# Drawings that differ by a mirror or a colour alone, whatever their sentences say: a
# 32-px rendering of two stamps of different groups differs by at least 0.05 (root mean
# square), mirrored or not, very faint ones apart: a test draws them all.
SAME = (r"symbols/alphabets/english/.*/[bd]_.*",
        r"symbols/alphabets/english/.*/[pq]_.*",
        r"symbols/math/operators/.*(less|greater)than.*", r"people/body_parts/eye_.*",
        r"clothes/bluejeans.*", r"seasonal/hanukkah/dreydl-.*",
        r"household/dishes/cartoon/(fork|spoon)")
RECIPE = "stamps 1"


class Stamp(NamedTuple):
    """A stamp's files.

    name: "animals/birds/owl". sentences and spoken: by language, English as "en".
    """

    name: str
    picture: Path
    sentences: dict[str, str]
    spoken: dict[str, Path]
    effect: Path | None


def stamps(language: str | Sequence[str] = "en", *, size: int = 224,
           limit: int | None = None) -> Pairs:
    """950 stamps, cut-out photos and drawings, each with a sentence ("A tiger.").

    Columns: `image` (Lazy, RGB of size × size on white); `text`, the sentence in the
    first language, and `text_<code>` in each further one; `speech` and
    `speech_<code>`, the sentence spoken, for languages in `SPOKEN`; `sound`, what the
    thing sounds like (106 rows: animals, tools, instruments). `present` tells what is
    missing. ids are "animals/birds/owl"; labels `folder` ("animals") and `subfolder`
    ("animals/birds"). Rows with the same sentence in the first language are one item;
    rows with the same sentence in English or any of the languages asked for, or nearly
    the same drawing (`SAME`), and rows linked through such rows are one group. So ask
    for all the languages that you will use at once.

    Args:
        language: a code of Tux Paint's, or several: see `languages()`.
        size: side of the pictures in pixels.
        limit: only so many groups, the same at each call (for tests and small runs).

    Raises: ValueError for an unknown language or a number out of range; FetchError,
        which says what to install or bring, where the package is not here.
    """
    if size < 8:
        raise ValueError(f"size must be at least 8 pixels, got {size}")
    asked = choose(language, languages())
    found = read_stamps()
    group = groups(asked)
    kept = some_groups(group, [stamp.name for stamp in found], limit)
    found = [found[row] for row in kept]

    pictures = Lazy([stamp.picture for stamp in found], partial(draw, size=size),
                    version=BY_PROVENANCE)
    columns: dict = {"image": pictures}
    for code in asked:
        said = [stamp.sentences.get(code, "") for stamp in found]
        columns[column("text", code, asked[0])] = said
    for code in asked:
        if code in SPOKEN:
            columns[column("speech", code, asked[0])] = Lazy(
                [s.spoken.get(code) for s in found], hear, "sound", BY_PROVENANCE)
    columns["sound"] = Lazy([s.effect for s in found], hear, "sound", BY_PROVENANCE)
    present = {}
    for name, content in columns.items():
        rows = content.sources if isinstance(content, Lazy) else content
        present[name] = torch.tensor([bool(row) for row in rows])
    labels, label_names = folder_labels([s.name for s in found])
    return Pairs.make(
        columns,
        ids=[s.name for s in found],
        # A row without the sentence shares it with no other.
        item=together([[s.sentences.get(asked[0], s.name)] for s in found]),
        group=[group[row] for row in kept],
        present=present,
        labels=labels,
        label_names=label_names,
        provenance=Provenance(
            "stamps", "real", "GPL-2 (Tux Paint)",
            "tuxpaint-stamps-default 2022.06.04 (Debian)", RECIPE,
            sources_hash(["stamps"], f"{RECIPE} {asked} {size} {limit}"),
        ),
    )  # fmt: skip


def languages() -> list[str]:
    """The 78 codes, English first."""
    found = {code for stamp in read_stamps() for code in stamp.sentences}
    return ["en", *sorted(found - {"en"})]


def groups(asked: Sequence[str]) -> list[int]:
    """Group of each of `read_stamps()`: one for equal sentences in English or one of
    the languages `asked`, and for the drawings of `SAME`."""
    return together([
        [*((code, plain(s.sentences[code])) for code in {"en", *asked}
           if code in s.sentences),
         *(pattern for pattern in SAME if re.fullmatch(pattern, s.name))]
        for s in read_stamps()
    ])  # fmt: skip


def folder_labels(names: Sequence[str]) -> tuple[dict, dict]:
    """(labels, label_names) `folder` and `subfolder` of rows called "a/b/c"."""
    values = {"folder": [name.split("/")[0] for name in names],
              "subfolder": [name.rpartition("/")[0] for name in names]}
    known = {label: sorted(set(found)) for label, found in values.items()}
    return {label: torch.tensor([known[label].index(value) for value in found])
            for label, found in values.items()}, known


@cache
def read_stamps() -> list[Stamp]:
    """Every stamp that has a picture and sentences, by name.

    Raises FetchError where the package is neither here nor to be had.
    """
    root = asset("stamps") / "stamps"
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.*")}
    found = []
    for file in sorted(files):
        name = file.removesuffix(".txt")
        # What is there as PNG and as SVG is the same drawing; the SVG may need fonts.
        picture = files.get(f"{name}.png") or files.get(f"{name}.svg")
        if name == file or picture is None:
            continue
        spoken = {code: path for code in SPOKEN if (path := files.get(
            f"{name}_desc.ogg" if code == "en" else f"{name}_desc_{code}.ogg"))}
        effect = None
        if name not in SILENT and not name.startswith(READ_OUT):
            effect = files.get(f"{name}.ogg") or files.get(f"{name}.wav")
        found.append(Stamp(name, picture, _sentences(files[file]), spoken, effect))
    return found


def _sentences(path: Path) -> dict[str, str]:
    """{language: sentence}: the first line is English, then `de.utf8=Ein Löwe.`"""
    first, *lines = path.read_text("utf-8").splitlines()
    found = {"en": first.strip()}
    for line in lines:
        if match := re.match(r"([A-Za-z_@]+)\.utf8=(.*)", line):
            found[match[1]] = match[2].strip()
    return {code: text for code, text in found.items() if text}


def draw(path: Path, size: int) -> Image.Image:
    """A PNG or SVG file as an RGB picture of size × size on white (see `WHITE`)."""
    ground = "black" if path.with_suffix("").as_posix().endswith(WHITE) else "white"
    if path.suffix == ".png":
        with Image.open(path) as picture:
            return on_white(picture, size, ground)
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_path=str(path), width=size, dpi=96)
    return on_white(Image.open(io.BytesIO(bytes(png))), size, ground)
