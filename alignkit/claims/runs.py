"""Trains the arms of a paper's claims: fair starts, tuning, the pilot."""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

from alignkit.claims.claim import Claim, Trained
from alignkit.data import Pairs
from alignkit.parts import Method
from alignkit.training import (
    Budget, History, NonFiniteLoss, distributed, estimate, fit, seed_all, seed_of,
)  # fmt: skip

# Far from the paired seeds: their splits choose, or measure the baseline, and no more.
TUNING_SEEDS = (1000, 2000, 3000)
PILOT_SEEDS = (1001, 1002, 1003, 1004)


class Runs:
    """Trains the arms of one paper's claims, each arm once a seed however many claims
    share it. `tuned`: arm name -> its point of the grid. unfinished: for runs of many
    minutes, a folder of checkpoints from which an arm goes on; a bar is then shown, and on
    a GPU workers make the batches where the estimate says that they are of use."""

    def __init__(self, claims: Sequence[Claim], tuned: Mapping[str, Mapping] | None = None,
                 unfinished: Path | None = None):
        self.claims, self.tuned = list(claims), dict(tuned or {})
        self.unfinished = unfinished
        self._memo: dict[tuple, Trained] = {}
        self.named: dict[str, Claim] = {}  # arm -> a claim that has it
        for claim in self.claims:
            for name in claim.arms:
                first = self.named.setdefault(name, claim)
                if _run(first, name) != _run(claim, name):
                    raise ValueError(f"two different arms (or budgets or grids) are called "
                                     f"{name!r}: arms of one paper need names of their own")
        for claim in self.claims:
            for name, arm in claim.arms.items():
                if isinstance(arm.start, str) and arm.start not in self.named:
                    raise ValueError(f"arm {name!r} starts from {arm.start!r}, which is no "
                                     f"arm; there are {sorted(self.named)}")

    def figures(self, claim: Claim, seed: int, null: bool = False) -> dict[str, float]:
        """`claim.measure` of its trained arms."""
        return claim.measure(self.trained(claim, seed, null))

    def trained(self, claim: Claim, seed: int, null: bool = False) -> dict[str, Trained]:
        """The claim's arms after training with `seed`."""
        done = {claim.baseline: self._train(claim, claim.baseline, seed, null)}
        for name in claim.arms:
            if name == claim.baseline:
                continue
            if claim.differs == "inference":
                method, splits = self.build(claim, name, seed, null)
                method.load_state_dict(done[claim.baseline].method.state_dict())
                done[name] = Trained(method.eval(), splits, None)
            else:
                done[name] = self._train(claim, name, seed, null)
        return {name: done[name] for name in claim.arms}

    def forget(self) -> None:
        """Free the trained arms and their checkpoints (between seeds)."""
        self._memo.clear()
        if self.unfinished:
            shutil.rmtree(self.unfinished, ignore_errors=True)

    def in_rounds(self) -> Iterator[list[str]]:
        """The arms that are trained, in rounds: none starts from one of a later round."""
        left = [name for name, claim in self.named.items()
                if claim.differs != "inference" or name == claim.baseline]
        while left:
            now = [name for name in left if self.named[name].arms[name].start not in left]
            if not now:
                raise ValueError(f"arms {left} start from one another in a circle")
            yield now
            left = [name for name in left if name not in now]

    def tuning_seeds(self, arm: str) -> tuple[int, ...]:
        """The seeds of `try_point`; one where nothing is to be chosen."""
        return TUNING_SEEDS if len(self.named[arm].grid) > 1 else TUNING_SEEDS[:1]

    def try_point(self, arm: str, point: Mapping, seed: int) -> dict:
        """One point of an arm's grid with a tuning seed: the validation `score`, and
        whether the training loss `falls` (None: there is no step)."""
        claim = self.named[arm]
        try:
            done = self._train(claim, arm, seed, False, point=point)
        except NonFiniteLoss:  # too large a step is an answer of the grid too
            return {"score": -math.inf, "falls": False}
        if len(claim.grid) == 1:  # nothing to choose, and perhaps nothing to choose by
            return {"score": 0.0, "falls": _falls(done.history)}
        score = claim.validate(done.method, done.splits)[claim.choose_by]
        return {"score": score, "falls": _falls(done.history)}

    def choose(self, arm: str, scores: Sequence[float]) -> None:
        """The point of the grid with the highest score (the first of equal ones)."""
        self.tuned[arm] = dict(self.named[arm].grid[scores.index(max(scores))])

    def pilot(self, seed: int) -> dict[str, dict]:
        """For each claim, on its baseline alone: the conditions' values, and the
        statistic of two baseline runs of one split that differ in nothing but chance
        (initial weights, order)."""
        found = {}
        for claim in self.claims:
            twins = claim.twins or {claim.method: claim.baseline}
            base = self._train(claim, claim.baseline, seed, False)
            figures = claim.measure({
                name: self._train(claim, twins.get(name, name), seed, False,
                                  chance=int(name in twins)) for name in claim.arms})
            found[claim.name] = {
                "conditions": [float(c.measure(base)) for c in claim.conditions],
                "noise": claim.difference(figures)}
        self.forget()
        return found

    def budget(self, claim: Claim, arm: str, point: Mapping | None = None) -> Budget:
        """The arm's budget at a point of the grid (default: the chosen one)."""
        point = self.tuned.get(arm, {}) if point is None else point
        changes = {k: v for k, v in point.items() if k != "settings"}
        return replace(claim.budget, **{**claim.budgets.get(arm, {}), **changes})

    def build(self, claim: Claim, name: str, seed: int, null: bool, chance: int = 0,
              point: Mapping | None = None):
        """(method, splits); what is trained starts as in the first claim's baseline where
        name and shape are the same, frozen towers keep their own weights, and an arm's
        `start` is laid over."""
        change = claim.null.transform if null else lambda splits, seed: splits
        arm, first = claim.arms[name], self.claims[0]
        point = self.tuned.get(name, {}) if point is None else point
        splits = change(arm.data(seed), seed)
        seed_all(seed, "initial weights", chance)
        method = arm.build(splits, **point.get("settings", {}))
        reference = first.arms[first.baseline]
        if arm != reference:
            seed_all(seed, "initial weights", chance)
            start = reference.build(change(reference.data(seed), seed)).state_dict()
            ours = {k for k, p in method.named_parameters() if p.requires_grad}
            _lay_over(method, {k: v for k, v in start.items() if k in ours})
        if isinstance(arm.start, str):
            of = self._train(self.named[arm.start], arm.start, seed, False)
            _lay_over(method, of.method.state_dict(), f"{name!r} from {arm.start!r}")
        elif arm.start:
            _lay_over(method, arm.start(seed), f"{name!r}")
        return method, splits

    def _train(self, claim, name, seed, null, chance=0, point=None) -> Trained:
        key = (claim.arms[name], seed, claim.null.transform if null else None, chance,
               self.budget(claim, name, point),
               repr((self.tuned.get(name, {}) if point is None else point).get("settings")))
        if key not in self._memo:
            method, splits = self.build(claim, name, seed, null, chance, point)
            budget, rest = self.budget(claim, name, point), {}
            if self.unfinished:
                told = claim.name, name, seed, null and claim.null.name, *key[3:]
                budget = replace(budget, save_every=max(10, budget.steps // 20))
                rest = {"folder": self.unfinished / f"{seed_of(*told):x}", "progress": True,
                        "workers": _workers(method, splits.train, budget)}
            history = fit(method, splits.train, budget,
                          seed if not chance else seed_of(seed, chance),
                          validate=(lambda m: claim.validate(m, splits))
                          if _validated(method, budget) else None, **rest)
            self._memo[key] = Trained(method, splits, history)
        return self._memo[key]


def _workers(method: Method, rows: Pairs, budget: Budget) -> int:
    device = distributed.accelerator().device
    return 0 if device.type == "cpu" else estimate(method.to(device), rows, budget).workers()


def at_edge(grid: Sequence[Mapping], chosen: Mapping) -> bool:
    """Whether the choice has the smallest or largest value of some number in the grid."""
    def flat(point: Mapping) -> dict:
        rest = {k: v for k, v in point.items() if k != "settings"}
        numbers = {**rest, **point.get("settings", {})}
        return {k: v for k, v in numbers.items() if isinstance(v, int | float)}

    points = [flat(point) for point in grid]
    for name, value in flat(chosen).items():
        values = [point[name] for point in points if name in point]
        if min(values) < max(values) and value in (min(values), max(values)):
            return True
    return False


def _validated(method: Method, budget: Budget) -> bool:
    """Whether anybody asks for figures while it trains: they take as long as many steps."""
    return bool(budget.select_by or budget.validate_every
                or any(stage.select_by for stage in method.stages()))


def _run(claim: Claim, name: str) -> tuple:
    return claim.arms[name], claim.budget, claim.budgets.get(name), list(claim.grid)


def _falls(history: History) -> bool | None:
    """Whether the last tenth of the training losses lies below the first, on average."""
    loss = history.curve()
    tenth = max(1, len(loss) // 10)
    return mean(loss[-tenth:]) < mean(loss[:tenth]) if loss else None


def _lay_over(method, tensors: Mapping, said: str = "") -> None:
    """Those of `tensors` that fit by name and shape. With `said`, ValueError if none."""
    own = method.state_dict()
    fit_in = {k: v for k, v in tensors.items() if k in own and own[k].shape == v.shape}
    if said and not fit_in:
        raise ValueError(f"arm {said}: no tensor of the start fits by name and shape; it "
                         f"has {sorted(tensors)[:6]}, the arm {sorted(own)[:6]}")
    method.load_state_dict({**own, **fit_in})
