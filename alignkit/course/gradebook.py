"""The marks of a class: as a table, as JSON, as CSV for a course's system, and a page of
feedback for each student."""

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path

from .grade import Mark, clean, fresh_seed, grade, notebooks_in
from .notebook import _save


def table(
    path: Path,
    slug: str | None = None,
    seconds: float = 20,
    seed: int | None = None,
    out: Path | None = None,
    csv_out: Path | None = None,
    feedback: Path | None = None,
    partial: bool = False,
) -> bool:
    """Print the marks of a notebook, or of all in a folder.

    Args:
        slug, seconds, seed: as `grade` takes them.
        out: also as JSON, there.
        csv_out: also as CSV: a line a notebook, a column an exercise.
        feedback: a folder that gets a text for each notebook.
        partial: a wrong answer gets the part of its cases that came out right.

    Returns:
        Whether every exercise of every notebook is right.
    Raises:
        ValueError: no notebook in the folder, seconds or seed out of range, or a single
            notebook that `grade` refuses. Any fault of one of several is that one's.
    """
    if seconds <= 0:
        raise ValueError(f"--seconds must be above 0, got {seconds:g}")
    if seed is not None and seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {seed}")
    for option, file in (("--json", out), ("--csv", csv_out), ("--feedback", feedback)):
        if file and not file.absolute().parent.is_dir():
            raise ValueError(f"{option} {file}: no such folder; make it first")
    if path.is_dir() and not notebooks_in(path):
        raise ValueError(f"{path}: no notebooks in this folder")
    seed = fresh_seed() if seed is None else seed
    marks = {}
    if not path.is_dir():
        marks[path.name] = given = grade(path, slug, seconds, seed)
        print(*(f"{_points(m, partial):g}  {m.message}" for m in given),
              _total(given, partial), sep="\n")
    else:
        for book in notebooks_in(path):
            name = str(book.relative_to(path))
            marks[name] = _row(name, book, slug, seconds, seed, partial)
    print(f"cases of seed {seed}; the same marks again with --seed {seed}")
    written = [write(marks, out, seed)] if out else []
    written += [write_csv(marks, csv_out, partial)] if csv_out else []
    written += write_feedback(marks, feedback, partial) if feedback else []
    print(*(f"written to {file}" for file in written), sep="\n", end="\n" * bool(written))
    return all(not isinstance(given, str) and all(m.points for m in given)
               for given in marks.values())


def _row(name: str, path: Path, slug: str | None, seconds: float, seed: int,
         partial: bool) -> list[Mark] | str:
    """One notebook's line of a folder's table, with an explanation a mark that is lost."""
    try:
        given = grade(path, slug, seconds, seed)
    except ImportError:  # something is missing here
        raise
    except Exception as error:
        said = clean(str(error) or type(error).__name__)
        print(f"{name}: not graded: {said}", flush=True)
        return said
    row = ", ".join(f"{m.exercise} {m.state}" for m in given)
    print(f"{name}: {_total(given, partial)}  {row}")
    for mark in given:
        if not mark.points:
            print(f"    {mark.message}", flush=True)
    return given


def _points(mark: Mark, partial: bool) -> float:
    return round(mark.share, 2) if partial else mark.points


def _total(marks: list[Mark], partial: bool) -> str:
    return f"{sum(_points(m, partial) for m in marks):g}/{len(marks)}"


def write(marks: dict[str, list[Mark] | str], out: Path, seed: int) -> Path:
    """Marks of some notebooks as JSON; a string says why one could not be graded."""
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


def write_csv(marks: dict[str, list[Mark] | str], out: Path, partial: bool = False) -> Path:
    """A line a notebook: its path, points, of how many, a column an exercise, the problem
    of one that could not be graded. What a spreadsheet would take for a formula is
    written as text."""
    exercises = list(dict.fromkeys(
        m.exercise for given in marks.values() if not isinstance(given, str) for m in given))
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["notebook", "points", "of", *exercises, "problem"])
    for name, given in marks.items():
        problem, given = (given, []) if isinstance(given, str) else ("", given)
        points = {m.exercise: _points(m, partial) for m in given}
        rows.writerow([_text(clean(name)), f"{sum(points.values()):g}", len(given),
                       *(f"{points[e]:g}" if e in points else "" for e in exercises),
                       _text(problem)])
    return _save(file.getvalue(), out)


def _text(cell: str) -> str:
    return f"'{cell}" if cell[:1] in tuple("=+-@") else cell


def write_feedback(marks: dict[str, list[Mark] | str], folder: Path,
                   partial: bool = False) -> list[Path]:
    """A text a notebook, at the notebook's own path below `folder`, with .md added:
    what is right, and what each other answer's check has to say."""
    written = []
    for name, given in marks.items():
        lines = [f"# {clean(Path(name).name)}", ""]
        if isinstance(given, str):
            lines.append(f"Not graded: {given}")
        else:
            lines += [f"{_total(given, partial)} points.", ""]
            lines += [f"- **{m.exercise}**: {m.state}. {m.message}" for m in given]
        path = folder / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        written.append(_save("\n".join(lines) + "\n", path))
    return written
