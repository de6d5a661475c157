"""Alt-MoE: one predictor of experts for every direction, trained one direction a step.

Paper: Alt-MoE: A Scalable Framework for Bidirectional Multimodal Alignment and Efficient
Knowledge Integration. Lei, Cheng, Wang and others, arXiv 2409.05929 (2024); the same
number became M3-JEPA, ICML 2025.

Claim: a connector that serves several directions (image to text, text to image, …) learns
more if each step trains one direction than if it trains the sum of all, because gradients
of different directions pull the shared weights apart.

Use it when: a pass through the predictor must earn as much as it can in a short training,
and a query more in a hundred counts. Else train all directions together: on our corpus,
whose directions do not conflict, turns found half as much in as many steps, and about as
much with as many passes. Memory is no reason, for the directions' gradients can be added up
one after the other before a step. For retrieval alone leave the prediction loss out; for
experts we saw no reason.

Equations, for direction a → b, x [n, t, d_a] the standardised features of a, token by token:
    u   = GELU(W_a (x + e_ab));   u_q = u + e_q  for both tasks q: predict, contrast
    y_q = Σ_{e in top K} g_e · expert_e(u_q),  g = softmax(W_g u_q + b_g), not renormalised
    o_q = GELU(LayerNorm_q(y_q)) + u_q;   p = P_ab mean_t o_predict;  c = C_ab mean_t o_contrast
    L_ab = α · smoothL1(p, x̄_b) + (1 − α) · InfoNCE(c, T_b x̄_b; 1 / temperature)
with x̄_b the mean over the tokens of b, which carries no gradient. A step takes one L_ab, in
turn (AltMoe), or the mean of all (Joint). Gate and experts are the same for both tasks and
all directions; e_q is what tells the gate which task it is. balance · CV² adds, if wanted,
the squared coefficient of variation of the experts' summed weights (Shazeer et al. 2017).

Frozen: all encoders.
Exact property: after a step of a → b every tensor of another direction has no gradient (None,
not zero), so AdamW moves neither it nor its moments; an expert that no row has chosen has none
either; gate and chosen experts learn from every direction. With K = all experts the mixture
is the dense softmax; with equal experts it is their output times the kept weight, below 1
for fewer. Where the joint loss is stationary the directions' gradients sum to zero, so their
mean dot product is −Σ|g|² / (k(k − 1)), and with equal lengths their mean cosine −1 / (k − 1);
with unequal lengths it may have any sign. There a conflict says nothing.
Deviations, beside the authors' code (HongyangLL/M3-JEPA at 36324dc): no LoRA on the encoders
(src/models/m3-jepa.py:186 and :217), so the target is fixed, where theirs is trained through
it (:297); our claims take one pooled vector a row, theirs the mean of the last two layers at
all positions (:270 and :273; the class takes tokens, too); features are standardised by a
mean and one scale a modality, or smooth L1 would weigh nothing beside InfoNCE; rows of one
item are all right answers, where theirs are the diagonal (src/loss_function.py:50); padding
is left out of means over tokens; experts that no row chose are not computed
(src/models/MMoE.py:145 computes all for all rows); weight decay is steady, where theirs rises
from 0.005 to 0.2 (configs/mlp_moe_k4.yaml:20 and :23); in several processes theirs reduces
the smooth L1 over all (loss_function.py:99, by a file that is not in the repository). The two
gates of the abstract are one gate with an embedding a task (MMoE.py:55 and :116). One rate
for all directions (their src/train.py:172 has one a direction, where directions are drawn).
Apart from these it is the same: MMoE.py and loss_function.py with our weights, on tokens
without padding in float64, give both directions' loss and gradients within 2e-15.
Reconstructed: more than two modalities (the code knows image and text; here each ordered
pair has its embedding and heads, each modality its W and T); the joint baseline, which the
code does not have (src/train.py:166: without alternation it trains the first direction
alone). Drawing directions by validation recall is left out: its file (train.py:20) is not
in the repository.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignkit.data import Pairs, Tokens
from alignkit.parts import (
    Experts, Method, Settings, Temperature, cosine, info_nce, mean_pool, positives_of, unit,
)  # fmt: skip

PREDICT, CONTRAST = "predict", "contrast"
Direction = tuple[str, str]


@dataclass(frozen=True)
class AltMoeSettings(Settings):
    """Settings of a dual encoder with two towers or more; width is that of the predictor.

    experts, top: how many there are and are used for a row. hidden: width inside an expert
    (None: width). alpha: the weight of prediction, the rest is contrast's. balance: weight
    of the loss that evens the experts' use (the paper has none). ranks_by: the task whose
    outputs `score` compares, "contrast" or "predict".
    """

    temperature: float = 0.03
    experts: int = 12
    top: int = 4
    hidden: int | None = None
    dropout: float = 0.1
    alpha: float = 0.5
    balance: float = 0.0
    ranks_by: str = CONTRAST

    def __post_init__(self):
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], got {self.alpha}")
        if self.ranks_by not in (PREDICT, CONTRAST):
            raise ValueError(f"ranks_by must be {PREDICT!r} or {CONTRAST!r}, got "
                             f"{self.ranks_by!r}")
        if len(self.towers) < 2:
            raise ValueError(f"towers must name two modalities or more, got {self.towers}")


def expert(width: int, hidden: int, dropout: float) -> nn.Sequential:
    """Two linear layers with GELU between them, dropout after each."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout),
                         nn.Linear(hidden, width), nn.Dropout(dropout))


