"""MGCA: align pictures and reports as wholes, word by patch, and by what they have in common.

Paper: Multi-Granularity Cross-modal Alignment for Generalized Medical Visual Representation
Learning. Wang, Zhou, Wang, Vardhanabhuti, Yu, NeurIPS 2022, arXiv 2210.06044.

Claim: contrast of pictures and reports takes every other patient for a negative, though many
have the same findings. A second contrast of words with the patches they attend to, and a
third level at which picture and report must fall to the same prototypes, give picture
features from which few labels teach more.

Use it when: many pairs share what they say, nobody has labelled it, and few labels are to be
had later. Not when every pair is unlike the others, or labels are plenty.

Equations, v_i, t_i unit picture and report, p_n, w_m unit patches and words of one pair:
    L_ITA = CE(rows of v tᵀ / τ₁) + CE(columns)
    a_m = unit(Σ_n softmax_n(w_m · p_n / τ₂) p_n),  Z_mm' = w_m · a_m' / τ₂
    L_word = ½ [CE(rows of Z) + CE(columns of Z)], its mean over words, then over pairs;
    L_patch the same with patches and words exchanged;  L_CTA = L_word + L_patch
    q = sinkhorn(C v / ε),  p = softmax(C v / τ₃), C unit prototypes (both also of t)
    L_CPA = −½ mean_i Σ_k (q_v log p_t + q_t log p_v)
    loss = L_ITA + L_CTA + L_CPA

Frozen: both encoders; an adapter behind the picture's (in the paper the encoder is trained,
and probed) and all heads learn.
Exact property: codes carry no gradient, so ∂L_CPA / ∂(C t) = (p_t − q_v) / (2 n τ₃); for
equal pictures and reports q_v = q_t; a report of one word has L_word = 0; padding changes
nothing.
Deviations: frozen encoders with an adapter; words and patches weigh alike (in the paper by
the attention of [CLS], as its ResNet's patches do); padding is masked on both axes, and the
patches' attended words have unit length, as the official code does for its ResNet only;
linear heads; dropout of frozen
features for augmented pictures.
Reconstructed: from notes on the official code (mgca_module.py, HKU-MedAI/MGCA), not run.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from alignkit.data import Pairs, Tokens
from alignkit.parts import Method, Settings, info_nce, projector, sinkhorn, unit

LEVELS = ("ita", "cta", "cpa")


@dataclass(frozen=True)
class MgcaSettings(Settings):
    """Settings of a dual encoder, and: tokens, modality -> its column of tokens; levels of
    `LEVELS`; adapter, the width that is probed; dropout, of the picture's frozen features in
    training, for want of augmented pictures; prototypes, at most as many as a batch has rows;
    held, the share of training in which they stay; τ₂, τ₃ and ε of the card."""

    temperature: float = 0.07
    tokens: dict = field(default_factory=lambda: {"image": "image_tokens",
                                                  "text": "text_tokens"})
    levels: tuple[str, ...] = LEVELS
    adapter: int = 256
    dropout: float = 0.7
    prototypes: int = 32
    held: float = 0.02
    token_temperature: float = 0.1
    prototype_temperature: float = 0.2
    epsilon: float = 0.05

    def __post_init__(self):
        if not {*self.levels} <= {*LEVELS} or "ita" not in self.levels:
            raise ValueError(f"levels must be of {LEVELS} and hold 'ita', got {self.levels}")


def attended(asking: Tokens, asked: Tokens, temperature: float) -> tuple[Tensor, Tensor]:
    """What each token of `asking` [n, t, d] takes of `asked` [n, u, d]: unit rows [n, t, d],
    and the weights [n, t, u]; padding of `asked` has weight 0."""
    scores = asking.values @ asked.values.mT / temperature
    weights = scores.masked_fill(~asked.mask[:, None], -torch.inf).softmax(2)
    return unit(weights @ asked.values), weights


def token_loss(asking: Tokens, asked: Tokens, temperature: float = 0.1) -> Tensor:
    """L_word of unit words `asking` and unit patches `asked`; L_patch with both exchanged."""
    own, _ = attended(asking, asked, temperature)
    logits = asking.values @ own.mT / temperature
    here = asking.mask
    logits = logits.masked_fill(~(here[:, :, None] & here[:, None]), -1e9)
    both = (logits.log_softmax(2) + logits.log_softmax(1)).diagonal(dim1=1, dim2=2)
    return -(both.masked_fill(~here, 0).sum(1) / here.sum(1)).mean() / 2


def prototype_loss(image: Tensor, text: Tensor, temperature: float = 0.2,
                   epsilon: float = 0.05) -> Tensor:
    """L_CPA of scores [n, k] of paired rows with the prototypes."""
    codes = [sinkhorn(scores.detach(), epsilon) for scores in (image, text)]
    logs = [(scores / temperature).log_softmax(1) for scores in (image, text)]
    return -(codes[0] * logs[1] + codes[1] * logs[0]).sum(1).mean() / 2


class Mgca(Method):
    """An adapter on pictures, heads for wholes and tokens, and prototypes."""

    settings: MgcaSettings
    traits = frozenset({"stopped"})  # the codes

    def build(self, settings: MgcaSettings, pairs: Pairs) -> None:
        width = {name: pairs[column].shape[-1] for name, column in settings.towers.items()}
        self.adapter = nn.Sequential(nn.Dropout(settings.dropout),
                                     nn.Linear(width["image"], settings.adapter), nn.GELU())
        width["image"] = settings.adapter
        self.heads, self.token_heads = (nn.ModuleDict({
            name: projector(d, settings.width, settings.head) for name, d in width.items()})
            for _ in range(2))
        self.prototypes = nn.Parameter(unit(torch.randn(settings.prototypes, settings.width)))

    def adapted(self, image: Tensor) -> Tensor:
        """Features of pictures [..., d] -> what is probed [..., adapter]."""
        return self.adapter(image)

    def encode(self, batch: dict) -> dict[str, Tensor | Tokens]:
        """Unit rows by modality, and of the tokens, where the batch has them, unit
        `<modality>_tokens`."""
        found = {}
        for name, column in self.settings.towers.items():
            before = self.adapted if name == "image" else nn.Identity()
            if column in batch:
                found[name] = unit(self.heads[name](before(batch[column])))
            column = self.settings.tokens[name]
            if "cta" in self.settings.levels and column in batch:
                values, mask = batch[column]
                found[f"{name}_tokens"] = Tokens(
                    unit(self.token_heads[name](before(values))), mask)
        return found

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        s, (image, text) = self.settings, (outputs["image"], outputs["text"])
        found = {"ita_loss": 2 * info_nce(image, text, 1 / s.temperature)}
        if "cta" in s.levels:
            words, patches = outputs["text_tokens"], outputs["image_tokens"]
            found["cta_loss"] = (token_loss(words, patches, s.token_temperature)
                                 + token_loss(patches, words, s.token_temperature))
        if "cpa" in s.levels:
            centres = self.prototypes.detach() if progress < s.held else self.prototypes
            found["cpa_loss"] = prototype_loss(image @ centres.T, text @ centres.T,
                                               s.prototype_temperature, s.epsilon)
        return found

    def after_step(self) -> None:
        """Prototypes get unit length again."""
        with torch.no_grad():
            self.prototypes.copy_(unit(self.prototypes))
