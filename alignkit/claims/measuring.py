"""The claims of the notebook on measuring: one space, read in three ways.

Paper: Learning Transferable Visual Models From Natural Language Supervision. Radford, Kim,
Hallacy et al., ICML 2021, arXiv 2103.00020: CLIP classifies pictures by the text embeddings
of class names, gains by several prompts a class, and is compared with linear probes. Here
two frozen encoders are joined by linear heads as in the opening notebook, and the pictures
of the held-out rows are classified into their groups: zero-shot by the group's name,
zero-shot by several prompts (the names of its subgroups), and by a linear probe on the
aligned vectors of the training pictures. All three read the same trained heads, so only
the measurement differs (a small experiment on the idea, not the paper's protocol).

Fixed before any arm but the baseline was run: balanced accuracy, because groups are of
unequal size, margin 0.05, and the probe's penalty at its default of 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from alignkit.claims.claim import Arm, Claim, Condition, Null, Trained
from alignkit.claims.common import image_text, validation_hits
from alignkit.data import Pairs, Splits
from alignkit.encoders import add_features
from alignkit.evaluation import class_embeddings, encode_pairs, linear_probe, zero_shot
from alignkit.parts import DualEncoder, Method, Settings
from alignkit.training import Budget, seed_of

NEEDS = ("image", "text")
LABELS = ("group", "subgroup")


@dataclass(frozen=True)
class Scale:
    """Encoders, width of the shared space, and the budget."""

    image: str = "image:efficientnet-lite0"
    text: str = "text:minilm"
    width: int = 128
    limit: int | None = None
    budget: Budget = Budget(steps=100, batch_size=512, lr=1e-3, validate_every=10,
                            select_by="hit@10")


SCALES = {
    "tiny": Scale(limit=120, budget=replace(Scale.budget, steps=20)),
    "small": Scale(),
    # One 16 GB GPU; bring pairs of your own (`--pairs`), some thousand.
    "gpu": Scale(image="timm:vit_small_patch14_dinov2.lvd142m",
                 text="hf:sentence-transformers/all-mpnet-base-v2", width=256,
                 budget=replace(Scale.budget, steps=1000, batch_size=4096)),
    "full": Scale(image="timm:vit_large_patch14_dinov2.lvd142m",
                  text="hf:sentence-transformers/all-roberta-large-v1", width=512,
                  budget=replace(Scale.budget, steps=5000, batch_size=8192)),
}


@dataclass(frozen=True)
class ReadBy(Settings):
    """A dual encoder and how its space is read: by 'name', 'prompts' or 'probe'."""

    by: str = "name"


def data(scale: str = "small", pairs: Pairs | None = None) -> Pairs:
    """Pairs with pooled features of both encoders, and in `tables` the text features of
    each group's 'name' and of its 'prompts': [n_prompts, d] a group.

    Raises ValueError as `image_text` does, and for pairs without the labels `group` and
    `subgroup`.
    """
    s = SCALES[scale]
    pairs = image_text(scale, pairs, s.limit)
    if missing := set(LABELS) - set(pairs.labels):
        raise ValueError(f"pairs has no labels {sorted(missing)}: give every row a class "
                         "(`group`) and a finer one (`subgroup`), both with label_names")
    for column, encoder in (("image", s.image), ("text", s.text)):
        pairs = add_features(pairs, column, encoder)
    texts = class_texts(pairs)
    every = sorted({text for groups in texts.values() for group in groups for text in group})
    encoded = add_features(Pairs.make({"text": every}), "text", s.text)["text_features"]
    tables = {f"class_{by}": [encoded[[every.index(text) for text in group]]
                              for group in groups] for by, groups in texts.items()}
    return replace(pairs, tables=pairs.tables | tables)


def class_texts(pairs: Pairs) -> dict[str, list[list[str]]]:
    """What stands for each group: its 'name', or as 'prompts' the names of its subgroups."""
    group, subgroup = pairs.labels["group"], pairs.labels["subgroup"]
    names = [name.lower().replace("&", "and") for name in pairs.label_names["group"]]
    finer = [name.replace("-", " ") for name in pairs.label_names["subgroup"]]
    return {"name": [[name] for name in names],
            "prompts": [[finer[i] for i in subgroup[group == g].unique()]
                        for g in range(len(names))]}


def class_vectors(method: Method, prompts: list[torch.Tensor]) -> torch.Tensor:
    """One unit row a class in the shared space, from its prompts' text features."""
    column = method.settings.towers["text"]
    with torch.no_grad():
        return class_embeddings([method.encode({column: x})["text"] for x in prompts])


def read(method: Method, splits: Splits) -> float:
    """Balanced accuracy on the test pictures, read as `method.settings.by` says."""
    labels, by = splits.test.labels["group"], method.settings.by
    z = encode_pairs(method, splits.test, ["image"])["image"]
    if by == "probe":
        seen = encode_pairs(method, splits.train, ["image"])["image"]
        found = linear_probe(seen, splits.train.labels["group"], z, labels)
    else:
        found = zero_shot(z, class_vectors(method, splits.test.tables[f"class_{by}"]),
                          labels)
    return found["balanced_accuracy"]


def readings(arms: Mapping[str, Trained]) -> dict[str, float]:
    """A claim's `measure`: `read` by arm."""
    return {name: read(arm.method, arm.splits) for name, arm in arms.items()}


def shuffled_labels(splits: Splits, seed: int) -> Splits:
    """A null's `transform`: in each split the groups are dealt out anew, so that no way of
    reading can be right by more than chance."""
    def shuffle(k: int, part: Pairs) -> Pairs:
        generator = torch.Generator().manual_seed(seed_of(seed, "labels", k))
        order = torch.randperm(len(part), generator=generator)
        return replace(part, labels={name: y[order] for name, y in part.labels.items()})

    return Splits(*(shuffle(k, part) for k, part in enumerate(splits)))


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The claims on `pairs` (from `data`)."""
    s = SCALES[scale]
    kept = pairs.only("image_features", "text_features")

    def arm(by: str) -> Arm:
        return Arm(kept.split, lambda splits: DualEncoder(
            ReadBy(width=s.width, by=by), splits.train))

    arms = {by: arm(by) for by in ("name", "prompts", "probe")}

    def claim(baseline: str, method: str, **rest) -> Claim:
        return Claim(
            arms={name: arms[name] for name in (baseline, method)}, baseline=baseline,
            method=method, differs="inference", measure=readings, margin=0.05,
            margin_why="one picture in twenty: less is not seen in a class of 30",
            figure="balanced accuracy", budget=s.budget, validate=validation_hits,
            choose_by="hit@10", grid=({"lr": 1e-3}, {"lr": 3e-3}, {"lr": 1e-2}),
            null=Null("labels shuffled", shuffled_labels, expected=0.0, margin=0.05),
            condition=Condition("the baseline's balanced accuracy leaves room",
                                lambda arm: read(arm.method, arm.splits), 0.2, 0.8), **rest)

    return [
        claim("name", "prompts", name="several-prompts", headline=True,
              sentence="Zero-shot by several prompts a class, the names of its subgroups, "
                       "is more accurate than by the name of the class."),
        claim("prompts", "probe", name="labels-help",
              sentence="A linear probe that has seen labels reads the same image vectors "
                       "more accurately than zero-shot by several prompts."),
    ]
