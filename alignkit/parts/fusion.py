"""A small fused model: words and regions of a picture, read together.

Language, regions and then both (Tan and Bansal 2019, arXiv 1908.07490): a transformer over
words, one over regions with their boxes, and co-attention layers in which each looks at the
other. `data_scripts/train_fusion.py` trains it on five tasks; what comes with the package,
`load_fusion` reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from alignkit.data import Tokens
from alignkit.parts import shipped
from alignkit.parts.attention import TokenEmbedding
from alignkit.parts.text import WordPieces
from alignkit.parts.tokens import clean

FOLDER = shipped.FOLDER / "fusion"
EPS = 1e-12  # of every LayerNorm, as in BERT and LXMERT
STD = 0.02 * 768**0.5  # of initial weights at width 1: 0.02 at BERT's


@dataclass(frozen=True)
class FusionSettings:
    """Shapes: width and heads of all layers; how many read words, regions and both; longest
    text in pieces; width of a region's features; kinds of regions that k-means tells apart.
    shared: one cross-attention for both directions (see `CoAttention`)."""

    width: int = 64
    heads: int = 4
    word_layers: int = 1
    region_layers: int = 1
    cross_layers: int = 2
    longest: int = 20
    region_width: int = 192
    clusters: int = 100
    shared: bool = True
    dropout: float = 0.0


class Fused(NamedTuple):
    """What the last layers give: words [n, t, width], regions [n, r, width] (zeros at
    padding), and the whole of both, read at the first word, [n, width]."""

    words: Tensor
    regions: Tensor
    pooled: Tensor


class CoAttention(nn.Module):
    """A layer over two streams, in which each looks at the other as it came in.

    All sublayers are post-norm, LN(x + f(x)). shared=True is LXMERT's: first both look at
    each other through one and the same attention and LayerNorm, then each has a layer of
    its own (attention to itself, MLP). shared=False is BridgeTower's and METER's: each has
    attention to itself, to the other and an MLP, with no weight in common.
    """

    def __init__(self, width: int, heads: int = 4, shared: bool = True,
                 dropout: float = 0.0):
        super().__init__()
        self.shared = shared
        layer = nn.TransformerEncoderLayer if shared else nn.TransformerDecoderLayer
        self.first, self.second = (
            layer(width, heads, 4 * width, dropout, "gelu", EPS, batch_first=True)
            for _ in range(2))
        if shared:
            self.look = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
            self.drop, self.norm = nn.Dropout(dropout), nn.LayerNorm(width, EPS)

    def forward(self, first: Tokens, second: Tokens) -> tuple[Tokens, Tokens]:
        """[n, t, width] and [n, r, width] -> the same, zeros at padding."""
        (x, is_x), (y, is_y) = clean(first, "first"), clean(second, "second")
        if self.shared:
            x, y = (self.norm(a + self.drop(self._look(a, b, real)[0]))
                    for a, b, real in ((x, y, is_y), (y, x, is_x)))
            x = self.first(x, src_key_padding_mask=~is_x)
            y = self.second(y, src_key_padding_mask=~is_y)
        else:
            x, y = (layer(a, b, tgt_key_padding_mask=~is_a, memory_key_padding_mask=~is_b)
                    for layer, a, is_a, b, is_b in ((self.first, x, is_x, y, is_y),
                                                    (self.second, y, is_y, x, is_x)))
        return clean(Tokens(x, is_x), "first"), clean(Tokens(y, is_y), "second")

    def _look(self, x: Tensor, y: Tensor, real: Tensor, weights: bool = False):
        return self.look(x, y, y, key_padding_mask=~real, need_weights=weights)

    def attention(self, first: Tokens, second: Tokens) -> Tensor:
        """How much each of `first` looks at each of `second`, the mean over the heads
        [n, t, r]; of the shared kind alone."""
        if not self.shared:
            raise ValueError("attention: only of layers with shared=True")
        (x, _), (y, real) = clean(first, "first"), clean(second, "second")
        return self._look(x, y, real, weights=True)[1]


class FusionModel(nn.Module):
    """The three encoders and the heads of the five tasks.

    Region features are standardised by `region_mean` and `region_scale` and have kinds,
    the nearest of `centres`: see `fusion_tasks.know_regions`.
    """

    def __init__(self, settings: FusionSettings, vocabulary: Sequence[str],
                 answers: Sequence[str]):
        super().__init__()
        self.settings, self.pieces, self.answers = (
            settings, WordPieces(vocabulary), list(answers))
        s, width, d = settings, settings.width, settings.region_width
        self.embedding = TokenEmbedding(len(vocabulary), width, s.longest)
        self.word_norm = nn.LayerNorm(width, EPS)
        self.region_in, self.box_in = nn.Linear(d, width), nn.Linear(4, width)
        self.region_norm, self.box_norm = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.word_layers, self.region_layers = (nn.ModuleList(
            nn.TransformerEncoderLayer(width, s.heads, 4 * width, s.dropout, "gelu", EPS,
                                       batch_first=True)
            for _ in range(n)) for n in (s.word_layers, s.region_layers))
        self.cross_layers = nn.ModuleList(
            CoAttention(width, s.heads, s.shared, s.dropout) for _ in range(s.cross_layers))
        self.drop, self.pool = nn.Dropout(s.dropout), nn.Linear(width, width)

        self.word_head, self.region_head = _transform(width), _transform(width)
        self.word_bias = nn.Parameter(torch.zeros(len(vocabulary)))
        self.value_head, self.kind_head = nn.Linear(width, d), nn.Linear(width, s.clusters)
        self.match_head = nn.Linear(width, 2)
        self.answer_head = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.LayerNorm(2 * width, EPS),
            nn.Linear(2 * width, len(self.answers)))
        self.apply(initial)
        self.register_buffer("region_mean", torch.zeros(d))
        self.register_buffer("region_scale", torch.ones(d))
        self.register_buffer("centres", torch.zeros(s.clusters, d))

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Ids [n, t] of word pieces; what is longer than `longest` is cut."""
        return self.pieces(texts, self.settings.longest)

    def standard(self, values: Tensor) -> Tensor:
        """Region features [..., d], each number with mean 0 and deviation 1."""
        return (values - self.region_mean) / self.region_scale

    def alone(self, words: Tokens, regions: Tokens, boxes: Tokens) -> tuple[Tokens, Tokens]:
        """Both streams before they meet; arguments as in `forward`."""
        x = Tokens(self.drop(self.word_norm(self.embedding(words).values)), words.mask)
        seen = self.region_norm(self.region_in(self.standard(regions.values)))
        seen = (seen + self.box_norm(self.box_in(boxes.values))) / 2
        y = Tokens(self.drop(seen), regions.mask)
        return _through(self.word_layers, x, "words"), _through(self.region_layers, y, "regions")

    def forward(self, words: Tokens, regions: Tokens, boxes: Tokens) -> Fused:
        """words: ids [n, t]; regions: features [n, r, d] as the encoder gives them; boxes
        [n, r, 4] from 0 to 1, see `add_regions`."""
        return self.together(*self.alone(words, regions, boxes))

    def together(self, words: Tokens, regions: Tokens) -> Fused:
        """What `alone` gives, through the layers over both."""
        x, y = words, regions
        for layer in self.cross_layers:
            x, y = layer(x, y)
        return Fused(x.values, y.values, torch.tanh(self.pool(x.values[:, 0])))

    def attention(self, words: Tokens, regions: Tokens, boxes: Tokens) -> Tensor:
        """How much each word looks at each region in the last layer [n, t, r]."""
        x, y = self.alone(words, regions, boxes)
        for layer in self.cross_layers[:-1]:
            x, y = layer(x, y)
        return self.cross_layers[-1].attention(x, y)

    # Heads: logits, or the features themselves -----------------------------------------
    def word_logits(self, fused: Fused) -> Tensor:
        """[n, t, ids], with the table of words as weights."""
        return self.word_head(fused.words) @ self.embedding.ids.weight.T + self.word_bias

    def region_values(self, fused: Fused) -> Tensor:
        """Standardised features of the regions [n, r, d]."""
        return self.value_head(self.region_head(fused.regions))

    def kind_logits(self, fused: Fused) -> Tensor:
        """[n, r, clusters]"""
        return self.kind_head(self.region_head(fused.regions))

    def match_logits(self, fused: Fused) -> Tensor:
        """[n, 2]: words and picture are of two rows, of one."""
        return self.match_head(fused.pooled)

    def answer_logits(self, fused: Fused) -> Tensor:
        """[n, answers]"""
        return self.answer_head(fused.pooled)


