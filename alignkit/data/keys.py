"""What decides the values of lazy pictures and sounds, told as a hash: the sources, with
the bytes of every file that they name, and the function that reads them, with all that
its code reaches.

It is the key of cached features and part of `Provenance.hash`. A key that leaves
something out gives one picture the features of another, so whatever cannot be told is
named (`Key.untold`) and such features are not cached.
"""

import contextlib
import functools
import hashlib
import logging
import os
import sys
import threading
import types
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path, PurePath

import torch
from torch import Tensor

from alignkit.data.code import (
    ELSEWHERE, attributes_set_by, changed_by, file_of, imported_by, is_library, is_python,
    names, slots,
)  # fmt: skip
from alignkit.data.links import walk

PLAIN = (type(None), type(...), bool, int, float, complex, bytes, bytearray, range, slice,
         torch.dtype, torch.device)
MAKES_A_CLASS = {"__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__",
                 "__static_attributes__", "__annotations__"}
LOCKS = type(threading.Lock()), type(threading.RLock())
MOST_FILES = 200_000  # of a folder that a reader names


def content(sources: Sequence, read: Callable, kind: str) -> tuple[str, list[str]]:
    """(sha256 in hex of what `sources` and `read` give, what it does not tell). alignkit's
    own readers look at no name: a data set that is moved keeps its features."""
    key = Key()
    key.by_name = not str(getattr(read, "__module__", "")).startswith("alignkit.data.")
    key.add("kind", kind)
    for source in sources:
        key.value(source)
    key.in_code = True
    key.value(read)
    return key.sha.hexdigest(), key.untold


