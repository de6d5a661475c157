"""The third opening notebook's claims: what a larger batch is worth, on equal terms.

Paper: Learning Transferable Visual Models From Natural Language Supervision. Radford et
al., ICML 2021, arXiv 2103.00020 (CLIP): the loss compares each row with all rows of the
batch, so a larger batch has more negatives. The authors train large networks on
web pairs with one large batch and do not isolate its size; here linear heads on frozen
encoders are trained with batches of two sizes (small experiments on the idea, not the
paper's protocol).

A larger batch differs from a small one in several things at once, so there are three
claims with the same large batch, and each holds other things equal:

    equal-passes: as many rows seen; the small batch takes more steps in return
    equal-steps: as many steps; the small batch sees fewer rows
    equal-rows: the same rows in the same steps; only that they stand in one softmax or
        in several small ones, as on processes that do not share their rows

Every arm learns its temperature (CLIP's start), takes its rate from the same grid, and
keeps its last weights: choosing weights on the way would give more choices to whoever
takes more steps.

Decided before any method arm was run: the margin of 0.02, the null and the grid; and by
a pilot on the baseline of `equal-passes` alone (two seeds of their own, rates 0.003 and
0.01) the length: with 12,800 rows seen it found 0.37, with twice as many 0.35, with
four times 0.34, so the first.
"""

from dataclasses import dataclass

from torch import Tensor

from alignkit.claims.claim import Arm, Claim, Condition, Null
from alignkit.claims.common import (WORTH, held_out_hits, hit_at_10, image_text,
                                    shuffled_training, validation_hits)
from alignkit.data import Pairs
from alignkit.encoders import add_features
from alignkit.parts import DualEncoder, Settings, Stage, info_nce, positives_of
from alignkit.training import Budget

NEEDS = ("image", "text")


@dataclass(frozen=True)
class Scale:
    """Encoders, width of the shared space, a small batch, and the budget (its batch
    size is the large one's)."""

    image: str = "image:efficientnet-lite0"
    text: str = "text:minilm"
    width: int = 128
    limit: int | None = None
    small_batch: int = 64
    budget: Budget = Budget(steps=25, batch_size=512)


SCALES = {
    "tiny": Scale(limit=120, small_batch=8, budget=Budget(steps=10, batch_size=32)),
    "small": Scale(),
    # One 16 GB GPU; bring pairs of your own (`--pairs`), some thousand.
    "gpu": Scale(image="timm:vit_small_patch14_dinov2.lvd142m",
                 text="hf:sentence-transformers/all-mpnet-base-v2", width=256,
                 small_batch=512, budget=Budget(steps=500, batch_size=4096)),
    "full": Scale(image="timm:vit_large_patch14_dinov2.lvd142m",
                  text="hf:sentence-transformers/all-roberta-large-v1", width=512,
                  small_batch=4096, budget=Budget(steps=5000, batch_size=32_768)),
}


@dataclass(frozen=True)
class Parted(Settings):
    """A dual encoder's settings, and of the batches that the budget draws:

    rows: how many of a batch are trained on. together: how many of them stand in one
    softmax. steps: in place of the budget's.
    """

    rows: int = 512
    together: int = 64
    steps: int = 25


class PartedBatches(DualEncoder):
    """Two heads trained on part of each batch, or on all of it in several softmaxes."""

    traits = frozenset({"ordered"})  # which rows stand together

    def stages(self) -> list[Stage]:
        return [Stage(steps=self.settings.steps)]

    def forward(self, batch: dict, progress: float = 0.0) -> dict[str, Tensor]:
        # A batch is drawn in random order: its first rows are a random part of it.
        few = {name: batch[name][:self.settings.rows]
               for name in (*self.settings.towers.values(), "item")}
        return super().forward(few, progress)

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        """The mean over rows of L(softmax of `together` rows)."""
        columns = (*(outputs[name] for name in self.settings.towers), batch["item"])
        blocks = zip(*(x.split(self.settings.together) for x in columns), strict=True)
        total = sum(len(item) * info_nce(a, b, self.temperature(), positives_of(item))
                    for a, b, item in blocks)
        return {"contrastive_loss": total / len(columns[-1])}


def data(scale: str = "small", pairs: Pairs | None = None) -> Pairs:
    """Pairs with pooled features of both encoders; `pairs` of a user need `image` and
    `text`.

    Raises ValueError as `image_text` does, and for fewer pairs than the large batch
    needs (with fewer, both batches would be the same).
    """
    s = SCALES[scale]
    pairs = image_text(scale, pairs, s.limit)
    if 0.7 * len(pairs) < s.budget.batch_size:
        raise ValueError(f"pairs has {len(pairs)} rows, and batches of "
                         f"{s.budget.batch_size} need a training part (70 %) as large: "
                         "give more pairs, or take a smaller --scale")
    return add_features(add_features(pairs, "image", s.image), "text", s.text)


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The claims on `pairs` (from `data`)."""
    s = SCALES[scale]
    large, small, steps = s.budget.batch_size, s.small_batch, s.budget.steps
    start = {"width": s.width, "temperature": 0.07, "learn_temperature": True}

    def parted(rows: int, steps: int) -> Arm:
        settings = Parted(**start, rows=rows, together=small, steps=steps)
        return Arm(pairs.split, lambda splits: PartedBatches(settings, splits.train))

    arms = {"large": Arm(pairs.split, lambda splits: DualEncoder(Settings(**start),
                                                                 splits.train)),
            "small-more-steps": parted(small, steps * large // small),
            "small": parted(small, steps),
            "large-apart": parted(large, steps)}

    def claim(name: str, baseline: str, sentence: str) -> Claim:
        return Claim(
            name=name, sentence=sentence, baseline=baseline, method="large",
            headline=name == "equal-passes",
            arms={baseline: arms[baseline], "large": arms["large"]}, differs="method",
            figure="hit@10", **WORTH, measure=held_out_hits, budget=s.budget,
            validate=validation_hits, choose_by="hit@10",
            grid=({"lr": 1e-3}, {"lr": 3e-3}, {"lr": 1e-2}, {"lr": 3e-2}),
            null=Null("training pairs shuffled", shuffled_training, expected=0.0,
                      margin=0.02),
            condition=Condition(
                "the baseline's hit@10 leaves room",
                lambda arm: hit_at_10(arm.method, arm.splits.test), 0.0, 0.6))

    finds = f"With batches of {large} linear heads find more unseen pairs than"
    return [
        claim("equal-passes", "small-more-steps",
              f"{finds} with batches of {small}, after as many rows seen (the small "
              f"batches take {large // small} times the steps)."),
        claim("equal-steps", "small",
              f"{finds} with batches of {small}, after as many steps (the large "
              f"batches see {large // small} times the rows)."),
        claim("equal-rows", "large-apart",
              f"{finds} when the same {large} rows stand in {large // small} softmaxes "
              f"of {small} that do not see each other."),
    ]
