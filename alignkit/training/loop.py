"""One training loop for every method: stages, mixed precision, checkpoints, resume."""

import hashlib
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tqdm.auto import tqdm

from alignkit.data import Pairs, Tokens
from alignkit.parts import Method, Stage
from alignkit.training import checkpoint, distributed
from alignkit.training.budget import Budget, rate
from alignkit.training.feeding import Feed, Recipe
from alignkit.training.randomness import seed_all
from alignkit.training.trained import Sharded, Whole


@dataclass
class History:
    """What was seen: a dict a step (`stage`, `step`, each loss, `lr`), a dict a
    validation, seconds of training in all, and of each step the seconds that it waited
    for its batch (without workers: made it)."""

    steps: list[dict] = field(default_factory=list)
    validation: list[dict] = field(default_factory=list)
    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)

    @property
    def waited(self) -> float:
        """Seconds that all steps waited for their batches: no GPU waited longer, for it
        may still work on the step before."""
        return sum(self.waits)

    def curve(self, name: str = "loss") -> list[float]:
        """One figure over the steps that have it."""
        return [row[name] for row in self.steps if name in row]


class NonFiniteLoss(RuntimeError):
    """A loss was NaN or infinite; the message names the losses, the step and the ids.
    With several processes all of them stop, with the message of those that saw it."""


def fit(method: Method, pairs: Pairs, budget: Budget = Budget(), seed: int = 0, *,
        validate: Callable[[Method], dict[str, float]] | None = None,
        folder: Path | str | None = None, progress: bool = False,
        workers: int = 0) -> History:
    """Train `method` in place on `pairs`, stage after stage.

    All randomness of a step is drawn from (seed, stage, step). With `folder` and
    `budget.save_every` checkpoints are written, and a second call with the same
    arguments goes on from the newest and ends with the same bits on CPU. `validate`
    gives named figures, `select_by` picks the weights by one of them.

    `workers` processes make batches ahead, where `collate` decodes pictures or sounds (each
    of several processes has as many). They change no bit, so a run may go on with another
    number of them: see `Feed`.

    In several processes (`accelerate launch`, `torchrun`) each takes its share of every
    batch, with DDP or FSDP2 (see `distributed`). A checkpoint holds the whole state and
    goes on in any number of processes; all must see `folder`.

    Raises:
        NonFiniteLoss: a loss was not finite; the last checkpoint stays.
        ValueError: no rows, an unknown setting, or a folder that holds another run.
    """
    if not len(pairs):
        raise ValueError("pairs has no rows to train on")
    if not isinstance(workers, int) or workers < 0:
        raise ValueError(f"workers must be a whole number from 0 on, got {workers!r}")
    accelerator = distributed.accelerator(budget.precision)
    method.to(accelerator.device)
    run = _Run(method, budget, seed, validate, folder and Path(folder), accelerator,
               workers)
    stages = list(method.stages())
    first, tensors = run.resume(pairs, [stage.name for stage in stages])
    for index, stage in enumerate(stages):
        if index >= first:
            run.stage(index, stage, pairs, tensors if index == first else None, progress)
    method.eval()
    return run.history


def to_device(batch: dict, device: torch.device) -> dict:
    """A batch with its tensors, tokens and dicts of them on `device`."""
    beside = device.type == "cuda"  # out of pinned memory nobody waits for the copy

    def move(x):
        if isinstance(x, torch.Tensor):
            return x.to(device, non_blocking=beside)
        if isinstance(x, Tokens):
            return Tokens(*map(move, x))
        return {k: move(v) for k, v in x.items()} if isinstance(x, dict) else x
    return move(batch)


