"""What each section of a notebook must hold, as far as a test can see it.

`section_problems` gives (number of the cell, words that continue "section 'Play' …").
"""

import re
from collections.abc import Iterator

from nbformat import NotebookNode

from alignkit.claims import measured, slugs

from .cells import borrowed, code_lines
from .notebook import stub_name, tags_of

SECTIONS = (
    "The question",
    "See the data",
    "Build it by hand",
    "Equal to the package",
    "An exact property",
    "The experiment",
    "The verdict",
    "When it fails",
    "In your project",
    "Play",
    "Exercises",
    "At full scale",
    "Limits and reading",
)
OPTIONAL = SECTIONS[3:5] + SECTIONS[7:9] + ("At full scale",)
PROSE = ("The question", "At full scale", "Limits and reading")
KINDS = ("build", "transfer", "judge")
TASK = re.compile(
    r"\*\*(\d) · [^*]+\*\* \((\w+), (\d+) minutes, (?:easy|medium|hard)\)")
# Pilot or full scale, not the answer to a question (template.py).
FOLD = re.compile(r"(?s)<details>\s*<summary>(?!Answer<).*?</details>")
MOST_LINES, MOST_BORROWED = 10, 2
# Decimals of prose, not of "arXiv 2506.16895" or a version.
DECIMAL = re.compile(r"(?<![\w.])[+−-]?\d+\.\d+(?![\w.]\d)(?!\d)")

Cells = list[tuple[int, NotebookNode]]
Found = Iterator[tuple[int, str]]


def section_problems(name: str, cells: Cells, notebook: NotebookNode, slug: str) -> Found:
    """What section `name` lacks; its cells with their numbers in the notebook."""
    if name not in PROSE and not _code(cells):
        yield cells[0][0], "has no code cell"
        return
    rules = {
        "Build it by hand": _by_hand, "Equal to the package": _asserts,
        "An exact property": _asserts, "The experiment": _experiment,
        "The verdict": _verdict, "In your project": _project, "Play": _play,
        "Exercises": _exercises, "At full scale": _folded,
    }
    if name in rules:
        yield from rules[name](cells, notebook, slug)


def _code(cells: Cells, tag: str = "") -> Cells:
    return [(i, c) for i, c in cells if c.cell_type == "code"
            and (not tag or tag in tags_of(c))]


def _text(cells: Cells, kind: str = "markdown") -> str:
    return "\n".join(c.source for _, c in cells if c.cell_type == kind)


def _by_hand(cells: Cells, *_) -> Found:
    first, source = cells[0][0], _text(cells, "code")
    if "$" not in _text(cells):
        yield first, "has no equation ($…$)"
    if not _code(cells, "by-hand"):
        yield first, "has no cell tagged by-hand"
    if not ("assert" in source and ".shape" in source):
        yield first, "asserts no .shape"


def _asserts(cells: Cells, *_) -> Found:
    if "assert" not in _text(cells, "code"):
        yield cells[0][0], "asserts nothing"


def _experiment(cells: Cells, _, slug: str) -> Found:
    """A table defines every arm, and design() every claim, before the run; the pilot is
    folded."""
    runs = [i for i, c in _code(cells) if ".run(" in c.source]
    if not runs:
        yield cells[0][0], "does not run the claims: study.run(seeds)"
        return
    before = [(i, c) for i, c in cells if i < runs[0]]
    if not any(".design(" in c.source for _, c in _code(before)):
        yield runs[0], ("runs claims before it says what they subtract: print "
                        "study.design() above it")
    table = "\n".join(re.findall(r"(?m)^\|.*\|$", _text(before)))
    if not table:
        yield runs[0], "needs a table of the arms (| arm | …) above the run"
    for arm in _arms(slug):
        if table and not re.search(rf"`{re.escape(arm)}[`@]", table):
            yield runs[0], f"does not say in the table above the run what `{arm}` is"
    open_text = FOLD.sub("", _text(cells))
    if not FOLD.search(_text(cells)):
        yield cells[0][0], ("needs pilot and changes of protocol in <details><summary>…"
                            "</summary> … </details>")
    elif re.search(r"(?mi)^#+ .*pilot", open_text):
        yield cells[0][0], "tells its pilot at length: fold it into <details>"


def _arms(slug: str) -> list[str]:
    """Names of the arms that published claims compare; `plain@100` counts as `plain`. Those
    of a follow-up are not run in the notebook."""
    results = measured(slug) if slug in slugs() else []
    return sorted({arm.partition("@")[0] for r in results for arm in (r.baseline, r.method)})


