"""The opening notebook's claim: two encoders that never met share enough for a linear map.

Paper: Linearly Mapping from Image to Text Space. Merullo, Castricato, Eickhoff, Pavlick,
ICLR 2023, arXiv 2209.15162: what frozen vision-only and text-only models have learned is
similar enough that a linear map joins them. The authors prompt a language model with
mapped pictures; here linear heads are trained with InfoNCE and judged by retrieval, and
the baseline is the same two architectures with random weights (a reconstruction of the
idea as a small experiment, not of the paper's protocol).
"""

from dataclasses import dataclass, replace

from alignkit.claims.claim import Arm, Claim, Condition, Null, Trained
from alignkit.data import Pairs, Splits, shuffle_pairs
from alignkit.data.emoji import emoji
from alignkit.encoders import add_features
from alignkit.evaluation import evaluate_retrieval
from alignkit.parts import DualEncoder, Method, Settings
from alignkit.training import Budget

NEEDS = ("image", "text")
FEWEST_ITEMS = 60


@dataclass(frozen=True)
class Scale:
    """Encoders, width of the shared space, and the budget."""

    image: str = "image:efficientnet-lite0"
    text: str = "text:minilm"
    width: int = 128
    limit: int | None = None
    budget: Budget = Budget(steps=200, batch_size=512, lr=1e-3, validate_every=10,
                            select_by="hit@10")


SCALES = {
    "tiny": Scale(limit=120, budget=replace(Scale.budget, steps=20, validate_every=10)),
    "small": Scale(),
    # One 16 GB GPU; bring pairs of your own (`--pairs`), some thousand.
    "gpu": Scale(image="timm:vit_small_patch14_dinov2.lvd142m",
                 text="hf:sentence-transformers/all-mpnet-base-v2", width=256,
                 budget=replace(Scale.budget, steps=1000, batch_size=4096)),
    "full": Scale(image="timm:vit_large_patch14_dinov2.lvd142m",
                  text="hf:sentence-transformers/all-roberta-large-v1", width=512,
                  budget=replace(Scale.budget, steps=5000, batch_size=8192)),
}


def data(scale: str = "small", pairs: Pairs | None = None) -> Pairs:
    """Pairs with pooled features of both encoders and of their random twins
    (`image_random`, `text_random`); `pairs` of a user need `image` and `text`.

    Raises ValueError for fewer than 60 items or at a scale that needs pairs.
    """
    s = SCALES[scale]
    if pairs is None:
        if scale in ("gpu", "full"):
            raise ValueError(f"scale {scale!r} needs pairs of your own (--pairs TABLE): the "
                             "emoji corpus is for 'tiny' and 'small'")
        pairs = emoji(limit=s.limit)
    if (items := len(pairs.item.unique())) < FEWEST_ITEMS:
        raise ValueError(f"pairs has {items} different pictures, at least {FEWEST_ITEMS} "
                         "are needed for training, validation and test")
    for column, encoder in (("image", s.image), ("text", s.text)):
        twin = add_features(pairs, column, f"random:{encoder}")[f"{column}_features"]
        pairs = add_features(pairs.with_features(**{f"{column}_random": twin}), column,
                             encoder)
    return pairs


def validate(method: Method, splits: Splits) -> dict[str, float]:
    """Mean hit@10 of both directions on the validation rows."""
    return {"hit@10": evaluate_retrieval(method, splits.val)["mean"]["hit@10"]}


def _test_hits(arm: Trained) -> float:
    return evaluate_retrieval(arm.method, arm.splits.test)["mean"]["hit@10"]


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The claim on `pairs` (from `data`)."""
    s = SCALES[scale]

    def arm(suffix: str) -> Arm:
        towers = {name: f"{name}_{suffix}" for name in ("image", "text")}
        settings = Settings(towers=towers, width=s.width)
        return Arm(pairs.split, lambda splits: DualEncoder(settings, splits.train))

    def wrong_pairs(splits: Splits, seed: int) -> Splits:
        return splits._replace(train=shuffle_pairs(splits.train, "text", seed))

    return [Claim(
        name="linear-map", figure="hit@10", margin=0.05,
        sentence="Linear heads join two pretrained encoders that never met: they find "
                 "unseen pairs better than heads on the encoders' random twins.",
        arms={"random": arm("random"), "pretrained": arm("features")},
        baseline="random", method="pretrained", differs="data",
        measure=lambda arms: {name: _test_hits(a) for name, a in arms.items()},
        budget=s.budget, validate=validate, choose_by="hit@10",
        grid=({"lr": 3e-4}, {"lr": 1e-3}, {"lr": 3e-3}),
        null=Null("training pairs shuffled", wrong_pairs, expected=0.0, margin=0.02),
        condition=Condition("the baseline's hit@10 leaves room", _test_hits, 0.0, 0.6))]
