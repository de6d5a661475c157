"""VIP-ANT: sounds and texts become comparable through pictures, without one pair of both.

Paper: Connecting the Dots between Audio and Text without Parallel Data through Visual
Knowledge Transfer. Zhao, Hessel, Yu, Lu, Zellers, Choi, NAACL 2022, arXiv 2112.08995.

Claim: pictures are the pivot. An audio tower that begins as CLIP's picture tower and is
trained on sounds and pictures of the same videos can be asked by texts, though it has seen
no text: zero-shot it beats what was there without audio-text pairs, some hundred such pairs
on top help it more than they help alone, and captions that CLIP finds for the pictures can
stand in for them.

Use it when: sounds come with pictures (video) and hardly any with text, and a good
picture-text model is there. Spend the first text pairs on top of it, and try captions that the
model finds for the pictures. Begin from drawn weights, too, and compare: small towers learned
far faster so. Where there are as many captions as pictures, train on the captions.

Equations, x a log-mel spectrogram, v and t frozen unit rows of pictures and of texts:
    a = unit(tower(x));  the tower is the picture tower with kernel mean over colours,
    finer stride, places stretched bilinearly over the new grid (`parts.audio_tower`)
    s = exp(w) · a vᵀ,  w learned;  loss = CE(rows of s) + CE(columns of s)     (their sum)
    on top of it (optional), the same loss with t in the place of v
    curated: for each picture the k captions of a pool with the largest cosine to it, one of
    them drawn in each step

Frozen: both towers of the picture-text model. Trained: the audio tower and w.
Exact property: training does not touch pictures and texts, so their scores stay to the
bit; with a batch of one, loss and gradient are 0; the loss is twice CLIP's; the kernel's
mean gives a third of what the kernel gives for three equal colours.
Deviations: AdamW in place of LARS (cvap/module/lars.py, which weights skip, and how each is
scaled, is not built); exp(w) is clamped at 100 (officially not, `scale_max` null); rows
whose targets are equal are right answers to each other (officially the diagonal alone);
mean and deviation of the spectrogram come from the training rows (officially two numbers of
AudioSet); long sounds are cut as frames (officially as waveforms, cvap/data/audio/transform.py:
126-141, with this rule); time runs to the right (officially downwards); the kernel is averaged
once, at the start (officially in each step, cvap/module/val.py:236-247, which trains the
kernel's mean alike); places are always stretched (officially not where the new grid has as many
as the old square, cvap/module/val.py:534-535, and so not at small scale, where 4 by 4 become
2 by 8); a sound has one picture (officially one of up to four frames is drawn each
step), and curated captions are drawn once a row (officially each step). At small scale the
towers are those of `parts.two_towers`, with 32 bands and 64 frames: a stem of four convolutions
with norms between, of which the first is averaged and the last has the finer stride.
Reconstructed: nothing of the loss and the tower; at the commit 93b06ff the loss
(cvap/module/decoder/loss_head.py:265-284), the places (cvap/module/val.py:524-555) and the cut
were run beside ours on the same numbers and agree, but for that grid. Steps, batch and rate at
small scale are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from alignkit.data import Pairs
from alignkit.parts import Method, Settings, Stage, Temperature, info_nce, unit
from alignkit.parts.audio_tower import AudioTower
from alignkit.parts.two_towers import TwoTowers, TwoTowersSettings


@dataclass(frozen=True)
class VipAntSettings(Settings):
    """towers: sound, image and text -> their columns: log-mel frames (Tokens), and the
    frozen rows of both sides. plan: what the sounds are trained on, in this order, with the
    number of steps (None: the budget's). picture: the shape of the picture tower:
    TwoTowersSettings, or the settings of a CLIPVisionConfig as (name, value) pairs.
    bands, frames: of a spectrogram. stride: of the tower's last stem layer. mask: the most
    bands and frames that are hidden in training."""

    towers: Mapping[str, str] = field(default_factory=lambda: {
        "sound": "speech_tokens", "image": "image_features", "text": "text_features"})
    plan: tuple[tuple[str, int | None], ...] = (("image", None),)
    picture: TwoTowersSettings | tuple = TwoTowersSettings()
    bands: int = 32
    frames: int = 64
    stride: tuple[int, int] = (2, 1)
    mask: tuple[int, int] = (0, 0)
    temperature: float = 0.07
    learn_temperature: bool = True

    def __post_init__(self):
        if not self.plan or {name for name, _ in self.plan} - {"image", "text"}:
            raise ValueError(f"plan must name 'image' or 'text', got {self.plan!r}")


def picture_tower(settings: VipAntSettings, width: int) -> nn.Module:
    """A picture tower of that shape with drawn weights, its rows `width` wide."""
    if isinstance(settings.picture, TwoTowersSettings):
        return TwoTowers(replace(settings.picture, shared=width), PIECES)
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    shape = {**dict(settings.picture), "projection_dim": width}
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**shape))


PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # the text tower is not looked at


def audio_loss(a: Tensor, targets: Tensor, scale: Tensor | float) -> Tensor:
    """CE of the rows + CE of the columns of scale · a targetsᵀ, unit rows [n, d]; rows whose
    targets are equal are right answers to each other."""
    same = (targets[:, None] == targets).all(-1)
    same = same | torch.eye(len(a), dtype=torch.bool, device=a.device)  # NaN equals no NaN
    return 2 * info_nce(a, targets, scale, same)


def window(frames: Tensor, length: int, generator: torch.Generator | None) -> Tensor:
    """`length` of the frames [t, bands]: drawn with the generator, or the middle ones (None).

    Where they are nearly silent (a deviation below half of the whole sound's) the first
    ones, or the last where the first are more silent still.
    """
    spare = len(frames) - length
    if spare <= 0:
        return frames
    at = round(spare / 2) if generator is None else int(
        torch.randint(spare, (), generator=generator))
    part, first = frames[at:at + length], frames[:length]
    if part.std() >= frames.std() / 2:
        return part
    return frames[-length:] if part.std() > first.std() else first


def hidden(x: Tensor, most: int, axis: int, generator: torch.Generator) -> Tensor:
    """x [n, 1, bands, frames] with up to `most` neighbouring bands (axis 2) or frames (3)
    of each row set to 0, the mean."""
    n, size = len(x), x.shape[axis]
    width = torch.randint(min(most, size) + 1, (n, 1), generator=generator)
    start = (torch.rand(n, 1, generator=generator) * (size - width + 1)).long()
    place = torch.arange(size)
    gone = (place >= start) & (place < start + width)
    return x.masked_fill(gone[:, None, :, None] if axis == 2 else gone[:, None, None], 0)


class VipAnt(Method):
    """An audio tower trained towards frozen rows of pictures, of texts, or of both in turn."""

    settings: VipAntSettings

    def build(self, settings: VipAntSettings, pairs: Pairs) -> None:
        values, real = pairs[settings.towers["sound"]]
        target = pairs[settings.towers[settings.plan[0][0]]]
        self.tower = AudioTower(picture_tower(settings, target.shape[-1]),
                                values.shape[-1], settings.frames, settings.stride)
        self.temperature = Temperature(settings.temperature, settings.learn_temperature)
        heard = values[real]
        for name, value in (("mean", heard.mean()), ("deviation", heard.std())):
            self.register_buffer(name, torch.zeros(()))  # on the meta device, too
            self.get_buffer(name).copy_(value)

    def collate(self, rows: Pairs, generator: torch.Generator) -> dict:
        """The columns, with the spectrograms [b, 1, bands, frames] of the sounds: cut or
        filled with zeros, then normalised (in this order, as the authors do), then masked in
        training."""
        s, drawn = self.settings, generator if self.training else None
        values, real = rows[s.towers["sound"]]
        cut = values.new_zeros(len(rows), s.frames, values.shape[-1])
        if values.shape[1] <= s.frames:
            cut[:, :values.shape[1]] = values * real[..., None]
        else:
            for k, (row, here) in enumerate(zip(values, real, strict=True)):
                part = window(row[here], s.frames, drawn)
                cut[k, :len(part)] = part
        x = ((cut - self.mean.cpu()) / self.deviation.cpu()).transpose(1, 2)[:, None]
        for axis, most in enumerate(s.mask, 2):
            x = hidden(x, most, axis, generator) if self.training and most else x
        return rows.batch() | {f"{s.towers['sound']}_seen": x}

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """`sound`, and pictures and texts as they came: unit rows [b, d]."""
        seen = f"{self.settings.towers['sound']}_seen"
        found = {"sound": unit(self.tower(batch[seen]))} if seen in batch else {}
        return found | {name: unit(batch[self.settings.towers[name]])
                        for name in ("image", "text") if self.settings.towers[name] in batch}

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        """A loss for each side that the plan names and the batch has."""
        return {f"{name}_loss": audio_loss(outputs["sound"], outputs[name],
                                           self.temperature())
                for name, _ in self.settings.plan if name in outputs}

    def stages(self) -> list[Stage]:
        return [Stage(f"{name}s", partial(self.view, name=name), steps=steps)
                for name, steps in self.settings.plan]

    def view(self, pairs: Pairs, name: str) -> Pairs:
        """The rows that have a picture (or a text), with that and their sounds alone."""
        sound, column = (self.settings.towers[k] for k in ("sound", name))
        return pairs.select(pairs.present[column]).only(sound, column)


def curated(pictures: Tensor, captions: Tensor, k: int = 10) -> Tensor:
    """Numbers [n, k] of the captions with the largest cosine to each picture, the nearest
    first: unit rows [n, d] and [m, d].

    Raises ValueError if there are fewer than k captions.
    """
    if not 1 <= k <= len(captions):
        raise ValueError(f"k must lie between 1 and {len(captions)}, the captions there are, "
                         f"got {k}")
    return (pictures @ captions.T).topk(k).indices
