"""`alignkit new`: a paper that is scaffolded into a copy of this checkout passes the shared
tests there as it stands."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alignkit.claims import slugs, stored
from alignkit.course import scaffold
from alignkit.course.notebook import read

ROOT = Path(__file__).parents[1]
SLUG, NAME = "late-fusion", "late_fusion"
LEFT_OUT = shutil.ignore_patterns(".git", "__pycache__", ".ipynb_checkpoints", "*.egg-info",
                                  "alignkit-*", ".pytest_cache", ".venv", "venv", "build")


def in_copy(copy: Path, *command: str) -> subprocess.CompletedProcess:
    """A command of the copy's own package."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    return subprocess.run([sys.executable, "-m", *command], cwd=copy, capture_output=True,
                          text=True, env={**environment, "PYTHONPATH": str(copy)})


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """This checkout with a new paper in it."""
    copy = tmp_path_factory.mktemp("copy") / "alignkit"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    made = in_copy(copy, "alignkit", "new", SLUG, "--title", "Late fusion",
                   "--part", "1-objectives")
    assert made.returncode == 0 and "line " not in made.stdout, made.stdout + made.stderr
    return copy


@pytest.mark.slow
def test_it_writes_every_file_and_row_and_says_what_belongs_where(copy):
    (notebook,) = (copy / "notebooks" / "1-objectives").glob(f"*-{SLUG}.ipynb")
    files = [copy / "alignkit" / floor / f"{NAME}.py" for floor in
             ("methods", "claims", "course")]
    files += [copy / "tests" / f"test_{NAME}.py", notebook.with_suffix(".py")]
    for path in files:
        text = path.read_text("utf-8")
        assert "HERE" in text and not re.search(r"@[A-Z]+@", text), path
    rows = [line for line in (copy / "notebooks" / "README.md").read_text("utf-8").split("\n")
            if line.startswith(f"| `1-objectives/{notebook.stem}` |")]
    assert len(rows) == 1 and rows[0].endswith("| Late fusion: HERE what you learn |")
    assert "**Here.** Not run yet." in read(notebook).cells[0].source


SHARED = ("test_methods", "test_template", "test_exercises", "test_results", "test_guide",
          "test_laws", "test_floors", f"test_{NAME}")


@pytest.mark.slow
def test_the_shared_tests_pass_at_once(copy):
    """Of the new paper's own cases, and those that look at all papers together."""
    ran = in_copy(copy, "pytest", "-p", "no:cacheprovider", "-o", "addopts=", "-q", "-rs",
                  *(f"tests/{name}.py" for name in SHARED), "-k",
                  f"{NAME} or {SLUG} or readme or plan or notebook_but_the_first")
    assert ran.returncode == 0, ran.stdout[-5000:]
    passed = int(re.search(r"(\d+) passed", ran.stdout)[1])
    assert passed > 30 and f"{SLUG} is a draft" in ran.stdout


@pytest.mark.parametrize("slug, title, part, message", [
    ("Late", "x", "1-a", "slug must be small letters"),
    ("class", "x", "1-a", "slug must be small letters"),
    (slugs()[0], "x", "1-a", "is there already"),
    ("brand-new", " ", "1-a", "title must be words"),
    ("brand-new", "x", None, "say its --part, such as"),
    ("brand-new", "x", "objectives", "say its --part.*got 'objectives'")])
def test_what_is_refused(slug, title, part, message):
    with pytest.raises(ValueError, match=message):
        scaffold.new(slug, title, part)


def test_a_planned_paper_gets_its_place():
    names = scaffold.planned(ROOT / "notebooks")
    free = next(n for n in names if not (ROOT / "notebooks" / f"{n}.ipynb").is_file())
    slug = free.partition("/")[2].partition("-")[2]
    assert scaffold._place(slug, None, ROOT) == ROOT / "notebooks" / f"{free}.ipynb"
    assert scaffold._place("brand-new", "9-x", ROOT).name == "01-brand-new.ipynb"


@pytest.mark.parametrize("slug", [slug for slug in slugs() if stored(slug)])
def test_nothing_is_left_to_fill_in_once_results_are_published(slug):
    name = slug.replace("-", "_")
    paths = [ROOT / "alignkit" / floor / f"{name}.py" for floor in
             ("methods", "claims", "course")]
    paths += (ROOT / "notebooks").glob(f"*/[0-9][0-9]-{slug}.ipynb")
    left = [str(path) for path in paths if path.is_file()
            and re.search(r"\bHERE\b", path.read_text("utf-8"))]
    plan = (ROOT / "notebooks" / "README.md").read_text("utf-8")
    left += re.findall(rf"(?m)^\| `\S+-{slug}` \|.*\bHERE\b.*$", plan)
    assert not left, f"HERE marks what is still to be written, in {left}"