def _through(layers: nn.ModuleList, tokens: Tokens, name: str) -> Tokens:
    x, real = clean(tokens, name)
    for layer in layers:
        x = layer(x, src_key_padding_mask=~real)
    return clean(Tokens(x, real), name)


def _transform(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, EPS))


def initial(module: nn.Module) -> None:
    """BERT's initial weights (for `apply`), drawn as wide for a row of this width as 0.02
    is for one of 768; biases 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=STD / module.weight.shape[1]**0.5)
    if isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(module.in_proj_weight, std=STD / module.embed_dim**0.5)
        nn.init.zeros_(module.in_proj_bias)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def hard_negatives(scores: Tensor, positives: Tensor, generator: torch.Generator) -> Tensor:
    """For each row one column that is no positive, drawn by the softmax of its scores
    (Li et al. 2021, ALBEF, arXiv 2107.07651, section 3.2): close ones more often.

    Args:
        scores [n, m], already divided by the temperature; positives [n, m] bool.
    Returns:
        column numbers [n], long. Nothing is learned through the draw.
    Raises:
        ValueError: shapes that differ, or a row all of whose columns are positives.
    """
    if scores.shape != positives.shape or positives.dtype != torch.bool:
        raise ValueError(f"positives must be bool {tuple(scores.shape)}, got "
                         f"{positives.dtype} {tuple(positives.shape)}")
    if (full := positives.all(1).nonzero()[:, 0]).numel():
        raise ValueError(f"scores: {len(full)} rows have no negative, the first is row "
                         f"{int(full[0])}; draw a batch of more items")
    chance = scores.detach().float().masked_fill(positives, -torch.inf).softmax(1)
    return torch.multinomial(chance.cpu(), 1, generator=generator)[:, 0].to(scores.device)


def load_fusion(seed: int = 0, variant: str = "five", folder: Path = FOLDER) -> FusionModel:
    """A trained model, frozen, in eval mode and float32 (stored as fp16). To tune it, let
    an `Arm` start from its `state_dict()`, or call `.requires_grad_().train()`.

    Args:
        seed: of its training. variant: the tasks it was trained on, "five" (all) or
            "words" (masked words, matching and answers; nothing asked of regions).
        folder: with `recipe.json` and the weights; default: what the package ships.
    Raises:
        FileNotFoundError, ValueError: see `shipped.weights` and `shipped.fill`.
    """
    made = shipped.recipe(folder)
    model = FusionModel(FusionSettings(**made["settings"]), made["vocabulary"],
                        made["answers"])
    return shipped.fill(model, folder, seed, variant)
