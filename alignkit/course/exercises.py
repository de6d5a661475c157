"""Exercises whose checks say what probably went wrong.

An exercise knows the right function, how to draw random arguments, and the wrong
functions that students usually write. A student's function is compared on all the
drawn cases; one that agrees with a known mistake on every case is told so in words.

How exercises are written: alignkit/course/<slug>.py holds three of them, such as

    def _share(scores, threshold):
        return (scores >= threshold).float().mean()

    share = Exercise(
        name="share",
        task="share of the scores [n] that reach the threshold: >=, not >",
        reference=_share,
        cases=lambda generator: (
            torch.randint(5, (random_size(generator, 4, 9),), generator=generator) / 4, 0.5),
        mistakes={
            "count": Mistake(
                lambda scores, threshold: (scores >= threshold).sum(),
                "count them. A share is the count divided by their number."),
        },
    )

and the notebook's stub ends with `exercises.share.check(share)`. The rules:
- `cases` draws everything from the generator: `check` shows the cases of seed 0, `grade`
  takes those of a seed that nobody knows. On the twelve cases of any seed the right
  functions must agree, and a mistake must differ from them at least once.
- Arguments and results are tensors, numbers, texts, None, or tuples, lists and dicts of
  them: all else does not pass between the student's process and the one that marks.
- An explanation continues "it looks as if you", in the present.
- Students call the package's `unit`; what else they may call stands in `allowed`.
"""

import contextlib
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from alignkit.parts.similarity import unit

from .worker import POLICY, Other, attempt, pack, unpack

SEEN = 0  # the seed of the notebook's cases: a message can be got again


class ExerciseError(AssertionError):
    """The answer is not right yet; the message says why."""

    def _render_traceback_(self) -> list[str]:
        """IPython asks for this: the explanation, without our stack of calls."""
        return [f"{type(self).__name__}: {self}"]


class NotFilledIn(ExerciseError):
    """The exercise is still the stub that the notebook came with."""


class Mistake(NamedTuple):
    function: Callable  # what a student who makes it writes
    explanation: str  # continues "it looks as if you …"


