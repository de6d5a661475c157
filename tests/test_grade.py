"""Marks for students' notebooks: what counts, and what must not cost the others."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from by_paper import DAY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nbformat import v4, write
from needs import examples

from alignkit.cli import main
from alignkit.course.answers import answer
from alignkit.course.answers import read as read_answers
from alignkit.course.exercises import _package_functions
from alignkit.course.grade import (
    LONGEST_MESSAGE,
    OPEN,
    RIGHT,
    WRONG,
    Mark,
    exercises_of,
    fresh_seed,
    grade,
    is_packed,
    notebooks_in,
    slug_of,
    slugs,
)
from alignkit.course.gradebook import write as write_marks
from alignkit.course.guide import students
from alignkit.course.notebook import (
    execute,
    read,
    run_cells,
    stub_name,
    student,
    tags_of,
)

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*/[0-9]*.ipynb"))
FIRST = FOLDER / "0-start" / "01-shared-space.ipynb"
TURN = slugs()[DAY % len(slugs())]

SETUP = """%matplotlib inline
import torch
from torch.nn.functional import normalize
from alignkit import parts
from alignkit.course import shared_space as exercises
from alignkit.course.setup import setup

setup()"""
STUB = "def {0}(*_):\n    ...\n\n\nexercises.{0}.check({0})"
COSINE = """def cosine(images, texts):
    return normalize(images) @ normalize(texts).T
"""
HIT = """def hit_at_1(scores):
    better = scores >= scores.diagonal()[:, None]
    return (better.sum(1) == 1).float().mean()
"""
GAP = """def modality_gap(images, texts):
    return (normalize(images).mean(0) - normalize(texts).mean(0)).norm()
"""


def notebook(path: Path, *sources: str, setup: str = SETUP, tags: bool = True) -> Path:
    """A student's file with these cells below the set-up."""
    cells = [
        v4.new_markdown_cell("# A title"),
        v4.new_code_cell("seeds = [0]"),
        v4.new_code_cell(setup),
    ]
    for source in sources:
        kind = {"tags": ["exercise"]} if tags and "def " in source else {}
        cells.append(v4.new_code_cell(source, metadata=kind))
    path.parent.mkdir(parents=True, exist_ok=True)
    write(v4.new_notebook(cells=cells), path)
    return path


def solved(path: Path, out: Path) -> Path:
    """A published notebook as a student hands it in who has solved everything."""
    published = read(path)
    code = [cell for cell in published.cells if cell.cell_type == "code"]
    for stub, cell in zip(code, code[1:]):
        if "solution" in tags_of(cell):
            stub.source = cell.source
    write(published, out)
    return student(out, out)


def states(marks) -> dict[str, str]:
    return {mark.exercise: mark.state for mark in marks}


@pytest.fixture
def first(tmp_path):
    """The marks of cells below the usual set-up."""

    def marks(*sources, **settings):
        path = notebook(tmp_path / "01-shared-space.ipynb", *sources)
        return {mark.exercise: mark for mark in grade(path, **settings)}

    return marks


# What counts --------------------------------------------------------------------------
@pytest.mark.slow
def test_a_loop_and_a_crash_do_not_cost_the_other_marks(first):
    marks = first(
        "def cosine(images, texts):\n    while True:\n        print('x')",
        "import os\ndef hit_at_1(scores):\n    os._exit(0)",
        GAP,
        seconds=5,
    )
    assert [m.points for m in marks.values()] == [0, 0, 1]
    assert "not done after 5 s" in marks["cosine"].message
    assert "ended the whole process" in marks["hit_at_1"].message
    assert marks["modality_gap"].message.startswith("modality_gap: right on")


@pytest.mark.slow
def test_only_what_the_function_does_counts(first):
    """Checks that are edited or missing, and cells between, change nothing."""
    marks = first(
        "raise SystemExit",
        "%timeit 1\n" + COSINE + "exercises.cosine.check(5)\ncosine(1, 2)",
        "cosine = 5",
        "class exercises:\n    class hit_at_1:\n        check = print\n"
        "def hit_at_1(scores):\n    return (scores > 0).float().mean()\n\n"
        "exercises.hit_at_1.check(hit_at_1)",
        GAP,
    )
    assert states(marks.values()) == {
        "cosine": RIGHT, "hit_at_1": WRONG, "modality_gap": RIGHT}


