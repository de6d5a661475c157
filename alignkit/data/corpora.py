"""What the corpora from packages share: languages, groups, pictures, sounds."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from alignkit.data.storage import read_sound


def choose(language: str | Sequence[str], known: Sequence[str],
           what: str = "language") -> list[str]:
    """The languages (or `what` it is) asked for.

    Raises ValueError for one that is not in `known`.
    """
    asked = [language] if isinstance(language, str) else list(language)
    for code in asked or [""]:
        if code not in known or asked.count(code) > 1:
            raise ValueError(f"{what} {code!r} must be one of {', '.join(known)}, "
                             "each at most once")
    return asked


def column(kind: str, code: str, first: str) -> str:
    """Name of a column: `text` in the first language, `text_pt_BR` in another."""
    return kind if code == first else f"{kind}_{code.replace('@', '_')}"


def plain(text: str) -> str:
    """A sentence without case and final stop: equal for what is the same sentence."""
    return text.casefold().strip(" .。!\u3000")


def together(keys: Sequence[Iterable]) -> list[int]:
    """A group number a row: rows that share a key, or are linked through others that
    do, are one group, numbered by its first row."""
    group = list(range(len(keys)))

    def root(row: int) -> int:
        while group[row] != row:
            group[row] = row = group[group[row]]
        return row

    first: dict = {}
    for row, found in enumerate(keys):
        for key in found:
            a, b = root(row), root(first.setdefault(key, row))
            group[max(a, b)] = min(a, b)
    return [root(row) for row in range(len(keys))]


def some_groups(
    group: Sequence[int], names: Sequence[str], limit: int | None
) -> list[int]:
    """Rows of the first `limit` groups in an order that looks random and stays.

    names: what each row is called; a group goes by its first row's name.
    Raises ValueError for a limit below 1.
    """
    if limit is None:
        return list(range(len(group)))
    if limit < 1:
        raise ValueError(f"limit must be at least 1 group, got {limit}")
    kept = set(in_order(group, names)[:limit])
    return [row for row, g in enumerate(group) if g in kept]


def in_order(group: Sequence[int], names: Sequence[str]) -> list[int]:
    """The groups in an order that looks random and stays, by the name of each one's first
    row."""
    called = {g: names[row] for row, g in reversed(list(enumerate(group)))}
    return sorted(called, key=lambda g: hashlib.sha256(called[g].encode()).digest())


def on_white(picture: Image.Image, size: int, ground: str = "white") -> Image.Image:
    """The whole picture as RGB in the middle of size × size pixels of white.

    ground: another colour, for what is itself white.
    """
    picture = picture.convert("RGBA")
    scale = size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    canvas = Image.new("RGBA", (size, size), ground)
    canvas.alpha_composite(picture, ((size - width) // 2, (size - height) // 2))
    return canvas.convert("RGB")


def hear(path: Path | None) -> tuple[Tensor, int]:
    """(waveform [t] float32, rate in Hz), channels averaged; rates differ by file.

    Raises ValueError where the row has no sound.
    """
    if path is None:
        raise ValueError("this row has no sound: ask present[…] before you read it")
    return read_sound(path)
