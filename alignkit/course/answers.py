"""What a student's notebook answers to an exercise, and the code that the answer needs.

A notebook is read as it comes: cells without type, source or tags are no fault. Lines for
IPython (`!pip …`, `%matplotlib`, `x?`) are turned into Python by IPython itself. What an
answer is, and which definitions of the cells above it uses, is read off the syntax tree;
a cell that cannot be parsed holds no definition, as it could not have been run.
"""

import ast
import io
import json
import symtable
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
SHOW = ("print", "display", "exercises", "plots", "get_ipython")  # change nothing
SURE = (*FUNCTIONS, ast.Assign, ast.AnnAssign, ast.Import, ast.ImportFrom)
# Cell magics around what is no Python of this kernel; all others are taken for timers and
# the like, whose cell is Python.
ELSEWHERE = ("!", "bash", "cmd", "cython", "file", "html", "HTML", "javascript", "js",
             "latex", "markdown", "perl", "pypy", "python", "python2", "python3", "R",
             "ruby", "script", "sh", "sql", "svg", "SVG", "sx", "system", "writefile")
BROKEN = (SyntaxError, ValueError, RecursionError, MemoryError)  # what parsers raise


class Notebook(NamedTuple):
    """A student's file: the text of its first cell, its code without solutions, and what
    stands in cells that do not run."""

    card: str
    code: list[str]
    still: list[str]


class Answer(NamedTuple):
    """The statements that define a function, or the problem with its cell."""

    statements: list[str]
    problem: str = ""


class Statement(NamedTuple):
    """A statement of the notebook, and the names that it has to do with."""

    source: str
    defines: set[str]  # by def or class, with something in it
    binds: set[str]  # gives a value to, definitions included
    changes: set[str]  # x[i] = …, x.a = …
    calls: set[str]  # x.append(…) and f(x), standing alone; @x.register
    reads: set[str]
    later: set[str]  # read when a function of it is called
    sure: bool  # it binds in any case: not within an `if`, `for`, `try` …
    imports: bool


def read(path: Path) -> Notebook:
    """A notebook's cells.

    Raises:
        ValueError: not a notebook.
        OSError: there is no such file, or it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: not a file that can be read")
    try:
        found = json.loads(path.read_bytes())
        if "cells" not in found:  # as notebooks were until 2015
            import nbformat

            found = nbformat.read(path, as_version=4)
        cells = [cell for cell in found["cells"] if isinstance(cell, dict)]
    except OSError:
        raise
    except Exception as error:  # there are many ways of not being a notebook
        why = str(error).partition("\n")[0][:80]
        raise ValueError(
            f"{path}: not a notebook ({type(error).__name__}: {why})") from None
    mine = [cell for cell in cells if "solution" not in _tags(cell)]
    code, still = ([_source(cell) for cell in mine
                    if (cell.get("cell_type") in ("code", None)) == runs]
                   for runs in (True, False))
    return Notebook(_source(cells[0]) if cells else "", code, still)


def _source(cell: dict) -> str:
    given = cell.get("source")
    lines = [given] if isinstance(given, str) else given
    lines = lines if isinstance(lines, list) else []
    return "".join(line for line in lines if isinstance(line, str))


def _tags(cell: dict) -> list:
    metadata = cell.get("metadata")
    tags = metadata.get("tags") if isinstance(metadata, dict) else None
    return tags if isinstance(tags, list) else []


# Cells as statements -------------------------------------------------------------------
def parsed(source: str) -> list[Statement]:
    """The statements of a cell. Raises one of BROKEN for what is no Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the student's "\\d", not ours
        return [_statement(node) for node in _nodes(source)]


def _nodes(source: str) -> list[ast.stmt]:
    from IPython.core.inputtransformer2 import TransformerManager

    nodes = ast.parse(TransformerManager().transform_cell(source)).body
    match nodes:
        case [ast.Expr(ast.Call(
                ast.Attribute(attr="run_cell_magic"),
                [ast.Constant(magic), _, ast.Constant(body)]))]:
            return [] if magic in ELSEWHERE else _nodes(body)
    return nodes


