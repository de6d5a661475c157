"""Runs claims: pilot on the baseline, tuning on a seed of its own, paired seeds, null."""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tqdm.auto import tqdm

from alignkit.claims.claim import Claim, Null, Trained
from alignkit.claims.results import Result, code_hash, data_facts, peak_memory_mb, versions
from alignkit.data import Pairs
from alignkit.parts import Method
from alignkit.stats import null_passed, prediction_interval, smallest_detectable
from alignkit.stats import t_interval, verdict
from alignkit.training import Budget, NonFiniteLoss, estimate, fit, seed_all, seed_of

SEEDS = tuple(range(8))
FEWEST = 5
TUNING_SEED = 1000  # far from the paired seeds: its split chooses and measures nothing
PILOT_SEEDS = (1001, 1002, 1003, 1004)


class Runs:
    """Trains the arms of one paper's claims, each arm once a seed however many claims
    share it. `tuned` (arm name in a claim -> changes of the budget) skips the tuning."""

    def __init__(self, claims: Sequence[Claim], tuned: dict[str, dict] | None = None):
        self.claims, self.tuned = list(claims), dict(tuned or {})
        self._memo: dict[tuple, Trained] = {}
        named: dict[str, tuple] = {}
        for claim in self.claims:
            for name, arm in claim.arms.items():
                run = arm, claim.budget, list(claim.grid)
                if named.setdefault(name, run) != run:
                    raise ValueError(f"two different arms (or budgets or grids) are called "
                                     f"{name!r}: arms of one paper need names of their own")

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
        """Free the trained arms (between seeds)."""
        self._memo.clear()

    def tune(self, claim: Claim) -> None:
        """Choose each arm's point of the grid on the validation rows of a seed that
        measures nothing."""
        for name, arm in claim.arms.items():
            if name in self.tuned or len(claim.grid) == 1:
                continue
            if claim.differs == "inference" and name != claim.baseline:
                continue
            scores = []
            for change in claim.grid:
                method, splits = self.build(claim, name, TUNING_SEED, False)
                try:
                    self._fit(claim, method, splits, replace(claim.budget, **change),
                              TUNING_SEED)
                    scores.append(claim.validate(method, splits)[claim.choose_by])
                except NonFiniteLoss:  # too large a step is an answer of the grid too
                    scores.append(-math.inf)
            self.tuned[name] = dict(claim.grid[scores.index(max(scores))])

    def budget(self, claim: Claim, arm: str) -> Budget:
        """The arm's budget after tuning."""
        return replace(claim.budget, **self.tuned.get(arm, {}))

    def pilots(self, seeds: Sequence[int], n: int) -> dict[str, dict]:
        """For each claim, on baselines alone: is the condition in the data, and what
        difference could `n` seeds show? Two baseline runs of one split that differ in
        nothing but chance (initial weights, order) give the noise, a lower bound."""
        measured, noise = ({c.name: [] for c in self.claims} for _ in range(2))
        for seed in seeds:
            for claim in self.claims:
                twins = claim.twins or {claim.method: claim.baseline}
                base = self._train(claim, claim.baseline, seed, False)
                figures = claim.measure({
                    name: self._train(claim, twins.get(name, name), seed, False,
                                      chance=int(name in twins)) for name in claim.arms})
                measured[claim.name].append(float(claim.condition.measure(base)))
                noise[claim.name].append(claim.difference(figures))
            self.forget()
        return {claim.name: _pilot(claim, measured[claim.name], noise[claim.name], n)
                for claim in self.claims}

    def build(self, claim: Claim, name: str, seed: int, null: bool, chance: int = 0):
        """(method, splits); what is trained starts as in the first claim's baseline where
        name and shape are the same, and frozen towers keep their own weights."""
        change = claim.null.transform if null else lambda splits, seed: splits
        arm, first = claim.arms[name], self.claims[0]
        splits = change(arm.data(seed), seed)
        seed_all(seed, "initial weights", chance)
        method = arm.build(splits)
        reference = first.arms[first.baseline]
        if arm != reference:
            seed_all(seed, "initial weights", chance)
            start = reference.build(change(reference.data(seed), seed)).state_dict()
            ours = {k for k, p in method.named_parameters() if p.requires_grad}
            method.load_state_dict({k: start[k] if k in ours and k in start
                                    and start[k].shape == v.shape else v
                                    for k, v in method.state_dict().items()})
        return method, splits

    def _train(self, claim, name, seed, null, chance=0) -> Trained:
        key = (claim.arms[name], seed, claim.null.transform if null else None, chance,
               self.budget(claim, name))
        if key not in self._memo:
            method, splits = self.build(claim, name, seed, null, chance)
            history = self._fit(claim, method, splits, self.budget(claim, name),
                                seed if not chance else seed_of(seed, chance))
            self._memo[key] = Trained(method, splits, history)
        return self._memo[key]

    def _fit(self, claim: Claim, method: Method, splits, budget: Budget, seed: int):
        return fit(method, splits.train, budget, seed,
                   validate=lambda m: claim.validate(m, splits))


