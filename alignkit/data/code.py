"""What is known of a piece of code: the names that it looks up, those that it changes
itself, and whether it is a library's."""

import builtins
import dis
import os
import sys
import sysconfig
import types
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.machinery import PathFinder
from importlib.util import resolve_name
from itertools import pairwise

LIBRARIES = tuple(os.path.realpath(sysconfig.get_path(name)) + os.sep
                  for name in ("stdlib", "platstdlib", "purelib", "platlib"))
# Names of what may give something else tomorrow, whatever the code: the environment,
# addresses and data bases.
ELSEWHERE = {"environ", "environb", "getenv", "urlopen", "urlretrieve", "requests", "httpx",
             "aiohttp", "urllib3", "fsspec", "s3fs", "gcsfs", "boto3", "huggingface_hub",
             "sqlite3", "psycopg", "psycopg2", "pymysql", "pymongo", "redis", "sqlalchemy",
             "duckdb"}


def is_python(kind: type) -> bool:
    """Is the class written in Python, so that nothing of its objects lies in C?"""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    # Python's own objects hold no more than their slots, `__dict__` and weak references;
    # sqlite3's are of C though their module is a Python file.
    own = [*slots(kind), *({"__dict__", "__weakref__"} & vars(kind).keys())]
    is_small = kind.__basicsize__ - kind.__base__.__basicsize__ <= 8 * len(own)
    return is_small and (kind.__module__ == "__main__" or file.endswith(".py"))


def slots(kind: type) -> Sequence[str]:
    """The attributes that a class keeps outside its objects' `__dict__`."""
    found = vars(kind).get("__slots__", ())
    found = (found,) if isinstance(found, str) else tuple(found)
    return [name for name in found if name not in ("__dict__", "__weakref__")]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code and those within it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _codes(inner)


def names(code: types.CodeType) -> set[str]:
    """Names that a code and those within it look up."""
    return {name for inner in _codes(code) for name in inner.co_names}


def changed_by(code: types.CodeType) -> set[str]:
    """Variables outside it that a code sets itself, or only adds to: counters, logs."""
    sets, adds, uses = set(), set(), set()
    for inner in _codes(code):
        for step, after in pairwise([*dis.get_instructions(inner), None]):
            if step.opname == "STORE_GLOBAL" or (
                    step.opname == "STORE_DEREF" and step.argval in inner.co_freevars):
                sets.add(step.argval)
            elif step.opname in ("LOAD_DEREF", "LOAD_GLOBAL", "LOAD_NAME"):
                adding = after and after.opname in ("LOAD_METHOD", "LOAD_ATTR") and (
                    after.argval in ("append", "extend", "add"))
                (adds if adding else uses).add(step.argval)
    return sets | adds - uses


def attributes_set_by(code: types.CodeType) -> set[str]:
    """Names of attributes that a code sets."""
    return {step.argval for inner in _codes(code) for step in dis.get_instructions(inner)
            if step.opname == "STORE_ATTR"}


def imported_by(code: types.CodeType, package: str | None) -> set[str]:
    """Names of the modules that a code of `package` imports when it runs."""
    found = set()
    for inner in _codes(code):
        steps = list(dis.get_instructions(inner))
        for level, names_, step in zip(steps, steps[1:], steps[2:], strict=False):
            if step.opname == "IMPORT_NAME":
                with suppress(ImportError):  # of more dots than there are packages
                    base = resolve_name("." * level.argval + step.argval, package)
                    found |= {base, *(f"{base}.{name}" for name in names_.argval or ())}
    return found


def file_of(module: str) -> str | None:
    """The Python file of a module that is no library's; it is not imported for that."""
    if module in sys.modules:
        file = getattr(sys.modules[module], "__file__", None)
    else:
        above, _, _ = module.rpartition(".")
        places = None
        if above:
            if (at := file_of(above)) is None or not at.endswith("__init__.py"):
                return None
            places = [os.path.dirname(at)]
        file = getattr(PathFinder.find_spec(module, places), "origin", None)
    is_own = file and file.endswith(".py") and not os.path.realpath(file).startswith(LIBRARIES)
    return file if is_own and module.partition(".")[0] != "alignkit" else None


def is_library(x) -> bool:
    """Is it of Python or of an installed package, so that its version tells it?"""
    name = x.__name__ if isinstance(x, types.ModuleType) else x.__module__
    if name == "__main__":  # a script or a notebook
        return False
    if name == builtins.__name__ or name in sys.builtin_module_names:
        return True
    module = sys.modules.get(name or "")
    file = getattr(module, "__file__", None)
    if file is None:
        return getattr(getattr(module, "__spec__", None), "origin", "") in (
            "built-in", "frozen")
    return (name or "").partition(".")[0] != "alignkit" and os.path.realpath(
        file).startswith(LIBRARIES)