@dataclass(frozen=True)
class Exercise:
    """One function to be written by the student.

    Attributes:
        name: name of that function in the notebook.
        task: one line, shown while the stub is empty.
        reference: the right answer.
        cases: draws the arguments of one case from a seeded generator.
        mistakes: short name -> a typical wrong function and its explanation.
        trials: number of cases.
        allowed: functions of the package that an answer may call.
    """

    name: str
    task: str
    reference: Callable
    cases: Callable[[torch.Generator], tuple]
    mistakes: dict[str, Mistake]
    trials: int = 12
    allowed: tuple[Callable, ...] = (unit,)

    def check(self, function: Callable) -> None:
        """What a notebook's cell calls: print the verdict.

        An empty stub is told what to do and does not raise, so that a notebook with
        open exercises runs to its end; `grade` is the strict form.

        Raises:
            ExerciseError: the function is wrong; the message explains.
        """
        try:
            _say(self.grade(function) + self._warning(function))
        except NotFilledIn as stub:
            _say(str(stub))

    def grade(self, function: Callable, seed: int = SEEN) -> str:
        """The pass message.

        Raises:
            NotFilledIn: the function is still a stub.
            ExerciseError: the function is wrong; the message explains.
        """
        if not callable(function):
            raise ExerciseError(f"{self.name}: hand over the function, not its result")
        cases = self.draw(seed)
        return self.judge(cases, [attempt(function, case) for case in cases])

    def judge(self, cases: list[tuple], outcomes: Sequence[dict]) -> str:
        """`grade` for what `attempt` gave for each case, here or in another process."""
        found = [self._value(*pair) for pair in zip(cases, outcomes, strict=True)]
        right = [self.reference(*case) for case in cases]
        if all(map(_agree, found, right)):
            return f"{self.name}: right on {len(cases)} random cases ✓"
        for mistake in self.mistakes.values():
            wrong = [mistake.function(*case) for case in cases]
            if all(map(_agree, found, wrong)):
                said = f"it looks as if you {mistake.explanation}"
                raise ExerciseError(f"{self.name}: {said}")
        first = next(i for i, x in enumerate(found) if not _agree(x, right[i]))
        said = _difference(found[first], right[first])
        raise ExerciseError(
            f"{self.name}: {said}, for the arguments {_describe(cases[first])}")

    def share(self, cases: list[tuple], outcomes: Sequence[dict]) -> float:
        """The part of the cases whose answer is right."""
        right = 0
        for pair in zip(cases, outcomes, strict=True):
            with contextlib.suppress(ExerciseError):
                right += _agree(self._value(*pair), self.reference(*pair[0]))
        return right / len(cases)

    def draw(self, seed: int = SEEN) -> list[tuple]:
        """The cases of a seed."""
        generator = torch.Generator().manual_seed(seed)
        return [self.cases(generator) for _ in range(self.trials)]

    def _value(self, case: tuple, outcome: dict) -> object:
        if "error" in outcome:
            kind, text, line = outcome["error"]
            where = f", in the line `{line}`" if line else ""
            raise ExerciseError(
                f"{self.name}: your function stopped with {kind}: {text}{where}, "
                f"for the arguments {_describe(case)}")
        if outcome["value"] is None:
            raise NotFilledIn(
                f"not filled in yet: {self.name}: {self.task} "
                f"(if you have written it, is `return` missing?)")
        if outcome["after"] != pack(case):
            raise ExerciseError(
                f"{self.name}: your function changes its argument in place; "
                f"work on a new tensor (x = x / 2, not x /= 2)")
        return unpack(outcome["value"])

    def _warning(self, function: Callable) -> str:
        """Said beforehand: what `alignkit grade` gives no marks for."""
        used = ", ".join(sorted(_package_functions(function, self.allowed)))
        names = ", ".join(f.__name__ for f in self.allowed) or "nothing"
        return f", but it uses {used}: no marks for that, {POLICY}{names}" if used else ""


def _say(text: str) -> None:
    """Print it, on a terminal without the sign ✓ too."""
    try:
        print(text)
    except UnicodeEncodeError:
        print(text.encode("ascii", "replace").decode())


def _package_functions(
    value: object, allowed: Sequence[Callable], seen: tuple = ()
) -> set[str]:
    """Full names of the package's functions that a function uses, as far as its code
    and that of the notebook's functions that it calls tell."""
    home = getattr(value, "__module__", None) or ""
    if home.partition(".")[0] == "alignkit":
        return set() if value in allowed else {f"{home}.{value.__qualname__}"}
    if not isinstance(value, types.FunctionType) or value in seen:
        return set()
    names, space = _names(value.__code__), value.__globals__
    things = [space[name] for name in names if name in space]
    for module in things:
        if isinstance(module, types.ModuleType) and module.__name__[:8] == "alignkit":
            things += [getattr(module, name) for name in names if hasattr(module, name)]
    used = [_package_functions(x, allowed, (*seen, value)) for x in things if callable(x)]
    return set().union(*used)