class Key:
    """A hash of values: of files their bytes, of folders their listing, of functions
    their code. `in_code`: texts may also be beginnings of a path ("photos/cat_")."""

    def __init__(self):
        self.sha, self.untold = hashlib.sha256(), []
        self.in_code, self.by_name = False, True
        self._seen: dict[int, int] = {}
        self._kept: list = []  # so that no id is given twice
        self._lists: dict[str, list[str]] = {}
        self._files: set[str] = set()  # of modules
        self._ways = self._how()

    def add(self, *parts: object) -> None:
        """Parts with their lengths, so that ("a", "bc") is not ("ab", "c")."""
        for part in parts:
            raw = part if isinstance(part, bytes | bytearray) else str(part).encode(
                "utf-8", "surrogatepass")
            self.sha.update(f"{len(raw)}:".encode() + raw)

    def value(self, x) -> None:
        """Anything; what has no value that could be told is named in `untold`."""
        kind = type(x)
        if kind in PLAIN:
            return self.add(kind.__name__, x if isinstance(x, bytes) else repr(x))
        if isinstance(x, str | PurePath):
            return self._text(x)
        if id(x) in self._seen:
            return self.add("seen", self._seen[id(x)])
        self._seen[id(x)] = len(self._seen)
        self._kept.append(x)
        self.add(f"{kind.__module__}.{kind.__qualname__}")
        for kinds, how in self._ways:
            if isinstance(x, kinds):
                return how(x)
        return self._object(x)

    def _how(self) -> list:
        return [
            (Enum, lambda x: self.add(repr(x))),
            ((list, tuple, deque), self._each),
            ((set, frozenset), lambda x: self._each(sorted(x, key=repr))),
            ((dict, types.MappingProxyType), lambda x: self._each(x.items())),
            (Tensor, self._tensor),
            (torch.nn.Module, self._network),
            (types.ModuleType, self._module),
            ((logging.Logger, *LOCKS), lambda x: None),  # no value depends on them
            (functools.partial, lambda x: self._each([x.func, x.args, x.keywords])),
            (types.MethodType, lambda x: self._each([x.__func__, x.__self__])),
            ((staticmethod, classmethod), lambda x: self.value(x.__func__)),
            (property, lambda x: self._each([x.fget, x.fset])),
            (types.FunctionType, self._function),
            (types.CodeType, self._code),
            (type, self._class),
        ]

    def _each(self, values) -> None:
        for value in values:
            self.value(value)
        self.add("end")

    # Files -----------------------------------------------------------------------------
    def _text(self, x: str | PurePath) -> None:
        text = os.fspath(x)
        if self.by_name or self.in_code or not isinstance(x, PurePath):
            self.add("path" if isinstance(x, PurePath) else "text", text)
        if len(text) > 4096 or "\0" in text or "\n" in text:
            return
        if not text.strip("./") and isinstance(x, str):  # punctuation of code
            return
        try:
            if os.path.isfile(text):
                with open(text, "rb") as file:
                    self.add("file", hashlib.file_digest(file, "sha256").digest())
            elif os.path.isdir(text):
                self._folder(text)
            elif self.in_code or os.sep in text:
                self._beginning(text)
        except (OSError, ValueError) as error:
            self.untold.append(f"{text!r} ({error})")

    def _folder(self, folder: str) -> None:
        """Each file's name, size and time, in it and below."""
        self.add("folder")
        if os.path.dirname(os.path.realpath(folder)) == os.path.realpath(folder):
            self.untold.append("the whole disk")
            return
        for number, path in enumerate(walk(folder)):
            if number == MOST_FILES:
                self.untold.append(f"the folder {folder!r} of over {MOST_FILES:,} files")
                break
            info = path.stat()
            self.add(path.relative_to(folder), info.st_size, info.st_mtime_ns)

    def _beginning(self, text: str) -> None:
        """The files whose path begins with `text`, up to a place that is filled in."""
        text = min((text.split(mark)[0] for mark in "%{*"), key=len)
        folder, name = os.path.split(text)
        if not name or not folder and "." not in text and "_" not in text:
            return  # a word
        if folder not in self._lists:
            at = folder or "."
            self._lists[folder] = sorted(os.listdir(at)) if os.path.isdir(at) else []
        listed = self._lists[folder]
        for found in listed[bisect_left(listed, name):]:
            if not found.startswith(name):
                break
            info = os.stat(os.path.join(folder, found))
            self.add("begins", found, info.st_size, info.st_mtime_ns)

    # Code ------------------------------------------------------------------------------
    def _function(self, x: types.FunctionType) -> None:
        self.add(x.__qualname__)
        if is_library(x):
            return self._version(x.__module__)
        self._each([x.__code__, x.__defaults__, x.__kwdefaults__, vars(x)])
        if not (x.__module__ or "").startswith("alignkit."):
            self._elsewhere(names(x.__code__))
        self._imports(imported_by(x.__code__, x.__globals__.get("__package__")))
        changed = changed_by(x.__code__)  # a counter, say
        for name, cell in zip(x.__code__.co_freevars, x.__closure__ or (), strict=True):
            try:
                self.value(None if name in changed else cell.cell_contents)
            except ValueError:
                self.add("an empty cell")
        for name in sorted(names(x.__code__) - changed):
            if name in x.__globals__:
                self.add(name)
                self.value(x.__globals__[name])

    def _code(self, x: types.CodeType) -> None:
        self.add(x.co_code, repr(x.co_names), repr(x.co_freevars))
        self._each(x.co_consts)

    def _class(self, x: type) -> None:
        self.add(x.__qualname__)
        if is_library(x):
            return self._version(x.__module__)
        self._each(x.__bases__)
        changed = set().union(*(attributes_set_by(f.__code__) for f in vars(x).values()
                                if isinstance(f, types.FunctionType)))
        self._each((k, v) for k, v in list(vars(x).items()) if not (
            k in MAKES_A_CLASS or k in changed
            or isinstance(v, types.GetSetDescriptorType | types.MemberDescriptorType)))

    def _module(self, x: types.ModuleType) -> None:
        self.add(x.__name__)
        if is_library(x):
            return self._version(x.__name__)
        if file := getattr(x, "__file__", None):
            self._text(file)  # its whole text
            return self._imports({x.__name__})
        self.untold.append(f"the module {x.__name__}")

    def _imports(self, modules: set[str]) -> None:
        """The texts of the modules that are no libraries, and of those that they import."""
        for module in sorted(modules):
            file = file_of(module)
            if file is None or file in self._files:
                continue
            self._files.add(file)
            self.add("import", module, raw := Path(file).read_bytes())
            package = module if file.endswith("__init__.py") else module.rpartition(".")[0]
            with contextlib.suppress(SyntaxError, ValueError):
                self._imports(imported_by(compile(raw, file, "exec"), package))

    def _elsewhere(self, found: set[str]) -> None:
        self.untold += [f"what {name} gives" for name in sorted(found & ELSEWHERE)]

    def _version(self, module: str | None) -> None:
        top = (module or "").partition(".")[0]
        self._elsewhere({top})
        self.add(str(getattr(sys.modules.get(top), "__version__", "")))

    # Objects ---------------------------------------------------------------------------
    def _tensor(self, x: Tensor) -> None:
        try:
            raw = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            self.add(x.dtype, tuple(x.shape), raw.numpy().tobytes())
        except (RuntimeError, NotImplementedError):  # sparse, on the meta device, …
            self.untold.append(f"a tensor of {x.layout} on {x.device}")

    def _object(self, x) -> None:
        kind = type(x)
        if hasattr(x, "__wrapped__"):  # functools.cache and its kin
            return self.value(x.__wrapped__)
        if isinstance(x, types.BuiltinFunctionType | types.WrapperDescriptorType
                      | types.MethodDescriptorType):
            owner = getattr(x, "__self__", None)
            self.add(x.__qualname__)
            if owner is not None and not isinstance(owner, types.ModuleType | type):
                self.value(owner)  # the bound method of an object
            return None
        if kind.__module__ == "re" or kind.__name__ == "ZoneInfo":
            return self.add(repr(x))
        if hasattr(x, "__array_interface__") or kind.__module__ == "numpy":
            return self._array(x)
        if kind.__module__ in ("datetime", "decimal", "fractions", "uuid"):
            return self.add(repr(x))
        if kind.__name__ == "_tuplegetter":  # a field of a named tuple
            return None
        if all(map(is_python, kind.__mro__[:-1])):
            self._class(kind)
            held = {name: getattr(x, name) for c in kind.__mro__
                     for name in slots(c) if hasattr(x, name)}
            return self._each({**held, **getattr(x, "__dict__", {})}.items())
        self.untold.append(f"a {kind.__module__}.{kind.__qualname__}")

    def _network(self, x: torch.nn.Module) -> None:
        """It runs in eval mode, whatever its mode is."""
        self._class(type(x))
        self._each((k, v) for k, v in vars(x).items() if k != "training")

    def _array(self, x) -> None:
        import numpy as np

        array = np.asarray(x)  # a Pillow picture is one, too
        if array.dtype.hasobject:
            return self._each(array.ravel().tolist())
        mode = getattr(x, "mode", ""), getattr(x, "getpalette", lambda: None)()
        return self.add(array.dtype.str, array.shape, repr(mode), array.tobytes())
