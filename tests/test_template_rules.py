"""The rules of the template, each broken once in a notebook that keeps all of them."""

import nbformat
import pytest

from alignkit.course import sections
from alignkit.course.cells import borrowed, code_lines
from alignkit.course.notebook import build, script
from alignkit.course.sections import KINDS, OPTIONAL, SECTIONS
from alignkit.course.template import check_template

CARD = """# A title

[Open in Colab](https://colab.research.google.com/github/x/y/blob/main/notebooks/1-a/01-b.ipynb)

**The paper says.** One.

**Here.** Not run yet.

**Paper.** Two. **Prerequisites.** Three.
**Time.** 40 minutes to read, 90 with the exercises; about 20 CPU seconds.
**GPU.** Not needed. **Goals.** Four; words in the [glossary](../GLOSSARY.md)."""
CODE = "print('shape')\n" * 6
STUB = "def cosine(a, b):\n    ...\n\n\nexercises.cosine.check(cosine)"
PROJECT = """from alignkit.evaluation import evaluate_retrieval
from alignkit.training import fit

method = 1
for step in range(3):
    fit(method, image, text)
print(evaluate_retrieval(method))"""
ASK = """Words.

**Predict.** More or fewer?

<details><summary>Answer</summary>

Fewer, for

there are few.

</details>"""
FOLDED = "\n\n<details><summary>More</summary>\n\nwords\n\n</details>"


def good() -> nbformat.NotebookNode:
    """A notebook that keeps every rule, not executed but with outputs."""
    cells = [text(CARD), code("seeds = [0]", "parameters"), code("setup(seeds[0])", "setup")]
    for number, name in enumerate(SECTIONS, 1):
        cells += [text(f"## {number} · {name}: a subtitle"), *body(name)]
    for count, cell in enumerate((c for c in cells if c.cell_type == "code"), 1):
        cell.execution_count = count
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    say(notebook, 3, text="12 pairs\n")
    return notebook


def text(source):
    return nbformat.v4.new_markdown_cell(source)


def code(source, *tags, hidden=False):
    metadata = {"tags": list(tags)} if tags else {}
    if hidden:
        metadata["jupyter"] = {"source_hidden": True}
    return nbformat.v4.new_code_cell(source, metadata=metadata)


def body(name: str) -> list:
    if name in ("The question", "Limits and reading"):
        return []
    if name == "Build it by hand":
        return [text("$$x$$"), code("a = b", "by-hand"), code("assert a.shape == (3, 4)")]
    if name in ("Equal to the package", "An exact property"):
        return [code("torch.testing.assert_close(a, b)")]
    if name == "The experiment":
        return [text("| arm | what |\n|---|---|\n| `plain@n` | it |" + FOLDED),
                code("study.design()"), *[code(CODE) for _ in range(4)], code(CODE * 2),
                code("here = study.run(seeds)", "nbval-ignore-output")]
    if name == "The verdict":
        shown = code("study.verdicts()", "nbval-ignore-output")
        shown.outputs = [nbformat.v4.new_output("stream", text="gain +0.0312 of 0.43\n")]
        return [text(ASK), shown, text("A gain of 0.031, in $y^{1.5}$ and arXiv 2506.16895.")]
    if name == "In your project":
        return [code(PROJECT)]
    if name == "Play":
        return [code("explore(draw, 'alt', start={'scale': 2}, scale=[1, 2])")]
    if name == "Exercises":
        return [cell for n, kind in enumerate(KINDS, 1) for cell in (
            text(f"**{n} · A task** ({kind}, 10 minutes, easy). Words."),
            code(STUB, "exercise"), code(STUB, "solution", hidden=True))]
    if name == "At full scale":
        return [text(FOLDED.strip()), code("x = 1", "folded", hidden=True)]
    return [*[text(ASK)] * (name == "See the data"), *[code(CODE) for _ in range(7)]]


def cells_of(notebook, tag=None):
    found = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [c for c in found if tag is None or tag in c.metadata.get("tags", [])]


def say(notebook, place, **output):
    kind = "display_data" if "data" in output else "stream"
    cells_of(notebook)[place].outputs.append(nbformat.v4.new_output(kind, **output))


def put(notebook, place, **values):
    cells_of(notebook)[place].update(values)


def swap(notebook, old, new):
    assert any(old in cell.source for cell in notebook.cells), old
    for cell in notebook.cells:
        cell.source = cell.source.replace(old, new)


def drop(notebook, part):
    notebook.cells = [c for c in notebook.cells if part not in c.source]


def problems(notebook, folder, part="1-a"):
    path = folder / part / "01-b.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    return check_template(path)


def test_a_good_notebook_has_no_problems(tmp_path):
    assert problems(good(), tmp_path) == []