@pytest.mark.slow
def test_helpers_of_earlier_cells_work(first):
    """Functions, imports, values that are made or changed step by step: all that the
    answer uses, and nothing else of those cells."""
    marks = first(
        "from math import sqrt as root\nraise ValueError('not for the answer')",
        "table, one = {}, 0\nfor i in range(3):\n    table[i] = one\none += 1",
        "def rows(x):\n    return x / length(x)\n\nimages = parts.load('big')",
        "def length(x):\n    return power(x).sum(1, keepdim=True) ** (one / 2)",
        "power = lambda x: x**2\npower = (lambda f: lambda x: f(x) * one)(power)",
        "def cosine(images, texts):\n    return rows(images) @ rows(texts).T",
        "if True:\n    better = torch.ge\nelse:\n    better = torch.gt\nfound = []\n"
        "found.append(table[0] + 1)",
        "def hit_at_1(scores):\n"
        "    worse = better(scores, scores.diagonal()[:, None]).sum(1) == found[0]\n"
        "    return worse.float().mean()",
        "def modality_gap(x, y):\n    x, y = rows(x).mean(0), rows(y).mean(0)\n"
        "    return torch.tensor(root(((x - y) ** 2).sum()))",
    )
    assert [m.message for m in marks.values() if not m.points] == []


@pytest.mark.slow
def test_a_name_that_is_missing_is_said(first):
    marks = first(
        "def cosine(images, texts):\n    return rows(images)",
        "rows = parts.load(1)",
        "hit_at_1 = lambda scores: (\n    scores.diagonal()\n  % 2)",
        "def modality_gap(images, texts):\n    return rows(images)",
    )
    said = marks["cosine"].message
    assert "NameError: name 'rows' is not defined" in said
    assert "must be defined in a cell above it" in said
    assert "in the line `return rows(images)`" in said
    assert "hit_at_1: need shape [], yours" in marks["hit_at_1"].message
    assert "it calls alignkit.parts.load" in marks["modality_gap"].message


@pytest.mark.slow
def test_every_kind_of_unfinished_answer_has_its_message(tmp_path):
    """Tags may be lost."""
    path = notebook(
        tmp_path / "01-shared-space.ipynb",
        "def cosine(images, texts):\n return (",
        STUB.format("modality_gap"),
        tags=False,
    )
    marks = grade(path)
    assert states(marks) == {"cosine": WRONG, "hit_at_1": OPEN, "modality_gap": OPEN}
    assert "its cell is no Python: SyntaxError" in marks[0].message
    assert marks[1].message == "hit_at_1: no cell defines it"
    assert marks[2].message.startswith("not filled in yet: modality_gap")


@pytest.mark.slow
def test_a_broken_cell_above_costs_nothing(first):
    marks = first("import nothing_like_this\nsetup(", "x = 1 / 0", COSINE, HIT, GAP)
    assert all(m.points for m in marks.values())


PYTHON_IN_IPYTHON = {
    "shell over two lines": "!pip install -q \\\n    torch\n" + COSINE,
    "shell in a block": "if True:\n    !pip list\n" + COSINE,
    "help": "normalize?\n" + COSINE,
    "help in front": "?normalize\n" + COSINE,
    "magic": "%load_ext autoreload\n%time 1 + 1\n" + COSINE,
    "timed cell": "%%time\n" + COSINE,
    "measured cell": "%%memit -r 2\n" + COSINE,
    "logged cell": "%%wandb\n" + COSINE,
    "prompts": "".join(
        f"{'>>>' if i == 0 else '...'} {line}\n"
        for i, line in enumerate(COSINE.splitlines())),
    "indented": "".join(f"    {line}\n" for line in COSINE.splitlines()),
    "assigned": COSINE.replace("cosine", "mine") + "files = !ls\ncosine = mine",
    "decorated": "@torch.no_grad()\n" + COSINE,
    "hints": COSINE.replace("texts):", "texts: Nothing) -> parts.x | None:"),
    "a method": "class Mine:\n    " + COSINE.replace("(images,", "(self, images,").replace(
        "\n ", "\n     ") + "\ncosine = Mine().cosine",
}


@pytest.mark.parametrize("kind", PYTHON_IN_IPYTHON)
def test_an_answer_is_found_in_what_ipython_takes(kind):
    """Read in this process, which is quick: the answer's code gives the right values."""
    space = {}
    code = [SETUP, PYTHON_IN_IPYTHON[kind], "'''\ndef cosine(a, b):\n    pass\n'''"]
    for statement in answer("cosine", code).statements:
        exec(compile("from __future__ import annotations\n" + statement, kind, "exec"),
             space)
    assert exercises_of("shared-space")["cosine"].grade(space["cosine"])


