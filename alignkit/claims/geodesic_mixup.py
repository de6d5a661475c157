"""Geodesic mixup's claims: are points between the cones harder negatives, and what does
training on them do to the shape of the space, to its probabilities and to retrieval?

Corpus: OpenMoji's drawings and their English names, features as the frozen encoders
give them: not centred, so that linear heads start, and at the paper's temperature of
0.01 also end, in two cones, as CLIP does. The control `no gap` takes the training mean
of each modality's features from them, in training and test; nothing else changes.

Arms, all linear heads of one width on one budget: `plain` is InfoNCE at 0.01; `m2` adds
mixed negatives with weight 0.5, the largest that was planned, fading over the epochs as
in the paper; `m2-light` has 0.1; `m3` is `m2` with the three mixed positives, weights
and Beta of the authors' script. The verdicts are of `m2`; the others are only reported.

Decided by pilots on `plain` alone, before any mixture was trained:

- The rate is fixed at 0.001 for these arms, and the last weights are kept. What is
  measured is geometry, and the rate alone moves it further than any loss may: at 0.001
  the gap ends near 0.7, at 0.003 near 0.3 (pictures among themselves then hardly exceed
  the cross-modal cosine), while hit@10 tells rates apart by noise. Arms tuned apart
  would have compared rates. `retrieval-tuned` is the fair comparison of retrieval: arms
  of its own, three rates each, the best step of each run kept.
- Temperature 0.01, the paper's: at 0.05 the gap closes to 0.3 and pictures among
  themselves stand at 0.08. No artificial offset was needed.
- 200 steps of 128 rows, 20 epochs; width 64; 1,914 rows instead of 2 to 5 thousand.
- hit@10: at hit@1 the baseline finds 0.07, too little to tell arms apart.
- Margins are about 5 % of what the baseline has: uniformity 0.1, relative alignment
  0.01, gap 0.04, calibration error 0.02; for retrieval and hardness it was 0 and
  is 0.02 now, set when the figures were known (a registration replaces it). Without a gap the effect must stay inside the same bounds (0.02 for hardness);
  for calibration this was not expected beforehand: both losses stay as they are.

Seen after the run and left as it is: both tuned arms chose 0.01, where the grid ends;
and the controls of the four geometry claims are not passed, because `m2` also brings a
second temperature. A baseline with that temperature and real negatives (the notebook
tries it) would tell the two apart.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from alignkit.claims.claim import Arm, Claim, Condition, Null, Trained
from alignkit.claims.common import (
    GPU, UNPAIRED, WORTH, Encoders, by_arm, held_out_hits, leaves_room, pooled, rates,
    validation_hits,
)  # fmt: skip
from alignkit.data import Pairs, Splits
from alignkit.evaluation import (
    encode_pairs,
    expected_calibration_error,
    modality_gap,
    uniformity,
)
from alignkit.methods.geodesic_mixup import GeodesicMixup, GeodesicMixupSettings, arc
from alignkit.parts import Method
from alignkit.training import Budget

NEEDS = ("image", "text")
FEATURES = ("image_features", "text_features")


@dataclass(frozen=True)
class Scale(Encoders):
    """Encoders, width, weight of the mixed negatives and a lighter one, budget."""

    width: int = 64
    mix: float = 0.5
    light: float = 0.1
    limit: int | None = None
    budget: Budget = Budget(steps=200, batch_size=128, lr=1e-3)


SCALES = {
    # Few rows and steps: the code path in seconds, no claim is read off it.
    "tiny": Scale(limit=120, budget=replace(Scale.budget, steps=20, batch_size=32)),
    "small": Scale(),
    # One 16 GB GPU; bring pairs of your own (`--pairs`), some thousand.
    "gpu": Scale(**GPU, width=256,
                 budget=replace(Scale.budget, steps=1000)),
    # The paper's image tower, width, weights, batch, rate and nine epochs of Flickr30k.
    "full": Scale(image="timm:vit_base_patch32_clip_224.openai",
                  text="hf:sentence-transformers/all-mpnet-base-v2", width=512,
                  mix=0.05, light=0.01,
                  budget=replace(Scale.budget, steps=2040, lr=1e-5, warmup=0.1,
                                 weight_decay=0.2)),
}


def data(scale: str = "small", pairs: Pairs | None = None) -> Pairs:
    """Pairs with pooled features of both encoders; `pairs` of a user need `image` and
    `text`.

    Raises ValueError as `image_text` does.
    """
    s = SCALES[scale]
    return pooled(scale, pairs, s, s.limit)


def centred(splits: Splits, seed: int = 0) -> Splits:
    """A null's `transform`: each modality's features less their mean in training."""
    means = {column: splits.train[column].mean(0) for column in FEATURES}
    return Splits(*(rows.with_features(**{c: rows[c] - means[c] for c in FEATURES})
                    for rows in splits))


# What is measured on new rows ---------------------------------------------------
def both(trained: Trained) -> tuple[Tensor, Tensor, Tensor]:
    """Unit pictures and texts [n, d] of the test rows; bool [n, n]: of one item."""
    item = trained.splits.test.item
    z = encode_pairs(trained.method, trained.splits.test, ("image", "text"))
    return z["image"], z["text"], item[:, None] == item


def pooled_uniformity(trained: Trained) -> float:
    """Uniformity of pictures and texts together."""
    image, text, _ = both(trained)
    return uniformity(torch.cat([image, text]))


def relative_alignment(trained: Trained) -> float:
    """Mean over texts of their squared distance from their picture, less that from the
    nearest wrong picture; below 0 the right one is nearer."""
    image, text, same = both(trained)
    far = 2 - 2 * text @ image.T
    return (far.diagonal() - far.masked_fill(same, torch.inf).amin(1)).mean().item()


def gap(trained: Trained) -> float:
    """Distance between the means of both modalities."""
    image, text, _ = both(trained)
    return modality_gap(image, text)


def calibration(trained: Trained) -> float:
    """Expected calibration error of a picture's choice among the names of all items, by
    the softmax at the temperature of training."""
    image, text, same = both(trained)
    first = torch.arange(len(same)) == same.int().argmax(1)
    logits = trained.method.temperature() * image @ text[first].T
    return expected_calibration_error(logits.softmax(1), same[:, first].int().argmax(1))


def negatives(trained: Trained) -> dict[str, float]:
    """Mean cosine of a row with real and with mixed negatives (share ½), over both
    modalities: the larger, the harder."""
    image, text, same = both(trained)
    mixed = arc(image, text, 0.5)
    real = (image @ text.T)[~same].mean()
    between = ((image + text) @ mixed.T / 2)[~same].mean()
    return {"real": real.item(), "mixed": between.item()}


def excess_of_own(trained: Trained) -> float:
    """Mean cosine of pictures among themselves less that with wrong texts."""
    image, text, same = both(trained)
    return (image @ image.T - image @ text.T)[~same].mean().item()


def hardness(arms: Mapping[str, Trained]) -> dict[str, float]:
    """A claim's `measure`: both kinds of negatives of the plain heads."""
    figures = negatives(arms["plain"])
    return {"plain": figures["real"], "mixed": figures["mixed"]}


