"""CWCL's claims: what the frozen encoder's similarities are worth as weights, for classes,
for the structure of the space and for single pairs; and where they are worth nothing.

Corpus: OpenMoji's drawings and English names; the classes are the 98 subgroups, known to
the model by their names alone ("face smiling", "food fruit"), which it never trains on.
The text encoder is frozen and is the shared space; a two-layer head learns to bring the
drawings there. So a class's name is embedded by the frozen side and what is classified by
the trained one, as in the paper's transfer from text to speech (its other setting, LiT,
freezes the images).

Arms, all with the same head, learned temperature, budget and grid of rates: `lit` has one
right answer an anchor; `cwcl` the weights; `frozen-anchor` the weights in the other
direction; `smoothed` the same mass on the pair and the rest spread evenly (structure
removed); `narrow` the weights of a cone, cosines 0.8 + 0.2 cos; `centred` those weights
after the batch's mean is taken away, which is not in the paper. `…-one` and `…-many` train
on the same rows in batches of another make: 64 of different classes, or 64 of few classes.

Decided by pilots on `lit` alone, before any weight was used:

- Text frozen, not image. `lit` classifies about as well (balanced accuracy 0.20 of 98
  classes; 0.14 with frozen images), a step costs a quarter, and the text's cosines have
  a lower mean (0.16; images, 0.42) and as wide a range.
- Subgroups by their names, balanced accuracy: two runs of `lit` on one split differ by
  0.01 (sd), so eight seeds can show about 0.01. Groups by their names: 0.03.
- 60 steps of 256 rows, the best of every tenth kept: validation does not rise after 20 to
  60. Weights and rates are chosen on validation by the mean of balanced accuracy and
  hit@10, because both are measured.
- Margins: 0.01 for the transfer (expected: one to six points), 0.1 for the structure, as
  expected; zero for the comparisons of CWCL with itself and for the price.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from alignkit.claims.claim import Arm, Claim, Condition, Null, Trained
from alignkit.claims.common import hit_at_10, image_text, shuffled_training
from alignkit.data import Pairs, Splits
from alignkit.encoders import add_features
from alignkit.evaluation import encode_pairs, zero_shot
from alignkit.methods.cwcl import Cwcl, CwclSettings, Lit
from alignkit.parts import Method, unit
from alignkit.stats import spearman
from alignkit.training import Budget

NEEDS = ("image", "text")
LABELS = ("subgroup",)
CONE = 0.8  # cosines of a narrow space: CONE + (1 − CONE) · cosine


@dataclass(frozen=True)
class Scale:
    """Encoders and which one is the shared space; rows of a batch that is composed by
    class, and how many of one class at most; budget."""

    image: str = "image:efficientnet-lite0"
    text: str = "text:minilm"
    frozen: str = "text"
    limit: int | None = None
    rows: int = 64
    each: int = 8
    draw: int = 512
    budget: Budget = Budget(steps=60, batch_size=256, lr=1e-3, validate_every=10,
                            select_by="both")


SCALES = {
    # Few rows and steps: the code path in seconds, no claim is read off it.
    "tiny": Scale(limit=120, rows=24, draw=64,
                  budget=replace(Scale.budget, steps=10, batch_size=64)),
    "small": Scale(),
    # One 16 GB GPU; bring pairs of your own (`--pairs`), some thousand.
    "gpu": Scale(image="timm:vit_small_patch14_dinov2.lvd142m",
                 text="hf:sentence-transformers/all-mpnet-base-v2", rows=512, draw=4096,
                 budget=replace(Scale.budget, steps=1000, batch_size=2048,
                                validate_every=100)),
    # LiT's side frozen, towers of the paper's kind; its budget is not known to us.
    "full": Scale(image="timm:vit_large_patch16_224.augreg_in21k",
                  text="hf:google-bert/bert-large-uncased", frozen="image", rows=2048,
                  draw=16_384, budget=replace(Scale.budget, steps=5000, batch_size=8192,
                                              validate_every=500)),
}


# Controls: other weights, other batches ---------------------------------------------------
class Smoothed(Cwcl):
    """The pair keeps its share of each row; all other rows get the same."""

    def weights(self, frozen: Tensor, positives: Tensor) -> Tensor:
        w = super().weights(frozen, positives)
        own = torch.eye(len(w), dtype=torch.bool, device=w.device)
        rest = w.masked_fill(own, 0).sum(1, keepdim=True) / (len(w) - 1)
        return torch.where(own, w, rest)


class Narrow(Cwcl):
    """Weights as in a cone: every frozen row stands close to one direction, the root of
    CONE of it, and keeps the rest of its length."""

    def weights(self, frozen: Tensor, positives: Tensor) -> Tensor:
        return super().weights(cone(frozen), positives)


def cone(frozen: Tensor) -> Tensor:
    """Unit rows [n, d] -> [n, d + 1] with cosines CONE + (1 − CONE) · cosine."""
    q = unit(frozen) * (1 - CONE) ** 0.5
    return torch.cat([torch.full_like(q[:, :1], CONE**0.5), q], dim=1)


@dataclass(frozen=True)
class ByClass(CwclSettings):
    """CWCL's settings, and what a batch is cut to: rows, each of a class at most."""

    rows: int = 64
    each: int = 1


