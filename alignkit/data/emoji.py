"""The first corpus: drawings of emoji with their CLDR names in 14 languages."""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache, partial
from typing import NamedTuple

import torch

from alignkit.data.columns import BY_PROVENANCE, Lazy
from alignkit.data.corpora import choose, column, some_groups, together
from alignkit.data.fetch import asset, manifest
from alignkit.data.pairs import Pairs, Provenance
from alignkit.data.styles import (
    ALIKE, STYLES, bare, content, draw, drawings, read_keywords,
)  # fmt: skip

LANGUAGES = ("en", "ar", "de", "es", "fa", "fr", "id", "it", "ja", "ko", "pt", "ru",
             "tr", "zh")  # fmt: skip
RECIPE = "emoji 1"

# Which drawings are variants of one thing, and so stay on one side of a split. Three
# kinds. (1) By the code: skin tone, gender, hair and direction (`_thing`). (2) By the
# subgroup: keycaps, families, and one shape in several colours. (3) The sets below, in
# codes without those marks: what Unicode gives one code a gender or a colour, and
# drawings that differ by a detail. A 32-px rendering of two variants that this misses
# differs by at least 0.05 (root mean square), faces apart: a test draws them all.
SAME = """
1F9D1 1F64D 1F64E 1F471, 1F9D2 1F466 1F467, 1F9D3 1F474 1F475, 1FAC5 1F934 1F478,
1F385 1F936 1F9D1-200D-1F384, 1FAC4 1FAC3 1F930, 1F931 1F9D1-200D-1F37C, 1F483 1F57A,
1F6BB 1F6B9 1F6BA, 1F46B 1F46C 1F46D 1F9D1-200D-1F91D-200D-1F9D1,
1F491 1F9D1-200D-2764-200D-1F9D1, 1F48F 1F9D1-200D-2764-200D-1F48B-200D-1F9D1,
1F91D 1FAF1-200D-1FAF2, 1F46F 1F9D1-200D-1F430-200D-1F9D1,
1F93C 1F9D1-200D-1FAEF-200D-1F9D1,
2764 1F9E1 1F49B 1F49A 1F499 1F49C 1F90E 1F5A4 1F90D 1FA75 1FA76 1FA77 2665,
1F512 1F513, 1F508 1F509 1F50A, 1F426 1F426-200D-2B1B, 1F52F 2721, 1F608 1F47F,
1F30D 1F30E 1F30F, 1F4EA 1F4EB 1F4EC 1F4ED, 1F50B 1FAAB, 2757 2755, 2753 2754,
1F4D5 1F4D7 1F4D8 1F4D9, 1F4B4 1F4B5 1F4B6 1F4B7, 1F34E 1F34F
"""
# Flags whose 32-px renderings differ by less than 0.07 (root mean square).
SAME_FLAGS = """
AL CN KG ME MA VN, AD MD RO TD, AR HN NI, AU HM NZ, BO GH, BV NO SJ, IO DG, EA ES,
CP FR MF, EG YE, ENGLAND GE, HU TJ, IN NE, ID MC SG, IE IT, JO PS EH, ML SN, NL PY,
MP SO, SH TA, UM US
"""
ENGLAND = "1F3F4-E0067-E0062-E0065-E006E-E0067-E007F"
MEMBER = "(1F9D1|1F9D2|1F466|1F467)"  # of a family, man and woman read as person


class _Emoji(NamedTuple):
    character: str
    code: str  # with every variation selector: Unicode's fully-qualified sequence
    group: str
    subgroup: str


