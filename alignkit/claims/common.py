"""What the claims of several papers share: a corpus, a figure, a null control."""

from collections.abc import Mapping

import torch

from alignkit.claims.claim import Trained
from alignkit.data import Lazy, Pairs, Splits, shuffle_pairs
from alignkit.data.emoji import emoji
from alignkit.evaluation import evaluate_retrieval
from alignkit.parts import Method

# The usual margin of a score between 0 and 1, stated before any run.
WORTH = {"margin": 0.02,
         "margin_why": "two in a hundred; less would change nobody's choice of a method"}
FEWEST_ITEMS = 60  # fewer leave no test set on which hit@10 means anything


def image_text(scale: str, pairs: Pairs | None = None, limit: int | None = None) -> Pairs:
    """The user's `pairs` if given, else the emoji corpus (`limit` groups of it).

    Raises ValueError for fewer than 60 items, or at 'gpu' and 'full' without pairs: these
    scales are for real data sets.
    """
    if pairs is None:
        if scale in ("gpu", "full"):
            raise ValueError(f"scale {scale!r} needs pairs of your own (--pairs TABLE): the "
                             "emoji corpus is for 'tiny' and 'small'")
        pairs = emoji(limit=limit)
    if (items := len(pairs.item.unique())) < FEWEST_ITEMS:
        raise ValueError(f"pairs has {items} different pictures, at least {FEWEST_ITEMS} "
                         "are needed for training, validation and test")
    return pairs


def hit_at_10(method: Method, pairs: Pairs) -> float:
    """hit@10 of image -> text and text -> image, the mean of both."""
    return evaluate_retrieval(method, pairs)["mean"]["hit@10"]


def validation_hits(method: Method, splits: Splits) -> dict[str, float]:
    """A claim's `validate`: `hit_at_10` on the validation rows."""
    return {"hit@10": evaluate_retrieval(method, splits.val)["mean"]["hit@10"]}


def held_out_hits(arms: Mapping[str, Trained]) -> dict[str, float]:
    """A claim's `measure`: `hit_at_10` on the test rows, by arm."""
    return {name: evaluate_retrieval(arm.method, arm.splits.test)["mean"]["hit@10"]
            for name, arm in arms.items()}


def shuffled_training(splits: Splits, seed: int) -> Splits:
    """A null's `transform`: no training picture keeps its text, so nothing is learned
    about pairs."""
    return splits._replace(train=shuffle_pairs(splits.train, "text", seed))


def single_objects(pairs: Pairs, n: int) -> Pairs:
    """Composed scenes with `image_one`, the first object of each alone where it stood, and
    `text_one`, what the caption says of it; present in the first n scenes."""
    pictures = pairs["image"]
    alone = Lazy([(background, things[:1]) for background, things in pictures.sources],
                 pictures.read)
    relations = pairs.tables["names"]["relation"]
    first = []
    for text in pairs["text"]:
        first.append(min((text.split(f" {r} ")[0] for r in relations), key=len))
    pairs = pairs.with_columns(image_one=alone, text_one=first)
    here = torch.arange(len(pairs)) < n
    return pairs.with_present("image_one", here).with_present("text_one", here)
