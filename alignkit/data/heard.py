"""Composed pictures that are heard: what a picture shows, said by one of sixteen voices,
together with a word for something that it does not show, if asked for.

The pictures are those of `objects`, the voices variants of espeak-ng's English one. Whom
one hears, what one hears and what of it is seen are known in every row.
"""

import hashlib
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from alignkit.data.columns import Lazy, take
from alignkit.data.corpora import choose
from alignkit.data.objects import CANVAS, objects
from alignkit.data.pairs import Pairs, Provenance, Splits
from alignkit.data.scenes import NOUNS
from alignkit.data.speech import ENGINE, engine_folder, say

RECIPE = "heard 1"
# f2, f3 and f5 are not the same to the last bit in each process: espeak-ng reads memory for
# them that it has not set.
VOICES = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5",
          "Andrea", "Andy", "Annie", "belinda")
PAUSE = 0.15  # seconds of silence between two phrases
HIDDEN = 8  # pictures of each word that is off the screen


def heard(each: int = 20, *, nouns: Sequence[str] = tuple(NOUNS),
          off_screen: Sequence[str] = (), says: Literal["noun", "caption"] = "noun",
          voices: Sequence[str] = VOICES, corpus_seed: int = 0,
          size: int = CANVAS) -> Pairs:
    """`each` pictures of every one of the `nouns`, each described by one voice.

    Columns: `image`, `text` and `text_short` as in `objects`; `speech` (Lazy sounds) and
    `text_heard`, the words that are said. Labels: those of `objects`, and `voice`. A noun
    is said equally often by every voice, but for what is left over.

    Args:
        off_screen: words of which each sound has one beside what the picture shows,
            before or after it. They are never drawn in `image`. Adds `image_off`, a
            picture of that word, and the labels `off` (which one) and `last` (1: it is
            said last).
        says: the noun alone ("dog"), or the whole of `text` ("a dog on a blue disc").
        voices: of `VOICES`.
        corpus_seed: of pictures, voices and words off the screen.

    Raises: ValueError as `objects` does, for an unknown voice, or for a word that is both
        shown and off the screen; FetchError where espeak-ng is not to be had.

    Example:
        >>> pairs = heard(2, nouns=["dog", "cat", "bee", "owl"], off_screen=["bell"] + [
        ...     "key", "hat", "car"])
        >>> pairs["text_heard"][0]
        'dog, hat'
    """
    nouns, voices = choose(nouns, NOUNS, "noun"), choose(voices, VOICES, "voice")
    hidden = choose(off_screen, NOUNS, "word off the screen") if off_screen else []
    if both := set(nouns) & set(hidden):
        raise ValueError(f"{sorted(both)} cannot be shown and off the screen: take them out "
                         "of nouns or of off_screen")
    if says not in ("noun", "caption"):
        raise ValueError(f"says must be 'noun' or 'caption', got {says!r}")
    engine_folder()  # says now, and not at the first sound, if it cannot be had
    shown = objects(each, nouns=nouns, corpus_seed=corpus_seed, size=size)
    said = [shown.label_names["noun"][k] for k in shown.labels["noun"].tolist()]
    draw = random.Random(f"{RECIPE} {corpus_seed}")
    voice = _dealt(said, voices, draw)
    off = [draw.choice(hidden) for _ in said] if hidden else []
    last = [draw.random() < 0.5 for _ in off]
    phrases = [(phrase,) for phrase in (said if says == "noun" else shown["text"])]
    if hidden:
        phrases = [(*one, word) if at_end else (word, *one)
                   for one, word, at_end in zip(phrases, off, last, strict=True)]
    columns = {**shown.columns, "speech": spoken(phrases, voice),
               "text_heard": [", ".join(one) for one in phrases]}
    numbers = {"voice": [voices.index(v) for v in voice]}
    if hidden:
        columns["image_off"] = _pictures(off, hidden, corpus_seed, size)
        numbers |= {"off": [hidden.index(word) for word in off], "last": last}
    told = f"{RECIPE} {ENGINE} {shown.provenance.hash} {HIDDEN} {voice} {phrases}"
    return Pairs.make(
        columns, ids=[name.replace("object", "heard") for name in shown.ids],
        labels=shown.labels | {k: torch.tensor(v).long() for k, v in numbers.items()},
        label_names=shown.label_names | {"voice": voices}
        | ({"off": hidden, "last": ["first", "last"]} if hidden else {}),
        provenance=Provenance(
            "heard", "composed", shown.provenance.licence,
            f"{shown.provenance.source}, described by {ENGINE}", RECIPE,
            hashlib.sha256(told.encode()).hexdigest()),
    )  # fmt: skip


