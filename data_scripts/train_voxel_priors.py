"""The encoders, denoisers and judges of voxels that come with alignkit, trained again.

    python data_scripts/train_voxel_priors.py priors/

For each seed the solids are dealt anew: three in five of each kind teach the encoders and
the denoiser, the others teach the judge alone. Pictures are renderings from 24 sides, of
each solid as it is and three times stretched at random.

Encoders: InfoNCE of pictures, icons and speech with the words of their kind (all that is
of one kind belongs together). Denoiser: the mean squared error of clean pictures; half of the pictures come with their
camera and the embedding of another view of the solid, half with their own embedding and no
camera; noise on the embedding, and one in seven without any. About a minute of one core
a seed.
"""

import argparse
import math
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignkit.data import Pairs
from alignkit.data.solids import SHARE, dealt, solids
from alignkit.encoders import add_features
from alignkit.evaluation import zero_shot
from alignkit.parts import Method, info_nce, shipped, unit
from alignkit.parts.views import random_homographies, warp
from alignkit.parts.voxel_priors import (
    PriorSettings, VoxelPriors, ancestral, signal_and_noise, view_of,
)  # fmt: skip
from alignkit.parts.voxels import SOLID, around, render
from alignkit.training import Budget, fit, seed_all

ENCODERS = {"text": "text:minilm", "image": "image:efficientnet-lite0",
            "speech": "sound:whisper-tiny.en"}
VIEWS, STRETCHES = 24, 4
SCALE = 10.0  # of cosines in every softmax here
DROPPED = 0.15


def pictures_of(voxels: Tensor, seed: int) -> Tensor:
    """[n, STRETCHES · VIEWS, 1, side, side]: every solid as it is, then with its axes
    scaled by 0.8 to 1.2, each from VIEWS sides."""
    g, found = torch.Generator().manual_seed(seed), []
    n = len(voxels)
    for k in range(STRETCHES):
        scale = 0.8 + 0.4 * torch.rand(n, 3, generator=g) if k else torch.ones(n, 3)
        grid = F.affine_grid(torch.diag_embed(1 / scale) @ torch.eye(3, 4),
                             [n, 1, *voxels.shape[1:]], align_corners=False)
        now = SOLID * F.grid_sample(voxels[:, None], grid, align_corners=False)[:, 0]
        found += [render(now, side.expand(n))[0] for side in around(VIEWS)]
    return torch.stack(found, 1)


def balanced(rows: Pairs, seed: int) -> Pairs:
    """Rows for training, as many of each kind: with `pictures` and all features."""
    kind = rows.labels["kind"]
    most = int(kind.bincount().max())
    chosen = torch.cat([(kind == k).nonzero()[:, 0].repeat(most)[:most]
                        for k in kind.unique()])
    pictures = pictures_of(rows["voxels"], seed)
    return Pairs.make(
        {"pictures": pictures[chosen],
         **{name: rows[f"{name}_features"][chosen] for name in ENCODERS}},
        ids=[f"{i}" for i in range(len(chosen))], labels={"kind": kind[chosen]},
        provenance=rows.provenance)


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures moved, turned and scaled, brighter or darker, with noise."""
    n, side = len(x), x.shape[-1]
    room = F.pad(x, (2,) * 4)
    x = warp(room, random_homographies(n, side + 4, side, generator), side)
    gain = 0.7 + 0.6 * torch.rand(n, 1, 1, 1, generator=generator)
    noise = 0.1 * torch.rand(n, 1, 1, 1, generator=generator)
    return x * gain + noise * torch.randn(x.shape, generator=generator)


def one_view(rows: Pairs, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(picture, its azimuth, another view of that solid) of each row."""
    n, all_of = len(rows), rows["pictures"]
    stretch = torch.randint(STRETCHES, (n,), generator=generator) * VIEWS
    one, two = torch.randint(VIEWS, (2, n), generator=generator)
    at = torch.arange(n)
    return all_of[at, stretch + one], around(VIEWS)[one], all_of[at, stretch + two]


class Encoders(Method):
    """Pictures, icons and speech with the words of their kind."""

    def build(self, settings: VoxelPriors, pairs: Pairs) -> None:
        self.net = nn.ModuleDict({"pictures": settings.pictures, "heads": settings.heads})

    def collate(self, rows: Pairs, generator: torch.Generator) -> dict:
        return {"pictures": augmented(one_view(rows, generator)[0], generator),
                "kind": rows.labels["kind"], **{name: rows[name] for name in ENCODERS}}

    def encode(self, batch: dict) -> dict[str, Tensor]:
        return {"pictures": self.net["pictures"](batch["pictures"]),
                **{name: unit(head(batch[name])) for name, head in self.net["heads"].items()}}

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        same = batch["kind"][:, None] == batch["kind"]
        return {f"{name}_loss": info_nce(z, outputs["text"], SCALE, same)
                for name, z in outputs.items() if name != "text"}


