"""Robust calibration: a small head behind a frozen encoder, trained on attacked inputs.

Paper: Adversarial Robustness for Unified Multi-Modal Encoders via Efficient Calibration.
Liao, Ren, Mei, Zheng, 2025, arXiv 2505.11895, version 1 (version 2, renamed CALMARS, is
another method and is not built here).

Claim: small changes of the input break encoders that put many modalities in one space.
With the encoder and the class centres frozen, a head a modality with under 1 % of the
parameters, trained on attacked inputs alone, gives back up to 47.3 points of accuracy under
attack, and clean zero-shot classification and retrieval stay as they are, or gain.

Use it when: an encoder is too large to be trained again, its space must stay as it is, and
those who attack it know the encoder and not the head. Not as a defence against somebody who
may send his gradient through the head, too: measure that first (`pgd_attack` on the whole).

Equations, f the frozen encoder, z = f(x) and z_a = f(x_a) unit rows, c_k frozen centres:
    g(z) = unit(z + W₂ GELU(W₁ LN(z))), hidden width d/2, W₂ = 0 at first, so g(z) = z
    x_a: from x + U(−ε, ε), steps x ← clip(x + ε/4 · sign ∇ m(x)) inside |x_a − x| ≤ ε,
    m = max_{k≠y} ⟨f(x), c_k⟩ − ⟨f(x), c_y⟩; of all points visited the one with the largest m
    L_CE  = −log softmax_y(s ⟨g(z_a), c_k⟩)                              `Calibration`
    L_2   = |g(z_a) − z|²                                                `Distance`
    L_NCE = −log softmax_i(⟨g(z_a)_i, z_j⟩ / τ) over the batch, τ = 0.07  `Contrast`
    loss  = one of the three + λ |g(z) − z|²,  mean over rows; z has no gradient
Answers: argmax_k ⟨g(f(x)), c_k⟩.

Frozen: encoder and centres. Trained: W₁, W₂, their biases and the layer norm.
Exact property: untrained, g is the identity, predictions are the encoder's and λ's term is
0; with ε = 0, L_2 is 0 and L_NCE that of clean rows with themselves. No attack leaves its
ball or the valid range. Turn all embeddings and centres by one orthogonal matrix: cosines,
and so untrained predictions, stay.
Deviations: pictures alone (the paper: image, video, audio, point cloud, thermal, event);
small shipped towers instead of ImageBind, LanguageBind and UniBind; attacked rows are made
once, against the encoder alone, before training; λ is chosen on validation rows, s is the
towers' own. m in place of a cross entropy: its gradient does not vanish where the model is
sure (a cross entropy at s = 100 fooled as many in a look at the untrained towers). L_2 and
L_NCE use no labels, but the attack that makes their rows does, and so does the accuracy on
validation rows by which the claims choose λ and the step that is kept.
Reconstructed: nearly all. No code was found and only the abstracts, the introduction and two
summaries were read: the frozen parts, a head a modality, the three names, L∞ attacks at 2/255
and 4/255 and training on attacked rows alone are the paper's; formulas, the head's form, the
kind of attack, λ's term (the paper: "modality-consistent alignment") and all sizes are ours.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignkit.data import Pairs
from alignkit.evaluation import pgd_attack
from alignkit.evaluation.robustness import Scores
from alignkit.parts import Method, unit


@dataclass(frozen=True)
class CalibrationSettings:
    """clean, attacked: columns of the encoder's rows of both. text: the embedding of each
    row's class; the different ones are the centres. scale (s), temperature (τ), keep (λ):
    of the losses."""

    clean: str = "image_features"
    attacked: str = "image_attacked"
    text: str = "text_features"
    scale: float = 20.0
    temperature: float = 0.07
    keep: float = 1.0


class _Head(nn.Module):
    """g, on unit rows [n, d]."""

    def __init__(self, width: int):
        super().__init__()
        last = nn.Linear(max(1, width // 2), width)
        nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
        self.bent = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, last.in_features),
                                  nn.GELU(), last)

    def forward(self, z: Tensor) -> Tensor:
        return unit(z + self.bent(z))


class Calibration(Method):
    """A head of one modality, trained with fixed centres: L_CE."""

    settings: CalibrationSettings

    def build(self, settings: CalibrationSettings, pairs: Pairs) -> None:
        self.head = _Head(pairs[settings.clean].shape[-1])
        centres = unit(pairs[settings.text]).unique(dim=0)
        self.register_buffer("centres", torch.zeros(centres.shape))  # on the meta device, too
        self.centres.copy_(centres)

    def calibrate(self, z: Tensor) -> Tensor:
        """The encoder's rows [n, d] -> unit rows of the same space."""
        return self.head(unit(z))

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """`image` and `attacked`: calibrated rows; `text`: rows of the classes as they are."""
        s = self.settings
        outputs = {name: self.calibrate(batch[column]) for name, column in
                   (("image", s.clean), ("attacked", s.attacked)) if column in batch}
        return outputs | ({"text": unit(batch[s.text])} if s.text in batch else {})

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        clean = unit(batch[self.settings.clean])
        kept = (outputs["image"] - clean).square().sum(1).mean()
        return {"main_loss": self.main_loss(outputs, clean),
                "keep_loss": self.settings.keep * kept}

    def main_loss(self, outputs: dict, clean: Tensor) -> Tensor:
        """L_CE: to the centre that is the row's text."""
        cosines = outputs["attacked"] @ self.centres.T
        right = (outputs["text"] @ self.centres.T).argmax(1)
        return F.cross_entropy(self.settings.scale * cosines, right)


class Distance(Calibration):
    """L_2: to the clean row."""

    traits = frozenset({"no pairs"})  # of a row with its text

    def main_loss(self, outputs: dict, clean: Tensor) -> Tensor:
        return (outputs["attacked"] - clean).square().sum(1).mean()


class Contrast(Calibration):
    """L_NCE: to the own clean row, away from those of the batch."""

    traits = frozenset({"no pairs"})

    def main_loss(self, outputs: dict, clean: Tensor) -> Tensor:
        cosines = outputs["attacked"] @ clean.T
        rows = torch.arange(len(clean), device=clean.device)
        return F.cross_entropy(cosines / self.settings.temperature, rows)


class Uncalibrated(Calibration):
    """The frozen encoder alone: the head stays the identity."""

    traits = frozenset({"untrained"})

    def stages(self) -> list:
        return []


def scores_of(encode: Scores, centres: Tensor, method: Calibration | None = None) -> Scores:
    """What an attack asks: inputs -> cosines [b, n_classes] with the centres, through the
    head of `method` if there is one (an adaptive attack), else of the encoder alone."""
    def scores(x: Tensor) -> Tensor:
        z = encode(x)
        return (unit(z) if method is None else method.calibrate(z)) @ centres.T
    return scores


def attacked_rows(encode: Scores, x: Tensor, labels: Tensor, centres: Tensor, eps: float,
                  steps: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The data engine: the encoder's rows [n, d] of inputs x [n, …] from 0 to 1 as they are,
    and of the same inputs attacked by PGD against the encoder alone."""
    found = pgd_attack(scores_of(encode, centres), x, labels, eps, steps=steps, seed=seed)
    with torch.no_grad():
        return tuple(torch.cat([encode(part) for part in each.split(128)])
                     for each in (x, found))
