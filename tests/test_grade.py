"""Marks for students' notebooks: what counts, and what must not cost the others."""

import json
import shutil
from pathlib import Path

import pytest
from nbformat import v4, write

from alignkit.cli import main
from alignkit.course.grade import (
    OPEN,
    RIGHT,
    WRONG,
    exercises_of,
    grade,
    slug_of,
    slugs,
)
from alignkit.course.notebook import read, stub_name, student, tags_of

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*/[0-9]*.ipynb"))
FIRST = FOLDER / "0-start" / "01-shared-space.ipynb"

SETUP = """%matplotlib inline
import torch
from torch.nn.functional import normalize
from alignkit.course import shared_space as exercises

def setup():
    pass

setup()"""
STUB = "def {0}(*_):\n    ...\n\n\nexercises.{0}.check({0})"
COSINE = """def cosine(images, texts):
    return normalize(images) @ normalize(texts).T
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


def states(marks) -> dict[str, str]:
    return {mark.exercise: mark.state for mark in marks}


@pytest.mark.slow
def test_a_loop_and_a_crash_do_not_cost_the_other_marks(tmp_path):
    path = notebook(
        tmp_path / "01-shared-space.ipynb",
        "def cosine(images, texts):\n    while True:\n        print('x')",
        "import os\ndef hit_at_1(scores):\n    os._exit(0)",
        GAP,
    )
    marks = grade(path, seconds=5)
    assert [(m.exercise, m.points) for m in marks] == [
        ("cosine", 0),
        ("hit_at_1", 0),
        ("modality_gap", 1),
    ]
    assert "not done after 5 s" in marks[0].message
    assert "ended the whole process" in marks[1].message
    assert marks[2].message.startswith("modality_gap: right on")


def test_only_what_the_function_does_counts(tmp_path):
    """Edited checks and a new `exercises` give nothing; a helper and a missing check
    cost nothing; cells between are not run."""
    path = notebook(
        tmp_path / "01-shared-space.ipynb",
        "raise SystemExit",
        "%timeit 1\ndef rows(x):\n    return normalize(x)\n\n"
        + COSINE.replace("normalize(", "rows(")
        + "exercises.cosine.check(5)",
        "cosine = 5",
        "class exercises:\n    class hit_at_1:\n        check = print\n"
        "def hit_at_1(scores):\n    return (scores > 0).float().mean()\n\n"
        "exercises.hit_at_1.check(hit_at_1)",
        "from alignkit.course import shared_space\n"
        "def modality_gap(x, y):\n    return shared_space.modality_gap.reference(x, y)",
    )
    marks = grade(path)
    assert states(marks) == {"cosine": RIGHT, "hit_at_1": WRONG, "modality_gap": WRONG}
    assert "the exercise's own answer" in marks[2].message


def test_a_helper_in_another_cell_is_missed_with_a_hint(tmp_path):
    path = notebook(
        tmp_path / "01-shared-space.ipynb",
        "def rows(x):\n    return x",
        "def cosine(images, texts):\n    return rows(images)",
        "hit_at_1 = lambda scores: (\n    scores.diagonal()\n  % 2)",
        GAP,
    )
    marks = grade(path)
    assert "NameError: name 'rows'" in marks[0].message
    assert "helpers must stand in the exercise's own cell" in marks[0].message
    assert "hit_at_1: need shape [], yours" in marks[1].message and marks[2].points


def test_every_kind_of_unfinished_answer_has_its_message(tmp_path):
    """Tags may be lost; the last definition counts."""
    path = notebook(
        tmp_path / "01-shared-space.ipynb",
        "def cosine(images, texts):\n return (",
        GAP.replace("normalize", "norm"),
        STUB.format("modality_gap"),
        tags=False,
    )
    marks = grade(path)
    assert states(marks) == {"cosine": WRONG, "hit_at_1": OPEN, "modality_gap": OPEN}
    assert "SyntaxError" in marks[0].message
    assert marks[1].message == "hit_at_1: no cell defines it"
    assert marks[2].message.startswith("not filled in yet: modality_gap")


def test_a_broken_set_up_is_said(tmp_path):
    path = notebook(
        tmp_path / "01-shared-space.ipynb",
        COSINE,
        setup="import nothing_like_this\nsetup()",
    )
    marks = grade(path)
    assert [m.points for m in marks] == [0, 0, 0]
    assert "set-up cell stopped with ModuleNotFoundError" in marks[0].message


@pytest.mark.slow
def test_a_real_notebook_its_solutions_and_its_stubs(tmp_path, capsys):
    """Through the command: a folder's table, its JSON, and the exit codes."""
    solved = read(FIRST)
    code = [cell for cell in solved.cells if cell.cell_type == "code"]
    for stub, cell in zip(code, code[1:]):
        if "solution" in tags_of(cell):
            stub.source = cell.source
    write(solved, student(FIRST, tmp_path / "homework.ipynb"))
    assert main(["grade", str(tmp_path / "homework.ipynb")]) == 0  # known by its badge
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("1  cosine: right on") and printed[-1] == "3/3"

    folder, out = tmp_path / "class", tmp_path / "marks.json"
    (folder / "ann").mkdir(parents=True)  # as published: solutions, and empty stubs
    shutil.copy(FIRST, folder / "ann" / "Copy of 01-shared-space.ipynb")
    (folder / "broken.ipynb").write_text("no notebook")
    assert main(["grade", str(folder), "--json", str(out)]) == 1
    lines = capsys.readouterr().out.splitlines()
    name = str(Path("ann/Copy of 01-shared-space.ipynb"))
    assert lines[0] == f"{name}: 0/3  cosine –, hit_at_1 –, modality_gap –"
    assert lines[1].startswith("broken.ipynb: not graded: ")
    assert "not a notebook" in lines[1]
    rows = json.loads(out.read_text("utf-8"))
    assert [(row["notebook"], row["points"], row["of"]) for row in rows] == [
        (name, 0, 3),
        ("broken.ipynb", 0, 0),
    ]
    assert rows[0]["marks"][0].keys() == {"exercise", "state", "message", "points"}
    assert rows[1]["problem"] and not rows[0]["problem"]


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
        ([path, "--json", tmp_path / "no" / "x.json"], "no such folder"),
        ([tmp_path / "none.ipynb"], "none.ipynb"),
        (
            [notebook(tmp_path / "01-shared-space.ipynb", setup="pass")],
            "no cell calls setup",
        ),
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
    assert "no sandbox" in " ".join(capsys.readouterr().out.split())


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
    (setup,) = [c.source for c in cells if "setup" in tags_of(c)]
    assert "\nsetup(" in setup and setup == cells[1].source