class Judge(Method):
    """Pictures and their kinds, nothing else."""

    def build(self, settings: VoxelPriors, pairs: Pairs) -> None:
        self.judge, self.kinds = settings.judge, settings.kinds

    def collate(self, rows: Pairs, generator: torch.Generator) -> dict:
        return {"pictures": augmented(one_view(rows, generator)[0], generator),
                "kind": rows.labels["kind"]}

    def encode(self, batch: dict) -> dict[str, Tensor]:
        return {"pictures": self.judge(batch["pictures"])}

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        logits = SCALE * outputs["pictures"] @ unit(self.kinds).T
        return {"kind_loss": F.cross_entropy(logits, batch["kind"])}


class Drawing(Method):
    """The denoiser, for frozen encoders of pictures."""

    def build(self, settings: VoxelPriors, pairs: Pairs) -> None:
        self.denoiser = settings.denoiser
        self.see = [settings.pictures.eval()]  # in a list: no part of what is trained

    def collate(self, rows: Pairs, generator: torch.Generator) -> dict:
        x, azimuth, other = one_view(rows, generator)
        n = len(x)

        def drawn(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator)

        placed = drawn(n) < 0.5
        shown = torch.where(placed[:, None, None, None], other, x)
        with torch.no_grad():
            e = self.see[0](augmented(shown, generator))
        noise = torch.randn(e.shape, generator=generator) / e.shape[1] ** 0.5
        e = unit(e + drawn(n, 1) * noise)
        return {"x": 2 * x - 1, "t": drawn(n),
                "noise": torch.randn(x.shape, generator=generator),
                "condition": torch.where(drawn(n, 1) < DROPPED, 0.0, e),
                "view": torch.where(placed[:, None], view_of(azimuth), 0.0)}

    def encode(self, batch: dict) -> dict[str, Tensor]:
        a, s = (part.view(-1, 1, 1, 1) for part in signal_and_noise(batch["t"]))
        noisy = a * batch["x"] + s * batch["noise"]
        return {"found": self.denoiser.clean(noisy, batch["t"], batch["condition"],
                                             batch["view"])}

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        return {"clean_loss": F.mse_loss(outputs["found"], batch["x"])}


@torch.no_grad()
def figures(net: VoxelPriors, rows: Pairs, own: Tensor) -> dict[str, float]:
    """Accuracy, mean of kinds: of both encoders on single views of solids that they never
    saw, of icons and speech against words, and, by the judge, of pictures that the denoiser
    draws from the words, without a camera and with one."""
    kind, kinds = rows.labels["kind"], net.settings.kinds
    words = torch.stack([net.embed("text", rows["text_features"])[kind == k][0]
                         for k in range(kinds)])

    def mean_of_kinds(found: Tensor, right: Tensor) -> float:
        return round(torch.stack([(found[right == k] == k).float().mean()
                                  for k in right.unique()]).mean().item(), 3)

    def seen(part: Tensor, judge: bool) -> float:
        x = pictures_of(rows["voxels"][part], 0)[:, :VIEWS].flatten(0, 1)
        found = net.judged(x) if judge else (net.pictures(x) @ words.T).argmax(1)
        return mean_of_kinds(found, kind[part].repeat_interleave(VIEWS))

    result = {"pictures": seen(~own, False), "judge": seen(own, True)}
    for name in ("image", "speech"):
        z = net.embed(name, rows[f"{name}_features"][~own])
        result[name] = mean_of_kinds((z @ words.T).argmax(1), kind[~own])
    asked = torch.arange(kinds).repeat_interleave(24)
    for name, view in (("drawn", torch.zeros(len(asked), 5)),
                       ("drawn_with_view", view_of(around(24).repeat(kinds)))):
        x = ancestral(net.denoiser, words[asked], view, guidance=2.0,
                      generator=torch.Generator().manual_seed(0))
        result[name] = mean_of_kinds(net.judged(x), asked)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--encoder-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=1200)
    args = parser.parse_args()
    settings = PriorSettings(side=args.side, width=args.width)
    pairs = solids(args.side)
    for column, encoder in ENCODERS.items():
        pairs = add_features(pairs, column, encoder)
    short = Budget(steps=args.encoder_steps, batch_size=64, lr=2e-3, weight_decay=0.01)
    long = replace(short, steps=args.steps, batch_size=128)
    shipped.begin(args.out, Path(__file__).name, settings=asdict(settings),
                  budgets={"encoders, judge": asdict(short), "denoiser": asdict(long)},
                  corpus={"name": "solids", "side": args.side, "share": SHARE,
                          "hash": pairs.provenance.hash})
    for seed in args.seeds:
        if seed in shipped.units(args.out):
            continue
        own = dealt(pairs.labels["kind"], seed)
        seed_all(seed, "initial weights")
        net, seconds = VoxelPriors(settings), 0.0
        for kind, part, budget in ((Encoders, own, short), (Judge, ~own, short),
                                   (Drawing, own, long)):
            rows = balanced(pairs.select(part.nonzero()[:, 0]), seed)
            history = fit(kind(net, rows), rows, budget, seed)
            seconds += history.seconds
        print(shipped.add(args.out, net.eval(), seed, bits=8, seconds=round(seconds),
                          last_loss=round(history.curve()[-1], 4),
                          scores=lambda net: figures(net, pairs, own)), flush=True)


if __name__ == "__main__":
    main()
