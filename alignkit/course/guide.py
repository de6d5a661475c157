"""The guide: the notebooks in the order of reading, and which method when.

The blocks of notebooks/README.md between markers are made here: from the notebooks'
title cards, from the paragraph "Use it when: …" of the methods' docstrings, and from
the published verdicts; and those of the pages that show the verdicts.
"""

import ast
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from alignkit import methods
from alignkit.claims import scoreboard, stored, summary
from alignkit.stats import VERDICTS

from .card import refresh
from .notebook import _save, read, student
from .otter import otter_version
from .tour import NOTEBOOKS, published

NAME = re.compile(r"(?:(\d-[a-z]+)/)?(\d\d-[a-z][a-z0-9-]*)")


@dataclass(frozen=True)
class Card:
    """What a notebook's title card says; `name` and `needs` are like "0-start/01-x"."""

    name: str
    title: str
    minutes: int
    needs: list[str]


@dataclass(frozen=True)
class Advice:
    """When to use a method, and its claims by verdict."""

    slug: str
    title: str
    when: str
    verdicts: dict[str, list[str]]


def cards(folder: Path = NOTEBOOKS) -> list[Card]:
    """The notebooks in the order of reading.

    Raises FileNotFoundError if there are none, ValueError for a prerequisite that is no
    notebook, neither there nor planned.
    """
    paths = sorted(folder.glob("[0-9]-*/[0-9][0-9]-*.ipynb"))
    if not paths:
        raise FileNotFoundError(
            f"no notebooks in {folder}: they stand in the repository, "
            "not in the installed package"
        )
    names = [f"{path.parent.name}/{path.stem}" for path in paths]
    known = sorted({*names, *planned(folder)})
    return [
        _card(name, read(path).cells[0].source, known)
        for name, path in zip(names, paths)
    ]


def planned(folder: Path = NOTEBOOKS) -> list[str]:
    """The notebooks that the table of the curriculum in README.md names."""
    text = (folder / "README.md").read_text("utf-8")
    return re.findall(r"(?m)^\| `(\d-[a-z]+/\d\d-[a-z0-9-]+)` \|", text)


def _card(name: str, text: str, known: list[str]) -> Card:
    said = re.search(
        r"\*\*Prerequisites\.\*\*(.*?)(?=\*\*[A-Z]\w*\.\*\*|\Z)", text, re.S
    )
    needs = []
    for part, stem in NAME.findall(said[1] if said else ""):
        ends = f"{part}/{stem}"  # without a part: in whichever it is
        found = [k for k in known if k.endswith(ends)]
        if len(found) != 1:
            raise ValueError(
                f"{name}: the prerequisite {stem!r} is no notebook, neither "
                "there nor planned in notebooks/README.md"
            )
        needs += [f for f in found if f not in needs]
    minutes = re.search(r"(\d+) minutes", text)
    return Card(
        name,
        text.partition("\n")[0].lstrip("# "),
        int(minutes[1]) if minutes else 0,
        needs,
    )


def disorder(found: list[Card]) -> list[str]:
    """Prerequisites that do not stand before the notebook that needs them."""
    return [
        f"{card.name} needs {need}, which stands after it"
        for card in found
        for need in card.needs
        if need >= card.name
    ]