def run(slug: str, claims: Sequence[Claim], pairs: Pairs, scale: str, *,
        seeds: Sequence[int] = SEEDS, work: Path,
        say: Callable[[str], None] = print) -> list[Result]:
    """Re-run every claim of a paper; one `Result` a claim.

    Each seed's figures are kept in `work` as they come, so an interrupted run goes on.
    Raises ValueError for fewer than five seeds: no verdict can be given.
    """
    if len(seeds) < FEWEST or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be at least {FEWEST}, all different, got {list(seeds)}")
    runs = Runs(claims)
    opened = _kept(work / "before.json", lambda: _before(runs, claims, len(seeds), say))
    runs.tuned = opened["tuned"]
    rows = []
    for seed in tqdm(seeds, desc=slug):
        rows.append(_kept(work / f"seed-{seed}.json", lambda: {
            "seed": seed,
            "figures": {c.name: runs.figures(c, seed) for c in claims},
            "null": {c.name: runs.figures(c, seed, null=True) for c in claims}}))
        runs.forget()
    seconds = opened["seconds"] + sum(row["seconds"] for row in rows)
    return [_result(slug, claim, runs, opened["pilot"][claim.name], rows, pairs, scale,
                    seconds / len(claims)) for claim in claims]


def estimated(claims: Sequence[Claim], seeds: int) -> str:
    """Time and memory of `run`, from one step of each arm."""
    arms = {name: (claim, arm) for claim in claims for name, arm in claim.arms.items()
            if claim.differs != "inference" or name == claim.baseline}
    seconds, memory = 0.0, 0
    for claim, arm in arms.values():
        splits = arm.data(0)
        cost = estimate(arm.build(splits), splits.train, claim.budget)
        seconds += cost.seconds * (2 * seeds + len(claim.grid))
        memory = max(memory, cost.weights + cost.optimizer + cost.saved)
    return (f"estimate: {len(arms)} arms, about {seconds / 60:.1f} minutes of training and "
            f"{memory / 2**20:.0f} MiB a run beside the data")


def _pilot(claim: Claim, measured: list[float], noise: list[float], n: int) -> dict:
    low, high = claim.condition.low, claim.condition.high
    value, sd = sum(measured) / len(measured), t_interval(noise).sd
    return {"condition": claim.condition.name, "value": value, "wanted": [low, high],
            "present": low <= value <= high, "noise_sd": sd,
            "smallest_detectable": smallest_detectable(sd, n), "seeds": len(measured)}


def _before(runs: Runs, claims: Sequence[Claim], n: int, say) -> dict:
    """Pilot, then tuning: nothing of a method arm is trained before the pilot is seen."""
    pilots = runs.pilots(PILOT_SEEDS, n)
    for name, p in pilots.items():
        say(f"pilot {name}: {p['condition']} = {p['value']:.3g}, wanted in "
            f"{p['wanted']}: {'present' if p['present'] else 'ABSENT'}; smallest "
            f"difference {n} seeds can show: {p['smallest_detectable']:.3g}")
    for claim in claims:
        runs.tune(claim)
    say(f"tuned on validation: {runs.tuned}")
    return {"pilot": pilots, "tuned": runs.tuned}


def _kept(path: Path, make: Callable[[], dict]) -> dict:
    """The JSON of `path`, made, timed and written if it is not there."""
    if path.is_file():
        return json.loads(path.read_text("utf-8"))
    started = time.perf_counter()
    made = make()
    made["seconds"] = time.perf_counter() - started
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(made), "utf-8")
    os.replace(part, path)
    return made


def _result(slug, claim: Claim, runs: Runs, pilot: dict, rows, pairs, scale, seconds):
    null: Null = claim.null
    differences = [claim.difference(row["figures"][claim.name]) for row in rows]
    controls = [claim.difference(row["null"][claim.name]) for row in rows]
    interval, control = t_interval(differences), t_interval(controls)
    passed = null_passed(control, null.expected, null.margin)
    return Result(
        slug=slug, claim=claim.name, sentence=claim.sentence, scale=scale,
        figure=claim.figure, baseline=claim.baseline, method=claim.method,
        differs=claim.differs, seeds=[row["seed"] for row in rows],
        figures=[row["figures"][claim.name] for row in rows], differences=differences,
        interval=interval._asdict(),
        prediction=prediction_interval(differences)._asdict(), margin=claim.margin,
        verdict=verdict(interval, claim.margin),
        detectable=smallest_detectable(interval.sd, len(rows)),
        null={"name": null.name, "expected": null.expected, "margin": null.margin,
              "differences": controls, "interval": control._asdict(), "passed": passed},
        pilot=pilot, paper=claim.paper._asdict() if claim.paper else None,
        settings={"budget": asdict(claim.budget), "grid": [dict(g) for g in claim.grid],
                  "tuned": {name: runs.tuned.get(name, {}) for name in claim.arms}},
        data=data_facts(pairs), versions=versions(), code=code_hash(slug),
        seconds=round(seconds, 1), peak_memory_mb=peak_memory_mb())
