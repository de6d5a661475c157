"""`alignkit site DIR`: the course as a web site, from the notebooks' kept outputs.

Gathered in a temporary folder: the notebooks with their first uses of a term linked to the
glossary, the pages beside them, a card for each paper with what its claims said, and a
page of functions for each package. Sphinx makes the site of it (notebooks/site/conf.py).
"""

import json
import re
import shutil
import tempfile
from pathlib import Path

from alignkit import claims, methods
from alignkit.claims.scoreboard import of_paper

from . import guide
from .map_figure import course_map
from .notebook import _write, read
from .tour import NOTEBOOKS

PACKAGES = ("alignkit.claims", "alignkit.data", "alignkit.encoders", "alignkit.parts",
            "alignkit.training", "alignkit.evaluation", "alignkit.stats")
PROTECTED = re.compile(  # where no word is a first use: code, formulas, links, headings
    r"(?sm)(```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|!?\[[^\]]*\]\([^)]*\)|^#.*?$|<[^>]+>)")
PLACE = re.compile(r"(?<![\[/(])\b\d-[a-z]+/\d\d-[a-z0-9-]+\b(?!\.ipynb)")


def site(out: Path, folder: Path = NOTEBOOKS) -> Path:
    """Build the site; its first page.

    Raises:
        FileNotFoundError: the notebooks are not beside the package.
        ModuleNotFoundError: without the extra `site`.
        RuntimeError: Sphinx warned (a link to nowhere, a formula that cannot be read);
            its lines stand above.
    """
    found = guide.cards(folder)
    try:
        from sphinx.cmd.build import build_main
    except ModuleNotFoundError:
        raise ModuleNotFoundError('the site needs: pip install "alignkit[site]"') from None
    with tempfile.TemporaryDirectory() as made:
        source = Path(made) / "pages"
        gather(source, found, folder)
        if build_main(["-q", "-W", "--keep-going", "-b", "html", "-c", f"{source}/site",
                       "-d", f"{made}/doctrees", str(source), str(out)]):
            raise RuntimeError("sphinx had something to say about the pages, see above")
    for card in found:  # what the button downloads: the notebook itself
        shutil.copy(folder / f"{card.name}.ipynb", out / "_sources" / f"{card.name}.ipynb")
    return out / "index.html"


def gather(source: Path, found: list[guide.Card], folder: Path = NOTEBOOKS) -> None:
    """Write all pages as Sphinx reads them."""
    shutil.copytree(folder, source, ignore=shutil.ignore_patterns(
        ".ipynb_checkpoints", "[0-9][0-9]-*.py", "__pycache__"))
    terms = _glossary(source / "GLOSSARY.md")
    for card in found:
        _notebook(source / f"{card.name}.ipynb", terms)
    here = {card.name.split("-", 2)[2]: card.name for card in found}
    parts = {slug: name.partition("/")[0] for slug, name in here.items()}
    _put(source / "SCOREBOARD.md", f'\n<script type="application/json" id="parts">'
         f"{json.dumps(parts)}</script>\n", add=True)
    _put(source / "README.md", re.sub(
        r"(?s)```mermaid.*?```", f'<div class="course-map">{course_map(found)}</div>',
        (source / "README.md").read_text("utf-8")))
    pages = ["README", "SCOREBOARD", "GLOSSARY", "YOUR-PAIRS", "SCALE", "TEACHING", "ADDING"]
    for page in pages:  # files outside the site are linked in the repository
        text = (source / f"{page}.md").read_text("utf-8")
        _put(source / f"{page}.md", re.sub(
            r"\]\(\.\./([\w./-]+)", rf"]({repository(folder.parent)}/blob/main/\1", text))
    cards = _cards(source / "cards", here)
    api = _api(source / "api")
    tree = [_tree("The course", pages)]
    for part in dict.fromkeys(parts.values()):
        tree.append(_tree(part, [c.name for c in found if c.name.startswith(part)]))
    tree += [_tree("Papers, and what held", cards), _tree("Functions", api)]
    _put(source / "index.md", "\n\n".join([_readme(folder.parent), *tree]))


def _put(path: Path, text: str, add: bool = False) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text("utf-8") if add else "") + text, "utf-8")


