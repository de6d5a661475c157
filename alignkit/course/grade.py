"""Marks for students' notebooks: 1 for an exercise that is right, 0 for one that is not.

Each answer runs in a process of its own (`worker.py`), which gets its function's code,
with what that uses of the cells above it (`answers.py`), and the arguments of fresh cases.
The right answers and their comparison stay here, and what comes back is data, never code:
a notebook that patches a comparison, returns a tensor that is equal to everything, or
knows the notebook's own cases by heart gets nothing for it. The policy on the package's
functions stands in `worker.POLICY`: those of `Exercise.allowed` work, all others stop.

This is no sandbox: students' code runs with the rights of whoever grades it.
"""

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from inspect import getsourcefile
from pathlib import Path

from . import worker
from .answers import Answer, answer, needed, parsed, read
from .exercises import Exercise, ExerciseError, NotFilledIn

START_SECONDS = 300  # imports on a cold disk; an exercise's own limit begins after it
LONGEST_REPLY = 2**27  # bytes
LONGEST_MESSAGE = 600  # characters
RIGHT, WRONG, OPEN = "right", "wrong", "not filled in"


@dataclass(frozen=True)
class Mark:
    """What one exercise got: `state` is "right", "wrong" or "not filled in"."""

    exercise: str
    state: str
    message: str

    @property
    def points(self) -> int:
        """1 or 0."""
        return int(self.state == RIGHT)


class Stopped(Exception):
    """A student's process gave no outcomes; the message says why."""


def grade(
    path: Path | str,
    slug: str | None = None,
    seconds: float = 20,
    seed: int | None = None,
) -> list[Mark]:
    """The marks of one notebook, in the order of its exercises.

    Args:
        path: the student's .ipynb.
        slug: whose exercises they are; needed only if the file's name and the title
            card no longer tell.
        seconds: limit for each exercise. One that does not end, or that ends its
            process, gets 0.
        seed: of the cases; default: a new one that nobody knows. With that of an
            earlier run the marks are the same.

    Raises:
        ValueError: not a notebook, or no exercises known for it.
    """
    path = Path(path)
    notebook = read(path)
    exercises = exercises_of(slug or slug_of(path, notebook.card))
    seed = fresh_seed() if seed is None else seed
    return [
        _mark(exercise, answer(name, notebook.code), path.parent, seconds, seed)
        for name, exercise in exercises.items()
    ]


def fresh_seed() -> int:
    """A seed that no notebook can have been written for."""
    return secrets.randbits(32)


def write(marks: dict[str, list[Mark] | str], out: Path, seed: int) -> Path:
    """Marks of some notebooks as JSON; a string says why one could not be graded."""
    from .notebook import _save

    rows = [
        {"notebook": clean(name), "points": 0, "of": 0, "marks": [],
         "problem": given, "seed": seed}
        if isinstance(given, str)
        else {
            "notebook": clean(name),
            "points": sum(m.points for m in given),
            "of": len(given),
            "marks": [asdict(m) | {"points": m.points} for m in given],
            "problem": "",
            "seed": seed,
        }
        for name, given in marks.items()
    ]
    return _save(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", out)


def notebooks_in(folder: Path) -> list[Path]:
    """The .ipynb files of a folder, linked folders included; not those that a system
    leaves behind (.ipynb_checkpoints, other dot files, __MACOSX)."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return [folder]  # which `grade` then says cannot be read
    found = []
    for name in names:
        path = folder / name
        if name.startswith(".") or name == "__MACOSX":
            continue
        if path.is_dir():
            above = [p.resolve() for p in (folder, *folder.parents)]
            if path.resolve() not in above:  # else a link leads round in a circle
                found += notebooks_in(path)
        elif name.lower().endswith(".ipynb"):
            found.append(path)
    return found


def exercises_of(slug: str) -> dict[str, Exercise]:
    """A notebook's exercises by name. Raises ValueError for an unknown slug."""
    if slug not in slugs():
        raise ValueError(
            f"no exercises are known for {slug!r}; there are {', '.join(slugs())}"
        )
    module = import_module(f"alignkit.course.{slug.replace('-', '_')}")
    return {e.name: e for e in vars(module).values() if isinstance(e, Exercise)}


def slugs() -> list[str]:
    """The notebooks whose exercises the package knows."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(
        file.stem.replace("_", "-")
        for file in files
        if re.search(r"^\w+ = Exercise\(", file.read_text("utf-8"), re.M)
    )


def slug_of(path: Path, card: str = "") -> str:
    """Whose exercises a notebook has: from its file's name, else from the Colab badge
    on its title card.

    A name may have more around it, such as "Copy of 01-<slug> (Anna).ipynb".
    """
    badge = re.search(r"colab\.research\S+/notebooks/(\S+)\.ipynb\)", card)
    for text in (path.stem, badge[1] if badge else ""):
        known = [s for s in slugs() if re.search(rf"\d\d-{s}(?![a-z0-9])", text)]
        if known:
            return max(known, key=len)
    raise ValueError(
        f"{path}: neither the file's name (NN-<slug>.ipynb) nor its title "
        f"card tells whose exercises these are; say --exercises with one "
        f"of {', '.join(slugs())}"
    )


def clean(text: str) -> str:
    """One line that every file and terminal can take, shortened to a few hundred
    characters."""
    line = " ".join(text.encode("utf-8", "replace").decode().split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= LONGEST_MESSAGE else f"{line[:LONGEST_MESSAGE]} …"


# One exercise --------------------------------------------------------------------------
def _mark(
    exercise: Exercise, found: Answer | None, folder: Path, seconds: float, seed: int
) -> Mark:
    state, said = WRONG, ""
    try:
        if found is None:
            raise NotFilledIn(f"{exercise.name}: no cell defines it")
        if found.problem:
            raise Stopped(f"its cell is no Python: {found.problem}")
        cases = exercise.draw(seed)
        state, said = RIGHT, exercise.judge(
            cases, _outcomes(exercise, found, cases, folder, seconds))
    except NotFilledIn as stub:
        state, said = OPEN, str(stub)
    except ExerciseError as error:
        said = str(error)
    except Stopped as error:
        said = f"{exercise.name}: {error}"
    return Mark(exercise.name, state, clean(said))


def _outcomes(
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
        assert len(outcomes) == len(cases)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError,
            RecursionError, RuntimeError, TypeError, ValueError):
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


# Its process ---------------------------------------------------------------------------
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
