"""GRAM's claims: do a picture and a sound that were only ever compared with their text
find each other, and do both together find the text's row better?

Corpus: OpenMoji's drawings, their English names, and these names read aloud by a
synthesiser (generated speech: espeak-ng). The text is the anchor. A name and its sound
say the same to a person, but the encoder of the sound (Whisper, pooled) knows little of
meaning and the encoder of the text nothing of sound.

Arms, all with the same linear heads without bias, learned temperature, smoothing, budget
and grid of rates: `anchored` is InfoNCE of text with picture and of text with sound;
`all-pairs` adds picture with sound, which makes it the fair strong baseline; `gram` is
the volume of all three. Each arm ranks with the score that it was trained on: volumes, or
(sums of) cosines. The arms' weights are chosen on validation by the mean of both figures
that are measured: picture and sound find each other, and a text finds both together.

Decided by pilots on `anchored` alone, before any volume was trained at this scale:

- hit@10, not hit@1: among 400 new rows (the pilots used all 1,914 that there are) picture
  and sound find each other at hit@1 in 0.01 to 0.02 of the cases, which shows nothing; at
  hit@10 in about 0.13 (chance 0.03).
- No noise is added. A text finds its picture at hit@10 in about 0.3 of the cases, its
  sound in 0.5, both together in 0.57: each view is weak by itself (20 to 60 %), and
  together they are better.
- Width 128 and 300 steps of 128 rows. The baseline needs 150; but near right angles, where
  all heads start, a volume is flat (a run at the scale for tests showed it lag after 20
  steps), so every arm gets twice as many. Planned were 2 to 5 thousand rows; 1,200
  groups of emoji (1,436 rows) are what a minute of encoding allows.
- Margin 0.02 for `non-anchor`, a sixth of the baseline's 0.13: expected were several
  points. For the other claims zero: against `all-pairs` the volume was expected only to
  match, so that any gain would count.
- The control shuffles picture and sound each by itself. With shuffled texts alone they
  would still belong together, and the volume would learn that.

With pairs of a user's own that have no third modality one claim is run: volume, which is
then √(1 − cos²), against cosine.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import combinations
from statistics import mean

import torch

from alignkit.claims.claim import Arm, Claim, Condition, Null, Trained
from alignkit.claims.common import GPU, WORTH, Encoders, image_text, rates
from alignkit.data import Lazy, Pairs, Splits, shuffle_pairs
from alignkit.data.columns import parent
from alignkit.data.emoji import emoji
from alignkit.data.speech import speech
from alignkit.encoders import add_features
from alignkit.evaluation import encode_pairs, evaluate_retrieval, retrieval
from alignkit.methods.gram import AllPairs, Anchored, Gram, GramSettings
from alignkit.parts import Method
from alignkit.training import Budget

NEEDS = ("image", "text")


@dataclass(frozen=True)
class Scale(Encoders):
    """Groups of emoji that are read aloud (None: all); encoders, width, budget."""

    groups: int | None = 1200
    sound: str = "sound:whisper-tiny.en"
    width: int = 128
    budget: Budget = Budget(steps=300, batch_size=128, lr=1e-3, validate_every=50,
                            select_by="hit@10")


SCALES = {
    # Few rows and steps: the code path in seconds, no claim is read off it.
    "tiny": Scale(groups=70, budget=replace(Scale.budget, steps=20, validate_every=10)),
    "small": Scale(),
    # One 16 GB GPU; bring rows of your own (`--pairs`), some thousand.
    "gpu": Scale(**GPU, width=256,
                 budget=replace(Scale.budget, steps=2000)),
    # The paper's width and batch, its first five epochs of 150,000 rows; heads alone.
    "full": Scale(image="timm:eva_giant_patch14_clip_224.laion400m",
                  text="hf:google-bert/bert-base-uncased", width=512,
                  budget=replace(Scale.budget, steps=5860, betas=(0.9, 0.98), lr=2e-5,
                                 weight_decay=0.01, warmup=0.1, clip=2.0)),
}


def data(scale: str = "small", pairs: Pairs | None = None) -> Pairs:
    """Emoji, their English names and these names read aloud by a synthesiser; or the
    user's `pairs` (with `image` and `text`), whose sounds and tensors are further
    modalities. Rows that lack one are left out.

    Raises ValueError as `image_text` does.
    """
    s = SCALES[scale]
    read_aloud = pairs is None and scale in ("tiny", "small")
    pairs = emoji() if read_aloud else image_text(scale, pairs)
    pairs = add_features(pairs, "image", s.image)
    pairs = add_features(pairs, "text", s.text)
    if read_aloud:
        return spoken(pairs, s)
    for name in further(pairs):
        if isinstance(pairs[name], Lazy):
            pairs = add_features(pairs, name, s.sound)
    here = torch.stack([pairs.present[c] for c in towers(pairs).values()]).all(0)
    return pairs if here.all() else image_text(scale, pairs.select(here))


def spoken(pairs: Pairs, s: Scale) -> Pairs:
    """The emoji of `pairs` that are read aloud, with `speech` and its features."""
    sounds = speech("en", kind="generated", limit=s.groups)
    sounds = add_features(sounds, "speech", s.sound)
    place = {name.split()[0]: row for row, name in enumerate(sounds.ids)}
    pairs = pairs.select([row for row, name in enumerate(pairs.ids) if name in place])
    sounds = sounds.select([place[name] for name in pairs.ids])
    pairs = pairs.with_features(speech=sounds["speech"],
                                speech_features=sounds["speech_features"])
    return replace(pairs, provenance=sounds.provenance)


def further(pairs: Pairs) -> list[str]:
    """Columns beside image and text that are a modality: sounds, and tensors [n, d] that
    were not made of another column."""
    return [name for name, column in pairs.columns.items()
            if isinstance(column, Lazy) and column.kind == "sound"
            or isinstance(column, torch.Tensor) and column.is_floating_point()
            and column.dim() == 2 and parent(name, pairs.columns) is None]


def towers(pairs: Pairs) -> dict[str, str]:
    """Modality -> its features; the text is the anchor and stands first."""
    columns = {name: name if isinstance(pairs[name], torch.Tensor) else f"{name}_features"
               for name in further(pairs)}
    return {"text": "text_features", "image": "image_features", **columns}


def each_other(method: Method, rows: Pairs, modalities: Sequence[str]) -> float:
    """hit@10 between every two of the modalities, the mean of both directions."""
    return mean(evaluate_retrieval(method, rows, a, b)["mean"]["hit@10"]
                for a, b in combinations(modalities, 2))


def together(method: Method, rows: Pairs, score: Callable | None = None,
             modalities: Sequence[str] = ()) -> float:
    """hit@10 of a text that looks for the row of all its other modalities (or of some),
    ranked by the method's own score if no other is given."""
    anchor, *others = method.settings.towers
    outputs = encode_pairs(method, rows, [anchor, *others])
    gallery = tuple(outputs[name] for name in modalities or others)
    return retrieval(outputs[anchor], gallery, rows.item, rows.item,
                     score=score or method.score)["hit@10"]


