"""Runs a paper's claims: tuning and pilot on seeds of their own, paired seeds with the
null, and a headline's second look."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean

import torch

from alignkit.claims.claim import Claim
from alignkit.claims.hashes import code_hash
from alignkit.claims.results import FOLLOW_UP, Result, data_facts, versions
from alignkit.claims.runs import TUNING_SEEDS, at_edge
from alignkit.claims.work import Remake, Work
from alignkit.data import Pairs
from alignkit.stats import (NOT_RESOLVED, SOME_GAIN, Interval, corrected_interval, equivalent,
                            null_passed, prediction_interval, second_look,
                            smallest_detectable, stein_size, t_interval, verdict)
from alignkit.training import distributed, estimate

SEEDS = tuple(range(8))
FEWEST = 5
LONG = ("gpu", "full")  # scales at which an arm trains for many minutes
MOST, MINUTES = 24, 20  # of a headline's second look
# Two looks at 97.5 % err together in 5 % at most, however one stops.
LEVEL, LEVEL_OF_A_LOOK = 0.95, 0.975
EQUAL = 1e-9  # spread of two runs that differ in rounding alone


def run(slug: str, claims: Sequence[Claim], pairs: Pairs, scale: str, *,
        seeds: Sequence[int] = SEEDS, work: Path, jobs: int = 1,
        remake: Remake | None = None, registration: dict | None = None,
        say: Callable[[str], None] = print) -> list[Result]:
    """Re-run every claim of a paper; one `Result` a claim.

    What is done is kept in `work` as it comes, so an interrupted run goes on, and more
    seeds train those alone. jobs: processes, for which `remake() -> claims` makes the
    claims. registration: its tuning and pilot are taken over (`registered.current`).

    Raises ValueError for fewer than five seeds, which give no verdict, or for more than
    there are independent units.
    """
    if len(seeds) < FEWEST or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be at least {FEWEST}, all different, got {list(seeds)}")
    for claim in claims:
        if claim.units and len(seeds) > claim.units:
            raise ValueError(f"seeds are {len(seeds)}, but claim {claim.name!r} has "
                             f"{claim.units} independent units: no more seeds than that")
    code = code_hash(slug)  # of what runs now, whatever is edited meanwhile
    pieces = Work(claims, work, jobs, remake, slug, long=scale in LONG)
    opened = registration or before(pieces, claims, say)
    pieces.runs.tuned = opened["tuned"]
    rows = pieces.seeds(seeds)
    more = {claim.name: _second(claim, pieces, rows) for claim in claims if claim.headline}
    facts = dict(slug=slug.removesuffix(FOLLOW_UP), scale=scale, data=data_facts(pairs), versions=versions(),
                 code=code, seconds=round(pieces.seconds(), 1),
                 peak_memory_mb=max(row["memory"] for row in rows),
                 registration=registration["hash"] if registration else "")
    return [_result(claim, opened, rows, more.get(claim.name, []), facts)
            for claim in claims]


def before(pieces: Work, claims: Sequence[Claim], say: Callable[[str], None] = print) -> dict:
    """Tuning and pilot, before any method arm is measured."""
    falls = pieces.tune()
    tuned = pieces.runs.tuned
    edges = [name for name, point in tuned.items()
             if at_edge(pieces.runs.named[name].grid, point)]
    say(f"tuned on validation: {tuned}")
    if edges:
        say(f"at an edge of the grid: {', '.join(edges)}")
    stuck = [name for name, points in falls.items() if points and not any(
        fell is not False for fell in points)]
    say(f"the training loss of {', '.join(stuck)} does not fall" if stuck else
        "the training loss of every arm falls")
    rows, found = pieces.pilots(), {}
    tested = {claim.method for claim in claims}
    for claim in claims:
        mine = [row["claims"][claim.name] for row in rows]
        found[claim.name] = p = _pilot(claim, mine)
        # The baseline of one claim may be the method of another.
        hidden = (f" not shown ({claim.baseline} is another claim's method)"
                  if claim.baseline in tested else "")
        said = "; ".join(f"{c['condition']}{hidden or ' = ' + format(c['value'], '.3g')}, "
                         f"wanted in {c['wanted']}" for c in p["conditions"])
        least = p["smallest_detectable"]
        least = "not known, runs of the baseline are equal" if least is None else f"{least:.3g}"
        say(f"pilot {claim.name}: {said}: {'present' if p['present'] else 'ABSENT'}; smallest "
            f"difference {len(SEEDS)} seeds can show: {least}, margin {claim.margin:g}")
    return {"tuned": tuned, "edges": edges, "falls": falls, "pilot": found}


def estimated(claims: Sequence[Claim], seeds: int, jobs: int = 1) -> str:
    """Time and memory of `run`, from one step of each arm."""
    arms = {name: (claim, arm) for claim in claims for name, arm in claim.arms.items()
            if claim.differs != "inference" or name == claim.baseline}
    seconds, memory = 0.0, 0
    for claim, arm in arms.values():
        splits = arm.data(TUNING_SEEDS[0])
        method = arm.build(splits).to(distributed.accelerator().device)
        cost = estimate(method, splits.train, claim.budget)
        seconds += cost.seconds * (2 * seeds + 3 * len(claim.grid))
        memory = max(memory, cost.weights + cost.optimizer + cost.saved)
    return (f"estimate: {len(arms)} arms, about {seconds / 60 / jobs:.1f} minutes of training "
            f"in {jobs} process{'es' * (jobs > 1)} and {memory / 2**20:.0f} MiB a run beside "
            "the data")


def _second(claim: Claim, pieces: Work, rows: Sequence[dict]) -> list[dict]:
    """The rows of a headline's second look, if it needs one."""
    first = [claim.difference(row["figures"][claim.name]) for row in rows]
    said = verdict(t_interval(first, LEVEL_OF_A_LOOK), claim.margin, claim.equivalence)
    if said not in (SOME_GAIN, NOT_RESOLVED):
        return []
    share = len(claim.arms) / (2 * len(pieces.runs.named))  # of a seed's time
    a_seed = share * mean(row["seconds"] for row in rows) / pieces.jobs
    most = min(MOST, claim.units or MOST, len(rows) + int(60 * MINUTES / max(a_seed, 1e-9)))
    n = stein_size(first, claim.margin / 2, most, LEVEL_OF_A_LOOK)
    highest = max(row["seed"] for row in rows)
    return pieces.seeds(range(highest + 1, highest + 1 + n - len(rows)), claim.name)


