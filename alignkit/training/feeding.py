"""The batches of a stage: made in the loop's own process, or ahead of it by workers."""

import os
import pickle
import sys
import threading
import time
import traceback
from dataclasses import dataclass, replace
from multiprocessing.pool import RemoteTraceback

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from alignkit.data import Lazy, Pairs
from alignkit.data.columns import take
from alignkit.parts import Method
from alignkit.training.randomness import (
    batch_rows, host_state, seed_all, seed_host, set_host_state,
)  # fmt: skip

SHARED = "/dev/shm"  # through which workers hand tensors over


@dataclass(frozen=True)
class Recipe:
    """What the batches of a stage are made of, so that each is a function of its step.

    size: rows of a batch in all `world` processes, of which `rank` is this one; stage:
    its place in `Method.stages`.
    """

    method: Method
    rows: Pairs
    size: int
    seed: int
    stage: int
    rank: int = 0
    world: int = 1

    def chosen(self, step: int) -> Tensor:
        """This process's row numbers."""
        whole = batch_rows(len(self.rows), self.size, self.seed, self.stage, step)
        return whole[self.rank::self.world]

    def randomness(self, step: int) -> tuple:
        """What `seed_all` takes."""
        return self.seed, self.stage, step, self.rank


class Feed:
    """The batches of the steps `steps`, asked for in that order.

    workers: processes that make batches ahead, two each; 0: they are made when they are
    asked for. It changes no bit: a worker seeds its generators as this process would, and
    hands over where `collate` left them, so that dropout goes on from the same place.
    (Workers compute with one thread. Where `collate` adds up long sums, which threads
    share, a run without workers has the same bits with one thread only.)

    `collate` then runs on a copy of the method as it was when the stage began, whose
    parameters have no values: what it writes on the method is lost, and so it must not
    read what training changes. A buffer that it reads and that has changed is refused;
    no paper's `collate` reads one. What `collate` leaves `Lazy` is decoded in this
    process when it is asked for, so decode in `collate`.

    On Linux workers are forked and nothing is sent to them; elsewhere method and rows
    must be picklable. `pin`: hand tensors over in pinned memory, for a GPU.
    """

    def __init__(self, recipe: Recipe, steps: range, workers: int = 0, pin: bool = False):
        self.recipe, self.steps, self.pin = recipe, steps, pin
        self.workers, self.batches = min(workers, len(steps)), None

    def batch(self, step: int) -> dict:
        """The batch of the step; the generators are then where `collate` left them.

        Raises what `collate` raises; with workers also ValueError for a buffer that it
        reads and that has changed, TypeError for what cannot be sent, and OSError where
        the shared memory is too small.
        """
        recipe = self.recipe
        generator = seed_all(*recipe.randomness(step))
        recipe.method.train()  # a validation may have left it in eval mode
        if not self.workers:
            return recipe.method.collate(recipe.rows.select(recipe.chosen(step)), generator)
        made = self._next()
        if isinstance(made, _Failed):
            raise made.error()
        batch, lazy, read, state = made
        self._refuse_old(read)
        set_host_state(pickle.loads(state))
        rows = recipe.chosen(step) if lazy else None
        return batch | {name: take(recipe.rows[name], rows) for name in lazy}

    def ids(self, step: int) -> list[str]:
        """The names of the step's rows."""
        return take(self.recipe.rows.ids, self.recipe.chosen(step))

    def close(self) -> None:
        """End the workers, also while an error is on its way and still holds them."""
        if self.batches is not None:
            self.batches._shutdown_workers()
            self.batches = None

    def _start(self) -> None:
        method = self.recipe.method
        self.buffers = {name: (x, x._version) for name, x in method.named_buffers()}
        self.batches = iter(DataLoader(
            _Ahead(self.recipe), batch_size=None, sampler=self.steps, pin_memory=self.pin,
            collate_fn=_as_it_is, num_workers=self.workers, worker_init_fn=_in_a_worker,
            generator=torch.Generator(),  # its own, not the global one that the loop uses
            multiprocessing_context="fork" if sys.platform == "linux" else None))

    def _next(self):
        try:
            if self.batches is None:
                self._start()
            return next(self.batches)
        except RuntimeError as error:
            if "worker" in str(error):
                error.add_note("A worker was ended from outside, as a rule because memory "
                               "was short: fewer workers and smaller batches take less.")
            raise

    def _refuse_old(self, read: set[str]) -> None:
        now = dict(self.recipe.method.named_buffers()) if read else {}
        for name in sorted(read & now.keys()):
            buffer, version = self.buffers[name]
            if now[name] is not buffer or buffer._version != version:
                raise ValueError(
                    f"collate of {type(self.recipe.method).__name__} reads the buffer "
                    f"{name!r}, which training changes: workers make batches ahead and "
                    "would read an old one; give workers=0")


