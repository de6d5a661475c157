"""GSSF: a bilinear score with few weights, on the diagonal and in blocks beside it.

Paper: GSSF: Generalized Structural Sparse Function for Deep Cross-modal Metric
Learning. Diao, Zhang, Gao, Zhu, Chen, Lu, IEEE Transactions on Image Processing 2024,
arXiv 2410.15266.

Claim: the cosine weighs all channels alike and never compares channel m of one side
with another channel of the other. A full bilinear form does both, and has D² weights.
Between them lies a sweet spot: a weight for each channel (Diag), and full forms inside
small groups of channels (Block-Diag).

Use it when: the embeddings are given, some channels are worse than others or belong
together in groups that you know, and the index of the gallery must stay. Not when the
heads learn anyway: on our 400 pairs the cosine did better, and beside an M that moved a
tenth as fast as the heads it was as good.

Equations, x and y the unit rows of a pair, x_g the g-th group of `block` channels:
    s(x, y) = Σ_m w_m x_m y_m + Σ_g x_gᵀ W_g y_g = xᵀ M y,  M = diag(w) + blockdiag(W)
    loss = InfoNCE of s / temperature, both directions; the temperature is learned
    w = 1 + change; change and W start at 0, that is at the cosine
Only the side that asks is turned: x asks with xᵀM, y asks with M y, and the rows of the
gallery stay as they were. s is bilinear, not a metric: not symmetric, not bounded by 1,
and negative where it wants to be.

Frozen: both encoders; the heads and M learn (the claims also freeze the heads).
Exact property: w = 1 and W = 0 is the cosine; blocks of one channel are a diagonal; one
block of all channels is the full form; no weight outside the blocks exists, so none
learns; s is linear in x and in y.
Deviations: InfoNCE with a learned temperature in place of the hinge with the hardest
negative of the host frameworks. s can grow without bound, and a hinge is satisfied by
that alone; here the temperature takes the scale, in every arm. Heads on frozen pooled
features in place of region features and trained towers.
Reconstructed: no code was published, and of the paper we could read the abstract and a
summary by others. That summary gives the general form xᵀ(W ∘ U)y with a fixed mask U
and Diag; Block-Diag follows from it. Our choice: the sum of both terms, their start at
the cosine, the size of the blocks (8; 32 at full scale), consecutive channels as
groups, no bound on the weights, and AdamW's weight decay on change and W, which pulls
towards the cosine.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alignkit.data import Pairs
from alignkit.parts import Method, Settings, Stage


@dataclass(frozen=True)
class GssfSettings(Settings):
    """Settings of a dual encoder, and: diagonal, are there weights w; block, channels
    of a group (0: no blocks, width: one block, the full form); with neither it is the
    cosine. learn_heads: if not, only the score and its temperature learn."""

    temperature: float = 0.07
    learn_temperature: bool = True
    diagonal: bool = True
    block: int = 8
    learn_heads: bool = True

    def __post_init__(self):
        if self.block < 0 or self.block and self.width % self.block:
            raise ValueError(f"block must be 0 or divide the width {self.width}, got "
                             f"{self.block}")


def weighed(rows: Tensor, w: Tensor, blocks: Tensor | None) -> Tensor:
    """rows · (diag(w) + blockdiag(blocks)), [n, d]; not unit any more.

    Args:
        rows: [n, d]. w: [d]. blocks: W [groups, block, block], groups · block = d, or
            None: the diagonal alone.
    Raises:
        ValueError: the shapes do not fit.
    """
    n, d = rows.shape
    if w.shape != (d,) or blocks is not None and (
            blocks.dim() != 3 or blocks.shape[1] != blocks.shape[2]
            or blocks.shape[0] * blocks.shape[1] != d):
        raise ValueError(f"rows [n, {d}] need w [{d}] and blocks [groups, b, b] with "
                         f"groups · b = {d}, got {tuple(w.shape)} and "
                         f"{None if blocks is None else tuple(blocks.shape)}")
    turned = rows * w
    if blocks is not None:
        groups = rows.view(n, *blocks.shape[:2])
        turned = turned + torch.einsum("ngb,gbc->ngc", groups, blocks).reshape(n, d)
    return turned


class Gssf(Method):
    """Two heads and the sparse bilinear score."""

    settings: GssfSettings

    def build(self, settings: GssfSettings, pairs: Pairs) -> None:
        super().build(settings, pairs)
        d, b = settings.width, settings.block
        self.change = nn.Parameter(torch.zeros(d)) if settings.diagonal else None
        self.blocks = nn.Parameter(torch.zeros(d // b, b, b)) if b else None

    def stages(self) -> list[Stage]:
        """One; without `learn_heads` the heads rest."""
        if self.settings.learn_heads:
            return [Stage()]
        score = [p for name, p in self.named_parameters() if "heads." not in name]
        return [Stage("score", parameters=[{"params": score}])]

    def weights(self) -> tuple[Tensor, Tensor | None]:
        """w [width] and W [groups, block, block] (None without blocks)."""
        w = torch.ones(self.settings.width, device=self.temperature().device)
        return w if self.change is None else 1 + self.change, self.blocks

    def matrix(self) -> Tensor:
        """M [width, width]: s(x, y) = xᵀ M y."""
        w, blocks = self.weights()
        return w.diag() if blocks is None else w.diag() + torch.block_diag(*blocks)

    def rows(self, batch: dict) -> dict[str, Tensor]:
        """Unit rows [b, width] by modality."""
        return super().encode(batch)

    def encode(self, batch: dict) -> dict[str, dict[str, Tensor]]:
        """By modality: `row`, the unit row [b, width] that a gallery holds, and
        `asking`, the same row turned, as it asks: with M if it is of the first
        modality, with Mᵀ if of the second. So both directions have one score."""
        first = next(iter(self.settings.towers))
        w, blocks = self.weights()
        outputs = {}
        for name, row in self.rows(batch).items():
            if blocks is None or name == first:
                asking = weighed(row, w, blocks)
            else:
                asking = weighed(row, w, blocks.transpose(1, 2))
            outputs[name] = {"row": row, "asking": asking}
        return outputs

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        """InfoNCE of the first modality, asking, with the rows of the second."""
        first, second = self.settings.towers
        rows = {first: outputs[first]["asking"], second: outputs[second]["row"]}
        return super().losses(rows, batch, progress)

    def score(self, query: dict[str, Tensor], gallery: dict[str, Tensor]) -> Tensor:
        """s of every query with every row of the gallery, [n_query, n_gallery]."""
        return query["asking"] @ gallery["row"].T
