"""What the claims of several papers share: a corpus, a figure, a null control."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from weakref import WeakKeyDictionary

import torch

from alignkit.claims.claim import Condition, Null, Trained
from alignkit.claims.follow_ups import FIRST as FOLLOW_UPS
from alignkit.claims.runs import TUNING_SEEDS
from alignkit.data import Lazy, Pairs, Splits, few_pairs, shuffle_pairs
from alignkit.data.emoji import emoji
from alignkit.data.scenes import scenes
from alignkit.encoders import add_features
from alignkit.evaluation import evaluate_retrieval
from alignkit.parts import Method

# The usual margin of a score between 0 and 1, stated before any run.
WORTH = {"margin": 0.02,
         "margin_why": "two in a hundred; less would change nobody's choice of a method"}
FEWEST_ITEMS = 60  # fewer leave no test set on which hit@10 means anything
# The usual encoders at scale 'gpu': one 16 GB GPU, pairs of a user's own, some thousand.
GPU = {"image": "timm:vit_small_patch14_dinov2.lvd142m",
       "text": "hf:sentence-transformers/all-mpnet-base-v2"}


@dataclass(frozen=True)
class Encoders:
    """What a paper's `Scale` begins with: the usual encoders, which work offline."""

    image: str = "image:efficientnet-lite0"
    text: str = "text:minilm"


def rates(*rates: float) -> tuple[dict, ...]:
    """A grid of learning rates."""
    return tuple({"lr": lr} for lr in rates)


# Corpora ------------------------------------------------------------------------------

def corpus(scale: str, pairs: Pairs | None, ours: Callable[[], Pairs],
           bring: str = "FOLDER") -> Pairs:
    """The user's `pairs` if given, else `ours()`; bring: what `--pairs` must name.

    Raises ValueError for fewer than 60 items, or at 'gpu' and 'full' without pairs: these
    scales are for real data sets.
    """
    if pairs is None:
        if scale in ("gpu", "full"):
            raise ValueError(f"scale {scale!r} needs pairs of your own (--pairs {bring}): our "
                             "corpus is for 'tiny' and 'small'")
        pairs = ours()
    if (items := len(pairs.item.unique())) < FEWEST_ITEMS:
        raise ValueError(f"pairs has {items} different items (pictures, shapes), at least "
                         f"{FEWEST_ITEMS} are needed for training, validation and test")
    return pairs


def image_text(scale: str, pairs: Pairs | None = None, limit: int | None = None) -> Pairs:
    """The user's `pairs` if given, else the emoji corpus (`limit` groups of it).

    Raises ValueError as `corpus` does.
    """
    return corpus(scale, pairs, lambda: emoji(limit=limit), "TABLE")


def pooled(scale: str, pairs: Pairs | None, s: Encoders, limit: int | None = None) -> Pairs:
    """`image_text` with the pooled features of both encoders."""
    pairs = image_text(scale, pairs, limit)
    return add_features(add_features(pairs, "image", s.image), "text", s.text)


def need_labels(pairs: Pairs, names: Sequence[str], what: str) -> None:
    """Raises ValueError if a label lacks; `what` the user must give."""
    if missing := set(names) - set(pairs.labels):
        raise ValueError(f"pairs has no labels {sorted(missing)}: {what}, with label_names "
                         "(Pairs.make, then save it and hand over its folder)")


# Scores, controls and conditions ------------------------------------------------------
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


def by_arm(figure: Callable[[Trained], float]) -> Callable:
    """A claim's `measure`: the figure of every arm."""
    return lambda arms: {name: figure(trained) for name, trained in arms.items()}


def once(figure: Callable[[Trained], object]) -> Callable:
    """A figure of a trained arm that is computed once, however many claims and conditions
    ask for it."""
    known = WeakKeyDictionary()

    @wraps(figure)
    def of(arm: Trained):
        if arm.method not in known:
            known[arm.method] = figure(arm)
        return known[arm.method]
    return of


def on_test(figure: Callable[[Method, Pairs], float]) -> Callable:
    """A claim's `measure`: `figure(method, test rows)` of every arm."""
    return by_arm(lambda trained: figure(trained.method, trained.splits.test))


def leaves_room(name: str, low: float, high: float, figure: str = "hit@10") -> Condition:
    """The baseline's figure on the test rows lies between low and high."""
    return Condition(name, lambda arm: held_out_hits({"": arm}, figure)[""], low, high)


