"""M3EL: link a mention to an entity by matching text and image at several levels.

Paper: Multi-level Matching Network for Multimodal Entity Linking. Hu, Gutierrez-Basulto,
Li, Pan, KDD 2025, arXiv 2412.10440.

Claim: a mention (a sentence with a picture) is linked better to the entities of a
knowledge base (a description with a picture) if each modality is matched globally and
locally, if text is matched across modalities with the pictures, and if representations
are learned against negatives of the same side too.

Use it when: mentions are short and their words ambiguous, entities have descriptions and
pictures, and the knowledge base is small enough, or cut down by a faster search, to score
every pair: the local levels look at all tokens of both. Try global vectors of both
modalities first: they can be indexed.

Equations, of mention m and entity e: t, v global vectors, H_t, H_v tokens, each after a
LayerNorm that both sides share; t°, v° the global vectors before it:
    global_x = x_m · x_e                                                  x in {t, v}
    c = norm(mean_i Σ_j softmax_j(W_q h_e,i · W_k h_m,j / √d) W_v h_m,j),  h in H_x
    local_x = (W_c x_e) · c;        S_x = (global_x + local_x) / 2
    t' = W_t t, P = W_p H_v;        match(p, q) = relu(W softmax(p (W q)ᵀ) q)
    a = match(t', P), B = match(P, t');       g = sigmoid(L a + L pool(B))
    context = norm(t' tanh(w t') + g a + (1 − g) pool(B));   S_c = context_m · context_e
    pool(B) = mean_n B_n + λ · mean_T Σ_n softmax_n(T B)_n B_n,  T in {2, 2.5, 3.5, 4.5, ∞}
    S = mean of S_t, S_v, S_c
    contrast = ½ [CE over (E Mᵀ / τ | w · E Eᵀ / τ) + CE over (M Eᵀ / τ | w · M Mᵀ / τ)]
        of unit rows E, M of t° and of v°, the mean of both; right is the row's partner
    loss = CE(S) + CE(S_t) + CE(S_v) + CE(S_c) + contrast,  among the entities of a batch
cross='both' (WikiDiverse): two contexts without g, norm(t' tanh(w t') + pool(a | B)) and
the same with the picture's v' in the place of t' and the words in that of the patches; S
is then a mean of four.

Frozen: both encoders, whose tokens are given; their means take the place of CLIP's global
vectors. Trained: one linear map for globals and one for tokens of each modality, the
LayerNorms and the matchers.
Exact property: B has one key, so its softmax is 1 and each of its rows is relu(W t' + b):
no picture is in it, and pool(B) = (1 + λ) relu(W t' + b). Hence pool='patches', where B =
relu(W P + b). Other orders of tokens or patches change no score, equal entities get equal
scores, and to swap entities and mentions swaps the halves of contrast.
Deviations (official code: zhiweihu1103/MEL-M3EL at 9b99c42, codes/): B's one key stands in
model/modeling_m3el.py:170, with the softmax of utils/utils.py:13, and is kept. There CLIP is
tuned and its 512-wide text goes without a linear map (modeling_m3el.py:33); here both
modalities have the same width. Padding is masked here, there it attends and is attended
(:71, :76). A batch may hold an entity twice: its other mention is no negative here, there
it is (lightning_m3el.py:42, contrastive_loss.py:103). Validation and test there call the
matcher without `bidirection` (lightning_m3el.py:93, :166), so on WikiDiverse they use a
cross-modal matcher that was never trained; here one setting says which is trained and
tested. Ties count against the model; there a double argsort breaks them by place
(lightning_m3el.py:100). Kept: a row's similarity to itself is set to 0, not left out, so
that e⁰ stays in the denominator (contrastive_loss.py:127). There the weights that are best
by the validation MRR are tested, with a stop when it no longer rises (main.py:18); here the
last ones, after a fixed number of steps. Unused there, and left out: MCLETLoss and the maps
of modeling_m3el.py:266. Their matcher and loss were run beside these on the same tensors
(no padding, no entity twice, float64), for cross='text' and 'both': every score, the loss
and its gradient by the linear maps agree to 1e-14.
Reconstructed: nothing of the network. Of the paper's text the abstract alone could be read.
A registered follow-up with more than three times the mentions has no gain as the headline had,
-.007 [-.025, +.012].
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignkit.data import Pairs, Tokens
from alignkit.parts import Method, logits_of, mean_pool, positives_of, unit

SIDES = {"mention": "mention_", "entity": ""}  # what the columns begin with
SHARPNESS = (2, 2.5, 3.5, 4.5)  # of pool(B); the fifth head is the maximum
Side = Mapping[str, Tensor]


@dataclass(frozen=True)
class M3elSettings:
    """modalities: matched within themselves. local: with the local level too. cross: text
    with patches ('text'), also pictures with words ('both'), or no such matcher ('').
    pool: B as the official code has it ('official') or of the patches ('patches').
    contrast: '' for none, 'inter' with negatives of the other side alone, or 'intra'.
    width; temperature: τ; intra: w; strength: λ."""

    modalities: tuple[str, ...] = ("text", "image")
    local: bool = True
    cross: str = "text"
    pool: str = "official"
    contrast: str = "intra"
    width: int = 96
    temperature: float = 0.03
    intra: float = 0.8
    strength: float = 1.0

    def __post_init__(self):
        for name, known in (("cross", ("", "text", "both")), ("pool", ("official", "patches")),
                            ("contrast", ("", "inter", "intra"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if not self.modalities or {*self.modalities} - {"text", "image"} or (
                self.cross and len({*self.modalities}) < 2):
            raise ValueError("modalities must be some of text and image, both for a cross, got "
                             f"{self.modalities} with cross={self.cross!r}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


def two_sided_contrast(entity: Tensor, mention: Tensor, item: Tensor, temperature: float,
                       intra: float | None = None) -> Tensor:
    """`contrast` of one modality's rows [b, d], with w = `intra` (None: without the block
    of the row's own side). Other rows of an item are no negatives."""
    e, m = unit(entity), unit(mention)
    eye = torch.eye(len(item), dtype=torch.bool, device=item.device)
    again, right = positives_of(item) & ~eye, torch.arange(len(item), device=item.device)
    loss = 0
    for own, other in ((e, m), (m, e)):
        logits = logits_of(own, other, 1 / temperature).masked_fill(again, -torch.inf)
        if intra is not None:
            within = logits_of(own, own, intra / temperature).masked_fill(eye, 0)
            logits = torch.cat([logits, within.masked_fill(again, -torch.inf)], 1)
        loss = loss + F.cross_entropy(logits, right) / 2
    return loss


