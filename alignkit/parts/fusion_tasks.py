"""The five tasks on which LXMERT is trained: masked words, masked regions (their features
and their kind), which words belong to which picture, and answers (Tan and Bansal 2019,
arXiv 1908.07490, section 3.1).

What a detector's classes are there, clusters of the region features are here: nobody has
named anything.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from alignkit.data import Tokens
from alignkit.parts.fusion import Fused, FusionModel
from alignkit.parts.text import IGNORED, mask_words

FIVE = ("words", "values", "kinds", "match", "answers")
OF_WORDS = ("words", "match", "answers")  # nothing is asked of regions


def know_regions(model: FusionModel, values: Tensor, seed: int) -> None:
    """Take mean and deviation of the region features [m, d] into the model, and the centres
    of their clusters: k-means (scipy, k-means++) from `seed`.

    Raises ValueError for fewer regions than clusters.
    """
    if model.centres.is_meta:  # shapes are all that is asked for
        return
    import numpy as np
    from scipy.cluster.vq import kmeans2

    if len(values) < model.settings.clusters:
        raise ValueError(f"values has {len(values)} regions, fewer than the "
                         f"{model.settings.clusters} clusters")
    model.region_mean.copy_(values.mean(0))
    model.region_scale.copy_(values.std(0).clamp_min(1e-6))
    rows = model.standard(values.to(model.region_mean)).cpu().double().numpy()
    centres, _ = kmeans2(rows, model.settings.clusters, minit="++", iter=20,
                         rng=np.random.default_rng(seed))
    model.centres.copy_(torch.from_numpy(centres))


def kinds_of(model: FusionModel, values: Tensor) -> Tensor:
    """The nearest centre of region features [n, r, d] -> [n, r], long."""
    return torch.cdist(model.standard(values).flatten(0, 1),
                       model.centres).argmin(1).view(values.shape[:2])


def mask_regions(regions: Tokens, blank: Tensor, generator: torch.Generator,
                 share: float = 0.15) -> tuple[Tokens, Tensor]:
    """Features of some regions hidden: each real one with probability `share`; of those
    80 % become `blank` [d], 10 % another region of the batch, 10 % stay. Boxes are seen.

    Returns: regions with the same mask; which were chosen, bool [n, r].
    """
    values, real = regions
    draw, kind = torch.rand(2, *real.shape, generator=generator)
    chosen = (draw < share) & real
    there = values[real]
    other = there[torch.randint(len(there), real.shape, generator=generator)]
    hidden = torch.where((kind < 0.8)[:, :, None], blank, torch.where(
        (kind < 0.9)[:, :, None], other, values))
    return Tokens(torch.where(chosen[:, :, None], hidden, values), real), chosen


def another_row(item: Tensor, generator: torch.Generator) -> Tensor:
    """For each row [n] a row of another item, drawn evenly.

    Raises ValueError where all rows are of one item.
    """
    other = item[:, None] != item
    if not other.any(1).all():
        raise ValueError("item: all rows are of one item, none can stand for another")
    return torch.multinomial(other.float(), 1, generator=generator)[:, 0]


def task_batch(model: FusionModel, words: Tokens, answer: Tensor, regions: Tokens,
               boxes: Tokens, item: Tensor, generator: torch.Generator,
               tasks: Sequence[str] = FIVE, share: float = 0.15, swap: float = 0.5,
               swapped_too: bool = True) -> dict:
    """What `task_losses` takes. Some rows get the words of another item's row, and then no
    answer; words and regions are masked in all rows.

    Args:
        words: ids [n, t]. answer [n]: its number, or `IGNORED` where nothing is asked.
        regions, boxes: as `FusionModel.forward` takes them. item [n].
        share: of words that are masked (of regions always 0.15). swap: part of the rows
            with another's words. swapped_too: are these asked for what is masked, as
            officially they are?
    """
    if unknown := set(tasks) - set(FIVE):
        raise ValueError(f"tasks must be some of {', '.join(FIVE)}, got {sorted(unknown)}")
    swapped = torch.rand(len(item), generator=generator) < swap
    rows = torch.where(swapped, another_row(item, generator), torch.arange(len(item)))
    words = Tokens(words.values[rows], words.mask[rows])
    masked, targets = mask_words(words, len(model.pieces), generator, share)
    if not swapped_too:
        targets = targets.masked_fill(swapped[:, None], IGNORED)
    batch = {"words": masked, "word_targets": targets, "regions": regions, "boxes": boxes,
             "matched": (~swapped).long(), "answer": answer.masked_fill(swapped, IGNORED),
             "item": item, "tasks": tuple(tasks)}
    if {"values", "kinds"} & set(tasks):
        batch["regions"], hidden = mask_regions(regions, model.region_mean.cpu(), generator)
        batch["hidden"] = hidden & (swapped_too | ~swapped)[:, None]
        batch["values"] = model.standard(regions.values.to(model.region_mean)).cpu()
        batch["kinds"] = kinds_of(model, regions.values.to(model.region_mean)).cpu()
    return batch


def task_losses(model: FusionModel, batch: dict,
                fused: Fused | None = None) -> dict[str, Tensor]:
    """A loss for each task of the batch, all of weight 1: cross entropy of the masked words,
    smooth L1 (mean over the features) and cross entropy of the masked regions, cross
    entropy of matched or not, and of the answers where there are any. Nothing to fill in
    is 0. fused: the model's outputs, where they are there already."""
    fused = fused or model(batch["words"], batch["regions"], batch["boxes"])
    losses = {}
    if "words" in batch["tasks"]:
        losses["words_loss"] = cross_entropy(model.word_logits(fused), batch["word_targets"])
    if "values" in batch["tasks"]:
        off = F.smooth_l1_loss(model.region_values(fused), batch["values"],
                               reduction="none").mean(2)
        hidden = batch["hidden"]
        losses["values_loss"] = (off * hidden).sum() / hidden.sum().clamp(min=1)
    if "kinds" in batch["tasks"]:
        kinds = batch["kinds"].masked_fill(~batch["hidden"], IGNORED)
        losses["kinds_loss"] = cross_entropy(model.kind_logits(fused), kinds)
    if "match" in batch["tasks"]:
        losses["match_loss"] = cross_entropy(model.match_logits(fused), batch["matched"])
    if "answers" in batch["tasks"]:
        losses["answers_loss"] = cross_entropy(model.answer_logits(fused), batch["answer"])
    return losses


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the targets that are not `IGNORED`; 0 if there are none."""
    found = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED,
                            reduction="sum")
    return found / (targets != IGNORED).sum().clamp(min=1)
