"""Runs that tests start in processes of their own: one is killed, two are joined.

`python training_runs.py kill FOLDER` trains, is killed twenty times and finishes,
`kill_with_workers` too;
`python training_runs.py joined FOLDER` is one process of two, `several` too.
"""

import itertools
import math
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from alignkit.data import Pairs
from alignkit.parts import DualEncoder, Settings, Stage
from alignkit.training import Budget, NonFiniteLoss, checkpoint, fit, seed_all

BUDGET = Budget(steps=24, batch_size=16, lr=1e-2, save_every=3, validate_every=4,
                select_by="figure")
# A checkpoint every second step, so that twenty lives each get on by one.
LONG = replace(BUDGET, steps=100, save_every=2)


def pairs(n: int = 50) -> Pairs:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, 4, generator=g)
    return Pairs.from_features({f"{name}_features": hidden @ torch.randn(4, 6, generator=g)
                                + 0.1 * torch.randn(n, 6, generator=g)
                                for name in ("image", "text")})


class Noisy(DualEncoder):
    """All that a checkpoint has to carry: stages, dropout, drawn noise, a moving average."""

    pause = 0.0

    def build(self, settings, pairs):
        super().build(settings, pairs)
        self.drop, self.seen = nn.Dropout(0.2), []
        self.register_buffer("average", self.heads["image"].weight.detach().clone())

    def stages(self):
        first = {"params": self.heads["image"].parameters(), "lr": 3e-2}
        return [Stage("image", parameters=[first], steps=8), Stage("all")]

    def collate(self, rows, generator):
        self.seen.append(rows.ids)
        batch = rows.batch()
        noise = torch.randn(batch["text_features"].shape, generator=generator)
        return {**batch, "text_features": batch["text_features"] + 0.1 * noise}

    def encode(self, batch):
        return super().encode({**batch, "image_features": self.drop(batch["image_features"])})

    def after_step(self):
        self.average.lerp_(self.heads["image"].weight.detach(), 0.1)
        time.sleep(self.pause)


class Centred(Noisy):
    """Its `collate` reads a buffer that stays; a forked worker must not touch a GPU and gets
    a copy of it on the CPU."""

    def build(self, settings, pairs):
        super().build(settings, pairs)
        self.register_buffer("mean", pairs["image_features"].mean(0))

    def collate(self, rows, generator):
        batch = super().collate(rows, generator)
        return {**batch, "image_features": batch["image_features"] - self.mean.cpu()}


def dual(rows: Pairs | None = None, seed: int = 0, **settings) -> DualEncoder:
    seed_all(seed)
    return DualEncoder(Settings(width=3, **settings), rows or pairs())


def snapshot(method: nn.Module) -> dict:
    return {k: v.clone() for k, v in method.state_dict().items()}


def assert_same(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def validate(method) -> dict[str, float]:
    """Highest in the middle of the run, so that the best weights are not the last."""
    return {"figure": -abs(float(method.average.sum()) - 0.3)}


def train(folder: Path | None = None, pause: float = 0.0, budget: Budget = BUDGET,
          workers: int = 0):
    """(method, history) of the run that every test of resuming compares."""
    rows = pairs()
    seed_all(5)
    method = Noisy(Settings(width=3, learn_temperature=True), rows)
    method.pause = pause
    return method, fit(method, rows, budget, seed=3, validate=validate, folder=folder,
                       workers=workers)


def kill_with_workers(folder: Path) -> None:
    """The same, each life with another number of workers."""
    kill(folder, most=2)


def kill(folder: Path, most: int = 0) -> None:
    """Kill the run twenty times, then finish it: at random moments after a new
    checkpoint, or at a random moment while one is written. most: workers."""
    import accelerate  # noqa: F401  once, and not in each life

    draw, killed = random.Random(), 0
    for life in range(20):
        before = set(folder.glob("*.json"))
        child = os.fork()
        if child == 0:
            if life % 2:
                kill_in_a_write(draw.randrange(8, 16))  # the first write is whole
            train(folder, pause=0.02, budget=LONG, workers=life % (most + 1))
            os._exit(0)
        if life % 2 == 0:
            until = time.monotonic() + 60
            while set(folder.glob("*.json")) <= before and time.monotonic() < until:
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.1))
            os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    method, history = train(folder, budget=LONG, workers=min(most, 1))
    torch.save({"weights": method.state_dict(), "steps": history.steps, "killed": killed,
                "validation": history.validation}, folder / "end.pt")


def kill_in_a_write(moment: int) -> None:
    """This process kills itself at its `moment`-th call of what writes a checkpoint; a
    file that is written then is left half written. One checkpoint makes 8 calls."""
    calls = itertools.count()

    def fatal(function):
        def call(*arguments, **named):
            if next(calls) == moment:
                if function in (checkpoint.save_file, Path.write_text):
                    file = Path(arguments[1] if function is not Path.write_text
                                else arguments[0])
                    file.write_bytes(b"half of what was mea")
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)
        return call

    checkpoint.save_file = fatal(checkpoint.save_file)
    os.replace, os.fsync = fatal(os.replace), fatal(os.fsync)
    Path.write_text, Path.unlink = fatal(Path.write_text), fatal(Path.unlink)