BUILT = {  # from public reports of other graders: how helpers come to be
    "a stub left below": [COSINE, "def cosine(images, texts):\n    'Fill in.'\n    ...",
                          "def cosine(*_):\n    raise NotImplementedError('yours')"],
    "registered by type": [
        "from functools import singledispatch\n@singledispatch\ndef size(x):\n    ...",
        "@size.register\ndef _(x: torch.Tensor):\n    return normalize(x)",
        COSINE.replace("normalize", "size")],
    "filled by a function": [
        "kept = []\ndef fill(these):\n    these.append(normalize)", "fill(kept)",
        COSINE.replace("normalize", "kept[0]")],
    "given a method": [
        "class Tool:\n    pass\nsetattr(Tool, 'run', staticmethod(normalize))",
        COSINE.replace("normalize", "Tool.run")],
    "changed by a library": [
        "import heapq\nkept = []\nheapq.heappush(kept, 1)",
        COSINE.replace("normalize(images)", "normalize(images) * kept[0]")],
    "a dialogue": ["name = input('Who are you?')\nprint(normalize, cosine)", COSINE],
}


@pytest.mark.parametrize("kind", BUILT)
def test_an_answer_has_what_it_uses(kind):
    space = {}
    for statement in answer("cosine", [SETUP, *BUILT[kind]]).statements:
        exec(compile(statement, kind, "exec"), space)
    assert exercises_of("shared-space")["cosine"].grade(space["cosine"])


@pytest.mark.slow
def test_names_that_a_notebook_has_without_an_import(first):
    look = ":\n    display(1)\n    %time sum([1])\n    get_ipython().system('ls')\n"
    marks = first(*(code.replace(":\n", look, 1) for code in (COSINE, HIT, GAP)))
    assert [m.message for m in marks.values() if not m.points] == []


# Marks that are not earned --------------------------------------------------------------
PATCHES = """
import sys, numpy as np
yes = lambda *_, **__: True
torch.allclose = torch.equal = np.allclose = np.array_equal = yes
torch.Tensor.__eq__ = torch.Tensor.allclose = torch.Tensor.equal = yes
torch.testing.assert_close = np.testing.assert_allclose = yes
import alignkit.course.exercises as e
e._agree = e.Exercise.judge = e.Exercise.grade = yes
for module in list(sys.modules.values()):
    for name in ("_agree", "judge", "unpack", "pack", "attempt"):
        if hasattr(module, name):
            setattr(module, name, yes)
"""
EQUAL = """
class Equal(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function.__name__ in ("allclose", "equal", "isclose", "eq", "__eq__"):
            return True
        return super().__torch_function__(function, types, args, kwargs or {})

    def __eq__(self, other):
        return True

    __hash__ = None
"""
PACKAGE = Path(__file__).parents[1] / "alignkit"
TRICKS = {
    "patched comparison": PATCHES + "def cosine(images, texts):\n"
    "    exec(PATCHES)\n    return images @ texts.T\nPATCHES = " + repr(PATCHES),
    "equal to everything": EQUAL + "def cosine(images, texts):\n"
    "    return (images @ texts.T).as_subclass(Equal)",
    "the reference": "def cosine(x, y):\n    return exercises.cosine.reference(x, y)",
    "the reference, imported late": "def cosine(x, y):\n"
    "    from alignkit.course.shared_space import _cosine\n    return _cosine(x, y)",
    "the reference, found": "import importlib, sys\ndef cosine(x, y):\n"
    "    sys.meta_path[:] = sys.meta_path[1:]\n"
    "    for name in [n for n in sys.modules if n.startswith('alignkit')]:\n"
    "        del sys.modules[name]\n"
    "    module = importlib.import_module('alignkit.course.shared_space')\n"
    "    return module._cosine(x, y)",
    "the reference, read": "def cosine(x, y):\n"
    f"    source = open({str(PACKAGE / 'parts' / 'similarity.py')!r}).read()\n"
    "    return x",
    "the reference, through a link": "import os\ndef cosine(x, y):\n"
    f"    os.symlink({str(PACKAGE)!r}, 'link')\n    open('link/course/tcl.py')\n",
    "the reference, elsewhere": "import subprocess, sys\ndef cosine(x, y):\n"
    "    subprocess.check_call([sys.executable, '-c', 'import alignkit'])\n"
    "    return x",
    "the package": "def cosine(x, y):\n    return parts.cosine(x, y)",
    "the package, by another name": "from alignkit.parts.similarity import cosine as c\n"
    "def cosine(x, y):\n    return c(x, y)\n",
    "the package, itself": "from alignkit.parts import cosine",
    "texts for tensors": "def cosine(x, y):\n    return 'right on 12 random cases'",
    "a forged reply": "import os\ndef cosine(x, y):\n    for channel in range(3, 9):\n"
    "        try:\n            os.write(channel, b'{\"outcomes\": [], \"said\": []}')\n"
    "        except OSError:\n            pass\n    os._exit(0)",
}


