"""FDT: a picture and its caption as two mixtures of the same learned codes.

Paper: Revisiting Multimodal Representation in Contrastive Learning: From Patch and
Token Embeddings to Finite Discrete Tokens. Chen, Yuan, Tian, Geng, Li, Zhou, Metaxas,
Yang, CVPR 2023, arXiv 2303.14865.

Claim: patches and words are of different grain, and a dual encoder compares means of
the one with means of the other. If both sides choose a few codes of one learned
codebook and are the weighted sums of what they chose, they meet at one grain and
retrieve better; and the codes can be read: a picture and its caption choose the same.

Use it when: pairs and training steps are many (the paper has millions), captions name
several things, and one vector a side is wanted that can be read as a bag of codes.
Choose T on validation rows, from large values down: with a tenth of the codes a row at
the start the codebook did not train here; softmax wants a far smaller T than sparsemax
(2 and 300 here), then finds about as many pairs, and more if each row keeps ten codes
only. On a thousand pairs with frozen towers expect no gain: FDT found about as many as
the same heads on pooled features (no gain resolved), and fewer than linear heads.

Equations, x_a the tokens of one row, z_c the C codes, T the attention temperature
(`spread`), a head for each modality:
    q_a = head(x_a),  head = LayerNorm, Linear, GELU, LayerNorm, Linear
    r_c = max over real tokens a of q_a · z_c / (√d T);  for texts r_c = max(r_c, 0)
    w = sparsemax(r),  h = unit(Σ_c w_c z_c)
    loss = InfoNCE(h_image, h_text), its temperature learned
Codes are not normalised and learn by gradient alone, through h and through r.

Frozen: both encoders (the paper trains them from scratch). Heads, codes and the loss's
temperature learn.
Exact property: h before `unit` lies in the convex hull of the codes. The order of the
codes changes nothing, nor does the order of tokens, a token given twice, or padding.
As T → ∞ all rows get one h and the loss is ln of the batch; as T → 0 each row is one
code. The floor at 0 changes nothing as long as Σ_c max(r_c, 0) ≥ 1: sparsemax then
gives no weight to a code below 0, with the floor or without.
Deviations: frozen encoders; T stays fixed, as in the released settings; the loss's
temperature has no upper bound of e⁻³, but starts there. The floor comes from the authors'
padding rule (`clip_fdt.py:91`: the scores of padded places are 0, not −∞): officially it
acts on captions with padding alone, here on every caption, also the longest; `floored=()`
is the clean rule. In mean pooling padding is left out, officially it counts as places of 0.
Reconstructed: nothing of the path used here was missing in the official code.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alignkit.data import Pairs, Tokens
from alignkit.parts import (
    Method,
    Settings,
    Temperature,
    mean_pool,
    sparsemax,
    unit,
)

POOLS = "max", "mean"
WEIGHTS = "sparsemax", "softmax"


@dataclass(frozen=True)
class FdtSettings(Settings):
    """Settings of a dual encoder on columns of `Tokens` (its `head` is not used), and:
    hidden, the width inside a query head; codes, how many; spread, the attention
    temperature T (the larger, the more codes a row keeps); pool over tokens, 'max' or
    'mean'; weigh, 'sparsemax' or 'softmax'; floored, the modalities whose maxima
    are not let below 0."""

    width: int = 64
    temperature: float = 0.05
    learn_temperature: bool = True
    hidden: int = 64
    codes: int = 256
    spread: float = 300.0
    pool: str = "max"
    weigh: str = "sparsemax"
    floored: tuple[str, ...] = ("text",)

    def __post_init__(self):
        if self.pool not in POOLS or self.weigh not in WEIGHTS:
            raise ValueError(f"pool must be one of {POOLS} and weigh of {WEIGHTS}, got "
                             f"{self.pool!r} and {self.weigh!r}")
        if self.codes < 2 or not self.spread > 0:
            raise ValueError("codes must be 2 or more and spread above 0, got "
                             f"{self.codes} and {self.spread}")


def query_head(d_in: int, hidden: int, width: int) -> nn.Sequential:
    """The paper's head, applied to each token: [..., d_in] -> [..., width]."""
    return nn.Sequential(nn.LayerNorm(d_in), nn.Linear(d_in, hidden), nn.GELU(),
                         nn.LayerNorm(hidden), nn.Linear(hidden, width))


def code_scores(queries: Tokens, codebook: Tensor, spread: float,
                pool: str = "max") -> Tensor:
    """r of the card, without the floor: how much of each code is in each row, [n, C].

    Args:
        queries: values [n, t, d] with mask [n, t]; a row needs a real token.
        codebook: [C, d].
        pool: over the real tokens, 'max' or 'mean'.
    """
    scale = 1 / (math.sqrt(codebook.shape[1]) * spread)
    if pool == "mean":  # products are linear: the mean token will do
        return scale * (mean_pool(queries) @ codebook.T)
    scores = (scale * queries.values) @ codebook.T  # [n, t, C]
    return scores.masked_fill(~queries.mask[:, :, None], -math.inf).max(1).values


class Fdt(Method):
    """Two query heads on frozen tokens, and one codebook that both sides mix."""

    settings: FdtSettings

    def build(self, settings: FdtSettings, pairs: Pairs) -> None:
        self.heads = nn.ModuleDict({
            name: query_head(pairs[column].values.shape[-1], settings.hidden,
                             settings.width)
            for name, column in settings.towers.items()})
        self.codebook = nn.Parameter(torch.randn(settings.codes, settings.width))
        self.temperature = Temperature(settings.temperature, settings.learn_temperature)

    def grounding(self, batch: dict) -> dict[str, Tensor]:
        """r by modality [b, C]."""
        s, found = self.settings, {}
        for name, column in s.towers.items():
            if column in batch:
                values, mask = batch[column]
                r = code_scores(Tokens(self.heads[name](values), mask), self.codebook,
                                s.spread, s.pool)
                floored = s.pool == "max" and name in s.floored
                found[name] = r.clamp(min=0) if floored else r
        return found

    def weights(self, batch: dict) -> dict[str, Tensor]:
        """w by modality [b, C]: 0 or more, every row sums to 1."""
        sparse = self.settings.weigh == "sparsemax"
        return {name: sparsemax(r) if sparse else r.softmax(-1)
                for name, r in self.grounding(batch).items()}

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """h by modality, unit rows [b, width]."""
        return {name: unit(w @ self.codebook.to(w.dtype))
                for name, w in self.weights(batch).items()}


class PooledHeads(Method):
    """The baseline: the same query heads on pooled features, no codes.

    Its heads are wider inside, so that they have the parameters of the codebook too.
    """

    settings: FdtSettings

    def build(self, settings: FdtSettings, pairs: Pairs) -> None:
        widths = {name: pairs[column].shape[-1]
                  for name, column in settings.towers.items()}
        # One more hidden unit costs d_in + width weights and three biases or gains.
        unit_cost = sum(d_in + settings.width + 3 for d_in in widths.values())
        extra = math.ceil(settings.codes * settings.width / unit_cost)
        hidden = settings.hidden + extra
        self.heads = nn.ModuleDict({name: query_head(d_in, hidden, settings.width)
                                    for name, d_in in widths.items()})
        self.temperature = Temperature(settings.temperature, settings.learn_temperature)
