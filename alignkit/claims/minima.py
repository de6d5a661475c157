"""MINIMA's claims: a matcher of visible pictures, gone on with random pairs of modalities.

Corpus: windows of Tux Paint's photographs in seven modalities, one recorded (visible) and
six made by the data engine; all but event's rule are reconstructed by cheap filters. A
pair is two random homographies of one window.

Arms, one small convolutional matcher with one loss, budget and rate: `visible` is trained
from nothing on visible pairs and is the start of the others; `rgb` goes on with visible
pairs, `mixed` with random pairs of the authors' list (visible, infrared, depth, normal),
`single` with pairs of visible and normals alone (with infrared alone, planned first, the
training loss did not fall on the tuning seed). Nothing is tuned, for any arm: the rate
is the better of two looks at the visible matcher, which differed in batch size as well
(0.001 with batches of 8, 0.002 with 4).

Figures, on unseen pictures, a visible view against one of another modality: the share of
matches within 3.5 pixels (each cell with contrast, its best cell in the other view; mean of
pictures with ten cells or more), mean of modalities; and AUC@10 of the corner error of
homographies by RANSAC from the cells that are each other's best.

Looked at before: the plan's looks on another engine and corpus (one seed, some method
arms: visible .75 → .64, infrared .08 → .25, sketch .07 → .29, depth .23 → .22, unseen event
.15 → .24; from nothing with half the steps .16 to .23); here the baseline alone, on the split
of seed 1001, after 200 and 400 steps of 4: visible .66 and .72, infrared .20 and .23, depth .08
and .09, normal .03, sketch .15 and .17, event .07, paint .61 and .66. So paint is no other
modality for it, and no claim counts it.

Seeds 100 to 103 ran once before, under this registration, in a run that was cut off; all
eight were run anew. Afterwards, by a reader, three claims on seeds 5000 to 5007, all verdicts
the same: across +0.116 [+0.104, +0.127], unseen +0.017 [+0.009, +0.024], visible-kept −0.061
[−0.068, −0.054]. And by modality, seeds 100 to 102 (rgb → single, mixed): infrared .16 → .13,
.17; .13 → .10, .12; .15 → .09, .10; depth .17 → .14, .21; .13 → .12, .17; .13 → .13, .18;
normal .03 → .48, .34; .02 → .48, .36; .02 → .55, .40. The headline's gain is in the normals.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean

import torch

from alignkit.claims.claim import Arm, Claim, Condition, Null, Trained
from alignkit.claims.common import by_arm, image_text
from alignkit.data import Pairs, Splits
from alignkit.data.photographs import photographs
from alignkit.evaluation import (
    corner_error, error_auc, estimate_homography, match_accuracy,
)  # fmt: skip
from alignkit.methods.minima import MODALITIES, TRAINED, Minima, MinimaSettings, engine
from alignkit.parts.views import corners, transfer
from alignkit.training import Budget

FIRST = 100  # of the paired seeds; those below were free for looks while it was planned
NEEDS = ("image",)  # what a user's own pairs must have
ACROSS, UNSEEN = TRAINED[1:], ("sketch", "event")
FEWEST_CELLS = 10  # a picture with fewer says nothing of a share
MARGIN = {"margin": 0.05,
          "margin_why": "one match in twenty; RANSAC forgives less than that anyway"}


@dataclass(frozen=True)
class Scale:
    """Side of the pictures (a view has three quarters of it), groups of them, matcher,
    budget of each stretch."""

    size: int = 128
    limit: int | None = None
    matcher: str = "small"
    budget: Budget = Budget(steps=160, batch_size=4, lr=2e-3)


SCALES = {
    # Few pictures and steps: the code path in seconds, no claim is read off it.
    "tiny": Scale(size=64, limit=20, budget=replace(Scale.budget, steps=8)),
    "small": Scale(),
    # One 16 GB GPU; bring photographs of your own (`--pairs`), some thousand. LoFTR's
    # coarse level from random weights: the first stretch makes the visible matcher.
    "gpu": Scale(size=427, matcher="loftr",
                 budget=replace(Scale.budget, steps=6000, batch_size=8, lr=5e-4, clip=0.5)),
    # The authors' 840 pixels, batch, rate, decay and clipping; 30 of their epochs.
    "full": Scale(size=1120, matcher="loftr",
                  budget=replace(Scale.budget, steps=138_000, batch_size=8, lr=1e-4,
                                 weight_decay=0.1, clip=0.5)),
}


def data(scale: str = "small", pairs: Pairs | None = None) -> Pairs:
    """Photographs in all modalities; or the user's `pairs`, each picture once.

    Raises ValueError as `image_text` does.
    """
    s = SCALES[scale]
    if pairs is None and scale in ("tiny", "small"):
        pairs = photographs(s.size, limit=s.limit)
    else:
        pairs = image_text(scale, pairs)
        pairs = pairs.select(pairs.first_of_item()).only("image")
    return engine(pairs, seed=0, size=s.size)


# Figures ------------------------------------------------------------------------------
def matches(method: Minima, rows: Pairs, modality: str) -> list[dict]:
    """For each picture of rows, a visible view against one of `modality`: the cells' own
    points, those found and true, whether they count and are each other's best, homography.
    The views are the same for every method and modality."""
    generator, found = torch.Generator().manual_seed(0), []
    for start in range(0, len(rows), 16):
        few = rows.select(range(start, min(start + 16, len(rows))))
        batch = method.views(few["visible"], few[modality], 0, generator)
        points, there, mutual = method.match(batch)
        truth = transfer(batch["homography"], points)
        inside = ((truth >= 0) & (truth <= method.view - 1)).all(-1)
        counted = batch["usable"] & inside
        found += [dict(zip(("there", "truth", "counted", "mutual", "homography"), one),
                       points=points)
                  for one in zip(there, truth, counted, mutual, batch["homography"])]
    return found


def accuracy(method: Minima, rows: Pairs, modality: str) -> float:
    """The share of matches within 3.5 pixels, mean of pictures.

    Raises ValueError if no picture has cells enough.
    """
    shares = [match_accuracy(m["there"][None], m["truth"][None], m["counted"][None]).item()
              for m in matches(method, rows, modality)
              if m["counted"].sum() >= FEWEST_CELLS]
    if not shares:
        raise ValueError(f"no picture has {FEWEST_CELLS} cells with contrast to match")
    return mean(shares)


def auc_at_10(method: Minima, rows: Pairs, modality: str) -> float:
    """AUC@10 of the corner error of homographies from mutual matches."""
    errors = []
    for m in matches(method, rows, modality):
        used = m["mutual"]
        found = estimate_homography(m["points"][used], m["there"][used])
        box = corners(method.view, found)
        errors.append(corner_error(found[None], m["homography"][None], box))
    return error_auc(torch.cat(errors), [10.0])[0]


def over(modalities: Sequence[str], figure=accuracy):
    """A claim's `measure`: the mean of the figure over modalities, on the test pictures."""
    return by_arm(lambda arm: mean(figure(arm.method, arm.splits.test, name)
                                   for name in modalities))


