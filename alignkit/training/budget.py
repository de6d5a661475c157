"""What a run may spend, and how its learning rate goes."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """What a run may spend, the same for every arm of a claim.

    steps, batch_size: of each stage that names none (a batch is never larger than the
    rows). chunk: rows encoded at a time, their gradients cached (0: the whole batch at
    once); the same gradient in less memory and more time. (Accumulating the gradients of
    small batches instead would be another loss: a contrastive row would meet only the
    others of its small batch.) lr: peak rate of AdamW; warmup: the part of the steps it
    rises linearly, then a cosine to zero (`schedule='constant'` stays). clip: largest
    gradient norm. precision: 'no', 'bf16' or 'fp16'. validate_every, save_every: in
    steps; 0 is 'at the end' and 'never'.
    select_by: the validation figure whose highest value picks the weights to keep
    (None: the last weights); a stage may name its own.
    """

    steps: int = 300
    batch_size: int = 512
    chunk: int = 0
    lr: float = 1e-3
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = 0.05
    schedule: str = "cosine"
    clip: float = 1.0
    precision: str = "no"
    validate_every: int = 0
    save_every: int = 0
    select_by: str | None = None

    def __post_init__(self):
        needs = {"steps": self.steps >= 0, "batch_size": self.batch_size >= 1,
                 "chunk": self.chunk >= 0,
                 "lr": self.lr >= 0, "weight_decay": self.weight_decay >= 0,
                 "warmup": 0 <= self.warmup <= 1, "clip": self.clip >= 0,
                 "schedule": self.schedule in ("cosine", "constant"),
                 "precision": self.precision in ("no", "bf16", "fp16"),
                 "validate_every": self.validate_every >= 0,
                 "save_every": self.save_every >= 0}
        if wrong := [name for name, fits in needs.items() if not fits]:
            raise ValueError("; ".join(f"{name} cannot be {getattr(self, name)!r}"
                                       for name in wrong) + ": see Budget")


def rate(budget: Budget, step: int, steps: int) -> float:
    """The factor on the learning rate at `step` of `steps`."""
    warm = round(budget.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    if budget.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
