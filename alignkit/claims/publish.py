"""Takes a run's results into the package, and runs a published seed again."""

from dataclasses import replace
from pathlib import Path

import torch

from alignkit.claims import paper, rerun
from alignkit.claims.hashes import code_hash
from alignkit.claims.registered import changed, registrations
from alignkit.claims.results import FOLDER, Result, is_stale, measured, versions

SAME = 1e-6  # of a figure, on the same versions and the same kind of CPU
CLOCKS = (", time", ", memory")  # names of figures that depend on what else is running end so


def publish(slug: str, folder: Path) -> list[Path]:
    """Take the results of a registered run at scale small from `folder`; those of claims
    that are no more go. slug: a paper, or SLUG.follow-up: that alone.

    Raises ValueError: no results, of another scale or code, not of the newest
    registration, or not all of its claims.
    """
    found = measured(slug, folder)
    if not found:
        raise ValueError(f"{folder} has no results of {slug}: run alignkit reproduce {slug}")
    there = registrations(slug)
    if not there:
        raise ValueError(f"{slug} is not registered: alignkit register {slug}, commit, run")
    claims = {one["claim"] for one in there[-1]["design"]}
    for r in found:
        problems = {
            f"scale is {r.scale!r}, must be 'small'": r.scale != "small",
            "it is not of the newest registration": r.registration != there[-1]["hash"],
            "the code has changed since": is_stale(r, slug)}
        if wrong := [text for text, here in problems.items() if here]:
            raise ValueError(f"{slug}.{r.claim}: {'; '.join(wrong)}")
    if missing := claims ^ {r.claim for r in found}:
        raise ValueError(f"{slug}: results and registration differ in {sorted(missing)}")
    for old in measured(slug):
        if old.claim not in claims:
            (FOLDER / f"{old.slug}.{old.claim}.json").unlink()
    return [r.save(FOLDER) for r in found]


def again(slug: str, seed_at: int = 0, names: list[str] | None = None) -> list[str]:
    """Run a published seed of a paper again (of the claims `names`); what is not as
    stored, in words. seed_at: its place among the first look's."""
    module, said = paper(slug), []
    pairs = module.data("small")
    claims = {c.name: c for c in module.claims(pairs, "small")}
    results = [r for r in measured(slug) if r.scale == "small"]
    if gone := {r.claim for r in results} ^ set(claims):
        said.append(f"{slug}: claims and results differ in {sorted(gone)}")
    there = registrations(slug)
    if there and (other := changed(slug, list(claims.values()), there, pairs.provenance.hash)):
        said.append(f"{slug}: the design is not the registered one: {'; '.join(other)}")
    runs = rerun(slug, list(claims.values()))
    for r in results:
        if r.claim in claims and (names is None or r.claim in names):
            place = seed_at % r.looks[0]["seeds"]
            figures = runs.figures(claims[r.claim], r.seeds[place])
            said += _unlike(r, figures, place, claims[r.claim].difference(figures))
    return said


def _unlike(r: Result, figures: dict, place: int, difference: float) -> list[str]:
    where = f"{r.slug} · {r.claim}, seed {r.seeds[place]}"
    if r.versions == versions() and r.capability == torch.backends.cpu.get_cpu_capability():
        return [f"{where}: {name} gives {figures.get(name)}, stored is {value}"
                for name, value in r.figures[place].items() if not name.endswith(CLOCKS)
                if not abs(figures.get(name, float("nan")) - value) <= SAME]
    if r.agrees(difference):
        return []
    return [f"{where}: {difference:+.4f} lies outside the prediction interval "
            f"[{r.prediction['low']:+.4f}, {r.prediction['high']:+.4f}] (other versions or "
            "another CPU than the stored run)"]


def restamp(slug: str) -> list[Path]:
    """After a change of code that must not change figures: run a published seed again,
    and if it gives what is stored, the results carry the hash of today's code.

    Raises ValueError with what differs.
    """
    if said := again(slug):
        raise ValueError("; ".join(said))
    return [replace(r, code=code_hash(slug)).save(FOLDER) for r in measured(slug)]
