"""Tests by paper: which worker takes which, CPU seconds of each, and what the whole course
would take.

A run of all tests ends with the table, summed over the workers, and leaves it in
.pytest_cache; `python tests/by_paper.py` prints the last one again.
"""

import json
import os
import pkgutil
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from statistics import mean, median

import pytest

ROOT = Path(__file__).parents[1]
KEPT = "alignkit/seconds"  # in pytest's cache
KINDS = ("shared tests", "own tests", "notebook")
BUDGET = {"shared tests": 6, "own tests": 10, "notebook": 45}  # CPU seconds of a paper
TYPICAL = 25  # CPU seconds of a notebook, in the median
PAPERS, FURTHER, CORES = 55, 8, 2  # the whole course
MINUTES, QUICK_MINUTES = 45, 3  # of all tests, of `-m quick`
# What goes in turns goes by the day of the year; workers take the first process's.
DAY = int(os.environ.setdefault("ALIGNKIT_DAY", str(date.today().timetuple().tm_yday)))
# Ends of the ids of tests that go through a few papers only: they do not grow with papers.
FEW = re.compile(r", (day \d+|one of few)\]$")
SLOW = 2  # CPU seconds from which a test is no longer quick


@dataclass
class Spent:
    """CPU seconds by test, and by fixture where it is made once for many tests (a test of its
    file); `quick` names those that `-m quick` chooses, `starting` is
    what the processes took before they collected. steps: seconds of what .ci/run did
    before the tests. collecting: what that took, a file's seconds spread over its tests:
    a paper's share comes once more with each further paper, the libraries that the first
    file imports do not."""

    tests: dict[str, float] = field(default_factory=dict)
    quick: list[str] = field(default_factory=list)
    starting: float = 0.0
    steps: dict[str, float] = field(default_factory=dict)
    collecting: dict[str, float] = field(default_factory=dict)

    def add(self, tests: dict[str, float], quick: list[str], starting: float,
            collecting: dict[str, float]) -> None:
        """Those of another process."""
        add_to(self.tests, tests)
        add_to(self.collecting, collecting)
        self.quick += quick
        self.starting += starting


def add_to(seconds: dict[str, float], more: dict[str, float]) -> None:
    for test, further in more.items():
        seconds[test] = seconds.get(test, 0) + further


def papers() -> list[str]:
    """Slugs with a method; other slugs are further notebooks."""
    folder = ROOT / "alignkit" / "methods"
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules([str(folder)]))


def slugs() -> list[str]:
    """Every paper and every further notebook, by its files."""
    books = (ROOT / "notebooks").glob("*/*.ipynb")
    return sorted({*papers(), *(book.stem.partition("-")[2] for book in books)})


def place(test: str, known: list[str]) -> tuple[str, str] | None:
    """(slug, kind) of a test by its id; None for a test of the package.

    A paper's own tests are in tests/test_<slug>….py; a shared test bears the slug, the
    module or the notebook in its brackets.
    """
    file, _, name = test.partition("::")
    stem = Path(file).stem.replace("_", "-")
    if file.endswith(".ipynb"):
        return stem.partition("-")[2], "notebook"
    word = "|".join(sorted(known, key=len, reverse=True))
    if own := re.match(rf"test-({word})(?![^-])", stem):
        return own[1], "own tests"
    found = re.search(rf"\b({word})\b", name.partition("[")[2].replace("_", "-"))
    return (found[1], "shared tests") if found else None


def rows_of(tests: dict[str, float]) -> tuple[dict[str, dict[str, float]], float]:
    """({slug: {kind: seconds}}, seconds of the package's tests, those of a `FEW` papers
    among them)."""
    known, rows, package = slugs(), {}, 0.0
    for test, seconds in tests.items():
        found = place(test, known)
        if found and not FEW.search(test):
            slug, kind = found
            rows.setdefault(slug, dict.fromkeys(KINDS, 0.0))[kind] += seconds
        else:
            package += seconds
    return rows, package


def minutes(tests: dict[str, float], starting: float, typical: Callable = median) -> float:
    """Of the whole course's tests on all cores, if a paper costs what those that are here
    typically cost, and likewise a further notebook. starting: seconds, whatever there is."""
    rows, seconds = rows_of(tests)
    has_method = set(papers())
    for group, count in ([row for slug, row in rows.items() if slug in has_method], PAPERS), (
            [row for slug, row in rows.items() if slug not in has_method], FURTHER):
        if group:
            seconds += count * sum(typical([row[kind] for row in group]) for kind in KINDS)
    return (seconds + starting) / CORES / 60


def minutes_before(spent: Spent) -> float:
    """Of .ci/run's other steps with the whole course: all but the installation grow."""
    grows = sum(seconds for step, seconds in spent.steps.items() if step != "install")
    return (spent.steps.get("install", 0) + grows * growth(spent)) / 60


def growth(spent: Spent) -> float:
    """How many times as many papers and notebooks the whole course has."""
    return (PAPERS + FURTHER) / max(len(rows_of(spent.tests)[0]), 1)


