"""The first template, for the notebooks that are not rewritten yet; it goes with the last
of them (tests/test_template.py lists them).

Order: title card, the cell tagged `parameters`, the cell tagged `setup`, then the
SECTIONS. A section starts with a markdown cell whose first line is its heading,

    ## 3 · Build it by hand            or    ## 3 · Build it by hand: late interaction

numbered in order from 1; other headings are ### or deeper. Notebooks of the opening
part (a folder whose name starts with "0-") may leave out the sections in OPTIONAL.
"""

import re
from pathlib import Path

from nbformat import NotebookNode

from .cells import code_lines, literals, output_problems, source_problems
from .notebook import read, stub_name, tags_of

SECTIONS = (
    "The question",
    "See the data",
    "Build it by hand",
    "Equal to the package",
    "An exact property",
    "The experiment",
    "The verdict",
    "When it fails",
    "In your own loop",
    "Play",
    "Exercises",
    "At full scale",
    "Limits and reading",
)
OPTIONAL = SECTIONS[3:9] + ("At full scale",)
PROSE = ("The question", "The verdict", "At full scale", "Limits and reading")
CARD = ("Claim", "Paper", "Prerequisites", "Time", "GPU", "Goals")

HEADING = re.compile(r"## (\d+) · ([^:\n]+?)(?:: .+)?$")
MAX_BYTES = 250_000


def check_template(path: Path | str) -> list[str]:
    """Every rule that the notebook breaks, in words; an empty list is a pass."""
    path = Path(path)
    notebook = read(path)
    opening = path.resolve().parent.name.startswith("0-")
    problems = _size(path, notebook, opening) + _top(path, notebook, opening)
    problems += _sections(notebook, opening) + _exercises(notebook)
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        problems.append("the kernel must be named python3")
    if "widgets" in notebook.metadata:
        problems.append("widget state is saved: execute the notebook with alignkit")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, 1):
        where = f"code cell {number}"
        problems += [f"{where}: {text}" for text in source_problems(cell) + output_problems(cell)]
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        problems.append("execution counts are not 1, 2, 3 …: run it from top to end")
    if not any(cell.outputs for cell in code):
        problems.append("no outputs are kept: nbval would pass without comparing")
    return problems


def _size(path: Path, notebook: NotebookNode, opening: bool) -> list[str]:
    cells = len(notebook.cells)
    code = sum(code_lines(c.source) for c in notebook.cells if c.cell_type == "code")
    size = path.stat().st_size
    fewest_cells, fewest_lines = (30, 100) if opening else (40, 150)
    problems = []
    if not fewest_cells <= cells <= 60:
        problems.append(f"{cells} cells, need {fewest_cells} to 60")
    if not fewest_lines <= code <= 260:
        problems.append(f"{code} code lines, need {fewest_lines} to 260")
    if size > MAX_BYTES:
        problems.append(f"{size:,} bytes, at most {MAX_BYTES:,}: fewer pictures")
    return problems


def _top(path: Path, notebook: NotebookNode, opening: bool) -> list[str]:
    """The title card, the parameters and the set-up stand first, in this order."""
    problems = []
    card = notebook.cells[0] if notebook.cells else None
    text = card.source if card and card.cell_type == "markdown" else ""
    if not text.startswith("# "):
        problems.append("the first cell must be the title card: # Title")
    for label in CARD:
        if f"**{label}.**" not in text and not (opening and label == "Paper"):
            problems.append(f"title card: no **{label}.**")
    if not re.search(r"\d minutes", text) or not re.search(r"\d CPU seconds", text):
        problems.append('title card: **Time.** needs "N minutes" and "N CPU seconds"')
    badge = r"\(https://colab\.research\.google\.com/github/\S+/"
    if not re.search(badge + re.escape(path.name) + r"\)", text):
        problems.append(f"title card: no Colab badge that opens {path.name}")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for place, tag in enumerate(("parameters", "setup")):
        found = [number for number, cell in enumerate(code) if tag in tags_of(cell)]
        if found != [place]:
            problems.append(f"code cell {place + 1}, and no other, is tagged {tag}")
            continue
        if tag == "parameters":
            problems += literals(code[place].source)
        elif "setup(" not in code[place].source:
            problems.append("the set-up cell does not call setup()")
    return problems


def _sections(notebook: NotebookNode, opening: bool) -> list[str]:
    problems, order, contents = [], [], {}
    for cell in notebook.cells:
        first = cell.source.split("\n")[0]
        if cell.cell_type == "markdown" and first.startswith("## "):
            found = HEADING.match(first)
            if not found or found[2] not in SECTIONS:
                problems.append(f"heading {first!r} is not '## N · ' and a section")
                continue
            order.append(found[2])
            if int(found[1]) != len(order):
                problems.append(f"{first!r} is section number {len(order)}")
        if order:
            contents.setdefault(order[-1], []).append(cell)
    needed = [name for name in SECTIONS if not (opening and name in OPTIONAL)]
    for name in needed:
        if name not in order:
            problems.append(f"no section '{name}'")
    if order != [name for name in SECTIONS if name in order]:
        problems.append(f"sections are not in order, or twice: {order}")
    for name, cells in contents.items():
        problems += [f"section '{name}': {text}" for text in _section(name, cells)]
    return problems


def _section(name: str, cells: list[NotebookNode]) -> list[str]:
    code = [cell for cell in cells if cell.cell_type == "code"]
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    source = "\n".join(cell.source for cell in code)
    by_hand = any("by-hand" in tags_of(cell) for cell in code)
    rules = {
        "has no code cell": name not in PROSE and not code,
        "has no equation ($…$)": name == "Build it by hand" and "$" not in prose,
        "has no cell tagged by-hand": name == "Build it by hand" and not by_hand,
        "asserts no .shape": name == "Build it by hand"
        and not ("assert" in source and ".shape" in source),
        "asserts nothing": name in SECTIONS[3:5] and "assert" not in source,
        "is not one code cell": name == "In your own loop" and len(code) != 1,
        "does not call explore()": name == "Play" and "explore(" not in source,
        "holds no exercise": name == "Exercises"
        and not any("exercise" in tags_of(cell) for cell in code),
    }
    return [text for text, broken in rules.items() if broken]


def _exercises(notebook: NotebookNode) -> list[str]:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    places = [i for i, cell in enumerate(code) if "exercise" in tags_of(cell)]
    solutions = [i for i, cell in enumerate(code) if "solution" in tags_of(cell)]
    problems = []
    if not 2 <= len(places) <= 3:
        problems.append(f"{len(places)} exercises, need 2 or 3")
    if solutions != [place + 1 for place in places]:
        problems.append("each exercise, and nothing else, has a solution right below")
    for place in places:
        name = stub_name(code[place].source)
        call = f".check({name})"
        if not name or not code[place].source.rstrip().endswith(call):
            problems.append(
                f"code cell {place + 1}: an exercise defines its stub and ends with "
                f"exercises.<name>.check(<name>)"
            )
    for place in solutions:
        if not code[place].metadata.get("jupyter", {}).get("source_hidden"):
            problems.append(f"code cell {place + 1}: the solution is not collapsed")
    return problems
