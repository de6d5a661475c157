"""IRRA: match similarities to identities, and let pictures fill in masked words.

Paper: Cross-Modal Implicit Relation Reasoning and Aligning for Text-to-Image Person
Retrieval. Jiang, Ye, CVPR 2023, arXiv 2303.12501.

Claim: where several pictures and captions show one identity, InfoNCE pushes apart what
belongs together. Matching the whole distribution of a row's similarities to that of its
identity (SDM) retrieves better; so does filling in masked words from the picture, by
layers that are thrown away after training.

Use it when: rows carry identities and every row of an identity is a right answer. The
gain over plain InfoNCE comes from knowing the identities: cross entropy with the same
targets is one line and must be tried first. Not when every row stands for itself.

Equations, f_i and t_j the features of picture i and caption j, y their identities:
    p_ij = softmax_j(scale · cos(f_i, t_j)),  scale = 1 / temperature, fixed
    q_ij = [y_i = y_j] / Σ_k [y_i = y_k]
    match = mean_i Σ_j p_ij (log p_ij − log(q_ij + eps)) + the same from captions
    identity = ½ [CE(W f_i, y_i) + CE(W t_i, y_i)],  f and t not scaled to length one
    masked = CE of the hidden words from head(layers(words look at patches))
    loss = match + identity + masked
It is KL(p ‖ q), the prediction first; cross entropy is KL(q ‖ p) but for a constant.
eps is a hyper-parameter: −log eps = 18.4 is what all mass on a wrong row costs.

Frozen: the picture tower; its tokens get a linear head. The text tower, a transformer
on word pieces, is trained from random weights.
Exact property: match is 0, up to eps, only where p = q. With all identities distinct a
row is (1 − p_ii) · (−log eps) − H(p_i), whose gradient fades as p_ii goes to 0, as it
does at 1. Other names for the identities change nothing, and what is retrieved does not
depend on the identity and word layers of a trained model.
Deviations: the paper trains all of CLIP, on pictures flipped, cropped and erased at
random, with Adam (eps 1e-3) and larger rates for the new layers; f is the mean of the
patches and t that of the words, where CLIP has a token for each, and whose text tower
looks back alone; the block that looks at patches has a residual and an MLP; GELU, not
QuickGELU; torch's initial weights in the word layers, not scaled by width and depth;
padding is masked there, officially it is seen. A caption of which chance masks no word
gets one at random, treated as the others; officially always its first, with [MASK].
One rate for all.
Reconstructed: nothing of the losses: they were read in the official code. There the
masking writes into the caption itself, so that match and identity see masked captions
too; the authors said so in their issues. `leak` does that, and is off unless set.
`instances` stands for their identity sampler, which their published runs do not use.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignkit.data import Pairs, Tokens
from alignkit.parts import (
    CrossAttention, Method, Temperature, TokenEmbedding, TransformerEncoder, WordPieces,
    info_nce, logits_of, mask_words, mean_pool, positives_of, unit,
)  # fmt: skip


@dataclass(frozen=True)
class IrraSettings:
    """match: 'sdm', 'itc' (InfoNCE with the row's partner as its one right answer) or
    'multi' (cross entropy with SDM's targets). identity, words: with these losses?
    leak: do match and identity see masked captions? instances: rows of an identity in a
    training batch (0: rows as they are drawn). width, heads, layers of the text tower
    and of the word layers, vocabulary and longest caption in pieces; share: of words
    that are masked."""

    match: str = "sdm"
    identity: bool = True
    words: bool = True
    leak: bool = False
    instances: int = 0
    width: int = 64
    heads: int = 4
    layers: int = 1
    word_layers: int = 1
    vocabulary: int = 400
    longest: int = 24
    temperature: float = 0.02
    share: float = 0.15

    def __post_init__(self):
        if self.match not in ("sdm", "itc", "multi") or self.instances < 0:
            raise ValueError("match must be 'sdm', 'itc' or 'multi' and instances 0 or "
                             f"more, got {self.match!r} and {self.instances}")


def identity_of(rows: Pairs) -> Tensor:
    """The label `identity` [n]; rows without that label are known by their item."""
    return rows.labels.get("identity", rows.item)


def sdm_loss(first: Tensor, second: Tensor, scale: Tensor | float, positives: Tensor,
             eps: float = 1e-8) -> Tensor:
    """Similarity distribution matching of unit rows [n, d]: KL(p ‖ q) of rows and of
    columns, summed. positives: bool [n, n], True at right answers.

    Raises ValueError if the shapes do not fit or a row has no right answer.
    """
    logits = logits_of(first, second, scale)
    shape = tuple(logits.shape)
    if positives.shape != shape or not (positives.any(0) & positives.any(1)).all():
        raise ValueError(f"positives must be {shape} with a right answer in every row "
                         f"and column, got {tuple(positives.shape)}")
    loss = 0
    for scores, right in ((logits, positives), (logits.T, positives.T)):
        log_p = scores.log_softmax(1)
        q = right.to(log_p.dtype) / right.sum(1, keepdim=True)
        loss = loss + (log_p.exp() * (log_p - (q + eps).log())).sum(1).mean()
    return loss


class Irra(Method):
    """A head on frozen patches, a text tower, and two branches for training alone."""

    settings: IrraSettings

    def build(self, settings: IrraSettings, pairs: Pairs) -> None:
        width, s = settings.width, settings
        self.pieces = WordPieces.train(pairs["text"], s.vocabulary)
        self.rows = pairs.only("image_tokens", "text").with_features(
            text_ids=self.pieces(pairs["text"], s.longest))
        self.temperature = Temperature(s.temperature)
        identity = identity_of(pairs)
        self.register_buffer("identities", identity.unique(), persistent=False)
        self.members = [(identity == y).nonzero()[:, 0] for y in identity.unique()]
        self.patches = nn.Linear(pairs["image_tokens"].values.shape[2], width)
        self.embedding = TokenEmbedding(len(self.pieces), width, s.longest)
        self.tower = TransformerEncoder(width, s.layers, s.heads)
        if s.identity:
            self.classifier = nn.Linear(width, len(self.identities))
            nn.init.normal_(self.classifier.weight, std=0.001)
            nn.init.zeros_(self.classifier.bias)
        if s.words:
            self.look = CrossAttention(width, s.heads)
            self.reason = TransformerEncoder(width, s.word_layers, s.heads)
            self.word_head = nn.Sequential(nn.Linear(width, width), nn.GELU(),
                                           nn.LayerNorm(width),
                                           nn.Linear(width, len(self.pieces)))

    def collate(self, rows: Pairs, generator: torch.Generator) -> dict:
        """Word pieces `text_ids`, the same with some hidden `text_masked`, and what was
        hidden `text_targets`; in training with `instances`, rows of few identities."""
        s = self.settings
        if self.training and s.instances:
            rows = self.rows.select(self.drawn(len(rows), generator))
            ids = rows["text_ids"]
        else:
            ids = self.pieces(rows["text"], s.longest)
        masked, targets = mask_words(ids, len(self.pieces), generator, s.share)
        return {"image_tokens": rows["image_tokens"], "item": identity_of(rows),
                "text_ids": masked if s.leak and self.training else ids,
                "text_masked": masked, "text_targets": targets}

    def drawn(self, n: int, generator: torch.Generator) -> Tensor:
        """n training rows, up to `instances` of each identity that is drawn."""
        found: list[int] = []
        for y in torch.randperm(len(self.members), generator=generator).tolist():
            if len(found) >= n:
                break
            order = torch.randperm(len(self.members[y]), generator=generator)
            found += self.members[y][order[: self.settings.instances]].tolist()
        return torch.tensor(found[:n])

    def seen(self, batch: dict) -> Tokens:
        """Patches in the shared space, [b, t, width]."""
        values, mask = batch["image_tokens"]
        return Tokens(self.patches(values), mask)

    def read(self, ids: Tokens) -> Tokens:
        """Words in the shared space, [b, t, width]."""
        return self.tower(self.embedding(ids))

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """Means of patches and of words [b, width], not scaled to length one."""
        outputs = {}
        if "image_tokens" in batch:
            outputs["image"] = mean_pool(self.seen(batch))
        if "text_ids" in batch:
            outputs["text"] = mean_pool(self.read(batch["text_ids"]))
        return outputs

    def words(self, batch: dict) -> Tensor:
        """Logits [b, t, pieces] of every word of `text_masked`, with the picture."""
        looked = self.look(self.read(batch["text_masked"]), self.seen(batch))
        return self.word_head(self.reason(looked).values)

    def classes(self, identity: Tensor) -> Tensor:
        """Numbers of the classifier's outputs [b]. Raises ValueError for identities that
        were not among the rows it was built on."""
        y = torch.searchsorted(self.identities, identity).clamp(max=len(self.members) - 1)
        if (odd := self.identities[y] != identity).any():
            raise ValueError(f"identities {identity[odd].unique().tolist()} are not among "
                             f"the {len(self.members)} that the classifier was built on: "
                             "train on those rows, or set identity=False")
        return y

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        s, scale, item = self.settings, self.temperature(), batch["item"]
        f, t = unit(outputs["image"]), unit(outputs["text"])
        if s.match == "sdm":
            match = sdm_loss(f, t, scale, positives_of(item))
        else:
            match = info_nce(f, t, scale,
                             positives_of(item) if s.match == "multi" else None)
        losses = {"match_loss": match}
        if s.identity:
            y = self.classes(item)
            losses["identity_loss"] = sum(
                F.cross_entropy(self.classifier(z), y) for z in outputs.values()) / 2
        if s.words:
            losses["word_loss"] = F.cross_entropy(
                self.words(batch).flatten(0, 1), batch["text_targets"].flatten())
        return losses