# The claims ---------------------------------------------------------------------
def arms_of(pairs: Pairs, s: Scale) -> dict[str, Arm]:
    """All arms by name."""
    rows = pairs.only("image", "text", *FEATURES)

    @lru_cache(maxsize=2)
    def splits_of(seed: int) -> Splits:
        return rows.split(seed)

    def arm(**weights) -> Arm:
        def build(splits: Splits) -> Method:
            n = len(splits.train)
            epochs = s.budget.steps / (n // min(n, s.budget.batch_size))
            return GeodesicMixup(GeodesicMixupSettings(
                width=s.width, epochs=epochs, **weights), splits.train)
        return Arm(splits_of, build)

    return {"plain": arm(mix=0.0), "m2": arm(mix=s.mix), "m2-light": arm(mix=s.light),
            "m3": arm(mix=s.mix, beta=0.2, first_mix=0.05, second_mix=0.05,
                      joint_mix=0.1),
            "mixed": arm(mix=0.0), "plain-tuned": arm(mix=0.0),
            "m2-tuned": arm(mix=s.mix)}


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The claims on `pairs` (from `data`)."""
    s = SCALES[scale]
    arms = arms_of(pairs, s)
    common = dict(validate=validation_hits, choose_by="hit@10", differs="method",
                  budget=s.budget)
    against = dict(
        arms={name: arms[name] for name in ("plain", "m2", "m2-light", "m3")},
        baseline="plain", method="m2",
        twins={"m2": "plain", "m2-light": "plain", "m3": "plain"}, **common)
    no_gap = "no gap: features centred"

    def shape(name: str, measure: Callable, unit: str, margin: float, says: str,
              why: str):
        """A claim that a figure of the test rows falls."""
        return Claim(
            name=name, sentence=says, measure=by_arm(measure), figure=unit,
            subtracts="plain minus m2",
            margin=margin, margin_why=why, statistic=lambda f: f["plain"] - f["m2"],
            condition=Condition("gap of the plain heads", gap, 0.4, 2.0),
            null=Null(no_gap, centred, 0.0, margin), **against)

    return [
        Claim(name="hardness", **WORTH, measure=hardness, figure="mean cosine",
              sentence="On heads trained without mixtures, the mixture of a wrong pair "
                       "is nearer to a row than the pair's other half: harder.",
              arms={name: arms[name] for name in ("plain", "mixed")},
              baseline="plain", method="mixed",
              condition=Condition("pictures' own mean cosine less the cross-modal one",
                                  excess_of_own, 0.05, 2.0),
              null=Null(no_gap, centred, 0.0, 0.02),
              **{**common, "differs": "inference"}),
        shape("uniformity", pooled_uniformity, "uniformity", 0.1,
              "Mixed negatives spread pictures and texts over the sphere: their "
              "uniformity falls.", "a fiftieth of what a collapsed space is away from a "
              "uniform one, about 4"),
        shape("alignment", relative_alignment, "relative alignment", 0.01,
              "They bring the right picture nearer than the nearest wrong one: "
              "relative alignment falls.", "a hundredth of a squared distance of 1"),
        shape("gap", gap, "modality gap", 0.04,
              "They draw the two modalities together: the gap shrinks.",
              "a tenth of the gap that the condition asks for"),
        shape("calibration", calibration, "calibration error", 0.02,
              "They make the probabilities of retrieval more honest: their "
              "calibration error falls.", "two points of probability"),
        Claim(name="retrieval-tuned", headline=True, **WORTH, measure=held_out_hits,
              sentence="With mixed negatives more unseen pairs are found, if both arms "
                       "choose their rate.",
              figure="hit@10", baseline="plain-tuned", method="m2-tuned",
              grid=rates(1e-3, 3e-3, 1e-2),
              arms={name: arms[name] for name in ("plain-tuned", "m2-tuned")},
              null=UNPAIRED,
              condition=leaves_room("hit@10 of plain-tuned leaves room", 0.0, 0.6),
              **{**common, "budget": replace(s.budget, validate_every=20,
                                             select_by="hit@10")}),
    ]
