"""STRUCTURE: keep each encoder's neighbourhoods while two of them are aligned.

Paper: With Limited Data for Multimodal Alignment, Let the STRUCTURE Guide You. Groeger,
Wen, Le, Brbic, NeurIPS 2025, arXiv 2506.16895.

Claim: with few pairs, small contrastive heads on frozen encoders overfit and destroy the
geometry that the encoders had. A regulariser that keeps the neighbourhoods, and aligning
the pair of layers that agree most instead of the last ones, make retrieval better; most
where pairs are fewest.

Use it when: both encoders are good and frozen, and there are only some hundred pairs: it
costs one line in the loss and keeps the encoders' neighbourhoods. With a thousand pairs
and more expect little of it, and keep the last layers unless a validation set says
otherwise.

Equations, for one modality, x [n, d_in] the frozen features and z [n, d] the head's
outputs of a batch:
    x̂ = x/‖x‖ − mean(x/‖x‖), the same for z          (centred after normalising)
    p = softmax_rows(x̂ x̂ᵀ / tau),  q = softmax_rows(ẑ ẑᵀ / tau)   (diagonal included)
    m = (pˡ + qˡ) / 2,  D_l = ½ [KL(m ‖ qˡ) + KL(m ‖ pˡ)]   (sum over columns, mean of rows)
    R = 1/L · Σ_l w_l D_l,  w_l = 1/l
    loss = InfoNCE + λ(t) · (R_image + R_text) / 2,  λ rising linearly to `strength`
Layer choice: the pair of layers with the highest mutual k-nearest-neighbour overlap on
the training pairs, k = ⌈2 n^⅓⌉.

Frozen: both encoders; p has no gradient, all of it flows through z.
Exact property: R = 0 if z = c · x · O with c > 0 and O orthogonal, for every L.
Deviations: linear heads only (the authors' low-rank residual head starts with a gate of
exactly zero and no gradient, which leaves a linear map); the ramp is a part of the run
(`ramp`), not 1,000 steps; no closed-form CSA variant; no unpaired extra rows. Officially
1e-12 is added to p, q and m; here smaller entries are raised to it, in the logarithms
alone, and get no gradient. With few dimensions many rows are that far apart: the gradients
differ by a hundredth for 64 drawn rows of width 4, by a thousandth for width 128.
Reconstructed: nothing of the loss; it was read in the authors' code. The 1/l weights are
the authors' choice for large L; with L = 1 they are 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from alignkit.data import Pairs
from alignkit.evaluation import mutual_knn_grid, rice_k
from alignkit.parts import Method, Settings, unit

EPSILON = 1e-12


@dataclass(frozen=True)
class StructureSettings(Settings):
    """Settings of a dual encoder, and: strength (λ), tau, levels (L), ramp (the part of
    the run in which λ rises)."""

    strength: float = 10.0
    tau: float = 0.05
    levels: int = 1
    ramp: float = 1 / 3


def neighbourhoods(x: Tensor, tau: float) -> Tensor:
    """Who is near whom: softmax rows [n, n] of the centred cosines of x [n, d] / tau."""
    rows = unit(x)
    rows = rows - rows.mean(0)
    return torch.softmax(rows @ rows.T / tau, dim=1)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """D of two row-stochastic matrices [n, n]: ½ [KL(m ‖ q) + KL(m ‖ p)], m their mean.

    The mixture stands first, unlike in the Jensen–Shannon divergence.
    """
    m = (p + q) / 2
    log_m, log_p, log_q = (a.clamp(min=EPSILON).log() for a in (m, p, q))
    return (m * (2 * log_m - log_p - log_q)).sum(1).mean() / 2


def structure_loss(x: Tensor, z: Tensor, tau: float = 0.05, levels: int = 1) -> Tensor:
    """R of frozen features x [n, d_in] and outputs z [n, d]: a scalar ≥ 0.

    Raises ValueError if the rows differ, tau is not positive or levels is below 1.
    """
    if len(x) != len(z) or len(x) < 2:
        raise ValueError(f"x and z need the same rows, two at least: got {len(x)} and "
                         f"{len(z)}")
    if tau <= 0 or levels < 1:
        raise ValueError(f"tau must be positive and levels at least 1, got {tau}, {levels}")
    with torch.autocast(z.device.type, enabled=False):
        p, q = neighbourhoods(x.detach(), tau), neighbourhoods(z, tau)
        p_l, q_l, total = p, q, divergence(p, q)
        for level in range(2, levels + 1):
            p_l, q_l = p_l @ p, q_l @ q
            total = total + divergence(p_l, q_l) / level
        return total / levels


class Structure(Method):
    """A dual encoder whose heads keep the neighbourhoods of the frozen features."""

    settings: StructureSettings

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        s = self.settings
        if s.strength == 0:  # a plain dual encoder, at a plain dual encoder's price
            return super().losses(outputs, batch, progress)
        strength = s.strength * (min(1.0, progress / s.ramp) if s.ramp else 1.0)
        kept = [structure_loss(batch[column], outputs[name], s.tau, s.levels)
                for name, column in s.towers.items()]
        return {**super().losses(outputs, batch, progress),
                "structure_loss": strength * sum(kept) / len(kept)}


class LayerChoice(NamedTuple):
    """The best pair of layers and the overlap [n_image, n_text] of every pair."""

    image: str
    text: str
    overlap: Tensor


def choose_layers(pairs: Pairs, image: Sequence[str], text: Sequence[str],
                  most: int = 5000) -> LayerChoice:
    """The pair of feature columns whose neighbourhoods agree most (mutual k-NN).

    Call it with the training pairs alone. k follows Rice's rule for the rows used, the
    first `most`, so overlaps compare only at one n.
    """
    rows = pairs.select(torch.arange(min(most, len(pairs))))
    k = min(rice_k(len(rows)), len(rows) - 1)
    overlap = mutual_knn_grid([rows[a] for a in image], [rows[b] for b in text], k)
    a, b = divmod(int(overlap.argmax()), len(text))
    return LayerChoice(image[a], text[b], overlap)
