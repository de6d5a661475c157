"""Dynamic reflections: richer input at test time, and how well two frozen encoders agree.

Paper: Dynamic Reflections: Probing Video Representations with Text Alignment. Zhu, Han,
Guibas, Patraucean, Ovsjanikov, ICLR 2026, arXiv 2511.02767.

Claim: an image and a text encoder that never met agree on who is near to whom, but less
than they could: one picture and one caption tell too little of a thing. With several
frames and several captions the same encoders agree about twice as well, along a power law
that saturates; the agreement with text is a probe of video encoders that needs no training.

Use it when: you want to know, without labels or training, which of several encoders sees
what texts tell, and have several views or captions a thing. Compare scores of one number
of things and neighbours alone, and give all encoders the same input.

Equations, for n things, x [n, d_x] and y [n, d_y] of one layer of each encoder:
    x_i = mean of the encoder over n_f frames, evenly from the first to the last
    y_i = mean over the tokens of n_c captions, joined to one text
    x, y := min(max(x, −Q), Q),  Q = mean over i of the quantile 0.95 of |x_i|
    N_x(i) = the k things j ≠ i of highest cosine with i
    A = 1/n Σ_i |N_x(i) ∩ N_y(i)| / k          (chance: k / (n − 1))
    layers: the pair with the highest A, 'all layers side by side' among them
    law: A(n_f, n_c) = limit − (C_f n_f^−α + C_c n_c^−β)    (`evaluation.fit_power_law`)

Frozen: both encoders; nothing is trained.
Exact property: A(x, x) = 1 without ties; A does not change under rotations of either space,
positive lengths of rows, or a common order of the things (the clamp, which comes before,
sees the first two); n_f copies of one frame change nothing, nor does the order of the
frames; with k = n − 1, A = 1.
Deviations: layers are chosen on the training rows and the score is taken on others; the
official search takes the highest score of the scored rows themselves
(minyoungg/platonic-rep, commit dcd76ba, measure_alignment.py:34–71; `search_layers` on them
gives that). Ties for the last neighbour share it; there argsort's order decides
(metrics.py:272–285). Layers of unequal width have a Q each, as a list of layers does there
(measure_alignment.py:28); those of one width share theirs. Q is taken with torch.quantile of
each row (metrics.py:327–343, exact=False), on the training rows, and then held. On the same
random layers both give the same clamp and the same best pair and score. `encode` and
`score` are ours: a row is described by which training rows are nearest to it, so that rows of
both encoders can be compared and retrieval needs no training either.
Reconstructed: the authors' own repository (google-deepmind/platonic_rep_video) could not
be had. Rounding of the frames' places and the number of sub-clips (rounded up) are ours; the
rest of the video rules was read in an independent re-implementation, not in the paper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from alignkit.data import Pairs
from alignkit.evaluation import mutual_knn_grid
from alignkit.parts import Method, Stage, unit


@dataclass(frozen=True)
class DynamicReflectionsSettings:
    """What is read of the features.

    layers: modality -> columns [n, amounts, d] (or [n, d], one amount), a layer each, from
    the first to the last. views: which of the image's amounts are averaged. said: which
    of the text's is taken. k: neighbours. quantile: of the clamp; 1 leaves it out.
    """

    layers: Mapping[str, Sequence[str]] = field(default_factory=lambda: {
        "image": ("image_features",), "text": ("text_features",)})
    views: tuple[int, ...] = (0,)
    said: int = 0
    k: int = 10
    quantile: float = 0.95

    def __post_init__(self):
        if not self.views or self.k < 1 or not 0 < self.quantile <= 1:
            raise ValueError("views needs one place at least, k must be at least 1 and "
                             f"quantile in (0, 1], got {self.views}, {self.k}, "
                             f"{self.quantile}")


def frame_places(total: int, frames: int) -> Tensor:
    """Places [frames] of so many frames among `total`, evenly from the first to the last;
    one frame is the first. Frames stand twice where more are asked for than there are."""
    if total < 1 or frames < 1:
        raise ValueError(f"total and frames must be at least 1, got {total}, {frames}")
    return torch.linspace(0, total - 1, frames).round().long()


def sub_clips(total: int, frames: int, native: int) -> Tensor:
    """Frames [clips, native] for a video encoder that takes `native` frames at a time: few
    frames are stretched to one clip, more are cut into several, whose outputs are averaged.
    """
    if native < 1:
        raise ValueError(f"native must be at least 1 frame, got {native}")
    if frames <= native:
        return frame_places(total, frames)[frame_places(frames, native)][None]
    clips = -(-frames // native)
    return frame_places(total, clips * native).view(clips, native)


def joined(captions: Sequence[str], count: int, separator: str = " ") -> str:
    """The first `count` captions as one text.

    Raises ValueError if there are fewer, or count is below 1.
    """
    if not 1 <= count <= len(captions):
        raise ValueError(f"count must lie between 1 and {len(captions)}, the captions that "
                         f"there are, got {count}")
    return separator.join(captions[:count])


def clamp_levels(layers: Sequence[Tensor], quantile: float = 0.95) -> Tensor:
    """Q of each layer [n, d_l]: the mean over rows of the quantile of |values|. Layers of
    one width are taken together."""
    if len({x.shape[1] for x in layers}) == 1:
        return _level(torch.cat(list(layers), 1), quantile).expand(len(layers))
    return torch.stack([_level(x, quantile) for x in layers])


def _level(x: Tensor, quantile: float) -> Tensor:
    return torch.quantile(x.abs(), quantile, dim=1).mean()


class LayerPair(NamedTuple):
    """The layers that agree most (places in the lists; the last is all side by side), their
    score, and the scores [images, texts] of all pairs."""

    image: int
    text: int
    score: float
    grid: Tensor


def search_layers(images: Sequence[Tensor], texts: Sequence[Tensor], k: int) -> LayerPair:
    """The pair of layers [n, d_l] with the highest mutual k-NN on these rows.

    It is the highest of many, so it flatters: choose on other rows than you score.
    """
    grid = mutual_knn_grid(images, texts, k)
    image, text = divmod(int(grid.argmax()), len(texts))
    return LayerPair(image, text, float(grid[image, text]), grid)


class DynamicReflections(Method):
    """Two frozen encoders and what is read of them. `fit` sets the clamp, chooses the
    layers and keeps the training rows as anchors."""

    settings: DynamicReflectionsSettings
    traits = frozenset({"untrained"})

    def build(self, settings: DynamicReflectionsSettings, pairs: Pairs) -> None:
        self.widths = {name: [pairs[column].shape[-1] for column in columns]
                       for name, columns in settings.layers.items()}
        for name, widths in self.widths.items():
            self.register_buffer(f"level_{name}", torch.ones(len(widths)))
            self.register_buffer(f"anchors_{name}", torch.zeros(len(pairs), sum(widths)))
        self.register_buffer("chosen", torch.zeros(len(settings.layers), dtype=torch.long))

    def stages(self) -> list[Stage]:
        return [Stage("look", solve=self._look)]

    def _look(self, pairs: Pairs) -> None:
        s, batch, found = self.settings, pairs.batch(), []
        for name in s.layers:
            raw = self._raw(batch, name)
            if s.quantile < 1:
                getattr(self, f"level_{name}").copy_(clamp_levels(raw, s.quantile))
            found.append(self.layers(batch, name))
            getattr(self, f"anchors_{name}").copy_(found[-1][-1])
        best = search_layers(*found, min(s.k, len(pairs) - 1))
        self.chosen.copy_(torch.tensor([best.image, best.text]))

    def _raw(self, batch: dict, name: str) -> list[Tensor]:
        """Each layer [b, d_l] of the amounts that the settings name."""
        s = self.settings
        places = list(s.views) if name == "image" else [s.said]
        found = (batch[column] for column in s.layers[name])
        return [x if x.dim() == 2 else x[:, places].mean(1) for x in found]

    def layers(self, batch: dict, name: str) -> list[Tensor]:
        """Each layer [b, d_l] of a modality, clamped; then all of them side by side."""
        found, levels = self._raw(batch, name), getattr(self, f"level_{name}")
        if self.settings.quantile < 1:
            found = [x.clamp(-q, q) for x, q in zip(found, levels.to(found[0]), strict=True)]
        return [*found, torch.cat(found, 1)]

    def features(self, batch: dict) -> dict[str, Tensor]:
        """The unit rows [b, d] of the chosen layer of each modality in the batch."""
        return {name: unit(self.layers(batch, name)[at])
                for name, at in self._at() if self.settings.layers[name][0] in batch}

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """By modality, unit rows [b, anchors]: 1/√k where a training row is among the k
        nearest. So the cosine of two rows is the share of neighbours that they have in
        common. (A row that is an anchor itself is its own neighbour.)"""
        outputs = {}
        for name, x in self.features(batch).items():
            anchors = self._anchors(name).to(x)
            k = min(self.settings.k, len(anchors))
            near = (x @ anchors.T).topk(k, dim=1).indices
            outputs[name] = torch.zeros_like(x[:, :1]).expand(-1, len(anchors)).scatter(
                1, near, k**-0.5)
        return outputs

    def _at(self) -> list[tuple[str, int]]:
        return list(zip(self.settings.layers, self.chosen.tolist(), strict=True))

    def _anchors(self, name: str) -> Tensor:
        """The unit rows [anchors, d] of the chosen layer."""
        every, at = getattr(self, f"anchors_{name}"), dict(self._at())[name]
        return unit([*every.split(self.widths[name], 1), every][at])