class _Ahead(Dataset):
    """In a worker: step -> its batch, or why there is none."""

    def __init__(self, recipe: Recipe):
        self.read: set[str] = set()
        self.recipe = replace(recipe, method=_without_weights(recipe.method.train(), self.read))

    def __getitem__(self, step: int):
        recipe = self.recipe
        try:
            self.read.clear()
            rows = recipe.rows.select(recipe.chosen(step))
            batch = recipe.method.collate(rows, seed_host(*recipe.randomness(step)))
            state = pickle.dumps(host_state())
            lazy = [name for name, value in batch.items()
                    if isinstance(value, Lazy) and value is rows.columns.get(name)]
            batch |= dict.fromkeys(lazy)  # their places: the loop's process has the sources
            _fits(sum(_sent(name, value) for name, value in batch.items()))
            return batch, lazy, set(self.read), state
        except Exception as error:
            return _Failed(error)


class _Failed:
    """A worker's error as it was raised; torch would put its own words before it."""

    def __init__(self, error: Exception):
        if "meta" in str(error):
            error.add_note("in a worker the method's parameters have no values: if collate "
                           "needs them, give workers=0")
        self.trace = traceback.format_exc()
        try:
            self.raw = pickle.dumps(error)
            pickle.loads(self.raw)
        except Exception:  # one that pickle cannot make anew
            other = RuntimeError(f"{type(error).__name__}: {error}")
            other.__notes__ = getattr(error, "__notes__", [])
            self.raw = pickle.dumps(other)

    def error(self) -> Exception:
        found = pickle.loads(self.raw)
        found.__cause__ = RemoteTraceback(f"in a worker:\n{self.trace}")
        return found


class _Watched(dict):
    """Buffers that remember which of them were read."""

    def __init__(self, buffers: dict, prefix: str, read: set[str]):
        super().__init__(buffers)
        self.prefix, self.into = prefix, read

    def __getitem__(self, name: str) -> Tensor | None:
        self.into.add(self.prefix + name)
        return super().__getitem__(name)


def _without_weights(module: nn.Module, read: set[str], prefix: str = "") -> nn.Module:
    """A copy whose parameters have no values and whose buffers are on the CPU (a forked
    process must not touch a GPU), with the names of those that are asked for in `read`."""
    twin = type(module).__new__(type(module))
    twin.__dict__.update(module.__dict__)
    buffers = {name: buffer if buffer is None else buffer.detach().to("cpu", copy=True)
               for name, buffer in module._buffers.items()}
    twin.__dict__.update(
        _parameters={name: weight if weight is None else weight.detach().to("meta")
                     for name, weight in module._parameters.items()},
        _buffers=_Watched(buffers, prefix, read),
        _modules={name: inner and _without_weights(inner, read, f"{prefix}{name}.")
                  for name, inner in module._modules.items()})
    return twin


def _sent(name: str, value) -> int:
    """Bytes of tensors in a part of a batch. Raises TypeError for what cannot be sent:
    the queue between processes would say so on the screen and wait for ever."""
    if isinstance(value, Tensor):
        if value.is_meta or value.requires_grad:
            raise TypeError(f"the batch's {name!r} comes from weights, which workers do not "
                            "have: compute it in encode, or give workers=0")
        return value.nbytes
    if isinstance(value, dict):
        return sum(_sent(f"{name}.{key}", part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return sum(_sent(name, part) for part in value)
    if value is not None and not isinstance(value, str | int | float):
        try:
            pickle.dumps(value)
        except Exception as error:
            raise TypeError(f"the batch's {name!r}, a {type(value).__name__}, cannot be sent "
                            f"from a worker ({error}): give workers=0") from None
    return 0


def _fits(size: int) -> None:
    """Raises OSError where the shared memory has no room for so many bytes: writing there
    would end the worker by a signal."""
    if not os.path.isdir(SHARED):
        return
    at = os.statvfs(SHARED)
    if size > (free := at.f_bavail * at.f_frsize):
        raise OSError(f"a batch of {size / 2**20:.0f} MiB does not fit in {SHARED}, through "
                      f"which workers send it and where {free / 2**20:.0f} MiB are free: "
                      "fewer workers, smaller batches, or more of it (docker --shm-size=8g)")


def _as_it_is(batch):
    """Torch would make tensors of arrays, and another batch than without workers."""
    return batch


def _in_a_worker(_: int) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # threads are not forked
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """A worker whose parent is killed would wait for ever with batches that nobody takes."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
