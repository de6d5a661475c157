"""OneEncoder: a small transformer for all modalities, frozen when the next one docks.

Paper: OneEncoder: A Lightweight Framework for Progressive Alignment of Modalities. Faye,
Azzag, Lebbah, 2024, arXiv 2409.11059.

Claim: one light transformer, told by a learned token which modality it reads, aligns
pictures and texts. Frozen, it takes a third modality with few trained weights and few
pairs, of that modality and one of the aligned ones; the others need no new pairs.

Use it when: pairs of the new modality exist with one of the aligned modalities only, and
what is aligned must not move by a bit (an index is built on it). Expect no more of the
frozen projection itself: after a thousand pictures, and with 100 pairs of sounds, it was no
better than a fresh one, than one linear map, or than itself without modality tokens; nor,
after five thousand drawings, than a fresh one.

Equations, x [n, t, D] frozen tokens of one modality, mean(.) over real tokens:
    align(x) = LN(dropout(W₂ gelu(W₁ x)))                                      (width d)
    m = LN(V₃ relu(V₂ relu(V₁ θ))),  θ ~ N(0, s²) in R³, s ~ U(0.1, 0.6)
    u = align(x) + m                                     (fusion: addition, its default)
    UP(x) = mean(layer(LN(u)) + u)         (one post-norm transformer layer with ReLU)
    loss = ½ [CE(rows of e^2.5 · a bᵀ) + CE(columns)],  a, b unit rows of UP
    step 1: pictures and texts; align, θ, V of both and UP are trained
    step 2: a new modality and texts; its own align, θ and V are trained, all else frozen
Other fusions: u = align(x) · m; 15 rows of m before align(x), dropped before the mean;
u = align(x) + one vector, attention of m over align(x). `none` leaves m out.

Frozen: all encoders; in step 2 everything of step 1. The gradient goes through UP to the
new modality's layer.
Exact property: step 2 does not change one bit of a picture's or text's embedding. The
scale has no gradient and is e^2.5. If the transformer layer gives 0 and m is 0,
UP is mean(align(x)). UP does not know the order of its tokens: permuted, the same mean.
Deviations, by file and line of github.com/b-faye/OneEncoder, commit 91edf3d, `contrastive
learning/text-image/addition/text_image.py` where none is named: no mask is passed (513), so
padding is attended and counted (521); here it is neither. Frozen modules stay in train mode
in step 2 (text-audio/addition/text_audio.py, 455), so that the texts have dropout which
sounds are aligned with; here what is frozen is in eval mode. All texts of an item are right
answers. The temperature, 0.07, is clamped to [2.5, 3] through `.data` (761), which makes it
e^2.5 and not learned; here it is a constant. The layer is registered twice (482, 487),
1.3 million weights that nothing uses; here once. Fusion by Bahdanau's and by Luong's
attention cannot be built at that commit (text_image.py in their folders, 568 and 566: an
argument that they do not take) and is left out. Three tensors of wav2vec2 that are drawn
anew are trained there, none here. The head for visual questions, a second application, is
left out. Step 2 there takes its batches in the same order every time (text_audio.py, 103
to 108), and both steps keep the weights of the lowest validation loss and lower the rate
when that stands still (962, 948); here rows are shuffled, weights are kept by hit@10, and
the rate falls along a cosine. The docks `fresh`, `tuned` and `linear` and the fusion `none`
are ours, to compare with.
Reconstructed: nothing of the method; the paper's figures were not found. The headline, run
again by an independent reader with eight other seeds, is no gain as before, -.002 [-.033,
+.029] in hit@10, though too wide to be called equivalent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from alignkit.data import Pairs, Tokens
from alignkit.parts import Method, Settings, Stage, Temperature, info_nce, positives_of, unit
from alignkit.parts.tokens import clean, mean_pool

FUSIONS = ("addition", "multiplication", "concatenation", "attention", "none")
DOCKS = ("frozen", "fresh", "tuned", "linear")
IN_FRONT = 15  # rows of a modality token that is put before the others


@dataclass(frozen=True)
class OneEncoderSettings(Settings):
    """towers: modalities of step 1 -> their columns of `Tokens`. docks: modalities of step
    2 -> theirs, in order, each against `anchor`. dock: what a new modality gets beside its
    layer and token: 'frozen' (the universal projection, the paper's), 'fresh' (one of its
    own, trained), 'tuned' (step 1 goes on training), 'linear' (one matrix in place of
    all). aligned: step 1 is done, its weights are laid over."""

    towers: Mapping[str, str] = field(default_factory=lambda: {
        "image": "image_tokens", "text": "text_tokens"})
    docks: Mapping[str, str] = field(default_factory=dict)
    anchor: str = "text"
    dock: str = "frozen"
    aligned: bool = False
    fusion: str = "addition"
    width: int = 256
    heads: int = 4
    ffn: int = 2048
    dropout: float = 0.1
    temperature: float = math.exp(-2.5)

    def __post_init__(self):
        if self.fusion not in FUSIONS or self.dock not in DOCKS:
            raise ValueError(f"fusion must be one of {FUSIONS} and dock one of {DOCKS}, got "
                             f"{self.fusion!r} and {self.dock!r}")
        if self.anchor not in self.towers or set(self.docks) & set(self.towers):
            raise ValueError(f"anchor must be one of towers {[*self.towers]} and docks none "
                             f"of them, got {self.anchor!r} and {[*self.docks]}")


def alignment(d_in: int, d: int, dropout: float = 0.1) -> nn.Sequential:
    """The layer of one modality, token by token, [..., d_in] -> [..., d]."""
    return nn.Sequential(nn.Linear(d_in, d), nn.GELU(), nn.Linear(d, d),
                         nn.Dropout(dropout), nn.LayerNorm(d))


class _Tokens(nn.Module):
    """A learned token a modality, made as wide as the space by one MLP for all of them."""

    def __init__(self, names: Sequence[str], d: int, rows: int = 1):
        super().__init__()
        self.tokens = nn.ParameterDict({
            name: nn.Parameter(torch.randn(rows, 3) * (0.1 + 0.5 * torch.rand(())))
            for name in names})
        self.project = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 128),
                                     nn.ReLU(), nn.Linear(128, d), nn.LayerNorm(d))

    def forward(self, name: str) -> Tensor:
        """[rows, d]."""
        return self.project(self.tokens[name])


class _Universal(nn.Module):
    """Tokens of any modality with its modality token -> one vector a row."""

    def __init__(self, d: int, heads: int = 4, ffn: int = 2048, dropout: float = 0.1,
                 fusion: str = "addition"):
        super().__init__()
        self.fusion, self.norm = fusion, nn.LayerNorm(d)
        self.layer = nn.TransformerEncoderLayer(d, heads, ffn, dropout, batch_first=True)
        if fusion == "attention":
            self.query, self.key, self.value = (nn.Linear(d, d) for _ in range(3))

    def forward(self, tokens: Tokens, m: Tensor | None) -> Tensor:
        """Tokens [n, t, d], m [rows, d] (None without fusion) -> [n, d]."""
        u, mask = self.fuse(*clean(tokens, "tokens"), m)
        out = self.layer(self.norm(u), src_key_padding_mask=~mask) + u
        front = len(m) if self.fusion == "concatenation" else 0
        return mean_pool(Tokens(out[:, front:], mask[:, front:]))

    def fuse(self, x: Tensor, mask: Tensor, m: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens that know their modality, with their mask."""
        if self.fusion == "addition":
            return x + m, mask
        if self.fusion == "multiplication":
            return x * m, mask
        if self.fusion == "attention":
            scores = self.query(m) @ self.key(x).mT / x.shape[-1]**0.5  # [n, 1, t]
            weights = scores.masked_fill(~mask[:, None], -math.inf).softmax(-1)
            return x + weights @ self.value(x), mask
        if self.fusion == "concatenation":
            n = len(x)
            return (torch.cat([m.expand(n, -1, -1), x], 1),
                    torch.cat([mask.new_ones(n, len(m)), mask], 1))
        return x, mask


