"""The `alignkit` command, called in this process."""

import csv
import math
import random
import shutil
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from by_paper import DAY
from fake_claims import two_steps
from PIL import Image, ImageDraw
from toys import given, random_pairs

from alignkit.claims import Runs, load, paper, scoreboard, slugs, stored
from alignkit.claims.common import Encoders
from alignkit.cli import COMMANDS, main
from alignkit.data import Pairs
from alignkit.data.fetch import cache_dir
from alignkit.encoders import add_features

TAKE_PAIRS = [slug for slug in slugs() if paper(slug).NEEDS]
FROM_TABLE = [slug for slug in TAKE_PAIRS if {*paper(slug).NEEDS} <= {"image", "text"}]
NEEDS = {paper(slug).NEEDS: slug for slug in FROM_TABLE}  # one slug for each kind
COLOURS = ("red", "green", "blue", "orange", "purple", "black", "teal")
SHAPES = ("circle", "square", "triangle", "cross")


def draw(path: Path, number: int) -> str:
    """A picture of a few coloured shapes, different for every number; its caption."""
    drawn = random.Random(number)
    picture = Image.new("RGB", (96, 96), "white")
    pen, words = ImageDraw.Draw(picture), []
    for _ in range(drawn.randint(1, 3)):
        colour, shape = drawn.choice(COLOURS), drawn.choice(SHAPES)
        x, y, size = drawn.randint(5, 55), drawn.randint(5, 55), drawn.randint(15, 35)
        box = (x, y, x + size, y + size)
        if shape == "circle":
            pen.ellipse(box, fill=colour)
        elif shape == "square":
            pen.rectangle(box, fill=colour)
        elif shape == "triangle":
            pen.polygon([(x, y + size), (x + size, y + size), (x + size / 2, y)], fill=colour)
        else:
            pen.line(box, fill=colour, width=5)
            pen.line((x, y + size, x + size, y), fill=colour, width=5)
        words.append(f"a {colour} {shape}")
    picture.save(path)
    return " and ".join(words)


