"""One writer to a folder of shards, and what an earlier one that was cut off has left."""

import json
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

PART = re.compile(r"(\d{5,}\.(tar|json|part|json\.part)|shards\.json\.part)")


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Make `folder` and be the one that writes to it.

    Raises FileExistsError where another process is doing so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FileExistsError(f"{folder}: another process is writing shards there; name "
                              "a new folder") from None
    try:
        yield
    finally:
        with suppress(OSError):  # some systems remove no file that is open
            Path(lock.lock_file).unlink()
        lock.release()


def clear(folder: Path, first: int = 0) -> None:
    """Remove the shards from number `first` on that a run which was cut off has left,
    and say which: they would stand beside the new ones.

    Raises FileExistsError, and removes nothing, if one was not written by alignkit.
    """
    found = [path for path in sorted(folder.iterdir()) if PART.fullmatch(path.name)
             and (not path.name[:5].isdigit() or int(path.name.split(".")[0]) >= first)]
    if foreign := [path.name for path in found if not _is_ours(path)]:
        raise FileExistsError(f"{folder} holds {', '.join(foreign[:5])}, which alignkit "
                              "did not write: name a new folder")
    for path in found:
        path.unlink()
    if tars := [path.name for path in found if path.suffix == ".tar"]:
        warnings.warn(f"{folder}: {len(tars)} shards of a run that was cut off were "
                      f"removed: {_few(tars)}", stacklevel=3)


def fits(folder: Path, number: int, expected: Iterable[tuple[str, list[str]]]) -> bool:
    """Is shard `number` there, and is it of the samples [(key, captions)]?

    A shard that holds the beginning of them (of a run with a lower limit) is to be
    written again. Raises FileExistsError for one of other samples.
    """
    index, expected = _index(folder / f"{number:05d}.json"), dict(expected)
    if index is None or not (folder / f"{number:05d}.tar").is_file():
        return False
    found = {item["key"]: item["captions"] for item in index["items"]}
    found |= {key: expected.get(key) for key, _ in index["skipped"]}
    if other := [key for key, captions in found.items()
                 if key not in expected or captions != expected[key]]:
        raise FileExistsError(f"{folder / f'{number:05d}.tar'} is of another run: "
                              f"{_few(other)} differ; name a new folder")
    return len(found) == len(expected)


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + " …" * (len(names) > 5)


def _is_ours(path: Path) -> bool:
    """A shard whose index is one of ours; what has no index was never a whole shard of
    ours, and only its temporary names are."""
    if path.name.endswith(".part"):
        return True
    return _index(path.with_suffix(".json")) is not None


def _index(path: Path) -> dict | None:
    try:
        found = json.loads(path.read_text("utf-8"))
        return found if {"sha256", "bytes", "items", "skipped"} <= found.keys() else None
    except (OSError, ValueError, AttributeError):
        return None
