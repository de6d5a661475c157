"""The laws of the code, read from its syntax trees; each finder is itself tried on code
that breaks its law. Imports have a file of their own, test_floors.py."""

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from alignkit.claims import slugs
from alignkit.course.notebook import TAGS


ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "alignkit").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
# Cells that may hold their own loop: by hand, or an exercise.
OWN = {"by-hand", "exercise", "solution"}
LONGEST_FILE, LONGEST_FUNCTION = 300, 60


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def part(path: Path) -> str:
    """The folder or file under alignkit."""
    return path.relative_to(ROOT).parts[1]


# Loops, optimisers and metrics --------------------------------------------------------
OPTIMISERS = re.compile(r"(Adam|AdamW|SGD|RMSprop|Adagrad|LBFGS|Muon|Adafactor|NAdam|RAdam)$")
METRIC = {"accuracy", "hit", "hits", "recall", "precision", "ndcg", "mrr", "bleu", "cka",
          "ece", "auc", "auroc", "f1"}
MEASURES = set(json.loads(re.sub(r",\s*\]", "]", re.search(
    r"__all__ = (\[.*?\])", (ROOT / "alignkit/evaluation/__init__.py").read_text("utf-8"),
    re.S)[1])))


def trespasses(source: ast.Module) -> Iterator[str]:
    """Backward passes, optimisers and metrics that are written out in `source`."""
    for node in ast.walk(source):
        line = f"line {getattr(node, 'lineno', 0)}: "
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "backward":
                yield line + ".backward("
            if OPTIMISERS.search(node.func.attr):
                yield line + node.func.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if OPTIMISERS.search(node.func.id):
                yield line + node.func.id
        elif isinstance(node, ast.ImportFrom) and "torch.optim" in (node.module or ""):
            yield line + "torch.optim"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.optim":
            yield line + "torch.optim"
        elif isinstance(node, ast.FunctionDef):
            called = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            called |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
            if METRIC & set(node.name.lower().split("_")) and not called & MEASURES:
                yield line + f"metric {node.name}"


OF_A_PAPER = {f"{slug.replace('-', '_')}.py" for slug in slugs()}
# The bench holds the peers' loops, too: they are what it measures.
OUTSIDE = [p for p in FILES if part(p) not in ("parts", "training", "evaluation", "bench")]


@pytest.mark.parametrize("path", OUTSIDE, ids=short)
def test_loops_and_metrics_have_their_own_floors(path):
    found = list(trespasses(tree(path)))
    if part(path) == "course" and path.name in OF_A_PAPER:
        # Exercises: the right answer and the usual wrong ones are written by hand.
        found = [line for line in found if ": metric " not in line]
    assert not found


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_train_with_the_package(path):
    for cell in nbformat.read(path, as_version=4).cells:
        tags = set(cell.metadata.get("tags", []))
        assert tags <= set(TAGS), f"unknown tag in {path.name}: {tags - set(TAGS)}"
        if cell.cell_type == "code" and not tags & OWN:
            code = re.sub(r"(?m)^\s*[%!].*$", "", cell.source)
            assert not list(trespasses(ast.parse(code))), cell.source


def test_cells_with_loops_of_their_own_have_declared_tags():
    assert OWN <= set(TAGS), f"alignkit.course.notebook.TAGS lacks {sorted(OWN - set(TAGS))}"


@pytest.mark.parametrize("code, found", [
    ("loss.backward()", 1), ("from torch.optim import Adam", 1), ("x = AdamW(p)", 1),
    ("opt = torch.optim.SGD(p, lr=1)", 2), ("def recall_at(x):\n    return x.mean()", 1),
    ("def hits(a):\n    return evaluate_retrieval(a)", 0), ("x.backwards()", 0),
    ("def _top1_accuracy(x): ...", 1), ("history = fit(method, pairs, budget)", 0)])
def test_the_finder_of_loops_and_metrics(code, found):
    assert len(list(trespasses(ast.parse(code)))) == found


# No shared file names a paper ---------------------------------------------------------
SHARED = [p for p in FILES if not (p.parent.name in ("methods", "claims", "course",
                                                         "follow_ups")
                                   and p.name in OF_A_PAPER)]