class OneEncoder(Method):
    """Step 1 aligns the towers; step 2 docks one modality after the other."""

    settings: OneEncoderSettings

    def build(self, settings: OneEncoderSettings, pairs: Pairs) -> None:
        s, rows = settings, IN_FRONT if settings.fusion == "concatenation" else 1

        def part(modalities: Mapping[str, str], projection: bool) -> nn.ModuleDict:
            """What some modalities need: layers, tokens and (or not) a projection."""
            found = nn.ModuleDict({"align": nn.ModuleDict({
                name: alignment(pairs[column].values.shape[-1], s.width, s.dropout)
                for name, column in modalities.items()})})
            if s.fusion != "none":
                found["tokens"] = _Tokens(list(modalities), s.width, rows)
            if projection:
                found["universal"] = _Universal(s.width, s.heads, s.ffn, s.dropout, s.fusion)
            return found

        self.first = part(s.towers, True)
        self.docked = nn.ModuleDict({
            name: nn.Linear(pairs[column].values.shape[-1], s.width) if s.dock == "linear"
            else part({name: column}, s.dock == "fresh") for name, column in s.docks.items()})
        self.temperature = Temperature(s.temperature)

    def embed(self, name: str, tokens: Tokens) -> Tensor:
        """Embeddings [n, width], not of unit length, of a modality's tokens [n, t, D]."""
        own = self.docked[name] if name in self.docked else self.first
        if isinstance(own, nn.Linear):
            return own(mean_pool(tokens))
        universal = (own if "universal" in own else self.first)["universal"]
        m = own["tokens"](name) if "tokens" in own else None
        return universal(Tokens(own["align"][name](tokens.values), tokens.mask), m)

    def encode(self, batch: dict) -> dict[str, Tensor]:
        return {name: unit(self.embed(name, batch[column]))
                for name, column in {**self.settings.towers, **self.settings.docks}.items()
                if column in batch}

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        """One a modality beside the anchor; a step's batch holds two modalities."""
        anchor, right = outputs[self.settings.anchor], positives_of(batch["item"])
        return {f"{name}_loss": info_nce(z, anchor, self.temperature(), right)
                for name, z in outputs.items() if name != self.settings.anchor}

    def stages(self) -> list[Stage]:
        """Step 1, unless it is done, and a stage for each modality that docks."""
        s, first = self.settings, list(self.first.parameters())
        found = [] if s.aligned else [Stage("align", view=self._with(*s.towers),
                                            parameters=[{"params": first}])]
        for name in s.docks:
            new = list(self.docked[name].parameters())
            found.append(Stage(
                f"dock {name}", view=self._with(s.anchor, name),
                parameters=[{"params": new + first * (s.dock == "tuned")}]))
        return found

    def train(self, mode: bool = True) -> "OneEncoder":
        """What is frozen stays in eval mode: no dropout in what others are aligned with."""
        super().train(mode)
        for part in (self.first, *self.docked.values()):
            if not any(p.requires_grad for p in part.parameters()):
                part.eval()
        return self

    def _with(self, *names: str):
        """A stage's view: these modalities alone, of the rows that have them all."""
        columns = [({**self.settings.towers, **self.settings.docks})[n] for n in names]

        def view(pairs: Pairs) -> Pairs:
            here = torch.stack([pairs.present[column] for column in columns]).all(0)
            return pairs.only(*columns).select(here)
        return view
