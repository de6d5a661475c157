"""The small picture and text towers that come with alignkit, trained again.

    python data_scripts/train_two_towers.py towers/

Loss: InfoNCE of pictures and captions + intra · InfoNCE of two views of each picture
(SimCLR's idea, with the linear head and the temperature of the first). Both kinds of
towers see the same random views; without intra the second one is not made. Corpus:
`alignkit.data.objects`, drawn once. About 75 seconds of one core a model (two minutes
with intra); `recipe.json` says all that is needed to load them.
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from alignkit.data import Pairs
from alignkit.data.objects import objects, short_caption
from alignkit.evaluation import mean_average_precision, zero_shot
from alignkit.parts import Method, WordPieces, info_nce, positives_of, shipped
from alignkit.parts.two_towers import TwoTowers, TwoTowersSettings, pixels_of, variant_of
from alignkit.training import Budget, fit, seed_all

PIECES = 200
CORPUS_SEEDS = {"train": 0, "val": 1}


@dataclass(frozen=True)
class Settings:
    """The towers' shapes and vocabulary, and the weight of the loss of two views."""

    towers: TwoTowersSettings
    vocabulary: tuple[str, ...]
    intra: float = 0.0


def view(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """A random view of each picture [n, 3, s, s]: shifted by up to 5 % of its side, scaled
    by 0.9 to 1.1, mirrored or not, its channels scaled by 0.8 to 1.2."""
    n = len(pixels)

    def drawn(*shape, low=-1.0, high=1.0):
        return low + (high - low) * torch.rand(*shape, generator=generator)

    scale = drawn(n, low=0.9, high=1.1)
    where = torch.zeros(n, 2, 3)
    where[:, 0, 0] = scale * torch.where(drawn(n) < 0, -1.0, 1.0)
    where[:, 1, 1] = scale
    where[:, :, 2] = drawn(n, 2, low=-0.1, high=0.1)
    where = where.to(pixels.device)
    grid = F.affine_grid(where, list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return (moved * drawn(n, 3, 1, 1, low=0.8, high=1.2).to(pixels.device)).clamp(0, 1)


class Trained(Method):
    """The towers with their loss. Each step takes one of a picture's two captions."""

    settings: Settings

    def build(self, settings: Settings, pairs: Pairs) -> None:
        self.towers = TwoTowers(settings.towers, settings.vocabulary)

    def collate(self, rows: Pairs, generator: torch.Generator) -> dict:
        short = torch.rand(len(rows), generator=generator) < 0.5
        texts = [a if s else b for a, b, s in
                 zip(rows["text_short"], rows["text"], short.tolist())]
        tokens = self.towers.tokens(texts)
        said = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        pixels = rows["image_pixels"].float() / 255
        views = [view(pixels, generator) for _ in range(1 + bool(self.settings.intra))]
        return {"views": torch.cat(views), "tokens": tokens,
                "caption": torch.tensor([said[text] for text in texts])}

    def encode(self, batch: dict) -> dict[str, Tensor]:
        return {"views": self.towers.image(batch["views"]),
                "text": self.towers.text(batch["tokens"])}

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        text, scale = outputs["text"], self.towers.temperature()
        first, *second = outputs["views"].split(len(text))
        losses = {"contrastive_loss":
                  info_nce(first, text, scale, positives_of(batch["caption"]))}
        if second:
            losses["intra_loss"] = self.settings.intra * info_nce(first, *second, scale)
        return losses


def drawn(each: int, part: str) -> Pairs:
    """The corpus with its pictures as one tensor."""
    pairs = objects(each, corpus_seed=CORPUS_SEEDS[part])
    return pairs.with_features(image_pixels=pixels_of(pairs["image"]))


@torch.no_grad()
def figures(towers: TwoTowers, val: Pairs) -> dict[str, float]:
    """On drawings that were not trained on: zero-shot accuracy of the nouns, and mAP of
    pictures asking for pictures of their noun (the first half asks the second)."""
    noun = val.labels["noun"]
    z = torch.cat([towers.image(x.float() / 255)
                   for x in val["image_pixels"].split(256)])
    prompts = towers.text(towers.tokens(
        [short_caption(name) for name in val.label_names["noun"]]))
    half = len(z) // 2
    return {"zero_shot": round(zero_shot(z, prompts, noun)["accuracy"], 4),
            "image_map": round(mean_average_precision(
                z[:half] @ z[half:].T, noun[:half, None] == noun[half:]), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    parser.add_argument("--intra", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--each", type=int, default=80, help="pictures of each noun")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    train, val = drawn(args.each, "train"), drawn(min(args.each, 8), "val")
    vocabulary = WordPieces.train([*train["text"], *train["text_short"]],
                                  PIECES).vocabulary
    budget = Budget(steps=args.steps, batch_size=args.batch_size, lr=2e-3,
                    weight_decay=0.01, warmup=0.1)
    shipped.begin(args.out, Path(__file__).name, settings=asdict(TwoTowersSettings()),
                  vocabulary=vocabulary, budget=asdict(budget),
                  corpus={"name": "objects", "each": args.each,
                          "corpus_seeds": CORPUS_SEEDS, "hash": train.provenance.hash})
    for seed in args.seeds:
        for intra in args.intra:
            if seed in shipped.units(args.out, variant_of(intra)):
                continue
            seed_all(seed, "initial weights")
            method = Trained(Settings(TwoTowersSettings(), tuple(vocabulary), intra), train)
            history = fit(method, train, budget, seed)
            print(shipped.add(
                args.out, method.towers.eval(), seed, variant_of(intra), intra=intra,
                seconds=round(history.seconds), last_loss=round(history.curve()[-1], 4),
                scores=lambda towers: figures(towers, val)))


if __name__ == "__main__":
    main()