def table(folder: Path, n: int, captions: int = 1) -> Path:
    """A CSV of `n` different pictures, a row for each of their captions: some have `captions`,
    the others two at most."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "my.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        for i in range(n):
            words = draw(folder / f"{i}.png", i)
            for k in range(captions if i % 3 == 0 else min(captions, 2)):
                rows.writerow([f"{i}.png", f"{('', 'picture of ', 'here is ')[k]}{words} {i}"])
    return path


def lines_of(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


def rewrite(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", "utf-8")


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_list(capsys):
    code, out, _ = run(capsys, "list")
    lines = out.splitlines()
    assert code == 0 and [line.split()[0] for line in lines] == slugs()
    for slug, line in zip(slugs(), lines):
        for result in stored(slug):
            assert f"{result.claim}: {result.verdict}" in line


def test_scoreboard(capsys):
    assert run(capsys, "scoreboard")[:2] == (0, scoreboard() + "\n")


@pytest.mark.slow
def test_doctor_agrees_with_its_exit_code(capsys):
    code, out, _ = run(capsys, "doctor")
    assert "python 3." in out and str(cache_dir()) in out and "torch" in out
    last = out.splitlines()[-1]
    assert (code, last == "all is well") in ((0, True), (1, False))
    assert code == 0 or last.startswith("mend it with: ")


@pytest.mark.parametrize("what, well", [("missing", True), ("cached", True),
                                        ("broken", False)])
def test_doctor_does_not_miss_what_is_optional(capsys, monkeypatch, tmp_path, what, well):
    from alignkit.course import doctor

    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path))
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "x.safetensors").touch()
    rows = [("minilm", "cached", 10), ("stamps", what, 10)]
    monkeypatch.setattr(doctor, "state", lambda rehash: rows)
    code, out, _ = run(capsys, "doctor")
    said = "all is well" if well else "mend it with: python -c "
    assert (code == 0) == well and said in out.splitlines()[-1]
    assert ("optional: fetched when" in out) == (what == "missing")
    assert well or "asset('stamps')" in out.splitlines()[-1]


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


def one_line(capsys, *arguments) -> str:
    """The one line on stderr of a command that fails with exit code 1."""
    code, _, err = run(capsys, *arguments)
    assert code == 1 and err.startswith(f"alignkit {arguments[0]}: ")
    assert err.count("\n") == 1, err
    return err


def test_an_unknown_slug(capsys):
    err = one_line(capsys, "reproduce", "nothing")
    assert "'nothing'" in err and all(slug in err for slug in slugs())


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Path:
    return table(tmp_path_factory.mktemp("four"), 4)


def no_file(path, lines):
    (path.parent / "2.png").unlink()
    return lines


def not_a_picture(path, lines):
    (path.parent / "2.png").write_text("no picture")
    return lines


BAD = {  # -> what is done to a good table of four rows, what the message must say
    "missing file": (no_file, ("line 4", "2.png", "cannot be read")),
    "not a picture": (not_a_picture, ("line 4", "2.png", "not a picture")),
    "missing column": (lambda path, lines: ["image,words", *lines[1:]],
                       ("line 1", "'caption'", "'words'")),
    "empty caption": (lambda path, lines: [*lines[:2], "1.png,", *lines[3:]],
                      ("line 3", "1.png", "empty caption")),
    "no picture named": (lambda path, lines: [*lines, ",nothing"], ("line 6", "'image'")),
    "a comma too many": (lambda path, lines: [*lines[:4], "3.png,one, two"],
                         ("line 5", "quotes")),
    "identical rows": (lambda path, lines: [*lines, lines[2]],
                       ("line 6", "same picture and caption", "line 3")),
    "too few items": (lambda path, lines: lines, ("4 different items", "60")),
    "no rows": (lambda path, lines: lines[:1], ("no rows",)),
}


@pytest.mark.parametrize("slug", NEEDS.values())
@pytest.mark.parametrize("name", BAD)
def test_a_bad_table_gives_one_clear_line(capsys, tmp_path, four, name, slug):
    folder = tmp_path / "copy"
    shutil.copytree(four.parent, folder)
    path, (change, words) = folder / "my.csv", BAD[name]
    rewrite(path, change(path, lines_of(path)))
    err = one_line(capsys, "reproduce", slug, "--pairs", path)
    for word in words:
        assert word in err, (word, err)


def test_a_table_that_is_not_there(capsys, tmp_path):
    err = one_line(capsys, "reproduce", slugs()[0], "--pairs", tmp_path / "none.csv")
    assert "none.csv" in err and "no such file" in err


def test_large_scales_need_pairs(capsys):
    assert "--pairs" in one_line(capsys, "reproduce", slugs()[0], "--scale", "full")


@pytest.mark.parametrize("slug", sorted({*slugs()} - {*TAKE_PAIRS}))
def test_claims_on_data_of_their_own_say_so(capsys, tmp_path, slug):
    err = one_line(capsys, "reproduce", slug, "--pairs", table(tmp_path, 3))
    assert "take no pairs of your own" in err


# Pairs of one's own -------------------------------------------------------------------
@pytest.fixture(scope="session")  # workers take a paper at a time: of a module, it is made anew
def drawn(tmp_path_factory) -> Path:
    """A table, with the features of the usual encoders in the cache: no one paper's cost."""
    path = table(tmp_path_factory.mktemp("drawn"), 70, captions=3)
    usual, pairs = Encoders(), Pairs.from_table(path)
    for tokens in (False, True):
        for column in ("image", "text"):
            add_features(pairs, column, getattr(usual, column), layers="all", tokens=tokens)
    return path


def test_a_table_has_a_row_for_each_caption(drawn):
    pairs = Pairs.from_table(drawn)
    assert len(pairs.item.unique()) == 70 and len(pairs) == 24 * 3 + 46 * 2


def own(path: Path, slug: str) -> Pairs:
    """The table's pairs with the labels that the claims need, and what the paper's own test
    file adds (see toys.py)."""
    pairs, names = Pairs.from_table(path), getattr(paper(slug), "LABELS", ())
    pairs = replace(pairs, labels={name: pairs.item % (3 + k) for k, name in enumerate(names)},
                    label_names={name: list("abcd")[:3 + k] for k, name in enumerate(names)})
    return given(pairs, slug, "toy_pairs")


@pytest.mark.parametrize("slug", [s for s in FROM_TABLE if hasattr(paper(s), "LABELS")])
def test_labels_that_a_table_lacks_are_named(capsys, drawn, slug):
    assert paper(slug).LABELS[0] in one_line(capsys, "reproduce", slug, "--pairs", drawn)


