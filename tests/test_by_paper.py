"""The table of seconds by paper, and what it says of the whole course."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean

import by_paper
import pytest
from by_paper import (
    KINDS, Spent, growth, minutes, minutes_before, place, rows_of, table,
)  # fmt: skip

KNOWN = ["tea", "tea-leaf", "cup", "start"]  # the last has no method


@pytest.fixture(autouse=True)
def course(monkeypatch):
    monkeypatch.setattr(by_paper, "papers", lambda: ["cup", "tea", "tea-leaf"])
    monkeypatch.setattr(by_paper, "slugs", lambda: KNOWN)


@pytest.mark.parametrize("test, found", [
    ("notebooks/0-start/01-start.ipynb::Cell 3", ("start", "notebook")),
    ("notebooks/1-x/11-tea-leaf.ipynb::Cell 0", ("tea-leaf", "notebook")),
    ("tests/test_tea.py::test_a", ("tea", "own tests")),
    ("tests/test_tea_leaf.py::test_a[cup]", ("tea-leaf", "own tests")),
    ("tests/test_tea_claims.py::test_a", ("tea", "own tests")),
    ("tests/test_teapot.py::test_a", None),
    ("tests/test_all.py::test_a[tea-leaf:plain]", ("tea-leaf", "shared tests")),
    ("tests/test_all.py::test_a[tea_leaf.fill-wrong]", ("tea-leaf", "shared tests")),
    ("tests/test_all.py::test_a[1-x/01-cup.ipynb]", ("cup", "shared tests")),
    ("tests/test_all.py::test_a[alignkit/claims/tea.py]", ("tea", "shared tests")),
    ("tests/test_all.py::test_tea[teapot]", None),
    ("tests/test_all.py::test_cup", None)])
def test_a_test_has_its_place(test, found):
    assert place(test, KNOWN) == found


TESTS = {  # CPU seconds; medians of the papers: shared 4, own 9, notebook 20; means 4, 9, 24
    "tests/test_all.py::test_a[tea]": 3.0, "tests/test_all.py::test_b[tea]": 1.0,
    "tests/test_all.py::test_a[cup]": 7.0, "tests/test_all.py::test_a[tea-leaf]": 1.0,
    "tests/test_tea.py::test_a": 9.0, "tests/test_cup.py::test_a": 2.0,
    "tests/test_tea_leaf.py::test_a": 16.0,
    "notebooks/1-x/01-tea.ipynb::Cell 0": 20.0, "notebooks/1-x/02-cup.ipynb::Cell 0": 6.0,
    "notebooks/1-x/03-tea-leaf.ipynb::Cell 0": 40.0,
    "notebooks/1-x/03-tea-leaf.ipynb::Cell 1": 6.0,
    "notebooks/0-start/01-start.ipynb::Cell 0": 10.0, "tests/test_pot.py::test_a": 100.0}


def test_seconds_add_up_by_paper():
    rows, package = rows_of(TESTS)
    assert package == 100 and sorted(rows) == sorted(KNOWN)
    assert rows["tea"] == dict(zip(KINDS, (4.0, 9.0, 20.0)))
    assert rows["tea-leaf"] == dict(zip(KINDS, (1.0, 16.0, 46.0)))
    few = {"tests/test_all.py::test_e[tea, day 3]": 8.0,
           "tests/test_all.py::test_e[cup, one of few]": 2.0}
    assert rows_of(TESTS | few) == (rows, 110)  # they do not grow with the papers
    assert rows["start"] == dict(zip(KINDS, (0.0, 0.0, 10.0)))


def test_the_whole_course_by_hand():
    """55 papers and 8 further notebooks; 8 s of starting once."""
    fixed = 100 + 8 * 10 + 8
    assert growth(Spent(TESTS)) == 63 / 4
    assert minutes(TESTS, 8.0) == pytest.approx((fixed + 55 * (4 + 9 + 20)) / 2 / 60)
    assert minutes(TESTS, 8.0, mean) == pytest.approx((fixed + 55 * (4 + 9 + 24)) / 2 / 60)
    assert minutes({"tests/test_pot.py::test_a": 240.0}, 0.0) == 2.0


def test_the_budget_of_design_fits_into_45_minutes():
    """At the limits of each paper and as much for each further notebook, with 15 minutes
    left for the package's tests."""
    at_limit = {f"tests/test_all.py::test_a[{slug}]": 6.0 for slug in KNOWN}
    at_limit |= {f"tests/test_{slug}.py::test_a": 10.0 for slug in KNOWN}
    at_limit |= {f"notebooks/1-x/01-{slug}.ipynb::Cell 0": 25.0 for slug in KNOWN}
    assert minutes(at_limit, 0.0) == pytest.approx(63 * 41 / 120) and 63 * 41 / 120 < 30


def test_the_table_marks_what_is_over():
    lines = table(Spent(TESTS, ["tests/test_pot.py::test_a", "tests/test_cup.py::test_a"], 8))
    line = {words[0]: text for text in lines if (words := text.split())}
    assert [text.split()[0] for text in lines[:5]] == ["CPU", "cup", "tea", "tea-leaf", "start"]
    assert line["cup"].split() == "cup 7.0 2.0 6.0 OVER: shared tests".split()
    assert line["tea"].split() == "tea 4.0 9.0 20.0".split()
    assert line["tea-leaf"].endswith("46.0  OVER: own tests, notebook")
    assert line["median"].split() == "median of papers 4.0 9.0 20.0".split()
    assert [text for text in lines if "not marked slow" in text] == [
        "over 2 s and not marked slow: tests/test_pot.py::test_a"]
    assert f"{minutes(TESTS, 8.0):.1f} minutes at the medians" in line["all"]
    assert "-m quick" in line["-m"] and "1.8 minutes at the medians" in line["-m"]  # 218 / 120
    slow = {test: seconds + 10 for test, seconds in TESTS.items()}
    (middle,) = (text for text in table(Spent(slow)) if text.startswith("median"))
    assert middle.endswith("OVER: shared tests, own tests, notebook")
    assert len(table(Spent())) > 3  # nothing ran


