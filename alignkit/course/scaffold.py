"""`alignkit new SLUG --title …`: the files of a new paper.

They come from the texts in `new/`, run as they are on a placeholder, pass the shared
tests at once, and say HERE where something of the author's belongs.
"""

import keyword
import re
from pathlib import Path

from alignkit import claims

from .authoring import notebook
from .guide import planned, write
from .notebook import _save
from .tour import NOTEBOOKS

TEXTS = Path(__file__).parent / "new"
PARTS = re.compile(r"\d-[a-z]+")


def new(slug: str, title: str, part: str | None = None, root: Path | None = None) -> None:
    """Write a paper's files below `root` (default: this checkout), add its rows to the
    pages, and run its notebook.

    Args:
        slug: small letters, digits and hyphens, such as "late-fusion".
        title: what it is called on the pages, such as "Late fusion".
        part: folder of the notebook, such as "2-frozen"; needed where the curriculum of
            notebooks/README.md does not have the slug yet.

    Raises:
        ValueError: a bad or taken slug, no title, or no part.
        FileNotFoundError: no notebooks beside the package.
    """
    root = root or NOTEBOOKS.parent
    if not (root / "notebooks" / "README.md").is_file():
        raise FileNotFoundError(f"no notebooks in {root}: a new paper is written in a "
                                "clone of the repository")
    _checked(slug, title)
    place = _place(slug, part, root)
    words = {"SLUG": slug, "NAME": slug.replace("-", "_"), "TITLE": title,
             "CLASS": "".join(w.capitalize() for w in slug.split("-")),
             "PART": place.parent.name, "STEM": place.stem}
    files = _files(words["NAME"], place, root)
    if there := [str(path) for path in files.values() if path.exists()]:
        raise ValueError(f"{slug}: there already: {', '.join(there)}")
    for name, path in files.items():
        text = (TEXTS / f"{name}.txt").read_text("utf-8")
        for word, value in words.items():
            text = text.replace(f"@{word}@", value)
        print(f"written: {_save(text, path).relative_to(root)}")
    _add_row(title, place, root)
    notebook(slug, folder=root / "notebooks")
    write(root / "notebooks")
    print("next: notebooks/ADDING.md, and every HERE in these files (grep -rn HERE)")


def _checked(slug: str, title: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", slug) or keyword.iskeyword(slug):
        raise ValueError(f"slug must be small letters, digits and hyphens, such as "
                         f"late-fusion, got {slug!r}")
    if not title.strip() or "|" in title:
        raise ValueError(f"title must be words without '|', got {title!r}")
    if slug in claims.slugs():
        raise ValueError(f"{slug} is there already: alignkit/claims/"
                         f"{slug.replace('-', '_')}.py")


def _place(slug: str, part: str | None, root: Path) -> Path:
    """The notebook's path: where the curriculum has it, else the next number of `part`."""
    names = planned(root / "notebooks")
    known = [name for name in names if name.partition("/")[2].partition("-")[2] == slug]
    if known:
        return root / "notebooks" / f"{known[0]}.ipynb"
    if not part or not PARTS.fullmatch(part):
        raise ValueError(f"{slug} is not in the curriculum of notebooks/README.md: say its "
                         f"--part, such as {names[-1].partition('/')[0]}, got {part!r}")
    numbers = [int(name.partition("/")[2][:2]) for name in names
               if name.startswith(f"{part}/")]
    return root / "notebooks" / part / f"{max(numbers, default=0) + 1:02d}-{slug}.ipynb"


def _files(name: str, place: Path, root: Path) -> dict[str, Path]:
    """Text in `new/` -> the file that it becomes."""
    package = root / "alignkit"
    return {"method": package / "methods" / f"{name}.py",
            "claims": package / "claims" / f"{name}.py",
            "exercises": package / "course" / f"{name}.py",
            "test": root / "tests" / f"test_{name}.py",
            "notebook": place.with_suffix(".py")}


def _add_row(title: str, place: Path, root: Path) -> None:
    """The paper's row in the curriculum, if it has none."""
    name, plan = f"{place.parent.name}/{place.stem}", root / "notebooks" / "README.md"
    if name not in planned(root / "notebooks"):
        _insert(plan, r"\| `(\d-[a-z]+/\d\d-[a-z0-9-]+)` \|", name,
                f"| `{name}` | {title}: HERE what you learn |")


def _insert(path: Path, pattern: str, name: str, row: str) -> None:
    """Put a row below the last one whose name comes before it in order."""
    lines = path.read_text("utf-8").split("\n")
    rows = [(found[1], i) for i, line in enumerate(lines)
            if (found := re.match(pattern, line))]
    if not rows:
        raise ValueError(f"{path}: no table with rows like {pattern}")
    before = [i for there, i in rows if there < name]
    lines.insert(before[-1] + 1 if before else rows[0][1], row)
    _save("\n".join(lines), path)
