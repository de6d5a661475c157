"""The second of a title card's two lines: what was found here, from the result file.

    **The paper says.** …
    **Here.** …

The author writes the first; the builder and the template's test take the second from
`here`, so that a card never says more than the newest result.
"""

import re
from collections import Counter
from pathlib import Path

from alignkit import claims

from .notebook import _write, read


def slug_of(path: Path | str) -> str:
    """The slug of a notebook or its script: NN-some-slug.ipynb -> some-slug."""
    return Path(path).stem.partition("-")[2]


def here(result: claims.Result | None, then: claims.Result | None = None) -> str:
    """The card's line "**Here.** …" of a headline: its sentence, verdict with every
    doubt, and interval; then: its follow-up, which says when it holds or does not."""
    if result is None:
        return "**Here.** Not run yet."
    said = (f"**Here.** {result.sentence} **{result.says().capitalize()}**: {result.figure} "
            f"{_interval(result)}, {result.interval['n']} paired seeds, margin "
            f"{result.margin:g}.")
    return f"{said} {then.when}: **{then.says()}**, {_interval(then)}." if then else said


def _interval(result: claims.Result) -> str:
    i = result.interval
    return f"{i['mean']:+.3f} [{i['low']:+.3f}, {i['high']:+.3f}]"


def here_of(slug: str) -> str:
    """The line of a paper as it should be now; of one that compares many methods and has
    no headline, its verdicts counted."""
    results = claims.stored(slug) if slug in claims.slugs() else []
    headline = next((r for r in results if r.headline), None)
    if headline or not results:
        return here(headline, next((r for r in results if r.when), None))
    counts = Counter(r.verdict for r in results)
    said = ", ".join(f"{verdict} {n}" for verdict, n in counts.most_common())
    return f"**Here.** {len(results)} claims: {said}."


def with_here(text: str, slug: str) -> str:
    """A card's text, or a whole script's, with its first line "**Here.** …" brought up to
    date; a text without one is left alone."""
    return re.sub(r"(?m)^(# )?\*\*Here\.\*\*.*$",
                  lambda found: (found[1] or "") + here_of(slug), text, count=1)


def refresh(path: Path) -> bool:
    """Bring a notebook's card up to date without running it; whether it had to be."""
    notebook = read(path)
    first = notebook.cells[0]
    text = with_here(first.source, slug_of(path))
    if text == first.source:
        return False
    first.source = text
    _write(notebook, path)
    return True
