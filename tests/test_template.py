"""Every notebook of the course keeps to the template, and its exercises work."""

import importlib
from pathlib import Path

import no_kernel
import pytest

from alignkit.course import guide
from alignkit.course.notebook import ALONE, FOLDED, planned, read, student, tags_of
from alignkit.course.template import check_template

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(
    path for path in FOLDER.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
)


def _name(path: Path) -> str:
    return str(path.relative_to(FOLDER))


def _exercises(path: Path):
    """NN-some-slug.ipynb has its exercises in alignkit.course.some_slug."""
    slug = path.stem.partition("-")[2].replace("-", "_")
    return importlib.import_module(f"alignkit.course.{slug}")


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=_name)
def test_template(path):
    """Every problem at once, with its line in the script of `alignkit notebook`."""
    problems = check_template(path)
    assert not problems, "\n".join([f"{_name(path)}:", *problems])


MEASURING = "0-start/04-measuring"


@pytest.fixture(scope="session")
def cards():
    return guide.cards()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=_name)
def test_words(path, cards):
    """Terms of the glossary are taught here, or before, or linked; verdicts are read after
    the notebook that explains them."""
    name = _name(path).removesuffix(".ipynb")
    terms = guide.unexplained(name, cards)
    assert not terms, (f"{name}: explain {terms}, or name the notebook that does in "
                       "**Prerequisites.**, or link them: [term](../GLOSSARY.md)")
    needs = {card.name: card.needs for card in cards}
    assert name.startswith("0-") or MEASURING in guide._before(name, needs), (
        f"{name}: it shows verdicts, so **Prerequisites.** must lead to {MEASURING}")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=_name)
def test_student_version_has_stubs_and_no_solutions(path, tmp_path):
    whole, mine = read(path), read(student(path, tmp_path / path.name))
    kept = [cell.source.replace(FOLDED, "") for cell in whole.cells
            if "solution" not in tags_of(cell)]
    assert len(kept) < len(whole.cells)
    assert [cell.source for cell in mine.cells] == kept
    assert not any(cell.get("outputs") for cell in mine.cells)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=_name)
def test_stubs_say_so_solutions_pass_and_mistakes_are_explained(path):
    """Only the parameters, set-up and exercise cells run, in one process."""
    module, answers, expected = _exercises(path), {}, []
    for cell in read(path).cells:
        if "exercise" in tags_of(cell):
            name = cell.source.split("def ")[1].split("(")[0]
            exercise = getattr(module, name)
            link = f"from {module.__name__} import {name} as asked\n{name} = asked."
            answers[name] = [f"{link}reference"]
            expected += [f"not filled in yet: {name}", f"{name}: right on"]
            for key, mistake in exercise.mistakes.items():
                answers[name].append(f"{link}mistakes[{key!r}].function")
                expected.append(f"ExerciseError: {name}: it looks as if you ")
                expected[-1] += mistake.explanation
    cells = planned(path, ALONE, answers)
    ran = zip(cells, no_kernel.run([source for *_, source in cells], path.parent))
    said = [error or printed for (name, *_), (printed, error) in ran if name]
    assert len(said) == len(expected) > 0
    for text, start in zip(said, expected):
        assert text.startswith(start)
