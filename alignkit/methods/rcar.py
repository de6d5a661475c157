"""RCAR: what words and regions have found in each other decides where they look next, and
which of them count.

Paper: Plug-and-Play Regulators for Image-Text Matching. Diao, Zhang, Liu, Ruan, Lu, IEEE TIP
2023, arXiv 2303.13371.

Claim: matching by cross-attention lets each word look at the regions of a picture once, with
one temperature for all words, and averages what they found. Two small regulators that go on
any such attention do better: one corrects channels and temperature of each word's next look
by how its last one agreed, the other weighs the words by how they go with what all found.

Use it when: words and regions are compared in every pair anyway, and there are many pairs and
steps to train on. Not on some hundred pairs: plugged there into a trained SCAN, it found no more
than SCAN trained on as long (hit@1 −0.036 [−0.077, +0.005]; a second reader's eight seeds, 5000
to 5007: −0.037 [−0.063, −0.012]), in nearly twice the seconds, nor clearly more than its learned
head alone. No rate was tuned for either; tuned afterwards it was no better (claims file).

Equations, q_i the asking tokens (words, here), c_j those that are asked (regions), all unit:
    a_ij = LeakyReLU(c_j · (m_i ∘ q_i)),  â_ij = a_ij / |a_·j|   (length over the asking i)
    w_i = softmax over j of λ_i â_ij,  v_i = unit(Σ_j w_ij c_j);  at first m_i = 1, λ_i = λ₀
    r_i = unit(W (q_i − v_i)² + b)
    RCR: m_i ← clamp(tanh(W₂ tanh(W₁ r_i)) + m_i, −1, 1),  λ_i ← ReLU(U₂ tanh(U₁ r_i) + λ_i)
    RAR: α = softmax over i of w · (tanh(K r_i) ∘ tanh(Q g)),  g ← unit(Σ_i α_i r_i)
    SCAN: s = mean over i of q_i · v_i.   RCAR: s = σ(u · g + u₀), with g₀ = mean r_i
    loss = mean over rows and over columns of the hinge [margin + s_wrong − s_right]₊, at first
    summed over all wrong answers, then of the hardest alone
The first correction can only lower channels (m is 1). RCAR in n steps: n looks, n RAR and
n − 1 RCR between them, each with weights of its own.

Frozen: the encoder that sees the regions. Word vectors, biGRU, the maps of the regions and all
above are trained.
Exact property: with W₂ = U₂ = 0 and their biases any number of corrections is SCAN's one look,
to the bit; with w = 0 any number of poolings is unit(mean r_i); the order of the tokens on
either side changes nothing, nor does padding; λ = 0 is an even look; a region c_j that is
longer gets the same attention (the length over i takes it out).
Deviations: files of the official code at commit 2361547. A length gets 1e-8 added there
(lib/encoders.py:27), here none: without it both agree to 1e-13 (below). The loss is their sum
over the batch and not a mean (lib/loss.py:49), and they change from the sum to the hardest by
epochs (train.py:92), here by a share of the steps. Captions of one picture that stand in one
batch are no wrong answers to each other here; there they are (lib/loss.py:41). Padded words and
regions take no part in BatchNorm, attention, lengths or means; there every picture has 36
regions and each caption is cut to its length (lib/encoders.py:179). Word pieces of the training
captions, whole words at the small scale, where they split by nltk; a random word is no special
one (lib/datasets/image_caption.py:90, any). The last rate is a cosine's, not a tenth from epoch
30 on. Captions are cut to `longest` pieces, there never. `fit` has a warm-up of the rate and
0.95 for AdamW's second average; there neither (train.py:62), and the checkpoint is the best of
the validation rows (train.py:153), here the last. In the claims words ask (`asks="image"` is
the other direction), all arms go on from a trained SCAN, and what is plugged in learns three
times as fast; there all begins together. Nor is there any dropout in them (0.4 there,
lib/encoders.py:91, 230, 233) or altered word (a fifth, lib/datasets/image_caption.py:83).
Reconstructed: nothing of the method; the paper's text was not found, the official code was
(Paranioar/RCAR). Run beside it on the same numbers with their 1e-8 set to 0, scores, both
losses and the gradient by the regions' features agree to 1e-13: SCAN, RCR, RAR and RCAR, of
two and three steps, both directions, with both encoders; a second reader's own comparison, with
gradients by weights of every part: to 3e-13.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from alignkit.data import Pairs, Tokens
from alignkit.parts import (
    Method, Settings, Stage, WordPieces, positives_of, triplet_loss, unit,
)  # fmt: skip
from alignkit.parts.text import alter_words
from alignkit.parts.tokens import clean

KINDS = ("rcr", "rar", "rcar")


@dataclass(frozen=True)
class RcarSettings(Settings):
    """towers: pictures as a column of `Tokens`, then texts. regulator: 'rcr' (where to look),
    'rar' (what counts) or 'rcar' (both), in so many steps; 'rcr' with 0 steps is SCAN with
    the mean, 'rar' with 0 the mean of the alignment vectors and a learned head. asks: the
    side whose tokens look at the other's. lam: λ₀; width d, alignment: width of r, words: of
    the word vectors. margin of the hinge; summed: the share of the steps in which it is
    summed over all wrong answers, before the hardest alone; dropout, altered: the share of
    words that are masked, replaced or left out in training; vocabulary and longest caption
    in pieces; rate: of what the regulators add (0: the budget's); chunk: asking rows whose
    scores are made at a time."""

    towers: Mapping[str, str] = field(
        default_factory=lambda: {"image": "image_regions", "text": "text"})
    regulator: str = "rcar"
    steps: int = 2
    asks: str = "text"
    lam: float = 10.0
    width: int = 64
    alignment: int = 32
    words: int = 64
    margin: float = 0.2
    summed: float = 0.3
    dropout: float = 0.4
    altered: float = 0.2
    vocabulary: int = 400
    longest: int = 24
    rate: float = 0.0
    chunk: int = 32

    def __post_init__(self):
        least = int(self.regulator == "rcar")
        if self.regulator not in KINDS or self.steps < least or self.asks not in self.towers:
            raise ValueError(
                f"regulator must be of {KINDS}, steps at least {least} and asks of "
                f"{[*self.towers]}, got {self.regulator!r}, {self.steps} and {self.asks!r}")


class Read(NamedTuple):
    """Of b rows that are asked and a that ask, of i tokens each: scores [b, a]; by look the
    attention [b, a, i, j], its λ and m (λ₀ and 1, then [b, a, i, 1] and [b, a, i, d]); by
    pooling the weights [b, a, i] of the asking tokens."""

    scores: Tensor
    attention: list[Tensor]
    lam: list[Tensor]
    m: list[Tensor]
    counted: list[Tensor]


def attention(query: Tokens, context: Tokens, m: Tensor, lam: Tensor) -> Tensor:
    """w [b, a, i, j] of the card: how much token i of asking row a looks at token j of row b;
    m [d] or [b, a, i, d], lam a number or [b, a, i, 1]."""
    (q, real), (c, seen) = query, context
    asked = (q * m).expand(len(c), *q.shape).flatten(1, 2)
    products = F.leaky_relu(torch.bmm(asked, c.mT), 0.1).unflatten(1, q.shape[:2])
    lengths = F.normalize(products.masked_fill(~real[:, :, None], 0), dim=2)
    return (lengths * lam).masked_fill(~seen[:, None, None], -torch.inf).softmax(3)


def gathered(weights: Tensor, context: Tokens) -> Tensor:
    """Unit rows [b, a, i, d]: the context tokens as each asking token attends to them."""
    found = torch.bmm(weights.flatten(1, 2), context.values.to(weights))
    return unit(found.unflatten(1, weights.shape[1:3]))


def mean_of(values: Tensor, real: Tensor) -> Tensor:
    """The mean over the real asking tokens: [b, a, i, …] with real [a, i] -> [b, a, …]."""
    share = real.to(values)[:, :, None]
    return (values * share).sum(2) / share.sum(1)


class _Alignment(nn.Module):
    """r = unit(W (q − c)² + b)."""

    def __init__(self, d: int, s: int):
        super().__init__()
        self.map = nn.Linear(d, s)

    def forward(self, q: Tensor, c: Tensor) -> Tensor:
        return unit(self.map((q - c).square()))


class _Correspondence(nn.Module):
    """RCR: the next m and λ of each asking token from its alignment vector."""

    def __init__(self, d: int, s: int):
        super().__init__()
        self.m = nn.Sequential(nn.Linear(s, 2 * s), nn.Tanh(), nn.Linear(2 * s, d))
        self.lam = nn.Sequential(nn.Linear(s, s // 2), nn.Tanh(), nn.Linear(s // 2, 1))

    def forward(self, r: Tensor, m: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
        return (self.m(r).tanh() + m).clamp(-1, 1), (self.lam(r) + lam).relu()


class _Aggregation(nn.Module):
    """RAR: the alignment vectors weighed by how they go with their own pool g."""

    def __init__(self, s: int, dropout: float):
        super().__init__()
        self.k, self.q = (nn.Sequential(nn.Linear(s, s), nn.Tanh(), nn.Dropout(dropout))
                          for _ in range(2))
        self.weigh = nn.Linear(s, 1)

    def forward(self, r: Tensor, g: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """(the next g [b, a, s], weights [b, a, i])."""
        logits = self.weigh(self.k(r) * self.q(g)[:, :, None])[..., 0]
        weights = logits.masked_fill(~real, -torch.inf).softmax(2)
        return unit((weights[..., None] * r).sum(2)), weights


class Rcar(Method):
    """Columns: tokens of pictures (`image_regions`) and `text`."""

    settings: RcarSettings

    def build(self, settings: RcarSettings, pairs: Pairs) -> None:
        s, d = settings, settings.width
        self.image, self.text = s.towers
        self.pieces = WordPieces.train(pairs[s.towers[self.text]], s.vocabulary)
        self.embedding = nn.Embedding(len(self.pieces), s.words)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.dropout = nn.Dropout(s.dropout)
        self.rnn = nn.GRU(s.words, d, batch_first=True, bidirectional=True)
        seen = pairs[s.towers[self.image]].values.shape[2]
        self.regions = nn.Linear(seen, d)
        self.beside = nn.Sequential(nn.Linear(seen, d // 2), nn.BatchNorm1d(d // 2),
                                    nn.ReLU(), nn.Linear(d // 2, d))
        aligned = 1 if s.regulator == "rar" else s.steps
        looks = {"rar": 0, "rcr": s.steps, "rcar": s.steps - 1}[s.regulator]
        pools = 0 if s.regulator == "rcr" else s.steps
        self.similarity = nn.ModuleDict({
            "alignments": nn.ModuleList(_Alignment(d, s.alignment) for _ in range(aligned)),
            "looks": nn.ModuleList(_Correspondence(d, s.alignment) for _ in range(looks)),
            "pools": nn.ModuleList(_Aggregation(s.alignment, s.dropout)
                                   for _ in range(pools))})
        if s.regulator != "rcr":
            self.similarity["judge"] = nn.Linear(s.alignment, 1)
        for layer in (self.regions, *self.similarity.modules()):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def stages(self) -> list[Stage]:
        """All at the budget's rate, or `rate` for what is plugged in."""
        plugged = [*self.similarity.parameters()]
        if not (self.settings.rate and plugged):
            return [Stage()]
        rest = {id(p) for p in plugged}
        return [Stage(parameters=[
            {"params": [p for p in self.parameters() if id(p) not in rest]},
            {"params": plugged, "lr": self.settings.rate}])]

    def collate(self, rows: Pairs, generator: torch.Generator) -> dict:
        """Regions, and the ids of the words, in training some of them altered."""
        s = self.settings
        ids = self.pieces(rows[s.towers[self.text]], s.longest)
        if self.training:
            ids = alter_words(ids, len(self.pieces), generator, s.altered)
        return {"image": rows[s.towers[self.image]], "text_ids": ids, "item": rows.item}

    def encode(self, batch: dict) -> dict[str, dict[str, Tensor]]:
        """Unit tokens by modality, `regions` or `words` [n, t, width], then `mask`."""
        found = {}
        if "image" in batch:
            values, mask = batch["image"]
            rows = self.regions(values[mask])
            rows = rows + self.beside(values[mask])
            whole = rows.new_zeros(*mask.shape, rows.shape[1])
            whole[mask] = rows
            found[self.image] = {"regions": unit(whole), "mask": mask}
        if "text_ids" in batch:
            ids, mask = batch["text_ids"]
            words = pack_padded_sequence(self.dropout(self.embedding(ids)),
                                         mask.sum(1).cpu(), True, enforce_sorted=False)
            out = pad_packed_sequence(self.rnn(words)[0], True, total_length=mask.shape[1])[0]
            found[self.text] = {"words": unit(out.unflatten(2, (2, -1)).mean(2)),
                                "mask": mask}
        return found

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        s = self.settings
        scores = self.score(outputs[self.text], outputs[self.image])
        return {"hinge_loss": triplet_loss(scores, s.margin, positives_of(batch["item"]),
                                           hardest=progress >= s.summed)}

    def score(self, query: dict[str, Tensor], gallery: dict[str, Tensor]) -> Tensor:
        """Scores of every query with every row of the gallery; the side with words is known
        by its `words`. Cosines for 'rcr', else between 0 and 1."""
        if ("words" in query) != (self.settings.asks == self.text):
            return self.score(gallery, query).T
        asking, asked = Tokens(*query.values()), Tokens(*gallery.values())
        parts = zip(asking.values.split(self.settings.chunk),
                    asking.mask.split(self.settings.chunk))
        return torch.cat([self.read(Tokens(*part), asked).scores for part in parts], 1).T

    def read(self, query: Tokens, context: Tokens) -> Read:
        """Every asking row (unit tokens [a, i, d]) with every row that is asked [b, j, d]."""
        s, parts = self.settings, self.similarity
        query, context = clean(query, "query"), clean(context, "context")
        q, real = query
        m, lam = q.new_ones(q.shape[2]), q.new_tensor(s.lam)
        kept = Read(q, [], [], [], [])

        def look() -> Tensor:
            kept.attention.append(attention(query, context, m, lam))
            kept.lam.append(lam)
            kept.m.append(m)
            return gathered(kept.attention[-1], context)

        for t, align in enumerate(parts["alignments"]):
            r = align(q, look())
            g = mean_of(r, real) if t == 0 else g
            if t < len(parts["looks"]):
                m, lam = parts["looks"][t](r, m, lam)
            for pool in parts["pools"] if s.regulator == "rar" else parts["pools"][t:t + 1]:
                g, weights = pool(r, g, real)
                kept.counted.append(weights)
        if s.regulator == "rcr":
            cosines = (unit(q) * look()).sum(3, keepdim=True)
            return kept._replace(scores=mean_of(cosines, real)[..., 0])
        return kept._replace(scores=parts["judge"](g).sigmoid()[..., 0])