def pooled(rows: Tokens, strength: float) -> Tensor:
    """`pool` of rows [b, n, d] with a mask: [b, d]."""
    values, mask = rows
    hidden = values.masked_fill(~mask[:, :, None], -torch.inf)
    heads = [((hidden * t).softmax(1) * values).sum(1) for t in SHARPNESS]
    return mean_pool(rows) + strength * torch.stack([*heads, hidden.amax(1)]).mean(0)


class _Local(nn.Module):
    """The local level of a modality: an entity's tokens attend to a mention's."""

    def __init__(self, width: int):
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.whole = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, entity: Tokens, whole: Tensor, mention: Tokens) -> Tensor:
        """Scores [m, e]; whole: the entities' global vectors [e, width]."""
        (of, real), (to, here) = entity, mention
        query = (self.query(of) / of.shape[2] ** 0.5).flatten(0, 1)
        padding = torch.zeros_like(here, dtype=query.dtype).masked_fill(~here, -torch.inf)
        scores = torch.addmm(padding.flatten(), query, self.key(to).flatten(0, 1).T)
        weights = scores.view(*real.shape, *here.shape).softmax(-1)  # [e, u, m, t]
        # The mean over the entity's tokens goes first: values need not be summed for each.
        share = real / real.sum(1, keepdim=True)
        weights = torch.einsum("eumt,eu->met", weights, share.to(weights))
        context = self.norm(torch.einsum("met,mtd->med", weights, self.value(to)))
        return torch.einsum("med,ed->me", context, self.whole(whole))


class _Cross(nn.Module):
    """Contexts of one side [b, width]: of its text, and with `both` of its picture."""

    def __init__(self, s: M3elSettings):
        super().__init__()
        self.settings = s
        self.text, self.image = nn.Linear(s.width, s.width), nn.Linear(s.width, s.width)
        self.match_by = nn.Linear(s.width, s.width)
        self.fuse = nn.Linear(s.width, s.width) if s.cross == "text" else None
        self.gate, self.norm = nn.Linear(s.width, 1), nn.LayerNorm(s.width)

    def match(self, p: Tensor, q: Tokens) -> Tensor:
        """relu(W softmax(p (W q)ᵀ) q): p [b, n, d] -> [b, n, d]."""
        scores = p @ self.match_by(q.values).transpose(1, 2)
        weights = scores.masked_fill(~q.mask[:, None], -torch.inf).softmax(-1)
        return self.match_by(weights @ q.values).relu()

    def context(self, whole: Tensor, tokens: Tokens) -> Tensor:
        """Of a global vector [b, d] and the other modality's tokens."""
        one = Tokens(whole[:, None], tokens.mask.new_ones(len(whole), 1))
        a = self.match(one.values, tokens)
        if self.settings.pool == "official":
            b = self.match(tokens.values, one)
        else:
            b = self.match_by(tokens.values).relu()
        if self.settings.cross == "both":
            rows = Tokens(torch.cat([a, b], 1), torch.cat([one.mask, tokens.mask], 1))
            fused = pooled(rows, self.settings.strength)
        else:
            a, b = a[:, 0], pooled(Tokens(b, tokens.mask), self.settings.strength)
            g = (self.fuse(a) + self.fuse(b)).sigmoid()
            fused = g * a + (1 - g) * b
        return self.norm(whole * self.gate(whole).tanh() + fused)

    def forward(self, side: Side) -> dict[str, Tensor]:
        patches = Tokens(self.image(side["image_tokens"]), side["image_real"])
        found = {"cross": self.context(self.text(side["text"]), patches)}
        if self.settings.cross == "both":
            words = Tokens(self.text(side["text_tokens"]), side["text_real"])
            found["cross_back"] = self.context(self.image(side["image"]), words)
        return found


