"""Marks for students' notebooks: 1 an exercise that is right, 0 one that is not.

A notebook's first cells, up to the one that calls `setup()`, and its exercises run in
a process of their own, without what surrounds them: cells in which the student tried
things out are left alone. The marks are given by the package's own exercises, called on
the student's functions, so that the notebook's `.check(` lines do not matter. This is
a guard against accidents, not against attacks: the code runs with the rights of whoever
grades it.
"""

import ast
import json
import multiprocessing
import os
import re
from dataclasses import asdict, dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

# The notebook tools are imported where they are used: a student's process needs none.
from .exercises import Exercise, ExerciseError, NotFilledIn

SETUP_SECONDS = 300  # imports on a cold disk; the exercises have their own limit
HELPERS = "helpers must stand in the exercise's own cell, only that one is run"
RIGHT, WRONG, OPEN = "right", "wrong", "not filled in"
SIGNS = {RIGHT: "✓", WRONG: "✗", OPEN: "–"}


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


def grade(path: Path | str, slug: str | None = None, seconds: float = 20) -> list[Mark]:
    """The marks of one notebook, in the order of its exercises.

    Args:
        path: the student's .ipynb. A helper must stand in the cell of its exercise
            or of an exercise above; other cells are not run.
        slug: whose exercises they are; needed only if the file's name and the title
            card no longer tell.
        seconds: limit for each exercise. One that does not end, or that ends the
            process, gets 0; those below it are graded in a new process.

    Raises:
        ValueError: not a notebook, no exercises known for it, or no set-up cell.
    """
    path = Path(path)
    code = _code_cells(path)
    slug = slug or slug_of(path)
    exercises = exercises_of(slug)
    calls = [i for i, source in enumerate(code) if re.search(r"^setup\(", source, re.M)]
    if not calls:
        raise ValueError(f"{path}: no cell calls setup(): the set-up cell is missing")
    head = code[: calls[0] + 1]
    cells = {name: _answer(name, code) for name in exercises}
    marks = {
        name: Mark(name, OPEN, f"{name}: no cell defines it")
        for name, source in cells.items()
        if source is None
    }
    while left := {n: cells[n] for n in exercises if n not in marks}:
        marks |= _round(head, left, slug, seconds)
    return [marks[name] for name in exercises]


def write(marks: dict[str, list[Mark] | str], out: Path) -> Path:
    """Marks of some notebooks as JSON; a string says why one could not be graded."""
    from .notebook import _save

    rows = [
        {"notebook": name, "points": 0, "of": 0, "marks": [], "problem": given}
        if isinstance(given, str)
        else {
            "notebook": name,
            "points": sum(m.points for m in given),
            "of": len(given),
            "marks": [asdict(m) | {"points": m.points} for m in given],
            "problem": "",
        }
        for name, given in marks.items()
    ]
    return _save(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", out)


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
        if "= Exercise(" in file.read_text("utf-8")
    )


def slug_of(path: Path) -> str:
    """Whose exercises a notebook has: from its file's name, else from its Colab badge.

    A name may have more around it, such as "Copy of 01-<slug> (Anna).ipynb".
    """
    badge = re.search(r"colab\.research\S+/notebooks/(\S+)\.ipynb\)", _first(path))
    for text in (path.stem, badge[1] if badge else ""):
        known = [s for s in slugs() if re.search(rf"\d\d-{s}(?![a-z0-9])", text)]
        if known:
            return max(known, key=len)
    raise ValueError(
        f"{path}: neither the file's name (NN-<slug>.ipynb) nor its title "
        f"card tells whose exercises these are; say --exercises with one "
        f"of {', '.join(slugs())}"
    )


def _code_cells(path: Path) -> list[str]:
    """Sources without solutions; lines for IPython alone (%, !) are left out."""
    return [
        re.sub(r"(?m)^[%!].*$", "", cell.source)
        for cell in _read(path).cells
        if cell.cell_type == "code" and "solution" not in cell.metadata.get("tags", [])
    ]


def _first(path: Path) -> str:
    cells = _read(path).cells
    return cells[0].source if cells else ""


def _read(path: Path):
    from .notebook import read

    try:
        return read(path)
    except OSError:
        raise
    except Exception as error:  # nbformat has many ways to refuse a file
        why = str(error).partition("\n")[0][:80]
        raise ValueError(
            f"{path}: not a notebook ({type(error).__name__}: {why})"
        ) from None


def _answer(name: str, code: list[str]) -> str | None:
    """The last cell that defines an exercise's function, with its tag or without, as
    not every front end keeps tags; one that only assigns the name, if none does."""
    for defines in (rf"^def\s+{name}\b", rf"^{name}\s*="):
        found = [source for source in code if re.search(defines, source, re.M)]
        if found:
            return found[-1]
    return None


def _round(
    head: list[str], cells: dict[str, str], slug: str, seconds: float
) -> dict[str, Mark]:
    """Marks from one process: all of them, or those up to the one that broke it."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_work, args=(theirs, head, cells, slug), daemon=True)
    process.start()
    theirs.close()  # so that the end of the process ends the pipe
    marks = {}
    try:
        if problem := _wait(ours, SETUP_SECONDS):
            return {n: Mark(n, WRONG, f"the set-up cell {problem}") for n in cells}
        for name in cells:
            if not ours.poll(seconds):
                said = f"{name}: not done after {seconds:g} s: does a loop never end?"
                return marks | {name: Mark(name, WRONG, said)}
            try:
                marks[name] = ours.recv()
            except (EOFError, OSError):
                said = f"{name}: it ended the whole process (exit, or out of memory?)"
                return marks | {name: Mark(name, WRONG, said)}
    finally:
        process.kill()
        process.join()
    return marks


def _wait(pipe: Connection, seconds: float) -> str:
    """What the set-up cell did wrong, "" if nothing."""
    if not pipe.poll(seconds):
        return f"was not done after {seconds:g} s"
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return "ended the whole process"


# In the student's process ------------------------------------------------------------
def _work(pipe: Connection, head: list[str], cells: dict[str, str], slug: str) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    exercises = exercises_of(slug)  # before the student's code runs
    space = {"__name__": "__main__"}
    try:
        for source in head:
            exec(source, space)
    except BaseException as error:
        pipe.send(f"stopped with {type(error).__name__}: {error}")
        return
    pipe.send("")
    for name, source in cells.items():
        pipe.send(_mark(exercises[name], source, space))


def _mark(exercise: Exercise, source: str, space: dict) -> Mark:
    """Run an exercise's cell, and grade the function that it leaves."""
    try:
        tree = ast.parse(source)
        if any(
            isinstance(node, ast.Attribute) and node.attr in ("reference", "mistakes")
            for node in ast.walk(tree)
        ):
            raise ExerciseError(
                f"{exercise.name}: it hands over the exercise's own answer"
            )
        # Calls that stand alone, such as the check itself, give no marks.
        tree.body = [node for node in tree.body if not isinstance(node, ast.Expr)]
        exec(compile(tree, exercise.name, "exec"), space)
        return Mark(exercise.name, RIGHT, exercise.grade(space[exercise.name]))
    except NotFilledIn as stub:
        return Mark(exercise.name, OPEN, str(stub))
    except ExerciseError as error:
        helper = isinstance(error.__cause__, NameError)
        return Mark(
            exercise.name, WRONG, str(error) + (f"; {HELPERS}" if helper else "")
        )
    except BaseException as error:
        said = f"{exercise.name}: its cell stopped with {type(error).__name__}: {error}"
        return Mark(exercise.name, WRONG, said)
