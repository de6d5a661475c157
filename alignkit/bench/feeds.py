"""Steps of a CLIP on pictures that are decoded and cropped on the way: does it wait?

On a GPU a CLIP ViT-B/32 of transformers with random weights, in bfloat16; on a CPU a toy of
the same class, to try the path. A contestant takes as many steps as fit in some seconds,
after a few that warm up, and tells the seconds of one.
"""

import math
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alignkit.bench.contest import DEVICE, Contest
from alignkit.data import Lazy, Pairs
from alignkit.data.pictures import open_picture
from alignkit.parts import Method, Temperature, info_nce, positives_of
from alignkit.training import Budget, fit, to_device

BICUBIC = Image.Resampling.BICUBIC
GPU = DEVICE == "cuda"
SECONDS = 4  # of the steps that are measured
SIZE = (SimpleNamespace(files=128, rows=1024, batch=512, side=256, crop=224, words=77, workers=8,
                        steps=200, precision="bf16")
        if GPU else
        SimpleNamespace(files=64, rows=64, batch=16, side=96, crop=64, words=8, workers=2,
                        steps=40, precision="no"))


def towers() -> torch.nn.Module:
    """A CLIP with random weights: ViT-B/32, or a toy."""
    from transformers import CLIPConfig, CLIPModel

    if GPU:
        with torch.device(DEVICE):  # on a CPU its random weights take seconds
            return CLIPModel(CLIPConfig())  # whose defaults are ViT-B/32
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 2}
    return CLIPModel(CLIPConfig(
        text_config={**small, "max_position_embeddings": SIZE.words}, projection_dim=64,
        vision_config={**small, "image_size": SIZE.crop, "patch_size": 32}))


def cropped(picture: Image.Image, place: Tensor) -> Tensor:
    """Bytes [crop, crop, 3] of a square of the picture, mirrored or not; place [4]: its
    area, from half of the picture's to all of it, where it lies, and the mirror, by
    numbers from 0 to 1."""
    area, x, y, mirror = place.tolist()
    side = (0.5 + 0.5 * area) ** 0.5 * picture.width
    x, y = (z * (picture.width - side) for z in (x, y))
    box = x, y, min(x + side, picture.width), min(y + side, picture.width)
    seen = picture.resize((SIZE.crop, SIZE.crop), Image.Resampling.BILINEAR, box=box)
    seen = seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror < 0.5 else seen
    return torch.from_numpy(np.array(seen))


class Clip(Method):
    """A CLIP whose `collate` opens JPEG files and crops them at random."""

    def build(self, settings, pairs: Pairs) -> None:
        self.clip, self.temperature = towers(), Temperature(0.07, learned=True)
        self.ends: list[float] = []

    def collate(self, rows: Pairs, generator: torch.Generator) -> dict:
        places = torch.rand(len(rows), 4, generator=generator)
        return {"pixels": torch.stack([*map(cropped, rows["image"], places)]),
                "ids": rows["ids_of_words"], "item": rows.item}

    def encode(self, batch: dict) -> dict[str, Tensor]:
        pixels = (batch["pixels"].permute(0, 3, 1, 2).float() - 118.0) / 69.0
        found = self.clip(input_ids=batch["ids"], pixel_values=pixels)
        return {"image": found.image_embeds, "text": found.text_embeds}

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        return {"contrastive_loss": info_nce(outputs["image"], outputs["text"],
                                             self.temperature(), positives_of(batch["item"]))}

    def after_step(self) -> None:
        self.ends.append(time.perf_counter())


