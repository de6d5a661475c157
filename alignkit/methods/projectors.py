"""Projectors: two frozen encoders, a small trained projector between them.

Paper: From Unimodal to Multimodal: Scaling up Projectors to Align Modalities.
Maniparambil, Akshulakov, Djilali, Narayan, Singh, O'Connor, CVPR 2025 (as: Harnessing
Frozen Unimodal Encoders for Flexible Multimodal Alignment), arXiv 2409.19425.

Claim: encoders that were trained apart are alike enough for a projector of 11.5 million
parameters to join them. Three choices carry it: the pair of encoders whose features agree
most (CKA), training captions that cover every concept, and a projector that sees patches
and words rather than pooled vectors alone.

Use it when: you have two good frozen encoders and from some thousand to some million
pairs; not when you may train the encoders themselves on hundreds of millions of pairs.

Equations, V the patch tokens, v the class token and T the word tokens of a row:
    token(x) = W₁ y + W₃ gelu(W₂ y),  y = dropout(layer_norm(x))   (weights have biases)
    mlp(x) = layer_norm(h + dropout(W₅ gelu(h))),  h = W₄ x
    z_image = unit(mean over patches of token_patch(V) + token_cls(v))
    z_text = unit(mlp(mean over real words of token_text(T)))
    loss = ½ [CE(rows of z_image z_textᵀ / τ) + CE(columns)],  0.001 ≤ τ ≤ 0.5
τ is a parameter itself, not its logarithm, and clamped in place before each use.
Choosing captions: every class ranks all captions by cosine to its prototype. Classes
choose one after the other, the scarcest first (lowest score at the end of its list), each
its best captions that no class before it has taken.

Frozen: both encoders. Trained: four blocks and τ.
Exact property: with W₃ and its bias zero, `token` is affine after its layer norm, and
without layer norm and dropout it then commutes with the mean; at width 1024 there are
11,553,793 parameters.
Deviations: the pictures' CNN has no class token, its pooled vector stands for it, which is
the mean of the very patches; prototypes are means of texts of a class through the text
encoder (paper: means of CLIP's picture embeddings, to which CLIP's captions are compared);
no augmentation, since features are cached; several captions of one picture all count as
right; the rate falls to 0, not to 1e-5. Officially τ decays by 0.02 with the matrices
(`optim_factory.py` spares what has one dimension, and τ has none); here it does not.
Officially a class chooses from its list without the last entry (`collect_fast.py`), whose
score says who chooses first; here from the whole list.
Reconstructed: nothing of the projector and its loss, which follow the official code; the
sizes of the experiments are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from alignkit.data import Pairs, Tokens
from alignkit.parts import Method, Settings, Stage, info_nce, mean_pool, positives_of, unit

LOW, HIGH = 0.001, 0.5  # where τ is kept


@dataclass(frozen=True)
class ProjectorSettings(Settings):
    """Settings, and: patches, the column of `Tokens` beside the class token (None: the
    class token alone); image_head, 'token' or 'linear'; dropout.

    towers: image -> class token or pooled vector [n, d]; text -> `Tokens`, or vectors
    [n, d], which count as one token a row. `head` and `learn_temperature` are not used.
    """

    towers: Mapping[str, str] = field(
        default_factory=lambda: {"image": "image_features", "text": "text_tokens"})
    width: int = 1024
    temperature: float = 0.07
    patches: str | None = None
    image_head: str = "token"
    dropout: float = 0.1

    def __post_init__(self):
        if self.image_head not in ("token", "linear"):
            raise ValueError(f"image_head must be 'token' or 'linear', got "
                             f"{self.image_head!r}")


class _Sum(nn.Module):
    """The sum of what its parts make of one input."""

    def __init__(self, *parts: nn.Module):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return sum(part(x) for part in self.parts)


def token_projector(d_in: int, d_out: int, dropout: float = 0.1) -> nn.Module:
    """`token` of the card, on the last dimension: a straight branch and a bent one."""
    bent = nn.Sequential(nn.Linear(d_in, d_out), nn.GELU(), nn.Linear(d_out, d_out))
    return nn.Sequential(nn.LayerNorm(d_in), nn.Dropout(dropout),
                         _Sum(nn.Linear(d_in, d_out), bent))


def mlp_projector(d_in: int, d_out: int, dropout: float = 0.1) -> nn.Module:
    """`mlp` of the card, on the last dimension."""
    bent = nn.Sequential(nn.GELU(), nn.Linear(d_out, d_out), nn.Dropout(dropout))
    return nn.Sequential(nn.Linear(d_in, d_out), _Sum(nn.Identity(), bent),
                         nn.LayerNorm(d_out))


def as_sequence(x: Tensor | Tokens) -> Tokens:
    """Vectors [n, d] as one token a row; tokens as they are."""
    if isinstance(x, Tokens):
        return x
    return Tokens(x[:, None], torch.ones(len(x), 1, dtype=torch.bool, device=x.device))


class Projectors(Method):
    """Token projectors between two frozen encoders."""

    settings: ProjectorSettings

    def build(self, settings: ProjectorSettings, pairs: Pairs) -> None:
        image, text = (as_sequence(pairs[settings.towers[name]]).values.shape[-1]
                       for name in ("image", "text"))
        width, dropout = settings.width, settings.dropout
        self.cls = (nn.Linear(image, width) if settings.image_head == "linear"
                    else token_projector(image, width, dropout))
        if settings.patches:
            d_patch = pairs[settings.patches].values.shape[-1]
            self.patch = token_projector(d_patch, width, dropout)
        self.word = token_projector(text, width, dropout)
        self.text = mlp_projector(width, width, dropout)
        self.tau = nn.Parameter(torch.tensor(settings.temperature))

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """Unit rows [b, width] of the modalities that are in the batch."""
        image, text = (self.settings.towers[name] for name in ("image", "text"))
        outputs = {}
        if image in batch:
            z = self.cls(batch[image])
            if self.settings.patches:
                values, mask = batch[self.settings.patches]
                z = z + mean_pool(Tokens(self.patch(values), mask))
            outputs["image"] = unit(z)
        if text in batch:
            values, mask = as_sequence(batch[text])
            mean = mean_pool(Tokens(self.word(values), mask))
            outputs["text"] = unit(self.text(mean))
        return outputs

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        with torch.no_grad():  # an AdamW step of 1e-3 could make it negative
            self.tau.clamp_(LOW, HIGH)
        return {"contrastive_loss": info_nce(outputs["image"], outputs["text"],
                                             1 / self.tau, positives_of(batch["item"]))}

    def stages(self) -> Sequence[Stage]:
        """One stage; biases, norms and τ are not decayed."""
        flat = [p for p in self.parameters() if p.dim() < 2]
        rest = [p for p in self.parameters() if p.dim() >= 2]
        return [Stage(parameters=[{"params": rest}, {"params": flat, "weight_decay": 0.0}])]

    def patch_embeddings(self, batch: dict) -> Tensor:
        """Unit rows [b, p, width] of single patches, to compare with texts: a map of
        where a class is (zero-shot segmentation)."""
        return unit(self.patch(batch[self.settings.patches].values))


def balanced_rows(scores: Tensor, per_class: int, depth: int) -> Tensor:
    """Which captions classes choose: row numbers, in the order in which they are taken.

    scores [n, c]: caption to prototype. Each class lists its `depth` best captions; the
    class whose list ends lowest chooses first; each takes its first `per_class` that are
    still there.

    Raises ValueError if a number is out of range.
    """
    if not 1 <= per_class <= depth <= len(scores):
        raise ValueError(f"need 1 ≤ per_class ≤ depth ≤ rows, got per_class {per_class}, "
                         f"depth {depth}, {len(scores)} rows")
    best = scores.topk(depth, dim=0)  # [depth, c]
    taken: dict[int, None] = {}
    for c in best.values[-1].argsort(stable=True).tolist():
        left = [row for row in best.indices[:, c].tolist() if row not in taken]
        taken |= dict.fromkeys(left[:per_class])
    return torch.tensor(list(taken))


def concept_balanced(pairs: Pairs, column: str, prototypes: Tensor, per_class: int,
                     depth: int | None = None) -> Pairs:
    """The data engine: the pairs whose captions cover the classes evenly.

    column: features of the captions, in the space of `prototypes` [c, d]. depth: length
    of a class's list (None: 25 · per_class, as in the paper, or all there are).
    """
    depth = min(depth or 25 * per_class, len(pairs))
    scores = unit(pairs[column]) @ unit(prototypes).T
    return pairs.select(balanced_rows(scores, per_class, depth))