def words_of(source: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, text) of identifiers, imported names and strings that are no docstrings."""
    prose = {id(node.value) for node in ast.walk(source) if isinstance(node, ast.Expr)}
    for node in ast.walk(source):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in prose:
                yield line, node.value
        for field in ("id", "attr", "name", "asname", "arg", "module"):
            if isinstance(value := getattr(node, field, None), str):
                yield line, value


def slugs_in(source: ast.Module, names: list[str]) -> list[str]:
    """Whole words of code that are a slug, as `a-b` or as `a_b`."""
    patterns = [rf"(?<![A-Za-z0-9]){re.escape(n).replace('-', '[-_]').replace(chr(92), '')}"
                r"(?![A-Za-z0-9])" for n in names]
    return [f"line {line}: {text!r}" for line, text in words_of(source)
            if any(re.search(p, text, re.I) for p in patterns)]


@pytest.mark.parametrize("path", SHARED, ids=short)
def test_no_shared_file_names_a_paper(path):
    assert not slugs_in(tree(path), slugs())


@pytest.mark.parametrize("code, found", [
    ('"""The structure of it."""\nx = 1', 0), ("def f():\n    'structure'", 0),
    ("x = 'structure'", 1), ("from alignkit.methods import structure", 1),
    ("from alignkit.methods.structure import Structure", 2), ("f(structure_loss=1)", 1),
    ("x = 'restructured'", 0), ("x = 'a shared space'", 0), ("x = 'shared-space'", 1),
    ("x.shared_space", 1), ("x = 'infrastructure'", 0)])
def test_the_finder_of_slugs(code, found):
    assert len(slugs_in(ast.parse(code), ["structure", "shared-space"])) == found


# Size and words -----------------------------------------------------------------------
@pytest.mark.parametrize("path", FILES + sorted((ROOT / "data_scripts").rglob("*.py")),
                         ids=short)
def test_files_and_functions_are_short_and_explained(path):
    source = tree(path)
    assert len(path.read_text("utf-8").splitlines()) <= LONGEST_FILE
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    long = [n.name for n in ast.walk(source) if isinstance(n, kinds)
            and not isinstance(n, ast.ClassDef)
            and n.end_lineno - n.lineno + 1 > LONGEST_FUNCTION + doc_lines(n)]
    assert not long, f"more than {LONGEST_FUNCTION} lines: {long}"
    bare = [n.name for n in source.body if isinstance(n, kinds)
            and not n.name.startswith("_") and not ast.get_docstring(n)
            and n.end_lineno - n.lineno > 3]  # a line that says what it does needs none
    assert "data_scripts" in path.parts or not bare, f"no docstring: {bare}"
    assert not source.body or ast.get_docstring(source), "the file has no docstring"


def doc_lines(node) -> int:
    first = node.body[0]
    return first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0


# Written so that this file does not contain what it looks for.
FORBIDDEN = re.compile("|".join([
    r"(?<![\w.$}])/(?:wor[k]|roo[t])/", r"(?<![\w.$}])/tm[p]/\w", r"(?<![\w.$}])/hom[e]/\w",
    r"/User[s]/\w", r"[A-Z]:\\User[s]", r"pythonhoste[d]\.org", r"artifactor[y]",
    r"--(?:extra-)?index-ur[l] ", r"pyp[i]\.org", r"registr[y]\.\w+\.\w+"]))


def test_no_path_of_a_machine_and_no_registry():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT,
                            capture_output=True, text=True, check=True).stdout.split("\n")
    found, looked_at = [], 0
    for name in filter(None, listed):
        try:
            lines = (ROOT / name).read_text("utf-8").splitlines()
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # a picture, or deleted in the work tree
        looked_at += 1
        found += [f"{name}:{i}: {match[0]}" for i, line in enumerate(lines, 1)
                  if (match := FORBIDDEN.search(line))]
    assert looked_at > 60 and not found, "\n".join(found)


@pytest.mark.parametrize("text, bad", [
    ("see /wor" "k/main", True), ("at /tm" "p/x", True), ("https://pyp" "i.org/simple", True),
    ("C:\\User" "s\\me", True), ("data/work/x", False), ("homework/", False),
    ("https://github.com/home/x", False), ("pip install alignkit", False)])
def test_the_finder_of_paths(text, bad):
    assert bool(FORBIDDEN.search(text)) is bad
