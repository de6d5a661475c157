"""UAR: pictures and reports as tokens, one shared block for both, and a learned mask.

Paper: Unify, Align and Refine: Multi-Level Semantic Alignment for Radiology Report Generation.
Li, Yang, Cheng, Zhu, Li, Zou, ICCV 2023, arXiv 2303.15932.

Claim: a decoder that writes reports loses rare findings because pictures are continuous and
texts discrete, and nothing says outright which picture belongs to which report. Codes in
place of features (LSU), one block of a shared basis for both (CRA) with a triplet loss, and
a learned mask on the decoder's attention (TIR), in two stages, give better reports.

Use it when: you write texts from pictures with a decoder of your own, pairs are few and you
also want picture and text to find each other. Not when a tokenizer for your pictures is
missing: codes lose what it does not keep. Look first whether the shared block does anything:
with γ = 1 at the start every token may take the same from the basis.

Equations, E tokens of a picture or a report, B a fixed orthonormal basis, d the width:
    E^I = W_I[argmax of the tokenizer],  E^R = W_R[words]
    B̂ = γ ⊙ B + β,  F~ = softmax((E W_Q)(B̂ W_K)ᵀ / √d) (B̂ W_V)
    G(X, Y) = σ(X W₁ + Y W₂),  F = G_I(E, F~) ⊙ tanh(E + F~) + G_F(E, F~) ⊙ E + F~
    L_Global = [α − ⟨F^I, F^R⟩ + ⟨F^I, F^R_−⟩]₊ + [α − ⟨F^I, F^R⟩ + ⟨F^I_−, F^R⟩]₊, ⟨,⟩ the
    cosine of mean tokens
    decoder, words to cells: A = ((Q W_Q)(K W_K)ᵀ + k σ(M)) / √d,  L_Mask = Σ (1 − σ(M))
    loss = L_CE + L_Global, then (second stage) L_CE + L_Global + L_Mask

Frozen: the picture's encoder, its codebook and the basis B; all else learns.
Exact property: a mask of one value changes no score of the softmax, so in the first stage,
where M rests, it does nothing at all; the block acts on each token alone, whichever modality
it is of: tokens in another order come out in that order; BᵀB = I.
Deviations: the tokenizer is k-means on parts of a frozen encoder's cells (several numbers a
cell, their rows summed and divided by the root of their number) for want of a discrete
autoencoder. Where rows of B are more than d, its columns are orthonormal (at the small scale
rows are as many as d, and both are). L_CE is a mean over the words of a batch, not a sum. The
attention has heads, √d is the root of a head's width, and W_O follows. Softmax does not see a
row's constant, so k σ(M)'s largest value is taken off. L_Mask is a mean: a sum over places and
cells would drown the words. Equal reports are no negatives of each other. Also open to a user:
all negatives instead of the hardest, the loss's weight, and where γ begins; the small scale
needs all three, for without them all pairs fall together and the basis gives every token the
same.
Reconstructed: from the equations as the paper's text gives them; no official code was found,
and the appendix was not. Not stated there, so ours: the pooling to one vector (mean of real
tokens, [CLS] and [SEP] left out), α, M as one parameter for all layers that begins at 0, where
γ and β begin, places added after the block, a decoder with the norm first and GELU, lengths of
the stages, greedy writing. Checked by a reader who did not write it: loops of their own from
the equations agree in float64, for all three losses and the gradient of every parameter; the
headline with eight other seeds (5000 to 5007) is -0.157 [-0.202, -0.113], opposite as
published.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignkit.data import Pairs, Tokens
from alignkit.parts import Method, Stage, TransformerDecoder, WordPieces, triplet_loss, unit
from alignkit.parts.decoding import beam_search
from alignkit.parts.tokens import mean_pool
from alignkit.parts.unifier import BASES, Unifier


@dataclass(frozen=True)
class UarSettings:
    """codes: LSU; the column `image` names for each cell `parts` numbers below `codes` (see
    `codes_of`), whose looked-up rows are summed; 0: it holds features, as for the paper's
    baseline. unify: CRA's shared block; gamma: where γ begins; basis: of `BASES`, with
    `rows` rows. margin: α of L_Global (None: no such loss); hardest: the hardest wrong answer
    counts alone; weight: of this loss. strength: k of the mask, TIR (None: no mask); joint: it
    learns from the first step, not in the second stage alone. words: pieces of the vocabulary
    at most; longest: report in pieces, [CLS] and [SEP] included."""

    image: str = "image_codes"
    codes: int = 64
    parts: int = 8
    unify: bool = True
    margin: float | None = 0.2
    hardest: bool = True
    weight: float = 1.0
    gamma: float = 1.0
    strength: float | None = 1000.0
    joint: bool = False
    basis: str = "orthonormal"
    rows: int = 128
    width: int = 64
    heads: int = 4
    layers: int = 1
    dropout: float = 0.0
    words: int = 1000
    longest: int = 48

    def __post_init__(self):
        if self.basis not in BASES or self.rows < self.width:
            raise ValueError(f"basis is {self.basis!r} with {self.rows} rows; it must be one of "
                             f"{BASES}, with at least {self.width} rows, the width")


# Shared tokens (LSU) ------------------------------------------------------------------
def codebook(cells: Tokens, codes: int, parts: int, seed: int, drawn: int = 1500) -> Tensor:
    """Centres [parts, codes, d / parts] in place of a discrete autoencoder's codebook: each
    part of a cell's numbers (j, j + parts, …) has k-means of its own (scipy, k-means++), on
    `drawn` real cells. Fit it on training rows alone.

    Raises ValueError for fewer cells than codes, or a width that parts do not divide.
    """
    import numpy as np
    from scipy.cluster.vq import kmeans2

    real = cells.values[cells.mask]
    if len(real) < codes or real.shape[1] % parts:
        raise ValueError(f"codes is {codes} and parts {parts}; there are {len(real)} cells of "
                         f"width {real.shape[1]}: no fewer than codes, and parts must divide "
                         "the width")
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
    rows = real[order[:drawn]].double().cpu()
    draw = np.random.default_rng(seed)
    return torch.stack([torch.from_numpy(kmeans2(rows[:, j::parts].numpy(), codes, minit="++",
                                                 missing="warn", rng=draw)[0])
                        for j in range(parts)]).to(real)


@torch.no_grad()
def codes_of(cells: Tokens, centres: Tensor) -> Tokens:
    """The nearest centre of each part of each cell [n, l, parts], 0 at padding."""
    parts = len(centres)
    flat = cells.values.flatten(0, 1)
    nearest = torch.stack([torch.cdist(flat[:, j::parts], centres[j]).argmin(1)
                           for j in range(parts)], 1)
    nearest = nearest.view(*cells.mask.shape, parts)
    return Tokens(nearest.masked_fill(~cells.mask[..., None], 0), cells.mask)


# The method ---------------------------------------------------------------------------
class Uar(Method):
    """Columns: `text`, and `image` of the settings: Tokens of codes [n, l] or of features
    [n, l, d]. `generate` writes reports."""

    settings: UarSettings

    def build(self, settings: UarSettings, pairs: Pairs) -> None:
        s, cells = settings, pairs[settings.image]
        self.pieces = WordPieces.train(pairs["text"], s.words)
        n = len(self.pieces)
        self.words = nn.Embedding(n, s.width)
        if s.codes:
            self.cells = nn.Embedding(s.parts * s.codes, s.width)
        else:
            self.cells = nn.Linear(cells.values.shape[2], s.width)
            real = cells.values[cells.mask]
            self.register_buffer("mean", torch.zeros(real.shape[1]))
            self.register_buffer("scale", torch.ones(real.shape[1]))
            if not self.mean.is_meta:  # there, shapes are all that is asked for
                self.mean.copy_(real.mean(0))
                self.scale.copy_(real.std(0).clamp_min(1e-6))
        self.unifier = Unifier(s.width, s.rows, s.heads, s.basis, s.gamma) if s.unify \
            else nn.Identity()
        self.places = nn.Embedding(s.longest, s.width)
        self.cell_places = nn.Embedding(cells.mask.shape[1], s.width)
        self.decoder = TransformerDecoder(s.width, s.layers, s.heads, s.dropout)
        self.head = nn.Linear(s.width, n)
        if s.strength is not None:
            self.mask = nn.Parameter(torch.zeros(s.longest, cells.mask.shape[1]))

    def collate(self, rows: Pairs, generator: torch.Generator) -> dict:
        """The cells, and ids of the report's words."""
        return {self.settings.image: rows[self.settings.image], "item": rows.item,
                "text_ids": self.pieces(rows["text"], self.settings.longest)}

    def encode(self, batch: dict) -> dict[str, Tensor | Tokens]:
        """`image` and `text`, unit means of the real tokens of `memory` and `words`, which are
        the unified ones ([CLS] and [SEP] are no words of the mean)."""
        whole, tokens = {}, {}
        if self.settings.image in batch:
            tokens["memory"] = self.unifier(self.looked_up(batch[self.settings.image]))
            whole["image"] = unit(mean_pool(tokens["memory"]))
        if "text_ids" in batch:
            ids, real = batch["text_ids"]
            tokens["words"] = self.unifier(Tokens(self.words(ids), real))
            inner = real.clone()
            inner[:, 0] = False
            inner &= inner.roll(-1, 1)  # the last real one is [SEP]
            inner[:, 1] |= ~inner.any(1)
            whole["text"] = unit(mean_pool(Tokens(tokens["words"].values, inner)))
        return whole | tokens

    def looked_up(self, cells: Tokens) -> Tokens:
        """E of the picture [n, l, width]."""
        s = self.settings
        if s.codes:
            first = s.codes * torch.arange(s.parts, device=cells.values.device)
            values = self.cells(cells.values + first).sum(2) / s.parts**0.5
        else:
            values = self.cells(((cells.values - self.mean) / self.scale)
                                .to(self.cells.weight))
        return Tokens(values, cells.mask)

    def mask_bias(self, t: int) -> Tensor | None:
        """What TIR adds to the decoder's scores of t places with the cells [t, l]: softmax
        does not see a row's constant, so its largest value is taken off."""
        s = self.settings
        if s.strength is None:
            return None
        added = s.strength * torch.sigmoid(self.mask[:t]) / (s.width / s.heads) ** 0.5
        return added - added.amax(1, keepdim=True).detach()

    def next_words(self, words: Tokens, memory: Tokens) -> Tensor:
        """Logits [n, t, pieces] of the word after each of unified `words` [n, t, width]."""
        t, cells = words.mask.shape[1], memory.mask.shape[1]
        out = self.decoder(Tokens(words.values + self.places.weight[:t], words.mask),
                           Tokens(memory.values + self.cell_places.weight[:cells],
                                  memory.mask), self.mask_bias(t))
        return self.head(out.values)

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        s, (ids, real) = self.settings, batch["text_ids"]
        before = Tokens(outputs["words"].values[:, :-1], real[:, :-1])
        logits = self.next_words(before, outputs["memory"])[real[:, 1:]]
        found = {"words_loss": F.cross_entropy(logits, ids[:, 1:][real[:, 1:]])}
        if s.margin is not None:
            same = (ids[:, None] == ids[None]).all(2)  # equal reports are no negatives
            scores = outputs["image"] @ outputs["text"].T
            found["global_loss"] = s.weight * triplet_loss(scores, s.margin, same, s.hardest)
        if s.strength is not None:
            found["mask_loss"] = (1 - torch.sigmoid(self.mask)).mean()
        return found

    def stages(self) -> list[Stage]:
        """Two of the budget's steps each; in the first the mask rests, a constant that does
        nothing."""
        first = [p for name, p in self.named_parameters()
                 if name != "mask" or self.settings.joint]
        return [Stage("without the mask", parameters=[{"params": first}]), Stage("with it")]

    @torch.no_grad()
    def generate(self, batch: dict, beams: int = 1, **options) -> list[str]:
        """Reports of the pictures in `batch`."""
        memory = self.encode({self.settings.image: batch[self.settings.image]})["memory"]

        def next_word(ids: Tensor, rows: Tensor) -> Tensor:
            words = self.unifier(Tokens(self.words(ids), torch.ones_like(ids).bool()))
            return self.next_words(words, Tokens(*(x[rows] for x in memory)))[:, -1]

        return self.pieces.decode(beam_search(next_word, len(memory.mask),
                                              self.settings.longest, beams,
                                              memory.values.device).cpu())
