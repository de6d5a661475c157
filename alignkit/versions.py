"""alignkit's own version; and packages that are built for one release of torch: which of
them does not work here?

torchvision and torchaudio stop at their import beside a torch of another build, with a
message about missing operators or CUDA versions. Importing them decides, since no rule on
version numbers has lasted; this module then names the package and the command that mends
it. It imports nothing of alignkit, and nothing heavy before it is asked.
"""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from textwrap import shorten

__version__ = "0.1.0"  # the one place for it: a checkout has no metadata to ask

BUILT_TOGETHER = ("torch", "torchvision", "torchaudio")
# torchaudio carries torch's number, and has had no release after 2.11.
LAST_AUDIO = 11


def installed(name: str) -> str | None:
    """The installed version of a package, None where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache  # an import that failed fails in other words the second time
def problem(name: str) -> str | None:
    """One sentence on why `name` cannot be imported, with the command that mends it.

    None means that it can. For the packages of `BUILT_TOGETHER`.
    """
    number = installed(name)
    if number is None:
        return f"{name} is not installed; install it with: {command(name)}"
    try:
        import_module(name)
    except Exception as error:  # a wrong build: OSError, RuntimeError, ImportError …
        beside = "" if name == "torch" else f" beside torch {installed('torch')}"
        words = shorten(f"{type(error).__name__}: {error}", 160, placeholder=" …")
        return (f"{name} {number} cannot be imported{beside} ({words}); "
                f"mend it with: {command(name)}")
    return None


def explain(error: BaseException) -> str | None:
    """`problem` of the package that `error` comes from, however deep inside another's.

    None where the error has nothing to do with `BUILT_TOGETHER`, or they all work.
    """
    told = "".join(traceback.format_exception(error))
    found = (problem(name) for name in BUILT_TOGETHER if name in told)
    return next(filter(None, found), None)


@contextmanager
def explained() -> Iterator[None]:
    """Around imports of timm and transformers: ImportError with `explain`'s sentence.

    transformers imports any torchaudio that is there, to no use of ours; one that does not
    work is hidden from it, so that texts and pictures do not stop as well.
    """
    if installed("torchaudio") and problem("torchaudio"):
        sys.modules["torchaudio"] = None  # looks as if it were not installed
    try:
        yield
    except (ImportError, OSError, RuntimeError) as error:
        if found := explain(error):
            raise ImportError(found) from error
        raise


def command(name: str) -> str:
    """What mends or installs `name` and keeps this torch where that is possible."""
    torch = (installed("torch") or "").partition("+")[0]
    wanted = {"torch": "torch torchvision", "torchvision": f'"torch=={torch}" torchvision'}
    minor = min(int(torch.split(".")[1]), LAST_AUDIO) if torch else LAST_AUDIO
    wanted["torchaudio"] = f'"torch==2.{minor}.*" torchvision "torchaudio==2.{minor}.*"'
    install = f"pip install {wanted[name] if torch else wanted['torch']}"
    return install if installed(name) is None else f"pip uninstall -y {name} && {install}"
