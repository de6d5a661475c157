"""One training loop for every method: stages, mixed precision, checkpoints, resume."""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tqdm.auto import tqdm

from alignkit.data import Pairs, Tokens
from alignkit.parts import Method, Stage
from alignkit.parts.large_batch import cached_backward
from alignkit.training import checkpoint
from alignkit.training.budget import Budget, rate
from alignkit.training.randomness import batch_rows, seed_all


@dataclass
class History:
    """What was seen: a dict a step (`stage`, `step`, each loss, `lr`), a dict a
    validation, and seconds of training in all."""

    steps: list[dict] = field(default_factory=list)
    validation: list[dict] = field(default_factory=list)
    seconds: float = 0.0

    def curve(self, name: str = "loss") -> list[float]:
        """One figure over the steps that have it."""
        return [row[name] for row in self.steps if name in row]


class NonFiniteLoss(RuntimeError):
    """A loss was NaN or infinite; the message names the losses, the step and the ids."""


def fit(method: Method, pairs: Pairs, budget: Budget = Budget(), seed: int = 0, *,
        validate: Callable[[Method], dict[str, float]] | None = None,
        folder: Path | str | None = None, progress: bool = False) -> History:
    """Train `method` in place on `pairs`, stage after stage.

    All randomness of a step is drawn from (seed, stage, step). With `folder` and
    `budget.save_every` checkpoints are written, and a second call with the same
    arguments goes on from the newest and ends with the same bits on CPU. `validate`
    gives named figures, `select_by` picks the weights by one of them.

    Raises:
        NonFiniteLoss: a loss was not finite; the last checkpoint stays.
        ValueError: no rows, an unknown setting, or a folder that holds another run.
    """
    if not len(pairs):
        raise ValueError("pairs has no rows to train on")
    accelerator = _accelerator(budget.precision)
    method.to(accelerator.device)
    run = _Run(method, budget, seed, validate, folder and Path(folder), accelerator)
    stages = list(method.stages())
    first, tensors = run.resume(pairs, [stage.name for stage in stages])
    for index, stage in enumerate(stages):
        if index >= first:
            run.stage(index, stage, pairs, tensors if index == first else None, progress)
    method.eval()
    return run.history


def _accelerator(precision: str):
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    # A notebook may train in float32 and then in bfloat16: the shared state would object.
    AcceleratorState._reset_state(reset_partial_state=False)
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(mixed_precision=precision, kwargs_handlers=[unused])


def to_device(batch: dict, device: torch.device) -> dict:
    """A batch with its tensors, tokens and dicts of them on `device`."""
    def move(x):
        if isinstance(x, torch.Tensor):
            return x.to(device)
        if isinstance(x, Tokens):
            return Tokens(*map(move, x))
        return {k: move(v) for k, v in x.items()} if isinstance(x, dict) else x
    return move(batch)