def _pilot(claim: Claim, rows: Sequence[dict]) -> dict:
    found = []
    for place, c in enumerate(claim.conditions):
        value = mean(row["conditions"][place] for row in rows)
        found.append({"condition": c.name, "value": value, "wanted": [c.low, c.high],
                      "present": c.low <= value <= c.high})
    sd = t_interval([row["noise"] for row in rows]).sd
    least = smallest_detectable(sd, len(SEEDS)) if sd > EQUAL else claim.detectable
    return {"conditions": found, "present": all(c["present"] for c in found),
            "noise_sd": sd, "smallest_detectable": least, "seeds": len(rows)}


def looks_of(claim: Claim, differences: Sequence[float], n_first: int) -> list[dict]:
    """What each look at the differences says; a headline's look is at 97.5 %."""
    level = LEVEL_OF_A_LOOK if claim.headline else LEVEL
    found = [t_interval(differences[:n_first], level)]
    if len(differences) > n_first:
        found.append(second_look(differences, n_first, level))
    return [{"seeds": look.n, "level": level, "interval": look._asdict(),
             "verdict": verdict(look, claim.margin, claim.equivalence)} for look in found]


def judged(claim: Claim, differences: Sequence[float], n_first: int, rows: dict) -> dict:
    """The fields of a `Result` that follow from the differences; rows: items of a
    training and of a test split."""
    looks = looks_of(claim, differences, n_first)
    last, corrected = looks[-1], None
    if not claim.redrawn:
        corrected = corrected_interval(differences, rows["test"], rows["train"],
                                       last["level"])
    interval = Interval(**last["interval"])
    return {
        "looks": looks, "interval": interval._asdict(), "verdict": last["verdict"],
        "equivalent": equivalent(interval, claim.margin),
        "corrected": corrected._asdict() if corrected else None,
        "carries_over": corrected is None or last["verdict"] == verdict(
            corrected, claim.margin, claim.equivalence),
        "prediction": prediction_interval(differences)._asdict(),
        "detectable": smallest_detectable(interval.sd, len(differences))}


def _result(claim: Claim, opened: dict, rows, more, facts: dict) -> Result:
    null, name = claim.null, claim.name
    controls = [claim.difference(row["null"][name]) for row in rows]
    control = t_interval(controls)
    figures = [row["figures"][name] for row in [*rows, *more]]
    differences = [claim.difference(f) for f in figures]
    splits = claim.arms[claim.baseline].data(rows[0]["seed"])
    items = {part: len(getattr(splits, part).item.unique()) for part in ("train", "test")}
    return Result(
        claim=name, sentence=claim.sentence, headline=claim.headline, figure=claim.figure,
        baseline=claim.baseline, method=claim.method, differs=claim.differs,
        equivalence=claim.equivalence, redrawn=claim.redrawn, units=claim.units,
        seeds=[row["seed"] for row in [*rows, *more]], figures=figures,
        differences=differences, margin=claim.margin, margin_why=claim.margin_why,
        items=items, when=claim.when, **judged(claim, differences, len(rows), items),
        null={"name": null.name, "expected": null.expected, "margin": null.margin,
              "differences": controls, "interval": control._asdict(),
              "passed": null_passed(control, null.expected, null.margin)},
        pilot=opened["pilot"][name],
        paper=claim.paper._asdict() if claim.paper else None,
        settings={"budget": asdict(claim.budget),
                  "budgets": {arm: dict(change) for arm, change in claim.budgets.items()},
                  "grid": [dict(g) for g in claim.grid],
                  "tuned": {arm: opened["tuned"].get(arm, {}) for arm in claim.arms},
                  "edges": [arm for arm in opened["edges"] if arm in claim.arms]},
        capability=torch.backends.cpu.get_cpu_capability(), **facts)