class M3el(Method):
    """Columns of Tokens: `text_tokens`, `image_tokens` of the entity, and the same with
    `mention_` before them. `encode` gives 'mention' and 'entity'."""

    settings: M3elSettings

    def build(self, settings: M3elSettings, pairs: Pairs) -> None:
        s, names = settings, settings.modalities
        wide = {name: pairs[f"{name}_tokens"].values.shape[2] for name in names}

        def each(make) -> nn.ModuleDict:
            return nn.ModuleDict({name: make(wide[name]) for name in names})

        self.whole = each(lambda d: nn.Linear(d, s.width))
        self.norm_whole = each(lambda d: nn.LayerNorm(s.width))
        if s.local or s.cross:
            self.token = each(lambda d: nn.Linear(d, s.width))
            self.norm_token = each(lambda d: nn.LayerNorm(s.width))
        self.local = each(lambda d: _Local(s.width)) if s.local else None
        self.cross = _Cross(s) if s.cross else None

    def encode(self, batch: dict) -> dict[str, dict[str, Tensor]]:
        first = f"{self.settings.modalities[0]}_tokens"
        return {name: self.side(batch, before) for name, before in SIDES.items()
                if before + first in batch}

    def side(self, batch: dict, before: str) -> dict[str, Tensor]:
        """What the matchers need of one side, rows first: of each modality `<name>_raw`
        (t°, v°), `<name>`, and `<name>_tokens` with `<name>_real`; the contexts."""
        found, s = {}, self.settings
        for name in s.modalities:
            values, real = tokens = batch[f"{before}{name}_tokens"]
            raw = self.whole[name](mean_pool(tokens))
            found |= {f"{name}_raw": raw, name: self.norm_whole[name](raw)}
            if s.local or s.cross:
                found |= {f"{name}_tokens": self.norm_token[name](self.token[name](values)),
                          f"{name}_real": real}
        return found | (self.cross(found) if self.cross else {})

    def pieces(self, mention: Side, entity: Side) -> dict[str, Tensor]:
        """Scores [m, e] of every level, such as 'text_global'."""
        found = {}
        for name in self.settings.modalities:
            found[f"{name}_global"] = mention[name] @ entity[name].T
            if self.local:
                of, to = (Tokens(side[f"{name}_tokens"], side[f"{name}_real"])
                          for side in (entity, mention))
                found[f"{name}_local"] = self.local[name](of, entity[name], to)
        return found | {name: mention[name] @ entity[name].T
                        for name in ("cross", "cross_back") if name in mention}

    def levels(self, mention: Side, entity: Side) -> dict[str, Tensor]:
        """Scores [m, e] of every matcher: S_t as 'text', S_v as 'image', S_c as 'cross'."""
        pieces = self.pieces(mention, entity)
        parts = {name: [x for piece, x in pieces.items() if piece.startswith(f"{name}_")]
                 for name in self.settings.modalities}
        found = {name: sum(each) / len(each) for name, each in parts.items()}
        return found | {name: x for name, x in pieces.items() if name.startswith("cross")}

    def score(self, query: Side, gallery: Side) -> Tensor:
        levels = self.levels(query, gallery)
        return sum(levels.values()) / len(levels)

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        s, item = self.settings, batch["item"]
        mention, entity = outputs["mention"], outputs["entity"]
        right = torch.arange(len(item), device=item.device)
        again = positives_of(item) & (right[:, None] != right)
        scores = self.levels(mention, entity)
        if len(scores) > 1:
            scores["score"] = sum(scores.values()) / len(scores)
        losses = {f"{name}_loss": F.cross_entropy(x.masked_fill(again, -torch.inf), right)
                  for name, x in scores.items()}
        if s.contrast:
            intra = s.intra if s.contrast == "intra" else None
            losses["contrast_loss"] = sum(two_sided_contrast(
                entity[f"{name}_raw"], mention[f"{name}_raw"], item, s.temperature, intra)
                for name in s.modalities) / len(s.modalities)
        return losses
