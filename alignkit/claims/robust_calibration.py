"""Robust calibration's claims: what a head behind a frozen encoder gives back under attack,
what it costs on clean pictures, and what is left when the attack goes through the head.

Corpus: composed pictures of 64 nouns (`data.objects`), drawn anew for each seed; classes are
prompts of the nouns. Encoder: one of the eight shipped pairs of towers, another for each
paired seed, without the loss between two views (intra 0). Attacks: PGD in pixels from 0 to
1, L∞; 10 steps for the rows that train and choose and at 8/255, 20 for all else measured.

Arms: `none` is the encoder alone; `ce`, `l2` and `nce` are the same head with the paper's
three objectives, one budget and rate and one grid for λ. The step kept and λ are those with
the best mean of clean and attacked accuracy on validation rows. Adam's steps do not depend
on the size of a loss: one rate serves all three, and was not tuned.

Figures, on test pictures: accuracy among the 64 prompts (chance 1/64), of pictures attacked
at 4/255, the paper's larger ε, against the encoder alone, unless said otherwise. Pictures are
the only modality: when this was registered there was no sound encoder with a gradient to its
input. So 'averaged over modalities', as the plan has it, is left out.

Looked at before: the plan's looks with towers of intra 1, one seed (clean .97; ε of 1, 2 and
4/255 .94, .79, .44; uniform noise of 8/255 no loss; heads trained at 2/255 and tested at
4/255: CE .59, L2 .47, NCE .49; at 2/255 against an adaptive attack .79 → .84). The plan
takes intra 0 and 8/255. Here, baselines alone, all eight towers, 128 pictures, 10 steps:
intra 0 clean .73 to .91, mean .84, noise of 8/255 the same, at 2/255 .43, at 4/255 .07 to
.21, mean .13, at 8/255 .01 or less; intra 1 clean .95, at 4/255 .36, at 8/255 .03. So with
intra 0 the condition is there at the paper's own 4/255, which is taken; 8/255 is a claim of
its own. A cross entropy at s = 100 as the attack's loss fooled as many as the shortfall.
By this file, on seeds 1001 to 1004 and 14 pictures a noun, `none` alone: clean .84, .87, .74
and .84, under 20 steps .14, .21, .13 and .22, at 8/255 .01 to .03, and .54 to .64 of the
attacked pictures find their own clean one. Then 12 pictures a noun, for the price. When the
design was fixed, the notebook's code was tried once at `tiny` (seed 107, 20 steps of training,
3 of attack, 77 pictures) and printed heads' figures, `ce` minus `none` +.01; nothing was
changed after it.

Seen after the run and left as it is: half of a gain of ten points is no more than the margin of
`adaptive`, which could hardly hold, whatever the attack leaves. Three nulls are not passed.
With shuffled attacked rows `ce` gains +0.036 [-0.004, +0.077] over `none`: too wide for
0 ± 0.05. Under the adaptive attack such a head is 0.09 worse than none, which alone makes the
statistic of `adaptive` positive; `nce` is down to 0.02, which makes that of `labels` positive.
So these verdicts are to be read with their accuracies. The other three nulls can hardly fail
whatever was learned: they check the measuring alone. All tuning seeds take the fifth pair of
towers: one encoder chose λ. The condition (0.2 or less) is only just there: 0.19 in the pilot,
more than 0.2 in two published seeds.
An independent reader's seeds 5000 to 5007, other pictures, the same towers: headline
+0.097 [+0.047, +0.147] at 97.5 %, some gain again. Its null gains +0.052 [+0.032, +0.072], but
-0.003 [-0.042, +0.036] at the last step: its gain comes with the choice of a step, which sees
validation rows attacked in the right way. Better controls: `ce` trained on clean rows alone
+0.009 [+0.002, +0.017], a random linear map that turns as far +0.003 [-0.001, +0.007].
The follow-up (follow_ups/robust_calibration.py) has more training pictures a class. There are
eight pairs of towers, so a second look was not possible.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from alignkit.claims.claim import Arm, Claim, Condition, Null, Trained
from alignkit.claims.common import by_arm, model_of
from alignkit.data import Pairs, Splits, shuffle_pairs
from alignkit.data.objects import objects, short_caption
from alignkit.encoders.pixels import ClipTowers
from alignkit.evaluation import pgd_attack, retrieval, robust_accuracy, zero_shot
from alignkit.methods.robust_calibration import (
    Calibration, CalibrationSettings, Contrast, Distance, Uncalibrated, attacked_rows,
    scores_of,
)  # fmt: skip
from alignkit.parts.two_towers import load_two_towers, pixels_of
from alignkit.training import Budget, seed_of

FIRST = 100  # of the paired seeds; those below were free for looks while it was planned
NEEDS = None
TOWERS = 8  # shipped pairs of towers: one for each paired seed
PARTS = (0.6, 0.1, 0.3)
EPS, STRONGER = 4 / 255, 8 / 255
POINTS = {"margin": 0.05, "margin_why": "five pictures in a hundred; less is not worth "
                                        "another part of a system that may break"}


@dataclass(frozen=True)
class Scale:
    """Towers (the shipped ones, or a CLIP of Hugging Face), pictures a noun and their side,
    steps of the attack that trains and of the one that is measured, s, budget."""

    towers: str = "two-towers"
    each: int = 12
    size: int = 64
    train_steps: int = 10
    steps: int = 20
    scale: float = 20.0  # the shipped towers have learned 19 to 22
    budget: Budget = Budget(steps=300, batch_size=256, lr=3e-3, validate_every=20,
                            select_by="both")


SCALES = {
    # Few rows and steps: the code path in seconds, no claim is read off it.
    "tiny": Scale(each=2, train_steps=2, steps=3,
                  budget=replace(Scale.budget, steps=20, validate_every=10)),
    "small": Scale(),
    # One 16 GB GPU; a CLIP in place of the shipped towers.
    "gpu": Scale("openai/clip-vit-base-patch32", each=40, size=224, scale=100.0,
                 budget=replace(Scale.budget, steps=1000)),
    # ImageBind's picture and text towers are this OpenCLIP's, frozen; width 1,024.
    "full": Scale("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", each=200, size=224, scale=100.0,
                  steps=50, budget=replace(Scale.budget, steps=5000, batch_size=1024)),
}


def data(scale: str = "small", pairs: Pairs | None = None, corpus_seed: int = 2) -> Pairs:
    """Pictures of 64 nouns with their pixels as bytes; every seed draws others like them.

    Raises ValueError for pairs of a user's own: the towers know these drawings only.
    """
    if pairs is not None:
        raise ValueError("this paper's claims take no pairs of your own: they are about "
                         "the towers that come with alignkit, which know its drawings only")
    s = SCALES[scale]
    pairs = objects(s.each, corpus_seed=corpus_seed, size=s.size)
    return pairs.with_features(image_pixels=pixels_of(pairs["image"], s.size))


@lru_cache(maxsize=1)
def towers_of(name: str, seed: int):
    """The frozen towers that a seed takes."""
    if name != "two-towers":
        return ClipTowers.load(name)
    return load_two_towers(model_of(seed, range(TOWERS), FIRST))


def pixels(rows: Pairs) -> Tensor:
    """The pictures [n, 3, side, side] from 0 to 1."""
    return rows["image_pixels"].float() / 255


def with_attacks(parts: Splits, s: Scale, seed: int) -> Splits:
    """The parts with rows of the frozen encoder: `image_features`, `image_attacked`,
    `text_features` of the nouns' prompts; test rows also `image_stronger`. In `tables`:
    `prompts` [64, d] and `seed`."""
    towers, nouns = towers_of(s.towers, seed), parts.train.label_names["noun"]
    with torch.no_grad():
        prompts = towers.text(towers.tokens([short_caption(noun) for noun in nouns]))
    known = {"prompts": prompts, "seed": seed}

    def made(rows: Pairs, column: str, eps: float, steps: int) -> Pairs:
        noun = rows.labels["noun"]
        clean, attacked = attacked_rows(towers.image, pixels(rows), noun, prompts, eps, steps,
                                        seed_of(seed, "attack"))
        rows = rows.with_features(**{"image_features": clean, column: attacked,
                                     "text_features": prompts[noun]})
        return replace(rows, tables=rows.tables | known)

    test = made(parts.test, "image_stronger", STRONGER, s.train_steps)
    return Splits(*(made(rows, "image_attacked", EPS, steps) for rows, steps in (
        (parts.train, s.train_steps), (parts.val, s.train_steps), (test, s.steps))))


# Figures ------------------------------------------------------------------------------
def accuracy(method: Calibration, rows: Pairs, column: str = "image_attacked") -> float:
    """The share of rows whose calibrated `column` is nearest to the prompt of its noun."""
    with torch.no_grad():
        z = method.calibrate(rows[column])
    return zero_shot(z, rows.tables["prompts"], rows.labels["noun"])["accuracy"]


def validate(method: Calibration, splits: Splits) -> dict[str, float]:
    """`both`: the mean of clean and attacked accuracy on the validation rows."""
    columns = "image_features", "image_attacked"
    return {"both": sum(accuracy(method, splits.val, c) for c in columns) / 2}


def adaptive(arm: Trained, s: Scale) -> float:
    """Accuracy under the same attack, with the gradient through the head."""
    rows, seed = arm.splits.test, arm.splits.test.tables["seed"]
    scores = scores_of(towers_of(s.towers, seed).image, rows.tables["prompts"], arm.method)
    x, noun = pixels(rows), rows.labels["noun"]
    found = pgd_attack(scores, x, noun, EPS, steps=s.steps, seed=seed_of(seed, "attack"))
    return robust_accuracy(scores, found, noun)


def both_ways(s: Scale):
    """A claim's `measure`: accuracy under the attack on the encoder alone, and (`ce,
    adaptive`) through the head. Without a head both attacks are one."""
    def measure(arms: Mapping[str, Trained]) -> dict[str, float]:
        found = by_arm(lambda arm: accuracy(arm.method, arm.splits.test))(arms)
        return found | {"ce, adaptive": adaptive(arms["ce"], s)}
    return measure


def instances(arm: Trained) -> float:
    """hit@1 of an attacked picture, calibrated, among clean ones as the encoder gives them:
    does it find itself?"""
    rows = arm.splits.test
    with torch.no_grad():
        z = arm.method.calibrate(rows["image_attacked"])
    return retrieval(z, rows["image_features"], rows.item, rows.item)["hit@1"]


# Nulls --------------------------------------------------------------------------------
def attacked_apart(splits: Splits, seed: int) -> Splits:
    """A null's `transform`: no training row keeps its attacked version."""
    return splits._replace(train=shuffle_pairs(splits.train, "image_attacked", seed))


def nouns_dealt_anew(splits: Splits, seed: int) -> Splits:
    """A null's `transform`: test rows get each other's nouns, so that no answer is right."""
    test, drawn = splits.test, torch.Generator().manual_seed(seed)
    noun = test.labels["noun"][torch.randperm(len(test), generator=drawn)]
    return splits._replace(test=replace(test, labels=test.labels | {"noun": noun}))


def test_apart(splits: Splits, seed: int) -> Splits:
    """A null's `transform`: no test row keeps its attacked version."""
    return splits._replace(test=shuffle_pairs(splits.test, "image_attacked", seed))


TRAINED_APART = Null("training: attacked rows shuffled against their targets", attacked_apart,
                     0.0, 0.05)
DEALT = Null("nouns of the test rows dealt anew", nouns_dealt_anew, 0.0, 0.02)
MEASURED_APART = Null("test: attacked rows shuffled", test_apart, 0.0, 0.02)


# Claims -------------------------------------------------------------------------------
def _arms(pairs: Pairs, s: Scale, scale: str) -> dict[str, Arm]:
    settings = CalibrationSettings(scale=s.scale)

    @lru_cache(maxsize=8)  # an attack takes longer than all arms together
    def splits(seed: int) -> Splits:
        if "image_attacked" in pairs.columns:  # rows of both kinds are there
            return pairs.split(seed, PARTS)
        return with_attacks(data(scale, corpus_seed=seed).split(seed, PARTS), s, seed)

    def arm(kind: type[Calibration]) -> Arm:
        return Arm(splits, lambda parts, **own: kind(replace(settings, **own), parts.train))

    return {"none": arm(Uncalibrated), "ce": arm(Calibration), "l2": arm(Distance),
            "nce": arm(Contrast)}


def _raw(column: str):
    """The encoder's own accuracy on the test rows, whatever the arm."""
    def measure(arm: Trained) -> float:
        rows = arm.splits.test
        return zero_shot(rows[column], rows.tables["prompts"], rows.labels["noun"])["accuracy"]
    return measure


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The claims on `pairs` (from `data`)."""
    s = SCALES[scale]
    arms = _arms(pairs, s, scale)
    clean = Condition("the encoder's accuracy on clean pictures", _raw("image_features"), 0.8,
                      1.0)
    broken = Condition("its accuracy under attack", _raw("image_attacked"), 0.0, 0.2)
    common = dict(
        differs="method", figure="accuracy", budget=s.budget, units=TOWERS, redrawn=True,
        validate=validate, choose_by="both", condition=(clean, broken),
        # The middle first: an arm that is not trained takes the first of equal points.
        grid=tuple({"settings": {"keep": x}} for x in (1.0, 0.01, 0.1, 10.0, 100.0, 1000.0)))

    def between(*names: str, **rest) -> dict:
        return {**common, "arms": {name: arms[name] for name in names},
                "baseline": names[0], "method": names[-1], **rest}

    attacked = by_arm(lambda arm: accuracy(arm.method, arm.splits.test))
    return [
        Claim(name="calibrated", headline=True, measure=attacked, null=TRAINED_APART,
              sentence="A head trained on attacked rows with fixed centres classifies more "
                       "attacked pictures than the frozen encoder alone.",
              margin=0.1, margin_why="ten pictures in a hundred; the paper speaks of tens of "
                                     "points", **between("none", "ce")),
        Claim(name="clean-kept", equivalence=True, null=DEALT,
              measure=by_arm(lambda arm: accuracy(arm.method, arm.splits.test,
                                                  "image_features")),
              sentence="On clean pictures it is as accurate as the encoder alone.",
              margin=0.02, margin_why="two pictures in a hundred, the plan's bound",
              **between("none", "ce")),
        Claim(name="adaptive", measure=both_ways(s), null=TRAINED_APART, **POINTS,
              sentence="An attack through the head takes most of what it gained.",
              subtracts="half of (ce minus none), less (ce under the adaptive attack minus "
                        "none)",
              statistic=lambda f: ((f["ce"] - f["none"]) / 2
                                   - (f["ce, adaptive"] - f["none"])),
              **between("none", "ce")),
        Claim(name="stronger", null=DEALT, **POINTS,
              measure=by_arm(lambda arm: accuracy(arm.method, arm.splits.test,
                                                  "image_stronger")),
              sentence="It also helps against a change twice as large as those that it was "
                       "trained on.",
              **between("none", "ce", condition=(clean, Condition(
                  "its accuracy at 8/255", _raw("image_stronger"), 0.0, 0.2)))),
        Claim(name="labels", measure=attacked, null=TRAINED_APART, **POINTS,
              sentence="Fixed centres, which need labels, give back more than InfoNCE to "
                       "the clean rows, which needs none.",
              **between("nce", "l2", "ce", twins={"ce": "nce", "l2": "nce"})),
        Claim(name="instances", measure=by_arm(instances), null=MEASURED_APART, **POINTS,
              sentence="After InfoNCE more attacked pictures find their own clean picture "
                       "than after fixed centres.",
              **between("ce", "nce", figure="hit@1")),
    ]