def validation(method: Method, splits: Splits) -> dict[str, float]:
    """The mean of both figures that the claims measure."""
    anchor, *others = method.settings.towers
    if len(others) == 1:
        return {"hit@10": each_other(method, splits.val, (anchor, *others))}
    return {"hit@10": (each_other(method, splits.val, others)
                      + together(method, splits.val)) / 2}


def others_find_each_other(trained: Mapping[str, Trained]) -> dict[str, float]:
    """A claim's `measure`: every two modalities but the anchor; two: both of them."""
    figures = {}
    for name, arm in trained.items():
        modalities = list(arm.method.settings.towers)
        asked = modalities[1:] if len(modalities) > 2 else modalities
        figures[name] = each_other(arm.method, arm.splits.test, asked)
    return figures


def text_finds_all(trained: Mapping[str, Trained]) -> dict[str, float]:
    """A claim's `measure`: `together` by the arm's own score; beside it, by both scores
    for every arm, and by each single view."""
    figures = {}
    for name, (method, splits, _) in trained.items():
        figures[name] = together(method, splits.test)
        for ranking, of in (("volume", Gram), ("sum", Anchored)):
            score = partial(of.score, method)
            figures[f"{name}, {ranking}"] = together(method, splits.test, score)
        for view in list(method.settings.towers)[1:]:
            figures[f"{name}, {view}"] = together(method, splits.test, modalities=[view])
    return figures