def emoji(language: str | Sequence[str] = "en", *, skin_tones: bool = False,
          size: int = 224, limit: int | None = None,
          style: str | Sequence[str] = "openmoji",
          keywords: str | Sequence[str] = ()) -> Pairs:
    """1,914 emoji (3,944 with skin tones), each a drawing and its name.

    Columns: `image` (Lazy, RGB of size × size on white), `text` (the name in the first
    language), and `text_<code>` for each further one. ids are code points ("1F600").
    Labels `group` and `subgroup` are Unicode's. `group` of the pairs keeps variants
    together: see `SAME`. Emoji whose files hold the same drawing (Norway and Svalbard,
    cook and man cook) are one item: either name is right for it.

    Args:
        language: one of `LANGUAGES`, or several, the first of which gives `text`.
        skin_tones: also the variants of a person or hand in five skin tones.
        size: side of the drawings in pixels.
        limit: only so many groups, the same at each call (for tests and small runs).
        style: whose drawings: "openmoji", "noto" (1,652), "twemoji" (1,908), "fluent"
            (1,594). Of several, one after the other, ids are "1F600 noto", the label
            `style` says whose a row is, and the drawings of a thing are one item.
        keywords: languages of CLDR (about 130) for a column of keywords ("animal,
            dog, pet"), `keywords`, then `keywords_<code>`; 326 flags, families and
            other sequences have none.

    Raises: ValueError for an unknown language or style or a number out of range;
        FetchError, which says what to install or bring, where a style is not here.
    """
    languages = choose(language, LANGUAGES)
    styles = choose(style, list(STYLES), "style")
    if size < 8:
        raise ValueError(f"size must be at least 8 pixels, got {size}")
    drawn = {name: drawings(name) for name in styles}
    known = {column("text", code, languages[0]): names(code) for code in languages}
    if keywords:
        read = read_keywords(keywords)
        keywords = list(read)
        known |= {column("keywords", code, keywords[0]): words
                  for code, words in read.items()}

    found = [row for row in _unicode_list()
             if (skin_tones or not re.search("1F3F[B-F]", row.code))
             and any(bare(row.code) in each for each in drawn.values())]
    item, group, things = _alike(found, drawn)
    at = [(name, i) for name in styles for i in some_groups(group, things, limit)
          if bare(found[i].code) in drawn[name]]
    rows = [found[i] for _, i in at]
    stems = {code: path.stem for code, path in drawings("openmoji").items()}
    values = {"group": [row.group for row in rows],
              "subgroup": [row.subgroup for row in rows]}
    if len(styles) > 1:
        values["style"] = [name for name, _ in at]
    label_names = {label: _distinct(each) for label, each in values.items()}
    texts = {name: [_said(words, row.character) for row in rows]
             for name, words in known.items()}
    pictures = [drawn[name][bare(found[i].code)] for name, i in at]
    return Pairs.make(
        {"image": Lazy(pictures, partial(draw, size=size), version=BY_PROVENANCE),
         **texts},
        ids=[stems[bare(found[i].code)] + f" {name}" * (len(styles) > 1)
             for name, i in at],
        item=_first_alike([item[i] for _, i in at]),
        group=_first_alike([group[i] for _, i in at]),
        present={name: torch.tensor([bool(text) for text in each])
                 for name, each in texts.items()},
        labels={label: torch.tensor([label_names[label].index(value) for value in each])
                for label, each in values.items()},
        label_names=label_names,
        provenance=_provenance(languages, styles, keywords,
                               f"{RECIPE} {languages} {skin_tones} {size} {limit}"),
    )  # fmt: skip


def _provenance(languages: list[str], styles: list[str], keywords: str | Sequence[str],
                recipe: str) -> Provenance:
    drawn = [STYLES[name] for name in styles]
    assets = [*(style.asset for style in drawn), "emoji-names", "emoji-groups"]
    source = f"{', '.join(s.source for s in drawn)}, CLDR names of emoji 2.16.0"
    if keywords:
        assets, recipe = [*assets, "emoji-keywords"], f"{recipe} {keywords}"
        source += ", keywords of CLDR 48.2.0"
    return Provenance(
        "emoji", "real",
        f"drawings {', '.join(s.licence for s in drawn)}; names Unicode-3.0",
        source, RECIPE, sources_hash(assets, recipe),
    )  # fmt: skip


