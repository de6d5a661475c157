"""MGCA: align pictures and reports as wholes, word by patch, and by what they have in common.

Paper: Multi-Granularity Cross-modal Alignment for Generalized Medical Visual Representation
Learning. Wang, Zhou, Wang, Vardhanabhuti, Yu, NeurIPS 2022, arXiv 2210.06044.

Claim: contrast of pictures and reports takes every other patient for a negative, though many
have the same findings. A second contrast of words with the patches they attend to, and a
third level at which picture and report must fall to the same prototypes, give picture
features from which few labels teach more.

Use it when: many pairs share what they say, nobody has labelled it, and few labels are to be
had later. Not when every pair is unlike the others, or labels are plenty. Try wholes alone
first, with dropout or augmented pictures: the other levels may add little to that, and words
that are compared within their own report need not point to the right place.

Equations, v_i, t_i unit picture and report, p_n, w_m unit patches and words of one pair:
    L_ITA = CE(rows of v tᵀ / τ₁) + CE(columns)
    a_m = unit(Σ_n softmax_n(w_m · p_n / τ₂) p_n),  Z_mm' = w_m · a_m' / τ₂
    L_word = ½ Σ_m ω_m [CE_m(rows of Z) + CE_m(columns of Z)], its mean over pairs, ω of sum 1;
    L_patch the same with patches and words exchanged;  L_CTA = L_word + L_patch
    q = sinkhorn(C v / ε),  p = softmax(C v / τ₃), C unit prototypes (both also of t)
    L_CPA = −½ mean_i Σ_k (q_v log p_t + q_t log p_v)
    loss = L_ITA + L_CTA + L_CPA

Frozen: both encoders; an adapter behind the picture's (in the paper the encoder is trained,
and probed) and all heads learn.
Exact property: codes carry no gradient, so ∂L_CPA / ∂(C t) = (p_t − q_v) / (2 n τ₃); for
equal pictures and reports q_v = q_t; a report of one word has L_word = 0; padding changes
nothing.
Deviations, from the official code (mgca/models/mgca/mgca_module.py unless said): frozen
encoders with an adapter; padded words are left out everywhere, also of the heads' batch
statistics (there patches do not attend to them, lines 178 to 179, but they stay among the
negatives of real words, lines 137 and 155 to 166, and in the batch statistics,
backbones/encoder.py line 55); the words that patches attend to are brought to unit length,
as the code does for its ResNet only (lines 185 to 186); dropout of the picture's frozen
features for want of augmented pictures; [CLS] and [SEP] are no words (there [SEP] is one,
backbones/encoder.py line 337). ω is the attention of [CLS] where a column has it, else the
same for all, as for the patches of its ResNet (line 188; its words always have it).
Prototypes start as normal directions (there uniform numbers, line 76). The three losses
weigh 1 each, as the command line's defaults have it (the class has 1, .7 and .5).
Reconstructed: from the official code (HKU-MedAI/MGCA at 680fe4a); its losses, Sinkhorn and
heads, and how it puts word pieces together, were run beside ours on the same tensors in
float64, by the author and again by a reader. Without padding all are equal to rounding
(value and gradient; with ω from attention to 2e-8, for our two quantiles are float32); with
padding L_word differs, and for its ViT L_patch, as said above.
The headline again, by another reader
on seeds 5000 to 5007: +.001 [-.002, +.005] at 97.5 %, no gain and equivalent, where the published
seeds have some gain, equivalent too. A registered follow-up without dropout, where false negatives
do more harm, has some gain, +.008 [+.003, +.012].
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignkit.data import Pairs, Tokens
from alignkit.parts import Method, logits_of, positives_of, sinkhorn, unit

LEVELS = ("ita", "cta", "cpa")


def _columns(end: str) -> field:
    return field(default_factory=lambda: {m: f"{m}_{end}" for m in ("image", "text")})


@dataclass(frozen=True)
class MgcaSettings:
    """towers, tokens, attention: modality -> its column of pooled features, of tokens, and
    of the attention [n, t] that each of these gets from the whole (may be missing: then all
    weigh alike). levels: of `LEVELS`. same: a label whose equal rows are no negatives of
    each other in L_ITA ('': every other row is one, as in the paper). width of the shared
    space, hidden of the heads, adapter: the width that is probed; dropout of the picture's
    features in training; prototypes: at most as many as a batch has rows; held: the share
    of training in which they stay; the temperatures τ₁, τ₂, τ₃ and ε of the card."""

    towers: Mapping[str, str] = _columns("features")
    tokens: Mapping[str, str] = _columns("tokens")
    attention: Mapping[str, str] = _columns("attention")
    levels: tuple[str, ...] = LEVELS
    same: str = ""
    width: int = 64
    hidden: int = 128
    adapter: int = 256
    dropout: float = 0.4
    prototypes: int = 32
    held: float = 0.02
    temperature: float = 0.07
    token_temperature: float = 0.1
    prototype_temperature: float = 0.2
    epsilon: float = 0.05

    def __post_init__(self):
        if not {*self.levels} <= {*LEVELS} or "ita" not in self.levels:
            raise ValueError(f"levels must be of {LEVELS} and hold 'ita', got {self.levels}")


# Whole pictures and reports -----------------------------------------------------------
def instance_loss(image: Tensor, text: Tensor, temperature: float = 0.07,
                  same: Tensor | None = None) -> Tensor:
    """L_ITA of unit rows [n, d]; other rows of equal `same` [n] are left out."""
    logits, rows = logits_of(image, text, 1 / temperature), torch.arange(len(image))
    rows = rows.to(logits.device)
    if same is not None:
        others = positives_of(same) & (rows[:, None] != rows)
        logits = logits.masked_fill(others, -torch.inf)
    return F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)


# Words and patches --------------------------------------------------------------------
def attended(asking: Tokens, asked: Tokens, temperature: float) -> tuple[Tensor, Tensor]:
    """What each token of `asking` [n, t, d] takes of `asked` [n, u, d]: unit rows [n, t, d],
    and the weights [n, t, u]; padding of `asked` has weight 0."""
    scores = asking.values @ asked.values.mT / temperature
    weights = scores.masked_fill(~asked.mask[:, None], -torch.inf).softmax(2)
    return unit(weights @ asked.values), weights


def weights_of(mask: Tensor, attention: Tensor | None = None,
               dtype: torch.dtype = torch.float32) -> Tensor:
    """ω [n, t]: of real tokens, sum 1 a row; equal, or by attention that is clipped to the
    row's quantiles .1 and .9. Float32 at least."""
    dtype = torch.promote_types(dtype, torch.float32)
    if attention is None:
        kept = mask.to(dtype)
    else:
        real = attention.detach().to(dtype).masked_fill(~mask, torch.nan)
        low, high = real.nanquantile(torch.tensor([0.1, 0.9]).to(real), 1, keepdim=True)
        kept = real.clamp(low, high).masked_fill(~mask, 0)
    return kept / kept.sum(1, keepdim=True)