def uneven(weights: Tensor) -> Tensor:
    """Weights of experts [n, e] -> CV² of their sums: 0 where all are used alike."""
    use = weights.sum(0)
    return use.var(correction=0) / use.mean().square()


class AltMoe(Method):
    """One direction a step, in turn; in eval mode the losses are the mean of all."""

    settings: AltMoeSettings

    def build(self, settings: AltMoeSettings, pairs: Pairs) -> None:
        s, width = settings, settings.width
        columns = {m: _tokens(pairs[column]) for m, column in s.towers.items()}
        wide = {m: x.values.shape[-1] for m, x in columns.items()}
        self.directions: list[Direction] = list(permutations(s.towers, 2))
        each = {f"{a}->{b}": (a, b) for a, b in self.directions}
        self.start = nn.ParameterDict({d: _row(wide[a]) for d, (a, _) in each.items()})
        self.lift = nn.ModuleDict({m: nn.Linear(wide[m], width) for m in wide})
        self.task = nn.ParameterDict({q: _row(width) for q in (PREDICT, CONTRAST)})
        self.experts = Experts(width, [expert(width, s.hidden or width, s.dropout)
                                       for _ in range(s.experts)], s.top,
                               renormalise=False, bias=True)
        self.norm = nn.ModuleDict({q: nn.LayerNorm(width) for q in self.task})
        self.predict = nn.ModuleDict({d: nn.Linear(width, wide[b])
                                      for d, (_, b) in each.items()})
        self.contrast = nn.ModuleDict({d: nn.Linear(width, width) for d in each})
        self.target = nn.ModuleDict({m: nn.Linear(wide[m], width) for m in wide})
        self.temperature = Temperature(s.temperature)
        self.register_buffer("turn", torch.zeros((), dtype=torch.long))
        for m, x in columns.items():
            self.register_buffer(f"mean_{m}", torch.zeros(wide[m]))
            self.register_buffer(f"scale_{m}", torch.ones(()))
            real = x.values[x.mask]
            self.get_buffer(f"mean_{m}").copy_(real.mean(0))  # on the meta device, too
            self.get_buffer(f"scale_{m}").copy_((real - real.mean(0)).square().mean().sqrt())
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def shared(self) -> list[nn.Parameter]:
        """The weights that every direction uses."""
        return [p for part in (self.task, self.experts, self.norm) for p in part.parameters()]

    def now(self) -> list[Direction]:
        """The directions of this step; all of them in eval mode."""
        if not self.training:
            return self.directions
        return [self.directions[int(self.turn) % len(self.directions)]]

    def after_step(self) -> None:
        self.turn += 1

    def encode(self, batch: dict) -> dict[str, dict[tuple[str, str, str], Tensor]]:
        """Outputs by modality a: keys (task, a, a) are its own targets, (task, a, b) what
        it says of b, ("gate", a, b) the experts' weights [n, 2, e], predict's first."""
        x = {m: self._standard(m, batch[column])
             for m, column in self.settings.towers.items() if column in batch}
        outputs = {m: {(PREDICT, m, m): (own := mean_pool(x[m])),
                       (CONTRAST, m, m): self.target[m](own)} for m in x}
        now = [d for d in self.now() if d[0] in x]
        lifted = [self._lifted(d, x[d[0]].values) for d in now]
        sizes = [u[..., 0].numel() for u in lifted]
        # All directions in one pass: rows do not see each other in the experts.
        mixed, gates = self.experts(torch.cat([u.flatten(0, 2) for u in lifted]))
        for (a, b), u, y, g in zip(now, lifted, mixed.split(sizes), gates.split(sizes)):
            mask, y, g = x[a].mask, y.view_as(u), g.view(*u.shape[:3], -1)
            for k, (task, heads) in enumerate(((PREDICT, self.predict),
                                               (CONTRAST, self.contrast))):
                out = F.gelu(self.norm[task](y[k])) + u[k]
                outputs[a][task, a, b] = heads[f"{a}->{b}"](mean_pool(Tokens(out, mask)))
            outputs[a]["gate", a, b] = torch.stack(
                [mean_pool(Tokens(one, mask)) for one in g], 1)
        return outputs

    def by_direction(self, outputs: dict, batch: dict) -> dict[Direction, dict[str, Tensor]]:
        """The losses of each direction of this step, by name.

        Raises ValueError if a row lacks a modality: its zeros would be a target.
        """
        s, positives, found = self.settings, positives_of(batch["item"]), {}
        for m, column in s.towers.items():
            if not batch["present"][column].all():
                raise ValueError(f"some rows have no {m}: keep whole rows alone with pairs."
                                 f"select(pairs.present[{column!r}]), or leave the tower "
                                 f"{m!r} out of the settings")
        for a, b in self.now():
            said, true = outputs[a], outputs[b]
            terms = {"prediction_loss": s.alpha and s.alpha * F.smooth_l1_loss(
                         said[PREDICT, a, b], true[PREDICT, b, b].detach()),
                     "contrastive_loss": s.alpha < 1 and (1 - s.alpha) * info_nce(
                         unit(said[CONTRAST, a, b]), unit(true[CONTRAST, b, b]),
                         self.temperature(), positives),
                     "balance_loss": s.balance and s.balance * uneven(
                         said["gate", a, b].flatten(0, 1))}
            # A term of weight 0 is left out: its heads get no gradient, not one of zeros.
            found[a, b] = {name: term for name, term in terms.items()
                           if isinstance(term, Tensor)}
        return found

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        """The mean over this step's directions."""
        each = list(self.by_direction(outputs, batch).values())
        return {name: sum(terms[name] for terms in each) / len(each) for name in each[0]}

    def score(self, query: Mapping, gallery: Mapping) -> Tensor:
        """Cosine of what the queries say of the gallery's modality with its targets."""
        task = self.settings.ranks_by
        a, b = _modality(query), _modality(gallery)
        return cosine(query[task, a, b], gallery[task, b, b])

    def _standard(self, modality: str, column: Tensor | Tokens) -> Tokens:
        values, mask = _tokens(column)
        mean, scale = (self.get_buffer(f"{n}_{modality}") for n in ("mean", "scale"))
        return Tokens((values - mean) / scale, mask)

    def _lifted(self, direction: Direction, x: Tensor) -> Tensor:
        """[n, t, d_a] -> [2, n, t, width]: the two inputs of the experts."""
        a, b = direction
        u = F.gelu(self.lift[a](x + self.start[f"{a}->{b}"]))
        return torch.stack([u + self.task[PREDICT], u + self.task[CONTRAST]])


class Joint(AltMoe):
    """The baseline: the mean of all directions at each step."""

    def now(self) -> list[Direction]:
        return self.directions


def _tokens(column: Tensor | Tokens) -> Tokens:
    """Tokens as they are; a pooled row [n, d] is one token."""
    if not isinstance(column, Tensor):
        return column
    return Tokens(column[:, None], torch.ones(len(column), 1, dtype=torch.bool,
                                              device=column.device))


def _row(width: int) -> nn.Parameter:
    """An embedding [1, 1, width], as the authors begin it."""
    row = nn.Parameter(torch.empty(1, 1, width))
    nn.init.kaiming_uniform_(row, nonlinearity="relu")
    return row


def _modality(outputs: Mapping) -> str:
    """Whose outputs these are: the modality that has targets of its own among them."""
    return next(b for _, a, b in outputs if a == b)
