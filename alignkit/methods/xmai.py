"""XMAI: attribute words inserted into a caption, chosen so that it fits its picture less.

Paper: Cross-Modal Attribute Insertions for Assessing the Robustness of Vision-and-Language
Learning. Ramshetty, Verma, Kumar, ACL 2023, arXiv 2306.11065.

Claim: put an attribute before a noun that the picture shows too ("little girl on a wooden
chair"); a masked language model proposes it, a detector says which attributes are there. Of
proposals that are likely and near to these, take the one that the encoder finds least alike
to the picture. Models then find and decide less rightly, though the text reads as well: CLIP's
mean reciprocal rank on COCO falls by 15 %.

Use it when: a dual encoder is to be tried on captions that say more than those it is tested
on, and you have a detector (or tables) for objects and attributes. Read some of the captions
before you speak of robustness: a word that is false of the picture may rightly cost a rank, and
one that the encoder never read costs whatever it says. Most of what is lost here is lost by one
such word, true of every picture ("large"), with no attack at all.

Equations, T a caption, detections (attribute a_j, object o_j) of its picture v:
    places: before words of T, not its first, where some o_j begins for the first time; if there
        is none, before content words w with cos(w, o_j) ≥ t
    candidates at place m: of the 20 most likely words at a mask there, T masked at all places
        up to m, without stop words, the object and the 3 words before: the first k, chances p_i
    P_i = p_i,  S_i = max_j cos(i, a_j) over the place's detections,  D_i = 1 − cos(f(T_i), g(v)),
        T_i the caption with the words chosen so far and i; each scaled to 0 … 1 over the k
    chosen: argmax_i (λ₁ P_i + λ₂ S_i + λ₃ D_i) / (λ₁ + λ₂ + λ₃), from left to right
    the paper: k = 3, λ = (1, 5, 5), t = 0.7

Frozen: all; nothing is trained.
Exact property: without a match the caption stays as it is; taking the inserted words out gives
it back. λ₂ = λ₃ = 0 inserts the most likely candidate; λ₁ = λ₂ = 0 and one place, the caption
least alike to the picture of all k; k = 1 makes the weights idle; a common factor of the weights
or the same number added to all D_i changes nothing; equal values of a part count for nothing.
Deviations: from the official code (claws-lab/multimodal-robustness-xmai, commit decde90,
XMAI/xmai_generate.py). Words, not word pieces; a piece that only goes on a word ("##ly") is no
candidate, lines 213–219 take it. The language model reads a sentence with its ends (line 321
puts '' there). The three words before a place are dropped wherever it stands; line 200's slice
is empty for the first two. Sentences of which D is taken leave later masks out; lines 389–396
leave "[MASK]" in. An object is found where it stands as whole words; line 167 gives up if its
letters stand earlier inside another word. Two objects that begin at one word share a place; lines
172–173 pass over the second. Content words are all but stop words, of a list of our own
that also keeps candidates out ("many", "near" and "one" are no stop words of NLTK's, which
utils.py, line 79, takes); lines 127–128 ask a tagger for nouns. Words are compared without regard
to case; line 217 minds it. Of fewer than k candidates P is scaled over those there are; line 196
fills up with zeros, so that line 361 takes 0 for the lowest (at k = 3 and λ = (1, 5, 5) the same
word is chosen). A tie counts against the own picture; evaluation.py, lines 67–69, gives it the
best rank. "This is " stands before captions at the scale of CLIP alone (line 272: always). One embedding serves both cosines (the
paper: spaCy's and a sentence encoder's). Run beside lines 150–177 and 286–429 on the same
candidates, cosines and D, 144 captions come out alike; an independent reader ran 400 others, half
of them with fewer than k candidates: alike too, but for the "[MASK]" that D leaves out. The same
reader ran the claims on eight fresh sets of pictures (seeds from 5000; the shipped towers and fused
models are the same eight): the headline +0.509 [+0.459, +0.558], `true-word` +0.430 [+0.377,
+0.483]; `random` holds there, +0.067 [+0.044, +0.090], and all other verdicts are the same. Not built: entailment (METER, SNLI-VE),
the quality of the texts, and the attacks on text alone (EDA, CLARE, deletion).
Reconstructed: nothing of the attack; the paper's text was read in the abstract alone, so the
constants are those of the authors' files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from alignkit.parts import Method, unit
from alignkit.parts.masked_words import HIDDEN

STOP = frozenset(
    "a about above after all along also am an and any are around as at be because been before "
    "behind below beneath beside between both but by can did do does down each for from front "
    "had has have he her here him his how i if in inside into is it its just like many me "
    "more most my near next no not of off on one or other our out over own right she so some "
    "such than that the their them then there these they this those through to too under until "
    "up very was we were what when where which while who whose why will with you your".split())


@dataclass(frozen=True)
class XmaiSettings:
    """k candidates of the `top` most likely words; weights λ of chance, agreement and
    dissimilarity; threshold of a near object; prefix of the sentences that the dual encoder
    reads. image, text: columns of its rows, of pictures and of the captions to be judged."""

    k: int = 3
    weights: tuple[float, float, float] = (1.0, 5.0, 5.0)
    threshold: float = 0.7
    top: int = 20
    prefix: str = ""
    image: str = "image_features"
    text: str = "text_features"

    def __post_init__(self):
        if self.k < 1 or self.top < self.k or min(self.weights) < 0 or not sum(self.weights):
            raise ValueError("k must be at least 1, top at least k, and weights not negative, "
                             f"one above 0, got {self.k}, {self.top}, {self.weights}")


class Tools(NamedTuple):
    """The models that the attack asks.

    propose: sentences (lists of words, `HIDDEN` where one is masked) -> chances [n, words of
    `vocabulary`] at the last mask; alike: words, words -> cosines [n, m]; read: texts -> rows
    [n, d] of the dual encoder.
    """

    vocabulary: Sequence[str]
    propose: Callable[[list[list[str]]], Tensor]
    alike: Callable[[Sequence[str], Sequence[str]], Tensor]
    read: Callable[[list[str]], Tensor]


class Spot(NamedTuple):
    """Where a word goes in: before the caption's word `place`, an object with these
    attributes. words: candidates, the likeliest first, and their chances."""

    place: int
    attributes: tuple[str, ...]
    words: tuple[str, ...] = ()
    chances: tuple[float, ...] = ()


Detected = Sequence[tuple[str, str]]  # (attribute or "", object) each


def spots(text: str, detected: Detected, alike=None, threshold: float = 0.7) -> list[Spot]:
    """The places of a caption, from left to right; without `alike` only of objects that it
    names."""
    words, found = text.split(), {}
    for attribute, thing in detected:
        named = thing.split()
        at = next((i for i in range(1, len(words)) if words[i:i + len(named)] == named), None)
        if named and at is not None:
            found.setdefault(at, []).append(attribute)
    if not found and detected and alike is not None:
        content = list(dict.fromkeys(w for w in words if w.lower() not in STOP))
        near = alike(content, [thing for _, thing in detected]) >= threshold
        found = {words.index(word): [a for (a, _), here in zip(detected, row) if here]
                 for word, row in zip(content, near.tolist(), strict=True) if any(row)}
    return [Spot(at, tuple(filter(None, found[at]))) for at in sorted(found)]


def inserted(text: str, places: Sequence[Spot], chosen: Sequence[str]) -> str:
    """The caption with a word at each of the first places; '' puts none there."""
    words = text.split()
    for spot, word in reversed([*zip(places, chosen)]):
        words[spot.place:spot.place] = [word] if word else []
    return " ".join(words)


def candidates(chances: Tensor, vocabulary: Sequence[str], words: Sequence[str], place: int,
               k: int, top: int) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """At most k words for a place and their chances, the likeliest first."""
    best, at = chances.topk(min(top, len(chances)))
    taboo = {w.lower() for w in words[max(0, place - 3):place + 1]} | STOP
    kept = [(word, chance) for chance, word in
            zip(best.tolist(), (vocabulary[i] for i in at.tolist()))
            if word.isalpha() and word.lower() not in taboo][:k]
    return tuple(w for w, _ in kept), tuple(c for _, c in kept)


def proposed(texts: Sequence[str], detected: Sequence[Detected], tools: Tools,
             settings: XmaiSettings) -> list[list[Spot]]:
    """The spots of every caption with their candidates: what does not depend on the weights
    or on the words that are chosen, so it is asked once."""
    s = settings
    found = [spots(text, seen, tools.alike, s.threshold)
             for text, seen in zip(texts, detected, strict=True)]
    masked = [inserted(text, row[:m + 1], [HIDDEN] * (m + 1)).split()
              for text, row in zip(texts, found) for m in range(len(row))]
    chances = iter(tools.propose(masked))
    return [[spot._replace(**dict(zip(("words", "chances"), candidates(
        next(chances), tools.vocabulary, text.split(), spot.place, s.k, s.top))))
        for spot in row] for text, row in zip(texts, found)]


def scaled(x: Tensor) -> Tensor:
    """[k] to 0 … 1; of equal values the lowest is taken to be 0."""
    low = x.min() if x.min() < x.max() else x.new_zeros(())
    return (x - low) / (x.max() - low).clamp_min(1e-12)


def scores(spot: Spot, dissimilar: Tensor, alike, weights: Sequence[float]) -> Tensor:
    """(λ₁ P + λ₂ S + λ₃ D) / Σλ of a spot's candidates [k]; dissimilar: their D [k]."""
    chance = dissimilar.new_tensor(spot.chances)
    agree = (alike(spot.words, spot.attributes).to(dissimilar).amax(1) if spot.attributes
             else torch.zeros_like(dissimilar))
    parts = zip(weights, (chance, agree, dissimilar), strict=True)
    return sum(weight * scaled(part) for weight, part in parts) / sum(weights)