def advice(folder: Path = Path(methods.__file__).parent) -> list[Advice]:
    """One a method whose docstring has a paragraph "Use it when: …"."""
    rows = []
    for path in sorted(folder.glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        if said := re.search(r"^Use it when: (.+?)(?:\n\n|\Z)", text, re.S | re.M):
            slug = path.stem.replace("_", "-")
            verdicts = {}
            order = {name: place for place, name in enumerate(VERDICTS)}
            for result in sorted(stored(slug), key=lambda r: order[r.verdict]):
                doubts = result.says().partition(", ")[2]
                verdicts.setdefault(result.verdict, []).append(
                    result.claim + (f" ({doubts})" if doubts else "")
                )
            title = text.partition(":")[0]
            rows.append(Advice(slug, title, " ".join(said[1].split()), verdicts))
    return rows


def students(out: Path, folder: Path = NOTEBOOKS, otter: bool = False) -> list[Path]:
    """Write every notebook's student version below `out`; for otter-grader, each in a
    folder of its own with its tests.

    Raises FileNotFoundError if the notebooks are not beside the package.
    """
    books = published(folder=folder)
    if otter:
        return [otter_version(path, out / path.relative_to(folder).with_suffix(""))
                for path in books]
    return [student(path, out / path.relative_to(folder)) for path in books]


# As text -----------------------------------------------------------------------------
def map_text() -> str:
    """The notebooks, and after which others each is read."""
    lines, part = [], ""
    for card in cards():
        here, stem = card.name.split("/")
        if here != part:
            lines.append(here)
            part = here
        lines.append(f"  {stem:24} {card.minutes:3d} minutes  {_after(card)}")
    return "\n".join(lines)


def _after(card: Card) -> str:
    return "after " + ", ".join(card.needs) if card.needs else "to begin with"


def which_text() -> str:
    """For each method, when to use it and what its re-run claims said."""
    blocks = []
    for row in advice():
        said = [
            f"{verdict}: {', '.join(names)}" for verdict, names in row.verdicts.items()
        ]
        lines = textwrap.wrap(row.when, 84, break_on_hyphens=False)
        lines += said or ["no published verdict"]
        blocks.append("\n    ".join([f"{row.title} ({row.slug})", *lines]))
    return "\n\n".join(blocks)


# As Markdown -------------------------------------------------------------------------
def blocks() -> dict[str, str]:
    """What stands between the markers of notebooks/README.md."""
    return {"map": _map_block(), "which": _which_block()}


def _map_block() -> str:
    found = cards()
    there = {card.name for card in found}
    names = sorted(there | {need for card in found for need in card.needs})
    node = {name: f"n{number}" for number, name in enumerate(names)}
    table = ["| notebook | minutes | read before it |", "|---|---|---|"]
    graph, part = [], ""
    for name in names:
        here, stem = name.split("/")
        if here != part:
            graph += ["  end"] * bool(part) + [f'  subgraph part{here[0]}["{here}"]']
            part = here
        graph.append(
            f'    {node[name]}["{stem}{"" if name in there else " (planned)"}"]'
        )
    graph.append("  end")
    for card in found:
        graph += [f"  {node[need]} --> {node[card.name]}" for need in card.needs]
        table.append(
            f"| [{card.name}]({card.name}.ipynb): {card.title} | {card.minutes} | "
            f"{', '.join(card.needs) or 'nothing'} |"
        )
    return "\n".join(["```mermaid", "graph LR", *graph, "```", "", *table])


def _which_block() -> str:
    notebook = {card.name.split("-", 2)[2]: card.name for card in cards()}
    lines = ["| method | use it when | claims re-run |", "|---|---|---|"]
    for row in advice():
        title = (
            f"[{row.title}]({notebook[row.slug]}.ipynb)"
            if row.slug in notebook
            else row.title
        )
        said = "; ".join(
            f"**{verdict}**: {', '.join(names)}"
            for verdict, names in row.verdicts.items()
        )
        lines.append(f"| {title} | {row.when} | {said or 'none'} |")
    return "\n".join(lines)


def filled(text: str, made: dict[str, str] | None = None) -> str:
    """A page with its blocks as they should be (default: `blocks`). Raises ValueError
    without markers."""
    for name, block in (blocks() if made is None else made).items():
        parts = re.split(f"(<!-- /?{name} -->)", text)
        if parts[1::2] != [f"<!-- {name} -->", f"<!-- /{name} -->"]:
            raise ValueError(f"need <!-- {name} --> and then <!-- /{name} -->, once")
        text = "".join([*parts[:2], f"\n{block}\n", *parts[3:]])
    return text


def write(folder: Path = NOTEBOOKS) -> Path:
    """Bring the blocks of README.md up to date."""
    path = folder / "README.md"
    return _save(filled(path.read_text("utf-8")), path)


def verdict_pages(folder: Path = NOTEBOOKS) -> dict[Path, dict[str, str]]:
    """The pages that show verdicts, with what stands between their markers."""
    names = {card.name.split("-", 2)[2]: card.name for card in cards()}
    here = {slug: f"[{name}]({name}.ipynb)" for slug, name in names.items()}
    above = {slug: f"notebooks/{name}.ipynb" for slug, name in names.items()}
    return {folder / "SCOREBOARD.md": {"scoreboard": scoreboard(notebooks=here)},
            folder.parent / "README.md": {"verdicts": summary(notebooks=above)}}


def write_verdicts(folder: Path = NOTEBOOKS) -> list[Path]:
    """Bring SCOREBOARD.md, the verdicts in the README above it and the notebooks' title
    cards up to date."""
    books = [p for p in sorted(folder.glob("[0-9]-*/[0-9][0-9]-*.ipynb")) if refresh(p)]
    return books + [_save(filled(path.read_text("utf-8"), made), path)
                    for path, made in verdict_pages(folder).items()]


# Words -------------------------------------------------------------------------------
TERM = re.compile(r"(?m)^\| \*\*(.+?)\*\* \| .+? \| `alignkit\..+?` \| (\S+) \|$")


def unexplained(name: str, found: list[Card], folder: Path = NOTEBOOKS) -> list[str]:
    """Terms of the glossary that a notebook uses, though neither it nor what is read
    before it teaches them, and though it does not link them to the glossary. found: all
    `cards`, which take longer to read than the notebook."""
    taught = {name, *_before(name, {card.name: card.needs for card in found})}
    texts = [c.source for c in read(folder / f"{name}.ipynb").cells
             if c.cell_type == "markdown"]
    text = re.sub(r"(?s)\$.*?\$|`[^`]*`", " ", " ".join(texts))
    linked = " ".join(re.findall(r"\[([^\]]+)\]\(\.\./GLOSSARY\.md[^)]*\)", text)).lower()
    return [term for term, home in TERM.findall((folder / "GLOSSARY.md").read_text("utf-8"))
            if home not in taught and term.lower() not in linked
            and re.search(rf"\b{re.escape(term)}s?\b(?! matri)", text, re.I)]


def _before(name: str, needs: dict[str, list[str]]) -> set[str]:
    """All notebooks that are read before one, however far back."""
    found = set(needs.get(name, ()))
    return found.union(*(_before(need, needs) for need in found))