def _statement(node: ast.stmt) -> Statement:
    source = ast.unparse(node)
    table = symtable.symtable(source, "cell", "exec")
    symbols = table.get_symbols()
    later = set(_later(table))
    top = list(_top(node))
    return Statement(
        source,
        defines={x.name for x in top if isinstance(x, FUNCTIONS) and not _empty(x)},
        binds={s.get_name() for s in symbols if s.is_assigned() or s.is_imported()},
        changes={_base(x) for x in top if isinstance(x, (ast.Subscript, ast.Attribute))
                 and not isinstance(x.ctx, ast.Load)} - {""},
        calls={name for x in top for name in _called(x)} - {""},
        reads={s.get_name() for s in symbols if s.is_referenced()} | later,
        later=later,
        sure=isinstance(node, SURE),
        imports=isinstance(node, (ast.Import, ast.ImportFrom)))


def _later(table: symtable.SymbolTable) -> Iterator[str]:
    """Global names that are read inside a statement's functions and classes."""
    for inner in table.get_children():
        yield from (s.get_name() for s in inner.get_symbols() if s.is_global())
        yield from _later(inner)


def _top(node: ast.AST) -> Iterator[ast.AST]:
    """The node and what is in it, but not what is inside functions and classes."""
    yield node
    if not isinstance(node, (*FUNCTIONS, ast.Lambda)):
        for inner in ast.iter_child_nodes(node):
            yield from _top(inner)


def _called(node: ast.AST) -> Iterator[str]:
    """Names that a call may change that stands alone, or a decorator that is a method."""
    match node:
        case ast.Expr(ast.Call(func, given, named)) if _base(func) not in SHOW:
            yield from map(_base, [*given, *(k.value for k in named)])
            if isinstance(func, ast.Attribute):
                yield _base(func)
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            for made in node.decorator_list:
                made = made.func if isinstance(made, ast.Call) else made
                if isinstance(made, ast.Attribute):
                    yield _base(made)


def _empty(node: ast.stmt) -> bool:
    """A stub: nothing but a text, `...`, `pass` or `raise NotImplementedError`."""
    def nothing(x: ast.stmt) -> bool:
        match x:
            case ast.Pass() | ast.Expr(ast.Constant()):
                return True
            case ast.Raise(ast.Name("NotImplementedError") | ast.Call(
                    ast.Name("NotImplementedError"))):
                return True
        return False

    return not isinstance(node, ast.ClassDef) and all(map(nothing, node.body))


def _base(node: ast.expr) -> str:
    """The x of x.a[i].b; "" where it is no name."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


# Answers -------------------------------------------------------------------------------
def answer(name: str, code: list[str]) -> Answer | None:
    """The last cell that defines an exercise's function, with what it uses of the cells
    above; one that assigns the name or has a stub if none defines it; else None. So a stub
    that was left below an answer takes nothing away."""
    cells, broken = [], None
    for source in code:
        try:
            cells.append(parsed(source))
        except BROKEN as error:
            cells.append([])
            if begins(name, source):
                broken = error
    for kind in ("defines", "binds"):
        places = [i for i, cell in enumerate(cells)
                  if any(name in getattr(s, kind) for s in cell)]
        if places:
            above = [s for cell in cells[: places[-1] + 1] for s in cell]
            return Answer(needed(name, above))
    if broken:
        return Answer([], f"{type(broken).__name__}: {broken}")
    return None


def needed(name: str, statements: list[Statement]) -> list[str]:
    """Sources of the statements that a name needs, in their order.

    From the end backwards: a statement is kept if it gives a value to a name that is
    wanted below it. A function may read names that get their value below it.
    """
    modules = set().union(*(s.binds for s in statements if s.imports))
    late = {name}
    while True:
        wanted, kept, more = set(late), [], set()
        for s in reversed(statements):
            gives = s.binds | s.changes | s.calls - modules
            if wanted & gives or s.source.endswith("import *"):
                kept.append(s)
                wanted = wanted - s.binds if s.sure else wanted
                wanted |= s.reads
                more |= s.later
        if more <= late:
            return [s.source for s in reversed(kept)]
        late |= more


def begins(name: str, source: str) -> bool:
    """Whether a cell that cannot be parsed, or does not run, has a line that begins
    `def name`."""
    last = ("", 1)
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if last == ("def", 0) and token.string == name:
                return True
            last = (token.string, token.start[1])
    except (*BROKEN, tokenize.TokenError):
        pass
    return False
