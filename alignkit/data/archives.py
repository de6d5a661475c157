"""Unpack archives that nobody vouches for: every member is checked by us.

zip (and wheels), tar with any compression Python knows, and Debian packages
(`ar` holding `data.tar.*`) are read with the standard library alone. Names are
checked here rather than left to `tarfile`'s filter, which zip files do not have.
"""

import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO, NamedTuple


class UnsafeArchive(ValueError):
    """The archive holds a member that must not, or need not, be written."""


class Member(NamedTuple):
    """An entry of an archive, before anything of it is unpacked."""

    name: str
    kind: str  # "file", "folder", or what makes it unsafe: "a symbolic link" …
    size: int  # bytes, as declared by the archive
    open: Callable[[], BinaryIO]


def unpack(
    archive: Path | BinaryIO,
    folder: Path,
    members: dict[str, str],
    *,
    inside: str = "",
    max_bytes: int = 4 * 2**30,
    max_members: int = 200_000,
) -> list[Path]:
    """Write the wanted members of an archive below `folder`.

    Args:
        archive: path or seekable binary file.
        folder: where to write; created when missing, best empty.
        members: what to take: `{"a/b.json": "b.json"}` renames one file,
            `{"a/svg/*.svg": "pictures/"}` keeps the path below `a/svg/`
            (`*` matches `/` too).
        inside: name of a member that is itself the archive to read.
        max_bytes, max_members: limits on all that the archive declares, wanted
            or not.

    Returns: the files written, in the archive's order.
    Raises: UnsafeArchive for a hostile member (wanted or not) or a passed limit;
        ValueError for a format that is not known; FileNotFoundError for a wanted
        member that is not there; zipfile.BadZipFile or tarfile.TarError for one
        that is not what it declares.
    """
    if isinstance(archive, Path):
        with archive.open("rb") as file:
            return unpack(
                file, folder, members, inside=inside,
                max_bytes=max_bytes, max_members=max_members,
            )
    checked = _checked(_members(archive), max_bytes, max_members)
    if inside:
        for member in checked:
            if member.name == inside:
                # A plain file on disk: the inner archive has to be seekable.
                with tempfile.TemporaryFile() as inner:
                    _copy(member, inner)
                    inner.seek(0)
                    return unpack(
                        inner, folder, members,
                        max_bytes=max_bytes, max_members=max_members,
                    )
        raise FileNotFoundError(f"the archive has no member {inside!r}")
    written, used = {}, set()
    for member in checked:
        key = next((k for k in members if fnmatchcase(member.name, k)), None)
        if key is None:
            continue
        used.add(key)
        target = _target(member.name, key, members[key])
        if target.casefold() in written:  # also equal on macOS and Windows
            raise UnsafeArchive(f"two members would be written to {target!r}")
        path = written[target.casefold()] = folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as out:
            _copy(member, out)
    if missing := sorted(set(members) - used):
        raise FileNotFoundError(f"the archive has no member {', '.join(missing)}")
    return list(written.values())


def _target(name: str, key: str, target: str) -> str:
    if "*" not in key:
        return target
    base = key[: key.index("*")].rpartition("/")[0]
    return target + name[len(base) + 1 if base else 0 :]


def _copy(member: Member, out: BinaryIO) -> None:
    # The standard library stops at the declared size and refuses what is shorter.
    with member.open() as source:
        shutil.copyfileobj(source, out, 2**20)


def _checked(
    members: Iterator[Member], max_bytes: int, max_members: int
) -> Iterator[Member]:
    """Pass on the regular files; raise at the first member that is not safe."""
    seen: set[str] = set()
    total = 0
    for count, member in enumerate(members, start=1):
        if count > max_members:
            raise UnsafeArchive(f"more than {max_members} members")
        name = member.name
        if name.startswith(("/", "\\")):
            raise UnsafeArchive(f"member {name!r} has an absolute path")
        if re.match(r"[A-Za-z]:", name) or "\\" in name or "\0" in name:
            raise UnsafeArchive(f"member {name!r} has a drive letter, \\ or NUL")
        if ".." in name.split("/"):
            raise UnsafeArchive(f"member {name!r} climbs out of its folder with '..'")
        if member.kind == "folder":
            continue
        if member.kind != "file":
            raise UnsafeArchive(f"member {name!r} is {member.kind}")
        clean = "/".join(part for part in name.split("/") if part not in ("", "."))
        if clean in seen:
            raise UnsafeArchive(f"member {name!r} is there twice")
        seen.add(clean)
        total += member.size
        if total > max_bytes:
            raise UnsafeArchive(f"unpacks to more than {max_bytes} bytes")
        yield member._replace(name=clean)


def _members(file: BinaryIO) -> Iterator[Member]:
    """The members of a zip, tar or deb, told apart by their first bytes."""
    start = file.read(8)
    file.seek(0)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_members(file)
    if start == b"!<arch>\n":
        return _deb_members(file)
    return _tar_members(file)


def _zip_members(file: BinaryIO) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            mode = stat.S_IFMT(info.external_attr >> 16)  # 0 where made on Windows
            if info.is_dir():
                kind = "folder"
            elif info.flag_bits & 1:
                kind = "encrypted"
            else:
                kind = {
                    0: "file",
                    stat.S_IFREG: "file",
                    stat.S_IFLNK: "a symbolic link",
                }.get(mode, "a device or another special file")
            # orig_filename: `filename` is cut at NUL and loses Windows' backslashes
            yield Member(
                info.orig_filename, kind, info.file_size,
                lambda info=info: archive.open(info),
            )


def _tar_members(file: BinaryIO) -> Iterator[Member]:
    try:
        archive = tarfile.open(fileobj=file, mode="r:*")
    except tarfile.ReadError as error:
        raise ValueError(
            "not a zip, tar or deb that this Python can read (zstd needs "
            f"Python 3.14): {error}"
        ) from None
    with archive:
        for info in archive:
            kinds = {
                "file": info.isreg(),
                "folder": info.isdir(),
                "a symbolic link": info.issym(),
                "a hard link": info.islnk(),
            }
            kind = next((kind for kind, is_so in kinds.items() if is_so), "a device")
            yield Member(
                info.name, kind, info.size,
                lambda info=info: archive.extractfile(info),
            )


def _deb_members(file: BinaryIO) -> Iterator[Member]:
    """Read `data.tar.*` out of the `ar` file that a Debian package is.

    Source: deb(5). Each entry is a 60-byte header (name 16, …, size 10, "`\\n")
    and its bytes, padded to an even length.
    """
    file.seek(8)
    while len(header := file.read(60)) == 60:
        if header[58:] != b"`\n" or not header[48:58].strip().isdigit():
            raise ValueError("not a Debian package: an ar header is damaged")
        size = int(header[48:58])
        if header[:16].startswith(b"data.tar"):
            with tempfile.TemporaryFile() as data:
                shutil.copyfileobj(file, data)  # tarfile stops where the tar does
                data.seek(0)
                yield from _tar_members(data)
            return
        file.seek(size + size % 2, 1)
    raise ValueError("not a Debian package: it has no data.tar")