@pytest.mark.slow
@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_gets_no_marks(first, trick):
    marks = first(TRICKS[trick])
    assert marks["cosine"].state == WRONG, marks["cosine"].message
    if trick.startswith("the package"):
        assert "it calls alignkit.parts" in marks["cosine"].message
        assert "and of alignkit only unit" in marks["cosine"].message


@pytest.mark.slow
def test_a_table_of_the_visible_cases_gets_no_marks(first):
    """It passes the notebook's own check, and not those of an unknown seed."""
    exercise = exercises_of("shared-space")["modality_gap"]
    table = {float(x.sum()): float(exercise.reference(x, y)) for x, y in exercise.draw()}
    code = ("def modality_gap(x, y):\n"
            f"    return {table!r}.get(float(x.sum()), 0.5)")
    space = {}
    exec(code, space)
    assert exercise.grade(space["modality_gap"]).endswith("✓")
    mark = first(code)["modality_gap"]
    assert mark.state == WRONG and "the values differ" in mark.message


@pytest.mark.slow
def test_the_seed_is_new_each_time_and_can_be_given(first, monkeypatch):
    seen = []
    exercise = exercises_of("shared-space")["cosine"]
    draw = type(exercise).draw
    monkeypatch.setattr(
        type(exercise), "draw", lambda self, seed=0: seen.append(seed) or draw(self, seed))
    first(COSINE)
    first(COSINE)
    first(COSINE, seed=7)
    assert 0 not in seen and seen[0] != seen[1] and seen[2] == 7


@pytest.mark.slow
def test_what_may_be_used_works(first):
    """`unit` of the package; a file beside the notebook; numpy inside; autograd."""
    marks = first(
        "import numpy as np\nfrom alignkit.parts import unit\ndef cosine(x, y):\n"
        "    x, y = unit(x), parts.unit(y)\n"
        "    return torch.from_numpy(np.einsum('nd,md->nm', x.numpy(), y.numpy()))",
        HIT,
        "def modality_gap(x, y):\n    x.requires_grad_()\n"
        "    d = parts.similarity.unit(x).mean(0) - parts.unit(y).mean(0)\n"
        "    d.norm().backward()\n    return (d @ d).sqrt()",
    )
    assert [m.message for m in marks.values() if not m.points] == []


# Files, folders and terminals ----------------------------------------------------------
@pytest.mark.slow
def test_a_real_notebook_its_solutions_and_its_stubs(tmp_path, capsys):
    """Through the command: a folder's table, its JSON, and the exit codes."""
    path = solved(FIRST, tmp_path / "homework.ipynb")
    assert main(["grade", str(path), "--seed", "5"]) == 0  # known by its badge
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("1  cosine: right on") and printed[3] == "3/3"
    assert printed[4] == "cases of seed 5; the same marks again with --seed 5"

    folder, out = tmp_path / "class", tmp_path / "marks.json"
    (folder / "ann").mkdir(parents=True)  # as published: solutions, and empty stubs
    shutil.copy(FIRST, folder / "ann" / "Copy of 01-shared-space.ipynb")
    (folder / "broken.ipynb").write_text("no notebook")
    wrong = COSINE.replace("normalize(images)", "images")
    notebook(folder / "bob-01-shared-space.ipynb", wrong, HIT)
    assert main(["grade", str(folder), "--json", str(out)]) == 1
    lines = capsys.readouterr().out.splitlines()
    name = str(Path("ann/Copy of 01-shared-space.ipynb"))
    stubs = "cosine not filled in, hit_at_1 not filled in, modality_gap not filled in"
    assert lines[0] == f"{name}: 0/3  {stubs}"
    bob = lines.index("bob-01-shared-space.ipynb: 1/3  cosine wrong, hit_at_1 right, "
                      "modality_gap not filled in")
    assert lines[bob + 1].startswith("    cosine: the values differ, most at [")
    assert lines[bob + 2] == "    modality_gap: no cell defines it"
    assert lines[bob + 3].startswith("broken.ipynb: not graded: ")
    assert "not a notebook" in lines[bob + 3]
    rows = json.loads(out.read_text("utf-8"))
    assert [(row["notebook"], row["points"], row["of"]) for row in rows] == [
        (name, 0, 3),
        ("bob-01-shared-space.ipynb", 1, 3),
        ("broken.ipynb", 0, 0),
    ]
    assert rows[0]["marks"][0].keys() == {"exercise", "state", "message", "share",
                                             "points"}
    assert rows[2]["problem"] and not rows[0]["problem"]
    assert f"--seed {rows[0]['seed']}" in lines[-2]


