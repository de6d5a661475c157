"""OneEncoder's claims: does a frozen universal projection take in a new modality with few
pairs?

Corpus: emoji, their drawings and names, and for 900 groups of them the name read aloud
(espeak-ng). Tokens of frozen encoders, means of stretches: 7 strips of a picture
(EfficientNet-lite0), at most 12 pieces of a name (MiniLM), 8 stretches of a sound (Whisper
tiny, which was trained on transcripts: how well speech finds text says little by itself).
Whole groups are for one use alone: step 1 sees pictures with names (`speech` missing), step
2 names with sounds (`image` missing), so that no row and no thing has all three; choosing
and measuring are done on further groups that have.

Arms: `step-1` aligns pictures and names. All others start from its weights and dock the
sounds. `frozen`: the paper's, layer and token learn before the frozen projection; `fresh`: a
projection of the sounds' own is trained with them; `linear`: one matrix of the mean token;
`tuned`: all of step 1 goes on training; `direct`: as `frozen`, on as many pairs of pictures
and sounds instead. 100 pairs, or 400 where the name says so. `no-token` is `frozen` without
modality tokens, from a step 1 without (`step-1-no-token`). Weights are kept by hit@10 on the
validation rows: sounds against what they are docked to, in step 1 pictures against names.

Looked at before, on the baselines `step-1`, `fresh` and `linear` alone, tuning seeds 1000 and
2000: step 1 reaches its best hit@10 after some 50 steps (.34, .37 on 285 test rows, chance
.035) and then overfits, so 80 steps with the best of eight kept; a rate of 3e-4 came to .27
and .30, so the grid begins at 1e-3; `fresh` finds .13 to .17 with 100 pairs and .18 to .24
with 400, `linear` .13 to .18 and .21 to .23. No frozen projection was run, except at the
scale for tests, where figures of all arms were printed while code was checked (25 test
rows). Planned width 64 and FFN 256 were kept (the paper: 256 and 2048).

Against the rule, the tuning's validation scores of all arms were read before the registration,
because six arms had chosen an end of the grid: four rates differ by some .02, less than two
seeds do, but for fresh@400 (.43 at 3e-2, .39 at 1e-2) and no-token (.30, .28), which might
gain from a higher rate still. What was seen (frozen .30, fresh .29, linear .28, no-token .30;
frozen@400 .41, fresh@400 .43, tuned@400 .52; direct .24) changed nothing in the design.

After the first look, seeds 100 to 107: the headline is no gain, equivalent. The follow-up takes
away the presumed cause, a projection that a thousand drawings have taught little: after 5,300
drawings by four hands it is no gain again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from alignkit.claims.claim import Arm, Claim, Condition, Null, Trained
from alignkit.claims.common import GPU, Encoders, gains, image_text, rates
from alignkit.data import Lazy, Pairs, Splits, Tokens, shuffle_pairs
from alignkit.data.speech import speech
from alignkit.encoders import add_features
from alignkit.evaluation import evaluate_retrieval
from alignkit.methods.oneencoder import OneEncoder, OneEncoderSettings
from alignkit.parts import Method
from alignkit.training import Budget

FIRST = 100  # of the paired seeds; those below were free for looks while it was planned
NEEDS = ("image", "text", "speech")
POINTS = {"margin": 0.03, "margin_why": "three in a hundred, a fifth of what a fresh "
                                        "projection finds with 100 pairs"}


@dataclass(frozen=True)
class Scale(Encoders):
    """Encoders and how many tokens of each a row keeps (True: all), groups that are read
    aloud, few and many pairs, sizes, budget."""

    sound: str = "sound:whisper-tiny.en"
    tokens: tuple[int | bool, ...] = (7, 12, 8)  # of picture, name, sound
    spoken: int = 900
    groups: int | None = None
    few: int = 100
    many: int = 400
    width: int = 64
    ffn: int = 256
    budget: Budget = Budget(steps=80, batch_size=128, weight_decay=1e-3, validate_every=10,
                            select_by="hit@10")


SCALES = {
    # Few rows and steps: the code path in seconds, no claim is read off it.
    "tiny": Scale(groups=150, few=20, many=40, width=16, ffn=32,
                  budget=replace(Scale.budget, steps=20)),
    "small": Scale(),
    # One 16 GB GPU; bring rows of your own (`--pairs`) with pictures, texts and sounds.
    "gpu": Scale(**GPU, sound="hf:openai/whisper-base", tokens=(49, 64, 64), width=256,
                 ffn=2048, budget=replace(Scale.budget, steps=1000)),
    # The paper's encoders, sizes and batch; about its steps with 5,000 pairs.
    "full": Scale(image="timm:vit_base_patch16_224", text="hf:google-bert/bert-base-uncased",
                  sound="hf:facebook/wav2vec2-base-960h", tokens=(True, True, True), few=1000,
                  many=5000, width=256, ffn=2048,
                  budget=replace(Scale.budget, steps=8000, batch_size=64, validate_every=400)),
}


def data(scale: str = "small", pairs: Pairs | None = None) -> Pairs:
    """Emoji with their names, part of them read aloud; or the user's `pairs` with `image`,
    `text` and `speech` (where it is present); with the tokens of all three.

    Raises ValueError as `image_text` does.
    """
    s, own = SCALES[scale], pairs is not None or scale in ("gpu", "full")
    pairs = image_text(scale, pairs)
    for column, encoder, n in zip(NEEDS, (s.image, s.text, s.sound), s.tokens, strict=True):
        if column in pairs.columns and f"{column}_tokens" not in pairs.columns:
            pairs = add_features(pairs, column, encoder, tokens=n)
    return pairs if own else read_aloud(pairs, s)


def read_aloud(pairs: Pairs, s: Scale) -> Pairs:
    """Emoji, with `speech` and its tokens where the name is read aloud."""
    sounds = speech("en", kind="generated", limit=s.spoken)
    sounds = add_features(sounds, "speech", s.sound, tokens=s.tokens[2])
    place = {name.split()[0]: row for row, name in enumerate(sounds.ids)}
    at = torch.tensor([place.get(name, -1) for name in pairs.ids])
    here, wave, (values, mask) = at >= 0, sounds["speech"], sounds["speech_tokens"]
    pairs = pairs.with_features(
        speech=Lazy([wave.sources[k] for k in at.tolist()], wave.read, "sound", wave.version),
        speech_tokens=Tokens(values[at] * here[:, None, None], mask[at] & here[:, None]))
    pairs = replace(pairs.with_present("speech", here), provenance=sounds.provenance)
    if s.groups is None:
        return pairs
    spoken, silent = (pairs.group[kind].unique()[:n] for kind, n in (
        (here, s.groups * 2 // 3), (~here, s.groups // 3)))
    return pairs.select(torch.isin(pairs.group, torch.cat([spoken, silent])))


def split(pairs: Pairs, seed: int, few: int, many: int, anchor: str = "text") -> Splits:
    """Redrawn splits by group. train: pictures with texts for step 1, and `few` rows of
    the anchor with sounds for step 2, the first of `many` whose groups step 1 never sees."""
    spoken = pairs.present["speech_tokens"]
    groups = pairs.group[spoken].unique()
    drawn = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
    test, val, rest = groups[drawn].tensor_split((len(groups) // 4, len(groups) * 7 // 20))
    rows = torch.cat([(spoken & (pairs.group == group)).nonzero()[:, 0] for group in rest])
    rows = rows[:min(many, len(rows) * 4 // 5)]
    dock = torch.zeros(len(pairs), dtype=torch.bool)
    dock[rows[:few]] = True
    used = torch.isin(pairs.group, torch.cat([test, val, pairs.group[rows]]))
    other = {"text": "image_tokens", "image": "text_tokens"}[anchor]
    train = pairs.with_present("speech_tokens", dock).with_present(other, ~dock)
    return Splits(train.select(dock | ~used), *(
        pairs.select(spoken & torch.isin(pairs.group, part)) for part in (val, test)))


def hits(method: Method, rows: Pairs, *between: str) -> float:
    """hit@10 between two modalities, the mean of both directions."""
    return evaluate_retrieval(method, rows, *between)["mean"]["hit@10"]


def between(*names: str) -> Callable[[Mapping[str, Trained]], dict[str, float]]:
    """A claim's `measure`: hit@10 between two modalities on the test rows, of the arms
    that have both."""
    def measure(arms: Mapping[str, Trained]) -> dict[str, float]:
        return {name: hits(arm.method, arm.splits.test, *names) for name, arm in arms.items()
                if {*names} <= {*arm.method.settings.towers, *arm.method.settings.docks}}
    return measure


def found(arms: Mapping[str, Trained]) -> dict[str, float]:
    """A claim's `measure`: hit@10 of sounds and names; beside it that of sounds and
    pictures, which no arm was trained on."""
    return between("speech", "text")(arms) | {
        f"{name}, image": figure for name, figure in between("speech", "image")(arms).items()}


def validation(method: Method, splits: Splits) -> dict[str, float]:
    """hit@10 of the last modality that docked with its anchor; in step 1 of the towers."""
    s = method.settings
    two = ([*s.docks][-1], s.anchor) if s.docks else [*s.towers]
    return {"hit@10": hits(method, splits.val, *two)}


def docked_apart(splits: Splits, seed: int) -> Splits:
    """A null's `transform`: no sound of step 2 keeps its partner."""
    train = splits.train
    here = train.present["speech_tokens"].nonzero()[:, 0]
    moved = shuffle_pairs(train.select(here), "speech_tokens", seed)["speech_tokens"]
    values, mask = (x.clone() for x in train["speech_tokens"])
    values[here], mask[here] = moved
    return splits._replace(train=replace(train, columns={
        **train.columns, "speech_tokens": Tokens(values, mask)}))


