"""What a run will cost, before it starts."""

import copy
import math
import os
import time
from dataclasses import dataclass, replace

import torch

from alignkit.data import Pairs
from alignkit.parts import Method
from alignkit.parts.large_batch import cached_backward, row_paths
from alignkit.parts.large_batch.plain import TILE
from alignkit.training.budget import Budget
from alignkit.training.loop import to_device
from alignkit.training.randomness import batch_rows, kept_randomness, seed_all


MOST_WORKERS = 8


@dataclass(frozen=True)
class Estimate:
    """Seconds of training, and of these what making the batches takes; bytes of weights,
    of gradients with AdamW's two averages, and of what one step keeps for its backward
    pass."""

    seconds: float
    weights: int
    optimizer: int
    saved: int
    trainable: int
    making: float = 0.0

    def workers(self, processes: int = 1) -> int:
        """With so many workers no step should wait for its batch: 0 where making it is a
        twentieth of a step at most; never more than the cores of each of `processes`."""
        rest = self.seconds - self.making
        if not self.making or self.making <= 0.05 * rest:
            return 0
        needed = math.ceil(1.5 * self.making / max(rest, 1e-9))
        return max(0, min(MOST_WORKERS, needed, cores() // processes - 1))

    def fed_by(self, workers: int) -> "Estimate":
        """With `workers` that make batches beside the steps."""
        return self if not workers else replace(
            self, seconds=max(self.seconds - self.making, self.making / workers))

    def __str__(self) -> str:
        memory = (self.weights + self.optimizer + self.saved) / 2**20
        return (f"about {self.seconds:.0f} s and {memory:.0f} MiB beside the data "
                f"({self.trainable:,} trainable parameters)")


def memory_of(method: Method) -> tuple[int, int, int]:
    """(bytes of weights, bytes of gradients and AdamW, trainable numbers); works for a
    method built on the meta device."""
    weights = sum(t.numel() * t.element_size() for t in method.state_dict().values())
    train = [p for p in method.parameters() if p.requires_grad]
    extra = sum(3 * p.numel() * p.element_size() for p in train)
    return weights, extra, sum(p.numel() for p in train)


def estimate(method: Method, pairs: Pairs, budget: Budget = Budget()) -> Estimate:
    """Measure one step of each stage on a copy of `method`; nothing is changed.

    In float32, where the method lies: mixed precision takes less. In several processes
    every one must call, with its own share of the batch as `budget.batch_size`.
    """
    weights, extra, trainable = memory_of(method)
    trial, seconds, making, most = copy.deepcopy(method).train(), 0.0, 0.0, 0
    with kept_randomness():
        for index, stage in enumerate(trial.stages()):
            if stage.solve:
                continue
            rows = stage.view(pairs)
            for step in range(2):  # the first is slower and is not counted
                made, took, saved = _one_step(trial, rows, budget, index, step)
            steps = budget.steps if stage.steps is None else stage.steps
            seconds, making = seconds + took * steps, making + made * steps
            most = max(most, saved)
    return Estimate(seconds, weights, extra, most, trainable, making)


def _one_step(method: Method, rows: Pairs, budget: Budget, index: int, step: int):
    """(seconds of making the batch, of all, bytes kept for the backward pass) of one step."""
    saved: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    started = time.perf_counter()
    generator = seed_all(0, index, step)
    part = rows.select(batch_rows(len(rows), budget.batch_size, 0, index, step))
    device = next(iter(method.state_dict().values())).device
    batch = method.collate(part, generator)
    made = time.perf_counter() - started
    batch = to_device(batch, device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        if 0 < budget.chunk < len(part):
            cached_backward(method, batch, 0.5, chunk=budget.chunk,
                            rows=row_paths(method, part))
        else:
            sum(method(batch, 0.5).values()).backward()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return made, time.perf_counter() - started, sum(saved.values())


def cores() -> int:
    """How many this process may use."""
    here = getattr(os, "sched_getaffinity", None)
    return len(here(0)) if here else os.cpu_count() or 1


def logits_memory(rows: int) -> tuple[int, int]:
    """Bytes of the logits of a batch: whole [rows, rows], and a tile of them at a time
    (`parts.large_batch.tiled_info_nce`), in float32."""
    tile = min(rows, TILE)
    return 4 * rows**2, 4 * tile**2