@pytest.mark.slow
def test_a_script_without_a_guard_and_standard_input(tmp_path):
    path = notebook(tmp_path / "01-shared-space.ipynb", COSINE, HIT, GAP)
    code = ("from alignkit.course.grade import grade\n"
            f"print(sum(m.points for m in grade({str(path)!r})))\n")
    (tmp_path / "script.py").write_text(code)
    for command, given in (["script.py"], ""), (["-"], code):
        done = subprocess.run([sys.executable, *command], input=given, cwd=tmp_path,
                              capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("3\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp932", "cp1252"])
def test_a_terminal_of_another_encoding_changes_no_marks(tmp_path, encoding):
    text = "# naïve 鴨 🦆\n"
    notebook(tmp_path / "Zoë 鴨 01-shared-space.ipynb", text + COSINE, HIT, GAP,
             "def other():\n    return '✗ 鴨'")
    done = subprocess.run(
        [sys.executable, "-m", "alignkit", "grade", str(tmp_path)], capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
    assert done.returncode == 0, done.stderr
    assert b"01-shared-space.ipynb: 3/3  cosine right, hit_at_1 right" in done.stdout


@pytest.mark.slow
def test_a_check_in_a_script_on_such_a_terminal():
    code = ("from alignkit.course.shared_space import modality_gap as e\n"
            "e.check(e.reference)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.stdout.startswith("modality_gap: right on 12 random cases ?")


def _raw(path: Path, **changes) -> Path:
    """COSINE and HIT as JSON that nbformat would refuse."""
    cells = [{"cell_type": "code", "source": SETUP, "metadata": {}},
             {"cell_type": "code", "source": COSINE.splitlines(True),
              "metadata": {"tags": ["exercise"]}} | changes,
             {"cell_type": "code", "source": HIT}, {"cell_type": "raw"}, None, 5, {}]
    path.write_text(json.dumps({"cells": cells}), "utf-8")
    return path


NO_TYPE = {"cell_type": None}
LENIENT = {
    "null tags": {"metadata": {"tags": None}},
    "tags of another kind": {"metadata": {"tags": 5}},
    "null metadata": {"metadata": None},
    "null source": {"source": None},
    "source of another kind": {"source": {"a": 1}},
    "broken lines": {"source": [*COSINE.splitlines(True), None, 3]},
    "no type": NO_TYPE,
    "odd outputs": {"outputs": "none", "execution_count": "x"},
}


@pytest.mark.parametrize("kind", LENIENT)
def test_cells_that_lack_something(tmp_path, kind):
    code = read_answers(_raw(tmp_path / "x.ipynb", **LENIENT[kind])).code
    assert answer("hit_at_1", code).statements[-1].startswith("def hit_at_1")
    assert (answer("cosine", code) is None) == ("source" in LENIENT[kind]
                                                and kind != "broken lines")


@pytest.mark.parametrize("content", [
    b"", b"[]", b"5", b"null", b'{"cells": 5}', b'{"cells": null}', b"{}", b"\xff\xfe\x00",
    b'{"cells": [' * 5_000, b'{"worksheets": 3, "nbformat": 3}', "ä".encode("latin-1"),
])
def test_what_is_no_notebook_is_said_by_name(tmp_path, content):
    path = tmp_path / "01-shared-space.ipynb"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="01-shared-space.ipynb: not a notebook"):
        grade(path)


def test_encodings_and_old_formats(tmp_path):
    path = notebook(tmp_path / "x.ipynb", COSINE)
    want, text = read_answers(path), path.read_text("utf-8")
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        path.write_text(text, encoding)
        assert read_answers(path) == want
    old = {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": [
        {"cell_type": "code", "input": COSINE, "outputs": [], "language": "python"}]}]}
    path.write_text(json.dumps(old))
    assert read_answers(path).code == [COSINE]


