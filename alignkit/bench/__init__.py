"""`alignkit bench`: the package beside its peers, on the same tensors, in one run.

A contest is run in rounds. In each round every contestant gets a process of its own, one
after the other, so that neither memory nor a warm cache of one helps another; the figure
is the median over the rounds, and a ratio is a median of the rounds' ratios. Memory is
the peak of the process while it works, beyond what stood there before: the inputs, and
gradients that were given a place; on a GPU also beyond what it leaves, new gradients. On a
GPU a process that works for less than five seconds works again, up to five times or for
three seconds, and tells the median of these.
"""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm.auto import tqdm

from alignkit.bench.contest import DEVICE
from alignkit.bench.contests import CONTESTS
from alignkit.versions import installed

ROUNDS = 7
MARKERS = "<!-- bench -->", "<!-- /bench -->"


def bench(names: list[str], *, rounds: int = ROUNDS, size: int | None = None,
          threads: int = 2, limit: float | None = None) -> dict:
    """Figures of the contests `names`: {contest: {"size", "rows"}} and the machine's facts.

    Args:
        names: of `CONTESTS`.
        rounds: at least 1; 7 or more for figures that are shown to others.
        size: of each contest in its own unit; None: the size that is published.
        threads: of each process, where a contest does not fix them.
        limit: seconds that a contestant's process may take.
    Raises:
        ValueError: an unknown contest, or no rounds.
        RuntimeError: a contestant stopped, whose last lines are told, or took too long.
    """
    if unknown := [name for name in names if name not in CONTESTS]:
        raise ValueError(f"bench has {', '.join(CONTESTS)}, got {', '.join(unknown)}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    found = {"machine": machine(threads), "rounds": rounds, "contests": {}}
    for name in names:
        contest = CONTESTS[name]
        n = size or contest.size
        present = [c for c in contest.contestants
                   if (c not in contest.needs or installed(contest.needs[c]))
                   and (c not in contest.gpu or DEVICE == "cuda")]
        missing = sorted(set(contest.contestants) - set(present))
        seen: dict[str, list[dict]] = {c: [] for c in present}
        # The order turns, so that a slow minute of the machine hits all alike.
        order = [present[(turn + place) % len(present)] for turn in range(rounds)
                 for place in range(len(present))]
        bar = tqdm(order, desc=f"{name}, size {n}")
        for contestant in bar:
            bar.set_postfix_str(contestant)
            seen[contestant].append(
                _child(name, contestant, n, contest.threads or threads, limit))
        found["contests"][name] = {"what": contest.what.format(n=n), "size": n,
                                   "missing": missing, "rows": _rows(seen)}
    return found


def bench_to(out: Path, names: Iterable[str], **settings) -> dict:
    """`bench` one contest after another. What is measured is written to `out` and printed as
    Markdown after each; which peers are not installed is said beside it.

    Raises RuntimeError in the end, if contests stopped: the others have been measured.
    """
    found, stopped = {}, []
    for name in names:
        try:
            new = bench([name], **settings)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            stopped.append(name)
            continue
        if not found:
            print(head(new))
        found = {**new, "contests": found.get("contests", {}) | new["contests"]}
        print(lines(name, new["contests"][name]), flush=True)
        if missing := new["contests"][name]["missing"]:
            print(f"{name}: not installed, or for a GPU, so not measured: {', '.join(missing)} "
                  "(pip install 'alignkit[bench]')", file=sys.stderr)
        part = out.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        os.replace(part, out)
    if stopped:
        raise RuntimeError(f"bench could not measure {', '.join(stopped)}")
    return found


def usual() -> list[str]:
    """The contests that this machine is large enough for."""
    return [name for name, contest in CONTESTS.items() if DEVICE == "cuda" or not contest.large]


def _rows(seen: dict[str, list[dict]]) -> list[dict]:
    """A row a contestant; ratios are to the first one, round by round."""
    first = next(iter(seen.values()))
    rows = []
    for name, runs in seen.items():
        times = [b["seconds"] / a["seconds"] for a, b in zip(first, runs, strict=True)]
        memory = [b["peak"] / max(1, a["peak"]) for a, b in zip(first, runs, strict=True)]
        rows.append({
            "name": name, "seconds": statistics.median(r["seconds"] for r in runs),
            "peak_mb": statistics.median(r["peak"] for r in runs) / 2**20,
            "times_the_time": statistics.median(times),
            "times_the_memory": statistics.median(memory), "runs": runs,
            **{own: statistics.median(r[own] for r in runs)
               for own in runs[0] if own not in ("seconds", "peak")}})
    return rows


def _child(contest: str, contestant: str, size: int, threads: int,
           limit: float | None) -> dict:
    """{"seconds", "peak"} of one run in a process of its own."""
    settings = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "alignkit.bench.child", contest, contestant, str(size)],
            env={**os.environ, **settings}, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"bench {contest}: {contestant} took over {limit:g} s") from None
    if done.returncode:
        raise RuntimeError(f"bench {contest}: {contestant} stopped:\n{done.stderr[-1500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def machine(threads: int) -> dict:
    """What figures of this machine must be told with."""
    import torch

    device = (torch.cuda.get_device_name() if torch.cuda.is_available()
              else f"CPU, {threads} threads of {os.cpu_count()}")
    peers = {need for contest in CONTESTS.values() for need in contest.needs.values()}
    return {"device": device, "system": platform.platform(terse=True),
            "versions": {name: installed(name) for name in ("torch", *sorted(peers))}}


def table(found: dict) -> str:
    """The figures as Markdown."""
    return "\n".join([head(found), *(lines(*x) for x in found["contests"].items())])


def head(found: dict) -> str:
    """What stands above a table's rows."""
    rounds = (f"medians of {found['rounds']} alternating rounds" if found["rounds"] > 1
              else "one round")
    return (f"{found['machine']['device']}; {rounds}, each in a process of its own; "
            "memory beyond inputs and their gradients.\n\n"
            "| | time | × time | memory | × memory |\n|---|---|---|---|---|")


def lines(name: str, contest: dict) -> str:
    """The rows of one contest."""
    found = [f"| **{name}**: {contest['what']} | | | | |"]
    for row in contest["rows"]:
        waited = (f", waits {row['waited']:.1%} (after its first batch "
                  f"{row['waited_later']:.1%})" if "waited" in row else "")
        seconds = f"{row['seconds']:.{2 if row['seconds'] >= 1 else 3}f} s"
        found.append(f"| {row['name']}{waited} | {seconds} | {row['times_the_time']:.2f} | "
                     f"{row['peak_mb']:.0f} MB | {row['times_the_memory']:.1f} |")
    return "\n".join(found)


def write_readme(found: dict, readme: Path) -> None:
    """Put the table between the markers of a README.

    Raises ValueError if it has no markers.
    """
    text = readme.read_text("utf-8")
    if any(text.count(marker) != 1 for marker in MARKERS):
        raise ValueError(f"{readme} needs {MARKERS[0]} and {MARKERS[1]}, each once")
    new = re.sub(f"{MARKERS[0]}.*{MARKERS[1]}", lambda _: "\n".join(
        [MARKERS[0], table(found), MARKERS[1]]), text, flags=re.S)
    part = readme.with_suffix(".part")
    part.write_text(new, "utf-8")
    os.replace(part, readme)
