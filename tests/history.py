"""When something was committed, where the history is there."""

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


@cache
def git(*words) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout


def committed(path: str, text: str) -> int | None:
    """How many commits led to the first that had `text` in a file; None if unknown."""
    if git("rev-parse", "--is-shallow-repository").strip() != "false":
        return None
    # All of a paper's files at once: each call reads the history.
    slug = path.rpartition("/")[2].partition(".")[0]
    beside = f":(glob)alignkit/claims/*/{slug}.*"
    said = git("log", "--reverse", "--format=>%H", "--name-only", f"-S{text}", "--", beside)
    for commit in said.split(">")[1:]:
        first, *paths = commit.split()
        if path in paths:
            return int(git("rev-list", "--count", first))
    return None
