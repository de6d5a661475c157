"""`alignkit notebook SLUG`: a notebook and its percent script, kept in step.

The script lies beside the notebook (NN-slug.py, not kept in the repository). What is
edited since both last agreed is carried over to the other: the script by any editor, the
notebook in JupyterLab. The notebook's metadata holds a hash of the cells on which both
agreed, so that nothing is guessed from times of files, and one of what its outputs come
from: where only texts were edited since, they are taken in and the outputs stay.
"""

import hashlib
import re
import secrets
import tempfile
from pathlib import Path

from nbformat import NotebookNode

from alignkit.claims import code_hash, stored

from .card import slug_of, with_here
from .notebook import (
    _save, _write, blocks, build, execute, parameter_names, percent, read, script,
)  # fmt: skip
from .template import check_template
from .tour import NOTEBOOKS


def notebook(slug: str, keep: str | None = None, folder: Path = NOTEBOOKS, *,
             run: bool = False) -> list[str]:
    """Build and execute a paper's notebook; the rules of the template that it breaks,
    printed too, and whether it fails at `tiny` with a seed that nobody chose, as CI asks
    on its day. Where nothing but texts has changed, its outputs are kept.

    Args:
        keep: "script" or "notebook": whose cells stay if both were edited.
        run: execute it in any case.

    Raises:
        ValueError: no such notebook, or both were edited and `keep` is not given.
        RuntimeError: a cell failed; the script has the edits, the notebook is as it was.
    """
    path = find(slug, folder)
    source = path.with_suffix(".py")
    said = _agree(path, source, keep)
    text = source.read_text("utf-8")
    if (new := with_here(text, slug)) != text:
        _save(new, source)
    fails = []
    with tempfile.TemporaryDirectory() as made:
        built = build(source, Path(made) / path.name)
        code = _code(read(built), slug)
        if not run and (done := _with_kept_outputs(read(built), path, code)):
            print(f"{said}; only texts may have changed, outputs are kept (--run runs it)")
        else:
            print(f"{said}; running it …", flush=True)
            ran = Path(made) / f"ran-{path.name}"
            done = read(_executed(built, ran, source, path.parent))
            fails = _at_tiny(built, path.parent)
        done.metadata["alignkit"] = {"cells": _hash(_cells(done)), "code": code}
        _write(done, path)
    problems = check_template(path) + fails
    print(f"written to {path}; its script: {source}", *problems, sep="\n")
    return problems


def find(slug: str, folder: Path = NOTEBOOKS) -> Path:
    """The notebook of a paper, there or to be built from its script.

    Raises ValueError for none or several.
    """
    paths = {p.with_suffix(".ipynb") for kind in ("ipynb", "py")
             for p in folder.glob(f"[0-9]-*/[0-9][0-9]-{slug}.{kind}")}
    if len(paths) != 1:
        there = sorted(slug_of(p) for p in folder.glob("[0-9]-*/[0-9][0-9]-*.ipynb"))
        raise ValueError(f"{slug}: {len(paths)} notebooks of this name in {folder}; there "
                         f"are {', '.join(there)}; a new one: alignkit new {slug}")
    return paths.pop()


def _agree(path: Path, source: Path, keep: str | None) -> str:
    """Make the script say what shall be built; in words, what was done."""
    if not path.is_file():
        return f"built from {source.name}"
    if not source.is_file():
        script(path, source)
        return f"script written from {path.name}"
    agreed = read(path).metadata.get("alignkit", {}).get("cells")
    there = {"notebook": _hash(_cells(read(path))), "script": _hash(_of_script(source))}
    if there["notebook"] == there["script"]:
        return "notebook and script agree"
    edited = [name for name, now in there.items() if now != agreed]
    if len(edited) > 1 and keep is None:
        raise ValueError(
            f"{path.name} and {source.name} were both edited since they last agreed; say "
            "whose cells stay: --keep notebook, or --keep script")
    if (keep or edited[0]) == "notebook":
        script(path, source)
        return f"the edits in {path.name} taken into the script"
    return f"built from {source.name}"


def _cells(notebook: NotebookNode) -> list[str]:
    return [percent(cell).rstrip() for cell in notebook.cells]


def _of_script(path: Path) -> list[str]:
    """The cells of what would be built."""
    with tempfile.TemporaryDirectory() as made:
        return _cells(read(build(path, Path(made) / "built.ipynb")))


def _hash(cells: list[str]) -> str:
    """Of the cells without the card's line from the result file, which is nobody's edit."""
    text = re.sub(r"(?m)^# \*\*Here\.\*\*.*$", "", "\n".join(cells), count=1)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _executed(built: Path, out: Path, source: Path, cwd: Path) -> Path:
    from papermill.exceptions import PapermillExecutionError

    try:
        return execute(built, out, cwd=cwd)
    except PapermillExecutionError as error:
        cells = read(built)
        code = [i for i, c in enumerate(cells.cells) if c.cell_type == "code"]
        place = [b[3] for b in blocks(source)][code[error.exec_count - 1]]
        raise RuntimeError(
            f"{source}, the cell at line {place}: {error.ename}: {error.evalue}; the "
            "notebook is as it was") from None


def _code_of(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _code(notebook: NotebookNode, slug: str) -> str:
    """A hash of what the outputs come from: the code cells, the paper's method and claims
    (words apart), its exercises and its results (a new stamp of theirs apart). Of shared
    code it knows nothing: what changes there, nbval finds in CI."""
    exercises = Path(__file__).with_name(f"{slug.replace('-', '_')}.py")
    parts = [*map(percent, _code_of(notebook)), code_hash(slug),
             exercises.read_text("utf-8") if exercises.is_file() else "",
             *(repr({k: v for k, v in {**vars(result), "code": ""}.items()
                     if k != "when" or v}) for result in stored(slug))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _at_tiny(built: Path, cwd: Path) -> list[str]:
    """What is wrong at tiny: no cell may count on the scale or on a lucky seed."""
    from papermill.exceptions import PapermillExecutionError

    if not {"seeds", "scale"} <= set(parameter_names(read(built))):
        return []
    seed = 1 + secrets.randbelow(365)
    print(f"and at tiny, with seed {seed} …", flush=True)
    try:
        execute(built, built.with_name("tiny.ipynb"), {"seeds": [seed], "scale": "tiny"},
                cwd=cwd)
    except PapermillExecutionError as error:
        said = f"{error.ename}: {error.evalue}".strip()
        return [f"at tiny, with seed {seed}, a cell stops with {said}: {error.source}"]
    return []


def _with_kept_outputs(built: NotebookNode, path: Path, code: str) -> NotebookNode | None:
    """The built notebook with the outputs of the one that is there; None if these come
    from other code, or the notebook was not run from top to end."""
    if not path.is_file():
        return None
    there = read(path)
    old, new = _code_of(there), _code_of(built)
    if (there.metadata.get("alignkit", {}).get("code") != code
            or [*map(percent, old)] != [*map(percent, new)]
            or [cell.execution_count for cell in old] != [*range(1, len(old) + 1)]):
        return None
    for mine, its in zip(new, old):
        mine.outputs, mine.execution_count = its.outputs, its.execution_count
    return built
