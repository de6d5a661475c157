"""XBind: from a prompt in any modality to a solid, by two diffusion priors and a loss in
the shared space.

Paper: Any-to-3D Generation via Hybrid Diffusion Supervision. Fan, Ma, Ji, Sun, Ji, 2024,
arXiv 2411.14715.

Claim: one aligned encoder turns text, pictures and sounds into one embedding, and a solid
is optimised for it: a planar prior (2D) judges its pictures, a prior that knows the camera
(3D) their place in space, and a similarity loss between pictures and prompt, with random
augmentation, keeps it true to the prompt.

Use it when: you have an aligned encoder and diffusion priors of its space, no data of
solids with prompts, and minutes for each solid. The similarity loss helps where the priors
hear little of the prompt; beside good ones it changed nothing. Judge the result with another
encoder than the loss uses.

Equations, for a prompt with e = unit(E_m(prompt)), a picture I = render(field, camera) and
x = 2 I − 1 seen at level t, x_t = a_t x + s_t ε:
    g(prior) = s_t (ε̂(x_t; e, t, camera or none) − ε)       (ε̂ with guidance, no gradient)
    g = (planar · g_2D + view · g_3D) / (planar + view)
    L_HDS = ½ mean ‖x − stop(x − g)‖²                       (its gradient in x is g)
    L_MS = 1 − cos(E_img(A(I)), e)                          (A: crop, turn, tones, noise)
    loss = L_HDS + similarity · L_MS in the first phase, L_HDS in the second
Both are means over prompts (L_HDS the sum over a picture's pixels). Phases: 1. a soft
field of density; 2. geometry alone: its surface, where the density passes a twentieth of a
full cell, made steep, on shaded pictures; 3. colour: left out. (Without priors L_MS stays
in the second phase, which would have no loss.)

Frozen: both priors (one network, told the camera or not) and all encoders; only the field
is trained, one for each row.
Exact property: with ε̂ = ε the gradient of L_HDS is exactly 0; with similarity = 0 and
view = 0 it is plain SDS, step by step; L_MS is in [0, 2] and does not change with the
length of e.
Deviations: fields of 16³ cells without colour (the clouds have none), so phase 3 is left
out; phase 2 is a steep field, no tetrahedra (DMTet); parallel rays, cameras at eye level;
no regularisers of opacity; one picture of a solid a step; the pulls of the two priors are
weighed as they are, not made equally long first, and the weights divided by their sum; the
background is black for encoders, priors and fields alike,
so a field cannot win by its colour. A has no flips, for cameras tell left from right, and
no hues, for there are none. Priors are small denoisers of alignkit (Stable
unCLIP's and Zero-1-to-3's places), encoders are small heads in ImageBind's place.
Reconstructed: no code was published, and the project page, the abstract and a review were
read, not the paper: all weights, guidance, levels, steps and the place where the second
phase begins are ours, so is the camera prior's condition (e and the azimuth; how a
reference picture comes of a text is not said). "CDS", a loss of a baseline there, is not
built, for it is explained nowhere.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from alignkit.data import Pairs
from alignkit.parts import Method
from alignkit.parts.views import random_homographies, warp
from alignkit.parts.voxel_priors import (
    PriorSettings, VoxelPriors, signal_and_noise, view_of,
)  # fmt: skip
from alignkit.parts.voxels import VoxelField, around, render

CROP = 2  # pixels that A may shift a picture


@dataclass(frozen=True)
class XBindSettings:
    """prompt: the column of embeddings. priors: the frozen networks. planar, view: weights
    of the two priors; similarity: of L_MS. augment: whether L_MS sees A(I). guidance:
    of both priors. levels: lowest and highest t. coarse: part of the steps before the
    second phase."""

    prompt: str = "prompt"
    priors: PriorSettings = field(default_factory=PriorSettings)
    planar: float = 1.0
    view: float = 1.0
    similarity: float = 20.0
    augment: bool = True
    guidance: float = 2.0
    levels: tuple[float, float] = (0.05, 0.95)
    coarse: float = 0.75

    def __post_init__(self):
        if min(self.planar, self.view, self.similarity) < 0 or not (
                self.planar + self.view + self.similarity):
            raise ValueError("planar, view and similarity must be at least 0, and one above, "
                             f"got {self.planar}, {self.view} and {self.similarity}")
        if not 0 < self.levels[0] < self.levels[1] < 1:
            raise ValueError(f"levels must rise between 0 and 1, got {self.levels}")


def sds(x: Tensor, found: Tensor, noise: Tensor, weight: Tensor) -> Tensor:
    """The gradient of score distillation in x, weight · (found − noise), as a loss [n]:
    half its squared length, of which only x gets a gradient."""
    g = (weight * (found - noise)).detach()
    return (x - (x - g).detach()).square().flatten(1).sum(1) / 2


def similarity_loss(seen: Tensor, prompt: Tensor) -> Tensor:
    """L_MS [n]: 1 − cosine of the embeddings of pictures and of their prompts."""
    return 1 - torch.nn.functional.cosine_similarity(seen, prompt, dim=1)


class XBind(Method):
    """A field for each row of `pairs`, a prompt; rows are told apart by their ids."""

    traits = frozenset({"no pairs", "stopped"})
    settings: XBindSettings

    def build(self, settings: XBindSettings, pairs: Pairs) -> None:
        self.row = {name: i for i, name in enumerate(pairs.ids)}
        self.fields = VoxelField(len(pairs), settings.priors.side)
        self.priors = VoxelPriors(settings.priors).requires_grad_(False)
        if not settings.planar + settings.view:
            self.traits = self.traits - {"stopped"}  # L_MS alone is an ordinary loss

    def collate(self, rows: Pairs, generator: torch.Generator) -> dict:
        n, side = len(rows), self.settings.priors.side
        low, high = self.settings.levels

        def drawn(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator)

        return {
            "prompt": rows[self.settings.prompt],
            "row": torch.tensor([self.row[name] for name in rows.ids]),
            "azimuth": 2 * torch.pi * drawn(n), "t": low + (high - low) * drawn(n),
            "noise": torch.randn(n, 1, side, side, generator=generator),
            "crop": random_homographies(n, side + 2 * CROP, side, generator),
            "gain": 0.7 + 0.6 * drawn(n, 1, 1, 1),
            "grain": 0.1 * drawn(n, 1, 1, 1)
            * torch.randn(n, 1, side, side, generator=generator)}

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """Of each row: a picture of its solid from one side, embedded, and its prompt."""
        azimuth = batch.get("azimuth", batch["prompt"].new_zeros(len(batch["prompt"])))
        picture = self.picture(batch["row"], azimuth)
        return {"solid": self.priors.pictures(picture), "prompt": batch["prompt"]}

    def picture(self, row: Tensor, azimuth: Tensor, steep: bool = False) -> Tensor:
        """Pictures [n, 1, side, side] of these rows' solids at azimuths [n]."""
        return render(self.fields(row, steep), azimuth)[0]

    @torch.no_grad()
    def turntable(self, views: int = 8) -> Tensor:
        """Pictures [rows, views, 1, side, side] of all solids, as the last phase has them."""
        rows = torch.arange(len(self.row), device=self.fields.raw.device)
        steep = self.settings.coarse < 1
        return torch.stack([self.picture(rows, a.to(rows.device).expand(len(rows)), steep)
                            for a in around(views)], 1)

    def augmented(self, pictures: Tensor, batch: dict) -> Tensor:
        """A(I): cropped, turned, in perspective, lighter or darker, with grain."""
        if not self.settings.augment:
            return pictures
        room = pad(pictures, (CROP,) * 4)
        moved = warp(room, batch["crop"], pictures.shape[-1])
        return moved * batch["gain"] + batch["grain"]

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        s, losses = self.settings, {}
        second = progress >= s.coarse
        picture = self.picture(batch["row"], batch["azimuth"], second)
        if s.planar + s.view:
            losses["hybrid_loss"] = self.hybrid(picture, batch).mean()
        if s.similarity and (not second or not losses):
            seen = self.priors.pictures(self.augmented(picture, batch))
            losses["similarity_loss"] = (
                s.similarity * similarity_loss(seen, batch["prompt"]).mean())
        return losses

    def hybrid(self, picture: Tensor, batch: dict) -> Tensor:
        """L_HDS [n] of pictures [n, 1, side, side]."""
        s, x = self.settings, 2 * picture - 1
        a, noise = (part.view(-1, 1, 1, 1) for part in signal_and_noise(batch["t"]))
        noisy = (a * x + noise * batch["noise"]).detach()
        camera = view_of(batch["azimuth"])
        found = 0
        with torch.no_grad():
            for weight, view in ((s.planar, torch.zeros_like(camera)), (s.view, camera)):
                if weight:
                    found = found + weight * self.priors.denoiser(
                        noisy, batch["t"], batch["prompt"], view, s.guidance)
        return sds(x, found / (s.planar + s.view), batch["noise"], noise)
