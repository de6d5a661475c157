"""Attention over tokens with a mask: pooling, a small transformer, a cross block.

Every block is pre-norm and made of torch's own layers. Padding is set to zero on the
way in and on the way out, so nothing that stands there changes anything.
"""

import torch
from torch import Tensor, nn

from alignkit.data import Tokens
from alignkit.parts.tokens import clean


def _mlp(width: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout),
                         nn.Linear(4 * width, width), nn.Dropout(dropout))


class TokenEmbedding(nn.Module):
    """Ids [n, t] to vectors: a learned row per id plus a learned row per place."""

    def __init__(self, n_ids: int, width: int, longest: int):
        super().__init__()
        self.ids = nn.Embedding(n_ids, width)
        self.places = nn.Embedding(longest, width)
        for table in (self.ids, self.places):
            nn.init.normal_(table.weight, std=0.02)  # as BERT and GPT-2

    def forward(self, tokens: Tokens) -> Tokens:
        t, longest = tokens.values.shape[1], self.places.num_embeddings
        if t > longest:
            raise ValueError(f"tokens have {t} places, the embedding {longest}; cut "
                             "the texts or make it with a larger longest")
        values = self.ids(tokens.values) + self.places.weight[:t]
        return Tokens(values.masked_fill(~tokens.mask[:, :, None], 0), tokens.mask)


class AttentionPooling(nn.Module):
    """One vector a row: a learned query attends over the row's real tokens.

    pooled = attention(query, LN(x)); the head of Set Transformer (Lee et al. 2019,
    section 3.2, one seed) and, with an MLP after it, of SigLIP's image tower.
    The order of tokens does not matter, and one real token gets all the weight.
    """

    def __init__(self, width: int, heads: int = 4):
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, tokens: Tokens) -> Tensor:
        """Tokens [n, t, width] -> [n, width]."""
        values, mask = clean(tokens, "tokens")
        values, query = self.norm(values), self.query.expand(len(values), -1, -1)
        return self.attention(query, values, values, key_padding_mask=~mask,
                              need_weights=False)[0][:, 0]


class CrossAttention(nn.Module):
    """Tokens that look at another modality's tokens.

    x ← x + attention(LN x, LN memory); x ← x + MLP(LN x) (Vaswani et al. 2017, with
    the norm first). Without places: the order of the memory does not matter.
    """

    def __init__(self, width: int, heads: int = 4, dropout: float = 0.0):
        super().__init__()
        self.norm_x, self.norm_memory = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.norm_mlp, self.mlp = nn.LayerNorm(width), _mlp(width, dropout)

    def forward(self, tokens: Tokens, memory: Tokens) -> Tokens:
        """tokens [n, t, width], memory [n, u, width] -> tokens [n, t, width]."""
        (x, real), (seen, to_see) = clean(tokens, "tokens"), clean(memory, "memory")
        seen = self.norm_memory(seen)
        x = x + self.attention(self.norm_x(x), seen, seen, key_padding_mask=~to_see,
                               need_weights=False)[0]
        return clean(Tokens(x + self.mlp(self.norm_mlp(x)), real), "tokens")


class TransformerEncoder(nn.Module):
    """Self-attention layers with a last LayerNorm. Places are the caller's: without
    `TokenEmbedding` or the like, permuted tokens give permuted outputs."""

    def __init__(self, width: int, layers: int = 2, heads: int = 4,
                 dropout: float = 0.0):
        super().__init__()
        # Made one by one: nn.TransformerEncoder gives each layer the same weights.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, "gelu",
                                       batch_first=True, norm_first=True)
            for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tokens) -> Tokens:
        """[n, t, width] -> [n, t, width], zeros at padding."""
        x, mask = clean(tokens, "tokens")
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=~mask)
        return clean(Tokens(self.norm(x), mask), "tokens")


class TransformerDecoder(nn.Module):
    """Layers of self-attention, cross-attention to a memory, and MLP.

    causal: a place sees itself and earlier ones only (writing text); False for learned
    queries that gather from the memory.
    """

    def __init__(self, width: int, layers: int = 2, heads: int = 4,
                 dropout: float = 0.0, causal: bool = True):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(width, heads, 4 * width, dropout, "gelu",
                                       batch_first=True, norm_first=True)
            for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.causal = causal

    def forward(self, tokens: Tokens, memory: Tokens, bias: Tensor | None = None) -> Tokens:
        """tokens [n, t, width], memory [n, u, width] -> [n, t, width], 0 at padding; bias
        [t, u]: added to the scores, already divided, of each place with the memory's."""
        (x, mask), (seen, to_see) = clean(tokens, "tokens"), clean(memory, "memory")
        t, hidden, unseen = x.shape[1], None, ~to_see
        if bias is not None:  # torch wants both masks of one kind
            unseen = bias.new_zeros(unseen.shape).masked_fill(unseen, -torch.inf)
        if self.causal:
            if not mask[:, 0].all():
                raise ValueError("tokens of a causal decoder must begin with a real "
                                 "one; pad on the right")
            hidden = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
        for layer in self.layers:
            x = layer(x, seen, hidden, bias, tgt_key_padding_mask=~mask,
                      memory_key_padding_mask=unseen)
        return clean(Tokens(self.norm(x), mask), "tokens")
