"""What a contest is, and the rows that every contestant gets."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Contest:
    """what: one line, with {n} for the size. size, warm: published, and to warm up.
    contestants: name -> size -> work. needs: contestant -> package, where it is a peer's.
    threads: where the contest is about one number of them. gpu: contestants that run on a
    GPU only; large: the published size is for a GPU."""

    what: str
    size: int
    warm: int
    contestants: dict[str, Callable[[int], Callable]]
    needs: dict[str, str] = field(default_factory=dict)
    threads: int | None = None
    gpu: frozenset[str] = frozenset()
    large: bool = False


def seeded(*shape: int) -> Tensor:
    """The same rows for every contestant."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(DEVICE)
