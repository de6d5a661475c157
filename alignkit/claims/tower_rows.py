"""Rows of the shipped towers of pictures and texts, for claims that start from them: of
pictures, kept by the feature cache; of the pieces of captions; of the frames of videos."""

from functools import lru_cache

import torch
from torch import Tensor, nn

from alignkit.claims.common import model_of
from alignkit.claims.runs import TUNING_SEEDS
from alignkit.data import Pairs, Tokens
from alignkit.encoders.frames import to_pictures
from alignkit.parts import unit
from alignkit.parts.two_towers import TwoTowers, load_two_towers, pixels_of

TOWERS, INTRA = 8, 1.0  # seeds of the shipped towers, and which kind of them


class PictureTowers(nn.Module):
    """Pictures -> their unit rows [n, towers · 128] by the first `n` shipped towers; an
    encoder for `add_features`, which keeps them."""

    def __init__(self, n: int):
        super().__init__()
        self.towers = nn.ModuleList(load_two_towers(seed, INTRA) for seed in range(n))
        for tower in self.towers:
            tower.pieces = None  # of the text side: features that knew it would not be kept

    def forward(self, pictures: list) -> Tensor:
        pixels = pixels_of(pictures).float() / 255
        return torch.cat([tower.image(pixels) for tower in self.towers], 1)


@lru_cache(maxsize=2)
def towers_of(seed: int, first: int, n: int = TOWERS) -> tuple[int, TwoTowers]:
    """(number, towers) of a seed, among the first `n`: the paired seeds from `first` on have
    one each; any other seed below the tuning seeds, one of them in turn."""
    if seed < TUNING_SEEDS[0]:
        seed = first + (seed - first) % n
    k = model_of(seed, range(n), first)
    return k, load_two_towers(k, INTRA)


@torch.no_grad()
def with_captions(pairs: Pairs, towers: TwoTowers) -> Pairs:
    """With `text_tokens`, the pieces of `text`, each of length 1; the last is the caption's."""
    texts = list(dict.fromkeys(pairs["text"]))
    values, mask = towers.text_tokens(towers.tokens(texts))
    at = torch.tensor([texts.index(text) for text in pairs["text"]])
    return pairs.with_features(text_tokens=Tokens(unit(values)[at], mask[at]))


@torch.no_grad()
def with_frames(pairs: Pairs, towers: TwoTowers, n: int) -> Pairs:
    """With `video_tokens`, a unit row for each of `n` frames, evenly from the first to the
    last of each `video`."""
    rows = []
    for video in pairs["video"]:
        film = to_pictures(video)
        places = torch.linspace(0, len(film) - 1, n).round().long().tolist()
        rows.append(towers.image(pixels_of([film[i] for i in places]).float() / 255))
    values = torch.stack(rows)
    return pairs.with_features(video_tokens=Tokens(values, torch.ones(values.shape[:2]) > 0))


@torch.no_grad()
def with_patches(pairs: Pairs, k: int) -> Pairs:
    """With `image_tokens`, what the stem of picture tower `k` makes of each patch of
    `image_pixels` (bytes). In a picture m times as large as it knows, m × m neighbours are put
    into one, so that there are as many as it knows."""
    towers, pixels = load_two_towers(k), pairs["image_pixels"]
    side = towers.settings.size // towers.settings.patch
    fine = torch.cat([towers.patches(x.float() / 255) for x in pixels.split(128)])
    fold, (n, _, width) = pixels.shape[-1] // towers.settings.size, fine.shape
    values = fine.view(n, side, fold, side, fold, width).transpose(2, 3).reshape(n, side**2, -1)
    return pairs.with_features(image_tokens=Tokens(values, torch.ones(n, side**2) > 0))