def test_collecting_a_papers_files_comes_with_each_further_paper():
    """Of a quick run too: 2 s a paper; what the package's files take comes once."""
    collecting = {f"tests/test_{slug}.py::test_a": 2.0 for slug in ("cup", "tea", "tea_leaf")}
    collecting |= {"tests/test_pot.py::test_b": 6.0}
    spent = Spent(TESTS, ["tests/test_pot.py::test_a"], 4.0, {}, collecting)
    total = (100 + 6 + 4 + 55 * 2) / 120
    assert table(spent)[-1].startswith(f"-m quick            {total:.1f} minutes at the medians")
    assert any("starting 4, collecting 12" in line for line in table(spent))


def test_the_steps_before_the_tests_grow_but_for_the_installation():
    """Of 4 notebooks: features 90 s and rotation 30 s, 63 / 4 times as long with all."""
    spent = Spent(TESTS, [], 8.0, {"install": 60.0, "features": 90.0, "rotation": 30.0})
    assert minutes_before(spent) == pytest.approx((60 + 120 * 63 / 4) / 60)
    lines = table(spent)
    assert ".ci/run before the tests: install 60 s, features 90 s, rotation 30 s" in lines
    total = minutes(TESTS, 8.0, mean) + minutes_before(spent)
    assert total > 45 and f"{total:.1f} at the means (limit 45)  OVER" in lines[-1]
    assert not any("OVER" in line for line in table(Spent(TESTS, [], 8.0))[-2:])


@pytest.mark.slow
def test_two_workers_share_a_file_by_paper_and_their_seconds_are_summed(tmp_path):
    """A run of its own: 12 shared tests of two papers and a child that uses CPU."""
    for folder in ("tests", "alignkit/methods", "notebooks"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(by_paper.__file__, tmp_path / "tests")
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\ntestpaths = tests\naddopts = -n 2 --dist loadfile\nmarkers = quick\n")
    (tmp_path / "tests" / "conftest.py").write_text(
        "from by_paper import ByPaper\n\ndef pytest_configure(config):\n"
        "    config.pluginmanager.register(ByPaper())\n")
    for slug in ("cup", "tea"):
        (tmp_path / "alignkit" / "methods" / f"{slug}.py").touch()
    (tmp_path / "tests" / "test_all.py").write_text(
        "import os, pathlib, pytest, time\n\n"
        "@pytest.fixture(scope='module')\n"
        "def made():\n"
        "    end = time.process_time() + 0.3\n"
        "    while time.process_time() < end: pass\n\n"
        "@pytest.mark.parametrize('n', range(6))\n"
        "@pytest.mark.parametrize('slug', ['cup', 'tea'])\n"
        "def test_a(slug, n, made):\n"
        "    pathlib.Path(f'{slug}-{os.environ[\"PYTEST_XDIST_WORKER\"]}').touch()\n")
    (tmp_path / "tests" / "test_cup.py").write_text(
        "import subprocess, sys, time\n\nend = time.process_time() + 0.2\n"
        "while time.process_time() < end: pass\n\n"
        "def test_a():\n    subprocess.run([sys.executable, '-c', "
        "'import time\\nwhile time.process_time() < 0.5: pass'])\n")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    clean["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they take seconds to load
    clean["ALIGNKIT_STEPS"] = " install=60 features=90"
    ran = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "xdist"], cwd=tmp_path,
                         env=clean, capture_output=True, text=True, timeout=120)
    lines = ran.stdout.splitlines()
    assert ran.returncode == 0 and "13 passed" in lines[-1], ran.stdout + ran.stderr
    assert lines[-2].startswith(".ci/run") and "limit 45" in lines[-2]  # last but one
    assert ".ci/run before the tests: install 60 s, features 90 s" in lines
    made = sorted(path.name for path in tmp_path.iterdir() if "-gw" in path.name)
    assert len(made) == 2 and {name[-1] for name in made} == {"0", "1"}, made
    kept = tmp_path / ".pytest_cache" / "v" / by_paper.KEPT
    spent = Spent(**json.loads(kept.read_text("utf-8")))
    (tea,) = (line.split() for line in lines if line.startswith("tea "))
    assert float(tea[1]) < 0.2  # what is made for many tests is the package's
    assert spent.tests.pop("tests/test_all.py::made") > 0.25
    assert spent.starting > 0.1 and set(spent.collecting) == set(spent.tests)
    assert 0.35 < spent.collecting["tests/test_cup.py::test_a"] < 5  # by both workers
    (cup,) = (line.split() for line in lines if line.startswith("cup "))
    assert 0.4 < float(cup[2]) < 5
    again = subprocess.run([sys.executable, "tests/by_paper.py"], cwd=tmp_path,
                           capture_output=True, text=True, timeout=60)
    assert again.stdout.splitlines()[-1] == lines[-2]
    kept.unlink()
    again = subprocess.run([sys.executable, "tests/by_paper.py"], cwd=tmp_path,
                           capture_output=True, text=True, timeout=60)
    assert again.returncode == 1 and "python -m pytest" in again.stderr