BREAKS = {
    "40 to 60": lambda n: n.cells.extend(good().cells[-30:]),
    "150 to 260": lambda n: put(n, 5, source="x = 1\n" * 200),
    "at most 250,000": lambda n: put(n, 5, source="# " + "x\n# " * 70_000),
    "must be the title card": lambda n: n.cells.pop(0),
    "no **Paper.**": lambda n: swap(n, "**Paper.**", ""),
    "no **The paper says.**": lambda n: swap(n, "**The paper says.**", "**Claim.**"),
    "only an opening notebook": lambda n: swap(n, "The paper says", "The question"),
    "from the result file": lambda n: swap(n, "Not run yet", "It holds"),
    "[glossary](../GLOSSARY.md)": lambda n: swap(n, "GLOSSARY.md", "README.md"),
    "M with the exercises": lambda n: swap(n, "20 CPU", "few CPU"),
    "3 minutes to read": lambda n: swap(n, "40 minutes", "3 minutes"),
    "at least 70": lambda n: swap(n, "90 with", "60 with"),
    "no link to Colab": lambda n: swap(n, "01-b", "02-b"),
    "link by words": lambda n: swap(n, "[Open in Colab]", "[![Colab](https://x.org/b.svg)]"),
    "must be tagged parameters": lambda n: put(n, 4, metadata={"tags": ["parameters"]}),
    "must be tagged setup": lambda n: put(n, 1, metadata={}),
    "`b = seed + 1` is not": lambda n: put(n, 0, source="seed = 0\nb = seed + 1"),
    "`import os` is not": lambda n: put(n, 0, source="import os"),
    "does not call setup()": lambda n: put(n, 1, source="pass"),
    "and one of: The question": lambda n: swap(n, "See the data", "Look at the data"),
    "is section number 4": lambda n: swap(n, "## 4 ·", "## 5 ·"),
    "no section 'Play'": lambda n: swap(n, "## 10 · Play", "### Play"),
    "not in order": lambda n: n.cells.append(good().cells[3]),
    "'See the data' has no code": lambda n: [c.update(cell_type="markdown") for c in
                                             cells_of(n)[2:9]],
    "has no equation": lambda n: drop(n, "$$x$$"),
    "has no cell tagged by-hand": lambda n: cells_of(n, "by-hand")[0].pop("metadata"),
    "asserts no .shape": lambda n: swap(n, ".shape", ".size()"),
    "'An exact property' asserts nothing": lambda n: swap(n, "assert_close", "isclose"),
    "does not run the claims": lambda n: swap(n, ".run(", ".train("),
    "before it says what they": lambda n: swap(n, ".design(", ".claims("),
    "needs a table of the arms": lambda n: swap(n, "|", "-"),
    "what `keep` is": lambda n: None,
    "<details><summary>…": lambda n: swap(n, "</details>", ""),
    "fold it into": lambda n: swap(n, "| arm | what", "### The pilot\n\n| arm | what"),
    "does not show the published": lambda n: swap(n, ".verdicts(", ".run("),
    "says 0.04, which no cell": lambda n: swap(n, "gain of 0.031", "gain of 0.04"),
    "is one code cell, not 2": lambda n: n.cells.insert(
        [c.source for c in n.cells].index(PROJECT), code("x = 1")),
    "takes 13 lines beside": lambda n: swap(n, PROJECT, PROJECT + "\nx = 1" * 9),
    "leans on the claims": lambda n: swap(n, "method = 1", "method = study.pairs"),
    "takes image, seeds, text from": lambda n: swap(n, "range(3)", "seeds"),
    "without a score": lambda n: swap(n, "evaluat", "measur"),
    "calls explore() 0 times": lambda n: swap(n, "explore(", "draw("),
    "no start=": lambda n: swap(n, "start=", "begin="),
    "needs three headings": lambda n: swap(n, "(judge,", "(build,"),
    "2 cells tagged exercise": lambda n: cells_of(n, "exercise")[0].metadata.update(tags=[]),
    "solution right below": lambda n: n.cells.remove(cells_of(n, "solution")[0]),
    "end with exercises.": lambda n: swap(n, ".check(cosine)", ".grade(cosine)"),
    "not collapsed": lambda n: cells_of(n, "solution")[0].metadata.pop("jupyter"),
    "'At full scale' is folded": lambda n: drop(n, "<details><summary>More</summary>\n\nwords"),
    "without the tag folded": lambda n: cells_of(n, "folded")[0].metadata.update(tags=[]),
    "asks 1 times to **Predict.**": lambda n: n.cells.remove(
        next(c for c in n.cells if c.source == ASK)),
    "asks 0 times to **Predict.**": lambda n: swap(n, "**Predict.**", "Think:"),
    "as the last thing of its cell": lambda n: swap(n, "there are few.\n\n</details>",
                                                    "there are few.\n\n</details>\n\nWords."),
    "needs a question and": lambda n: swap(n, "Fewer, for\n\nthere are few.", ""),
    "whose output could answer": lambda n: put(n, 3, outputs=[]),
    "unknown tag": lambda n: put(n, 4, metadata={"tags": ["by hand"]}),
    "a line of 79 columns": lambda n: put(n, 4, source="#" * 79),
    "by-hand cell of 16": lambda n: cells_of(n, "by-hand")[0].update(source="a\n" * 16),
    "not plain Python": lambda n: put(n, 4, source="%pip install x"),
    "must be named python3": lambda n: n.metadata.kernelspec.update(name="mine"),
    "widget state": lambda n: n.metadata.update(widgets={}),
    "counts are not": lambda n: put(n, 4, execution_count=None),
    "no outputs are kept": lambda n: [put(n, i, outputs=[]) for i in range(len(cells_of(n)))],
    "an error is kept": lambda n: cells_of(n)[3].outputs.append(
        nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])),
    "stderr is kept": lambda n: say(n, 3, name="stderr", text="warning"),
    "object address": lambda n: say(n, 3, text="<function f at 0x7f3a12345678>"),
    "measured number, '0.2'": lambda n: say(n, 3, text="hit@1 0.25"),
    "measured number, 'nan'": lambda n: say(n, 3, data={"text/plain": "nan"}),
    "without alt text": lambda n: say(n, 3, data={"image/png": "iVBORw=="}),
    "widget view": lambda n: say(
        n, 3, data={"application/vnd.jupyter.widget-view+json": {"model_id": "a"}}),
    "image/svg+xml is kept": lambda n: say(n, 3, data={"image/svg+xml": "<svg/>"}),
    "html in a cell": lambda n: say(n, 3, data={"text/html": "<b>x</b>"}),
}


