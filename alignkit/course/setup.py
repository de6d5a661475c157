"""The one call of a notebook's set-up cell."""

import logging
import os
import platform
import random
import warnings
from collections.abc import Sequence
from numbers import Integral

from .. import versions
from .frontend import break_between_words, fold, interactive, kernel
from .parameters import check_parameters
from .plots import style

# Known, harmless, and on stderr, where nbval would take them for a failure.
HARMLESS = (
    ".*IProgress not found.*",  # tqdm without ipywidgets
    ".*'pin_memory' argument is set as true but.*",  # a loader on a machine without GPU
    ".*Failed to load image Python extension.*",  # torchvision's optional codecs
    r".*Glyph \d+ .* missing from.*",  # a caption in a script that the font lacks
    ".*resource_tracker: There appear to be.*",
)


def setup(seed: int | Sequence[int] = 0, threads: int = 1) -> None:
    """Make the session repeatable and quiet, and print a line or two that describe it.

    Seeds random, numpy and torch, fixes the number of threads, sets the look of all
    figures and silences known warnings; progress bars are switched off where nobody
    watches.

    Args:
        seed: a whole number, or the notebook's list of seeds: its first counts.

    Raises:
        TypeError: a seed that is no whole number, or a parameter given by papermill that
            is of another kind than the notebook's own.
        ValueError: no seed, one outside 0 … 2³² − 1, threads below 1.
    """
    check_parameters(kernel())
    seed = _first(seed)
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    _quiet()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for processes started from here
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    style()
    break_between_words()
    print(environment(threads))


def _first(seed) -> int:
    seeds = list(seed) if isinstance(seed, list | tuple) else [seed]
    if not seeds:
        raise ValueError("seed: the list of seeds is empty; give at least one, [0]")
    for one in seeds:
        if not isinstance(one, Integral) or isinstance(one, bool):
            raise TypeError(f"seed must be a whole number or a list of them, got {one!r}")
        if not 0 <= one < 2**32:
            raise ValueError(f"seed must lie in 0 … 2**32 - 1, got {one}")
    return int(seeds[0])


def environment(threads: int) -> str:
    """A line or two: versions, threads, device."""
    import torch

    numbers = [f"alignkit {versions.__version__}", *(
        f"{name} {versions.installed(name)}" for name in ("torch", "torchvision", "numpy"))]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    count = "1 thread" if threads == 1 else f"{threads} threads"
    facts = [f"Python {platform.python_version()}", *numbers, count, device]
    tied = " · ".join(fact.replace(" ", "\xa0") for fact in facts)  # no name alone
    return fold(tied).replace("\xa0", " ")


def _quiet() -> None:
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not interactive():
        _no_progress_bars()


def _no_progress_bars() -> None:
    """A bar writes to stderr or leaves a widget view in the file: none, anywhere."""
    from tqdm import std

    start = std.tqdm.__init__
    if start.__name__ == "silent":
        return

    # TQDM_DISABLE would be read at import, which may have been long ago, and the
    # notebook's bar overrules it with disable=False.
    def silent(self, *args, **settings) -> None:
        start(self, *args, **(settings | {"disable": True}))

    std.tqdm.__init__ = silent