def learned_with_room(what: str, figure: Callable[[Trained], float],
                      prior: float | Callable[[Trained], float], least: float = 0.02,
                      high: float = 0.9) -> tuple[Condition, Condition]:
    """The baseline's `figure` lies above the `prior` (what one gets who knows how often each
    answer comes, and nothing of the input) by `least` or more, and at `high` or below.

    Raises ValueError if nothing can be above the one and below the other.
    """
    if not (0 < least and (callable(prior) or prior + least < high)):
        raise ValueError(f"a figure cannot be {least} above {prior} and at most {high}: least "
                         "must be above 0, and prior plus least below high")

    def above(arm: Trained) -> float:
        return figure(arm) - (prior(arm) if callable(prior) else prior)

    return (Condition(f"the baseline's {what} less what the prior gets", above, least, 1.0),
            Condition(f"the baseline's {what} leaves room", figure, 0.0, high))


def gains(one: tuple[str, str], other: tuple[str, str]) -> dict:
    """For a claim on a difference of two gains: its `statistic` and its `twins`; one,
    other: baseline and method of each gain."""
    (a, b), (c, d) = one, other
    return {"statistic": lambda f: f[b] - f[a] - (f[d] - f[c]), "twins": {b: a, d: c},
            "subtracts": f"{b} minus {a}, less {d} minus {c}"}


def shuffled_training(splits: Splits, seed: int) -> Splits:
    """A null's `transform`: no training picture keeps its text, so nothing is learned
    about pairs."""
    return splits._replace(train=shuffle_pairs(splits.train, "text", seed))


def shuffled_learning(splits: Splits, seed: int) -> Splits:
    """A null's `transform`: nor does a validation picture. Where weights are chosen on the
    validation rows (`select_by`), these must not say what belongs together either."""
    return shuffled_training(splits, seed)._replace(
        val=shuffle_pairs(splits.val, "text", seed + 1))


def shuffled_labels(name: str) -> Callable[[Splits, int], Splits]:
    """A null's `transform`: training and validation rows get each other's label `name`, each
    part for itself."""
    def turned(rows: Pairs, seed: int) -> Pairs:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        return replace(rows, labels={**rows.labels, name: rows.labels[name][order]})

    return lambda splits, seed: splits._replace(
        train=turned(splits.train, seed), val=turned(splits.val, seed + 1))


# The control of papers whose results are older; their weights were chosen on true pairs.
UNPAIRED = Null("training pairs shuffled", shuffled_training, 0.0, 0.02)
UNLEARNED = Null("training and validation pairs shuffled", shuffled_learning, 0.0, 0.02)


def nothing_paired(splits: Splits, seed: int) -> Splits:
    """A null's `transform`: no row of any split keeps its text."""
    return Splits(*(shuffle_pairs(part, "text", seed + k)
                    for k, part in enumerate(splits)))


def model_of(seed: int, models: Sequence[int], first: int = 0) -> int:
    """The shipped model (`shipped.units` lists them) that a run with `seed` takes: each
    paired seed, from `first` on, has one of its own, for two seeds of one model are not
    independent; a follow-up's take the models of the headline's seeds, in the same order;
    the tuning seeds take models that differ, and so do the pilot's.

    Raises ValueError for a paired seed without a model.
    """
    paired, later = seed < TUNING_SEEDS[0], seed - FOLLOW_UPS
    if 0 <= later < len(models):
        return models[later]
    if paired and not first <= seed < first + len(models):
        raise ValueError(f"seed {seed} has no model of its own: there are {len(models)}, "
                         f"for the paired seeds {first} to {first + len(models) - 1}")
    place = seed - first if paired else seed // 1000 + seed % 1000  # 1000, 2000 -> 1, 2
    return models[place % len(models)]


# Scenes and their single objects ------------------------------------------------------
def scene_tokens(scale: str, pairs: Pairs | None, s) -> Pairs:
    """The user's `pairs`, or composed scenes with their single objects, with the tokens
    of both encoders. s: a scale with `scenes`, how many, and `alone`, how many of them
    also with one object.

    Raises ValueError as `image_text` does.
    """
    columns = ["image", "text"]
    if pairs is None and scale in ("tiny", "small"):
        pairs = single_objects(scenes(s.scenes), s.alone)
        columns += ["image_one", "text_one"]
    else:
        pairs = image_text(scale, pairs)
    for column in columns:
        encoder = s.text if column.startswith("text") else s.image
        pairs = add_features(pairs, column, encoder, tokens=True)
    return pairs


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