def joined(folder: Path) -> None:
    """One process of two: train, and leave the weights and what was seen. Each with a
    worker of its own ends there too."""
    method, history = train()
    assert_same(train(workers=1)[0].state_dict(), method.state_dict())
    rank = os.environ["RANK"]
    torch.save({"weights": method.state_dict(), "loss": history.curve(), "seen": method.seen},
               folder / f"end-{rank}.pt")


class Deep(DualEncoder):
    """Blocks, a learned temperature, a moving average, a stage that trains a part: what
    shards have to cope with. It draws nothing, so any number of processes agree."""

    lives = None  # steps after which it is interrupted
    sharded = False

    def build(self, settings, pairs):
        super().build(settings, pairs)
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.register_buffer("average", self.heads["image"].weight.detach().clone())
        self.register_buffer("process", torch.zeros(()), persistent=False)

    def stages(self):
        first = {"params": list(self.heads["text"].parameters()), "lr": 3e-2}
        return [Stage("text", parameters=[first], steps=4), Stage("all")]

    def encode(self, batch):
        x = batch["image_features"]
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        Deep.sharded = hasattr(self, "unshard")
        assert self.process == 0 or not self.training  # buffers are the first process's
        return super().encode({**batch, "image_features": x})

    def after_step(self):
        self.average.lerp_(self.heads["image"].weight.detach(), 0.1)
        self.process.fill_(int(os.environ.get("RANK", "0")))
        if Deep.lives is not None:
            Deep.lives -= 1
            if Deep.lives == 0:
                raise KeyboardInterrupt


DEEP = Budget(steps=12, batch_size=16, lr=1e-2, save_every=3, validate_every=4,
              select_by="figure")


def train_deep(folder: Path | None = None, lives: int | None = None, budget: Budget = DEEP,
               workers: int = 0):
    """(method, history); history is None if it was interrupted after `lives` steps."""
    rows = pairs()
    seed_all(5)
    method, Deep.lives = Deep(Settings(width=3, learn_temperature=True), rows), lives
    try:
        return method, fit(method, rows, budget, seed=3, folder=folder, workers=workers,
                           validate=validate if budget.select_by else None)
    except KeyboardInterrupt:
        return method, None


class BreaksHere(Deep):
    """A loss that is NaN in the second process alone, from one step on."""

    def losses(self, outputs, batch, progress):
        bad = progress > 0.5 and os.environ.get("RANK") == "1"
        losses = super().losses(outputs, batch, progress)
        return {**losses, "bad_loss": outputs["image"].sum() * (math.nan if bad else 0.0)}


class Writes(Deep):
    def after_step(self):
        with torch.no_grad():
            self.heads["image"].weight *= 0.9


def broken(folder: Path, chunk: int) -> str:
    """What the run says that cannot go on."""
    seed_all(5)
    method = BreaksHere(Settings(width=3), pairs())
    Deep.lives = None
    try:
        fit(method, pairs(), Budget(steps=12, batch_size=16, save_every=3, chunk=chunk),
            folder=folder)
    except NonFiniteLoss as error:
        assert all(torch.isfinite(v).all() for v in method.state_dict().values())
        return str(error)
    return "it went on"


def several(folder: Path) -> None:
    """One process of two: runs with DDP and in shards, interrupted and broken ones."""
    rank, ends, said = os.environ["RANK"], {}, {}

    def end(method, history):
        return {"weights": method.state_dict(), "loss": history.curve(),
                "sharded": Deep.sharded}

    ends["DDP"] = end(*train_deep())
    ends["chunk"] = end(*train_deep(budget=replace(DEEP, chunk=3)))
    ends["bf16"] = end(*train_deep(budget=replace(DEEP, precision="bf16", chunk=3)))
    said["DDP"] = broken(folder / "broken DDP", 0)
    said["chunk"] = broken(folder / "broken chunk", 3)
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    ends["FSDP2"] = end(*train_deep())
    ends["FSDP2 workers"] = end(*train_deep(workers=1))
    ends["FSDP2 last"] = end(*train_deep(budget=replace(DEEP, select_by=None)))
    ends["FSDP2 bf16"] = end(*train_deep(budget=replace(DEEP, precision="bf16")))
    said["FSDP2"] = broken(folder / "broken FSDP2", 0)
    for name in ("FSDP2 chunk", "FSDP1"):
        os.environ["FSDP_VERSION"] = "2" if name == "FSDP2 chunk" else "1"
        try:
            train_deep(budget=replace(DEEP, chunk=3))
        except ValueError as error:
            said[name] = str(error)
    os.environ["FSDP_VERSION"] = "2"
    try:
        train_deep(budget=replace(DEEP, batch_size=1))
    except ValueError as error:
        said["one row"] = str(error)
    try:
        fit(Writes(Settings(width=3), pairs()), pairs(), Budget(steps=1))
    except ValueError as error:
        said["writes"] = str(error)
    # A run from life to life: shards, shards, copies; the test process finishes it.
    assert train_deep(folder / "relay", lives=3 + 5)[1] is None
    assert train_deep(folder / "relay", lives=4)[1] is None
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    assert train_deep(folder / "relay", lives=4)[1] is None
    torch.save({"ends": ends, "said": said}, folder / f"end-{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    {run.__name__: run for run in (kill, kill_with_workers, joined, several)}[sys.argv[1]](
        Path(sys.argv[2]))