@torch.no_grad()
def attack(texts: Sequence[str], places: Sequence[Sequence[Spot]], images: Tensor,
           tools: Tools, settings: XmaiSettings) -> list[list[str]]:
    """The word for each place of each caption ('' where there is no candidate), chosen from
    left to right; `inserted` puts them in.

    places: from `proposed`. images: the pictures' rows [n, d] of the dual encoder.
    """
    images, chosen = unit(images), [[] for _ in texts]
    for m in range(max(map(len, places), default=0)):
        rows = [i for i, row in enumerate(places) if len(row) > m]
        tried = [settings.prefix + inserted(texts[i], places[i], [*chosen[i], word])
                 for i in rows for word in places[i][m].words]
        read = iter(unit(tools.read(tried)) if tried else ())
        for i in rows:
            spot = places[i][m]
            if not spot.words:
                chosen[i].append("")
                continue
            dissimilar = 1 - torch.stack([next(read) for _ in spot.words]) @ images[i]
            best = scores(spot, dissimilar, tools.alike, settings.weights).argmax()
            chosen[i].append(spot.words[int(best)])
    return chosen


class Xmai(Method):
    """A frozen dual encoder's own rows of pictures, and of captions as the attack left them
    (the settings' `text`): what is measured."""

    settings: XmaiSettings
    traits = frozenset({"untrained"})

    def build(self, settings: XmaiSettings, pairs) -> None:
        """Nothing to learn, nothing to keep."""

    def stages(self) -> list:
        return []

    def encode(self, batch: dict) -> dict[str, Tensor]:
        s = self.settings
        return {name: unit(batch[column]) for name, column in
                (("image", s.image), ("text", s.text)) if column in batch}
