"""The projectors' claims: what they see, which encoders they join, on which captions.

Corpora: composed scenes with captions of two objects (design and CKA), and emoji with
their names, real and long-tailed: 98 subgroups, of which one has a seventh (coverage).
Design: `linear`, `cls` and `both` have the same text side (token projector on words, mean,
MLP projector); the picture's side is linear on the pooled vector, a token projector on it,
or that plus a token projector on the 7 × 7 patches. CKA: the `cls` projector on pooled
vectors for eight pairs of encoders; Spearman's rho of CKA on the validation pairs and
hit@10 on the test pairs. Coverage: `balanced` is the paper's choice of captions, `random`
as many training rows. A class is described by its name and names of its training members,
19 texts at most: their mean is its prototype, and its class vector once projected.
Decided before any method arm was run:

- 80 steps of 64, width 64: the price of two cores. Linear maps reach hit@10 of 0.64, and
  room is left both ways; in a pilot of 120 steps 0.01 was their worst rate: no such point.
- Four captions a class, about 390 of 1,150 training rows: random ones reach a macro
  accuracy of 0.16, all rows 0.25 (half of that with the class's name alone).
- Splits of 60, 20 and 20 %: CKA needs validation pairs, and has 240 then. CKA without bias:
  with 240 pairs of width 1,280 the paper's estimator (5,000 pairs) orders encoders even if
  pairs are shuffled, and has no true null. The biased figure is stored beside it.
- Two of the eight pairs have random weights, to spread CKA; the six stand beside. Margin 0.5.
- All arms of the CKA claim are one method at the paper's rate, so its pilot trains them
  all; only the spread of rho over its seeds is looked at. Other margins 0; last weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from alignkit.claims.claim import Arm, Claim, Condition, Null, Trained
from alignkit.claims.common import (
    UNPAIRED, WORTH, held_out_hits, image_text, leaves_room, rates, single_objects,
    validation_hits,
)  # fmt: skip
from alignkit.data import Pairs, Splits, shuffle_pairs
from alignkit.data.emoji import emoji
from alignkit.data.scenes import scenes
from alignkit.encoders import add_features
from alignkit.evaluation import (
    cka, cka_debiased, class_embeddings, encode_pairs, zero_shot,
)  # fmt: skip
from alignkit.methods.projectors import Projectors, ProjectorSettings, concept_balanced
from alignkit.parts import mean_pool
from alignkit.stats import spearman
from alignkit.training import Budget

NEEDS = ("image", "text")
PARTS = (0.6, 0.2, 0.2)
MOST_TEXTS = 19  # of a class, as many as the paper's descriptions
IMAGES, TEXTS = ("features", "other", "middle", "random"), ("features", "other")


@dataclass(frozen=True)
class Scale:
    """Encoders (name -> column -> layer; None: the mean of the last tokens), scenes (how
    many also with one object), groups of emoji, width, captions a class, budget."""

    images: Mapping[str, Mapping]
    texts: Mapping[str, Mapping]
    budget: Budget
    scenes: int = 1200
    alone: int = 600
    emoji: int | None = None
    width: int = 64
    per_class: int = 4


SMALL = Scale(
    images={"image:efficientnet-lite0": {"features": None},
            "image:mobilenetv2": {"other": -1, "middle": 5},
            "random:image:efficientnet-lite0": {"random": -1}},
    texts={"text:minilm": {"features": None}, "text:e5-multilingual": {"other": -1}},
    # The paper's weight decay, and no clipping.
    budget=Budget(steps=80, batch_size=64, lr=1e-3, weight_decay=0.02, clip=0.0))
VITS = {"timm:vit_base_patch16_clip_224.openai": {"other": -1, "middle": 6},
        "random:timm:vit_small_patch14_dinov2.lvd142m": {"random": -1}}
BERTS = {"hf:intfloat/multilingual-e5-base": {"other": -1}}
SCALES = {
    # Few rows and steps: the code path in seconds, no claim is read off it.
    "tiny": replace(SMALL, scenes=30, alone=30, emoji=120, width=32, per_class=1,
                    budget=replace(SMALL.budget, steps=20)),
    "small": SMALL,
    # One 16 GB GPU; bring pairs of your own (`--pairs`), some thousand.
    "gpu": replace(
        SMALL, width=512, budget=replace(SMALL.budget, steps=1500, batch_size=256),
        images={"timm:vit_small_patch14_dinov2.lvd142m": {"features": -1}} | VITS,
        texts={"hf:sentence-transformers/all-mpnet-base-v2": {"features": -1}} | BERTS),
    # The paper's encoders and width; 20 million pairs, 15 epochs, 1,800 a GPU.
    "full": replace(
        SMALL, width=1024, per_class=2000,
        budget=replace(SMALL.budget, steps=166_000, batch_size=1800),
        images={"timm:vit_large_patch14_dinov2.lvd142m": {"features": -1}} | VITS,
        texts={"hf:sentence-transformers/all-roberta-large-v1": {"features": -1}} | BERTS)}


def data(scale: str = "small", pairs: Pairs | None = None) -> Pairs:
    """Scenes, or the user's `pairs` (with `image` and `text`), with tokens and pooled
    features of the first encoders and pooled ones of the others; scenes carry the emoji
    as `tables['emoji']`. With labels, `tables['class_names']` are their names' features.

    Raises ValueError as `image_text` does.
    """
    s = SCALES[scale]
    own = pairs is not None or scale in ("gpu", "full")
    pairs = image_text(scale, pairs) if own else single_objects(scenes(s.scenes), s.alone)
    for column, encoders in (("image", s.images), ("text", s.texts)):
        for name, layers in encoders.items():
            pairs = pairs.with_features(**_columns(pairs, column, name, layers))
    image, text = next(iter(s.images)), next(iter(s.texts))
    if own:
        return with_classes(pairs, text)
    pool = add_features(emoji(limit=s.emoji), "image", image)
    pool = with_classes(add_features(pool, "text", text), text, "subgroup")
    both = replace(pairs.provenance.derive(f"with emoji {pool.provenance.hash}"),
                   name="scenes; emoji")
    return replace(pairs, tables={**pairs.tables, "emoji": pool}, provenance=both)


def _columns(pairs: Pairs, column: str, name: str, layers: Mapping) -> dict:
    """Features of one encoder under the names that `layers` gives them."""
    asked = tuple(k for k in layers.values() if k is not None)
    found = add_features(pairs, column, name, layers=asked, tokens="features" in layers)
    made = {}
    for role, k in layers.items():
        if role == "features":
            made[f"{column}_tokens"] = found[f"{column}_tokens"]
        made[f"{column}_{role}"] = (
            mean_pool(found[f"{column}_tokens"]) if k is None
            else found[f"{column}_features" if k == -1 else f"{column}_layer{k}"])
    return made


def with_classes(pairs: Pairs, encoder: str, label: str | None = None) -> Pairs:
    """Pairs with the features of the names of the classes of `label` (default: the first
    label); as they are if they have none."""
    label = label or next(iter(pairs.label_names), None)
    if label is None:
        return pairs
    names = Pairs.make({"text": [n.replace("-", " ") for n in pairs.label_names[label]]})
    found = add_features(names, "text", encoder)["text_features"]
    return replace(pairs, labels={"class": pairs.labels[label]},
                   label_names={"class": pairs.label_names[label]},
                   tables={**pairs.tables, "class_names": found})


# Design and CKA -----------------------------------------------------------------------
def _arm(pairs: Pairs, s: Scale, columns: tuple[str, ...], **settings) -> Arm:
    """The projector on `columns`, picture and text first."""
    made = ProjectorSettings(towers=dict(zip(("image", "text"), columns)), width=s.width,
                             **settings)

    @lru_cache(maxsize=1)  # tokens are large
    def splits_of(seed: int) -> Splits:
        return pairs.only("image", "text", *columns).split(seed, PARTS)

    return Arm(splits_of, lambda splits: Projectors(made, splits.train))


def encoder_pairs(pairs: Pairs) -> dict[str, tuple[str, str]]:
    """Arm -> its two columns, for every picture encoder with every text encoder."""
    return {f"{image} × {text}": (f"image_{image}", f"text_{text}")
            for image in IMAGES for text in TEXTS
            if {f"image_{image}", f"text_{text}"} <= pairs.columns.keys()}


def agreement(arms: Mapping[str, Trained]) -> dict[str, float]:
    """hit@10 by arm, and under 'cka …' and 'biased …' the two CKAs of its columns."""
    figures = held_out_hits(arms)
    for name, arm in arms.items():
        x, y = (arm.splits.val[c] for c in arm.method.settings.towers.values())
        figures |= {f"cka {name}": cka_debiased(x, y), f"biased {name}": cka(x, y)}
    return figures


def rho(figures: Mapping[str, float], kind: str = "cka", without: str = "-") -> float:
    """Spearman's rho of CKA and hit@10 over arms that do not begin with `without`; 0 if
    all arms are alike."""
    arms = [k for k in figures if f"{kind} {k}" in figures and not k.startswith(without)]
    hits, alike = [figures[k] for k in arms], [figures[f"{kind} {k}"] for k in arms]
    return spearman(alike, hits) if len({*hits}) > 1 < len({*alike}) else 0.0


def _shuffled_validation(splits: Splits, seed: int) -> Splits:
    return splits._replace(val=shuffle_pairs(splits.val, "text", seed))


# Coverage -----------------------------------------------------------------------------
def descriptions(train: Pairs) -> list[Tensor]:
    """For each class the features [k, d] of its name and of its members' names."""
    classes = train.labels["class"]
    return [torch.cat([name[None], train["text_features"][classes == c]])[:MOST_TEXTS]
            for c, name in enumerate(train.tables["class_names"])]