def validate(method: Minima, splits: Splits) -> dict[str, float]:
    """The mean accuracy over the authors' list, visible included."""
    return {"accuracy": mean(accuracy(method, splits.val, name) for name in TRAINED)}


def all_visible(splits: Splits, seed: int) -> Splits:
    """A null's `transform`: every modality of the training pictures is the visible one."""
    train = splits.train
    return splits._replace(train=train.with_features(
        **{name: train["visible"] for name in MODALITIES}))


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The claims on `pairs` (from `data`)."""
    s, rows = SCALES[scale], pairs.only(*MODALITIES)

    def arm(modalities: Sequence[str], start: str | None = None) -> Arm:
        settings = MinimaSettings(tuple(modalities), s.matcher)
        return Arm(rows.split, lambda splits: Minima(settings, splits.train), start)

    arms = {"rgb": arm(["visible"], "visible"), "mixed": arm(TRAINED, "visible"),
            "visible": arm(["visible"]), "single": arm(["normal"], "visible")}

    def sees(low: float) -> Condition:
        return Condition("accuracy of the baseline between visible views",
                         lambda arm: over(["visible"])({"": arm})[""], low, 0.95)

    blind = Condition("its accuracy across modalities, where there is something to gain",
                      lambda arm: over(ACROSS)({"": arm})[""], 0.0, 0.25)
    common = dict(
        method="mixed", differs="data", figure="accuracy", budget=s.budget,
        validate=validate, choose_by="accuracy", **MARGIN,
        null=Null("every modality is the visible picture", all_visible, 0.0, 0.05),
        condition=(sees(0.5), blind))

    def against(baseline: str, *more: str, **rest) -> dict:
        names = (baseline, "mixed", *more)
        return {**common, "arms": {name: arms[name] for name in names},
                "baseline": baseline, **rest}

    return [
        Claim(name="across", headline=True, measure=over(ACROSS),
              sentence="Fine-tuned on random pairs of modalities, a matcher of visible "
                       "pictures finds more matches across them than if it goes on with "
                       "visible pairs.", **against("rgb", "visible")),
        Claim(name="homography", measure=over(ACROSS, auc_at_10),
              sentence="And homographies across modalities are estimated better.",
              **against("rgb", figure="AUC@10")),
        Claim(name="unseen", measure=over(UNSEEN),
              sentence="It also finds more matches to two modalities that it was never "
                       "trained on, sketches and events.", **against("rgb")),
        Claim(name="one-modality", measure=over(("infrared", "depth")),
              sentence="Random modalities teach more of infrared and depth than the same "
                       "steps on normals alone.",
              **against("single", condition=sees(0.3))),
        Claim(name="visible-kept", measure=over(["visible"]), equivalence=True,
              sentence="Between visible pictures it stays as accurate as one that goes on "
                       "with them.", **against("rgb")),
    ]
