"""What `alignkit reproduce` and `alignkit register` do, as functions."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from alignkit.claims import followed, paper, slugs
from alignkit.claims.claim import Claim
from alignkit.claims.hashes import values_hash
from alignkit.claims.registered import (
    BEFORE_THE_RULE, current, refuse_early, register, registrations,
)  # fmt: skip
from alignkit.claims.results import Result, measured
from alignkit.claims.runner import FEWEST, LONG, before, estimated, run
from alignkit.claims.train import own_pairs, remade
from alignkit.claims.work import Work
from alignkit.data import Pairs
from alignkit.data.emoji import emoji
from alignkit.data.fetch import cache_dir
from alignkit.encoders import add_features


def reproduce(slug: str, scale: str = "small", seeds: int = 8, *, first: int | None = None,
              pairs: Path | None = None, out: Path = Path("alignkit-results"),
              jobs: int | None = None, say: Callable[[str], None] = print) -> list[Result]:
    """Re-run a paper's claims (SLUG.follow-up: its headline's follow-up) with `seeds` paired
    seeds from `first` on (default: the paper's `FIRST`, or 0); the results are written to
    `out`. pairs: a user's own, see `own_pairs`. jobs: processes (default: one a core, 4 at
    most). At tiny no figure is shown.

    Raises ValueError for an unknown paper, too few seeds, pairs that do not fit, or a
    design that must be registered first.
    """
    if seeds < FEWEST:
        raise ValueError(f"--seeds must be at least {FEWEST}, got {seeds}: fewer paired "
                         "seeds give no verdict")
    data, claims, rest = _opened(slug, scale, pairs, seeds, jobs, say)
    published = scale == "small" and pairs is None
    registration = current(slug, claims, data=data.provenance.hash) if published else None
    if first is None:
        first = getattr(paper(slug), "FIRST", 0)
    there = registrations(slug)
    if scale != "tiny" and ((published and not registration) if there else not measured(slug)):
        raise ValueError(
            f"this design of {slug} is not registered, and nothing is measured before: "
            f"alignkit register {slug}, commit it, then run again; to try the code: "
            "--scale tiny")
    if published and not there:
        say(BEFORE_THE_RULE)
    results = run(slug, claims, data, scale, seeds=range(first, first + seeds),
                  registration=registration, say=say, **rest)
    for result in results:
        say(f"\n{result}\n  written to  {result.save(out)}")
    if hasattr(paper(slug), "table") and scale != "tiny":
        say(f"\n{paper(slug).table(results)}")
    return results


def write_down(slug: str, reason: str = "", edge: str = "", jobs: int | None = None,
               say: Callable[[str], None] = print) -> Path:
    """Tune the arms, pilot the baseline, and register the design of a paper's claims.

    Raises ValueError as `register` does, for what needs no training before any.
    """
    pairs, claims, rest = _opened(slug, "small", None, 8, jobs, say)
    data = pairs.provenance.hash
    refuse_early(slug, claims, reason, data=data)
    work = Work(claims, rest["work"], rest["jobs"], rest["remake"], slug)
    return register(slug, claims, before(work, claims, say), reason, edge, data=data)


def fill_features(say: Callable[[str], None] = print) -> None:
    """Fill the feature cache with what all claims need at the scales small and tiny, and
    follow-ups at tiny: what one needs at small is made on the days when it is run again."""
    # Every layer in one pass: some papers ask for the last one, some for all.
    add_features(emoji(), "image", "image:efficientnet-lite0", layers="all")
    add_features(emoji(), "text", "text:minilm", layers="all")
    for slug in [*slugs(), *followed()]:
        say(f"features for {slug}")
        paper(slug).data("tiny")
        if slug in slugs():
            paper(slug).data("small")


def _opened(slug: str, scale: str, path: Path | None, seeds: int, jobs: int | None, say,
            ) -> tuple[Pairs, list[Claim], dict]:
    """(pairs, claims, where work is kept and in how many processes it is done)."""
    started, module = time.perf_counter(), paper(slug)
    pairs = module.data(scale, own_pairs(path, module.NEEDS) if path else None)
    claims = module.claims(pairs, scale)
    jobs = 1 if scale in LONG else jobs or min(4, os.cpu_count() or 1)
    if jobs > 1:
        torch.set_num_threads(1)  # as in the processes
    say(pairs.describe())
    say(f"{len(claims)} claims, {seeds} paired seeds, scale {scale}; features took "
        f"{time.perf_counter() - started:.0f} s")
    say(estimated(claims, seeds, jobs))
    key = f"{slug}-{scale}-{values_hash(slug)[:8]}-{pairs.provenance.hash[:8]}"
    return pairs, claims, {"work": cache_dir() / "runs" / key, "jobs": jobs,
                           "remake": partial(remade, slug, scale, path)}
