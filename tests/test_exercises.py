"""Every exercise of the course: stub, solution, and each typical wrong answer."""

import importlib
import pkgutil

import pytest
import torch

from alignkit import course
from alignkit.course.exercises import Exercise, ExerciseError, Mistake, NotFilledIn
from alignkit.evaluation.geometry import modality_gap, mutual_knn
from alignkit.evaluation.retrieval import ranks
from alignkit.methods.structure import divergence, neighbourhoods
from alignkit.parts.similarity import cosine


def _all() -> dict[str, Exercise]:
    found = {}
    for module in pkgutil.iter_modules(course.__path__):
        space = vars(importlib.import_module(f"alignkit.course.{module.name}"))
        for name, value in space.items():
            if isinstance(value, Exercise):
                found[f"{module.name}.{name}"] = value
    return found


EXERCISES = _all()
MISTAKES = [(place, name) for place, e in EXERCISES.items() for name in e.mistakes]


def test_the_exercises_are_found():
    assert len(EXERCISES) >= 6
    assert all(len(exercise.mistakes) >= 2 for exercise in EXERCISES.values())


@pytest.mark.parametrize("place", EXERCISES)
def test_an_exercise_bears_the_name_that_notebooks_use(place):
    assert place.split(".")[1] == EXERCISES[place].name


@pytest.mark.parametrize("place", EXERCISES)
def test_the_solution_passes(place, capsys):
    exercise = EXERCISES[place]
    exercise.check(exercise.reference)
    assert capsys.readouterr().out.startswith(f"{exercise.name}: right on")


@pytest.mark.parametrize("place", EXERCISES)
def test_a_stub_is_told_what_to_do(place, capsys):
    exercise = EXERCISES[place]

    def raises(*_):
        raise NotImplementedError

    for stub in (lambda *_: None, lambda *_: ..., raises):
        exercise.check(stub)
        said = capsys.readouterr().out
        assert said.startswith("not filled in yet") and exercise.task in said
        with pytest.raises(NotFilledIn):
            exercise.grade(stub)


@pytest.mark.parametrize(("place", "name"), MISTAKES)
def test_a_mistake_is_caught_and_explained(place, name):
    exercise = EXERCISES[place]
    wrong = exercise.mistakes[name]
    with pytest.raises(ExerciseError) as caught:
        exercise.check(wrong.function)
    assert str(caught.value) == (
        f"{exercise.name}: it looks as if you {wrong.explanation}"
    )


@pytest.mark.parametrize("place", EXERCISES)
def test_cases_are_many_different_and_finite(place):
    exercise = EXERCISES[place]
    first, again = exercise.draw(), exercise.draw()
    values = [torch.as_tensor(exercise.reference(*case)) for case in first]
    repeat = [torch.as_tensor(exercise.reference(*case)) for case in again]
    assert all(torch.equal(a, b) for a, b in zip(values, repeat))
    assert all(torch.isfinite(value).all() for value in values)
    assert len({tuple(value.shape) + (float(value.sum()),) for value in values}) > 3


# An exercise teaches what the package computes: same arguments, same number.
PACKAGE = {
    "structure.awake": lambda x, taus: torch.stack([
        ((mass >= 0.1) & (mass <= 0.7)).float() for mass in (
            neighbourhoods(x, tau).diagonal().mean() for tau in taus)]),
    "structure.divergence": divergence,
    "structure.overlap": mutual_knn,
    "shared_space.cosine": cosine,
    "shared_space.hit_at_1": lambda s: (
        (ranks(s, torch.eye(len(s), dtype=torch.bool)) == 1).float().mean()
    ),
    "shared_space.modality_gap": modality_gap,
}


@pytest.mark.parametrize("place", PACKAGE)
def test_the_package_passes_the_exercise(place):
    assert EXERCISES[place].grade(PACKAGE[place])


def _toy(**changes) -> Exercise:
    """Double the tensor; the known mistake adds two."""
    parts = {
        "name": "double",
        "task": "twice the input",
        "reference": lambda x: 2 * x,
        "cases": lambda generator: (torch.rand(3, generator=generator),),
        "mistakes": {"plus": Mistake(lambda x: x + 2, "added two")},
    }
    return Exercise(**(parts | changes))


def _in_place(x):
    x *= 2
    return x


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x + 2, "it looks as if you added two"),
        (lambda x: torch.cat([x, x]), r"need shape \[3\], yours is \[6\]"),
        (lambda x: 2 * x.double(), "need dtype torch.float32, yours is torch.float64"),
        (lambda x: 2 * x / 0 * 0, "3 of 3 values are NaN"),
        (lambda x: (2 * x).numpy(), "need a torch.Tensor, yours is a ndarray"),
        (lambda x: 2 * x + torch.eye(3)[1], r"the values differ, most at \[1\]"),
        (lambda x, y: x, "your function stopped with TypeError"),
        (_in_place, "changes its argument in place"),
        (torch.ones(3), "hand over the function, not its result"),
    ],
)
def test_a_wrong_answer_is_described(answer, message):
    with pytest.raises(ExerciseError, match=message):
        _toy().check(answer)


def test_a_number_will_do_where_one_is_asked_for():
    total = _toy(reference=lambda x: x.sum(), mistakes={})
    assert "right on 12 random cases" in total.grade(lambda x: float(x.sum()))
    with pytest.raises(ExerciseError, match="the values differ: yours"):
        total.grade(lambda x: float(x.sum()) + 1)


def test_a_mistake_must_agree_on_every_case():
    """A function that is like the mistake only at times is not accused of it."""
    calls = []

    def at_times(x):
        calls.append(x)
        return x + 2 if len(calls) % 2 else x + 3

    with pytest.raises(ExerciseError, match="the values differ"):
        _toy().check(at_times)


def test_ipython_shows_the_explanation_without_the_stack():
    assert ExerciseError("why")._render_traceback_() == ["ExerciseError: why"]