def single_view(trained: Trained) -> float:
    """hit@10 of a text that looks for its best other modality alone."""
    method, splits, _ = trained
    return max(together(method, splits.test, modalities=[view])
               for view in list(method.settings.towers)[1:])


def nothing_paired(splits: Splits, seed: int) -> Splits:
    """A null's `transform`: every training column but one is shuffled by itself.

    Shuffled texts alone would leave picture and sound of a row together.
    """
    train, modalities = splits.train, towers(splits.train)
    for k, name in enumerate(list(modalities)[1:]):
        train = shuffle_pairs(train, name, seed + 1000 * (k + 1))
    return splits._replace(train=train)


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The claims on `pairs` (from `data`); with two modalities one alone."""
    s, used = SCALES[scale], towers(pairs)
    rows = pairs.only(*dict.fromkeys([*used, *used.values()]))

    @lru_cache(maxsize=2)
    def splits_of(seed: int) -> Splits:
        return rows.split(seed)

    settings = GramSettings(towers=used, width=s.width)
    arms = {name: Arm(splits_of, lambda splits, kind=kind: kind(settings, splits.train))
            for name, kind in (("anchored", Anchored), ("all-pairs", AllPairs),
                               ("gram", Gram))}
    common = dict(
        method="gram", differs="method", figure="hit@10", budget=s.budget,
        validate=validation, choose_by="hit@10", grid=rates(1e-3, 3e-3, 1e-2, 3e-2),
        null=Null("nothing is paired in training", nothing_paired, 0.0, 0.02))

    def against(baseline: str, **rest) -> dict:
        return {**common, "baseline": baseline,
                "arms": {name: arms[name] for name in (baseline, "gram")}, **rest}

    room = Condition("hit@10 of text -> its better single view", single_view, 0.2, 0.6)
    if len(used) == 2:
        return [Claim(
            name="two-modalities", headline=True, **WORTH, measure=others_find_each_other,
            sentence="With two modalities the volume retrieves better than the cosine.",
            **against("anchored", condition=room))]
    more = Condition("what all views together add to the better one",
                     lambda trained: together(trained.method, trained.splits.test)
                     - single_view(trained), 0.02, 1.0)
    return [
        Claim(name="non-anchor", headline=True, **WORTH, measure=others_find_each_other,
              sentence="Pictures and sounds that were only compared with their text find "
                       "each other better if the volume of all three is trained.",
              **against("anchored", condition=room)),
        Claim(name="non-anchor-all-pairs", **WORTH, measure=others_find_each_other,
              sentence="They do so better than with InfoNCE on all three pairs, picture "
                       "and sound included.",
              **against("all-pairs", condition=room)),
        Claim(name="together", **WORTH, measure=text_finds_all,
              sentence="A text finds its picture and sound together better by the volume "
                       "than by the sum of cosines of pairwise training.",
              **against("anchored", condition=more)),
        Claim(name="together-all-pairs", **WORTH, measure=text_finds_all,
              sentence="It does so also where all three pairs were trained.",
              **against("all-pairs", condition=more)),
    ]
