"""MINIMA: a data engine teaches a matcher modalities for which no labelled pairs exist.

Paper: MINIMA: Modality Invariant Image Matching. Ren, Jiang, Li, Liang, Zhou, Bai, CVPR
2025, arXiv 2412.19412.

Claim: matchers trained on visible pictures fail between visible and infrared, depth or
event pictures, because labelled pairs across modalities are scarce. An engine that turns
visible pictures into other modalities pixel by pixel keeps every label; fine-tuned on
random pairs of modalities, the same matcher finds matches across them.

Use it when: your matcher works between pictures of one kind, you need it across two kinds,
and a generator can make the second kind from the first, pixel on pixel. Not when a few
hundred real aligned pairs are at hand (train on them), nor for larger turns or changes of
scale than the matcher knows: the engine changes what pixels look like, not the geometry.

Equations, for cells i of one view and j of the other, f [cells, C] their features:
    S_ij = ⟨f_i, f_j⟩ / (C · t),  t = 0.1;   P = softmax_rows(S) · softmax_columns(S)
    labels M: j is the cell nearest to H(i), and i the cell nearest to H⁻¹(j)
    loss = −α / |M| · Σ_{ij ∈ M} (1 − P_ij)^γ log P_ij,  α = 0.25, γ = 2,
    P kept inside [10⁻⁶, 1 − 10⁻⁶]
    each step: modality u uniform from the list, side b ∈ {0, 1}; the view b of the visible
    pair is replaced by its version in u, H stays
    event: g = log(1 + grey), D = g(i + dy, j + dx) − g(i, j); white, in one tone where
    D > c and in another where D < −c, c ~ U(0.05, 0.5), |dx|, |dy| ∈ {1, 2, 3}

Frozen: nothing; the matcher is trained on visible pairs first, then on random ones.
Exact property: with the list ('visible',) the loss is the visible matcher's, bit for bit;
labels do not depend on u and b. P is Pᵀ when the views change places, its rows and columns
sum to at most 1. A picture without edges, or any c above max |D|, gives a white event
picture; a mirrored picture with −dx gives the mirrored event picture.
Deviations: pairs are two homographies of one photograph, turned and shifted uniformly (the
authors: views of MegaDepth with depth), no colour, 96 pixels; LoFTR's coarse level alone
(LoFTR_minima src/loftr/utils/coarse_matching.py:109–119), without the fine level and its
loss; a small convolutional matcher of stride 4 at small scale, LoFTR's own backbone and
attention (kornia's, with random weights) at gpu and full. The loss is LoFTR's sparse variant
(src/losses/loftr_loss.py:57–61, 82–85). The authors' script takes the dense one
(train_orders/minima_loftr.sh names loftr_ds_dense.py; loftr_loss.py:87–93), which adds the
mean of −α P^γ log(1 − P) over all other pairs of cells: of a trained matcher (seed 100) its
gradient was 5 · 10⁻⁵ of the first term's. Labels are also left out where a visible window has no contrast,
and the first cell counts (supervision.py:76–81 sends what falls outside to it, then ignores
it). A corner is compared with itself (test_relative_homo_depth.py:164–174, 241–244 sorts
both quadrangles, which hides a mirror). AdamW's decay 10⁻⁴, one rate; seeds, not time()
(datasets/megadepth.py:87–88). LightGlue and RoMa are not built. Run beside the authors' code
on the same tensors: loss and gradient (sparse), labels but the first cell's, events and AUC
(src/utils/metrics.py:160–176) are equal.
Reconstructed: five of the six generators are networks of others (a diffusion editor with
LoRA, Depth-Anything-V2, DSINE, Anime2Sketch, Paint Transformer); here cheap filters stand
in for them (`alignkit.data.modalities`), so what is learned is their kind of difference.
Event is the authors' rule (data_engine/tools/event/event_transfer.py:14–34), as is depth's
colouring (tools/depth/depth_transfer.py:28–33).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alignkit.data import Pairs
from alignkit.data import modalities as make
from alignkit.evaluation import nearest_cells
from alignkit.parts import Method
from alignkit.parts.views import (
    cell_points, local_contrast, random_homographies, transfer, warp,
)  # fmt: skip
from alignkit.training.randomness import seed_of

MODALITIES = ("visible", "infrared", "depth", "normal", "sketch", "paint", "event")
TRAINED = ("visible", "infrared", "depth", "normal")  # the authors' released list
SMALLEST = 1e-6  # P is kept this far from 0 and 1: outside there is no gradient


@dataclass(frozen=True)
class MinimaSettings:
    """modalities: the list that u is drawn from. matcher: 'small' or 'loftr'; width: of
    the small one's features. temperature (t), alpha (α), gamma (γ): of the loss.
    contrast: the least standard deviation around a cell with a label."""

    modalities: tuple[str, ...] = TRAINED
    matcher: str = "small"
    width: int = 64
    temperature: float = 0.1
    alpha: float = 0.25
    gamma: float = 2.0
    contrast: float = 0.03


# The data engine ----------------------------------------------------------------------
def engine(pairs: Pairs, seed: int = 0, size: int = 128) -> Pairs:
    """`pairs` with a grey column [n, 1, size, size] in 0 … 1 for each of `MODALITIES`, all
    made of `image`, pixel by pixel. What is random (tones, an event camera's shift and
    threshold) is drawn for each picture from seed and id.

    Raises ValueError without pictures.
    """
    if "image" not in pairs.columns:
        raise ValueError(f"pairs needs pictures in a column image; there are "
                         f"{sorted(pairs.columns)}")
    made = [_versions(pairs.select([row]), seed, size) for row in range(len(pairs))]
    return pairs.with_columns(**{name: torch.cat([one[name] for one in made])
                                 for name in MODALITIES})


def _versions(row: Pairs, seed: int, size: int) -> dict[str, Tensor]:
    """Modality -> [1, 1, size, size] of one picture."""
    g = torch.Generator().manual_seed(seed_of(seed, "engine", row.ids[0]))
    rgb = make.as_tensor(row["image"][0], size)
    grey = make.luminance(rgb)
    near = make.relief(grey)
    mix = torch.rand(1, 3, generator=g)
    shift = torch.randint(1, 4, (1, 2), generator=g)
    shift = shift * (2 * torch.randint(2, (1, 2), generator=g) - 1)
    threshold = 0.05 + 0.45 * torch.rand(1, generator=g)
    tones = torch.rand(1, 5, generator=g)
    return {"visible": grey, "infrared": make.infrared(rgb, mix / mix.sum(), tones),
            "depth": make.depth(near), "normal": make.normal(near),
            "sketch": make.sketch(grey), "paint": make.paint(grey),
            "event": make.event(grey, threshold, shift)}


# The matcher --------------------------------------------------------------------------
def dual_softmax(scores: Tensor) -> Tensor:
    """P of scores S [n, p, q]: softmax over rows times softmax over columns."""
    return scores.softmax(-1) * scores.softmax(-2)


def focal_loss(scores: Tensor, labels: Tensor, alpha: float = 0.25,
               gamma: float = 2.0) -> Tensor:
    """The card's loss of S [n, p, q] on the labels [m, 3] (n, i, j); 0 if there are none."""
    n, i, j = labels.unbind(1)
    # log P of the labelled cells alone: P itself would be three times the memory.
    log_p = (2 * scores[n, i, j] - scores.logsumexp(2)[n, i] - scores.logsumexp(1)[n, j])
    log_p = log_p.clamp(math.log(SMALLEST), math.log1p(-SMALLEST))
    return -(alpha * (1 - log_p.exp()) ** gamma * log_p).sum() / max(1, len(labels))


