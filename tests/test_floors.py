"""Imports go down the floors, in no circle, and cost nothing; the finder of imports is
itself tried on code that breaks the law."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "alignkit").rglob("*.py"))
NAMES = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES}
MODULES = {name.removesuffix(".__init__"): path for path, name in NAMES.items()}
FLOORS = {"data": 0, "versions": 0, "encoders": 1, "parts": 2, "training": 3,
          "evaluation": 3, "stats": 3, "methods": 4, "claims": 5, "course": 6, "bench": 6,
          "cli": 7, "alignkit": 7, "__main__": 8}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def part(module: str) -> str:
    """The folder or file under alignkit that a module belongs to."""
    return (module.split(".") + ["alignkit"])[1] if "." in module else "alignkit"


# Imports ------------------------------------------------------------------------------
def imported(source: ast.Module, module: str, is_package: bool) -> Iterator[tuple[str, int]]:
    """(module of alignkit, line) of every import, those inside functions too."""
    for node in ast.walk(source):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = module.split(".")
                up = up[: len(up) - node.level + is_package]
                base = ".".join([*up, *([node.module] if node.module else [])])
            below = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else base for name in below]
        elif (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module")
              and node.args and isinstance(node.args[0], ast.Constant)):
            names = [node.args[0].value]
        yield from ((name, node.lineno) for name in names
                    if name.split(".")[0] == "alignkit")


def edges(path: Path) -> list[tuple[str, int]]:
    module = NAMES[path].removesuffix(".__init__")
    return list(imported(tree(path), module, path.name == "__init__.py"))


def climbs(module: str, target: str) -> bool:
    """Is an import of `target` in `module` against the floors?"""
    here, there = part(module), part(target)
    if here == there:
        return False
    if FLOORS[here] == FLOORS[there] == 3:
        return there != "stats"
    return FLOORS[there] >= FLOORS[here]


def test_every_part_has_a_floor():
    assert {part(module) for module in MODULES} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=short)
def test_imports_go_down_the_floors(path):
    module = NAMES[path].removesuffix(".__init__")
    wrong = [f"line {line}: {target}" for target, line in edges(path) if climbs(module, target)]
    assert not wrong, f"{short(path)} imports from its own floor or above: {wrong}"


@pytest.mark.parametrize("module, line, against", [
    ("alignkit.data.pairs", "from alignkit.encoders import load", True),
    ("alignkit.data.pairs", "from .columns import take", False),
    ("alignkit.data.pairs", "def f():\n    import alignkit.course.plots", True),
    ("alignkit.training.loop", "from alignkit.evaluation import ranks", True),
    ("alignkit.training.loop", "from alignkit import stats", False),
    ("alignkit.stats", "from alignkit.training import fit", True),
    ("alignkit.claims.runner", "from alignkit.stats import verdict", False),
    ("alignkit.course.plots", "from .. import versions", False),
    ("alignkit.course.plots", "from .. import cli", True),
    ("alignkit.course.plots", "from ..cli import main", True),
    ("alignkit.parts.method", "import alignkit", True),
    ("alignkit.parts.method", "from importlib import import_module\n"
                              "import_module('alignkit.claims')", True),
])
def test_the_finder_of_imports(module, line, against):
    found = [climbs(module, target) for target, _ in imported(ast.parse(line), module, False)]
    assert found == [against]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of imports, [] if there is none."""
    done: set[str] = set()

    def walk(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node):], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if found := walk(target, [*way, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


def test_no_circle_of_imports():
    graph = {NAMES[p].removesuffix(".__init__"): {t for t, _ in edges(p)} for p in FILES}
    assert sum(map(len, graph.values())) > 100
    assert not circle(graph), " → ".join(circle(graph))
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


# Cost of an import --------------------------------------------------------------------
HEAVY = ("timm", "transformers", "accelerate", "matplotlib", "torchvision", "torchaudio")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=True, cwd=ROOT).stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("modules", ["alignkit", "alignkit.data, alignkit.parts",
                                     "alignkit.training, alignkit.claims, alignkit.cli"])
def test_imports_load_nothing_heavy(modules):
    loaded = python(f"import sys, {modules}; print(*sys.modules)").split()
    assert "alignkit" in loaded and not set(HEAVY) & set(loaded)


@pytest.mark.slow
def test_importing_alignkit_costs_nothing_beside_torch():
    timed = ("import time, torch; start = time.perf_counter(); import alignkit; "
             "print(time.perf_counter() - start)")
    assert min(float(python(timed)) for _ in range(3)) < 0.5


def test_public_names_are_there():
    import alignkit
    assert all(getattr(alignkit, name) is not None for name in alignkit.__all__)
    assert set(dir(alignkit)) == set(alignkit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        alignkit.nothing
