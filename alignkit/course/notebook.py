"""Notebooks from text, executed, tried with answers, and made into student versions.

A notebook is written as a percent script and built from it:

    # %% [markdown]
    # # Title
    # text, each line behind a hash

    # %% tags=["parameters"]
    seed = 0

`build` makes the .ipynb, `execute` fills in the outputs, `script` goes back from an
.ipynb to its script. The .ipynb is what is kept in the repository.
"""

import ast
import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat import NotebookNode, v4

from .kernels import kernel_for

TAGS = (
    "parameters",  # the one cell of literals that papermill may replace
    "setup",  # the one call of setup()
    "by-hand",  # the method built by hand, at most 15 lines
    "folded",  # code collapsed, outputs shown: pilots, full scale
    "exercise",  # a stub and the call of its check
    "solution",  # its solution, collapsed, right below
    "nbval-ignore-output",  # run by nbval, but outputs are not compared
)
ALONE = ("parameters", "setup", "exercise")  # what an exercise needs, and itself
METADATA = {
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}
# ipykernel warns that its connection, on this machine only, is not encrypted.
QUIET = ["--IPKernelApp.log_level=ERROR"]
FOLDED = "; a solution is folded below"  # of published notebooks, not of students' copies
MARKER = re.compile(r"# %%(?P<markdown> \[markdown\])?(?: tags=(?P<tags>\[.*\]))?\s*$")


def build(script_path: Path | str, out: Path | str) -> Path:
    """Write the .ipynb of a percent script; cell ids follow from the contents.

    Raises:
        ValueError: a line that is not in the format, or an unknown tag.
    """
    cells, used = [], {}
    for kind, tags, source, _ in blocks(Path(script_path)):
        digest = hashlib.sha256(f"{kind}\n{source}".encode()).hexdigest()[:12]
        used[digest] = used.get(digest, 0) + 1
        name = digest if used[digest] == 1 else f"{digest}-{used[digest]}"
        make = v4.new_markdown_cell if kind == "markdown" else v4.new_code_cell
        metadata = {"tags": tags} if tags else {}
        if {"solution", "folded"} & set(tags):  # collapsed in JupyterLab, and in Colab
            metadata |= {"jupyter": {"source_hidden": True}, "cellView": "form"}
        cells.append(make(source, id=name, metadata=metadata))
    return _write(v4.new_notebook(cells=cells, metadata=METADATA), out)


def blocks(path: Path) -> list[tuple[str, list[str], str, int]]:
    """The script's cells: kind, tags, source, and the line at which each starts."""
    blocks = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path.name}, line {number}"
        if line.startswith("# %%"):
            found = MARKER.match(line)
            if not found:
                raise ValueError(
                    f'{where}: {line!r} is not "# %%", "# %% [markdown]" or '
                    f'"# %% tags=[...]"'
                )
            tags = ast.literal_eval(found["tags"] or "[]")
            unknown = sorted(set(tags) - set(TAGS))
            if unknown:
                raise ValueError(f"{where}: unknown tag {unknown}; there are {TAGS}")
            blocks.append(("markdown" if found["markdown"] else "code", tags, [], number))
        elif not blocks:
            if line.strip() and not line.startswith("#"):
                raise ValueError(f"{where}: text before the first cell (# %%)")
        elif blocks[-1][0] == "markdown" and line.strip():
            if not line.startswith("# ") and line.rstrip() != "#":
                raise ValueError(f"{where}: text lines start with '# ', got {line!r}")
            blocks[-1][2].append(line[2:])
        else:
            blocks[-1][2].append(line)
    return [(kind, tags, "\n".join(lines).strip(), number)
            for kind, tags, lines, number in blocks]


def script(path: Path | str, out: Path | str) -> Path:
    """Write a notebook back as the percent script that `build` would take."""
    return _save("\n".join(map(percent, read(path).cells)), out)


def percent(cell: NotebookNode) -> str:
    """A cell as it stands in a percent script."""
    if cell.cell_type == "markdown":
        text = "\n".join(f"# {line}".rstrip() for line in cell.source.split("\n"))
        return f"# %% [markdown]\n{text}\n"
    quoted = ", ".join(f'"{tag}"' for tag in tags_of(cell))
    mark = f" tags=[{quoted}]" if quoted else ""
    return f"# %%{mark}\n{cell.source}\n"


def student(path: Path | str, out: Path | str) -> Path:
    """Write the student version: no solutions, stubs as they are, no outputs, and no
    text that says where the solutions are."""
    notebook = read(path)
    notebook.cells = [c for c in notebook.cells if "solution" not in tags_of(c)]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace(FOLDED, "")
    return _write(_without_outputs(notebook), out)