class _Run:
    """The state of one call of `fit`."""

    def __init__(self, method, budget, seed, validate, folder, accelerator, workers):
        self.method, self.budget, self.seed = method, budget, seed
        self.validate, self.folder, self.accelerator = validate, folder, accelerator
        self.workers = workers
        self.history, self.best, self.best_value = History(), {}, -math.inf

    def resume(self, pairs: Pairs, stages: list[str]) -> tuple[int, tuple | None]:
        """(first stage to run, checkpoint or None)."""
        rows = hashlib.sha256("\n".join(pairs.ids).encode()).hexdigest()
        self.identity = {"method": type(self.method).__name__, "seed": self.seed,
                         "settings": repr(self.method.settings),
                         "budget": {**asdict(self.budget), "betas": list(self.budget.betas)},
                         "data": pairs.provenance.hash, "rows": rows, "stages": stages}
        self.accelerator.wait_for_everyone()  # the first may still write what is read here
        found = self.folder and checkpoint.newest(self.folder)
        step = found and [found[1]["stage"], found[1]["step"]]
        if step != distributed.of_first(step, self.accelerator):
            raise ValueError(f"{self.folder} must be on a disk that all machines see: this "
                             "one finds another checkpoint there than the first")
        if not found:
            return 0, None
        if other := [k for k, v in self.identity.items() if found[1]["identity"].get(k) != v]:
            raise ValueError(f"{self.folder} holds another run (it differs in "
                             f"{', '.join(other)}): give a new folder")
        return found[1]["stage"], found

    def stage(self, index: int, stage: Stage, pairs: Pairs, found, progress: bool) -> None:
        rows = stage.view(pairs)
        if not len(rows):
            raise ValueError(f"stage {stage.name!r} has no rows to train on")
        if (stage.select_by or self.budget.select_by) and not self.validate:
            raise ValueError(f"stage {stage.name!r} selects weights by a validation "
                             "figure: give validate=… to fit")
        started = time.perf_counter()
        if stage.solve:
            seed_all(self.seed, "solve", index)
            with torch.no_grad():
                stage.solve(rows)
            self.history.seconds += time.perf_counter() - started
            return
        # A new one: with fp16 it unscales the gradients of every optimiser it remembers.
        self.accelerator = distributed.accelerator(self.budget.precision)
        kind = Sharded if distributed.wants_shards(self.accelerator, self.budget) else Whole
        size, world = min(len(rows), self.budget.batch_size), self.accelerator.num_processes
        if size < world:
            raise ValueError(f"stage {stage.name!r}: a batch of {size} rows is too small "
                             f"for {world} processes")
        self.best, self.best_value = {}, -math.inf
        steps = self.budget.steps if stage.steps is None else stage.steps
        groups = self._groups(stage)
        trained = {id(p) for group in groups for p in group["params"]}
        # What this stage does not train must not gather gradients for the next one.
        resting = [p for p in self.method.parameters()
                   if p.requires_grad and id(p) not in trained]
        for parameter in resting:
            parameter.requires_grad_(False)
        first = self._restore(found) if found else 0
        self.trained = kind(self.method, groups, self.budget, self.accelerator)
        self.trained.see(rows.select(range(size)))
        if found:
            checkpoint.unpack_optimizer(found[0], self.trained.optimizer)
        try:
            self._steps(index, stage, rows, range(first, steps), size, progress, started)
            self.trained.gather()
        except KeyboardInterrupt:
            # The step that was interrupted may be half done: only whole checkpoints count.
            if self.accelerator.is_main_process:
                print(f"interrupted in stage {stage.name!r}"
                      + (f"; call fit again with folder={str(self.folder)!r} to go on"
                         if self.budget.save_every and self.folder else ""))
            raise
        finally:
            for parameter in resting:
                parameter.requires_grad_(True)
            self.trained.close()
        if self.best:
            self.method.load_state_dict(self.best)

    def _steps(self, index, stage, rows, steps: range, size, progress, started) -> None:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        feed = Feed(Recipe(self.method, rows, size, self.seed, index, rank, world), steps,
                    self.workers, pin=self.accelerator.device.type == "cuda")
        show = progress and self.accelerator.is_main_process
        peaks = [group["lr"] for group in self.trained.optimizer.param_groups]
        with closing(feed), tqdm(
                desc=stage.name, disable=not show, unit=" rows", initial=steps.start * size,
                total=steps.stop * size) as bar:
            for step in steps:
                self._step(stage, step, steps.stop, feed, peaks)
                bar.update(size)
                self.history.seconds += time.perf_counter() - started
                started = time.perf_counter()
                if self.budget.save_every and (step + 1) % self.budget.save_every == 0:
                    self._save(index, step + 1)

    def _groups(self, stage: Stage) -> list[dict]:
        """The stage's groups of parameters, each with its rate."""
        groups = stage.parameters or [
            {"params": [p for p in self.method.parameters() if p.requires_grad]}]
        groups = [{"lr": self.budget.lr, **group, "params": list(group["params"])}
                  for group in groups]
        if not all(group["params"] for group in groups):
            raise ValueError(f"stage {stage.name!r} has a group without parameters: none "
                             "wants a gradient, or `params` was a generator that an earlier "
                             "stage has read (give a list)")
        return groups

    def _step(self, stage, step, steps, feed, peaks) -> None:
        # The batch: it and all randomness from (seed, stage, step) alone.
        asked = time.perf_counter()
        batch = feed.batch(step)
        self.history.waits.append(time.perf_counter() - asked)
        batch = to_device(batch, self.accelerator.device)

        # Learning rate.
        factor = rate(self.budget, step, steps)
        for group, peak in zip(self.trained.optimizer.param_groups, peaks):
            group["lr"] = factor * peak

        # Loss; in several processes all stop where one must.
        losses = self.trained.losses(batch, step / steps)
        loss = sum(losses.values())
        total, seen = loss.item(), {name: value.item() for name, value in losses.items()}
        wrong = None if all(map(math.isfinite, seen.values())) else self._not_finite(
            stage, step, seen, feed.ids(step))
        if said := distributed.all_say(wrong, self.accelerator):
            raise NonFiniteLoss("; ".join(said[:3]))

        # Gradient and update.
        self.trained.update(loss)

        # What was seen.
        self.history.steps.append({"stage": stage.name, "step": step, "loss": total,
                                   **seen, "lr": factor * peaks[0]})
        every = self.budget.validate_every
        if self.validate and (step + 1 == steps or every and (step + 1) % every == 0):
            self._validate(stage, step + 1)

    def _not_finite(self, stage: Stage, step: int, seen: dict, ids: list[str]) -> str:
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        return (f"stage {stage.name!r} step {step}{f', process {rank}' if world > 1 else ''}: "
                f"{seen}; rows {ids[:8]}{' …' if len(ids) > 8 else ''}")

    def _validate(self, stage: Stage, step: int) -> None:
        self.trained.gather()
        self.method.eval()
        figures = distributed.of_first(self.validate(self.method), self.accelerator)
        self.history.validation.append({"stage": stage.name, "step": step, **figures})
        chosen = stage.select_by or self.budget.select_by
        if chosen is None:
            return
        if chosen not in figures:
            raise ValueError(f"stage {stage.name!r} selects by {chosen!r}, "
                             f"validate gives {sorted(figures)}")
        if figures[chosen] > self.best_value:
            self.best_value = figures[chosen]
            self.best = {k: v.detach().clone() for k, v in self.method.state_dict().items()}

    def _save(self, index: int, step: int) -> None:
        if self.folder is None:
            return
        self.trained.gather()
        first = self.accelerator.is_main_process
        tensors = checkpoint.pack(self.method, self.trained.optimizer, self.best, first)
        if not first:
            return
        scaler = self.accelerator.scaler
        checkpoint.save(self.folder, index * 10**6 + step, tensors, {
            "identity": self.identity, "stage": index, "step": step,
            "best_value": self.best_value if self.best else None,
            "scaler": scaler.state_dict() if scaler else None,
            "history": asdict(self.history)})

    def _restore(self, found: tuple[dict, dict]) -> int:
        """The state of a checkpoint but for the optimiser; its step."""
        tensors, facts = found
        self.best = checkpoint.unpack(tensors, self.method)
        if facts["best_value"] is not None:
            self.best_value = facts["best_value"]
        if facts["scaler"]:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        self.history = History(**facts["history"])
        return facts["step"]
