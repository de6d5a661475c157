"""One contestant, once, in this process: `python -m alignkit.bench.child CONTEST NAME SIZE`
prints its seconds and the bytes of its peak beyond what stood there before."""

import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from alignkit.bench.contests import CONTESTS

LONG, AGAIN = 5.0, 3.0  # seconds: see the package's docstring
STATUS = Path("/proc/self/status")


def measure(contest: str, contestant: str, size: int) -> dict:
    """{"seconds", "peak"} of the contestant's work, after a small one that warms up; and
    the figures of its own, if it returns a dict of them: then also its own seconds."""
    make = CONTESTS[contest].contestants[contestant]
    make(CONTESTS[contest].warm)()
    work = make(size)
    gc.collect()
    before = _start()
    seconds, found = _timed(work)
    peak = max(0, _peak() - before)
    own = {name: value for name, value in (found.items() if isinstance(found, dict) else ())
           if isinstance(value, float)}
    if torch.cuda.is_available():
        peak -= max(0, torch.cuda.memory_allocated() - before)  # new gradients
        if seconds < LONG and "seconds" not in own:
            seconds = _again(work)
    return {"seconds": seconds, "peak": peak, **own}


def _again(work: Callable) -> float:
    """The median of up to five runs, of which no other begins after three seconds."""
    runs: list[float] = []
    while len(runs) < 5 and sum(runs) < AGAIN:
        runs.append(_timed(work)[0])
    return statistics.median(runs)


def _timed(work: Callable) -> tuple[float, object]:
    started = time.perf_counter()
    found = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, found


def _start() -> int:
    """Bytes in use now, from where the peak is counted."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if STATUS.exists():
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # else what was freed would still stand there
            libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again
        return _field("VmRSS")
    return _peak()


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if STATUS.exists():
        return _field("VmHWM")
    import resource  # macOS: in bytes, since the process began

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _field(name: str) -> int:
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith(name))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