def table(spent: Spent) -> list[str]:
    """The lines that a run ends with."""
    rows, package = rows_of(spent.tests)
    first = papers()
    lines = [_line("CPU seconds", KINDS)]
    for slug in sorted(rows, key=lambda slug: (slug not in first, slug)):
        over = [kind for kind in KINDS if rows[slug][kind] > BUDGET[kind]]
        lines.append(_line(slug, rows[slug].values(), over))
    middle = {kind: median([row[kind] for slug, row in rows.items() if slug in first] or [0])
              for kind in KINDS}
    limit = {**BUDGET, "notebook": TYPICAL}
    over = [kind for kind in KINDS if middle[kind] > limit[kind]]
    lines.append(_line("median of papers", middle.values(), over))
    lines.append(_line("budget of a paper", BUDGET.values())
                 + f" ({TYPICAL} in the median)")
    total = sum(spent.tests.values())
    lines.append(f"papers and notebooks {total - package:.0f}, the package {package:.0f}, "
                 f"starting {spent.starting:.0f}, "
                 f"collecting {sum(spent.collecting.values()):.0f}")
    lines += [f"in turn: {test}" for test in spent.tests if f", day {DAY}]" in test]
    slow = [test for test in spent.quick if spent.tests[test] > SLOW and "::test_" in test]
    lines += [f"over {SLOW} s and not marked slow: {test}" for test in slow]
    quick = {test: spent.tests[test] for test in spent.quick}
    whole = [("all tests", spent.tests, 0.0, MINUTES), ("-m quick", quick, 0.0, QUICK_MINUTES)]
    if spent.steps:
        said = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in spent.steps.items())
        lines.append(f".ci/run before the tests: {said}")
        whole.append((".ci/run", spent.tests, minutes_before(spent), MINUTES))
    lines.append(f"With {PAPERS} papers and {FURTHER} further notebooks on {CORES} cores, at "
                 "what is measured here:")
    for name, tests, before, most in whole:
        collected = dict(spent.collecting)  # all of them, in a run of the quick ones too
        add_to(collected, tests)
        middle, average = (minutes(collected, spent.starting, typical) + before
                           for typical in (median, mean))
        over = "  OVER" if average > most else ""
        lines.append(f"{name:20}{middle:.1f} minutes at the medians, {average:.1f} at the "
                     f"means (limit {most}){over}")
    return lines


def _line(name: str, cells, over: list[str] = ()) -> str:
    texts = [cell if isinstance(cell, str) else f"{cell:.1f}" for cell in cells]
    return (f"{name:20}" + "".join(f"{text:>14}" for text in texts)
            + (f"  OVER: {', '.join(over)}" if over else ""))


_elsewhere = 0.0


def cpu() -> float:
    """CPU seconds of this process and of those it has waited for, kernels included."""
    return sum(os.times()[:4]) + _elsewhere


def add_cpu(seconds: float) -> None:
    """Count those of a process that another one waits for."""
    global _elsewhere
    _elsewhere += seconds


def is_whole(config) -> bool:
    """Is this a run of all tests?"""
    chosen = config.option.keyword or config.option.markexpr
    return config.args_source.name == "TESTPATHS" and not chosen


class ByPaper:
    """The pytest plugin: each worker measures, the first process adds up and prints."""

    def __init__(self):
        self.spent = Spent()
        self.common: dict[str, float] = {}  # what the running test's fixtures made for many

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config, log):
        """A worker takes a file or a notebook (one kernel) whole; of the tests that go
        through all papers it takes a paper at a time, so that none is left with them all."""
        from xdist.scheduler import LoadFileScheduling

        known = slugs()

        class Scheduler(LoadFileScheduling):
            def _split_scope(self, nodeid: str) -> str:
                slug, kind = place(nodeid, known) or ("", "")
                file = super()._split_scope(nodeid)
                return f"{file} {slug}" if kind == "shared tests" else file

        return Scheduler(config, log) if config.option.dist == "loadfile" else None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection(self, session):
        before = cpu()
        done = yield
        if found := self.spent.collecting:  # not where workers do it
            self.spent.starting = before
            rest = cpu() - before - sum(found.values())  # sorting and choosing
            add_to(found, dict.fromkeys(found, rest / len(found)))
        return done

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(self, collector):
        before = cpu()
        done = yield
        if isinstance(collector, pytest.File) and done.result:
            share = (cpu() - before) / len(done.result)
            add_to(self.spent.collecting, {test.nodeid: share for test in done.result})
        return done

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        before, self.common = cpu(), {}
        done = yield
        own = cpu() - before - sum(self.common.values())
        found = {item.nodeid: own} | self.common
        self.spent.add(found, [*found] if item.get_closest_marker("quick") else [], 0.0, {})
        return done

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef, request):
        """What is made once for many tests is not the cost of the one that comes first."""
        before = cpu()
        try:
            return (yield)
        finally:
            if fixturedef.scope != "function":
                name = f"{fixturedef.baseid}::{fixturedef.argname}"
                self.common[name] = self.common.get(name, 0.0) + cpu() - before

    def pytest_sessionfinish(self, session):
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["spent"] = asdict(self.spent)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        if spent := getattr(node, "workeroutput", {}).get("spent"):  # not of one that died
            self.spent.add(*(spent[name] for name in ("tests", "quick", "starting",
                                                      "collecting")))

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # below everything but pytest's last line
    def pytest_terminal_summary(self, terminalreporter, config):
        done = yield
        if is_whole(config):
            steps = os.environ.get("ALIGNKIT_STEPS", "").split()  # "install=60 features=90"
            self.spent.steps = {k: float(v) for k, v in (step.split("=") for step in steps)}
            if hasattr(config, "cache"):
                config.cache.set(KEPT, asdict(self.spent))
            terminalreporter.section("by paper")
            terminalreporter.write_line("\n".join(table(self.spent)))
        elif config.option.markexpr == "quick" and not config.option.keyword:
            *_, head, _, projection = table(self.spent)
            terminalreporter.write_line(f"\n{head}\n{projection}")
        return done


if __name__ == "__main__":
    kept = ROOT / ".pytest_cache" / "v" / KEPT
    if not kept.exists():
        sys.exit("no run of all tests is kept: python -m pytest")
    print("\n".join(table(Spent(**json.loads(kept.read_text("utf-8"))))))