def token_loss(asking: Tokens, asked: Tokens, temperature: float = 0.1,
               weights: Tensor | None = None) -> Tensor:
    """L_word of unit words `asking` and unit patches `asked`, or L_patch with both
    exchanged. weights: ω [n, t] (None: all alike)."""
    here = asking.mask
    weights = weights_of(here, None, asking.values.dtype) if weights is None else weights
    own, _ = attended(asking, asked, temperature)
    logits = asking.values @ own.mT / temperature
    logits = logits.masked_fill(~(here[:, :, None] & here[:, None]), -1e9)
    both = (logits.log_softmax(2) + logits.log_softmax(1)).diagonal(dim1=1, dim2=2)
    return -(both.masked_fill(~here, 0) * weights.to(both)).sum(1).mean() / 2


# Prototypes ---------------------------------------------------------------------------
def prototype_loss(image: Tensor, text: Tensor, temperature: float = 0.2,
                   epsilon: float = 0.05) -> Tensor:
    """L_CPA of scores [n, k] of paired rows with the prototypes."""
    codes = [sinkhorn(scores.detach(), epsilon) for scores in (image, text)]
    logs = [(scores / temperature).log_softmax(1) for scores in (image, text)]
    return -(codes[0] * logs[1] + codes[1] * logs[0]).sum(1).mean() / 2


