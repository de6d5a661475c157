"""Emoji by other hands: Noto, Twemoji and Fluent drawings of the same things, and the
keywords that CLDR gives them in about 130 languages."""

import io
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from alignkit.data.corpora import choose
from alignkit.data.fetch import asset


class Style(NamedTuple):
    """Where the drawings of a style come from, and under which licence."""

    asset: str
    source: str
    licence: str


STYLES = {
    "openmoji": Style("openmoji", "OpenMoji 17.0.0", "CC BY-SA 4.0 (OpenMoji)"),
    "noto": Style("emoji-noto", "Noto Emoji (Iconify 1.2.9)", "Apache-2.0 (Noto)"),
    "twemoji": Style("emoji-twemoji", "Twemoji (Iconify 1.2.5)", "CC BY 4.0 (Twemoji)"),
    "fluent": Style("emoji-fluent", "Fluent flat (Iconify 1.2.6)", "MIT (Fluent)"),
}
Drawing = Path | tuple[str, str]  # an SVG file, or (style, icon)
# Almost white: on white nothing is seen of them.
FAINT = {"twemoji": {"1F90D", "25AB", "25FB", "25FD", "26AA", "2B1C"}}
# What these styles draw alike and OpenMoji does not, named as `emoji` names things: two
# drawings of different groups differ by at least 0.05 at 32 px, faces apart.
ALIKE = (("1F63A", "1F638", "1F431"), ("1F9D1", "1F9D4"), ("2603", "26C4"),
         ("square", "button"))  # fmt: skip


def bare(code: str) -> str:
    """A code without variation selectors, which files often leave out."""
    return code.replace("-FE0F", "")


def drawings(style: str) -> dict[str, Drawing]:
    """{bare code: drawing} in a style of `STYLES`.

    Raises FetchError, which says what to install or bring, where it is not here.
    """
    folder = asset(STYLES[style].asset)
    if style == "openmoji":
        return {bare(path.stem): path for path in (folder / "svg").iterdir()}
    icons = json.loads((folder / "chars.json").read_text("utf-8"))
    codes = {bare(code.upper()): (style, icon) for code, icon in icons.items()}
    return {c: icon for c, icon in codes.items() if c not in FAINT.get(style, ())}


def content(drawing: Drawing) -> str | bytes:
    """What is drawn: equal for equal drawings, whatever their spaces and ids."""
    if isinstance(drawing, Path):
        return re.sub(rb'\s+(id="[^"]*")?', b"", drawing.read_bytes())
    return _icons(drawing[0])["icons"][drawing[1]]["body"]


def draw(drawing: Drawing, size: int) -> Image.Image:
    """A drawing as an RGB picture of size × size on white."""
    import resvg_py

    if isinstance(drawing, Path):
        png = resvg_py.svg_to_bytes(svg_path=str(drawing), width=size, height=size,
                                    background="white")
    else:
        png = resvg_py.svg_to_bytes(svg_string=_svg(*drawing, size), background="white")
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


def _svg(style: str, icon: str, size: int) -> str:
    found = _icons(style)
    here = found["icons"][icon]
    width, height = (here.get(side, found[side]) for side in ("width", "height"))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}" '
            'xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}">{here["body"]}</svg>')


@cache
def _icons(style: str) -> dict:
    """Iconify's file, read once a process: 9 to 25 MB."""
    found = json.loads((asset(STYLES[style].asset) / "icons.json").read_text("utf-8"))
    return {"width": found.get("width", 16), "height": found.get("height", 16)} | found


def read_keywords(languages: str | Sequence[str]) -> dict[str, dict[str, str]]:
    """{language: {bare character: "animal, dog, pet"}}, in alphabetical order.

    A regional language ("de_CH") has only what differs from the plain one. What is
    built of several characters (flags, families, skin tones) mostly has none.

    Raises: ValueError for a language without keywords; FetchError, which says what to
        install or bring, where CLDR's annotations are not here.
    """
    folder = asset("emoji-keywords")
    known = sorted(path.name.replace("-", "_") for path in folder.iterdir()
                   if path.is_dir())
    found = {}
    for code in choose(languages, known, "keywords"):
        file = folder / code.replace("_", "-") / "annotations.json"
        entries = json.loads(file.read_text("utf-8"))["annotations"]
        found[code] = {
            character.replace("\ufe0f", ""): ", ".join(entry["default"])
            for character, entry in entries.get("annotations", {}).items()
            if "default" in entry
        }
        if not found[code]:
            raise ValueError(f"keywords {code!r}: CLDR has none in this language yet")
    return found
