"""What every notebook of the course looks like, as a check.

Order: title card, the cell tagged `parameters`, the cell tagged `setup`, then the
SECTIONS. A section starts with a markdown cell whose first line is its heading,

    ## 3 · Build it by hand            or    ## 3 · Build it by hand: late interaction

numbered in order from 1; other headings are ### or deeper. Notebooks of the opening
part (a folder whose name starts with "0-") may leave out the sections in OPTIONAL. The
rules of the single sections are in sections.py, those of single cells in cells.py.

Two or three times a notebook asks to predict, right above the code whose output answers:

    **Predict.** A question that a reader can reason out.

    <details><summary>Answer</summary>

    What comes out, and why.

    </details>
"""

import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from nbformat import NotebookNode

from .card import here_of, slug_of
from .cells import code_lines, literals, output_problems, source_problems
from .notebook import blocks, percent, read, tags_of
from .sections import OPTIONAL, SECTIONS, exercise_minutes, section_problems

CARD = ("Paper", "Prerequisites", "Time", "GPU", "Goals")
TIME = re.compile(
    r"(\d+) minutes to read, (\d+) with the exercises; (?:about )?(\d+) CPU seconds")
HEADING = re.compile(r"## (\d+) · ([^:\n]+?)(?:: .+)?$")
PREDICT = re.compile(r"(?s)\*\*Predict\.\*\* \S.+?\n\n<details><summary>Answer</summary>\n\n"
                     r"(?:(?!</?details>).)+\n\n</details>$")
MAX_BYTES = 250_000
WORDS, LINES = 130, 8  # read in a minute, by a student who understands them

Problems = Iterator[tuple[int, str]]  # number of the cell, what to do


def check_template(path: Path | str) -> list[str]:
    """Every rule that the notebook breaks, as "line 12: what to do", in order; an empty
    list is a pass. Lines are those of its percent script (`alignkit notebook`)."""
    path = Path(path)
    notebook = read(path)
    found = [*_whole(path, notebook), *_card(path, notebook), *_top(notebook),
             *_sections(path, notebook), *_predictions(notebook), *_cells(notebook)]
    lines = cell_lines(path, notebook)
    return [f"line {lines[cell]}: {text}" for cell, text in sorted(found)]


def cell_lines(path: Path, notebook: NotebookNode) -> list[int]:
    """The line of the percent script at which each cell starts: of the script beside the
    notebook where it has the same cells, else of the one that would be written."""
    beside = path.with_suffix(".py")
    if beside.is_file():
        there = blocks(beside)
        if [b[2] for b in there] == [c.source.strip() for c in notebook.cells]:
            return [b[3] for b in there]
    lines = [1]
    for cell in notebook.cells:
        lines.append(lines[-1] + percent(cell).count("\n") + 1)
    return lines


def is_opening(path: Path) -> bool:
    """Whether a notebook is of the opening part."""
    return path.resolve().parent.name.startswith("0-")


def _whole(path: Path, notebook: NotebookNode) -> Problems:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    lines = sum(code_lines(cell.source) for cell in code)
    least_cells, least_lines = (30, 100) if is_opening(path) else (40, 150)
    if not least_cells <= len(notebook.cells) <= 60:
        yield 0, f"{len(notebook.cells)} cells, need {least_cells} to 60"
    if not least_lines <= lines <= 260:
        yield 0, f"{lines} code lines, need {least_lines} to 260"
    if path.stat().st_size > MAX_BYTES:
        yield 0, f"{path.stat().st_size:,} bytes, at most {MAX_BYTES:,}: fewer pictures"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield 0, "the kernel must be named python3: build it with alignkit notebook"
    if "widgets" in notebook.metadata:
        yield 0, "widget state is saved: execute it with alignkit notebook"
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        yield 0, "execution counts are not 1, 2, 3 …: execute it with alignkit notebook"
    if not any(cell.outputs for cell in code):
        yield 0, "no outputs are kept, so nbval would compare nothing: alignkit notebook"


