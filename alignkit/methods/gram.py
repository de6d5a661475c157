"""GRAM: one volume compares a text with all its other modalities at once.

Paper: Gramian Multimodal Representation Learning and Alignment. Cicchetti, Grassucci,
Sigillo, Comminiello, ICLR 2025, arXiv 2412.11959.

Claim: losses that tie each modality to an anchor, pair by pair, say nothing of two
modalities that are no anchor. The volume that all unit vectors of a row span is 0 when
they coincide and 1 when they are orthogonal; trained to be small for true rows it brings
all of them together, and ranking by it retrieves better.

Use it when: rows have three or more modalities and you ask with one (a text) for all the
others together. With two it is cosine without its sign. With rows that lack a modality,
or if the other modalities must find each other too, take InfoNCE on all pairs: on our
corpus the volume drove them apart.

Equations, t_i the anchor and v_j, a_j, … the other unit vectors of row j:
    volume[i, j] = √det G,  G the products of t_i, v_j, a_j, … with each other
    three:  det G = 1 + 2 (tv)(ta)(va) − (tv)² − (ta)² − (va)²;  two:  volume = √(1 − cos²)
    loss = ½ [CE(rows of −volume / temperature) + CE(columns of it)],  labels smoothed
Only the anchor's index runs against the row's: v_j and a_j always belong together.

Frozen: all encoders (in the paper all are trained); linear heads without bias and the
temperature learn.
Exact property: volume(t, v, a) = volume(v, a) · distance of t from the plane of v and a.
It does not change if a vector changes its sign, if all are turned together, or with the
order of modalities; it lies in [0, 1] and is 0 where two vectors are equal, and where t
lies in the plane of v and a, even if these two are orthogonal. So a row with v = a is at
volume 0 from every text, and a small volume does not make v and a meet. The gradient of
the root is infinite at 0; here it is 0 (the authors' code takes √|det| and gives NaN).
Deviations: frozen encoders, and heads that start from nothing (second-hand: the authors
go on from an aligned model); no matching head (the authors add 0.1 of a cross-encoder's
loss, and re-rank by it); 1 / temperature is clamped at 100; rows of one item are all
right answers. The authors gather candidates without gradient, so that rows train the
anchor's head alone and columns the others' alone; their example for one process lets the
gradient through both sides. That is the default here, `detached=True` is the former.
Reconstructed: nothing; loss, smoothing and gathering were read in the authors' code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from alignkit.data import Pairs
from alignkit.parts import (
    Method,
    Settings,
    Temperature,
    cosine,
    gramian_volumes,
    logits_of,
    positives_of,
    shares,
    two_way_cross_entropy,
)


@dataclass(frozen=True)
class GramSettings(Settings):
    """Settings of a dual encoder with two towers or more, the anchor first, and:
    smoothing of the labels; detached, whether candidates carry no gradient."""

    temperature: float = 0.07
    learn_temperature: bool = True
    smoothing: float = 0.1
    detached: bool = False


def smoothed_loss(rows: Tensor, columns: Tensor, positives: Tensor,
                  smoothing: float = 0.0) -> Tensor:
    """The card's loss of two logits [n, n], the first softmaxed by rows, the second by
    columns; right answers of a row share its weight, smoothing takes some of it for all."""
    target = shares(positives, rows.dtype)
    return two_way_cross_entropy(rows, target, columns, target, smoothing)


def volume_loss(anchor: Tensor, others: Sequence[Tensor], scale: Tensor | float,
                positives: Tensor, smoothing: float = 0.1,
                detached: bool = False) -> Tensor:
    """The card's loss of unit rows: anchor [n, d], others k − 1 tensors [n, d].

    scale: 1 / temperature. positives: bool [n, n], as `positives_of` gives it. detached:
    rows train the anchor alone and columns the others alone, as in the authors' code.
    """
    if not detached:
        logits = -scale * gramian_volumes(anchor, others)
        return smoothed_loss(logits, logits, positives, smoothing)
    rows = -scale * gramian_volumes(anchor, [z.detach() for z in others])
    columns = -scale * gramian_volumes(anchor.detach(), others)
    return smoothed_loss(rows, columns, positives, smoothing)


class Gram(Method):
    """Linear heads for two modalities or more, compared by the volume of a row."""

    settings: GramSettings

    def build(self, settings: GramSettings, pairs: Pairs) -> None:
        self.heads = nn.ModuleDict({
            name: nn.Linear(pairs[column].shape[-1], settings.width, bias=False)
            for name, column in settings.towers.items()})
        self.temperature = Temperature(settings.temperature, settings.learn_temperature)

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        """Raises ValueError if a row lacks a modality: volumes of different numbers of
        vectors do not compare."""
        for name, column in self.settings.towers.items():
            if not batch["present"][column].all():
                raise ValueError(
                    f"some rows have no {name}, and volumes of different numbers of "
                    f"modalities do not compare: pairs.select(pairs.present[{column!r}]) "
                    f"keeps whole rows, settings without the tower {name!r} all of them")
        return {"contrastive_loss": self.contrast(
            [outputs[name] for name in self.settings.towers],
            positives_of(batch["item"]), self.temperature())}

    def contrast(self, outputs: Sequence[Tensor], positives: Tensor,
                 scale: Tensor | float) -> Tensor:
        """The loss of unit rows [n, width], one tensor a modality, the anchor first."""
        anchor, *others = outputs
        return volume_loss(anchor, others, scale, positives, self.settings.smoothing,
                           self.settings.detached)

    def score(self, query, gallery) -> Tensor:
        """−volume [n_query, n_gallery]. One side may be a tuple of modalities, whose
        vectors of one row are compared with the other side together."""
        if not isinstance(query, Tensor):
            return self.score(gallery, query).T
        return -gramian_volumes(query, _several(gallery))


class Anchored(Gram):
    """The usual baseline: InfoNCE of the anchor with each other modality.

    Same heads, temperature and smoothing. A tuple is scored by its sum of cosines.
    """

    def compared(self, outputs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The pairs of modalities that the loss sees."""
        anchor, *others = outputs
        return [(anchor, other) for other in others]

    def contrast(self, outputs: Sequence[Tensor], positives: Tensor,
                 scale: Tensor | float) -> Tensor:
        """The mean over the compared pairs of their loss."""
        logits = [logits_of(a, b, scale) for a, b in self.compared(outputs)]
        return torch.stack([smoothed_loss(x, x, positives, self.settings.smoothing)
                            for x in logits]).mean()

    def score(self, query, gallery) -> Tensor:
        """Sum of cosines with the vectors of a tuple."""
        if not isinstance(query, Tensor):
            return self.score(gallery, query).T
        return torch.stack([cosine(query, z) for z in _several(gallery)]).sum(0)


class AllPairs(Anchored):
    """The strong baseline: InfoNCE of every two modalities."""

    def compared(self, outputs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Every two."""
        return list(combinations(outputs, 2))


def _several(gallery) -> list[Tensor]:
    """A tuple of modalities; one tensor is a tuple of one."""
    return [gallery] if isinstance(gallery, Tensor) else list(gallery)
