"""TCL: besides image against text, each modality against itself and its own parts.

Paper: Vision-Language Pre-Training with Triple Contrastive Learning. Yang, Duan, Tran,
Xu, Chanda, Chen, Zeng, Chilimbi, Huang, CVPR 2022, arXiv 2202.10401.

Claim: a cross-modal loss says nothing about two views of one picture, and where
captions are wrong it spoils the neighbourhoods within a modality. A second loss that
draws two views of a picture (of a text) together keeps them, and a third, of the whole
against its own parts, keeps what is local; retrieval gains as well.

Use it when: many captions are wrong or say little, and you need neighbours within one
modality as well as across; batches are small, because the queue brings negatives. For
retrieval alone leave the parts out: on our pairs they cost some. Mark near-duplicates
if you can, for they are negatives here.

Equations, v the global row of a picture's first view, v' and z' the momentum network's
global and local rows of its second view; K the momentum rows of batch and queue,
S(q, K) = q · K / temperature, y = 1 / |P| at the |P| keys of the row's item, else 0;
CE(S, y) = −Σ_k y_k log softmax(S)_k, mean over rows; t, t', K_t of texts likewise:
    cma_loss = CE(S(v, K_t), y_vt) + CE(S(t, K_v), y_tv)
        y_vt = soft · softmax(S(v', K_t)) + (1 − soft) · y, y_tv likewise
    imc_loss = CE(S(v, K_v), y) + CE(S(t, K_t), y)
    lmi_loss = l(v, z'_v) + l(t, z'_t),
        l = mean over i, then over i's real k, of
            −log [e^{v_i·z_ik/τ} / (e^{v_i·z_ik/τ} + Σ_{j≠i} Σ_k' e^{v_i·z_jk'/τ})]
    loss = the sum, divided by the number of terms in use (six in the paper)
    slow ← momentum · slow + (1 − momentum) · weights
soft grows from 0 to `soft` over the first `ramp` of the run. Locals are unit tokens,
those of pictures averaged on a grid of 4 × 4 afterwards and not made unit again.

Frozen: both encoders; one linear head a modality, for global and local rows, learns.
Exact property: with cma_loss alone, no queue, momentum 0, soft 0 and views without chance
the loss has CLIP's value, and its gradient the half that comes through the rows that ask.
No gradient reaches the momentum network or a local row; what stands at padding changes
nothing; a sample's other locals are not in its denominator.
Deviations: no fusion encoder, so that matching (ITM) and masked words (MLM), two of
the paper's three losses, are dropped, and with them the re-ranking. Frozen tokens and
heads, whose global row is the mean of the tokens; views are dropped tokens and noise
instead of crops and colours, and dropped words instead of dropout. Rows of one item are
right answers (as in the authors' fine-tuning) and no negatives of LMI; masks are
booleans, not ±10000. The temperature is learned as its logarithm, officially itself, and
kept above 0.01, not 0.001, with no upper bound (0.5 there). The average is taken after a
step and not at the start of the next: the same weights, since it starts as a copy; soft
targets use the temperature without its gradient, as there. In several processes the softmax is over a process's own batch and
the queue, which all of them fill, as in the authors' code.
Reconstructed: nothing of the contrastive part; the size of drop and noise is ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignkit.data import Pairs, Tokens
from alignkit.parts import (
    FeatureQueue,
    Method,
    Momentum,
    Settings,
    Temperature,
    logits_of,
    mean_pool,
    positives_of,
    projector,
    shares,
    unit,
)


@dataclass(frozen=True)
class TclSettings(Settings):
    """Settings of a dual encoder on columns of `Tokens`, and: terms in use; momentum;
    queue, its length; soft and ramp, of CMA's targets; drop, the share of tokens that a
    view lacks; noise of a modality's views, in root mean squares of each token; grid,
    the side to which the locals of a modality are averaged."""

    temperature: float = 0.07
    learn_temperature: bool = True
    terms: tuple[str, ...] = ("cma", "imc", "lmi")
    momentum: float = 0.995
    queue: int = 0
    soft: float = 0.4
    ramp: float = 1 / 30
    drop: float = 0.3
    noise: Mapping[str, float] = field(default_factory=lambda: {"image": 0.5})
    grid: Mapping[str, int] = field(default_factory=lambda: {"image": 4})

    def __post_init__(self):
        if not self.terms or set(self.terms) - {"cma", "imc", "lmi"}:
            raise ValueError("terms must be some of cma, imc and lmi, got "
                             f"{self.terms}")
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop must be at least 0 and below 1, got {self.drop}")


def view_of(tokens: Tokens, drop: float, noise: float,
            generator: torch.Generator) -> Tokens:
    """Another look at the same rows: each real token [n, t, d] is dropped with
    probability `drop` (a row that would lose all keeps all), the others get noise."""
    values, mask = tokens
    kept = mask & (torch.rand(mask.shape, generator=generator) >= drop)
    kept = torch.where(kept.any(1, keepdim=True), kept, mask)
    if noise:
        size = noise * values.square().mean(2, keepdim=True).sqrt()
        values = values + size * torch.randn(values.shape, generator=generator)
    return Tokens(values.masked_fill(~kept[..., None], 0), kept)


def on_grid(tokens: Tokens, side: int) -> Tokens:
    """Places [n, t, d] of a square picture averaged to side × side, real ones alone;
    tokens that form no square, or a smaller one, stay as they are."""
    values, mask = tokens
    n, t = mask.shape
    width = round(t**0.5)
    if width**2 != t or width <= side:
        return tokens
    real = mask[:, None].to(values)
    kept = values.transpose(1, 2) * real  # [n, d, t]
    total, share = (
        F.adaptive_avg_pool2d(x.reshape(n, -1, width, width), side).flatten(2)
        for x in (kept, real))
    return Tokens((total / share.clamp_min(1e-6)).transpose(1, 2), share[:, 0] > 0)


def soft_loss(rows: Tensor, keys: Tensor, scale: Tensor, target: Tensor) -> Tensor:
    """CE(S(rows, keys), target): rows [b, d], keys [m, d], target [b, m]."""
    logits = logits_of(rows, keys, scale)
    return F.cross_entropy(logits, target.to(logits.dtype))


def local_loss(rows: Tensor, parts: Tokens, scale: Tensor, positives: Tensor) -> Tensor:
    """l of the card: rows [b, d] against their own parts [b, k, d]; negatives are the
    real parts of rows that are not `positives` [b, b]."""
    b, k = parts.mask.shape
    logits = logits_of(rows, parts.values.flatten(0, 1), scale).view(b, b, k)
    own = logits.diagonal().T  # [b, k]
    allowed = ~positives[:, :, None] & parts.mask
    least = torch.finfo(logits.dtype).min / 2
    others = logits.masked_fill(~allowed, least).flatten(1).logsumexp(1, keepdim=True)
    each = F.softplus(others - own) * parts.mask
    return (each.sum(1) / parts.mask.sum(1).clamp_min(1)).mean()


class Tcl(Method):
    """Linear heads on tokens, their momentum copies and a queue a modality."""

    settings: TclSettings

    def build(self, settings: TclSettings, pairs: Pairs) -> None:
        self.heads = nn.ModuleDict({
            name: projector(pairs[column].values.shape[-1], settings.width,
                            settings.head)
            for name, column in settings.towers.items()})
        self.temperature = Temperature(settings.temperature, settings.learn_temperature)
        self.slow = nn.ModuleDict({name: Momentum(head, settings.momentum)
                                   for name, head in self.heads.items()})
        self.still = Momentum(self.temperature, 0.0)  # the same, without gradient
        self.queues = nn.ModuleDict({name: FeatureQueue(settings.queue, settings.width)
                                     for name in settings.towers})

    def collate(self, rows: Pairs, generator: torch.Generator) -> dict:
        """The rows, and of each column of tokens two views, `…_view1` and `…_view2`."""
        s, batch = self.settings, rows.batch()
        for name, column in s.towers.items():
            if column in batch:
                for k in (1, 2):
                    batch[f"{column}_view{k}"] = view_of(
                        batch[column], s.drop, s.noise.get(name, 0.0), generator)
        return batch

    def tokens(self, name: str, batch: dict, view: int) -> Tokens:
        """A modality's view; outside training the tokens as they are."""
        column = self.settings.towers[name]
        return batch[f"{column}_view{view}" if self.training else column]

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """Global rows [b, width] of the first view: means of projected tokens, unit."""
        found = {}
        for name, column in self.settings.towers.items():
            if column in batch:
                values, mask = self.tokens(name, batch, 1)
                found[name] = unit(mean_pool(Tokens(self.heads[name](values), mask)))
        return found

    @torch.no_grad()
    def targets(self, name: str, batch: dict) -> tuple[Tensor, Tokens]:
        """The momentum network's row [b, width] and locals of the second view."""
        values, mask = self.tokens(name, batch, 2)
        z = Tokens(self.slow[name](values), mask)
        locals_ = Tokens(unit(z.values), mask)
        return unit(mean_pool(z)), on_grid(locals_, self.settings.grid.get(name, 10**6))

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        s, scale, item = self.settings, self.temperature(), batch["item"]
        whole, parts, keys, right = {}, {}, {}, {}
        for name in s.towers:
            whole[name], parts[name] = self.targets(name, batch)
            keys[name], items = self.queues[name].keys(whole[name], item)
            right[name] = shares(item[:, None] == items, whole[name].dtype)
        if self.training:
            self.fresh = whole, item  # into the queues after the step
        terms = {}
        if "cma" in s.terms:
            terms["cma_loss"] = self._cross(outputs, whole, keys, right, progress)
        if "imc" in s.terms:
            terms["imc_loss"] = sum(soft_loss(outputs[n], keys[n], scale, right[n])
                                    for n in s.towers)
        if "lmi" in s.terms:
            terms["lmi_loss"] = sum(local_loss(outputs[n], parts[n], scale,
                                               positives_of(item)) for n in s.towers)
        return {name: term / (2 * len(terms)) for name, term in terms.items()}

    def _cross(self, outputs, whole, keys, right, progress) -> Tensor:
        """cma_loss: targets softened by what the momentum network sees."""
        scale, still = self.temperature(), self.still()
        first, second = self.settings.towers
        soft = self.settings.soft * min(1.0, progress / self.settings.ramp)
        loss = 0.0
        for one, other in ((first, second), (second, first)):
            seen = logits_of(whole[one], keys[other], still).softmax(1)
            target = soft * seen + (1 - soft) * right[other].to(seen)
            loss = loss + soft_loss(outputs[one], keys[other], scale, target)
        return loss

    @torch.no_grad()
    def after_step(self) -> None:
        """The step's keys into the queues, and the average one step on: what the paper
        does before the next step."""
        whole, item = self.fresh
        for name, queue in self.queues.items():
            queue.push(whole[name], item)
            self.slow[name].update(self.heads[name])
        self.still.update(self.temperature)
