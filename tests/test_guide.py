"""The guide: the map of the notebooks, which method when, and the glossary."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest
from nbformat import v4, write

from alignkit.claims import stored
from alignkit.cli import COMMANDS, main
from alignkit.course import guide
from alignkit.course.notebook import read

from test_methods import CARD, TRAITS

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = [f"{p.parent.name}/{p.stem}" for p in sorted(FOLDER.glob("*/[0-9]*.ipynb"))]
METHODS = sorted(
    p for p in (ROOT / "alignkit" / "methods").glob("*.py") if p.stem != "__init__"
)


# The map ------------------------------------------------------------------------------
def test_every_notebook_but_the_first_names_what_to_read_before_it():
    cards = guide.cards()
    assert [card.name for card in cards] == NOTEBOOKS
    first = [card.name for card in cards if not card.needs]
    assert first == NOTEBOOKS[:1], 'in **Prerequisites.** say "0-start/01-shared-space"'
    assert all(card.minutes >= 10 and card.title for card in cards)
    assert guide.disorder(cards) == []


def test_the_plan_holds_every_notebook_in_order():
    planned = guide.planned()
    missing = sorted(set(NOTEBOOKS) - set(planned))
    assert not missing, f"add a row to 'The curriculum' of notebooks/README.md: {missing}"
    assert planned == sorted(set(planned)), "'The curriculum' is not in order, or has a row twice"


def test_the_page_on_adding_a_paper_names_what_there_is():
    text = (FOLDER / "ADDING.md").read_text("utf-8")
    commands = set(re.findall(r"alignkit (new|notebook|register|reproduce|publish|map)\b", text))
    assert len(commands) == 6 and commands <= set(COMMANDS)
    tests = re.findall(r"`(test_\w+\.py)`", text)
    assert len(tests) >= 8 and all((ROOT / "tests" / name).is_file() for name in tests)
    assert all(trait in TRAITS for trait in re.findall(r"(?m)^\| `([a-z ]+)` \| ", text))
    assert all(f"{head}," in text or f"{head}." in text for head in (*CARD, "Use it when"))
    assert "(ADDING.md)" in (FOLDER / "README.md").read_text("utf-8")


def course(folder: Path, **prerequisites: str) -> Path:
    """A folder of notebooks a, b, c in one part, and a plan that has d too."""
    names = [f"1-x/0{i}-{name}" for i, name in enumerate("abcd", 1)]
    (folder / "1-x").mkdir()
    (folder / "README.md").write_text("".join(f"| `{n}` | words |\n" for n in names))
    for name in names[:3]:
        text = (
            f"# Title {name}\n\n**Claim.** 04-d. **Prerequisites.** "
            f"{prerequisites.get(name[-1], 'Nothing.')}\n\n**Time.** 12 minutes, 3 CPU "
            "seconds; see 04-d."
        )
        write(
            v4.new_notebook(cells=[v4.new_markdown_cell(text)]),
            folder / f"{name}.ipynb",
        )
    return folder


@pytest.mark.parametrize(
    "text, needs",
    [
        ("1-x/01-a (cosine) and 04-d.", ["1-x/01-a", "1-x/04-d"]),
        ("[01 a](01-a.ipynb), [two](../1-x/02-b.ipynb).", ["1-x/01-a", "1-x/02-b"]),
        ("`01-a`; again 1-x/01-a. PyTorch.", ["1-x/01-a"]),
        ("PyTorch.", []),
    ],
)
def test_prerequisites_are_read_in_any_common_form(tmp_path, text, needs):
    cards = guide.cards(course(tmp_path, c=text))
    assert [card.needs for card in cards] == [[], [], needs]
    assert (cards[2].title, cards[2].minutes) == ("Title 1-x/03-c", 12)


def test_prerequisites_that_are_wrong(tmp_path):
    folder = course(tmp_path, a="02-b.", b="01-a, 02-b.")
    assert guide.disorder(guide.cards(folder)) == [
        "1-x/01-a needs 1-x/02-b, which stands after it",
        "1-x/02-b needs 1-x/02-b, which stands after it",
    ]
    for wrong in ("09-z", "2-y/01-a"):
        (tmp_path / wrong[0]).mkdir()
        with pytest.raises(
            ValueError, match=f"1-x/01-a: the prerequisite '{wrong[-4:]}'"
        ):
            guide.cards(course(tmp_path / wrong[0], a=wrong))
    with pytest.raises(FileNotFoundError, match="no notebooks in"):
        guide.cards(tmp_path / "1-x")


# The README's blocks ------------------------------------------------------------------
def test_the_readme_is_up_to_date():
    text = (FOLDER / "README.md").read_text("utf-8")
    assert text == guide.filled(text), "run: alignkit map --write"


def test_verdicts_are_written_to_both_pages(tmp_path):
    (tmp_path / "notebooks").mkdir()
    for page, name in (("README.md", "verdicts"), ("notebooks/SCOREBOARD.md", "scoreboard")):
        (tmp_path / page).write_text(f"a\n<!-- {name} -->\nSTALE\n<!-- /{name} -->\nb\n")
    guide.write_verdicts(tmp_path / "notebooks")
    texts = [(tmp_path / p).read_text("utf-8") for p in ("README.md", "notebooks/SCOREBOARD.md")]
    assert texts[0].count("[structure](notebooks/1-objectives/11-structure.ipynb)") == 1
    assert texts[1].count("\n| structure |") == 1 + len(stored("structure"))
    assert not any("STALE" in t for t in texts) and all(t.endswith("\nb\n") for t in texts)


def test_blocks_are_filled_between_their_markers_only(tmp_path):
    empty = "a\n<!-- map -->\nold\n<!-- /map -->\nb\n<!-- which --><!-- /which -->\nc\n"
    (tmp_path / "README.md").write_text(empty)
    text = guide.write(tmp_path).read_text("utf-8")
    assert text.startswith("a\n<!-- map -->\n```mermaid\ngraph LR\n")
    assert text.endswith(" |\n<!-- /which -->\nc\n") and "\n<!-- /map -->\nb\n" in text
    assert "\nold\n" not in text and guide.filled(text) == text
    for wrong in (empty.replace("<!-- map -->", ""), "<!-- map -->\n" + empty):
        with pytest.raises(ValueError, match="need <!-- map -->"):
            guide.filled(wrong)


def test_the_graph_has_an_arrow_for_every_prerequisite():
    block = guide.blocks()["map"]
    node = {name: number for number, name in re.findall(r'(n\d+)\["([\w-]+)', block)}
    arrows = set(re.findall(r"(n\d+) --> (n\d+)", block))
    assert arrows == {
        (node[need.split("/")[1]], node[card.name.split("/")[1]])
        for card in guide.cards()
        for need in card.needs
    }
    for card in guide.cards():
        assert f"]({card.name}.ipynb)" in block


# Which method when --------------------------------------------------------------------
@pytest.fixture(scope="module")
def advice():
    return {row.slug: row for row in guide.advice()}


@pytest.mark.parametrize("path", METHODS, ids=lambda p: p.stem)
def test_every_method_says_when_to_use_it(path, advice):
    text = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    assert len(re.findall(r"(?m)^Use it when: \S", text)) == 1, (
        f"{path.name}: its docstring needs one paragraph 'Use it when: …'")
    row = advice[path.stem.replace("_", "-")]
    assert 60 < len(row.when) < 600 and row.when.endswith(".") and "|" not in row.when
    verdicts = [
        f"{verdict} {name.partition(' (')[0]}"
        for verdict, names in row.verdicts.items()
        for name in names
    ]
    assert sorted(verdicts) == sorted(
        f"{r.verdict} {r.claim}" for r in stored(row.slug)
    )


def test_advice_is_one_paragraph(tmp_path):
    (tmp_path / "a.py").write_text(
        '"""A method: words.\n\nUse it when: one\ntwo.\n\nNo."""'
    )
    (tmp_path / "b.py").write_text('"""Another: words.\n\nDo not Use it when: x."""')
    assert guide.advice(tmp_path) == [guide.Advice("a", "A method", "one two.", {})]


def test_the_commands_print_them(capsys):
    assert main(["map"]) == 0
    out = capsys.readouterr().out
    assert (
        all(name.split("/")[1] in out for name in NOTEBOOKS) and "to begin with" in out
    )
    assert main(["which"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for row in guide.advice():
        assert f"({row.slug}) {row.when}" in out
        assert all(f"{verdict}: " in out for verdict in row.verdicts)


# The glossary -------------------------------------------------------------------------
TERMS = re.findall(
    r"(?m)^\| \*\*(.+?)\*\* \| (.+?) \| `alignkit\.(.+?)` \| (\S+) \|$",
    (FOLDER / "GLOSSARY.md").read_text("utf-8"),
)


def test_the_glossary_is_read_whole_and_sorted():
    rows = (FOLDER / "GLOSSARY.md").read_text("utf-8").count("\n| ") - 1
    names = [term.lower() for term, *_ in TERMS]
    assert len(TERMS) == rows >= 30 and names == sorted(set(names))


@pytest.mark.parametrize(
    "term, meaning, function, name", TERMS, ids=[t[0] for t in TERMS]
)
def test_a_term(term, meaning, function, name):
    """Its function exists, its notebook exists and speaks of it, or is planned."""
    home, _, attribute = function.rpartition(".")
    assert callable(getattr(import_module(f"alignkit.{home}"), attribute))
    assert meaning.endswith(".") and len(meaning) < 250
    assert name in guide.planned()
    if name in NOTEBOOKS:
        text = " ".join(c.source for c in read(FOLDER / f"{name}.ipynb").cells)
        assert term.lower().rstrip("s") in " ".join(text.lower().split())
