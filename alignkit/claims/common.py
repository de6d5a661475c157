"""What the claims of several papers share: a corpus, a figure, a null control."""

from collections.abc import Mapping

import torch

from alignkit.claims.claim import Condition, Trained
from alignkit.data import Lazy, Pairs, Splits, few_pairs, shuffle_pairs
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


def validation_hits(method: Method, splits: Splits, figure: str = "hit@10",
                    ) -> dict[str, float]:
    """A claim's `validate`: `figure` on the validation rows, mean of both directions."""
    return {figure: evaluate_retrieval(method, splits.val)["mean"][figure]}


def held_out_hits(arms: Mapping[str, Trained], figure: str = "hit@10") -> dict[str, float]:
    """A claim's `measure`: `figure` on the test rows, mean of both directions, by arm."""
    return {name: evaluate_retrieval(arm.method, arm.splits.test)["mean"][figure]
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
                 pictures.read, version=pictures.version)
    relations = pairs.tables["names"]["relation"]
    first = []
    for text in pairs["text"]:
        first.append(min((text.split(f" {r} ")[0] for r in relations), key=len))
    pairs = pairs.with_columns(image_one=alone, text_one=first)
    here = torch.arange(len(pairs)) < n
    return pairs.with_present("image_one", here).with_present("text_one", here)


def single_pairs(pairs: Pairs) -> Pairs:
    """The single objects of `single_objects`, with their tokens, as pairs of their own;
    equal captions are one item."""
    pairs = pairs.select(pairs.present["image_one"])
    names = sorted(set(pairs["text_one"]))
    columns = {f"{m}{end}": pairs[f"{m}_one{end}"]
               for m in ("image", "text") for end in ("", "_tokens")}
    return Pairs.make(columns, item=[names.index(text) for text in pairs["text_one"]],
                      provenance=pairs.provenance.derive("single objects"))


def split_few(pairs: Pairs, seed: int, few: int | None) -> Splits:
    """Redrawn splits, of whose training rows `few` items are kept (None: all)."""
    parts = pairs.split(seed)
    if few is None or few >= len(parts.train.item.unique()):
        return parts
    return parts._replace(train=few_pairs(parts.train, few, seed))


def several_objects(pairs: Pairs) -> Condition:
    """Several objects a caption, where a vocabulary can tell; else room above."""
    if nouns := set(pairs.tables.get("vocabulary", ())):
        def named(arm: Trained) -> float:
            captions = [set(text.split()) for text in arm.splits.train["text"]]
            return sum(len(words & nouns) for words in captions) / len(captions)

        return Condition("objects that a caption names", named, 2.0, 5.0)
    return Condition("the baseline's hit@1 leaves room",
                     lambda arm: held_out_hits({"": arm}, "hit@1")[""], 0.0, 0.9)