class _Run:
    """The state of one call of `fit`."""

    def __init__(self, method, budget, seed, validate, folder, accelerator):
        self.method, self.budget, self.seed = method, budget, seed
        self.validate, self.folder, self.accelerator = validate, folder, accelerator
        self.history, self.best, self.best_value = History(), {}, -math.inf

    def resume(self, pairs: Pairs, stages: list[str]) -> tuple[int, tuple | None]:
        """(first stage to run, checkpoint or None)."""
        rows = hashlib.sha256("\n".join(pairs.ids).encode()).hexdigest()
        self.identity = {"method": type(self.method).__name__, "seed": self.seed,
                         "settings": repr(self.method.settings),
                         "budget": {**asdict(self.budget), "betas": list(self.budget.betas)},
                         "data": pairs.provenance.hash, "rows": rows, "stages": stages}
        found = self.folder and checkpoint.newest(self.folder)
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
        self.best, self.best_value = {}, -math.inf
        steps = self.budget.steps if stage.steps is None else stage.steps
        groups = self._groups(stage)
        trained = {id(p) for group in groups for p in group["params"]}
        # What this stage does not train must not gather gradients for the next one.
        resting = [p for p in self.method.parameters()
                   if p.requires_grad and id(p) not in trained]
        for parameter in resting:
            parameter.requires_grad_(False)
        optimizer = torch.optim.AdamW(groups, lr=self.budget.lr, betas=self.budget.betas,
                                      weight_decay=self.budget.weight_decay)
        # A new one: with fp16 it unscales the gradients of every optimiser it remembers.
        self.accelerator = _accelerator(self.budget.precision)
        first = 0
        if found:
            first = self._restore(found, optimizer)
        model, optimizer = self.accelerator.prepare(self.method, optimizer)
        peaks = [group["lr"] for group in groups]
        bar = tqdm(range(first, steps), desc=stage.name, disable=not progress,
                   initial=first, total=steps)
        try:
            for step in bar:
                self._step(index, stage, step, steps, rows, model, optimizer, peaks)
                self.history.seconds += time.perf_counter() - started
                started = time.perf_counter()
                if self.budget.save_every and (step + 1) % self.budget.save_every == 0:
                    self._save(index, step + 1, optimizer)
        except KeyboardInterrupt:
            # The step that was interrupted may be half done: only whole checkpoints count.
            print(f"interrupted in stage {stage.name!r}"
                  + (f"; call fit again with folder={str(self.folder)!r} to go on"
                     if self.budget.save_every and self.folder else ""))
            raise
        finally:
            for parameter in resting:
                parameter.requires_grad_(True)
            # Accelerate leaves its autocast on the method.
            self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        if self.best:
            self.method.load_state_dict(self.best)

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

    def _step(self, index, stage, step, steps, rows, model, optimizer, peaks) -> None:
        # Random state: from (seed, stage, step) alone.
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        generator = seed_all(self.seed, index, step, rank)
        chosen = batch_rows(len(rows), self.budget.batch_size, self.seed, index, step)
        part = rows.select(chosen[rank::world])
        batch = to_device(self.method.collate(part, generator), self.accelerator.device)

        # Learning rate.
        factor = rate(self.budget, step, steps)
        for group, peak in zip(optimizer.param_groups, peaks):
            group["lr"] = factor * peak

        # Loss and gradient.
        model.train()
        cached = self.budget.chunk and self.budget.chunk < len(part)
        losses = (self._cached_gradients(batch, step / steps) if cached
                  else model(batch, step / steps))
        loss = sum(losses.values())
        seen = {name: value.item() for name, value in losses.items()}
        if not all(map(math.isfinite, seen.values())):
            raise NonFiniteLoss(f"stage {stage.name!r} step {step}: {seen}; rows "
                                f"{part.ids[:8]}{' …' if len(part) > 8 else ''}")
        if not cached:
            self.accelerator.backward(loss)
        if self.budget.clip:
            self.accelerator.clip_grad_norm_(model.parameters(), self.budget.clip)
        optimizer.step()
        optimizer.zero_grad()
        self.method.after_step()

        # What was seen.
        self.history.steps.append({"stage": stage.name, "step": step, "loss": loss.item(),
                                   **seen, "lr": factor * peaks[0]})
        every = self.budget.validate_every
        if self.validate and (step + 1 == steps or every and (step + 1) % every == 0):
            self._validate(stage, step + 1)

    def _cached_gradients(self, batch: dict, progress: float) -> dict:
        """The losses, their gradients in the parameters: `chunk` rows at a time, then
        averaged over processes, because this passes DistributedDataParallel by."""
        scaler = self.accelerator.scaler
        with self.accelerator.autocast():
            losses = cached_backward(self.method, batch, progress, chunk=self.budget.chunk,
                                     **({"scale": scaler.scale} if scaler else {}))
        if self.accelerator.num_processes > 1:
            for parameter in (p for p in self.method.parameters() if p.requires_grad):
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.accelerator.reduce(gradient, "mean")
        return losses

    def _validate(self, stage: Stage, step: int) -> None:
        self.method.eval()
        figures = self.validate(self.method)
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

    def _save(self, index: int, step: int, optimizer) -> None:
        if self.folder is None or not self.accelerator.is_main_process:
            return
        tensors = checkpoint.pack(self.method, optimizer, self.best)
        scaler = self.accelerator.scaler
        checkpoint.save(self.folder, index * 10**6 + step, tensors, {
            "identity": self.identity, "stage": index, "step": step,
            "best_value": self.best_value if self.best else None,
            "scaler": scaler.state_dict() if scaler else None,
            "history": asdict(self.history)})

    def _restore(self, found: tuple[dict, dict], optimizer) -> int:
        tensors, facts = found
        self.best = checkpoint.unpack(tensors, self.method, optimizer)
        if facts["best_value"] is not None:
            self.best_value = facts["best_value"]
        if facts["scaler"]:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        self.history = History(**facts["history"])
        return facts["step"]
