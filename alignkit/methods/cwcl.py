"""CWCL: a frozen encoder's own similarities say how right every wrong answer is.

Paper: CWCL: Cross-Modal Transfer with Continuously Weighted Contrastive Loss. Srinivasa,
Cho, Yang, Saidutta, Lee, Shen, Jin, NeurIPS 2023, arXiv 2309.14580.

Claim: where one encoder is good and frozen and the other learns from pairs (LiT), InfoNCE
calls every other row of a batch equally wrong, though many mean nearly the same. If an
anchor is drawn to every row as strongly as the frozen encoder finds that row similar to
its own, the frozen space's structure is copied, and zero-shot classification gains.

Use it when: one encoder is strong and frozen, there are many pairs and large batches with
several items of each class, and you will ask for classes, not for the very pair. With a
thousand pairs and a head on frozen features keep InfoNCE: there the weights were mostly
label smoothing, and cost classes and structure.

Equations, p_i = unit(head(u_i)) trained, q_i = unit(v_i) frozen, n rows, no gradient to w:
    w_ij = ½ + ½ q_i·q_j  (in [0, 1], w_ii = 1),  A = w with its rows divided by their sums
    S = scale · p qᵀ, scale = 1 / temperature
    weighted = −1/n Σ_i Σ_j A_ij log softmax_j(S_ij)     trained anchors, frozen candidates
    plain = −1/n Σ_i log softmax_j(S_ji) at j = i        frozen anchors, trained candidates
    loss = weighted + plain (a sum); with w = identity it is LiT's, twice `info_nce`.
anchor='frozen' is the other reading: A stands at the rows of Sᵀ and the plain loss at S.

Frozen: one encoder altogether, without even a head, so its space is the shared one; the
other encoder, too. Trained: a two-layer head on the latter, and the temperature.
Exact property: w = identity gives twice InfoNCE. Constant w makes `weighted` the cross
entropy with the uniform distribution, at least ln n, at equal logits. A row of w may be
multiplied by a number. d weighted / d S_ij = (softmax_ij − A_ij) / n. Where two frozen rows
coincide their target rows do.
Deviations: both encoders are frozen (the paper trains one of them), a head learns; rows of
one item are all right answers of the plain loss; scale stops at 100. `centred` (weights
from q minus the batch's mean, made unit again) is not in the paper.
Reconstructed: without the authors' code, from the abstract, the paper's notation and the
loss in CellCLIP's code, which cites it. Which anchors carry the weights is not certain:
CellCLIP weights the frozen anchors' rows, the reading here the trained ones'. The start of
the temperature, 0.07, is CLIP's; the paper's was not found.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignkit.data import Pairs
from alignkit.parts import (
    Method,
    Settings,
    Temperature,
    logits_of,
    positives_of,
    projector,
    shares,
    unit,
)


@dataclass(frozen=True)
class CwclSettings(Settings):
    """Settings of a dual encoder (its width is that of the frozen features), and: frozen,
    the tower without a head; anchor, the side whose rows carry the weights, 'trained' or
    'frozen'; centred, whether the weights are taken after the batch's mean."""

    head: str = "mlp"
    temperature: float = 0.07
    learn_temperature: bool = True
    frozen: str = "text"
    anchor: str = "trained"
    centred: bool = False


def similarity_weights(frozen: Tensor, centred: bool = False) -> Tensor:
    """w [n, n] = ½ + ½ cosine of the frozen rows [n, d], without gradient."""
    q = unit(frozen.detach())
    if centred:
        q = unit(q - q.mean(0))
    return 0.5 + 0.5 * logits_of(q, q, 1.0)


def weighted_loss(logits: Tensor, weights: Tensor) -> Tensor:
    """Cross entropy of the rows of logits [n, n] with the weights [n, n], each row of
    which is divided by its sum."""
    return F.cross_entropy(logits, shares(weights, logits.dtype))


def cwcl_losses(trained: Tensor, frozen: Tensor, scale: Tensor | float, weights: Tensor,
                positives: Tensor | None = None, anchor: str = "trained",
                ) -> tuple[Tensor, Tensor]:
    """The card's two terms, weighted and plain; the loss is their sum.

    Args:
        trained, frozen: paired unit rows [n, d]. scale: 1 / temperature.
        weights: [n, n], as `similarity_weights` gives them.
        positives: bool [n, n], the right answers of the plain term (None: the diagonal).
        anchor: whose rows carry the weights, 'trained' (the paper) or 'frozen'.
    Raises:
        ValueError: shapes do not fit, or anchor is neither.
    """
    if anchor not in ("trained", "frozen"):
        raise ValueError(f"anchor must be 'trained' or 'frozen', got {anchor!r}")
    n = len(trained)
    if trained.shape != frozen.shape or weights.shape != (n, n):
        raise ValueError(f"trained and frozen must be paired rows and weights {(n, n)}, "
                         f"got {tuple(trained.shape)}, {tuple(frozen.shape)} and "
                         f"{tuple(weights.shape)}")
    logits = logits_of(trained, frozen, scale)
    if positives is None:
        positives = torch.eye(n, dtype=torch.bool, device=logits.device)
    first, second = (logits, logits.T) if anchor == "trained" else (logits.T, logits)
    return weighted_loss(first, weights.detach()), weighted_loss(second, positives)


class Cwcl(Method):
    """A head that learns to meet frozen features, weighted by their similarities."""

    settings: CwclSettings

    def build(self, settings: CwclSettings, pairs: Pairs) -> None:
        """Raises ValueError if `frozen` is no tower, or towers are not two."""
        towers = settings.towers
        if settings.frozen not in towers or len(towers) != 2:
            raise ValueError(f"frozen must be one of two towers, got {settings.frozen!r} "
                             f"and towers {list(towers)}")
        (self.learns,) = (name for name in towers if name != settings.frozen)
        given, wanted = (pairs[towers[name]].shape[-1]
                         for name in (self.learns, settings.frozen))
        self.heads = nn.ModuleDict({self.learns: projector(given, wanted, settings.head)})
        self.temperature = Temperature(settings.temperature, settings.learn_temperature)

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """Unit rows; the frozen features only get unit length."""
        return {name: unit(self.heads[name](batch[column]) if name == self.learns
                           else batch[column])
                for name, column in self.settings.towers.items() if column in batch}

    def weights(self, frozen: Tensor, positives: Tensor) -> Tensor:
        """What the anchors' rows are weighted with [n, n]."""
        return similarity_weights(frozen, self.settings.centred)

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        trained, frozen = outputs[self.learns], outputs[self.settings.frozen]
        positives = positives_of(batch["item"])
        weighted, plain = cwcl_losses(trained, frozen, self.temperature(),
                                      self.weights(frozen, positives), positives,
                                      self.settings.anchor)
        return {"weighted_loss": weighted, "plain_loss": plain}


class Lit(Cwcl):
    """The baseline: one right item an anchor (Zhai et al. 2022, LiT). w = identity."""

    def weights(self, frozen: Tensor, positives: Tensor) -> Tensor:
        """The right answers alone."""
        return positives.to(frozen)
