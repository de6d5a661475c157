"""Every exercise of the course: stub, solution, and each typical wrong answer."""

import importlib
import json
import pkgutil
import re
import runpy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignkit import course
from alignkit.course.exercises import Exercise, ExerciseError, Mistake, NotFilledIn
from alignkit.course.grade import fresh_seed
from alignkit.course.worker import DTYPES, pack, unpack
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


@pytest.mark.slow
@pytest.mark.parametrize("place", EXERCISES)
def test_each_mistake_is_told_on_the_cases_of_any_seed(place):
    """`grade` draws a seed that nobody knows: the marks must not depend on it."""
    exercise = EXERCISES[place]
    for seed in (1, 2, 3, fresh_seed()):
        assert exercise.grade(exercise.reference, seed).endswith("✓")
        for name, mistake in exercise.mistakes.items():
            with pytest.raises(ExerciseError) as caught:
                exercise.grade(mistake.function, seed)
            assert mistake.explanation in str(caught.value), (name, seed)


def _one_tensor(value) -> torch.Tensor:
    """An answer, or all values of a tuple one after the other."""
    if not isinstance(value, tuple):
        return torch.as_tensor(value)
    return torch.cat([torch.as_tensor(x).float().flatten() for x in value])


@pytest.mark.parametrize("place", EXERCISES)
def test_cases_are_many_different_and_finite(place):
    exercise = EXERCISES[place]
    first, again = exercise.draw(), exercise.draw()
    for case in (first, exercise.draw(1)):  # what passes between the two processes
        assert pack(unpack(pack(case))) == pack(case) and "other" not in str(pack(case))
    assert pack(first) == pack(again) != pack(exercise.draw(1))
    values, repeat = ([_one_tensor(exercise.reference(*case)) for case in cases]
                      for cases in (first, again))
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
        (lambda x: (2 * x).int(), r"yours is torch.int32 \(a count\? divide it"),
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


@pytest.mark.parametrize(("right", "good", "bad", "message"), [
    (3, [3, torch.tensor(3)], 4, "the values differ: yours 4, right 3"),
    (3, [3], 3.0, "need dtype torch.int64, yours is torch.float32"),
    (True, [True, torch.tensor(True)], 1, "need dtype torch.bool, yours is torch.int64"),
    ("no gain", ["no gain"], "holds", "yours is 'holds', right is 'no gain'"),
    ((1.5, "a"), [(1.5, "a"), [1.5, "a"], (torch.tensor(1.5), "a")], (1.5, "b"),
     "value 2 of 2: yours is 'b', right is 'a'"),
    ((1.5, "a"), [(1.5, "a")], 1.5, "need 2 values, yours is 1.5"),
    ({"a": 1.0}, [{"a": 1}], {"b": 1.0}, "yours is {'b': 1.0}, right is {'a': 1.0}"),
])
def test_an_exercise_may_ask_for_other_values(right, good, bad, message):
    judge = _toy(reference=lambda x: right, mistakes={})
    for value in good:
        assert judge.grade(lambda x: value).endswith("✓")
    with pytest.raises(ExerciseError, match=re.escape(message)):
        judge.grade(lambda x: bad)


def test_a_check_says_what_grade_gives_no_marks_for(capsys):
    """The notebook's check takes the package's functions, and says that they do not
    count; `unit` does."""
    from alignkit import parts

    space = {"parts": parts, "unit": parts.unit, "cosine": parts.cosine}
    exec("def mine(x, y): return unit(x) @ parts.unit(y).T\n"
         "def theirs(x, y): return parts.cosine(x, y)\n"
         "def inside(x, y): return (lambda: cosine(x, y))()\n"
         "def indirect(x, y): return inside(x, y)", space)
    exercise = EXERCISES["shared_space.cosine"]
    for name in ("mine", "theirs", "inside", "indirect", "cosine"):
        exercise.check(space[name])
        said = capsys.readouterr().out
        assert said.startswith("cosine: right on 12 random cases ✓")
        assert ("uses alignkit.parts.similarity.cosine: no marks" in said) == (
            name != "mine")


def test_the_line_that_stopped_is_shown(tmp_path):
    (tmp_path / "answers.py").write_text("def f(x):\n    y = 1\n    return x + g(y)\n\n"
                                         "def g(y):\n    return torch.ones(y)\n")
    space = runpy.run_path(str(tmp_path / "answers.py"))
    with pytest.raises(ExerciseError, match=r"NameError: .*, in the line `return torch"):
        _toy().grade(space["f"])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2**63 + 1, 2**63 - 1) | st.floats()
    | st.text(max_size=9)
    | st.builds(lambda n, d, k: (torch.randn(n, d) * 9).to(k), st.integers(0, 3),
                st.integers(0, 3), st.sampled_from(list(DTYPES.values()))),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
    | st.dictionaries(st.text(max_size=3), inner, max_size=2), max_leaves=6)


@given(VALUES)
def test_values_pass_the_channel_unchanged(value):
    sent = json.dumps(pack(value))
    again = unpack(json.loads(sent))
    assert json.dumps(pack(again)) == sent and type(again) is type(value)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["tensor", "tuple", "dict", "other", "x"]), inner,
                      max_size=2), max_leaves=8))
def test_what_pack_did_not_make_is_refused_or_read(sent):
    try:
        unpack(sent)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError,
            ValueError):
        pass


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
