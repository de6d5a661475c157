"""Floor 5: the papers' claims as experiments, and their published results.

A paper's file here gives `NEEDS` (the columns a user's own pairs must have, or None), if
they must have labels too `LABELS`,
`data(scale, pairs=None) -> Pairs` (the corpus with features; `pairs` are a user's own)
and `claims(pairs, scale) -> list[Claim]`. One that compares many arms also gives
`table(results) -> str`, shown after them.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from alignkit.claims.claim import Arm, Claim, Condition, Null, Reported, Trained
from alignkit.claims.registered import current, register
from alignkit.claims.results import Result, code_hash, headline, load, stored
from alignkit.claims.runner import FEWEST, SEEDS, estimated, run
from alignkit.claims.runs import Runs
from alignkit.claims.scoreboard import scoreboard, summary

__all__ = ["FEWEST", "SCALES", "SEEDS", "Arm", "Claim", "Condition", "Null", "Reported",
           "Result", "Runs", "Trained", "code_hash", "current", "estimated", "headline",
           "load", "paper", "register", "rerun", "run", "scoreboard", "slugs", "stored",
           "summary"]

SCALES = ("tiny", "small", "gpu", "full")
_SHARED = {"__init__", "claim", "command", "common", "publish", "registered", "results",
           "runner", "runs", "scoreboard", "small_models", "train", "work"}


def slugs() -> list[str]:
    """The papers whose claims can be re-run."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(f.stem.replace("_", "-") for f in files if f.stem not in _SHARED)


def paper(slug: str) -> ModuleType:
    """The claims file of a paper. Raises ValueError for an unknown slug."""
    if slug not in slugs():
        raise ValueError(f"slug must be one of {', '.join(slugs())}, got {slug!r}")
    return import_module(f"alignkit.claims.{slug.replace('-', '_')}")


def rerun(slug: str, claims: Sequence[Claim]) -> Runs:
    """Runs with the published tuning: `rerun(…).figures(claim, seed)` is what the
    published run computed for that seed."""
    tuned = {arm: change for result in stored(slug)
             for arm, change in result.settings["tuned"].items()}
    return Runs(claims, tuned)
