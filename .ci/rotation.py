"""What CI does in turns, by the day of the year: a third of the notebooks through
papermill with another seed at the tiny scale, and one published claim at one of its
seeds, whose difference must lie in the stored prediction interval."""

import sys
import tempfile
from datetime import date
from pathlib import Path

from alignkit.claims import paper, rerun, stored
from alignkit.course.notebook import execute

DAY = date.today().timetuple().tm_yday


def main() -> int:
    books = sorted(Path("notebooks").glob("*/*.ipynb"))
    with tempfile.TemporaryDirectory() as out:
        for book in books[DAY % 3 :: 3]:
            execute(book, Path(out) / book.name, {"seeds": [DAY], "scale": "tiny"})
            print(f"papermill, seed {DAY}, tiny: {book}")

    results = [r for r in stored() if r.scale == "small"]
    result = results[DAY % len(results)]
    seed = result.seeds[DAY % len(result.seeds)]
    pairs = paper(result.slug).data("small")
    claims = paper(result.slug).claims(pairs, "small")
    claim = next(c for c in claims if c.name == result.claim)
    difference = claim.difference(rerun(result.slug, claims).figures(claim, seed))
    agrees = result.agrees(difference)
    print(f"{result.slug} · {result.claim}, seed {seed}: {difference:+.4f}, "
          f"{'inside' if agrees else 'OUTSIDE'} [{result.prediction['low']:+.4f}, "
          f"{result.prediction['high']:+.4f}]")
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
