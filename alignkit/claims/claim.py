"""What a claim is: arms, a measurement, a margin, a null control and a condition."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from alignkit.data import Splits
from alignkit.parts import Method
from alignkit.training import Budget, History


class Arm(NamedTuple):
    """One side of a comparison: `data(seed) -> splits`, and `build(splits) -> method`.

    They are apart because a null control changes the splits before the method is built:
    what a method takes from data in `build` must come from the changed data too.
    """

    data: Callable[[int], Splits]
    build: Callable[[Splits], Method]


class Trained(NamedTuple):
    """An arm after its run with one seed; `history` is None if it was not trained."""

    method: Method
    splits: Splits
    history: History | None


class Null(NamedTuple):
    """A control in which the effect must vanish: the splits are changed by
    `transform(splits, seed)`, and the interval of the statistic must lie inside
    `expected ± margin`."""

    name: str
    transform: Callable[[Splits, int], Splits]
    expected: float
    margin: float


class Condition(NamedTuple):
    """What must be in the data for the claim to mean anything, measured on the trained
    baseline: `measure(trained) -> value`, wanted in [low, high]."""

    name: str
    measure: Callable[[Trained], float]
    low: float
    high: float


class Reported(NamedTuple):
    """The paper's own figures, with their source."""

    baseline: float
    method: float
    source: str


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper as an experiment.

    arms: name -> `Arm`; trained tensors of equal name and shape start equal in all arms, and each
    arm gets the same `budget` and the same `grid` (changes of the budget, chosen on
    validation with a seed of its own). differs: what the arms differ in; with
    'inference' only the baseline is trained and the others take its weights.
    validate(method, val) gives the figures for choosing, `choose_by` names one.
    measure(trained arms) -> {arm: figure}; statistic of these, by default method minus
    baseline. *holds* needs the whole interval of the statistic above `margin`.
    twins: method arm -> the arm it is compared with (default: method -> baseline); the
    pilot puts a second run of the twin in its place.
    """

    name: str
    sentence: str
    arms: Mapping[str, Arm]
    baseline: str
    method: str
    differs: Literal["method", "data", "inference"]
    measure: Callable[[Mapping[str, Trained]], dict[str, float]]
    figure: str
    budget: Budget
    validate: Callable[[Method, Splits], dict[str, float]]
    choose_by: str
    margin: float
    null: Null
    condition: Condition
    grid: Sequence[Mapping] = ({},)
    statistic: Callable[[dict[str, float]], float] | None = None
    twins: Mapping[str, str] | None = None
    paper: Reported | None = None

    def __post_init__(self):
        for role, name in (("baseline", self.baseline), ("method", self.method)):
            if name not in self.arms:
                raise ValueError(f"claim {self.name!r}: {role} {name!r} is no arm; there "
                                 f"are {list(self.arms)}")
        if self.differs not in ("method", "data", "inference"):
            raise ValueError(f"claim {self.name!r}: differs must be 'method', 'data' or "
                             f"'inference', got {self.differs!r}")

    def difference(self, figures: dict[str, float]) -> float:
        """The statistic of one seed's figures."""
        if self.statistic:
            return self.statistic(figures)
        return figures[self.method] - figures[self.baseline]
