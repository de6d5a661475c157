"""Cross-modal backward compatibility: a new model's queries search an old model's gallery.

Paper: Towards Cross-modal Backward-compatible Representation Learning for Vision-Language
Models (XBT). Jang, Lim, ICCV 2025, arXiv 2405.14715.

Claim: when a stronger vision-language model arrives, the gallery need not be embedded anew.
A projection φ from the new space to the old one, learned from texts alone with Gaussian
noise on its input, also serves pictures, which it has never seen: new queries find more in
the old gallery than old queries did, from text to picture and from picture to text. A few
pairs of pictures and texts, and few weights, then adapt the new model.

Use it when: a large gallery holds old embeddings, the new model is clearly the stronger one
in both directions, and texts are plenty. Try an orthogonal map (Procrustes, centred) first:
it needs no training. Watch both directions, and the answers that break.

Equations, f_o and f_n the unit embeddings of the old and the new model, t a text, v a
picture; û = u / ‖u‖:
    φ(x) = unit(W x + W₂ norm(gelu(W₁ x)))                              (norm: layer norm)
    stage 1, texts alone:  x̃ = unit(f_n(t) + σ e / √d),  e ~ N(0, 1)^d,  y = f_o(t)
        L = InfoNCE(φ(x̃), y; τ) + mean(1 − φ(x̃) · y)
    stage 2, few pairs:  x_m = unit(f_n,m + B_m A_m f_n,m) for both modalities, B_m = 0 first,
        ŷ = φ₀(f_n(t)), φ₀ the φ of stage 1, kept:  the old model is not asked any more
        L = InfoNCE(φ(x_v), ŷ) + InfoNCE(φ(x_v), φ(x_t)) + weight · InfoNCE(φ(x_t), ŷ)
    query: φ(x);  score: its cosine with the old embeddings of the gallery
Compatible: score(new query, old gallery) > score(old query, old gallery), both directions.
Without training: R = U Vᵀ of U S Vᵀ = f_n(t)ᵀ f_o(t) (Procrustes), a ridge map, and the arc
from the old query to the mapped new one (which asks both models).

Frozen: both models. Trained: φ; in stage 2 φ, A and B.
Exact property: if the new embeddings are the old ones turned by an orthogonal matrix,
Procrustes finds the turn and every rank is that of the old model; B = 0 leaves every
embedding as it is; the gain is the share of answers that were mended less the broken ones.
Deviations: no repository of the authors was found, nor could the paper's body be read: the
pipeline is from its abstract and from an independent re-evaluation (Ricci, Biondi, Pernici,
Spherical Interpolation for Backward-Compatible Multimodal Representations, 2026), and no
code could be run beside this. LoRA acts on the embeddings, which are cached, and not inside
the new model's layers. The linear maps are less the texts' means, which here is stronger
than the rows as they are. Spaces of unequal width: the narrower one is filled with zeros.
Reconstructed: the shape of φ, both losses and τ (0.07), where the noise stands and how large
it is, the targets and the rank of stage 2.
Checked by a second reader: both stages against plain loops (values, gradients by differences)
and the closed forms by their defining properties; the headline on eight other seeds (from
5000 on): holds, +0.078 [+0.068, +0.089]; there, with the last step in place of the best on
validation pairs, pictures gain .084 [.073, .094] and texts lose .024 [.001, .047].
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignkit.data import Pairs
from alignkit.evaluation import procrustes, ridge_map
from alignkit.methods.geodesic_mixup import arc
from alignkit.parts import LowRank, Method, Stage, Temperature, info_nce, positives_of, unit

MAPS = ("procrustes", "ridge")


@dataclass(frozen=True)
class XbtSettings:
    """towers, old: modality -> column of its new and of its old unit embeddings. sigma: the
    noise's length. temperature: τ. rank: of A and B. weight: of stage 2's third loss.
    texts_first: whether stage 2 follows on stage 1; without it φ starts anew and the target
    is the old model's own embedding. map, ridge: of `LinearMap`, and share: how far it goes
    on the arc from the old query to the mapped one."""

    towers: Mapping[str, str] = field(
        default_factory=lambda: {"image": "image_new", "text": "text_new"})
    old: Mapping[str, str] = field(
        default_factory=lambda: {"image": "image_old", "text": "text_old"})
    sigma: float = 1.0
    temperature: float = 0.07
    rank: int = 8
    weight: float = 1.0
    texts_first: bool = True
    map: str = "procrustes"
    ridge: float = 0.1
    share: float = 1.0

    def __post_init__(self):
        if self.map not in MAPS:
            raise ValueError(f"map must be one of {', '.join(MAPS)}, got {self.map!r}")
        if not (self.sigma >= 0 and self.ridge >= 0 and 0 <= self.share <= 1):
            raise ValueError("sigma and ridge must be 0 or more and share between 0 and 1, "
                             f"got {self.sigma}, {self.ridge} and {self.share}")


def corpus(pairs: Pairs) -> Pairs:
    """The texts of stage 1: the table `corpus`, with the texts' embeddings of both models;
    without it the texts of the pairs, one an item."""
    found = pairs.tables.get("corpus")
    return pairs.select(pairs.first_of_item()) if found is None else found


def noisy(x: Tensor, sigma: float) -> Tensor:
    """unit(x + σ e / √d), e ~ N(0, 1): noise of about length σ on unit rows x [n, d]."""
    return unit(x + sigma * torch.randn_like(x) / x.shape[-1] ** 0.5)


class OldQueries(Method):
    """Queries by the old model itself: what an upgrade must beat. `encode` gives queries
    under the modalities' names and the gallery under those of its columns."""

    settings: XbtSettings
    traits = frozenset({"untrained"})

    def build(self, settings: XbtSettings, pairs: Pairs) -> None:
        """Nothing is learned."""

    def stages(self) -> list[Stage]:
        return []

    def query(self, batch: dict, name: str) -> Tensor:
        """Unit rows of modality `name` in the old space."""
        return batch[self.settings.old[name]]

    def encode(self, batch: dict) -> dict[str, Tensor]:
        s = self.settings
        asked = {name: unit(self.query(batch, name)) for name, column in s.towers.items()
                 if column in batch}
        return asked | {c: unit(batch[c]) for c in s.old.values() if c in batch}