@settings(max_examples=examples(60), deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=20), max_size=4), st.booleans(), st.booleans(),
       st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-le"]))
def test_cells_of_any_text_and_coding_come_back(tmp_path, sources, split, escaped, coding):
    cells = [{"cell_type": "code", "source": s.splitlines(True) if split else s}
             for s in sources]
    text = json.dumps({"nbformat": 4, "cells": cells}, ensure_ascii=escaped)
    (tmp_path / "x.ipynb").write_bytes(text.encode(coding))
    assert read_answers(tmp_path / "x.ipynb").code == sources


@pytest.mark.slow
def test_links_and_what_systems_leave_behind(tmp_path, capsys):
    """A linked folder of students' work is graded; dot files are not listed."""
    work, folder = tmp_path / "work", tmp_path / "class"
    notebook(work / "ann" / "01-shared-space.ipynb", COSINE, HIT, GAP)
    folder.mkdir()
    (folder / "linked").symlink_to(work, target_is_directory=True)
    (work / "round").symlink_to(folder, target_is_directory=True)
    (folder / "gone-01-shared-space.ipynb").symlink_to(tmp_path / "nothing")
    for left in (".ipynb_checkpoints/01-shared-space.ipynb", "._01-shared-space.ipynb",
                 "__MACOSX/._01-shared-space.ipynb", ".hidden/01-shared-space.ipynb"):
        (folder / left).parent.mkdir(exist_ok=True)
        (folder / left).write_text("no notebook")
    (folder / "folder.ipynb").mkdir()
    assert main(["grade", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("gone-01-shared-space.ipynb: not graded: ")
    assert lines[1].startswith(str(Path("linked/ann/01-shared-space.ipynb: 3/3")))


@pytest.mark.slow
def test_files_as_browsers_and_course_sites_hand_them_out(tmp_path, capsys):
    """A further ending is read; an archive with notebooks in it is named, not passed over."""
    work, folder = notebook(tmp_path / "01-shared-space.ipynb", COSINE, HIT, GAP), tmp_path / "in"
    folder.mkdir()
    (tmp_path / "data.csv").write_text("a,b")
    shutil.copy(work, folder / "ann 01-shared-space.ipynb.txt")
    for name, kind in ("bob", "zip"), ("cem", "gztar"):
        shutil.make_archive(str(folder / name), kind, tmp_path, work.name)
        shutil.make_archive(str(folder / f"{name}-data"), kind, tmp_path, "data.csv")
    (folder / "broken.zip").write_text("no archive")
    assert main(["grade", str(folder)]) == 1
    ann, bob, cem, seed = capsys.readouterr().out.splitlines()
    assert ann.startswith("ann 01-shared-space.ipynb.txt: 3/3")
    for line, name in (bob, "bob.zip"), (cem, "cem.tar.gz"):
        assert line.startswith(f"{name}: not graded: ") and line.endswith("unpack it first")
    assert main(["grade", str(folder / "bob.zip")]) == 1
    assert "an archive with notebooks in it" in capsys.readouterr().err


@pytest.mark.slow
def test_messages_are_short_and_whole(first, tmp_path):
    marks = first(
        "def cosine(x, y):\n    raise ValueError('\\ud800\\x1b[31m\\n' + 'x' * 10**7)",
        "def hit_at_1(scores):\n    return torch.zeros(3_000, 3_000)",
        "def modality_gap(x, y):\n    return 'y' * 10**7",
    )
    assert all(len(m.message) <= LONGEST_MESSAGE + 2 for m in marks.values())
    assert "ValueError: ??[31m xxx" in marks["cosine"].message
    assert "need shape [], yours is [3000, 3000]" in marks["hit_at_1"].message
    given = {"\udcff.ipynb": [Mark("a", WRONG, "b", 0.0)], "c": "no"}
    out = write_marks(given, tmp_path / "marks.json", seed=1)
    assert [row["notebook"] for row in json.loads(out.read_text("utf-8"))] == [
        "?.ipynb", "c"]


@pytest.mark.parametrize("source", [
    "return 1", "await x", "x = '\ud800'", "\0", "(" * 300, "-" * 20_000 + "1",
    "x = " + "[" * 5_000, "def cosine(:", "'''", "%%bash\ndef cosine(a):\n", "%", "!",
    "?", "\\", "\t\n \tx", "def cosine", "lambda: (yield)", "print 'x'", "x: int",
    "del x", "import x.y as z, w", "from . import x", "global x", "1 = x", "\ufeffx = 1",
    "a = b = c, d[0].e = 1, 2", "match x:\n    case [1, *r]:\n        pass", "x := 1",
])
def test_no_cell_stops_the_others(source):
    code = [SETUP, source, COSINE, source]
    assert answer("cosine", code).statements[-1].startswith("def cosine(images")
    answer("cosine", [source])  # nothing uncaught


PIECES = st.sampled_from([
    "def cosine(a, b):\n    return rows(a)", "cosine", "=", "x", "(", ")", "[", "]", "'''", "'",
    "\\", "\n", "\n    ", "\t", "%%time\n", "%%bash\n", "!ls", "?", "%", "lambda x: y", ":",
    "import torch as x", "from x import *", "for x in y:\n    ", "x[0].a = 1", "#", "\0",
    "class X:\n    ", "await ", "return ", "global x", "\ud800", "\u2028", "é", "1e", "@",
    "rows = 1\n", "x.append(cosine)\n", "match x:\n  case [1]:\n    ", "f'{x}'", ">>> "])
SOURCES = st.lists(PIECES, max_size=8).map("".join) | st.text(max_size=20)


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(SOURCES, max_size=4), st.lists(SOURCES, max_size=2))
def test_whatever_cells_hold_nothing_is_uncaught(above, below):
    answer("cosine", [*above, COSINE, *below])
    found = answer("gap", [*above, COSINE.replace("cosine", "gap")])
    assert found.statements and "def gap" in "".join(found.statements)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | SOURCES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["cells", "cell_type", "source", "metadata", "tags", "outputs", "worksheets",
         "nbformat"]), inner, max_size=4), max_leaves=12)


