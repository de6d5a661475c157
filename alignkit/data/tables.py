"""A user's own pictures and captions, from a CSV table or a folder: read, checked line
by line, and refused with the line's number where something is wrong."""

import csv
import hashlib
import io
import os
import re
import warnings
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from alignkit.data.links import twin
from alignkit.data.pictures import open_picture
from alignkit.data.samples import writable_text

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class Table(NamedTuple):
    """Rows of a table: one caption each; rows of one picture share an `item`."""

    pictures: list[Path]
    captions: list[str]
    item: list[int]
    ids: list[str]


class _Row(NamedTuple):
    where: str  # file and line, as errors name them
    line: int
    picture: Path
    caption: str


def read_table(path: Path, image: str, caption: str) -> Table:
    """Read a CSV with a header; see `Pairs.from_table` for what is raised."""
    if path.is_dir():
        raise FileNotFoundError(f"table {path}: a folder; read it with Pairs.from_folder")
    if not path.is_file():
        raise FileNotFoundError(f"table {path}: no such file{_meant(path)}")
    lines = csv.DictReader(io.StringIO(_read_text(path), newline=""), strict=True)
    rows = []
    try:
        header = lines.fieldnames or []
        for name in (image, caption):
            if header.count(name) != 1:
                raise ValueError(
                    f"{path} line 1: {header.count(name)} columns are called {name!r}, "
                    f"one is needed; there are {', '.join(map(repr, header)) or 'none'}"
                    f"{_separated(header)}"
                )
        for line in lines:
            where = f"{path} line {lines.line_num}"
            if None in line or None in line.values():
                raise ValueError(f"{where}: {len(header)} columns are needed; put "
                                 "quotes round a caption that holds a comma")
            name = line[image].strip()
            if not name:
                raise ValueError(f"{where}: column {image!r} names no picture")
            rows.append(_Row(where, lines.line_num, path.parent / name,
                             line[caption].strip()))
    except csv.Error as error:
        raise ValueError(f"{path} line {lines.reader.line_num}: {error}") from None
    return _check(path, rows)


def _separated(header: list[str]) -> str:
    """Says so where the columns seem to be parted by something else than commas."""
    found = [name for mark, name in (("\t", "tabs"), (";", "semicolons"), ("|", "bars"))
             if len(header) == 1 and mark in header[0]]
    return f": they are parted by {found[0]}, save them with commas" if found else ""


def read_folder(folder: Path) -> Table:
    """Every picture of `folder` that has a text file of its name, a caption a line."""
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder}: no such folder")
    # What begins with a dot, systems lay beside the pictures ("._cat.png" of macOS).
    entries = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".")]
    pictures = [p for p in entries if p.suffix.lower() in ENDINGS and not p.is_dir()]
    if below := [p.name for p in entries if p.is_dir() and _holds_pictures(p)]:
        said = (f"{folder}: the pictures in {len(below)} folders in it "
                f"({', '.join(below[:5])}{' …' * (len(below) > 5)}) are not read; give "
                "each folder by itself, or a table")
        if not pictures:
            raise ValueError(said)
        warnings.warn(said, stacklevel=3)
    if not pictures:
        raise ValueError(f"{folder} holds no picture ({', '.join(sorted(ENDINGS))})")
    rows = []
    for picture in pictures:
        notes = picture.with_suffix(".txt")
        if not notes.is_file():
            raise FileNotFoundError(f"{picture} has no caption file {notes.name}"
                                    f"{_meant(notes)}")
        captions = re.split("\r\n|\n|\r", _read_text(notes))
        if not any(c.strip() for c in captions):
            raise ValueError(f"{notes}: no caption in it")
        rows += [_Row(f"{notes} line {i}", i, picture, c.strip())
                 for i, c in enumerate(captions, 1) if c.strip()]
    named = {picture.with_suffix("").name for picture in pictures}
    if alone := [p.name for p in entries if p.suffix == ".txt" and p.stem not in named]:
        warnings.warn(f"{folder}: {len(alone)} text files have no picture of their name and "
                      f"are not read: {', '.join(alone[:5])}{' …' * (len(alone) > 5)} "
                      f"(pictures end in {', '.join(sorted(ENDINGS))})", stacklevel=3)
    return _check(folder, rows)


def _holds_pictures(folder: Path) -> bool:
    try:
        names = os.listdir(folder)
    except OSError:  # it may not be read
        return False
    return any(Path(name).suffix.lower() in ENDINGS for name in names if name[0] != ".")


def _meant(path: Path) -> str:
    """Names the file that was meant, where there is one (see `twin`)."""
    if (found := twin(path)) is None:
        return ""
    here, asked = (ascii(str(p.relative_to(path.anchor) if p.is_absolute() else p))
                   for p in (found, path))
    return f"; there is {here}, written otherwise than {asked}: rename one"


def _read_text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} line {line}: not UTF-8: save it as UTF-8") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"{path} line {line}: a NUL byte; this is not a text file")
    return text


def _check(path: Path, rows: list[_Row]) -> Table:
    """Refuse bad rows; files of the same bytes are one item, whatever their names."""
    if not rows:
        raise ValueError(f"{path}: no rows")
    content: dict[Path, str] = {}
    seen: dict[tuple[str, str], str] = {}
    for row in tqdm(rows, desc="reading pictures", disable=len(rows) < 1000):
        if not row.caption:
            raise ValueError(f"{row.where}: {row.picture.name} has an empty caption")
        if row.picture not in content:
            content[row.picture] = _hash_of_picture(row)
        key = content[row.picture], row.caption
        if key in seen:
            raise ValueError(f"{row.where}: the same picture and caption as in "
                             f"{seen[key]}; remove one of them")
        seen[key] = row.where
    numbers = {key: i for i, key in enumerate(dict.fromkeys(content.values()))}
    return Table([row.picture for row in rows], [row.caption for row in rows],
                 [numbers[content[row.picture]] for row in rows],
                 [writable_text(f"{row.picture.name}#{row.line}") for row in rows])


def _hash_of_picture(row: _Row) -> str:
    try:
        raw = row.picture.read_bytes()
    except OSError as error:  # missing, a folder, not allowed, a name that is too long
        if os.path.islink(row.picture):
            raise FileNotFoundError(f"{row.where}: picture {row.picture} is a link to "
                                    f"{os.readlink(row.picture)}, where nothing is"
                                    ) from None
        raise FileNotFoundError(
            f"{row.where}: picture {row.picture} cannot be read ({error.strerror}); "
            f"paths are relative to the table{_meant(row.picture)}"
        ) from None
    try:
        open_picture(row.picture)
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from None
    return hashlib.sha256(raw).hexdigest()
