"""The first twenty minutes, in one command."""

import time
from pathlib import Path

from alignkit.claims import paper, rerun, stored
from alignkit.course.notebook import execute

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def published(pattern: str = "*/*.ipynb", folder: Path = NOTEBOOKS) -> list[Path]:
    """The course's notebooks, in order.

    Raises FileNotFoundError if they are not beside the package.
    """
    found = sorted(folder.glob(pattern))
    if not found:
        raise FileNotFoundError(
            f"no notebooks in {folder}: they stand in the repository; clone it and "
            'install with pip install -e ".[course]" -c constraints.txt')
    return found


def tour(out: Path = Path("alignkit-tour")) -> None:
    """Fetch, encode, run the first notebook, and show its claim re-run.

    Raises FileNotFoundError if the notebooks are not beside the package.
    """
    started, notebook = time.perf_counter(), published("0-*/01-*.ipynb")[0]
    slug = notebook.stem.split("-", 1)[1]

    _head("1 of 3 · pictures, names and two frozen encoders (once; then from the cache)")
    pairs = paper(slug).data("small")
    print(pairs.describe())

    _head(f"2 of 3 · the notebook {notebook.name}")
    ran = execute(notebook, out / notebook.name, progress=True)

    _head("3 of 3 · its claim, re-run here with one seed and published with all of them")
    claims = paper(slug).claims(pairs, "small")
    runs = rerun(slug, claims)
    for claim, result in zip(claims, (_of(slug, c.name) for c in claims)):
        seed = result.seeds[0]
        difference = claim.difference(runs.figures(claim, seed))
        inside = "inside" if result.agrees(difference) else "OUTSIDE"
        print(f"{result}\n  here        seed {seed}: {difference:+.3f}, {inside} the "
              f"prediction interval [{result.prediction['low']:+.3f}, "
              f"{result.prediction['high']:+.3f}]")

    print(f"""
The tour took {time.perf_counter() - started:.0f} s.
  the executed notebook   {_shown(ran)}
  open the course         jupyter lab {_shown(NOTEBOOKS)}
  re-run every seed       alignkit reproduce {slug}
  other papers            alignkit list""")


def _of(slug: str, claim: str):
    for result in stored(slug):
        if result.claim == claim:
            return result
    raise FileNotFoundError(f"no published result of {slug} · {claim}")


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _head(text: str) -> None:
    print(f"\n── {text}", flush=True)