def spoken(phrases: Sequence[Sequence[str]], voices: Sequence[str]) -> Lazy:
    """A sound column: the phrases of each row, one after the other, in the row's voice.

    Raises ValueError for an unknown voice, or where the numbers of rows differ.
    """
    if len(phrases) != len(voices):
        raise ValueError(f"voices has {len(voices)} rows, phrases {len(phrases)}")
    if unknown := set(voices) - set(VOICES):
        raise ValueError(f"voices: {sorted(unknown)} are unknown; there are "
                         f"{', '.join(VOICES)}")
    return Lazy([(voice, tuple(row)) for voice, row in zip(voices, phrases, strict=True)],
                recite, "sound", version=f"{RECIPE} {ENGINE}")


def recite(source: tuple[str, tuple[str, ...]]) -> tuple[Tensor, int]:
    """(waveform [t] float32, rate in Hz) of the phrases of a (voice, phrases), with
    `PAUSE` between two of them."""
    voice, phrases = source
    parts, rate = [], 0
    for phrase in phrases:
        wave, rate = _say(voice, phrase)
        parts += [wave, wave.new_zeros(round(PAUSE * rate))]
    return torch.cat(parts[:-1]), rate


@lru_cache(maxsize=2048)  # the words of a corpus in every voice: some 60 MB
def _say(voice: str, phrase: str) -> tuple[Tensor, int]:
    return say((f"en+{voice}", phrase))


def split_by_voice(pairs: Pairs, seed: int,
                   voices: tuple[int, int, int] = (10, 3, 3)) -> Splits:
    """Redraw train, val and test so that no voice is heard in two of them: so many voices
    each. Where every picture has one voice, no picture is seen in two of them either.

    Raises ValueError without a label `voice`, if the numbers do not fit the voices that
    there are, or if rows of one item have several voices.
    """
    if "voice" not in pairs.labels:
        raise ValueError(f"pairs needs the label voice, it has {sorted(pairs.labels)}")
    label = pairs.labels["voice"]
    there = label.unique()
    if min(voices) < 1 or sum(voices) != len(there):
        raise ValueError(f"voices: three numbers above 0 with the sum {len(there)}, as many "
                         f"as there are, got {tuple(voices)}")
    if len(torch.stack([pairs.group, label]).unique(dim=1)[0]) != len(pairs.group.unique()):
        raise ValueError("rows of one group have several voices: they would stand on both "
                         "sides")
    order = torch.randperm(len(there), generator=torch.Generator().manual_seed(seed))
    return Splits(*(pairs.select(torch.isin(label, part))
                    for part in there[order].split(list(voices))))


def _dealt(said: Sequence[str], voices: Sequence[str], draw: random.Random) -> list[str]:
    """A voice a row: each noun goes through all voices in an order of its own."""
    left: dict[str, list[str]] = {}
    dealt = []
    for noun in said:
        if not left.get(noun):
            left[noun] = draw.sample(voices, len(voices))
        dealt.append(left[noun].pop())
    return dealt


def _pictures(words: Sequence[str], hidden: Sequence[str], corpus_seed: int,
              size: int) -> Lazy:
    """A picture of each word: `HIDDEN` of every one in turn, with clutter of `hidden`."""
    pool = objects(HIDDEN, nouns=hidden, corpus_seed=corpus_seed, size=size)
    rows: dict[str, int] = dict.fromkeys(hidden, 0)
    at = []
    for word in words:
        at.append(rows[word] % HIDDEN * len(hidden) + hidden.index(word))
        rows[word] += 1
    return take(pool["image"], torch.tensor(at))
