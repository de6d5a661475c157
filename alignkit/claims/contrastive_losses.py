"""The second opening notebook's claims: what the temperature is worth, and the sigmoid.

Papers: Learning Transferable Visual Models From Natural Language Supervision. Radford et
al., ICML 2021, arXiv 2103.00020 (CLIP: the temperature starts at 0.07 and is learned; the
scale stops at 100). Sigmoid Loss for Language Image Pre-Training. Zhai, Mustafa,
Kolesnikov, Beyer, ICCV 2023, arXiv 2303.15343 (SigLIP: better than the softmax at smaller
batches; scale 10 and bias -10 at first, both learned).

Both train large networks on web pairs; here linear heads on frozen encoders are trained
with their losses and starting values, so this is a reconstruction of the two sentences as
small experiments, not of the papers' protocols. Neither paper runs the first claim's
baseline, InfoNCE at temperature 1.

Decided before any method arm was run: batches of 256 and 64, both margins, the grid.

Changed twice, and said here because the second time was after a full run. Tuning chose
the edge of the grid, 0.03, for both arms of `temperature`, so 0.1 was added for all arms
before any seed was measured. They chose 0.03 again, but InfoNCE at batch 64 now chose 0.1,
by the noise of one validation split: over the eight seeds it found 0.375, with 0.003 in
the pilot 0.403. So `small-batch` held by +0.046 [+0.020, +0.072] against a baseline that
was badly tuned. 0.1 was taken out again for all arms, which can only help that baseline,
and every seed was run again.

`small-batch` stands first because learned tensors of one name start as in the first
claim's baseline: so the learned temperature of InfoNCE starts at 0.07 in both claims.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from alignkit.claims.claim import Arm, Claim
from alignkit.claims.common import (
    GPU, UNPAIRED, WORTH, Encoders, held_out_hits, leaves_room, pooled, rates,
    validation_hits,
)  # fmt: skip
from alignkit.data import Pairs
from alignkit.parts import DualEncoder, Settings, positives_of, sigmoid_loss
from alignkit.training import Budget

NEEDS = ("image", "text")


@dataclass(frozen=True)
class Scale(Encoders):
    """Encoders, width of the shared space, a small batch, and the budget."""

    width: int = 128
    limit: int | None = None
    small_batch: int = 64
    budget: Budget = Budget(steps=200, batch_size=256, lr=3e-3, validate_every=20,
                            select_by="hit@10")


SCALES = {
    "tiny": Scale(limit=120, small_batch=16,
                  budget=replace(Scale.budget, steps=20, validate_every=10)),
    "small": Scale(),
    # One 16 GB GPU; bring pairs of your own (`--pairs`), some thousand.
    "gpu": Scale(**GPU, width=256,
                 small_batch=512, budget=replace(Scale.budget, steps=1000,
                                                 batch_size=4096)),
    "full": Scale(image="timm:vit_large_patch14_dinov2.lvd142m",
                  text="hf:sentence-transformers/all-roberta-large-v1", width=512,
                  small_batch=4096, budget=replace(Scale.budget, steps=5000,
                                                   batch_size=32_768)),
}


class SigmoidEncoder(DualEncoder):
    """Two heads, and SigLIP's loss with its learned scale and bias."""

    def build(self, settings: Settings, pairs: Pairs) -> None:
        super().build(settings, pairs)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        first, second = (outputs[name] for name in self.settings.towers)
        return {"sigmoid_loss": sigmoid_loss(first, second, self.log_scale.exp(), self.bias,
                                             positives_of(batch["item"]))}


def data(scale: str = "small", pairs: Pairs | None = None) -> Pairs:
    """Pairs with pooled features of both encoders; `pairs` of a user need `image` and
    `text`.

    Raises ValueError as `image_text` does.
    """
    s = SCALES[scale]
    return pooled(scale, pairs, s, s.limit)


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The claims on `pairs` (from `data`)."""
    s = SCALES[scale]

    def arm(method: type[DualEncoder], **rest) -> Arm:
        settings = Settings(width=s.width, **rest)
        return Arm(pairs.split, lambda splits: method(settings, splits.train))

    clip = {"temperature": 0.07, "learn_temperature": True}
    common = dict(
        figure="hit@10", measure=held_out_hits, differs="method",
        validate=validation_hits, choose_by="hit@10",
        grid=rates(1e-3, 3e-3, 1e-2, 3e-2), null=UNPAIRED,
        condition=leaves_room("the baseline's hit@10 leaves room", 0.0, 0.6))
    return [
        Claim(name="small-batch", headline=True, **WORTH,
              sentence=f"With batches of {s.small_batch} the sigmoid loss finds more unseen "
                       "pairs than InfoNCE does.",
              arms={"infonce-small": arm(DualEncoder, **clip),
                    "sigmoid-small": arm(SigmoidEncoder)},
              baseline="infonce-small", method="sigmoid-small",
              budget=replace(s.budget, batch_size=s.small_batch), **common),
        Claim(name="temperature", **WORTH,
              sentence="InfoNCE with CLIP's learned temperature finds more unseen pairs "
                       "than InfoNCE without one (fixed at 1).",
              arms={"fixed-1": arm(DualEncoder, temperature=1.0),
                    "learned": arm(DualEncoder, **clip)},
              baseline="fixed-1", method="learned", budget=s.budget, **common),
    ]