def _card(path: Path, notebook: NotebookNode) -> Problems:
    """Title, badge, the two lines, and what a reader wants to know beforehand."""
    first = notebook.cells[0] if notebook.cells else None
    text = first.source if first and first.cell_type == "markdown" else ""
    if not text.startswith("# "):
        yield 0, "the first cell must be the title card: # Title"
    badge = r"\(https://colab\.research\.google\.com/github/\S+/"
    if not re.search(badge + re.escape(path.name) + r"\)", text):
        yield 0, f"title card: no link to Colab that opens {path.name}"
    if "![" in text:
        yield 0, "title card: a picture from elsewhere is broken offline: link by words"
    says = "The question" if "**The question.**" in text else "The paper says"
    if says == "The question" and not is_opening(path):
        yield 0, "title card: only an opening notebook asks **The question.**"
    for label in (says, *CARD):
        if f"**{label}.**" not in text and not (is_opening(path) and label == "Paper"):
            yield 0, f"title card: no **{label}.**"
    wanted = here_of(slug_of(path))
    if wanted not in text.split("\n"):
        yield 0, (f"title card: below **{says}.** needs the line from the result file (alignkit "
                  f"notebook writes it where a line starts with **Here.**): {wanted}")
    if "GLOSSARY.md" not in text:
        yield 0, "title card: no link to the [glossary](../GLOSSARY.md)"
    yield from _time(text, notebook)


def _time(text: str, notebook: NotebookNode) -> Problems:
    said = TIME.search(text)
    if not said:
        yield 0, ("title card: **Time.** needs \"N minutes to read, M with the exercises; "
                  "S CPU seconds\"")
        return
    words = sum(len(cell.source.split()) for cell in notebook.cells
                if cell.cell_type == "markdown")
    lines = sum(code_lines(cell.source) for cell in notebook.cells
                if cell.cell_type == "code" and "solution" not in tags_of(cell))
    least, extra = round(words / WORDS + lines / LINES), sum(exercise_minutes(notebook))
    if int(said[1]) < least:
        yield 0, (f"title card: {said[1]} minutes to read {words} words and {lines} lines of "
                  f"code; {least} would be honest")
    if int(said[2]) < int(said[1]) + extra:
        yield 0, (f"title card: {said[2]} minutes with the exercises, which take {extra} by "
                  f"their own words: at least {int(said[1]) + extra}")


def _top(notebook: NotebookNode) -> Problems:
    """The parameters and the set-up are the first two code cells."""
    code = [(i, c) for i, c in enumerate(notebook.cells) if c.cell_type == "code"]
    for place, tag in enumerate(("parameters", "setup")):
        if [n for n, (_, cell) in enumerate(code) if tag in tags_of(cell)] != [place]:
            yield 0, f"code cell {place + 1}, and no other, must be tagged {tag}"
            continue
        where, cell = code[place]
        if tag == "parameters":
            yield from ((where, text) for text in literals(cell.source))
        elif "setup(" not in cell.source:
            yield where, "the set-up cell does not call setup()"


def _sections(path: Path, notebook: NotebookNode) -> Problems:
    order, contents = [], {}
    for place, cell in enumerate(notebook.cells):
        first = cell.source.split("\n")[0]
        if cell.cell_type == "markdown" and first.startswith("## "):
            found = HEADING.match(first)
            if not found or found[2] not in SECTIONS:
                yield place, f"heading {first!r} is not '## N · ' and one of: {_listed()}"
                continue
            order.append(found[2])
            if int(found[1]) != len(order):
                yield place, f"{first!r} is section number {len(order)}"
        if order:
            contents.setdefault(order[-1], []).append((place, cell))
    for name in SECTIONS:
        if name not in order and not (is_opening(path) and name in OPTIONAL):
            yield 0, f"no section '{name}'"
    if order != [name for name in SECTIONS if name in order]:
        yield 0, f"sections are not in order, or twice; the order is: {_listed()}"
    for name, cells in contents.items():
        for place, text in section_problems(name, cells, notebook, slug_of(path)):
            yield place, f"section '{name}' {text}"


def _predictions(notebook: NotebookNode) -> Problems:
    """Questions before the output that answers them, each at the end of its cell."""
    asked = [(place, cell.source.rstrip()) for place, cell in enumerate(notebook.cells)
             if cell.cell_type == "markdown" and "**Predict.**" in cell.source]
    if not 2 <= len(asked) <= 3:
        yield 0, f"asks {len(asked)} times to **Predict.**, need 2 or 3"
    for place, text in asked:
        below = takewhile(lambda c: c.cell_type == "code", notebook.cells[place + 1:])
        if not PREDICT.search(text):
            yield place, ("**Predict.** needs a question and, as the last thing of its cell, "
                          "<details><summary>Answer</summary> … </details>")
        elif not any(cell.outputs for cell in below):
            yield place, "**Predict.** stands above no code whose output could answer it"


def _listed() -> str:
    return ", ".join(SECTIONS)


def _cells(notebook: NotebookNode) -> Problems:
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            for text in source_problems(cell) + output_problems(cell):
                yield place, text
