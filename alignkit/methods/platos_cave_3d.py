"""Escaping Plato's cave: point clouds and texts matched in the subspace that they share.

Paper: Escaping Plato's Cave: Towards the Alignment of 3D and Text Latent Spaces. Hadgi,
Moschella, Santilli, Gomez, Huang, Rodolà, Melzi, Ovsjanikov, CVPR 2025, arXiv 2503.05283.

Claim: encoders of point clouds and of texts that were trained apart are hardly alike, and
mapping one space onto the other as a whole is little better than chance. Projected first
onto a small subspace that canonical correlation analysis (CCA) finds on some pairs, they
are matched and retrieved much better; what is shared is meaning, what is left is geometry.

Use it when: two frozen encoders are only weakly alike, you have some hundred pairs or more,
and a list of candidates is worth having: it costs one decomposition and no training. Choose
k and the ridge on validation, or keep all directions and take diag(S) for R, which found as
many; where the encoders are alike anyway, a ridge does as well.

Equations, x [n, p] the shapes' and y [n, q] the texts' features of n anchor pairs, both
less the anchors' means; C_x = xᵀx / (n − 1) + ridge · (mean variance) · I, C_y alike:
    U S Vᵀ = C_x^(−½) · xᵀy / (n − 1) · C_y^(−½)
    u = x C_x^(−½) U[:, :k],  v = y C_y^(−½) V[:, :k]        (the subspace; k = 50)
    affine: R = argmin ‖v R − u‖²;  score = cos(v R, u)
    local CKA: score = CKA of the anchors with (u_i, v_j) as one more pair, less the CKA
    of the anchors alone, times n + 1 (which changes no rank)
Everything is fitted on the anchors; queries are projected with what was fitted.

Frozen: both encoders; nothing is trained by steps, all is in closed form.
Exact property: without ridge R = diag(S), and the scores do not change with any invertible
affine map of either side's features; local CKA's scores are the rank-one formula's.
Deviations: the ridge is chosen on validation (the paper's was not found). The affine map
has no shift of its own: all rows are less the anchors' means, of which least squares gives
a shift of zero. Without the subspace, or with principal components in its place, the ridge
goes into the map, so that these baselines have one to choose, too; local CKA without the
subspace has none and is not whitened. Local CKA's rows carry no gradient: `evaluation`
measures, and detaches what it is given. The authors' code could not be had. A related one
by other authors (github.com/mayug/freeze-align, alignment/utils.py, run on the same
tensors): local CKA from whole kernels (line 219) and the assignment (332) give our figures;
the least squares map (190) and relative representations (360) do on centred rows, but there
rows are taken as they are and the map has no shift (fit_intercept=False, 196). Its
retrieval (247, sorted at 258) lets the index decide between equal scores; ours counts ties
against the model.
Reconstructed: the ridge, and cosine as the similarity after the map.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from alignkit.data import Pairs
from alignkit.evaluation import LocalCka, cca, local_cka, ridge_map
from alignkit.parts import Method, Stage, unit

SUBSPACES, ALIGNS = ("cca", "pca", "none"), ("affine", "local-cka", "relative")


@dataclass(frozen=True)
class PlatosCave3dSettings:
    """towers: of shapes, then of texts: name -> feature column. subspace: 'cca', 'pca'
    (each side's own principal components) or 'none'. k: its width (at most the anchors
    less one, and the narrower side's width). ridge: see `cca` and `ridge_map`. align:
    'affine' (texts to shapes), 'local-cka', or 'relative' (cosines with the anchors,
    Moschella et al. 2023, arXiv 2209.15430: a baseline)."""

    towers: Mapping[str, str] = field(
        default_factory=lambda: {"points": "points_features", "text": "text_features"})
    subspace: str = "cca"
    k: int = 50
    ridge: float = 1e-3
    align: str = "affine"

    def __post_init__(self):
        for name, known in (("subspace", SUBSPACES), ("align", ALIGNS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got "
                                 f"{getattr(self, name)!r}")
        if self.k < 1 or not self.ridge >= 0 or len(self.towers) != 2:
            raise ValueError(f"k must be 1 or more, ridge 0 or more, and towers two: got {self}")


def principal(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Mean [d] and the first k principal directions [d, k] of rows x [n, d]."""
    mean = x.mean(0)
    return mean, torch.linalg.svd(x - mean, full_matrices=False).Vh[:k].T


class PlatosCave3d(Method):
    """The subspace and the map, fitted on anchors by `fit`. As built it takes each
    side's first features as they are."""

    settings: PlatosCave3dSettings
    traits = frozenset({"untrained"})

    def build(self, settings: PlatosCave3dSettings, pairs: Pairs) -> None:
        s, n = settings, len(pairs)
        p, q = (pairs[column].shape[1] for column in s.towers.values())
        k = min(s.k, p, q, n - 1)
        u, v = (p, q) if s.subspace == "none" else (k, k)
        shapes = {"x_mean": (p,), "x_map": (p, u), "y_mean": (q,), "y_map": (q, v)}
        shapes |= {"affine": {"R": (v, u)},
                   "local-cka": {"n": (), "uu": (u, u), "vv": (v, v), "uv": (u, v)},
                   "relative": {"u_anchors": (n, u), "v_anchors": (n, v)}}[s.align]
        for name, shape in shapes.items():  # float64: local CKAs differ by little
            start = torch.eye(*shape) if len(shape) == 2 else torch.zeros(shape)
            self.register_buffer(name, start.double())

    def stages(self) -> list[Stage]:
        return [Stage("closed form", solve=self.solve)]

    def solve(self, anchors: Pairs) -> None:
        """Fit subspace and map on anchor pairs."""
        s = self.settings
        x, y = (anchors[column].to(self.x_mean) for column in s.towers.values())
        k = self.x_map.shape[1]
        if s.subspace == "cca":
            found = cca(x, y, k, s.ridge)[:4]
        elif s.subspace == "pca":
            found = *principal(x, k), *principal(y, k)
        else:
            found = x.mean(0), torch.eye(x.shape[1]), y.mean(0), torch.eye(y.shape[1])
        self._keep(zip(("x_mean", "x_map", "y_mean", "y_map"), found, strict=True))
        u, v = self.project(x, 0), self.project(y, 1)
        if s.align == "affine":  # with CCA the ridge is in the subspace already
            found = {"R": ridge_map(v, u, 0.0 if s.subspace == "cca" else s.ridge)}
        elif s.align == "local-cka":
            fitted = local_cka(u, v)
            found = {"n": torch.tensor(fitted.n), "uu": fitted.xx, "vv": fitted.yy,
                     "uv": fitted.xy}
        else:
            found = {"u_anchors": unit(u), "v_anchors": unit(v)}
        self._keep(found.items())

    def _keep(self, tensors) -> None:
        for name, tensor in tensors:
            getattr(self, name).copy_(tensor)

    def project(self, rows: Tensor, side: int) -> Tensor:
        """Features [m, d] of side 0 (shapes) or 1 (texts) in the subspace, [m, k]."""
        mean, matrix = ((self.x_mean, self.x_map), (self.y_mean, self.y_map))[side]
        return (rows.to(mean) - mean) @ matrix

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """Rows whose dot products are the scores; a column that the batch lacks is left
        out."""
        return {name: self._rows(self.project(batch[column], side), side)
                for side, (name, column) in enumerate(self.settings.towers.items())
                if column in batch}

    def _rows(self, z: Tensor, side: int) -> Tensor:
        if self.settings.align == "affine":
            return unit(z @ self.R if side else z)
        if self.settings.align == "relative":
            return unit(unit(z) @ (self.u_anchors, self.v_anchors)[side].T)
        zero = torch.zeros_like
        fitted = LocalCka(int(self.n), zero(self.uu[0]), zero(self.vv[0]), self.uu, self.vv,
                          self.uv)
        ones = z.new_ones(len(z), 1)
        if side:
            return torch.cat([fitted.y_rows(z), ones], 1)
        # Less the anchors' CKA, which all pairs have in common; else ties would be many.
        return (fitted.n + 1) * torch.cat([fitted.x_rows(z), -fitted.cka() * ones], 1)

    def score(self, query: Tensor, gallery: Tensor) -> Tensor:
        return query @ gallery.T