def few_of_each(labels: Tensor, rows: int, each: int) -> list[int]:
    """Places of the first rows: classes as they come, `each` of each at most."""
    members: dict[int, list[int]] = {}
    for place, label in enumerate(labels.tolist()):
        members.setdefault(label, []).append(place)
    return [place for of in members.values() for place in of[:each]][:rows]


class CwclByClass(Cwcl):
    """The loss sees `few_of_each`; a row without a class is one by itself."""

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        labels = batch["labels"].get(*LABELS, batch["item"])
        kept = few_of_each(labels, self.settings.rows, self.settings.each)
        outputs = {name: z[kept] for name, z in outputs.items()}
        return super().losses(outputs, {"item": batch["item"][kept]}, progress)


class LitByClass(CwclByClass, Lit):
    """The baseline on such batches."""


# Data and figures -------------------------------------------------------------------------
def data(scale: str = "small", pairs: Pairs | None = None) -> Pairs:
    """Pairs with pooled features of both encoders, and in `tables` the text features of
    the classes' names, `class_text`.

    Raises ValueError as `image_text` does, and for pairs without the label `subgroup`.
    """
    s = SCALES[scale]
    pairs = image_text(scale, pairs, s.limit)
    if missing := set(LABELS) - set(pairs.labels):
        raise ValueError(f"pairs has no labels {sorted(missing)}: give every row a class, "
                         "with label_names (Pairs.make, then save it and hand over its "
                         "folder)")
    for column, encoder in (("image", s.image), ("text", s.text)):
        pairs = add_features(pairs, column, encoder)
    names = Pairs.make({"text": class_names(pairs)})
    encoded = add_features(names, "text", s.text)["text_features"]
    return replace(pairs, tables=pairs.tables | {"class_text": encoded})


def class_names(pairs: Pairs) -> list[str]:
    """The classes' names as one would say them."""
    return [name.replace("-", " ") for name in pairs.label_names["subgroup"]]


def classified(method: Method, rows: Pairs) -> float:
    """Zero-shot: balanced accuracy of the pictures by the names of all classes."""
    z = encode_pairs(method, rows, ["image"])["image"]
    with torch.no_grad():
        names = method.encode({"text_features": rows.tables["class_text"].to(z)})["text"]
    return zero_shot(z, names, rows.labels["subgroup"])["balanced_accuracy"]


def kept_structure(method: Cwcl, rows: Pairs) -> float:
    """Spearman's correlation of the trained side's cosines of rows with the frozen's."""
    z = encode_pairs(method, rows, ["image", "text"])
    pair = torch.ones(len(rows), len(rows), dtype=torch.bool).triu(1)
    trained, frozen = ((z[name] @ z[name].T).cpu()[pair]
                       for name in (method.learns, method.settings.frozen))
    return spearman(trained, frozen)


def validation(method: Method, splits: Splits) -> dict[str, float]:
    """The mean of the figures for classes and for pairs."""
    return {"both": (classified(method, splits.val) + hit_at_10(method, splits.val)) / 2}


def by_arm(figure) -> callable:
    """A claim's `measure`: `figure(method, test rows)` by arm."""
    def measure(trained: Mapping[str, Trained]) -> dict[str, float]:
        return {name: figure(arm.method, arm.splits.test) for name, arm in trained.items()}
    return measure