@pytest.mark.parametrize("message", BREAKS)
def test_each_broken_rule_is_named(tmp_path, message, monkeypatch):
    arms = ["plain", "keep"] if "keep" in message else ["plain"]
    monkeypatch.setattr(sections, "_arms", lambda slug: arms)
    notebook = good()
    BREAKS[message](notebook)
    for cell in notebook.cells:
        cell.setdefault("metadata", nbformat.NotebookNode())
    found = problems(notebook, tmp_path)
    assert any(message in problem for problem in found), found
    assert all(problem.startswith("line ") for problem in found)


def test_ignored_cells_may_print_numbers_but_no_addresses(tmp_path):
    notebook = good()
    cells_of(notebook)[3].metadata["tags"] = ["nbval-ignore-output"]
    say(notebook, 3, text="hit@1 0.25")
    assert problems(notebook, tmp_path) == []
    say(notebook, 3, text="0x7f3a12345678")
    assert len(problems(notebook, tmp_path)) == 1


def test_all_problems_come_at_once_each_with_its_line(tmp_path):
    """Line 1 for the whole; else the cell's in the script, as it lies beside, or as it
    would be written."""
    notebook = good()
    swap(notebook, "start=", "begin=")
    swap(notebook, "40 minutes", "3 minutes")
    card, play = problems(notebook, tmp_path)
    path = tmp_path / "1-a" / "01-b.ipynb"
    lines = script(path, tmp_path / "01-b.py").read_text("utf-8").splitlines()
    assert card.startswith("line 1: title card: 3 minutes to read")
    place = int(play.removeprefix("line ").partition(":")[0])
    assert lines[place - 1] == "# %%" and lines[place].startswith("explore(")
    (path.with_suffix(".py")).write_text("\n\n\n" + "\n".join(lines), "utf-8")
    assert [p.partition(":")[0] for p in check_template(path)] == [
        "line 4", f"line {place + 3}"]
    (path.with_suffix(".py")).write_text("# %%\nx = 1\n", "utf-8")  # of other cells
    assert check_template(path) == [card, play]
    assert build(tmp_path / "01-b.py", tmp_path / "c.ipynb").is_file()


def test_opening_notebooks_may_be_shorter_and_ask_a_question(tmp_path):
    notebook, keep, number, inside = good(), [], 0, True
    for cell in notebook.cells:
        if cell.source.startswith("## "):
            name = cell.source.split(" · ")[1].partition(":")[0]
            inside = name not in OPTIONAL
            number += inside
            cell.source = f"## {number} · {name}"
        if inside:
            keep.append(cell)
    notebook.cells = keep + [code(CODE) for _ in range(6)]
    swap(notebook, "The paper says", "The question")
    swap(notebook, "**Paper.** Two.", "")
    for count, cell in enumerate(cells_of(notebook), 1):
        cell.execution_count = count
    assert problems(notebook, tmp_path, part="0-start") == []
    assert len(problems(notebook, tmp_path)) >= len(OPTIONAL)


@pytest.mark.parametrize("source, names", [
    ("x = image + text", ["image", "text"]), ("import torch\nx = torch.ones(2)", []),
    ("def f(a):\n    return a + b", ["b"]), ("print([i for i in range(3)])", []),
    ("from a import b as c\nc(d, b)", ["b", "d"])])
def test_names_from_other_cells(source, names):
    assert borrowed(source) == names


def test_lines_of_code():
    source = "import a\nfrom b import (c,\n    d)\n\n# why\nx = 1\ny = f(\n    x)"
    assert (code_lines(source), code_lines(source, imports=False)) == (6, 3)