@cache
def jpegs() -> tuple[Pairs, tempfile.TemporaryDirectory]:
    """Pictures of coloured noise at several scales, about as large in bytes as photographs
    of that side; of rows, each with random word numbers, several share a file. And the
    folder, gone with this process."""
    folder, draw = tempfile.TemporaryDirectory(), np.random.default_rng(0)
    paths = [Path(folder.name, f"{k % SIZE.files:05d}.jpg") for k in range(SIZE.rows)]
    for path in paths[:SIZE.files]:
        coarse, middle, fine = (Image.fromarray(
            draw.integers(0, 256, (n, n, 3), np.uint8)).resize((SIZE.side, SIZE.side), BICUBIC)
            for n in (4, 16, SIZE.side // 3))
        Image.blend(Image.blend(coarse, middle, 0.4), fine, 0.25).save(path, quality=90)
    ids = torch.from_numpy(draw.integers(0, 49000, (SIZE.rows, SIZE.words)))
    ids[:, -1] = 49407  # the end, where the tower is read
    return Pairs.make({"image": Lazy(paths, open_picture), "ids_of_words": ids}), folder


def prepared() -> tuple[Clip, Pairs]:
    torch.manual_seed(0)
    return Clip(None, jpegs()[0]).to(DEVICE), jpegs()[0]


def ours(workers: int) -> Callable:
    """`fit`; its share of seconds waited for data, and that after the first batch."""
    def prepare(most: int) -> Callable:
        method, pairs = prepared()
        most = max(2, most)

        def run(steps: int) -> dict:
            method.ends.clear()
            history = fit(method, pairs, Budget(steps=steps, batch_size=SIZE.batch, lr=1e-4,
                                                precision=SIZE.precision), workers=workers)
            spent = method.ends[-1] - method.ends[0]
            return {"seconds": spent / (steps - 1), "steps": float(steps),
                    "waited": history.waited / history.seconds,
                    "waited_later": sum(history.waits[1:]) / spent}

        def work() -> dict:
            few = run(min(3, most))
            return run(min(most, 1 + math.ceil(SECONDS / few["seconds"])))
        return work
    return prepare


class Rows(torch.utils.data.Dataset):
    """A row at a time, as most scripts have it."""

    def __init__(self, pairs: Pairs):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, row: int) -> dict:
        return {"pixels": cropped(self.pairs["image"][row], torch.rand(4)),
                "ids": self.pairs["ids_of_words"][row], "item": self.pairs.item[row]}


def by_hand(from_disk: bool) -> Callable:
    """The same steps in a plain loop: from torch's loader with as many workers, or on one
    batch that is on the device already."""
    def prepare(most: int) -> Callable:
        method, pairs = prepared()
        most = max(2, most)
        optimizer = torch.optim.AdamW(method.parameters(), lr=1e-4)
        rows = Rows(pairs)
        # One long epoch: at the end of each the workers would stand still for a while.
        order = torch.utils.data.RandomSampler(rows, True, num_samples=most * SIZE.batch)
        loader = torch.utils.data.DataLoader(
            rows, SIZE.batch, sampler=order, pin_memory=GPU,
            num_workers=SIZE.workers if from_disk else 0)
        there = None if from_disk else to_device(next(iter(loader)), torch.device(DEVICE))

        def work() -> dict:
            ends = []
            for batch in loader if from_disk else [there] * most:
                batch = to_device(batch, torch.device(DEVICE))
                with torch.autocast(DEVICE, torch.bfloat16,
                                    enabled=SIZE.precision == "bf16"):
                    loss = sum(method(batch).values())
                loss.backward()
                torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                loss.item()
                ends.append(time.perf_counter())
                if ends[-1] - ends[0] > SECONDS:
                    break
            return {"seconds": (ends[-1] - ends[0]) / (len(ends) - 1),
                    "steps": float(len(ends))}
        return work
    return prepare


N = SIZE.workers
FEED = Contest(
    f"a step of a CLIP ({'ViT-B/32' if GPU else 'a toy'}), {SIZE.batch} JPEG files of "
    f"{SIZE.side}² decoded and cropped for it; of {SECONDS} s, {{n}} at most",
    SIZE.steps, 3, {
        f"alignkit fit, {N} workers": ours(N),
        f"a loop by hand, torch's loader, {N} workers": by_hand(True),
        "a loop by hand, one batch that is there": by_hand(False),
        "alignkit fit, no workers": ours(0)})