def _verdict(cells: Cells, notebook: NotebookNode, _) -> Found:
    """The published table, and no decimal in the words that nothing above has shown."""
    shown = [i for i, c in _code(cells) if ".verdicts(" in c.source]
    if not shown:
        yield cells[0][0], "does not show the published verdicts: study.verdicts()"
        return
    for place, cell in cells:
        if cell.cell_type == "markdown" and place > shown[0]:
            there = _numbers(notebook.cells[:place])
            for said in dict.fromkeys(DECIMAL.findall(_no_maths(cell.source))):
                if not _seen(said, there):
                    yield place, f"says {said}, which no cell above has printed"


def _no_maths(text: str) -> str:
    """Prose without formulas, code, links and numbers of arXiv."""
    return re.sub(r"(?s)\$.*?\$|`[^`]*`|\]\([^)]*\)|arXiv[: ]\d+\.\d+", " ", text)


def _numbers(cells: list[NotebookNode]) -> list[float]:
    """Decimals that stand in the code or in the printed outputs of cells."""
    texts = []
    for cell in cells:
        if cell.cell_type == "code":
            texts += [cell.source, *(o.get("text", "") for o in cell.outputs)]
            texts += [str(o.get("metadata", {}).get("image/png", {}).get("alt", ""))
                      for o in cell.outputs]
    return [abs(float(x.replace("−", "-"))) for text in texts
            for x in re.findall(r"\d+\.\d+(?:e-?\d+)?", text)]


def _seen(said: str, numbers: list[float]) -> bool:
    """Is it one of the numbers, rounded to its own places?"""
    digits = said.lstrip("+−-")
    places = len(digits.partition(".")[2])
    half = 0.5 * 10 ** -places * 1.001
    return any(abs(x - float(digits)) <= half for x in numbers)


def _project(cells: Cells, *_) -> Found:
    """Ten lines that can be copied: from two tensors or a table to a score."""
    code = _code(cells)
    if len(code) != 1:
        yield cells[0][0], f"is one code cell, not {len(code)}"
        return
    place, source = code[0][0], code[0][1].source
    if (lines := code_lines(source, imports=False)) > MOST_LINES:
        yield place, f"takes {lines} lines beside its imports, at most {MOST_LINES}"
    if re.search(r"\bclaims\b|\bstudy\b|\bStudy\b", source):
        yield place, "leans on the claims: a reader's project has none"
    if len(names := borrowed(source)) > MOST_BORROWED:
        yield place, (f"takes {', '.join(names)} from other cells: make or import all but "
                      f"{MOST_BORROWED} (the two tensors) in the cell")
    if not re.search(r"alignkit\.evaluation|evaluate_", source):
        yield place, "ends without a score: use alignkit.evaluation"


def _play(cells: Cells, *_) -> Found:
    calls = [(i, c) for i, c in _code(cells) if "explore(" in c.source]
    if len(calls) != 1:
        yield cells[0][0], f"calls explore() {len(calls)} times, need 1"
    elif "start=" not in calls[0][1].source:
        yield calls[0][0], "gives explore() no start=: open on a case that shows the effect"


def exercise_minutes(notebook: NotebookNode) -> list[int]:
    """What the exercises' headings say that they take."""
    return [int(m[3]) for c in notebook.cells if c.cell_type == "markdown"
            for m in TASK.finditer(c.source)]


def _exercises(cells: Cells, notebook: NotebookNode, _) -> Found:
    """One that builds, one that transfers, one that judges; each a heading, a stub that
    ends with its check, and a collapsed solution right below."""
    first = cells[0][0]
    tasks = [m for m in TASK.finditer(_text(cells))]
    if tuple(m[2] for m in tasks) != KINDS or [m[1] for m in tasks] != ["1", "2", "3"]:
        yield first, ("needs three headings, '**1 · Title** (build, 10 minutes, easy).', then "
                      f"transfer, then judge; there are {[m[0] for m in tasks]}")
    code = _code(list(enumerate(notebook.cells)))
    stubs = [n for n, (_, c) in enumerate(code) if "exercise" in tags_of(c)]
    solutions = [n for n, (_, c) in enumerate(code) if "solution" in tags_of(c)]
    if len(stubs) != len(KINDS):
        yield first, f"has {len(stubs)} cells tagged exercise, need {len(KINDS)}"
    if solutions != [n + 1 for n in stubs]:
        yield first, "needs a cell tagged solution right below each exercise, and no other"
    for n in stubs:
        place, cell = code[n]
        name = stub_name(cell.source)
        if not name or not cell.source.rstrip().endswith(f".check({name})"):
            yield place, ("has an exercise that does not define its stub and end with "
                          "exercises.<name>.check(<name>)")
    for n in solutions:
        if not code[n][1].metadata.get("jupyter", {}).get("source_hidden"):
            yield code[n][0], "has a solution that is not collapsed: alignkit notebook"


def _folded(cells: Cells, *_) -> Found:
    if not FOLD.search(_text(cells)):
        yield cells[0][0], "is folded: <details><summary>…</summary> … </details>"
    for place, cell in _code(cells):
        if "folded" not in tags_of(cell):
            yield place, "has a code cell without the tag folded"
