"""What WordNet says of a noun: texts that define the classes of a set of pictures."""

from functools import cache

from alignkit.data.fetch import asset

# The sense that a drawing of `scenes` shows, where it is not WordNet's first ("kite": a
# bank check that was altered).
SENSES = {"turtle": 2, "whale": 2, "octopus": 2, "hedgehog": 2, "banana": 2, "pineapple": 2,
          "mushroom": 2, "cake": 3, "doughnut": 2, "book": 2, "hammer": 2, "balloon": 2,
          "kite": 3, "crown": 4}  # fmt: skip
# Pointers in data.noun, in the order in which their synsets are told: wider, topic, narrower.
TOLD = ("@", "@i", ";c", "~", "~i")


def definition(noun: str, sense: int | None = None, words: int = 60) -> str:
    """Words, definition and examples of the noun's synset, then of the synsets around it
    (wider ones, its topic, narrower ones), one after the other; at most `words` words.

    Args:
        noun: as WordNet has it, with spaces ("guinea pig"), in any case.
        sense: which of its synsets, from 1 on; None: that of `SENSES`, else the first.
        words: of the text at most; encoders cut long ones.

    Raises: ValueError for a noun or a sense that WordNet does not have; FetchError, which
        says what to install or bring, where WordNet is not here.

    Example:
        >>> definition("kite", words=8)
        'kite: plaything consisting of a light frame covered'
    """
    found = _index().get(noun.lower().replace(" ", "_"))
    if not found:
        raise ValueError(f"noun {noun!r} is not in WordNet")
    sense = SENSES.get(noun.lower(), 1) if sense is None else sense
    if not 1 <= sense <= len(found):
        raise ValueError(f"sense of {noun!r} must lie between 1 and {len(found)}, got {sense}")
    told, pointers = _synset(found[sense - 1])
    around = [_synset(at)[0] for kind in TOLD for symbol, at in pointers if symbol == kind]
    return " ".join("; ".join([told, *around]).split()[:words])


def senses(noun: str) -> list[str]:
    """Words, definition and examples of every synset of a noun, the most frequent first.

    Raises as `definition` does.
    """
    definition(noun)
    return [_synset(at)[0] for at in _index()[noun.lower().replace(" ", "_")]]


@cache
def _index() -> dict[str, list[int]]:
    """{word: places of its synsets in data.noun}."""
    found = {}
    for line in (asset("wordnet") / "index.noun").read_text("utf-8").splitlines():
        if not line.startswith(" "):  # the licence
            fields = line.split()
            found[fields[0]] = [int(at) for at in fields[-int(fields[2]):]]
    return found


def _synset(at: int) -> tuple[str, list[tuple[str, int]]]:
    """("words: definition and examples", (symbol, place) of its pointers to nouns)."""
    with (asset("wordnet") / "data.noun").open("rb") as file:
        file.seek(at)
        left, _, gloss = file.readline().decode("utf-8").partition(" | ")
    fields = left.split()
    n = int(fields[3], 16)
    words = [word.replace("_", " ") for word in fields[4:4 + 2 * n:2]]
    rest = fields[5 + 2 * n:]
    pointers = [(symbol, int(place)) for symbol, place, kind
                in zip(rest[::4], rest[1::4], rest[2::4]) if kind == "n"]
    return f"{', '.join(words)}: {gloss.strip()}", pointers