@lru_cache(maxsize=1)  # the two tests of a paper share its pairs and the arms of both
def runs_of(path: Path, slug: str) -> Runs:
    """All claims, each arm after two steps: one may start from an arm of another claim."""
    pairs = paper(slug).data("tiny", own(path, slug) if paper(slug).NEEDS else None)
    return Runs([two_steps(claim) for claim in paper(slug).claims(pairs, "tiny")])


@pytest.mark.parametrize("which", ["headline", pytest.param("others", marks=pytest.mark.slow)])
@pytest.mark.parametrize("slug", slugs())
@pytest.mark.usefixtures("first_step", "kornia")
def test_every_claim_can_be_measured(drawn, slug, which):
    """Features, all arms after two steps, figures, null, condition and the figures for
    choosing; a user's own pairs where the paper takes them."""
    runs, seed, asked = runs_of(drawn, slug), getattr(paper(slug), "FIRST", 0), {}
    for claim in runs.claims:
        if claim.headline != (which == "headline"):
            continue
        for null in (False, True):
            figures = runs.figures(claim, seed, null)
            assert figures and all(math.isfinite(x) for x in figures.values()), figures
            assert math.isfinite(claim.difference(figures))
        base = runs.trained(claim, seed)[claim.baseline]
        for c in claim.conditions:  # those of one baseline are often equal in several claims
            key = c.measure, id(base)
            assert math.isfinite(asked.setdefault(key, 0.0 if key in asked else c.measure(base)))
        if len(claim.grid) > 1:
            chosen = claim.validate(base.method, base.splits)[claim.choose_by]
            assert math.isfinite(chosen)


def few_and_one_in_turn() -> list:
    """The slugs that run from end to end: with few arms one whose pairs need labels, one
    whose arms differ in data, one that trains its baseline alone; and by the day of the
    year one of all the others."""
    claims = {slug: paper(slug).claims(random_pairs(slug), "tiny") for slug in TAKE_PAIRS}
    arms = {slug: len({arm for claim in claims[slug] for arm in claim.arms})
            for slug in TAKE_PAIRS}
    shapes = (lambda slug: hasattr(paper(slug), "LABELS"),
              lambda slug: any(claim.differs == "data" for claim in claims[slug]),
              lambda slug: any(claim.differs == "inference" for claim in claims[slug]))
    left = sorted(TAKE_PAIRS, key=arms.get)
    few = [left.pop(next(i for i, slug in enumerate(left) if shape(slug)))
           for shape in shapes]
    left.sort()
    turn = left[DAY % len(left)]
    return [*(pytest.param(slug, id=f"{slug}, one of few") for slug in few),
            pytest.param(turn, id=f"{turn}, day {DAY}")]


@pytest.mark.slow
@pytest.mark.parametrize("slug", few_and_one_in_turn())
def test_reproduce_on_pairs_of_ones_own(capsys, tmp_path, drawn, slug):
    """From a table of drawn pictures to written results, at the scale for tests."""
    path, pairs = drawn, own(drawn, slug)
    if pairs.labels or {*pairs.columns} != {"image", "text"}:  # more than a table has
        path = tmp_path / "pairs"
        pairs.save(path)
    used = paper(slug).data("tiny", pairs)  # some claims take each item once
    assert len(used) in (len(pairs), len(pairs.item.unique()))
    for old in (cache_dir() / "runs").glob(f"{slug}-*-{used.provenance.hash[:8]}"):
        shutil.rmtree(old)  # kept from an earlier run of this test
    code, out, err = run(capsys, "reproduce", slug, "--scale", "tiny", "--seeds", 5,
                         "--jobs", 1, "--pairs", path, "--out", tmp_path / "out")
    assert code == 0, err
    results = [load(p) for p in sorted((tmp_path / "out").iterdir())]
    assert results and f"{len(results)} claims, 5 paired seeds" in out
    first = getattr(paper(slug), "FIRST", 0)
    for result in results:
        assert result.data["kind"] == "user" and result.data["rows"] == len(used)
        assert result.data["hash"] == used.provenance.hash
        assert result.seeds[:5] == list(range(first, first + 5)) and result.scale == "tiny"
        assert len(result.seeds) == 5 or result.headline  # which may have a second look
        assert f"{slug} · {result.claim}" in out
        assert f"written to  {tmp_path / 'out' / f'{slug}.{result.claim}.json'}" in out
