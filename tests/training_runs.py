"""Runs that tests start in processes of their own: one is killed, two are joined.

`python training_runs.py kill FOLDER` trains, is killed three times and finishes;
`python training_runs.py joined FOLDER` is one process of two.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from alignkit.data import Pairs
from alignkit.parts import DualEncoder, Settings, Stage
from alignkit.training import Budget, fit, seed_all

BUDGET = Budget(steps=24, batch_size=16, lr=1e-2, save_every=3, validate_every=4,
                select_by="figure")


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
    return {"figure": -abs(float(method.average.sum()) - method.settings.temperature)}


def train(folder: Path | None = None, pause: float = 0.0):
    """(method, history) of the run that every test of resuming compares."""
    rows = pairs()
    seed_all(5)
    method = Noisy(Settings(width=3, learn_temperature=True), rows)
    method.pause = pause
    return method, fit(method, rows, BUDGET, seed=3, validate=validate, folder=folder)


def kill(folder: Path) -> None:
    """Kill the run three times at a random moment after a new checkpoint, then finish it."""
    draw, killed = random.Random(), 0
    for _ in range(3):
        before = set(folder.glob("*.json"))
        child = os.fork()
        if child == 0:
            train(folder, pause=0.05)
            os._exit(0)
        until = time.monotonic() + 60
        while set(folder.glob("*.json")) <= before and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.2))
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    method, history = train(folder)
    torch.save({"weights": method.state_dict(), "steps": history.steps, "killed": killed,
                "validation": history.validation}, folder / "end.pt")


def joined(folder: Path) -> None:
    """One process of two: train, and leave the weights and what was seen."""
    method, history = train()
    rank = os.environ["RANK"]
    torch.save({"weights": method.state_dict(), "loss": history.curve(), "seen": method.seen},
               folder / f"end-{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"kill": kill, "joined": joined}[sys.argv[1]](Path(sys.argv[2]))
