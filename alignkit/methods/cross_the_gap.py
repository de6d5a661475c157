"""Crossing the gap: turn a query into the other modality, and ask from there.

Paper: Cross the Gap: Exposing the Intra-modal Misalignment in CLIP via Modality
Inversion. Mistretta, Baldrati, Agnolucci, Bertini, Bagdanov, ICLR 2025, arXiv 2502.04263.

Claim: the contrastive loss ties pictures to texts and leaves distances among pictures,
and among texts, free. So a query finds rows of its own modality better after it has been
turned into the other one, and a task across modalities gets worse if it is done within
one. Towers that were also trained within a modality gain less.

Use it when: you doubt that one tower of a dual encoder measures similarity within its
modality, and want to test that without data or training; the text tower must take
embeddings in place of words. Not when queries must be fast (an inversion costs as much
as some hundred encodings), and not as proof of a cause: a cheap projection of the
features may do the same.

Equations, t(e) the text tower on the template with e in the place of its last words, p(e)
the picture tower on a picture whose patch embeddings are e, both unit rows:
    OTI  e* = argmin_e 1 − t(e) · image,   the query becomes t(e*)
    OVI  e* = argmin_e 1 − p(e) · text,    the query becomes p(e*)
e starts as noise of deviation 0.02 and is moved by AdamW, 2e-2, with decay 0.01: 150
steps for `words` embeddings, 1000 for `patches` embeddings, which are repeated by the
nearest place to as many as a picture has. Then cosines with the untouched gallery.

Frozen: both towers, whole; e alone is optimised, for each query by itself.
Exact property: weights stay bit for bit; a query's e does not depend on who is inverted
beside it, up to rounding, which a long inversion in float32 makes large (a row alone or
among 16 after 300 steps: cosines down to 0.98); if t(e*) were the query itself, retrieval
would be the plain one, so all difference comes from what the other tower cannot reach.
Deviations: small towers trained by us (see `parts.two_towers`) in place of CLIP, with
patches from a convolutional stem and a text tower that sees both ways and is read at its
last piece; the rows' losses are summed, not averaged, which changes Adam by its eps
alone; float32; 300 steps for OVI at the small scale.
Reconstructed: nothing; losses, starting noise, rates, decay, steps, the template and the
nearest-neighbour repetition were read in the official code. The conclusion is contested:
"Reevaluating the Intra-Modal Misalignment Hypothesis in CLIP" (arXiv 2603.16100, of
which we know the abstract and the introduction only) argues that these distances are not
as free as that.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from alignkit.data import Pairs, Tokens
from alignkit.parts import Method, optimise_inputs
from alignkit.parts.two_towers import TwoTowers, TwoTowersSettings, pixels_of


@dataclass(frozen=True)
class CrossTheGapSettings:
    """The towers' shapes and vocabulary; template: what stands before the pseudo-words;
    words, patches: embeddings a query has in OTI and OVI; steps of each; rate, decay and
    deviation of the start; chunk: queries inverted at a time."""

    towers: TwoTowersSettings
    vocabulary: tuple[str, ...]
    template: str = "a photo of"
    words: int = 1
    patches: int = 1
    word_steps: int = 150
    patch_steps: int = 1000
    lr: float = 2e-2
    weight_decay: float = 0.01
    start: float = 0.02
    chunk: int = 64

    def __post_init__(self):
        if min(self.words, self.patches, self.chunk) < 1 or min(
                self.word_steps, self.patch_steps) < 0:
            raise ValueError(f"words, patches and chunk must be 1 or more, steps 0 or "
                             f"more: got {self}")
        if self.patches > self.towers.patches:
            raise ValueError(f"patches is {self.patches}, but a picture has "
                             f"{self.towers.patches}")


def text_of(towers: TwoTowers, template: str, e: Tensor) -> Tensor:
    """t(e): unit rows [n, shared] of "template e_1 … e_R", e [n, R, width]."""
    ids = Tokens(*(x.to(e.device) for x in towers.tokens([template])))
    values = towers.words(ids).values.to(e.dtype)
    before, end = (part.expand(len(e), -1, -1) for part in (values[:, :-1], values[:, -1:]))
    spliced = torch.cat([before, e, end], dim=1)
    real = torch.ones(spliced.shape[:2], dtype=torch.bool, device=e.device)
    return towers.text_from(Tokens(spliced, real))


def picture_of(towers: TwoTowers, e: Tensor) -> Tensor:
    """p(e): unit rows [n, shared] of pictures whose patches are e [n, R, width], each
    repeated by the nearest place."""
    repeated = F.interpolate(e.transpose(1, 2), size=towers.settings.patches)
    return towers.image_from(repeated.transpose(1, 2))


def inverted(tower: Callable[[Tensor], Tensor], target: Tensor, start: Tensor, steps: int,
             lr: float = 2e-2, weight_decay: float = 0.01, chunk: int = 64) -> Tensor:
    """The inputs e* [n, R, width] of `tower` whose outputs come nearest to `target`.

    Args:
        tower: e [b, R, width] -> unit rows [b, d]. target: unit rows [n, d]. start: e at
            the beginning [n, R, width]. chunk: rows at a time.
    """
    if len(target) != len(start):
        raise ValueError(f"{len(target)} targets need as many starts, got {len(start)}")
    return torch.cat([
        optimise_inputs(lambda e, goal=goal: 1 - (tower(e) * goal).sum(1), first, steps,
                        lr, weight_decay)
        for goal, first in zip(target.split(chunk), start.split(chunk))])


class CrossTheGap(Method):
    """Two frozen towers and both inversions. Weights are put into `towers` after it is
    built; as built they are random."""

    settings: CrossTheGapSettings
    traits = frozenset({"untrained"})

    def build(self, settings: CrossTheGapSettings, pairs: Pairs) -> None:
        self.towers = TwoTowers(settings.towers, settings.vocabulary).requires_grad_(False)

    def collate(self, rows: Pairs, generator: torch.Generator) -> dict:
        """Pixels from 0 to 1 (from `image_pixels`, bytes, where there are any) and ids."""
        batch = {}
        if "image_pixels" in rows.columns:
            batch["pixels"] = rows["image_pixels"].float() / 255
        elif "image" in rows.columns:
            size = self.settings.towers.size
            batch["pixels"] = pixels_of(rows["image"], size).float() / 255
        if "text" in rows.columns:
            batch["tokens"] = self.towers.tokens(rows["text"])
        return batch

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """The towers' own unit rows [b, shared]."""
        outputs = {}
        if "pixels" in batch:
            outputs["image"] = self.towers.image(batch["pixels"])
        if "tokens" in batch:
            outputs["text"] = self.towers.text(batch["tokens"])
        return outputs

    def stages(self) -> list:
        """Nothing is trained."""
        return []

    def from_image(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """OTI: unit rows of pictures [n, shared] -> of the texts nearest to them."""
        s = self.settings

        def tower(e: Tensor) -> Tensor:
            return text_of(self.towers, s.template, e)

        start = self._start(image, s.words, generator)
        with torch.no_grad():
            return tower(inverted(tower, image, start, s.word_steps, s.lr, s.weight_decay,
                                  s.chunk))

    def from_text(self, text: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """OVI: unit rows of texts [n, shared] -> of the pictures nearest to them."""
        s = self.settings

        def tower(e: Tensor) -> Tensor:
            return picture_of(self.towers, e)

        start = self._start(text, s.patches, generator)
        with torch.no_grad():
            return tower(inverted(tower, text, start, s.patch_steps, s.lr, s.weight_decay,
                                  s.chunk))

    def _start(self, z: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
        noise = torch.randn(len(z), count, self.settings.towers.width, generator=generator)
        return self.settings.start * noise.to(z)