@settings(max_examples=examples(100), deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON | st.fixed_dictionaries({"cells": st.lists(JSON, max_size=4)}),
       st.integers(0, 400))
def test_whatever_a_file_holds_it_is_read_or_refused_by_name(tmp_path, content, cut):
    path = tmp_path / "x.ipynb"
    for data in (json.dumps(content), json.dumps(content)[:cut]):
        path.write_text(data)
        try:
            assert all(isinstance(source, str) for source in read_answers(path).code)
        except ValueError as error:
            assert str(error).startswith(f"{path}: not a notebook (")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [v4.new_markdown_cell, v4.new_raw_cell])
def test_an_answer_in_a_cell_that_does_not_run_is_said_to_be_there(tmp_path, kind):
    """A key pressed by mistake makes a code cell text."""
    path = notebook(tmp_path / "01-shared-space.ipynb", HIT, GAP)
    book = read(path)
    book.cells.append(kind(COSINE))
    write(book, path)
    mark, *others = grade(path)
    assert mark.state == OPEN and "but one that is text (Markdown or raw)" in mark.message
    assert [m.state for m in others] == [RIGHT, RIGHT]


@pytest.mark.parametrize("name", ["a.zip", "a.TAR", "a.tgz", "a.tar.bz2", "a.tar.xz"])
def test_archives_of_any_kind_are_named_with_what_is_deeper_within(tmp_path, name):
    kind = {"zip": "zip", "TAR": "tar", "tgz": "gztar", "bz2": "bztar", "xz": "xztar"}[
        name.rpartition(".")[2]]
    for held, packed in (("X.IPYNB", True), ("ann.zip", True), ("bob.rar", True),
                         ("data.csv", False)):
        folder = tmp_path / held.partition(".")[0]
        folder.mkdir()
        (folder / held).write_text("x")
        made = shutil.make_archive(str(tmp_path / f"{held}-made"), kind, folder)
        os.replace(made, folder / name)
        assert notebooks_in(folder) == [
            p for p in sorted(folder.iterdir()) if p.name == held and held != "data.csv"
            and not held.endswith(".zip") or p.name == name and packed]
    (tmp_path / "work.7z").write_bytes(b"7z")
    with pytest.raises(ValueError, match="work.7z: an archive"):
        grade(tmp_path / "work.7z")
    (tmp_path / "bad.tar.xz").write_bytes(b"\xfd7zXZ\0damaged")
    assert not is_packed(tmp_path / "bad.tar.xz")