def span(rows: Pairs, column: str) -> float:
    """The range that holds the middle 90 % of the cosines of rows."""
    q = unit(rows[column])
    low, high = (q @ q.T)[torch.ones(len(q), len(q)).triu(1).bool()].quantile(
        torch.tensor([0.05, 0.95])).tolist()
    return high - low


# Claims -----------------------------------------------------------------------------------
def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The claims on `pairs` (from `data`)."""
    s = SCALES[scale]
    rows = pairs.only("image", "text", "image_features", "text_features")

    @lru_cache(maxsize=2)
    def splits_of(seed: int) -> Splits:
        return rows.split(seed)

    def arm(kind: type[Cwcl], settings: type = CwclSettings, **rest) -> Arm:
        made = settings(frozen=s.frozen, **rest)
        return Arm(splits_of, lambda splits: kind(made, splits.train))

    one, many = ({"settings": ByClass, "rows": s.rows, "each": each}
                 for each in (1, s.each))
    arms = {"lit": arm(Lit), "cwcl": arm(Cwcl),
            "frozen-anchor": arm(Cwcl, anchor="frozen"),
            "smoothed": arm(Smoothed), "narrow": arm(Narrow),
            "centred": arm(Narrow, centred=True),
            "lit-one": arm(LitByClass, **one), "cwcl-one": arm(CwclByClass, **one),
            "lit-many": arm(LitByClass, **many), "cwcl-many": arm(CwclByClass, **many)}
    column = CwclSettings().towers[s.frozen]
    classes, structure, single = map(by_arm, (classified, kept_structure, hit_at_10))

    def claim(name: str, sentence: str, *others: str, **rest) -> Claim:
        names = ("lit", *others)
        return Claim(**{**dict(
            name=name, sentence=sentence, arms={a: arms[a] for a in names},
            baseline="lit", method=others[0], differs="method", measure=classes,
            figure="balanced accuracy", budget=s.budget, validate=validation,
            choose_by="both", margin=0.0, twins={a: "lit" for a in others},
            grid=({"lr": 3e-4}, {"lr": 1e-3}, {"lr": 3e-3}),
            null=Null("training pairs shuffled", shuffled_training, 0.0, 0.02),
            condition=Condition("span of the middle 90 % of the frozen cosines",
                                lambda arm: span(arm.splits.test, column), 0.2, 2.0),
        ), **rest})

    four = ("lit-one", "cwcl-one", "lit-many", "cwcl-many")
    return [
        claim("transfer", "Pictures are classified by the names of classes better than "
              "with one right answer an anchor (LiT).", "cwcl", margin=0.01),
        claim("structure", "The trained side's similarities of new rows follow the frozen "
              "side's more closely.", "cwcl", measure=structure, figure="Spearman",
              margin=0.1),
        claim("price", "It costs single pairs: LiT finds more of them (LiT minus CWCL).",
              "cwcl", measure=single, figure="hit@10",
              statistic=lambda f: f["lit"] - f["cwcl"]),
        claim("anchor", "Weights at the trained anchors classify better than at the frozen "
              "ones.", "cwcl", "frozen-anchor",
              statistic=lambda f: f["cwcl"] - f["frozen-anchor"]),
        claim("smoothing", "It is the structure of the weights, not label smoothing of the "
              "same size.", "cwcl", "smoothed",
              statistic=lambda f: f["cwcl"] - f["smoothed"]),
        claim("narrow", "Narrow frozen cosines take some of it away.", "cwcl", "narrow",
              statistic=lambda f: f["cwcl"] - f["narrow"]),
        claim("centring", "Centring narrow features before they become weights (not in the "
              "paper) gives it back.", "centred", "narrow",
              statistic=lambda f: f["centred"] - f["narrow"]),
        claim("own-class", "The gain is larger in batches of few classes than where every "
              "row is of another class (difference of the gains).", *four,
              arms={a: arms[a] for a in four}, baseline="lit-one", method="cwcl-many",
              twins={"cwcl-one": "lit-one", "cwcl-many": "lit-many"},
              budget=replace(s.budget, batch_size=s.draw),
              statistic=lambda f: (f["cwcl-many"] - f["lit-many"]
                                   - (f["cwcl-one"] - f["lit-one"]))),
    ]
