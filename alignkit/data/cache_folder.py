"""Where the cache lies, and what to set where it cannot be used."""

import os
from pathlib import Path

from filelock import FileLock


def cache_dir() -> Path:
    """The cache folder: env ALIGNKIT_CACHE, else `~/.cache/alignkit`.

    Raises RuntimeError where there is neither that variable nor a home directory.
    """
    if named := os.environ.get("ALIGNKIT_CACHE"):
        return Path(named).absolute()
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:  # a user without an entry, as in some containers
        raise RuntimeError(f"no place for the cache ({error}): set the environment "
                           "variable ALIGNKIT_CACHE to a folder") from None
    return Path(base, "alignkit").absolute()


def writable(folder: Path) -> Path:
    """A folder of the cache, made if need be.

    Raises PermissionError, with what to set, where nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK) else "no permission to write"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise PermissionError(
            f"the cache {folder} lacks what is needed and cannot be written ({reason}): "
            "set the environment variable ALIGNKIT_CACHE to a folder of yours")
    return folder


def lock_of(path: Path) -> FileLock:
    """A lock of the cache, held by nobody yet.

    Raises PermissionError, with what to set, where it is another user's.
    """
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{path} belongs to another user: make the cache writable "
                              "for all its users, or set ALIGNKIT_CACHE to a folder of "
                              "yours")
    return FileLock(path)
