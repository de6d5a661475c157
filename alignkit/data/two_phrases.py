"""Captions of `objects` heard in two phrases: "a dog", and at a fixed moment "on a blue
disc". With every phrase in every voice once, any caption is heard in any voice.

    phrases = add_features(two_phrases(), "speech", "fbank:32x30", tokens=True)
    frames = said(phrases["speech_tokens"], voice, caption)

The numbers of voices and captions are places in `VOICES` and `captions()`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from alignkit.data.columns import Tokens
from alignkit.data.corpora import choose
from alignkit.data.heard import RECIPE, VOICES, spoken
from alignkit.data.objects import plate_caption
from alignkit.data.pairs import Pairs, Provenance, Splits
from alignkit.data.scenes import COLOURS, NOUNS, SHAPES
from alignkit.data.speech import ENGINE, engine_folder

PLATES = [(colour, shape) for colour in COLOURS for shape in SHAPES]


def captions(nouns: Sequence[str] = tuple(NOUNS)) -> list[str]:
    """All captions of the nouns, noun by noun, a plate after the other."""
    return [plate_caption(*plate, noun) for noun in nouns for plate in PLATES]


def two_phrases(nouns: Sequence[str] = tuple(NOUNS)) -> Pairs:
    """Every phrase said by every one of `VOICES`: voice by voice "a dog" of all nouns, then
    "on a blue disc" of all plates.

    Columns: `speech` (Lazy sounds) and `text_heard`. Labels `voice` and `phrase`.
    Raises ValueError for an unknown noun; FetchError where espeak-ng is not to be had.
    """
    nouns = choose(nouns, NOUNS, "noun")
    engine_folder()  # says now, and not at the first sound, if it cannot be had
    halves = [text.partition(" on ") for text in captions(nouns)]
    phrases = [first for first, _, _ in halves[::len(PLATES)]]
    phrases += [f"on {last}" for _, _, last in halves[:len(PLATES)]]
    rows = [(voice, phrase) for voice in VOICES for phrase in phrases]
    told = f"two phrases, {RECIPE} {ENGINE} {VOICES} {phrases}"
    return Pairs.make(
        {"speech": spoken([(phrase,) for _, phrase in rows], [voice for voice, _ in rows]),
         "text_heard": [phrase for _, phrase in rows]},
        labels={"voice": [VOICES.index(voice) for voice, _ in rows],
                "phrase": [phrases.index(phrase) for _, phrase in rows]},
        label_names={"voice": list(VOICES), "phrase": phrases},
        provenance=Provenance("phrases", "generated", "none needed: words", ENGINE, RECIPE,
                              hashlib.sha256(told.encode()).hexdigest()),
    )  # fmt: skip


def said(phrases: Tokens, voice: Tensor, caption: Tensor, slot: int = 27) -> Tokens:
    """Log-mel frames of captions in voices (numbers [n]): the noun's phrase, silence until
    frame `slot` (0.81 s at 30 ms), and the plate's phrase.

    phrases: the frames of all rows of `two_phrases`, in their order.
    Raises ValueError if a noun's phrase is longer than `slot`.
    """
    values, real = phrases
    nouns = len(values) // len(VOICES) - len(PLATES)
    at = voice * (nouns + len(PLATES))
    first, second = at + caption // len(PLATES), at + nouns + caption % len(PLATES)
    if real[first, slot:].any():
        raise ValueError(f"slot is {slot} frames, but a noun's phrase is longer: "
                         f"{int(real[first].sum(1).max())}")
    opening = values[real].min().expand(len(voice), slot, values.shape[2]).clone()
    shown = values[first, :slot]
    opening[:, :shown.shape[1]][real[first, :slot]] = shown[real[first, :slot]]
    return Tokens(torch.cat([opening, values[second]], 1),
                  torch.cat([torch.ones(len(voice), slot, dtype=torch.bool),
                             real[second]], 1))


def split_said(pairs: Pairs, phrases: Tokens, seed: int, each: int = 3,
               voices: tuple[int, int, int] = (10, 3, 3)) -> Splits:
    """Pictures of `objects` and the voices that say them; no voice and no caption is in two
    parts (70, 10 and 20 % of the captions, so many `voices`).

    A training picture is said by `each` voices of its part; of the others one picture a
    caption is taken, said by all. Adds `speech_tokens` and the labels `voice` and
    `caption`. Rows of one picture have one id.

    Raises ValueError if the captions are not those of the phrases' nouns, or the voices
    do not fit.
    """
    nouns = len(phrases.values) // len(VOICES) - len(PLATES)
    shown = pairs.labels["noun"].unique()
    if len(shown) != nouns or sum(voices) != len(VOICES) or not 1 <= each <= voices[0]:
        raise ValueError(f"pairs show {len(shown)} nouns and the phrases have {nouns}; voices "
                         f"must sum to {len(VOICES)}, got {voices}; each must lie between "
                         f"1 and {voices[0]}, got {each}")
    g = torch.Generator().manual_seed(seed)
    caption = (torch.searchsorted(shown, pairs.labels["noun"]) * len(PLATES)
               + pairs.labels["colour"] * len(SHAPES) + pairs.labels["shape"])
    count = nouns * len(PLATES)
    sizes = [round(0.7 * count), round(0.1 * count)]
    parts = torch.randperm(count, generator=g).split([*sizes, count - sum(sizes)])
    speakers = torch.randperm(len(VOICES), generator=g).split(list(voices))
    found = []
    for k, (mine, there) in enumerate(zip(parts, speakers, strict=True)):
        rows = torch.isin(caption, mine).nonzero()[:, 0]
        if k:
            rows = torch.stack([rows[caption[rows] == c][0] for c in caption[rows].unique()])
            voice = there.repeat(len(rows), 1)
        else:
            voice = torch.stack([there[torch.randperm(len(there), generator=g)[:each]]
                                 for _ in rows])
        rows, voice = rows.repeat_interleave(voice.shape[1]), voice.flatten()
        part = pairs.select(rows).with_features(
            speech_tokens=said(phrases, voice, caption[rows]))
        found.append(replace(part, labels={**part.labels, "voice": voice,
                                           "caption": caption[rows]}))
    return Splits(*found)
