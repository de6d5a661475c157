"""A student's process: runs one answer on given arguments and sends back plain values.

Run by path (`python worker.py`), never imported as part of the package: it imports
nothing of alignkit, and what a student's code imports of it is a stand-in. It knows
neither the right answer nor how answers are compared; all that leaves it is the JSON
of `pack`. What it enforces, by an audit hook that Python code cannot take off: no file
of the package is opened, and no other process is started.

The notebook's own `.check` uses `attempt`, too, so that both see the same values.
"""

import __future__
import base64
import importlib.abc
import importlib.machinery
import json
import linecache
import os
import sys
import traceback
import types
from collections.abc import Callable

import numpy as np
import torch

FLAGS = __future__.annotations.compiler_flag  # hints are not evaluated
LONGEST = 2_000  # characters of a text that is sent
LARGEST = 2**22  # bytes of a tensor that are sent; of a larger one only its shape
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64,
                  torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8,
                  torch.bool, torch.complex64, torch.complex128)
}
POLICY = (
    "an answer may use Python, torch, numpy, scipy and what you wrote in cells above "
    "it, and of alignkit only "
)


class Other:
    """Stands for a value that is not sent: only the name of its type is."""

    def __init__(self, name: str):
        self.name = name


# Plain values: what goes through the channel, in both directions -----------------------
def pack(value: object) -> object:
    """Tensors, numbers, texts, None, and tuples, lists and dicts of them, as JSON; of
    anything else the name of its type."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is Ellipsis:
        return None
    if isinstance(value, str):
        return str(value)[:LONGEST]
    if isinstance(value, float) or isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        return {"tensor": _pack_tensor(value)}
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [pack(x) for x in value]}
    if isinstance(value, dict):
        return {"dict": [[pack(x), pack(y)] for x, y in value.items()]}
    return {"other": type(value).__name__[:LONGEST]}


def _pack_tensor(x: torch.Tensor) -> list:
    """[dtype, shape, bytes]; None for the bytes of a very large one."""
    name = str(x.dtype).removeprefix("torch.")
    x = x.detach().cpu().resolve_conj().resolve_neg()
    if x.numel() * x.element_size() > LARGEST:
        return [name, list(x.shape), None]
    flat = x.contiguous().reshape(-1).view(torch.uint8)
    return [name, list(x.shape), base64.b64encode(flat.numpy().tobytes()).decode()]


def unpack(packed: object) -> object:
    """The value again. Raises ValueError, TypeError, KeyError or RuntimeError for what
    `pack` cannot have made."""
    if not isinstance(packed, dict):
        return packed
    ((kind, given),) = packed.items()
    if kind == "tensor":
        return _unpack_tensor(*given)
    if kind in ("tuple", "list"):
        return (tuple if kind == "tuple" else list)(unpack(x) for x in given)
    if kind == "dict":
        return {unpack(x): unpack(y) for x, y in given}
    if kind == "other":
        return Other(str(given))
    raise ValueError(f"no kind of value: {kind[:20]!r}")


def _unpack_tensor(name: str, shape: list[int], text: str | None) -> torch.Tensor:
    dtype = DTYPES[name]
    if text is None:
        return torch.zeros((), dtype=dtype).expand(shape)
    data = bytearray(base64.b64decode(text))
    if not data:
        return torch.zeros(0, dtype=dtype).reshape(shape)
    return torch.frombuffer(data, dtype=dtype).reshape(shape)


def attempt(function: Callable, case: tuple) -> dict:
    """What a function makes of the arguments of one case: {"value", "after"}, with the
    arguments as they are afterwards, or {"error": [type, text, line]}, all packed."""
    given = unpack(pack(case))  # copies
    try:
        value = function(*given)
    except NotImplementedError:
        value = None
    except Exception as error:
        file = getattr(getattr(function, "__code__", None), "co_filename", None)
        return {"error": _told(error, file)}
    try:
        return {"value": pack(value), "after": pack(given)}
    except Exception:  # a class of the student's own that does not behave
        return {"value": {"other": type(value).__name__[:LONGEST]}, "after": pack(case)}


def _told(error: BaseException, file: str | None = None) -> list[str]:
    """Type, text, and the last line of that file that was running."""
    try:
        text = str(error)[:LONGEST]
    except Exception:
        text = ""
    lines = [frame.line or "" for frame in traceback.extract_tb(error.__traceback__)
             if frame.filename == file]
    return [type(error).__name__[:LONGEST], text, lines[-1][:LONGEST] if lines else ""]


# The process --------------------------------------------------------------------------
class NotAllowed(PermissionError):
    """An answer uses what it may not; libraries know this error and go on without."""


class StandIn(types.ModuleType):
    """For every module, class and function of alignkit: may be imported, not used."""

    __path__: list = []

    def __init__(self, name: str, allowed: dict[str, Callable]):
        super().__init__(name)
        self.__allowed = allowed

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in self.__allowed:
            return self.__allowed[name]
        return StandIn(f"{self.__name__}.{name}", self.__allowed)

    def __call__(self, *_, **__):
        allowed = ", ".join(sorted(self.__allowed)) or "nothing"
        raise NotAllowed(f"it calls {self.__name__}; {POLICY}{allowed}")


class Shell:
    """For get_ipython() in an answer: its lines for IPython do nothing."""

    def __getattr__(self, name: str) -> Callable:
        return lambda *_, **__: None


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives stand-ins for alignkit, whatever is installed."""

    def __init__(self, allowed: dict[str, Callable]):
        self.allowed = allowed

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "alignkit":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return StandIn(spec.name, self.allowed)

    def exec_module(self, module):
        pass


