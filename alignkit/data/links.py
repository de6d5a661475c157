"""Links: followed where that is safe, and otherwise called what they are."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path


class LeadsOut(ValueError):
    """A file that a folder names lies elsewhere."""


def inside(folder: Path, file: str) -> Path:
    """The path of a file that a folder made elsewhere names, if it lies in the folder.

    A link is followed within the folder, and to the hub's store of a snapshot
    (`…/snapshots/<commit>/` to `…/blobs/`); nowhere else, as a foreign folder could
    name any file of this machine. Raises LeadsOut.
    """
    path = folder / file
    if Path(file).is_absolute() or ".." in Path(file).parts:
        raise LeadsOut(f"{file!r} leads out of the folder")
    try:
        root, real = folder.resolve(), path.resolve()
    except (OSError, RuntimeError):  # the latter before Python 3.13
        raise LeadsOut(f"{file!r} is a link that leads back to itself") from None
    store = folder.absolute().parent.parent / "blobs"
    is_snapshot = folder.absolute().parent.name == "snapshots"
    roots = [root, store.resolve()] if is_snapshot else [root]
    if not any(real.is_relative_to(one) for one in roots):
        raise LeadsOut(f"{file!r} is a link to {real}, out of the folder: copy the folder "
                       "with what its links point to (cp -rL)")
    if path.is_symlink() and not real.exists():
        raise LeadsOut(f"{file!r} is a link to {real}, and nothing is there: fetch the "
                       "folder whole")
    return path


def walk(folder: str | Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Every file of `folder` and below, in order; links are followed, but for one to a
    folder that it lies in."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for name in sorted(os.listdir(folder)):
        path = Path(folder, name)
        if path.is_dir():
            yield from walk(path, (*above, real))
        elif path.is_file():
            yield path


def twin(path: Path) -> Path | None:
    """The file that was meant, if `path` is none: one whose name has the same letters in
    another Unicode form (é as one character or as two), or in capitals."""
    def plain(name: str) -> str:
        return unicodedata.normalize("NFC", name).casefold()

    try:
        parent = path.parent if path.parent.is_dir() else twin(path.parent)
        if parent is None or path.parent == path:
            return None
        return next((found for found in sorted(parent.iterdir())
                     if plain(found.name) == plain(path.name)), None)
    except OSError:  # a name that is too long, a folder that may not be read
        return None