def pictures_apart(splits: Splits, seed: int) -> Splits:
    """A null's `transform`: no test picture keeps its name."""
    return splits._replace(test=shuffle_pairs(splits.test, "image_tokens", seed))


APART = Null("sounds of step 2 shuffled", docked_apart, 0.0, 0.03)


def _arms(pairs: Pairs, s: Scale) -> dict[str, Arm]:
    rows = pairs.only(*(f"{name}_tokens" for name in NEEDS))
    settings = OneEncoderSettings(width=s.width, ffn=s.ffn)
    docks = {"docks": {"speech": "speech_tokens"}, "aligned": True}

    @lru_cache(maxsize=3)  # tokens are large: arms share the splits of a seed
    def splits_of(seed: int, n: int, anchor: str) -> Splits:
        return split(rows, seed, n, s.many, anchor)

    def arm(n: int = s.few, start: str | None = "step-1", **changes) -> Arm:
        own = replace(settings, **({} if start is None else docks) | changes)
        return Arm(lambda seed: splits_of(seed, n, own.anchor),
                   lambda parts: OneEncoder(own, parts.train), start)

    return {
        "fresh": arm(dock="fresh"), "frozen": arm(), "linear": arm(dock="linear"),
        "direct": arm(anchor="image"),
        "fresh@400": arm(s.many, dock="fresh"), "frozen@400": arm(s.many),
        "tuned@400": arm(s.many, dock="tuned"), "step-1": arm(start=None),
        "step-1-no-token": arm(start=None, fusion="none"),
        "no-token": arm(start="step-1-no-token", fusion="none")}


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The claims on `pairs` (from `data`)."""
    s = SCALES[scale]
    arms = _arms(pairs, s)
    common = dict(
        differs="method", figure="hit@10", budget=s.budget, validate=validation,
        choose_by="hit@10", null=APART, grid=rates(1e-3, 3e-3, 1e-2, 3e-2),
        condition=Condition("hit@10 of pictures and names after step 1", lambda arm: hits(
            arm.method, arm.splits.test, "image", "text"), 0.3, 0.9))

    def pair_of(baseline: str, method: str, *more: str, **rest) -> dict:
        names = (baseline, method, *more)
        return {**common, "arms": {name: arms[name] for name in names}, "baseline": baseline,
                "method": method, **rest}

    return [
        Claim(name="few-pairs", headline=True, measure=found, **POINTS,
              sentence="With 100 pairs a frozen projection takes in a new modality better "
                       "than a fresh one that is trained.",
              **pair_of("fresh", "frozen")),
        Claim(name="linear", measure=found, **POINTS,
              sentence="It does so better than one linear map.",
              **pair_of("linear", "frozen")),
        Claim(name="many-pairs", measure=found, **POINTS,
              sentence="With four times as many pairs the frozen projection gains less over "
                       "a fresh one.",
              **pair_of("fresh", "frozen", "fresh@400", "frozen@400",
                        null=APART._replace(margin=0.04)),
              **gains(("fresh", "frozen"), ("fresh@400", "frozen@400"))),
        Claim(name="transitive", measure=between("speech", "image"), **POINTS,
              sentence="Sounds that were docked to names find pictures, with which they "
                       "were never compared, better than sounds docked to as many pictures.",
              **pair_of("direct", "frozen")),
        Claim(name="forgetting", measure=between("image", "text"), margin=0.02,
              margin_why="two in a hundred; less would not be seen in an index",
              sentence="Where step 1 goes on training while sounds dock, pictures and names "
                       "find each other less often; frozen they do not change.",
              **pair_of("tuned@400", "frozen@400", null=Null(
                  "test pictures shuffled", pictures_apart, 0.0, 0.03),
                  condition=Condition(
                      "hit@10 of sounds and names, docked with all trained", lambda arm: hits(
                          arm.method, arm.splits.test, "speech", "text"), 0.08, 1.0))),
        Claim(name="token", measure=found, **POINTS,
              sentence="The modality token matters: without it, in both steps, a new "
                       "modality docks worse.",
              **pair_of("no-token", "frozen", "step-1", "step-1-no-token"))]