def _alike(rows: list[_Emoji], drawn: dict[str, dict]) -> tuple[list, list, list]:
    """(item, group, thing) of each emoji: items share a drawing, groups a thing too."""
    english = names("en")
    things = [_thing(row, english[row.character]) for row in rows]
    if list(drawn) != ["openmoji"]:
        same = {thing: alike[0] for alike in ALIKE for thing in alike}
        things = [same.get(thing, thing) for thing in things]
    contents = [[content(each[bare(row.code)]) for each in drawn.values()
                 if bare(row.code) in each] for row in rows]
    keys = [[("thing", thing), *each]
            for thing, each in zip(things, contents, strict=True)]
    return together(contents), together(keys), things


def _said(words: dict[str, str], character: str) -> str:
    """What a table says of a character; some leave its variation selectors out."""
    return words.get(character) or words.get(character.replace("\ufe0f", ""), "")


def names(language: str) -> dict[str, str]:
    """{emoji: name} in one of `LANGUAGES`, as people write it: "smiling face"."""
    file = "emoji.json" if language == "en" else f"emoji_{language}.json"
    read = json.loads((asset("emoji-names") / file).read_text("utf-8"))
    if language == "en":
        read = {character: entry["en"] for character, entry in read.items()}
    return {c: name.strip(":").replace("_", " ").strip() for c, name in read.items()}


def sources_hash(assets: Sequence[str], recipe: str) -> str:
    """sha256 (hex) over the hashes of the assets' bytes and the recipe."""
    entries = manifest()
    bytes_of = [entries[name].get("tree") or entries[name]["files"] for name in assets]
    return hashlib.sha256(json.dumps([bytes_of, recipe]).encode()).hexdigest()


def _unicode_list() -> list[_Emoji]:
    """Unicode's fully-qualified emoji in its order, with group and subgroup."""
    found, group, subgroup = [], "", ""
    text = (asset("emoji-groups") / "emoji-test.txt").read_text("utf-8")
    for line in text.splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ")
        elif "; fully-qualified" in line:
            points = line.split(";")[0].split()
            character = "".join(chr(int(point, 16)) for point in points)
            found.append(_Emoji(character, "-".join(points), group, subgroup))
    return found


def _thing(row: _Emoji, name: str) -> str:
    """What the drawing shows, its variants aside: equal for what must stay together."""
    if row.subgroup == "keycap":
        return "keycap"
    if row.subgroup == "geometric":
        return name.split()[-1]  # "red circle", "black large square": shape, not colour
    if re.fullmatch("1F31[1-8]", row.code):
        return "circle"  # phases of the moon: the full one is the yellow circle
    if re.fullmatch("1F5(5[0-9A-F]|6[0-7])", row.code):
        return "clock"
    code = re.sub("-1F3F[B-F]", "", bare(row.code))  # skin tones
    code = re.sub("-200D-(2640|2642|27A1|1F9B[0-3])", "", code)  # ♀ ♂ ➡, hair
    code = re.sub("1F46[89]", "1F9D1", code)  # man, woman: person
    if code == "1F46A" or re.fullmatch(f"{MEMBER}(-200D-{MEMBER})+", code):
        return "family"
    return _same().get(code, code)


@cache
def _same() -> dict[str, str]:
    """{code: the first code of its set} for the sets above."""
    def flag(country: str) -> str:
        return "-".join(f"{0x1F1E6 + ord(letter) - ord('A'):X}" for letter in country)

    sets = [line.split() for line in SAME.split(",")]
    for line in SAME_FLAGS.split(","):
        sets.append([ENGLAND if c == "ENGLAND" else flag(c) for c in line.split()])
    return {code: codes[0] for codes in sets for code in codes}


def _first_alike(values: list) -> list[int]:
    """For each value the row where it stands first: a number for equal values."""
    first: dict = {}
    return [first.setdefault(value, row) for row, value in enumerate(values)]


def _distinct(values: list[str]) -> list[str]:
    return list(dict.fromkeys(values))