def _names(code: types.CodeType) -> set[str]:
    """Names of globals and attributes in a function, those inside it included."""
    inner = [_names(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*inner)


# Comparison -----------------------------------------------------------------------------
def _agree(found: object, right: object) -> bool:
    if isinstance(right, str):
        return found == right
    if isinstance(right, (tuple, list)):
        same = isinstance(found, (tuple, list)) and len(found) == len(right)
        return same and all(map(_agree, found, right))
    if isinstance(right, dict):
        same = isinstance(found, dict) and found.keys() == right.keys()
        return same and all(_agree(found[key], right[key]) for key in right)
    right = torch.as_tensor(right)
    value = _as_tensor(found, right)
    if value is None or value.shape != right.shape or value.dtype != right.dtype:
        return False
    # Formulas written in another order differ by rounding, mistakes by far more. Some
    # mistakes give NaN; the right answer never does.
    return torch.allclose(value, right, rtol=1e-3, atol=1e-5, equal_nan=True)


def _as_tensor(found: object, right: torch.Tensor) -> torch.Tensor | None:
    """A tensor to compare; a plain number will do where one number is asked for."""
    if isinstance(found, torch.Tensor):
        return found
    if isinstance(found, (int, float)) and right.ndim == 0:
        dtype = right.dtype if right.is_floating_point() else None
        return torch.tensor(found, dtype=dtype)
    return None


def _difference(found: object, right: object) -> str:
    """In words, how a value that does not agree is wrong."""
    if isinstance(right, (str, dict)):
        return f"yours is {_named(found)}, right is {right!r}"
    if isinstance(right, (tuple, list)):
        if not isinstance(found, (tuple, list)) or len(found) != len(right):
            return f"need {len(right)} values, yours is {_named(found)}"
        i = [_agree(*pair) for pair in zip(found, right)].index(False)
        return f"value {i + 1} of {len(right)}: {_difference(found[i], right[i])}"
    right = torch.as_tensor(right)
    value = _as_tensor(found, right)
    if value is None:
        return f"need a torch.Tensor, yours is {_named(found)}"
    if value.shape != right.shape:
        return f"need shape {list(right.shape)}, yours is {list(value.shape)}"
    if value.dtype != right.dtype:
        count = right.is_floating_point() and not value.is_floating_point()
        why = " (a count? divide it; a mask? .float())" if count else ""
        return f"need dtype {right.dtype}, yours is {value.dtype}{why}"
    return _where(value, right)


def _where(value: torch.Tensor, right: torch.Tensor) -> str:
    """In which place two tensors of one shape and type differ most."""
    bad = ~torch.isfinite(value)
    if bad.any():
        return (
            f"{int(bad.sum())} of {value.numel()} values are NaN or infinite (the root "
            f"of a negative number, a division by zero, or the logarithm of zero?)"
        )
    gap = (value.double() - right.double()).abs()
    place = [int(i) for i in torch.unravel_index(gap.argmax(), gap.shape)]
    where = f", most at {place}" if place else ""
    yours, expected = value[tuple(place)].item(), right[tuple(place)].item()
    return f"the values differ{where}: yours {yours:.4g}, right {expected:.4g}"


def _named(value: object) -> str:
    """A value in a few words."""
    if isinstance(value, Other):
        return f"a {value.name}"
    if isinstance(value, torch.Tensor):
        return f"a tensor {list(value.shape)}"
    return f"a {type(value).__name__}" if isinstance(value, (tuple, list)) else repr(value)


def _describe(case: object) -> str:
    if isinstance(case, tuple | list):
        return f"({', '.join(map(_describe, case))})"
    return f"tensor {list(case.shape)}" if isinstance(case, torch.Tensor) else repr(case)


# Drawing --------------------------------------------------------------------------------
def random_rows(generator: torch.Generator, n: int, d: int) -> torch.Tensor:
    """[n, d] rows of very different lengths around a mean that is not zero.

    On such rows it shows whether a function normalises, and in which order.
    """
    rows = torch.randn(n, d, generator=generator) + torch.randn(d, generator=generator)
    return rows * (0.3 + 3 * torch.rand(n, 1, generator=generator))


def unit_rows(generator: torch.Generator, n: int, d: int) -> torch.Tensor:
    """`random_rows` divided by their lengths."""
    return torch.nn.functional.normalize(random_rows(generator, n, d), dim=1)


def random_size(generator: torch.Generator, low: int, high: int) -> int:
    """A whole number from low to high - 1."""
    return int(torch.randint(low, high, (), generator=generator))
