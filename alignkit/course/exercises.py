"""Exercises whose checks say what probably went wrong.

An exercise knows the right function, how to draw random arguments, and the wrong
functions that students usually write. A student's function is compared on all the
drawn cases; one that agrees with a known mistake on every case is told so in words.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch


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
    """

    name: str
    task: str
    reference: Callable
    cases: Callable[[torch.Generator], tuple]
    mistakes: dict[str, Mistake]
    trials: int = 12

    def check(self, function: Callable) -> None:
        """What a notebook's cell calls: print the verdict.

        An empty stub is told what to do and does not raise, so that a notebook with
        open exercises runs to its end; `grade` is the strict form.

        Raises:
            ExerciseError: the function is wrong; the message explains.
        """
        try:
            print(self.grade(function))
        except NotFilledIn as stub:
            print(stub)

    def grade(self, function: Callable) -> str:
        """The pass message.

        Raises:
            NotFilledIn: the function is still a stub.
            ExerciseError: the function is wrong; the message explains.
        """
        if not callable(function):
            raise ExerciseError(f"{self.name}: hand over the function, not its result")
        cases = self.draw()
        right = [self.reference(*case) for case in cases]
        found = [self._call(function, case) for case in cases]
        if all(map(_agree, found, right)):
            return f"{self.name}: right on {self.trials} random cases ✓"
        for mistake in self.mistakes.values():
            wrong = [mistake.function(*case) for case in cases]
            if all(map(_agree, found, wrong)):
                raise ExerciseError(
                    f"{self.name}: it looks as if you {mistake.explanation}"
                )
        first = next(i for i in range(self.trials) if not _agree(found[i], right[i]))
        raise ExerciseError(
            f"{self.name}: {_difference(found[first], right[first])}, "
            f"for the arguments {_describe(cases[first])}"
        )

    def draw(self) -> list[tuple]:
        """The cases: always the same ones, so that a message can be reproduced."""
        generator = torch.Generator().manual_seed(0)
        return [self.cases(generator) for _ in range(self.trials)]

    def _call(self, function: Callable, case: tuple) -> object:
        given = tuple(x.clone() if isinstance(x, torch.Tensor) else x for x in case)
        try:
            value = function(*given)
        except NotImplementedError:
            value = None
        except Exception as error:
            raise ExerciseError(
                f"{self.name}: your function stopped with {type(error).__name__}: "
                f"{error}, for the arguments {_describe(case)}"
            ) from error
        if value is None or value is Ellipsis:
            raise NotFilledIn(
                f"not filled in yet: {self.name}: {self.task} "
                f"(if you have written it, is `return` missing?)"
            )
        for before, after in zip(case, given):
            if isinstance(before, torch.Tensor) and not torch.equal(before, after):
                raise ExerciseError(
                    f"{self.name}: your function changes its argument in place; "
                    f"work on a new tensor (x = x / 2, not x /= 2)"
                )
        return value


def _as_tensor(found: object, right: torch.Tensor) -> torch.Tensor | None:
    """A tensor to compare; a plain number will do where one number is asked for."""
    if isinstance(found, torch.Tensor):
        return found.detach()
    if isinstance(found, (int, float)) and right.ndim == 0:
        return torch.tensor(found, dtype=right.dtype)
    return None


def _agree(found: object, right: object) -> bool:
    right = torch.as_tensor(right)
    value = _as_tensor(found, right)
    if value is None or value.shape != right.shape or value.dtype != right.dtype:
        return False
    # Formulas written in another order differ by rounding, mistakes by far more.
    return torch.allclose(value, right, rtol=1e-3, atol=1e-5)


def _difference(found: object, right: object) -> str:
    """In words, how a value that does not agree is wrong."""
    right = torch.as_tensor(right)
    value = _as_tensor(found, right)
    if value is None:
        return f"need a torch.Tensor, yours is a {type(found).__name__}"
    if value.shape != right.shape:
        return f"need shape {list(right.shape)}, yours is {list(value.shape)}"
    if value.dtype != right.dtype:
        return f"need dtype {right.dtype}, yours is {value.dtype}"
    bad = ~torch.isfinite(value)
    if bad.any():
        return (
            f"{int(bad.sum())} of {value.numel()} values are NaN or infinite "
            f"(a division by zero, or the logarithm of zero?)"
        )
    gap = (value.double() - right.double()).abs()
    place = [int(i) for i in torch.unravel_index(gap.argmax(), gap.shape)]
    where = f", most at {place}" if place else ""
    yours, expected = value[tuple(place)].item(), right[tuple(place)].item()
    return f"the values differ{where}: yours {yours:.4g}, right {expected:.4g}"


def _describe(case: tuple) -> str:
    parts = [
        f"tensor {list(x.shape)}" if isinstance(x, torch.Tensor) else repr(x)
        for x in case
    ]
    return f"({', '.join(parts)})"


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
