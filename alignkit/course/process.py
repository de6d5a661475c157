"""What a student's answer gives, from a process of its own.

The process (`worker.py`) is handed the answer's code and the arguments of the cases; what
comes back is read as data and never run, and neither it nor its length is trusted.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from inspect import getsourcefile
from pathlib import Path

from . import worker
from .answers import Answer, needed, parsed
from .exercises import Exercise

START_SECONDS = 300  # imports on a cold disk; an exercise's own limit begins after it
LONGEST_REPLY = 2**27  # bytes


class Stopped(Exception):
    """A student's process gave no outcomes; the message says why."""


def outcomes_of(
    exercise: Exercise, found: Answer, cases: list, folder: Path, seconds: float
) -> list[dict]:
    """What the answer gives for each case. Raises Stopped."""
    job = {
        "name": exercise.name,
        "statements": found.statements,
        "cases": worker.pack(cases),
        "allowed": {f.__name__: _source(f) for f in exercise.allowed},
        "package": str(Path(__file__).parents[1]),
    }
    reply = _ask(json.dumps(job).encode(), folder, seconds)
    try:
        answered = json.loads(reply)
        said = "; ".join(map(str, answered["said"]))
        if answered.get("missing"):
            raise Stopped(f"its cell stopped with {said}" if said else "no function")
        outcomes = [_checked(outcome, said) for outcome in answered["outcomes"]]
        if len(outcomes) != len(cases):  # no assert: python -O leaves those out
            raise ValueError
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError,
            RuntimeError, TypeError, ValueError):
        raise Stopped("what it sent back cannot be read") from None
    return outcomes


def _checked(outcome: dict, said: str) -> dict:
    """An outcome that `judge` can take; a name that is missing is explained."""
    if "error" in outcome:
        kind, text, line = map(str, outcome["error"])
        if kind == "NameError":
            text += " (what an answer uses must be defined in a cell above it"
            text += f", and there {said})" if said else ")"
        return {"error": (kind, text, line)}
    worker.unpack(outcome["value"])
    return {"value": outcome["value"], "after": outcome["after"]}


def _source(function) -> list[str]:
    """The statements that define a function of the package, for `worker`."""
    text = Path(getsourcefile(function)).read_text("utf-8")
    return needed(function.__name__, parsed(text))


def _ask(job: bytes, folder: Path, seconds: float) -> bytes:
    """The reply of a new process. Raises Stopped."""
    command = [sys.executable, "-X", "utf8", "-P", worker.__file__]
    with subprocess.Popen(
        command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            with _limit(process, START_SECONDS) as late:
                ready = process.stdout.read(1)
            if not ready:
                why = f"was not up after {START_SECONDS} s" if late else "did not start"
                raise Stopped(f"its process {why}")
            with _limit(process, seconds) as late:
                with contextlib.suppress(OSError):
                    process.stdin.write(job)
                    process.stdin.close()
                reply = process.stdout.read(LONGEST_REPLY)
        finally:
            _kill(process)
    if late:
        raise Stopped(f"not done after {seconds:g} s: does a loop never end?")
    if not reply or len(reply) == LONGEST_REPLY:
        raise Stopped("it ended the whole process (exit, or out of memory?)")
    return reply


@contextlib.contextmanager
def _limit(process: subprocess.Popen, seconds: float) -> Iterator[list]:
    """Ends the process after some seconds; what is given is then no longer empty."""
    late = []
    timer = threading.Timer(seconds, lambda: (late.append(True), _kill(process)))
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def _kill(process: subprocess.Popen) -> None:
    """With all that it has started."""
    with contextlib.suppress(OSError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