def cell_labels(homography: Tensor, usable: Tensor, view: int, stride: int) -> Tensor:
    """M as [m, 3] (n, i, j): cells of two views that `homography` [n, 3, 3] makes each
    other's nearest; usable bool [n, cells], of the first view."""
    points, side = cell_points(view, stride).to(homography), -(-view // stride)
    here = torch.arange(side**2, device=homography.device)

    def nearest(h: Tensor) -> Tensor:  # −1: outside
        place = (transfer(h, points) / stride).round().nan_to_num(-1)
        inside = ((place >= 0) & (place < side)).all(-1)
        x, y = place.unbind(-1)
        return torch.where(inside, y * side + x, -1).long()

    there, back = nearest(homography), nearest(torch.linalg.inv(homography))
    mutual = (there >= 0) & (back.gather(1, there.clamp(min=0)) == here)
    n, i = (mutual & usable).nonzero(as_tuple=True)
    return torch.stack([n, i, there[n, i]], 1)


class Minima(Method):
    """A matcher of two views, trained on random pairs of modalities."""

    settings: MinimaSettings
    traits = frozenset({"no pairs"})  # both views are made of one row

    def build(self, settings: MinimaSettings, pairs: Pairs) -> None:
        small = settings.matcher == "small"
        self.net = _Small(settings.width) if small else _Loftr()
        self.view = 3 * pairs["visible"].shape[-1] // 4 // 8 * 8

    def collate(self, rows: Pairs, generator: torch.Generator) -> dict:
        names = self.settings.modalities
        u = torch.randint(len(names), (len(rows),), generator=generator)
        side = torch.randint(2, (len(rows), 1, 1, 1), generator=generator)
        other = torch.stack([rows[name] for name in names])[u, torch.arange(len(rows))]
        return self.views(rows["visible"], other, side, generator)

    def views(self, visible: Tensor, other: Tensor, side: Tensor | int,
              generator: torch.Generator, angle: float = 10.0) -> dict:
        """Two views of pictures [n, 1, s, s]: `other` is the first where side is 1 (0 or
        1, [n, 1, 1, 1] or one), else the second; what joins them does not depend on it. angle:
        the largest turn of each, in degrees.

        homography: first view -> second; usable: cells of the first with contrast."""
        n, size = len(visible), visible.shape[-1]
        side = torch.as_tensor(side).bool()
        h0, h1 = (random_homographies(n, size, self.view, generator, angle=angle)
                  for _ in range(2))
        first = warp(torch.where(side, other, visible), h0, self.view)
        second = warp(torch.where(side, visible, other), h1, self.view)
        contrast = local_contrast(warp(visible, h0, self.view))
        stride = self.net.stride
        flat = contrast[:, 0, ::stride, ::stride].flatten(1) < self.settings.contrast
        return {"first": first, "second": second, "usable": ~flat,
                "homography": h1 @ torch.linalg.inv(h0)}

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """Features [n, C, cells, cells] of each view that is there."""
        return {name: self.net(batch[name]) for name in ("first", "second") if name in batch}

    def scores(self, first: Tensor, second: Tensor) -> Tensor:
        """S [n, cells, cells] of two views' features, row i of the first with row i."""
        a, b = self.net.together(*(f.flatten(2).mT for f in (first, second)))
        return a @ b.mT / (a.shape[-1] * self.settings.temperature)

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        s = self.settings
        labels = cell_labels(batch["homography"], batch["usable"], self.view, self.net.stride)
        scores = self.scores(outputs["first"], outputs["second"])
        with torch.autocast(scores.device.type, enabled=False):
            scores = scores if scores.dtype == torch.float64 else scores.float()
            return {"coarse_loss": focal_loss(scores, labels, s.alpha, s.gamma)}

    @torch.no_grad()
    def match(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        """For each cell of the first views: its pixel [cells, 2], the pixel of its best
        cell in the second [n, cells, 2], and whether each is the other's best."""
        outputs = self.encode(batch)
        best, mutual = nearest_cells(dual_softmax(self.scores(*outputs.values())))
        points = cell_points(self.view, self.net.stride).to(best.device)
        return points, points[best], mutual

    def score(self, query, gallery) -> Tensor:
        """How sure a picture's cells are of their best one in another, the mean of P:
        [n_query, n_gallery] of outputs of `encode`."""
        return torch.stack([torch.cat([
            dual_softmax(self.scores(q[None], g[None])).amax(-1).mean(-1)
            for g in gallery]) for q in query])


class _Small(nn.Module):
    """Convolutions to features of stride 4, without attention; ≈ 0.13 million numbers."""

    stride = 4

    def __init__(self, width: int):
        super().__init__()
        def block(d_in: int, d_out: int, stride: int = 1) -> list[nn.Module]:
            return [nn.Conv2d(d_in, d_out, 3, stride, 1), nn.GroupNorm(8, d_out), nn.SiLU()]

        self.down = nn.Sequential(*block(1, width // 2, 2), *block(width // 2, width, 2))
        self.deep = nn.Sequential(*block(width, width), *block(width, width),
                                  *block(width, width), nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.down((x - 0.5) / 0.25)
        return x + self.deep(x)

    def together(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return first, second


class _Loftr(nn.Module):
    """LoFTR's coarse level (kornia's modules, random weights): stride 8, width 256, views
    attend to themselves and to each other."""

    stride = 8

    def __init__(self):
        super().__init__()
        from kornia.feature import LoFTR

        whole = LoFTR(pretrained=None)
        self.backbone, self.position = whole.backbone, whole.pos_encoding
        self.attention = whole.loftr_coarse

    def forward(self, x: Tensor) -> Tensor:
        return self.position(self.backbone(x)[0])

    def together(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention(first, second)
