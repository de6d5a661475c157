"""What a single cell of a notebook must be like: source, tags and kept outputs.

Each function gives sentences that say what to change; an empty list is a pass.
"""

import ast
import builtins
import re

from nbformat import NotebookNode

from .notebook import TAGS, tags_of

FLOAT = re.compile(r"\d\.\d|\d[eE][-+]\d|\b(?:nan|inf)\b")
ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")
MAX_COLUMNS, MAX_BY_HAND = 78, 15


def code_lines(source: str, imports: bool = True) -> int:
    """Lines that are neither empty nor a comment; without imports if asked."""
    lines = [line.strip() for line in source.split("\n")]
    if not imports:
        nodes = [n for n in ast.parse(source).body if isinstance(n, ast.Import | ast.ImportFrom)]
        taken = {i for n in nodes for i in range(n.lineno - 1, n.end_lineno)}
        lines = [line for i, line in enumerate(lines) if i not in taken]
    return sum(1 for line in lines if line and not line.startswith("#"))


def literals(source: str) -> list[str]:
    """The parameters cell: `name = literal` alone."""
    problems = []
    for statement in ast.parse(source).body:
        targets = getattr(statement, "targets", [getattr(statement, "target", None)])
        try:
            ast.literal_eval(statement.value)
            plain = all(isinstance(target, ast.Name) for target in targets)
        except (AttributeError, ValueError):
            plain = False
        if not plain or isinstance(statement, ast.AugAssign):
            problems.append(
                f"parameters cell: `{ast.unparse(statement)}` is not name = literal; "
                f"a value derived here would ignore papermill's parameters"
            )
    return problems


def borrowed(source: str) -> list[str]:
    """Names that a cell takes from other cells."""
    given, used = set(dir(builtins)), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            (used.append if isinstance(node.ctx, ast.Load) else given.add)(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            given |= {(a.asname or a.name).split(".")[0] for a in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            given.add(node.name)
        elif isinstance(node, ast.arg):
            given.add(node.arg)
    return sorted(set(used) - given)


def source_problems(cell: NotebookNode) -> list[str]:
    """Tags, width, length of what is built by hand, plain Python."""
    problems = [f"unknown tag {tag!r}; there are {', '.join(TAGS)}"
                for tag in tags_of(cell) if tag not in TAGS]
    problems += [f"a line of {len(line)} columns, at most {MAX_COLUMNS}: {line.strip()[:40]} …"
                 for line in cell.source.split("\n") if len(line) > MAX_COLUMNS]
    lines = sum(1 for line in cell.source.split("\n") if line.strip())
    if "by-hand" in tags_of(cell) and lines > MAX_BY_HAND:
        problems.append(f"by-hand cell of {lines} lines, at most {MAX_BY_HAND}: make two")
    try:
        ast.parse(cell.source)
    except SyntaxError:
        problems.append("is not plain Python (no % or ! commands)")
    return problems


def output_problems(cell: NotebookNode) -> list[str]:
    """What nbval would trip over, and what a reader could not see."""
    problems = []
    compared = "nbval-ignore-output" not in tags_of(cell)
    for output in cell.outputs:
        kind = output.output_type
        if kind == "error":
            problems.append(f"an error is kept: {output.ename}")
        if output.get("name") == "stderr":
            problems.append(f"stderr is kept: {output.text.strip()[:60]!r}")
        data = output.get("data", {})
        text = output.get("text", "") + str(data.get("text/plain", ""))
        if ADDRESS.search(text):
            problems.append(f"an object address is kept: {text.strip()[:60]!r}")
        if compared and FLOAT.search(text):
            problems.append(
                f"prints a measured number, {FLOAT.search(text)[0]!r}: tag the cell "
                f"nbval-ignore-output and assert the number against an interval"
            )
        for mime in data:
            problems += _mime(mime, output, compared)
    return problems


def _mime(mime: str, output: NotebookNode, compared: bool) -> list[str]:
    if mime == "image/png":
        alt = output.metadata.get("image/png", {}).get("alt", "")
        return [] if alt.strip() else ["a figure without alt text: use plots.show"]
    if "widget" in mime:
        return ["a widget view is kept: execute it with alignkit notebook"]
    if mime.startswith(("image/", "audio/", "video/")):
        return [f"{mime} is kept: figures are PNG, by plots.show"]
    if compared and mime == "text/html":
        return ["html in a cell that nbval compares: print text instead"]
    return []
