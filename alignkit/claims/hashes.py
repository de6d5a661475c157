"""Hashes of the code that a result comes from: whether it is stale, and whether kept work may
be gone on with."""

import ast
import hashlib
import io
import re
import tokenize
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def files_of(name: str) -> list[Path]:
    """The claims file of a paper; of SLUG.follow-up that and the follow-up's own."""
    slug, _, kind = name.partition(".")
    folders = ("claims", "claims/follow_ups") if kind else ("claims",)
    return [PACKAGE / folder / f"{slug.replace('-', '_')}.py" for folder in folders]


def code_hash(name: str, tiny: bool = False) -> str:
    """sha256 over the code of the paper's method and claim files, and of the methods of
    other papers that its claims compare: a result of other code is stale. Words may be
    mended: docstrings, comments and empty lines do not count; nor does the scale 'tiny',
    which no published result is of (with `tiny` it does). name: a paper's, or
    SLUG.follow-up: then of its own file too, which the paper's other results do not know."""
    sha, claims = hashlib.sha256(), [path for path in files_of(name) if path.is_file()]
    method = PACKAGE / "methods" / files_of(name)[0].name
    compared = [other for path in claims for other in re.findall(
        r"(?m)^from alignkit\.methods\.(\w+) import", path.read_text("utf-8"))]
    others = sorted({f"{other}.py" for other in compared} - {method.name})
    for path in (method, *claims, *(PACKAGE / "methods" / other for other in others)):
        if path.is_file():
            sha.update(_code(path.read_text("utf-8"), tiny).encode())
    return sha.hexdigest()


@lru_cache(maxsize=256)  # a paper's results ask for the same files one after another
def _code(source: str, tiny: bool = True) -> str:
    """Python source without docstrings, comments, empty lines and trailing spaces, and,
    each where it has lines of its own, without a claim's `subtracts`, words for readers,
    and, unless `tiny`, without the scale of that name."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == "subtracts":
            _blank(lines, "subtracts=", node.value)
        if (not tiny and isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
                and ast.unparse(node.targets[0]) == "SCALES"):
            for scale in node.value.values:
                _blank(lines, '"tiny": ', scale)
        if (isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and ast.get_docstring(node, clean=False) is not None):
            text = node.body[0]
            lines[text.lineno - 1:text.end_lineno] = [""] * (
                text.end_lineno - text.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _blank(lines: list[str], begins: str, value: ast.expr) -> None:
    """Empty the lines of `value` if they begin so and hold nothing else."""
    first, last = value.lineno - 1, value.end_lineno
    after = lines[last - 1].encode()[value.end_col_offset:].strip()
    if lines[first].lstrip().startswith(begins) and after == b",":
        lines[first:last] = [""] * (last - first)


def values_hash(name: str) -> str:
    """sha256 over all code that decides a paper's figures, or those of SLUG.follow-up: its
    claims file, the runner, and whatever they import, words apart. Kept work of other code
    is not gone on with."""
    sha = hashlib.sha256()
    for path in sorted(_imported([files_of(name)[-1], PACKAGE / "claims/work.py"])):
        sha.update(f"{path.relative_to(PACKAGE)}\n{_code(path.read_text('utf-8'))}".encode())
    return sha.hexdigest()


def _imported(paths: list[Path]) -> set[Path]:
    """The files of the package that these import, directly or not, and they themselves."""
    found, left = set(), list(paths)
    while left:
        path = left.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            for name in _modules(node, path):
                file = PACKAGE.joinpath(*name.split(".")[1:])
                left += [f for f in (file.with_suffix(".py"), file / "__init__.py")
                         if f.is_file()]
    return found


def _modules(node: ast.AST, path: Path) -> list[str]:
    """The package's modules that an import statement may mean."""
    if isinstance(node, ast.Import):
        return [a.name for a in node.names if a.name.startswith("alignkit.")]
    if not isinstance(node, ast.ImportFrom):
        return []
    module = node.module or ""
    if node.level:
        here = ("alignkit", *path.relative_to(PACKAGE).parts[:-1])
        module = ".".join([*here[:len(here) - node.level + 1], *filter(None, [module])])
    if module.split(".")[0] != "alignkit":
        return []
    return [module, *(f"{module}.{a.name}" for a in node.names)]
