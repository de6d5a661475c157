"""Floor 5: the papers' claims as experiments, and their published results.

A paper's file here gives `NEEDS` (the columns a user's own pairs must have, or None), if
they must have labels too `LABELS`,
`data(scale, pairs=None) -> Pairs` (the corpus with features; `pairs` are a user's own)
and `claims(pairs, scale) -> list[Claim]`. One that compares many arms also gives
`table(results) -> str`, shown after them. `follow_ups/` has one such file for a headline that
does not hold, or not for the paper's reason: its single claim is asked for as SLUG.follow-up.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from alignkit.claims.claim import Arm, Claim, Condition, Null, Reported, Trained
from alignkit.claims.hashes import code_hash
from alignkit.claims.registered import current, register
from alignkit.claims.results import FOLLOW_UP, Result, headline, load, measured, stored
from alignkit.claims.runner import FEWEST, SEEDS, estimated, run
from alignkit.claims.runs import Runs
from alignkit.claims.scoreboard import scoreboard, summary

__all__ = ["FEWEST", "FOLLOW_UP", "SCALES", "SEEDS", "Arm", "Claim", "Condition", "Null",
           "Reported", "Result", "Runs", "Trained", "code_hash", "current", "estimated",
           "followed", "headline", "load", "measured", "paper", "register", "rerun", "run",
           "scoreboard", "slugs", "stored", "summary"]

SCALES = ("tiny", "small", "gpu", "full")
_SHARED = {"__init__", "claim", "command", "common", "hashes", "phantom_pairs", "publish",
           "registered", "results", "runner", "runs", "scoreboard", "small_models",
           "tower_rows", "train", "work"}


def slugs() -> list[str]:
    """The papers whose claims can be re-run."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(f.stem.replace("_", "-") for f in files if f.stem not in _SHARED)


def followed() -> list[str]:
    """The follow-ups of headlines, each as SLUG.follow-up."""
    files = (Path(__file__).parent / "follow_ups").glob("[!_]*.py")
    return sorted(f.stem.replace("_", "-") + FOLLOW_UP for f in files)


def paper(slug: str) -> ModuleType:
    """The claims file of a paper, or of SLUG.follow-up. Raises ValueError for an unknown
    slug."""
    if slug.endswith(FOLLOW_UP):
        if slug not in followed():
            raise ValueError(f"there is no {slug}; there are {', '.join(followed())}")
        file = slug.removesuffix(FOLLOW_UP).replace("-", "_")
        return import_module(f"alignkit.claims.follow_ups.{file}")
    if slug not in slugs():
        raise ValueError(f"slug must be one of {', '.join(slugs())}, got {slug!r}")
    return import_module(f"alignkit.claims.{slug.replace('-', '_')}")


def rerun(slug: str, claims: Sequence[Claim]) -> Runs:
    """Runs with the published tuning: `rerun(…).figures(claim, seed)` is what the
    published run computed for that seed."""
    tuned = {arm: change for result in measured(slug)
             for arm, change in result.settings["tuned"].items()}
    return Runs(claims, tuned)
