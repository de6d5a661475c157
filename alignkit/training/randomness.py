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
    if torch.accelerator.is_available():
        torch.manual_seed(seed_of(*parts))
    return seed_host(*parts)  # alone, without notes for devices, it is a quarter of a step


def seed_host(*parts: object) -> torch.Generator:
    """`seed_all` without the GPUs, which a worker must not touch."""
    seed = seed_of(*parts)
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    return torch.Generator().manual_seed(seed)


def host_state() -> tuple:
    """Where the three global generators of the CPU are."""
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def set_host_state(state: tuple) -> None:
    """Put the three global generators where `host_state` found them."""
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])
    random.setstate(state[2])


@contextmanager
def kept_randomness() -> Iterator[None]:
    """Whatever is seeded or drawn inside, the three global generators come back."""
    state = host_state()
    try:
        yield
    finally:
        set_host_state(state)


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
