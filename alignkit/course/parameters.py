"""Are a notebook's parameters of the kind that its own values are?

`papermill -p seeds "[1]"` hands over a text; a loop over it would run, over "[" first.
"""

import ast
from collections.abc import Iterator

INJECTED = "# Parameters"  # how papermill's own cell begins


def check_parameters(shell) -> None:
    """Compare what papermill put in with the literals of the parameters cell before it.

    Args:
        shell: the running IPython shell, or None in plain Python.

    Raises:
        TypeError: a value of another kind; the message names the parameter, what came
            and what is wanted.
    """
    for name, wanted, found in _injected(shell):
        if not _fits(wanted, found):
            how = ""
            if isinstance(found, str) and isinstance(wanted, list | tuple | dict):
                how = (f". papermill's -p hands over a text: write -y "
                       f"\"{name}: {found or wanted}\"")
            raise TypeError(f"parameter {name} must be {_words(wanted)}, such as "
                            f"{wanted!r}; got {found!r}{how}")


def _injected(shell) -> Iterator[tuple[str, object, object]]:
    """(name, the notebook's value, papermill's) of each parameter that it put in."""
    cells = shell.user_ns.get("In", []) if shell else []
    for own, other in zip(cells, cells[1:]):
        if other.startswith(INJECTED):
            known = _literals(own)
            yield from ((name, known[name], value)
                        for name, value in _literals(other).items() if name in known)
            return


def _literals(source: str) -> dict[str, object]:
    found = {}
    try:
        lines = ast.parse(source).body
    except SyntaxError:  # a cell with a magic
        return {}
    for line in lines:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            try:
                found[line.targets[0].id] = ast.literal_eval(line.value)
            except ValueError:  # no literal: papermill writes some floats as calls
                continue
    return found


def _fits(wanted, found) -> bool:
    if wanted is None:
        return True
    if isinstance(wanted, list | tuple):
        return isinstance(found, list | tuple) and all(
            _fits(wanted[0], one) for one in found if wanted)
    if isinstance(wanted, bool) or isinstance(found, bool):
        return isinstance(wanted, bool) and isinstance(found, bool)
    return isinstance(found, (int, float) if isinstance(wanted, float) else type(wanted))


def _words(wanted) -> str:
    """A kind of value in words."""
    kinds = {bool: "True or False", int: "a whole number", float: "a number",
             str: "a text", dict: "a dictionary"}
    if not isinstance(wanted, list | tuple):
        return kinds.get(type(wanted), type(wanted).__name__)
    inner = {int: " of whole numbers", float: " of numbers", str: " of texts"}
    return "a list" + (inner.get(type(wanted[0]), "") if wanted else "")
