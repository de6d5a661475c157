"""Geodesic Multi-Modal Mixup: negatives on the arc between a picture and its caption.

Paper: Geodesic Multi-Modal Mixup for Robust Fine-Tuning. Oh, So, Byun, Lim, Shin, Jeon,
Song, NeurIPS 2023, arXiv 2203.03897.

Claim: CLIP keeps pictures and texts in two cones, also after fine-tuning, and leaves
the rest of the sphere empty. Points on the arc between a picture and its own caption
lie between the cones, where no data is; as negatives they are harder than real ones,
and spread the rows: better uniformity and alignment, and with them better retrieval and
calibration.

Use it when: both modalities lie in one space with a gap between them, as CLIP's do, you
go on training, and the gap shall close. For uniformity alone a second InfoNCE at the
higher temperature did more on our pairs; where probabilities matter, fit the
temperature afterwards.

Equations, a_i and b_i the unit rows of a pair, s a share drawn once a batch:
    arc(a, b, s) = [sin(s θ) a + sin((1 − s) θ) b] / sin θ,  θ = arccos(a · b)
    m_j = arc(a_j, b_j, s),  s ~ Beta(beta, beta)
    m2 = CE of rows(a_i · b_i against a_i · m_j, j ≠ i; / mix_temperature)
       + CE of rows(b_i · a_i against b_i · m_j, j ≠ i; / mix_temperature)
    loss = InfoNCE(a, b; temperature) + mix · m2 / (e + 1),  e = 0, 1, … the epoch
m3-Mix adds three terms in which positives are mixed with the batch in reversed order
(~), each with a share of its own, at `temperature`, soft CE in both directions, faded
by e as well:
    first_mix · CE(ã bᵀ; s at i, 1 − s at its mirror), second_mix · the same of a b̃ᵀ,
    joint_mix · CE(ã b̃ᵀ; 1 at i and 1 at its mirror: the weights of a row sum to 2)

Frozen: both encoders (the paper trains all of CLIP); the heads learn, no temperature.
Exact property: arc has unit rows, arc(a, b, 1) = a, arc(a, b, 0) = b and arc(a, b, s) =
arc(b, a, 1 − s). With weights w_a, w_b of the arc, w_a ≥ s and w_b ≥ 1 − s, so
    a_i · m_j − a_i · b_j = w_a (a_i · a_j − a_i · b_j) + (w_a + w_b − 1) a_i · b_j
is at least 0 wherever a_i · a_j ≥ a_i · b_j ≥ 0: there a mixed negative is never easier
than the real one. At s = 0 the first half of m2 is InfoNCE of a → b at mix_temperature.
Deviations: frozen encoders; rows of one item are no negatives of each other; the cosine
is clamped and nearly equal rows are mixed on the straight line, for arccos has no slope
at 1 and sin 0 divides (the authors' code has neither guard, and with an odd batch its
reversed order mixes the middle row with itself: NaN). In several processes each mixes
its own rows.
Reconstructed: no epoch is handed to a loss here: e = ⌊progress · epochs⌋, so `epochs`
must say how many the run has. Read in the official code: the arc, all four terms, both
temperatures, the fading. Its scripts draw all three shares of m3-Mix's positives from
Beta(0.5, 0.5) (`m3mix.sh`), as here; that of the mixed negatives from Beta(0.5, 0.5) in
m2-Mix and from Beta(0.2, 0.2) within m3-Mix, where `beta` must be set.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Beta
from torch.nn import functional as F

from alignkit.data import Pairs
from alignkit.parts import (
    DualEncoder, Settings, logits_of, positives_of, shares, two_way_cross_entropy,
)  # fmt: skip

NEAR = 1e-6  # of a cosine to ±1: nearer than that, arccos and its slope are rounding


@dataclass(frozen=True)
class GeodesicMixupSettings(Settings):
    """Settings of a dual encoder (temperature, fixed, is the base loss's), and: mix,
    mix_temperature and beta of m2-Mix; the weights of m3-Mix's three terms and their
    positive_beta; epochs that the run has, for the fading (1: none)."""

    temperature: float = 0.01
    mix: float = 0.05
    mix_temperature: float = 0.07
    beta: float = 0.5
    first_mix: float = 0.0
    second_mix: float = 0.0
    joint_mix: float = 0.0
    positive_beta: float = 0.5
    epochs: float = 9

    def __post_init__(self):
        weights = self.mix, self.first_mix, self.second_mix, self.joint_mix
        if min(weights) < 0 or min(self.mix_temperature, self.beta, self.positive_beta,
                                   self.epochs) <= 0:
            raise ValueError("mix and the other weights must be 0 or more; "
                             "mix_temperature, the betas and epochs above 0: got "
                             f"{self}")


def arc(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Points of the great circles from b (share 0) to a (share 1), unit rows [n, d].

    Nearly equal rows are mixed on the straight line. Opposite rows have no shortest
    arc: theirs is finite, and no more can be said of it.
    """
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    a, b = a.to(wide), b.to(wide)
    cosine = (a * b).sum(-1, keepdim=True)
    angle = cosine.clamp(-1 + NEAR, 1 - NEAR).arccos()
    curved = ((share * angle).sin() * a + ((1 - share) * angle).sin() * b) / angle.sin()
    return torch.where(cosine > 1 - NEAR, share * a + (1 - share) * b, curved)


def mixed_negatives_loss(first: Tensor, second: Tensor, share: float, scale: float,
                         positives: Tensor) -> Tensor:
    """m2 of the card: every row against its partner and everybody else's mixture.

    first, second: unit rows [n, d]. scale: 1 / mix_temperature. positives: bool [n, n];
    mixtures of a row's right answers are no negatives. The halves are summed.
    """
    mixed = arc(first, second, share)
    true = torch.eye(len(first), dtype=torch.bool, device=first.device)
    partner = logits_of(first, second, scale).diagonal()[:, None]
    loss = 0
    for anchor in (first, second):
        logits = torch.where(true, partner, logits_of(anchor, mixed, scale))
        logits = logits.masked_fill(positives & ~true, -torch.inf)
        loss = loss + F.cross_entropy(logits, true.int().argmax(1))
    return loss


def mixed_positives_losses(first: Tensor, second: Tensor, kept: tuple, scale: Tensor,
                           positives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three further terms of m3-Mix; kept: shares of the first, the second, of both."""
    own = shares(positives, first.dtype)
    mirrored = own.flip(0)
    on_first, on_second, joint = kept

    def mix(rows, share):
        return arc(rows, rows.flip(0), share)

    def soft(a, b, target):
        return two_way_cross_entropy(logits_of(a, b, scale), target)

    return (
        soft(mix(first, on_first), second, on_first * own + (1 - on_first) * mirrored),
        soft(first, mix(second, on_second),
             on_second * own + (1 - on_second) * mirrored.T),
        soft(mix(first, joint), mix(second, joint), own + mirrored))


def drawn(beta: float) -> float:
    """A share from Beta(beta, beta), by torch's own generator, which `fit` seeds."""
    return Beta(beta, beta).sample().item()


class GeodesicMixup(DualEncoder):
    """InfoNCE, mixed negatives (m2-Mix) and mixed positives (m3-Mix) on two heads."""

    settings: GeodesicMixupSettings

    def build(self, settings: GeodesicMixupSettings, pairs: Pairs) -> None:
        super().build(settings, pairs)
        if settings.first_mix or settings.second_mix or settings.joint_mix:
            self.traits = frozenset({"ordered"})  # a row's mirror is its place

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        s, losses = self.settings, super().losses(outputs, batch, progress)
        first, second = (outputs[name] for name in s.towers)
        positives = positives_of(batch["item"])
        epoch = int(s.epochs * progress + 1e-6)  # progress is a rounded fraction
        if s.mix:
            losses["mixed_negatives_loss"] = s.mix / (epoch + 1) * mixed_negatives_loss(
                first, second, drawn(s.beta), 1 / s.mix_temperature, positives)
        weights = s.first_mix, s.second_mix, s.joint_mix
        if any(weights):
            terms = mixed_positives_losses(
                first, second, tuple(drawn(s.positive_beta) for _ in weights),
                self.temperature(), positives)
            losses["mixed_positives_loss"] = sum(
                w / (epoch + 1) * term for w, term in zip(weights, terms) if w)
        return losses
