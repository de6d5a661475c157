"""Two small towers of one space that also take embeddings in place of words and patches.

A picture tower (a convolutional stem makes 16 patches, then a transformer with a class
token) and a text tower (word pieces, a transformer, read at the last place), trained
together by `data_scripts/train_two_towers.py`. Sixteen pairs come with the package, of
seeds 0 to 7 without and with a loss between two views: `load_two_towers`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from alignkit.data import Tokens
from alignkit.parts import shipped
from alignkit.parts.attention import TransformerEncoder
from alignkit.parts.layers import Temperature
from alignkit.parts.similarity import unit
from alignkit.parts.text import WordPieces

FOLDER = shipped.FOLDER / "two-towers"


@dataclass(frozen=True)
class TwoTowersSettings:
    """Shapes: side of the pictures and of a patch in pixels, width of both towers, their
    layers and heads, width of the shared space, and the longest text in pieces."""

    size: int = 64
    patch: int = 16
    width: int = 64
    image_layers: int = 2
    text_layers: int = 2
    heads: int = 4
    shared: int = 128
    longest: int = 16

    def __post_init__(self):
        if self.size % self.patch or self.patch & (self.patch - 1) or self.patch < 2:
            raise ValueError(f"patch must be a power of 2 that divides size, got "
                             f"{self.patch} and {self.size}")

    @property
    def patches(self) -> int:
        """How many a picture has."""
        return (self.size // self.patch) ** 2


def _stem(patch: int, width: int) -> nn.Sequential:
    """Halves the picture until a place stands for `patch` pixels. Convolutions, because a
    few thousand pictures do not teach linear patches to see."""
    layers: list[nn.Module] = []
    channels, halvings = 3, patch.bit_length() - 1
    for k in range(halvings - 1):
        out = 24 * 2**k
        layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False),
                   nn.GroupNorm(8, out), nn.GELU()]
        channels = out
    return nn.Sequential(*layers, nn.Conv2d(channels, width, 3, stride=2, padding=1))


class TwoTowers(nn.Module):
    """Both towers. Every output is a unit row of the shared space [n, shared].

    `image` = `image_from(patches(pixels))` and `text` = `text_from(words(tokens))`: the
    inner functions take embeddings, before places are added, that may be anything.
    """

    def __init__(self, settings: TwoTowersSettings, vocabulary: Sequence[str]):
        super().__init__()
        self.settings, self.pieces = settings, WordPieces(vocabulary)
        s, width = settings, settings.width
        self.stem = _stem(s.patch, width)
        self.class_token = nn.Parameter(torch.randn(width) * 0.02)
        self.image_places = nn.Parameter(torch.randn(s.patches + 1, width) * 0.02)
        self.image_encoder = TransformerEncoder(width, s.image_layers, s.heads)
        self.image_head = nn.Linear(width, s.shared, bias=False)
        self.word_table = nn.Embedding(len(vocabulary), width)
        nn.init.normal_(self.word_table.weight, std=0.02)
        self.text_places = nn.Parameter(torch.randn(s.longest, width) * 0.02)
        self.text_encoder = TransformerEncoder(width, s.text_layers, s.heads)
        self.text_head = nn.Linear(width, s.shared, bias=False)
        self.temperature = Temperature(0.07, learned=True)

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Ids [n, t] of word pieces; what is longer than `longest` is cut."""
        return self.pieces(texts, self.settings.longest)

    def words(self, tokens: Tokens) -> Tokens:
        """Ids [n, t] -> embeddings [n, t, width], without places."""
        return Tokens(self.word_table(tokens.values), tokens.mask)

    def text_from(self, words: Tokens) -> Tensor:
        """Embeddings [n, t, width] -> unit rows, read at each row's last real place."""
        values, mask = words
        encoded = self.text_encoder(Tokens(values + self.text_places[:values.shape[1]],
                                           mask)).values
        last = mask.sum(1) - 1
        rows = torch.arange(len(values), device=values.device)
        return unit(self.text_head(encoded[rows, last]))

    def text(self, tokens: Tokens) -> Tensor:
        """Ids [n, t] -> unit rows."""
        return self.text_from(self.words(tokens))

    def text_tokens(self, tokens: Tokens) -> Tokens:
        """Ids [n, t] -> every piece in the shared space [n, t, shared], of any length. The
        last real one of a row has the direction of `text`."""
        values, mask = self.words(tokens)
        encoded = self.text_encoder(Tokens(values + self.text_places[:values.shape[1]], mask))
        return Tokens(self.text_head(encoded.values), mask)

    def patches(self, pixels: Tensor) -> Tensor:
        """Pixels [n, 3, size, size] from 0 to 1 -> embeddings [n, patches, width]."""
        return self.stem(2 * pixels - 1).flatten(2).transpose(1, 2)

    def image_from(self, patches: Tensor) -> Tensor:
        """Embeddings [n, patches, width] -> unit rows, read at the class token."""
        first = self.class_token.expand(len(patches), 1, -1)
        x = torch.cat([first, patches], 1) + self.image_places
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return unit(self.image_head(self.image_encoder(Tokens(x, real)).values[:, 0]))

    def image(self, pixels: Tensor) -> Tensor:
        """Pixels [n, 3, size, size] from 0 to 1 -> unit rows."""
        return self.image_from(self.patches(pixels))


def pixels_of(pictures: Iterable, size: int = 64) -> Tensor:
    """PIL pictures -> bytes [n, 3, size, size], resized where they have another size."""
    import numpy as np

    return torch.stack([
        torch.from_numpy(np.array(picture.convert("RGB").resize((size, size))))
        for picture in pictures]).permute(0, 3, 1, 2).contiguous()


def variant_of(intra: float) -> str:
    """What sets towers apart from others of their seed, in the name of their file."""
    return f"intra-{intra:g}"


def load_two_towers(seed: int = 0, intra: float = 0.0, folder: Path = FOLDER) -> TwoTowers:
    """Trained towers, frozen, in eval mode and float32 (stored as fp16).

    Args:
        seed: of their training. intra: the weight of the loss between two views of one
            picture that was added to the contrastive one.
        folder: with `recipe.json` and the weights; default: what the package ships.
    Raises:
        FileNotFoundError, ValueError: see `shipped.weights` and `shipped.fill`.
    """
    recipe = shipped.recipe(folder)
    towers = TwoTowers(TwoTowersSettings(**recipe["settings"]), recipe["vocabulary"])
    return shipped.fill(towers, folder, seed, variant_of(intra))
