"""What a column of `Pairs` can be: a tensor, tokens with a mask, lazy pictures or
sounds, or a list of texts; and the three things done to any of them."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from alignkit.data import keys

BY_PROVENANCE = "told by the provenance"


class Tokens(NamedTuple):
    """A sequence a row: `values` [n, t, d] float or [n, t] long, `mask` [n, t] bool.

    `mask` is True on real tokens and False on padding.
    """

    values: Tensor
    mask: Tensor


class Lazy:
    """Pictures, sounds or videos that are read when they are asked for.

    `sources` are paths or small descriptions (one a row); `read(source)` gives a PIL
    RGB image (`kind="picture"`), `(waveform [t], rate in Hz)` (`kind="sound"`) or
    frames [t, h, w, 3] (uint8, RGB; `kind="video"`).

    version: a name of your own for what `read` gives. With None the files' bytes and the
    code of `read` tell two columns apart (features are cached by that); give a name, and
    another one whenever the pictures change, where they cannot (a data base, an address)
    or where reading all files again takes too long. Corpora give `BY_PROVENANCE`: their
    `Provenance.hash` is of all that decides the rows.
    """

    def __init__(self, sources: Sequence, read: Callable, kind: str = "picture",
                 version: str | None = None):
        if kind not in ("picture", "sound", "video"):
            raise ValueError("kind must be 'picture', 'sound' or 'video', "
                             f"got {kind!r}")
        self.sources, self.read, self.kind = list(sources), read, kind
        self.version = version

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, row: int):
        source = self.sources[row]
        try:
            return self.read(source)
        except Exception as error:  # whatever it is, it is of this row
            error.add_note(f"in row {row} of a column of {self.kind}s, {source!r:.200}")
            raise

    def __iter__(self) -> Iterator:
        return (self[row] for row in range(len(self)))


Column = Tensor | Tokens | Lazy | list
RESERVED = ("ids", "item", "present", "labels")  # keys of a batch


def length(column: Column) -> int:
    """Number of rows."""
    return len(column.values if isinstance(column, Tokens) else column)


def row_numbers(rows: Sequence[int] | Tensor, n: int) -> Tensor:
    """Row numbers [m], long and counted from the front, of `rows` of n: numbers (−1 is
    the last) or a bool mask [n].

    Raises ValueError for a mask of another length, IndexError for a row that is not there.
    """
    rows = torch.as_tensor(rows, dtype=None if len(rows) else torch.long)
    if rows.dim() != 1 or rows.is_floating_point():
        raise TypeError("rows must be whole numbers [m] or a bool mask [n], got "
                        f"{rows.dtype} {tuple(rows.shape)}")
    if rows.dtype == torch.bool:
        if len(rows) != n:
            raise ValueError(f"mask has {len(rows)} rows, the pairs {n}")
        return rows.nonzero()[:, 0]
    if not len(rows):
        return rows
    low, high = (int(row) for row in rows.aminmax())
    if low < -n or high >= n:
        raise IndexError(f"rows has numbers from {low} to {high}, the pairs {n} rows")
    return rows % n if low < 0 else rows


def take(column: Column, rows: Tensor) -> Column:
    """The rows `rows` [m] (long, counted from the front) of a column, in that order."""
    if isinstance(column, Tokens):
        return Tokens(take(column.values, rows), take(column.mask, rows))
    if isinstance(column, Lazy):
        picked = [column.sources[i] for i in rows.tolist()]
        return Lazy(picked, column.read, column.kind, column.version)
    if isinstance(column, Tensor):
        return column.index_select(0, rows)  # whole rows: 4 times as fast as column[rows]
    return [column[i] for i in rows.tolist()]


def parent(name: str, columns: Mapping[str, Column]) -> str | None:
    """The column that the feature `name` is made of, if any.

    Features are tensors and tokens named after it (`image_features` after `image`); a
    text, picture or sound is never made of another one (`text_de` stands by `text`).
    """
    if not isinstance(columns[name], Tensor | Tokens):
        return None
    return max((c for c in columns if name.startswith(f"{c}_")), key=len, default=None)


def made_of(name: str, columns: Mapping[str, Column]) -> list[str]:
    """The column `name`, the features made of it, and those made of these."""
    found = [name]
    for column in sorted(columns, key=len):  # a parent's name is shorter
        if parent(column, columns) in found:
            found.append(column)
    return found


def whole_numbers(name: str, values) -> Tensor:
    """`values` [n] as a long tensor. Raises TypeError naming the argument, ValueError for
    several numbers a row."""
    try:
        values = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{name} needs whole numbers, one a row; give each name a number first "
            "(sorted(set(names)).index) and keep the names in label_names"
        ) from None
    if values.is_complex() or values.is_floating_point() and not (
            (values == values.round()) & (values.abs() < 2**63)).all():
        raise TypeError(f"{name} needs whole numbers, got {values.dtype}")
    if values.dim() != 1:
        raise ValueError(f"{name} needs one number a row, [n], got {list(values.shape)}: "
                         "flatten it, or give each of its columns a name")
    return values.long()


def half_pair(text: str) -> int:
    """1 + the place of the first half of a surrogate pair (of an emoji that was cut in
    two), 0 if there is none."""
    found = re.search("[\ud800-\udfff]", text)
    return found.start() + 1 if found else 0


def texts(name: str, values: Sequence) -> list[str]:
    """`values` as texts, whole numbers written out. Raises TypeError naming the argument
    and the first that is neither, ValueError for half a surrogate pair."""
    if isinstance(values, str):  # its letters would be taken
        raise TypeError(f"{name} needs a list of texts, got the text {values[:60]!r}")
    found = []
    for row, value in enumerate(values):
        if isinstance(value, Tensor) and value.dim() == 0 or hasattr(value, "dtype"):
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise TypeError(f"{name} needs texts, one a row; {name}[{row}] is {value!r} "
                            f"({type(value).__name__})")
        if half_pair(str(value)):
            raise ValueError(f"{name}[{row}] holds half a surrogate pair: {value!r}")
        found.append(str(value))
    return found


def check_column(name: str, column: Column) -> None:
    """Refuse what cannot be a column, by name."""
    if not name.isidentifier() or name in RESERVED:
        raise ValueError(
            f"column {name!r}: a name is letters, digits and _, and not one of "
            f"{', '.join(RESERVED)}"
        )
    if isinstance(column, Tokens):
        values, mask = column
        if not isinstance(values, Tensor) or not isinstance(mask, Tensor):
            raise TypeError(f"column {name!r}: tokens need two tensors")
        if mask.dtype != torch.bool or values.shape[:2] != mask.shape:
            raise ValueError(
                f"column {name!r}: tokens need values [n, t, …], a bool mask [n, t]; "
                f"got {tuple(values.shape)} and {mask.dtype} {tuple(mask.shape)}"
            )
        if values.is_floating_point() and not torch.isfinite(values[mask]).all():
            raise ValueError(f"column {name!r}: a real token is not finite")
    elif isinstance(column, Tensor):
        if column.layout != torch.strided or column.is_meta:
            raise TypeError(f"column {name!r}: a dense tensor with values is needed, got "
                            f"{column.layout} on {column.device}: .to_dense() it")
        if column.dim() == 0:
            raise ValueError(f"column {name!r}: a tensor needs rows, got a scalar")
        if column.is_floating_point() and not torch.isfinite(column).all():
            bad = ~torch.isfinite(column).reshape(len(column), -1).all(1)
            row = int(bad.nonzero()[0])
            raise ValueError(
                f"column {name!r}: row {row} is not finite; drop it or mark it missing "
                "with present={…} and zeros"
            )
    elif isinstance(column, list):
        for row, text in enumerate(column):
            if not isinstance(text, str):
                raise TypeError(
                    f"column {name!r}: row {row} is {text!r}, a list holds texts; "
                    "pictures and sounds go into Lazy, numbers into a tensor"
                )
            if half := half_pair(text):
                raise ValueError(
                    f"column {name!r}: row {row} holds half a surrogate pair at character "
                    f"{half - 1}, which no file can hold; decode the text anew or drop it "
                    "(text.encode('utf-8', 'ignore').decode())"
                )
    elif not isinstance(column, Lazy):
        raise TypeError(
            f"column {name!r} must be a tensor, Tokens, Lazy or a list of texts, "
            f"got {type(column).__name__}"
        )


def digest(column: Column, *, told: bool = True) -> str:
    """sha256 (hex) of a column's content; of pictures, sounds and videos that of what
    decides it. told: of a corpus's own ones the provenance tells how they are read."""
    sha = hashlib.sha256()
    for part in column if isinstance(column, Tokens) else (column,):
        if isinstance(part, Tensor):
            sha.update(f"{part.dtype}{tuple(part.shape)}".encode())
            sha.update(part.detach().cpu().contiguous().view(torch.uint8).numpy())
        elif isinstance(part, Lazy):
            if part.version != BY_PROVENANCE or not told:
                return decided(part)[0]
            for source in part.sources:
                is_file = isinstance(source, Path) and source.is_file()
                sha.update(source.read_bytes() if is_file else repr(source).encode())
        else:
            for text in part:
                sha.update(f"{len(text)}:{text}".encode())
    return sha.hexdigest()


def decided(column: Lazy) -> tuple[str, list[str]]:
    """(sha256 in hex of what decides its rows, what of it cannot be told)."""
    if column.version not in (None, BY_PROVENANCE):
        named = repr([column.version, column.kind, column.sources])
        return hashlib.sha256(named.encode("utf-8", "surrogatepass")).hexdigest(), []
    return keys.content(column.sources, column.read, column.kind)


def shape_of(column: Column) -> str:
    """A column in a few words."""
    if isinstance(column, Tokens):
        return f"tokens {list(column.values.shape)}"
    if isinstance(column, Lazy):
        return f"{column.kind}s, read when asked for"
    if isinstance(column, Tensor):
        return f"{str(column.dtype).removeprefix('torch.')} {list(column.shape)}"
    return f"texts, e.g. {column[0]!r}" if column else "texts"
