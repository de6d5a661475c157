"""FILIP: compare every patch with every word, and change nothing else.

Paper: FILIP: Fine-grained Interactive Language-Image Pre-Training. Yao, Huang, Hou et al.,
ICLR 2022, arXiv 2111.07783.

Claim: CLIP compares one vector a side, so that no patch ever meets a word. Two towers as
before, but a similarity in which every patch takes its best word and every word its best
patch, retrieve better, most where a caption names several things; and the best patch of a
word shows where the thing is.

Use it when: captions name several things of a picture, or it must be shown where a word
points, and both encoders give tokens. Not when the gallery is large and memory is short
(every token is stored and compared), or when one vector a side already says all there is.

Equations, u_ia the unit tokens of picture i, w_jc those of text j:
    C[i, j, a, c] = u_ia · w_jc
    s_image[i, j] = mean over patches a of max over real words c of C[i, j, a, c]
    s_text[i, j] = mean over real words c of max over patches a of C[i, j, a, c]
    loss = ½ [CE(rows of g · s_image) + CE(columns of g · s_text)],  g = 1 / temperature
A picture ranks texts by s_image, a text ranks pictures by s_text; they differ. The
gradient of a maximum goes to the token that won it.

Frozen: both towers (in the paper they are trained from scratch); linear heads and g learn.
Exact property: with one token a side the loss is CLIP's; the scores do not change with the
order of tokens or with longer padding, and no score exceeds 1.
Deviations: frozen towers; the picture's tokens are the 7 × 7 places of a convolutional
network at the small scale; several captions of one picture all count as right.
Reconstructed: no official code exists. DeCLIP's re-implementation (`filip.py:71-106`) has
the same scores and loss once its choice of 16 tokens is left out and no text has padding,
which it does not mask. x-clip (`x_clip.py:797-842`) has the same scores, but divides its
image-to-text half, too, by the sum over pictures, not over texts: that is another loss.
`keep` (only the most informative tokens of the other side are compared)
follows the paper's description as remembered, not checked: the paper keeps 25 % to save
communication; here it is 1 unless set.
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
    info_nce,
    late_interaction,
    mean_pool,
    positives_of,
    projector,
    shares,
    two_way_cross_entropy,
    unit,
)


@dataclass(frozen=True)
class FilipSettings(Settings):
    """Settings of a dual encoder on columns of `Tokens`, and: keep, the share of its most
    informative tokens that each row shows to the other side in training."""

    temperature: float = 0.07
    learn_temperature: bool = True
    keep: float = 1.0

    def __post_init__(self):
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be above 0 and at most 1, got {self.keep}")


def inner_tokens(tokens: Tokens) -> Tokens:
    """Tokens without the first and the last real one of each row: [CLS] and [SEP] know
    the whole sentence and would win most of the maxima.

    Rows of one or two real tokens stay as they are.
    """
    values, mask = tokens
    place = mask.cumsum(1)
    last = place[:, -1:]
    inner = mask & (place > 1) & (place < last)
    return Tokens(values, torch.where(last > 2, inner, mask))


def informative(tokens: Tokens, others: Tokens, share: float) -> Tokens:
    """The ⌈share · t⌉ tokens of each row [n, t, d] that come nearest to any token of
    `others` [m, u, d]; the order of the kept ones is free, padding comes last."""
    products = torch.einsum("ntd,mud->ntmu", tokens.values, others.values).detach()
    products = products.masked_fill(~others.mask, -math.inf)
    best = products.amax((2, 3)).masked_fill(~tokens.mask, -math.inf)
    kept = best.topk(math.ceil(share * best.shape[1]), dim=1).indices
    width = tokens.values.shape[2]
    return Tokens(tokens.values.gather(1, kept[:, :, None].expand(-1, -1, width)),
                  tokens.mask.gather(1, kept))


def two_way_loss(image_to_text: Tensor, text_to_image: Tensor, scale: Tensor | float,
                 positives: Tensor) -> Tensor:
    """The card's loss of both scores [n, m]; several right answers of a row share its
    weight.

    Raises ValueError if the shapes differ or a row or column has no right answer.
    """
    dtype = image_to_text.dtype
    return two_way_cross_entropy(scale * image_to_text, shares(positives, dtype),
                                 scale * text_to_image, shares(positives.T, dtype))


class Filip(Method):
    """Two linear heads, applied to every token, compared token by token."""

    settings: FilipSettings

    def build(self, settings: FilipSettings, pairs: Pairs) -> None:
        self.heads = nn.ModuleDict({
            name: projector(pairs[column].values.shape[-1], settings.width, settings.head)
            for name, column in settings.towers.items()})
        self.temperature = Temperature(settings.temperature, settings.learn_temperature)

    def encode(self, batch: dict) -> dict[str, Tokens]:
        """Unit tokens by modality, values [b, t, width] with the mask of the input."""
        return {name: Tokens(unit(self.heads[name](batch[column].values)),
                             batch[column].mask)
                for name, column in self.settings.towers.items() if column in batch}

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        first, second = (outputs[name] for name in self.settings.towers)
        keep = self.settings.keep
        if keep == 1:
            forth, back = late_interaction(first, second)
        else:  # each side asks with all its tokens and is shown a few
            forth, _ = late_interaction(first, informative(second, first, keep))
            _, back = late_interaction(informative(first, second, keep), second)
        return {"contrastive_loss": two_way_loss(forth, back, self.temperature(),
                                                 positives_of(batch["item"]))}

    def score(self, query: Tokens, gallery: Tokens) -> Tensor:
        """Mean over the query's tokens of the best token of the gallery's row: s_image
        if pictures ask, s_text (turned) if texts do."""
        return late_interaction(query, gallery)[0]


class MeanInteraction(Filip):
    """The ablation: both maxima replaced by means.

    The mean of all products of two rows' unit tokens is the product of the two rows'
    means, so one vector a side is enough: late interaction without the choice.
    """

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """Means of the unit tokens [b, width], not unit themselves."""
        return {name: mean_pool(tokens) for name, tokens in super().encode(batch).items()}

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        first, second = (outputs[name] for name in self.settings.towers)
        return {"contrastive_loss": info_nce(first, second, self.temperature(),
                                             positives_of(batch["item"]))}

    def score(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Products of the means, the mean of all products of tokens."""
        return query @ gallery.T