def execute(
    path: Path | str,
    out: Path | str,
    parameters: dict | None = None,
    *,
    timeout: int = 300,
    progress: bool = False,
    cwd: Path | None = None,
) -> Path:
    """Run a notebook in its own folder, or in `cwd`, and write it with its outputs.

    Widgets are drawn as still figures. papermill's own notes are left out of the
    file, so that a second run of the same notebook differs only where outputs do.

    Args:
        parameters: values for names in the parameters cell.
        timeout: seconds for each cell.
        progress: show papermill's bar.

    Raises:
        ValueError: a parameter that the notebook does not have.
        papermill.PapermillExecutionError: a cell failed; nothing is written.
        RuntimeError: the kernel died, or a cell took too long; names the path.
    """
    path, out = Path(path).resolve(), Path(out).resolve()
    known = parameter_names(read(path))
    unknown = sorted(set(parameters or {}) - set(known))
    if unknown:
        raise ValueError(f"{path.name} has no parameter {unknown}; it has {known}")
    import papermill

    with kernel_for(path):
        notebook = papermill.execute_notebook(
            path,
            None,
            parameters,
            kernel_name="python3",
            progress_bar=progress,
            cwd=cwd or path.parent,
            execution_timeout=timeout,
            extra_arguments=QUIET,
        )
    notebook.metadata = METADATA
    for cell in notebook.cells:
        for note in ("papermill", "execution"):
            cell.metadata.pop(note, None)
        if not cell.metadata.get("tags"):
            cell.metadata.pop("tags", None)
    return _write(notebook, out)


class Ran(NamedTuple):
    """A cell that `run_cells` ran."""

    name: str  # the function of an exercise cell, else ""
    answer: str | None  # the code that stood for the stub; None = as it is
    text: str  # what was printed
    error: str  # "ExerciseError: it looks as if …", or ""


def run_cells(
    path: Path | str,
    tags: Sequence[str] = ALONE,
    answers: dict[str, list[str]] | None = None,
    *,
    timeout: int = 120,
) -> list[Ran]:
    """Run only the cells with one of these tags, in a fresh kernel.

    Args:
        answers: function name -> pieces of code that define it. The exercise cell of
            that name runs once as it stands, then once with each piece in the
            stub's place.
    """
    from nbclient import NotebookClient

    runs = planned(path, tags, answers)
    notebook = v4.new_notebook(
        cells=[v4.new_code_cell(source) for *_, source in runs], metadata=METADATA
    )
    folder = {"metadata": {"path": str(Path(path).resolve().parent)}}
    with kernel_for(path):
        NotebookClient(
            notebook, timeout=timeout, allow_errors=True, resources=folder
        ).execute()
    return [
        Ran(name, answer, *_printed(cell))
        for (name, answer, _), cell in zip(runs, notebook.cells)
    ]


def planned(path, tags, answers=None) -> list[tuple[str, str | None, str]]:
    """(name, answer, source) of the cells that `run_cells` runs."""
    runs = []
    for cell in read(path).cells:
        if not set(tags) & set(tags_of(cell)):
            continue
        name = stub_name(cell.source) if "exercise" in tags_of(cell) else ""
        runs.append((name, None, cell.source))
        for answer in (answers or {}).get(name, []):
            runs.append((name, answer, _with_answer(cell.source, answer)))
    return runs


def stub_name(source: str) -> str:
    """The function that an exercise cell defines first, "" if none."""
    bodies = ast.parse(source).body
    return next((b.name for b in bodies if isinstance(b, ast.FunctionDef)), "")


def _with_answer(source: str, answer: str) -> str:
    """The exercise cell with the stub's function replaced by the answer."""
    stub = next(b for b in ast.parse(source).body if isinstance(b, ast.FunctionDef))
    lines = source.split("\n")
    return "\n".join([*lines[: stub.lineno - 1], answer, *lines[stub.end_lineno :]])


def _printed(cell: NotebookNode) -> tuple[str, str]:
    text = "".join(o.text for o in cell.outputs if o.output_type == "stream")
    errors = [o for o in cell.outputs if o.output_type == "error"]
    return text, "".join(f"{e.ename}: {e.evalue}" for e in errors)


def parameter_names(notebook: NotebookNode) -> list[str]:
    """Names assigned in the cell tagged parameters."""
    sources = [c.source for c in notebook.cells if "parameters" in tags_of(c)]
    nodes = ast.walk(ast.parse("\n".join(sources)))
    return [n.id for n in nodes if isinstance(n, ast.Name) and _stored(n)]


def _stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def tags_of(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags") or []


def read(path: Path | str) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def _without_outputs(notebook: NotebookNode) -> NotebookNode:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def _write(notebook: NotebookNode, out: Path | str) -> Path:
    nbformat.validate(notebook)
    return _save(nbformat.writes(notebook) + "\n", out)


def _save(text: str, out: Path | str) -> Path:
    """Under a temporary name first: a reader never sees half a file."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=out.parent, suffix=".part")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
    os.chmod(temporary, 0o644)  # mkstemp's file is private
    os.replace(temporary, out)
    return out