class LinearMap(OldQueries):
    """New queries through an orthogonal or a ridge map, fitted on texts in closed form."""

    def build(self, settings: XbtSettings, pairs: Pairs) -> None:
        new, old = (pairs[m["text"]].shape[1] for m in (settings.towers, settings.old))
        self.register_buffer("map", torch.eye(new, old))
        self.register_buffer("new_mean", torch.zeros(new))
        self.register_buffer("old_mean", torch.zeros(old))

    def stages(self) -> list[Stage]:
        return [Stage("closed form", view=corpus, solve=self.solve)]

    def solve(self, texts: Pairs) -> None:
        """Fit the map on paired embeddings of texts, less their means."""
        s = self.settings
        x, y = (texts[m["text"]].to(self.map) for m in (s.towers, s.old))
        self.new_mean.copy_(x.mean(0))
        self.old_mean.copy_(y.mean(0))
        x, y = x - self.new_mean, y - self.old_mean
        if s.map == "ridge":
            found = ridge_map(x, y, s.ridge)
        else:
            wide = max(x.shape[1], y.shape[1])
            found = procrustes(*(F.pad(z, (0, wide - z.shape[1])) for z in (x, y)))
        self.map.copy_(found[:x.shape[1], :y.shape[1]])

    def query(self, batch: dict, name: str) -> Tensor:
        s = self.settings
        mapped = unit((batch[s.towers[name]] - self.new_mean) @ self.map + self.old_mean)
        return mapped if s.share == 1 else arc(mapped, unit(batch[s.old[name]]), s.share)


class _Projection(nn.Module):
    """φ before its unit length: a linear map and an MLP beside it, [n, d] -> [n, d_old]."""

    def __init__(self, new: int, old: int):
        super().__init__()
        self.linear = nn.Linear(new, old)
        self.mlp = nn.Sequential(nn.Linear(new, 2 * new), nn.GELU(), nn.LayerNorm(2 * new),
                                 nn.Linear(2 * new, old))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.mlp(x)


class Xbt(OldQueries):
    """Stage 1: φ from texts alone."""

    traits = frozenset({"no pairs"})

    def build(self, settings: XbtSettings, pairs: Pairs) -> None:
        new, old = (pairs[m["text"]].shape[1] for m in (settings.towers, settings.old))
        self.phi = _Projection(new, old)
        self.temperature = Temperature(settings.temperature)

    def stages(self) -> list[Stage]:
        return [Stage("texts", lambda pairs: self._texts(corpus(pairs)),
                      [{"params": list(self.phi.parameters())}])]

    def _texts(self, pairs: Pairs) -> Pairs:
        return pairs.only(self.settings.towers["text"], self.settings.old["text"])

    def query(self, batch: dict, name: str) -> Tensor:
        x = batch[self.settings.towers[name]]
        alone = self.settings.towers["image"] not in batch
        if self.training and name == "text" and alone:  # stage 1
            x = noisy(x, self.settings.sigma)
        return self.phi(x)

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        z, y = outputs["text"], outputs[self.settings.old["text"]]
        return {"contrastive_loss": self._info_nce(z, y, batch),
                "cosine_loss": (1 - (z * y).sum(-1)).mean()}

    def _info_nce(self, a: Tensor, b: Tensor, batch: dict) -> Tensor:
        return info_nce(a, b, self.temperature(), positives_of(batch["item"]))


class XbtPairs(Xbt):
    """Stage 2 after stage 1 (or without it): φ and low-rank updates from few pairs."""

    traits = frozenset()

    def build(self, settings: XbtSettings, pairs: Pairs) -> None:
        super().build(settings, pairs)
        self.low_rank = nn.ModuleDict({
            name: LowRank(pairs[column].shape[1], settings.rank)
            for name, column in settings.towers.items()})
        self.first = deepcopy(self.phi).requires_grad_(False)  # φ₀

    def stages(self) -> list[Stage]:
        trained = [*self.phi.parameters(), *self.low_rank.parameters()]
        before = [*super().stages(), Stage("keep", solve=self._keep)]
        return [*(before if self.settings.texts_first else ()),
                Stage("pairs", parameters=[{"params": trained}])]

    def _keep(self, pairs: Pairs) -> None:
        self.first.load_state_dict(self.phi.state_dict())

    def query(self, batch: dict, name: str) -> Tensor:
        column = self.settings.towers[name]
        return super().query({**batch, column: unit(self.low_rank[name](batch[column]))},
                             name)

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        s = self.settings
        if "image" not in outputs:
            return super().losses(outputs, batch, progress)
        seen, said, target = outputs["image"], outputs["text"], outputs[s.old["text"]]
        if s.texts_first:
            target = unit(self.first(batch[s.towers["text"]]))
        return {"target_loss": self._info_nce(seen, target, batch),
                "pair_loss": self._info_nce(seen, said, batch),
                "text_loss": s.weight * self._info_nce(said, target, batch)}