# The method ---------------------------------------------------------------------------
class Mgca(Method):
    """An adapter on pictures, heads for wholes and tokens, and prototypes."""

    settings: MgcaSettings
    traits = frozenset({"stopped"})  # the codes

    def build(self, settings: MgcaSettings, pairs: Pairs) -> None:
        s = settings
        wide = {name: pairs[column].shape[-1] for name, column in s.towers.items()}
        self.adapter = nn.Sequential(nn.Dropout(s.dropout),
                                     nn.Linear(wide["image"], s.adapter), nn.GELU())
        wide["image"] = s.adapter
        self.heads = self._heads(wide)
        self.token_heads = self._heads(wide) if "cta" in s.levels else None
        if "cpa" in s.levels:
            self.prototypes = nn.Parameter(unit(torch.randn(s.prototypes, s.width)))
        else:
            self.traits = frozenset()  # without codes an ordinary loss

    def _heads(self, wide: Mapping[str, int]) -> nn.ModuleDict:
        s = self.settings
        return nn.ModuleDict({name: nn.Sequential(
            nn.Linear(d, s.hidden), nn.BatchNorm1d(s.hidden), nn.ReLU(),
            nn.Linear(s.hidden, s.width), nn.BatchNorm1d(s.width, affine=False))
            for name, d in wide.items()})

    def encode(self, batch: dict) -> dict[str, Tensor | Tokens]:
        """Unit rows by modality; `adapted` [n, adapter], which is probed; and with level
        'cta', of columns that the batch has, unit `image_tokens` and `text_tokens`."""
        s, found = self.settings, {}
        seen = {name: self._adapted(name, batch[column])
                for name, column in s.towers.items() if column in batch}
        found |= {name: unit(self.heads[name](x)) for name, x in seen.items()}
        found |= {f"{name}_tokens": self.tokens(name, batch[column])
                  for name, column in s.tokens.items()
                  if self.token_heads and column in batch}
        return found | ({"adapted": seen["image"]} if "image" in seen else {})

    def tokens(self, name: str, tokens: Tokens) -> Tokens:
        """Tokens of a modality in the shared space, unit, padding zero; without level 'cta'
        by the head of wholes."""
        head = (self.token_heads or self.heads)[name]
        real = unit(head(self._adapted(name, tokens.values[tokens.mask])))
        values = real.new_zeros(*tokens.mask.shape, real.shape[1])
        return Tokens(values.masked_scatter(tokens.mask[..., None], real), tokens.mask)

    def _adapted(self, name: str, x: Tensor) -> Tensor:
        return self.adapter(x) if name == "image" else x

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        s, (image, text) = self.settings, (outputs["image"], outputs["text"])
        same = batch["labels"][s.same] if s.same else None
        found = {"ita_loss": instance_loss(image, text, s.temperature, same)}
        if "cta" in s.levels:
            tokens = {name: outputs[f"{name}_tokens"] for name in s.tokens}
            found["cta_loss"] = sum(
                token_loss(tokens[a], tokens[b], s.token_temperature,
                           weights_of(tokens[a].mask, batch.get(s.attention[a]),
                                      tokens[a].values.dtype))
                for a, b in (("text", "image"), ("image", "text")))
        if "cpa" in s.levels:
            centres = self.prototypes.detach() if progress < s.held else self.prototypes
            found["cpa_loss"] = prototype_loss(image @ centres.T, text @ centres.T,
                                               s.prototype_temperature, s.epsilon)
        return found

    def after_step(self) -> None:
        """Prototypes get unit length again."""
        if "cpa" in self.settings.levels:
            with torch.no_grad():
                self.prototypes.copy_(unit(self.prototypes))