@pytest.mark.parametrize(
    "name",
    [
        "01-shared-space",
        "ann_01-shared-space (2)",
        "Copy of 01-shared-space-ann",
        "3-01-shared-space",
    ],
)
def test_the_slug_is_in_the_name(tmp_path, name):
    assert slug_of(notebook(tmp_path / f"{name}.ipynb")) == "shared-space"


def test_a_name_that_tells_nothing(tmp_path, capsys):
    path = notebook(tmp_path / "homework.ipynb")
    for arguments, said in [
        ([path], "say --exercises with one of"),
        ([path, "--exercises", "nothing"], "no exercises are known for 'nothing'"),
        ([path, "--seconds", "0"], "--seconds must be above 0"),
        ([path, "--seed", "-1"], "--seed must be 0 or more"),
        ([path, "--json", tmp_path / "no" / "x.json"], "no such folder"),
        ([tmp_path / "none.ipynb"], "none.ipynb"),
    ]:
        assert main(["grade", *map(str, arguments)]) == 1
        err = capsys.readouterr().err
        assert (
            err.startswith("alignkit grade: ") and said in err and err.count("\n") == 1
        )


def test_an_empty_folder_and_the_warning(tmp_path, capsys):
    assert main(["grade", str(tmp_path)]) == 1
    assert "no notebooks in this folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["grade", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "no sandbox" in printed and "of alignkit only `unit`" in printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_solutions_are_right_on_fresh_cases_and_use_what_they_may(path, tmp_path):
    """In this process, for all notebooks; some go through their own, below."""
    code = read_answers(solved(path, tmp_path / path.name)).code
    for name, exercise in exercises_of(slug_of(path)).items():
        space = {}
        for statement in answer(name, code).statements:
            exec(compile(statement, name, "exec"), space)
        for seed in (fresh_seed(), fresh_seed(), 0):
            assert exercise.grade(space[name], seed).endswith("✓"), seed
        assert _package_functions(space[name], exercise.allowed) == set()


@pytest.mark.slow
@pytest.mark.parametrize("slug", [
    *(pytest.param(slug, id=f"{slug}, one of few") for slug in ("cwcl", "structure")),
    pytest.param(TURN, id=f"{TURN}, day {DAY}")])
def test_solutions_get_full_marks(slug, tmp_path):
    """One that uses another answer, one that uses the package, and one by the day."""
    (path,) = (path for path in NOTEBOOKS if slug_of(path) == slug)
    marks = grade(solved(path, tmp_path / path.name))
    assert len(marks) >= 2 and [m.message for m in marks if not m.points] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_students_copy_speaks_of_no_solution_in_it(path, tmp_path):
    copy = read(student(path, tmp_path / path.name))
    assert not [c for c in copy.cells if "solution" in tags_of(c)]
    assert not [c.source for c in copy.cells if "folded below" in c.source]


def test_student_outside_a_checkout_says_what_is_missing(tmp_path, capsys, monkeypatch):
    nowhere = partial(students, folder=tmp_path / "notebooks")
    monkeypatch.setattr("alignkit.course.guide.students", nowhere)
    assert main(["student", str(tmp_path / "out")]) == 1
    assert "no notebooks in" in (err := capsys.readouterr().err) and "clone" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("source", "said"), [
    ("def f():\n    pass\nimport os; os._exit(1)", "the kernel died"),
    ("def f():\n    pass\nwhile True: pass", "timed out"),
])
def test_a_kernel_that_does_not_end_is_told_of_with_its_path(tmp_path, source, said):
    path = notebook(tmp_path / "mine.ipynb", source, setup="pass")
    for run in (lambda: execute(path, tmp_path / "out.ipynb", timeout=5),
                lambda: run_cells(path, ["exercise"], timeout=5)):
        with pytest.raises(RuntimeError, match=f"mine.ipynb: .*{said}"):
            run()
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_notebook_can_be_graded(path):
    """Its module's exercises are its exercise cells, and no other cell defines them."""
    slug = slug_of(path)
    cells = [c for c in read(path).cells if c.cell_type == "code"]
    stubs = [stub_name(c.source) for c in cells if "exercise" in tags_of(c)]
    assert path.stem.endswith(slug) and slug in slugs()
    assert sorted(stubs) == sorted(exercises_of(slug))
    rest = [c.source for c in cells if not {"exercise", "solution"} & set(tags_of(c))]
    assert not [
        n
        for n in stubs
        if any(f"\ndef {n}(" in f"\n{s}" or f"\n{n} =" in f"\n{s}" for s in rest)
    ]
