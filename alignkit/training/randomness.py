"""Randomness of step t as a pure function of (seed, t): nothing to save, exact resume."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def seed_of(*parts: object) -> int:
    """A seed below 2⁶³ from any parts, e.g. seed_of(seed, 'order', epoch)."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def seed_all(*parts: object) -> torch.Generator:
    """Seed torch, numpy and random from `parts`; a CPU generator of the same seed."""
    seed = seed_of(*parts)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # the same without notes for devices that are not there, a quarter of a step
        torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    return torch.Generator().manual_seed(seed)


@contextmanager
def kept_randomness() -> Iterator[None]:
    """Whatever is seeded or drawn inside, the three global generators come back."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


@lru_cache(maxsize=2)
def _order(n: int, seed: int, stage: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed_of(seed, "order", stage, epoch))
    return torch.randperm(n, generator=generator)


def batch_rows(n: int, batch_size: int, seed: int, stage: int, step: int) -> Tensor:
    """Row numbers [min(n, batch_size)] of step `step`: a permutation an epoch, and the
    rows that do not fill a last batch wait for the next epoch's order."""
    size = min(n, batch_size)
    epoch, place = divmod(step, n // size)
    return _order(n, seed, stage, epoch)[place * size : (place + 1) * size]