def engine(pairs: Pairs, seed: int, kind: str, per_class: int) -> Pairs:
    """The data engines: what `concept_balanced` chooses, or as many random pairs."""
    chosen = concept_balanced(pairs, "text_features",
                              class_embeddings(descriptions(pairs)), per_class)
    if kind == "balanced":
        return chosen
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    return pairs.select(order[:len(chosen)])


def class_accuracy(arms: Mapping[str, Trained]) -> dict[str, float]:
    """Macro accuracy of the test pictures among the descriptions of all classes, by arm."""
    figures = {}
    for name, (method, splits, _) in arms.items():
        images = encode_pairs(method, splits.test, ["image"])["image"]
        with torch.no_grad():
            classes = class_embeddings([method.encode({"text_features": texts})["text"]
                                        for texts in splits.test.tables["classes"]])
        found = zero_shot(images, classes, splits.test.labels["class"])
        figures[name] = found["balanced_accuracy"]
    return figures


def _coverage(pool: Pairs, s: Scale, where: str, common: dict) -> list[Claim]:
    plain = _arm(pool, s, ("image_features", "text_features"))

    def arm(kind: str) -> Arm:
        def chosen(seed: int) -> Splits:
            splits = plain.data(seed)
            known = {"classes": descriptions(splits.train)}
            return splits._replace(train=engine(splits.train, seed, kind, s.per_class),
                                   test=replace(splits.test, tables=known))

        return plain._replace(data=chosen)

    sizes = pool.labels["class"].unique(return_counts=True)[1]
    common = common | dict(
        arms={kind: arm(kind) for kind in ("random", "balanced")}, baseline="random",
        method="balanced", differs="data",
        condition=Condition("largest class over the median class",
                            lambda arm: (sizes.max() / sizes.median()).item(), 5.0, 1e6))
    return [
        Claim(name="coverage", figure="macro accuracy", measure=class_accuracy,
              sentence=f"{where}, captions that cover the concepts evenly classify better "
                       "than as many random ones.", **common),
        Claim(name="random-retrieves", figure="hit@10", measure=held_out_hits,
              subtracts="random minus balanced",
              statistic=lambda f: f["random"] - f["balanced"],
              sentence=f"{where}, the random captions retrieve better than the balanced "
                       "ones (random minus balanced).", **common)]


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The claims on `pairs` (from `data`); those on coverage need labels, and are left
    out where there are none."""
    s, pool = SCALES[scale], pairs.tables.get("emoji", pairs)
    where, named = ("On these pairs",) * 2 if pool is pairs else ("On scenes", "On emoji")
    plain = ("image_features", "text_tokens")
    arms = {"linear": _arm(pairs, s, plain, image_head="linear"),
            "cls": _arm(pairs, s, plain),
            "both": _arm(pairs, s, (*plain, "image_tokens"), patches="image_tokens")}
    common = dict(
        budget=s.budget, validate=validation_hits, choose_by="hit@10", **WORTH,
        grid=rates(3e-4, 1e-3, 3e-3), null=UNPAIRED)
    design = common | dict(
        differs="method", measure=held_out_hits, figure="hit@10",
        condition=leaves_room("the baseline's hit@10 leaves room", 0.1, 0.95))
    found = [
        Claim(name="token-projector", arms={k: arms[k] for k in ("linear", "cls")},
              baseline="linear", method="cls",
              sentence=f"{where}, a token projector on the pooled picture retrieves "
                       "better than a linear map.", **design),
        Claim(name="patches", arms={k: arms[k] for k in ("cls", "both")},
              baseline="cls", method="both",
              sentence=f"{where}, patches beside the pooled picture retrieve better than "
                       "the pooled picture alone.", **design)]
    columns = encoder_pairs(pairs)
    joined = {name: _arm(pairs, s, pair) for name, pair in columns.items()}
    first, *_, last = joined
    found.append(Claim(
        name="cka", arms=joined, baseline=last, method=first, differs="data",
        subtracts="Spearman's rho between CKA and hit@10, over the pairs of encoders",
        measure=agreement, figure="rho", statistic=rho, twins={k: k for k in joined},
        sentence=f"{where}, encoders whose CKA is higher retrieve better once joined "
                 "(Spearman's rho over pairs of encoders).",
        **common | dict(
            headline=True, margin=0.5,
            margin_why="half of a perfect order: less does not help to choose encoders",
            grid=({},),
            null=Null("CKA of shuffled pairs", _shuffled_validation, 0.0, margin=0.5),
            condition=Condition("spread of CKA over the pairs of encoders",
                                partial(_spread, pairs, columns), 0.1, 1.0))))
    if "class_names" in pool.tables:
        return found + _coverage(pool, s, named, common)
    print("the claims on coverage are left out: these pairs have no labels")
    return found


def _spread(pairs: Pairs, columns: Mapping[str, tuple[str, str]], arm: Trained) -> float:
    """Largest minus smallest CKA on the rows that `arm` validates on."""
    rows = torch.isin(pairs.item, arm.splits.val.item)
    found = [cka_debiased(pairs[x][rows], pairs[y][rows]) for x, y in columns.values()]
    return max(found) - min(found)
