"""Notebook cells without a kernel: a child of a process that has torch and alignkit loaded
runs them, in a tenth of the time. That Jupyter shows what they print is seen where
notebooks run whole, and in test_course.py and test_grade.py."""

import contextlib
import io
import multiprocessing
import os
from pathlib import Path

import by_paper

LOADED = ["torch", "scipy.stats", "matplotlib.pyplot", "alignkit.claims",
          "alignkit.course.setup", "alignkit.course.exercises", "alignkit.course.study",
          "alignkit.course.widgets", "alignkit.evaluation", "alignkit.training"]
METHODS = multiprocessing.get_all_start_methods()
CONTEXT = multiprocessing.get_context("forkserver" if "forkserver" in METHODS else "spawn")


def run(sources: list[str], folder: Path, seconds: float = 120) -> list[tuple[str, str]]:
    """(what is printed, "Error: why" or "") of each cell; all share one namespace, and an
    error does not stop the next one.

    Raises:
        TimeoutError: together they take longer than `seconds`.
        EOFError: the process died.
    """
    if CONTEXT.get_start_method() == "forkserver":
        CONTEXT.set_forkserver_preload(LOADED)
    mine, its = CONTEXT.Pipe()
    child = CONTEXT.Process(target=_run, args=(sources, str(folder), its))
    child.start()
    its.close()
    try:
        if not mine.poll(seconds):
            raise TimeoutError(f"the cells took longer than {seconds} s")
        seconds_spent, ran = mine.recv()
        by_paper.add_cpu(seconds_spent)
        return ran
    finally:
        child.kill()
        child.join()


def _run(sources, folder, answer):
    os.chdir(folder)
    os.environ["ALIGNKIT_STATIC"] = "1"
    space, ran = {"__name__": "__main__"}, []
    for source in sources:
        printed, error = io.StringIO(), ""
        with contextlib.redirect_stdout(printed):
            try:
                exec(compile(source, "<cell>", "exec"), space)
            except Exception as problem:
                error = f"{type(problem).__name__}: {problem}"
        ran.append((printed.getvalue(), error))
    answer.send((by_paper.cpu(), ran))