def _tree(caption: str, names: list[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```"])


def _readme(root: Path) -> str:
    """The README; what it links to outside the site is linked in the repository."""
    text = (root / "README.md").read_text("utf-8")
    text = re.sub(r"\]\(notebooks/(.*?)\)", r"](\1)", text)
    return re.sub(r"\]\((data_scripts/.*?)\)", rf"]({repository(root)}/blob/main/\1)", text)


def repository(root: Path = NOTEBOOKS.parent) -> str:
    """The one place that holds the repository's address: pyproject.toml."""
    import tomllib

    text = (root / "pyproject.toml").read_text("utf-8")
    return tomllib.loads(text)["project"]["urls"]["Repository"]


# Words -------------------------------------------------------------------------------
def _glossary(path: Path) -> list[str]:
    """The table as a list that can be linked to, term by term; the terms."""
    text = path.read_text("utf-8")
    rows = re.findall(r"(?m)^\| \*\*(.+?)\*\* \| (.+?) \| (`.+?`) \| (\S+) \|$", text)
    entries = [f"{term}\n  {meaning} {function}, [{home}]({home}.ipynb)\n"
               for term, meaning, function, home in rows]
    known = [(e if Path(path.parent, f"{home}.ipynb").is_file() else e.replace(
        f"[{home}]({home}.ipynb)", f"{home} (planned)")) for e, (*_, home) in zip(entries, rows)]
    head = text.partition("| term |")[0]
    _put(path, "\n".join([head, "````{glossary}", *known, "````", ""]))
    return [term for term, *_ in rows]


def _notebook(path: Path, terms: list[str]) -> None:
    """Say in the card with what the notebook was executed; link first uses of terms."""
    book = read(path)
    ran = next((o["text"] for c in book.cells if "setup" in c.metadata.get("tags", ())
                for o in c.outputs if "text" in o), "")
    left = list(terms)
    for cell in book.cells[1:]:
        if cell.cell_type == "markdown":
            cell.source = linked(cell.source, left)
    card = re.sub(r"\n\n\[Open in Colab\]\(.*?\)", "", book.cells[0].source)  # a button here
    if ran:
        card += f"\n\n**Last executed with.** {' '.join(ran.split()).replace(' ·', ',')}."
    book.cells[0].source = PLACE.sub(lambda at: _link(path, at[0]), card)
    _write(book, path)


def _link(path: Path, name: str) -> str:
    there = path.parents[1] / f"{name}.ipynb"
    return f"[{name}](../{name}.ipynb)" if there.is_file() else name


def linked(text: str, left: list[str]) -> str:
    """Markdown with the first use of each term left linked to the glossary; `left` loses
    those that were found."""
    pieces = PROTECTED.split(text)
    for term in sorted(left, key=len, reverse=True):
        word = re.compile(rf"\b{re.escape(term)}s?\b(?! matri)", re.I)
        for place in range(0, len(pieces), 2):  # between the protected ones
            if found := word.search(pieces[place]):
                before, after = (pieces[place][:found.start()], pieces[place][found.end():])
                link = f"{{term}}`{found[0]} <{term}>`"
                pieces[place:place + 1] = [before, link, after]
                left.remove(term)
                break
    return "".join(pieces)


# Papers ------------------------------------------------------------------------------
def _cards(folder: Path, notebooks: dict[str, str]) -> list[str]:
    """A page a paper: its card and what its claims said; their names."""
    import ast

    names = []
    for slug in claims.slugs():
        method = Path(methods.__path__[0], f"{slug.replace('-', '_')}.py")
        if slug not in notebooks or not method.is_file():
            continue
        doc = ast.get_docstring(ast.parse(method.read_text("utf-8")))
        title, _, rest = doc.partition("\n\n")
        results = claims.stored(slug)
        ran = ", ".join(f"{k} {v}" for k, v in results[0].versions.items()) if results else ""
        _put(folder / f"{slug}.md", "\n\n".join([
            f"# {title.rstrip('.')}", f"Notebook: [{notebooks[slug]}](../{notebooks[slug]}.ipynb)",
            *card_text(rest), "## What held", of_paper(slug) or "Not run yet.",
            f"Run with {ran}." if ran else ""]) + "\n")
        names.append(f"cards/{slug}")
    return names


def card_text(doc: str) -> list[str]:
    """A method's docstring as Markdown: "Claim: …" gets a bold beginning, what is indented
    stays as it is."""
    found = []
    for block in re.split(r"\n\s*\n|\n(?=[A-Z][\w ]+: )", doc):
        lines = block.splitlines()
        head = re.match(r"([A-Z][\w ,]{2,50}):(?: |$)", lines[0])
        name = ""
        if head and not lines[0].startswith(" "):
            name, lines[0] = f"**{head[1]}.** ", lines[0][head.end():]
        if any(line.startswith(" ") for line in lines):
            found += [name, "```text\n" + "\n".join(lines).strip("\n") + "\n```"]
        else:
            text = _plain("\n".join(lines))
            found.append(name + (text[:1].upper() + text[1:] if name else text))
    return found


def _plain(text: str) -> str:
    """Text in which only `code` means anything."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([\\*_<\[\]|$#])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


# Functions ---------------------------------------------------------------------------
def _api(folder: Path) -> list[str]:
    for name in PACKAGES:
        _put(folder / f"{name}.rst", f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n")
    return [f"api/{name}" for name in PACKAGES]
