"""A class's marks: CSV, feedback, partial marks, and otter-grader's format."""

import csv
import sys
import types
from pathlib import Path

import pytest
from nbformat import v4, write

from alignkit.cli import main
from alignkit.course.exercises import ExerciseError, NotFilledIn
from alignkit.course.grade import RIGHT, WRONG, Mark, exercises_of, grade
from alignkit.course.gradebook import write_csv
from alignkit.course.guide import students
from alignkit.course.notebook import read, tags_of

HIT = """def hit_at_1(scores):
    better = scores {} scores.diagonal()[:, None]
    return (better.sum(1) == {}).float().mean()
"""


def handed_in(path: Path, *sources: str) -> Path:
    cells = [v4.new_code_cell(source) for source in ("import torch", *sources)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write(v4.new_notebook(cells=cells), path)
    return path


@pytest.mark.slow
def test_a_folder_gives_a_line_and_a_text_for_each_student(tmp_path, capsys):
    handed_in(tmp_path / "in" / "anna" / "01-shared-space.ipynb", HIT.format(">=", 1))
    handed_in(tmp_path / "in" / "=bob" / "01-shared-space.ipynb",
              "def hit_at_1(scores):\n    return (scores > 0).float().mean()")
    (tmp_path / "in" / "cy.ipynb").write_text("no notebook")
    out, texts = tmp_path / "marks.csv", tmp_path / "feedback"
    assert main(["grade", str(tmp_path / "in"), "--csv", str(out), "--feedback",
                 str(texts), "--seed", "5"]) == 1
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    assert [row["notebook"] for row in rows] == [
        "'=bob/01-shared-space.ipynb", "anna/01-shared-space.ipynb", "cy.ipynb"]
    assert [(row["points"], row["of"], row["hit_at_1"]) for row in rows] == [
        ("0", "3", "0"), ("1", "3", "1"), ("0", "0", "")]
    assert rows[2]["problem"] and not rows[0]["problem"]
    anna = (texts / "anna" / "01-shared-space.ipynb.md").read_text("utf-8")
    assert "1/3 points." in anna and "**hit_at_1**: right. hit_at_1: right on" in anna
    assert "**cosine**: not filled in." in anna
    assert (texts / "cy.ipynb.md").read_text("utf-8").splitlines()[2].startswith("Not graded:")
    assert f"written to {out}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_partial_mark_is_the_part_of_cases_that_is_right(tmp_path, capsys):
    """A tie counts as lost; without it an answer that forgets ties is right."""
    path = handed_in(tmp_path / "01-shared-space.ipynb", HIT.format(">", 0))
    (mark,) = [m for m in grade(path, seed=3) if m.exercise == "hit_at_1"]
    exercise = exercises_of("shared-space")["hit_at_1"]
    right = [bool((scores >= scores.diagonal()[:, None]).sum(1).eq(1).float().mean()
                  == (scores > scores.diagonal()[:, None]).sum(1).eq(0).float().mean())
             for (scores,) in exercise.draw(3)]
    assert mark.state == WRONG and mark.points == 0
    assert mark.share == pytest.approx(sum(right) / len(right)) and 0 < mark.share < 1
    assert main(["grade", str(path), "--seed", "3", "--partial"]) == 1
    assert f"{round(mark.share, 2):g}/3" in capsys.readouterr().out


def test_partial_marks_stand_in_the_csv(tmp_path):
    marks = {"a": [Mark("x", WRONG, "", 0.5), Mark("y", RIGHT, "", 1.0)]}
    text = write_csv(marks, tmp_path / "a.csv", partial=True).read_text("utf-8")
    assert text.splitlines()[1] == "a,1.5,2,0.5,1,"
    text = write_csv(marks, tmp_path / "a.csv").read_text("utf-8")
    assert text.splitlines()[1] == "a,1,2,0,1,"


def test_otters_notebooks_ask_their_tests_and_these_say_what_our_checks_say(
    tmp_path, monkeypatch
):
    """Run as otter runs them: a decorator, and arguments by their names."""
    found = []
    otter = types.ModuleType("otter.test_files")
    otter.test_case = lambda: lambda test: found.append(test) or test
    monkeypatch.setitem(sys.modules, "otter", types.ModuleType("otter"))
    monkeypatch.setitem(sys.modules, "otter.test_files", otter)
    (book,) = [p for p in students(tmp_path, otter=True) if p.stem == "01-shared-space"]
    names = list(exercises_of("shared-space"))
    cells = read(book).cells
    assert sorted(c.source for c in cells if "grader.check" in c.source) == sorted(
        f'grader.check("{name}")' for name in names)
    starts = next(i for i, c in enumerate(cells) if "otter.Notebook" in c.source)
    assert "setup" in tags_of(cells[starts - 1])
    assert 'otter.Notebook("01-shared-space.ipynb")' in cells[starts].source
    files = {p.stem: p for p in (book.parent / "tests").glob("*.py")}
    assert sorted(files) == sorted(names)
    space = {}
    exec(files["hit_at_1"].read_text("utf-8"), space)
    assert space["OK_FORMAT"] is False and space["name"] == "hit_at_1"
    answers = {}
    exec(HIT.format(">=", 1), answers)
    found[0](answers["hit_at_1"])
    with pytest.raises(ExerciseError, match="hit_at_1: "):
        found[0](lambda scores: (scores > 0).float().mean())
    with pytest.raises(NotFilledIn, match="not filled in yet"):
        found[0](lambda scores: None)
    with pytest.raises(ExerciseError, match="hand over the function"):
        found[0](None)