def _guard(package: str) -> None:
    """No file of the package is opened, and no process started, from now on."""
    starts = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn",
              "os.fork", "os.startfile", "pty.")

    def watch(event: str, given: tuple) -> None:
        if event.startswith(starts):
            raise NotAllowed("it starts another process; an answer runs in its own")
        if event == "open" or event.startswith(("os.", "shutil.")):
            for path in given:
                if isinstance(path, (str, bytes)) and inside(path):
                    raise NotAllowed("it opens a file of the package")

    def inside(path: str | bytes) -> bool:
        return (real(decode(path)) + separator).startswith(package)

    # Held here: a patch of the module `os` changes nothing.
    real, decode, separator = os.path.realpath, os.fsdecode, os.sep
    package = real(package) + separator
    sys.addaudithook(watch)


def _run(statements: list[str], space: dict) -> list[str]:
    """Each statement by itself. One that stops need not matter, since more may have been
    taken from the cells above than is used: gives what was said."""
    said = []
    for number, source in enumerate(statements):
        file = f"<answer {number}>"
        linecache.cache[file] = (len(source), None, source.splitlines(True), file)
        try:
            exec(compile(source, file, "exec", FLAGS), space)
        except Exception as error:
            kind, text, _ = _told(error)
            said.append(f"{kind}: {text}")
    return said


def _work(job: dict) -> dict:
    """{"outcomes": one a case, "said": …}, or {"missing": true, "said": …}"""
    space = {"__name__": "__main__", "display": lambda *_, **__: None,
             "get_ipython": Shell}  # names that a notebook has without an import
    allowed = {}
    for name, source in job["allowed"].items():
        own = {}
        _run(source, own)
        allowed[name] = own[name]
    sys.meta_path.insert(0, Finder(allowed))
    sys.path.insert(0, "")  # the notebook's folder, as in Jupyter
    _guard(job["package"])
    cases = unpack(job["cases"])
    said = _run(job["statements"], space)
    function = space.get(job["name"])
    if not callable(function):
        return {"missing": True, "said": said}
    return {"outcomes": [attempt(function, case) for case in cases], "said": said}


def main() -> None:
    """Say that it is ready, read a job from standard input, answer, and end."""
    channel = os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    channel.write(b".")
    channel.flush()
    job = json.loads(sys.stdin.buffer.read())
    channel.write(json.dumps(_work(job)).encode())
    channel.flush()
    os._exit(0)  # whatever threads an answer has left


if __name__ == "__main__":
    main()
