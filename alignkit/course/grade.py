"""Marks for students' notebooks: 1 for an exercise that is right, 0 for one that is not.

Each answer runs in a process of its own (`process.py`, `worker.py`), which gets its
function's code, with what that uses of the cells above it (`answers.py`), and the
arguments of fresh cases.
The right answers and their comparison stay here, and what comes back is data, never code:
a notebook that patches a comparison, returns a tensor that is equal to everything, or
knows the notebook's own cases by heart gets nothing for it. The policy on the package's
functions stands in `worker.POLICY`: those of `Exercise.allowed` work, all others stop.

This is no sandbox: students' code runs with the rights of whoever grades it.
"""

import contextlib
import os
import re
import secrets
import tarfile
import zipfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from .answers import Answer, answer, begins, read
from .exercises import Exercise, ExerciseError, NotFilledIn
from .process import Stopped, outcomes_of

LONGEST_MESSAGE = 600  # characters
ENDINGS = (".ipynb", ".ipynb.txt", ".ipynb.json")  # some browsers add one
TARS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz")
CLOSED = (".7z", ".rar")
RIGHT, WRONG, OPEN = "right", "wrong", "not filled in"


@dataclass(frozen=True)
class Mark:
    """What one exercise got: `state` is "right", "wrong" or "not filled in"; `share` the
    part of its cases that came out right."""

    exercise: str
    state: str
    message: str
    share: float

    @property
    def points(self) -> int:
        """1 or 0."""
        return int(self.state == RIGHT)


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
    if is_packed(path):
        raise ValueError(f"{path}: an archive with notebooks in it: unpack it first")
    notebook = read(path)
    exercises = exercises_of(slug or slug_of(path, notebook.card))
    seed = fresh_seed() if seed is None else seed
    return [
        _mark(exercise, answer(name, notebook.code), path.parent, seconds, seed,
              any(begins(name, text) for text in notebook.still))
        for name, exercise in exercises.items()
    ]


def fresh_seed() -> int:
    """A seed that no notebook can have been written for."""
    return secrets.randbits(32)


def notebooks_in(folder: Path) -> list[Path]:
    """The .ipynb files of a folder, linked folders included, and archives with some in
    them; not those that a system leaves behind (.ipynb_checkpoints, other dot files,
    __MACOSX)."""
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
        elif name.lower().endswith(ENDINGS) or is_packed(path):
            found.append(path)
    return found


def is_packed(path: Path) -> bool:
    """Whether it is an archive with notebooks or further archives in it, as some course
    sites hand out; one of a kind that Python does not open counts as such."""
    name, inner = path.name.lower(), []
    if name.endswith(CLOSED):
        return path.is_file()
    with contextlib.suppress(Exception):  # their readers raise anything on damaged files
        if name.endswith(".zip"):
            with zipfile.ZipFile(path) as packed:
                inner = packed.namelist()
        elif name.endswith(TARS):
            with tarfile.open(path) as packed:
                inner = packed.getnames()
    return any(one.lower().endswith((*ENDINGS, *TARS, *CLOSED, ".zip")) for one in inner)


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
def _mark(exercise: Exercise, found: Answer | None, folder: Path, seconds: float, seed: int,
          is_still: bool) -> Mark:
    state, said, share = WRONG, "", 0.0
    try:
        if found is None:
            raise NotFilledIn(f"{exercise.name}: no cell defines it" + is_still * (
                ", but one that is text (Markdown or raw) and so does not run"))
        if found.problem:
            raise Stopped(f"its cell is no Python: {found.problem}")
        cases = exercise.draw(seed)
        outcomes = outcomes_of(exercise, found, cases, folder, seconds)
        share = exercise.share(cases, outcomes)
        state, said = RIGHT, exercise.judge(cases, outcomes)
    except NotFilledIn as stub:
        state, said = OPEN, str(stub)
    except ExerciseError as error:
        said = str(error)
    except Stopped as error:
        said = f"{exercise.name}: {error}"
    return Mark(exercise.name, state, clean(said), share)
