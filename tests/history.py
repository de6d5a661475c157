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
    found = git("log", "--reverse", "--format=%H", f"-S{text}", "--", path).split()
    return int(git("rev-list", "--count", found[0])) if found else None
