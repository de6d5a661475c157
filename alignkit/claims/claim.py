"""What a claim is: arms, a measurement, a margin, a null control and conditions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

from alignkit.data import Splits
from alignkit.parts import Method
from alignkit.training import Budget, History


class Arm(NamedTuple):
    """One side of a comparison: `data(seed) -> splits`, and `build(splits) -> method`.

    They are apart because a null control changes the splits before the method is built:
    what a method takes from data in `build` must come from the changed data too. A grid
    with "settings" calls `build(splits, **settings)`.
    start: the name of another arm of the paper, trained first with the same seed, once,
    on its true pairs; or `start(seed) -> tensors by name` (shipped weights). What fits by
    name and shape is laid over the initial weights.
    """

    data: Callable[[int], Splits]
    build: Callable[..., Method]
    start: str | Callable[[int], Mapping[str, Tensor]] | None = None


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

    arms: name -> `Arm`; trained tensors of equal name and shape start equal in all arms.
    Each arm gets the same `budget` (but for `budgets`: arm -> changes, where the claim is
    about them) and the same `grid`: changes of the budget, and of the method's settings
    under "settings", chosen on the validation rows of three seeds of their own.
    differs: what the arms differ in; with 'inference' only the baseline is trained and
    the others take its weights.
    validate(method, val) gives the figures for choosing, `choose_by` names one.
    measure(trained arms) -> {arm: figure}; statistic of these, by default method minus
    baseline. subtracts: what another statistic is, in words, such as "plain minus inverted".
    margin: the smallest difference worth having, above 0, and `margin_why` it is: stated before
    the run. *holds* needs the whole interval above it; with `equivalence` the claim is
    that there is no difference, and holds inside ± margin.
    condition: one or several. headline: the main sentence of the paper's abstract; one a
    paper, with a second look. units: how many independent shipped models there are (no
    more seeds than that). redrawn: each seed draws rows of its own, so the interval
    speaks of new rows. twins: method arm -> the arm it is compared with (default: method
    -> baseline); the pilot puts a second run of the twin in its place. detectable: the
    smallest difference that eight seeds can show, stated by hand where nothing is trained:
    two runs of the baseline are then equal, and the pilot does not know it. when: of a
    headline's follow-up, the presumed cause that it supplies or takes away, in words that
    begin a sentence ("Where the directions conflict"); see `claims.follow_ups`.

    Raises:
        ValueError: an unknown arm or kind, a margin or `detectable` that is not above 0, or
            one of `subtracts` and `statistic` without the other, or a headline with `when`.
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
    margin_why: str
    null: Null
    condition: Condition | Sequence[Condition]
    grid: Sequence[Mapping] = ({},)
    budgets: Mapping[str, Mapping] = field(default_factory=dict)
    statistic: Callable[[dict[str, float]], float] | None = None
    subtracts: str = ""
    equivalence: bool = False
    headline: bool = False
    units: int | None = None
    redrawn: bool = False
    twins: Mapping[str, str] | None = None
    detectable: float | None = None
    paper: Reported | None = None
    when: str = ""

    def __post_init__(self):
        said = f"claim {self.name!r}"
        named = [("baseline", self.baseline), ("method", self.method),
                 *(("budgets", name) for name in self.budgets)]
        for role, name in named:
            if name not in self.arms:
                raise ValueError(f"{said}: {role} {name!r} is no arm; there are "
                                 f"{list(self.arms)}")
        if self.differs not in ("method", "data", "inference"):
            raise ValueError(f"{said}: differs must be 'method', 'data' or 'inference', "
                             f"got {self.differs!r}")
        if not self.margin > 0:
            raise ValueError(f"{said}: margin is {self.margin}; it must be above 0, the "
                             "smallest difference worth having")
        if self.headline and self.when:
            raise ValueError(f"{said}: when is {self.when!r}, so it follows a headline and is none")
        if self.subtracts and not self.statistic:
            raise ValueError(f"{said}: subtracts is {self.subtracts!r}, but without a statistic "
                             "of its own it is the method minus the baseline")
        if self.statistic and not self.subtracts:
            raise ValueError(f"{said}: it has a statistic of its own; say in subtracts what that "
                             "is, such as 'plain minus inverted'")
        if self.detectable is not None and not self.detectable > 0:
            raise ValueError(f"{said}: detectable is {self.detectable}; a smallest difference is "
                             "above 0, or None where it is not known")
        if not self.margin_why.strip():
            raise ValueError(f"{said}: margin_why is empty; say in a line why a difference below "
                             f"{self.margin:g} would not be worth having")

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions, however many there are."""
        one = isinstance(self.condition, Condition)
        return (self.condition,) if one else tuple(self.condition)

    def difference(self, figures: dict[str, float]) -> float:
        """The statistic of one seed's figures."""
        if self.statistic:
            return self.statistic(figures)
        return figures[self.method] - figures[self.baseline]
