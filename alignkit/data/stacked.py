"""Corpora one under another: things that are seen, heard, said and felt in different places
become rows of one table, and equal names one item."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from alignkit.data.columns import Column, Lazy
from alignkit.data.corpora import plain, together
from alignkit.data.pairs import Pairs, Provenance

RECIPE = "stacked 2"
# What OpenMoji, Sweet Home 3D or Tux Paint call by another name than the rest: other spellings,
# numbers, short forms, plain synonyms.
SAME = {
    "bath": "bathtub", "bee": "honeybee", "big fireworks": "fireworks", "bike": "bicycle",
    "black bird": "blackbird", "checkered flag": "chequered flag", "couch": "sofa",
    "cup cake": "cupcake", "extinguisher": "fire extinguisher", "fire truck": "fire engine",
    "fridge": "refrigerator", "glove": "gloves", "hashtray": "ashtray", "keys": "key",
    "letters box": "mailbox", "lip stick": "lipstick", "motorbike": "motorcycle",
    "pedestrian crossing (“ped xing”)": "pedestrian crossing", "phone": "telephone",
    "postbox": "mailbox", "puzzle": "puzzle piece", "short": "shorts",
    "street light": "street lamp", "suv": "sport utility vehicle", "tulips": "tulip",
    "tv": "television", "wheelchair": "manual wheelchair"}


def stack(parts: Mapping[str, Pairs], names: Mapping[str, str] | None = None,
          equal: Sequence[str] = ()) -> Pairs:
    """The rows of all `parts`, one part after the other; a row lacks the columns that its
    part has not (`present`).

    Rows whose texts have the same `bare_name` are one item, and their groups one group:
    Tux Paint's "A dog." and OpenMoji's "dog" are right answers to each other. ids are
    "part id"; the label `part` says where a row comes from. Labels and tables are left out.

    Args:
        parts: name -> pairs with the column `text`; columns of one name are of one kind, and
            tensors of one shape a row.
        names: bare name -> the bare name of the same thing, {"lip stick": "lipstick"}.
        equal: columns of features; rows that have the same numbers in one are one item, such
            as two animals that share a recording.

    Raises: ValueError for no parts, columns of one name that do not fit together, a name of
        `names` that no row has, or a column of `equal` that is none of tensors; KeyError for
        a part without `text`.
    """
    if not parts:
        raise ValueError("parts is empty: give at least one, {'emoji': emoji()}")
    ids = [f"{name} {i}" for name, rows in parts.items() for i in rows.ids]
    texts = [bare_name(text) for rows in parts.values() for text in rows["text"]]
    names = dict(names or {})
    if unknown := sorted({*names} - {*texts}):
        raise ValueError(f"names: no row is called {unknown}; see `bare_name`")
    columns = list(dict.fromkeys(c for rows in parts.values() for c in rows.columns))
    items = [(name, k) for name, rows in parts.items() for k in rows.item.tolist()]
    groups = [(name, k) for name, rows in parts.items() for k in rows.group.tolist()]
    called = [("name", names.get(text, text)) for text in texts]
    item = together([(*key, *numbers) for *key, numbers in zip(
        items, called, _numbers(parts, equal), strict=True)])
    told = "\n".join([f"{name} {rows.provenance.hash}" for name, rows in parts.items()]
                     + [str(sorted(names.items())), str(list(equal))])
    kinds = {rows.provenance.kind for rows in parts.values()}
    return Pairs.make(
        {c: _under(c, parts) for c in columns}, ids=ids, item=item,
        group=together(list(zip(groups, item, strict=True))),
        present={c: torch.cat([rows.present[c] if c in rows.columns
                               else torch.zeros(len(rows), dtype=torch.bool)
                               for rows in parts.values()]) for c in columns},
        labels={"part": torch.cat([torch.full((len(rows),), k)
                                   for k, rows in enumerate(parts.values())])},
        label_names={"part": list(parts)},
        provenance=Provenance(
            " + ".join(parts), kinds.pop() if len(kinds) == 1 else "composed",
            "; ".join(dict.fromkeys(r.provenance.licence for r in parts.values())),
            "; ".join(dict.fromkeys(r.provenance.source for r in parts.values())), RECIPE,
            hashlib.sha256(f"{RECIPE}\n{told}".encode()).hexdigest()))


def bare_name(text: str) -> str:
    """"A dog." and "Dog" -> "dog": without article, case and final stop."""
    return re.sub(r"^(an?|the)\s+", "", plain(text))


def thing(text: str) -> str:
    """"A bike." and "Bicycle" -> "bicycle": the bare name, and of several in `SAME` one."""
    name = bare_name(text)
    return SAME.get(name, name)


def _numbers(parts: Mapping[str, Pairs], equal: Sequence[str]) -> list[list[tuple]]:
    """For each row its (column, bytes) of those of `equal` that it has."""
    found: list[list[tuple]] = [[] for rows in parts.values() for _ in range(len(rows))]
    for column in equal:
        if not any(isinstance(rows.columns.get(column), Tensor) for rows in parts.values()):
            raise ValueError(f"equal: no part has features {column!r}")
        at = 0
        for rows in parts.values():
            if column in rows.columns:
                for k in rows.present[column].nonzero()[:, 0].tolist():
                    found[at + k].append((column, rows[column][k].numpy().tobytes()))
            at += len(rows)
    return found


def _under(name: str, parts: Mapping[str, Pairs]) -> Column:
    """The column `name` of all parts; where a part lacks it, empty rows."""
    here = [rows[name] for rows in parts.values() if name in rows.columns]
    first = here[0]
    if len({type(column) for column in here}) > 1:
        raise ValueError(f"column {name!r} is of several kinds: "
                         f"{sorted({type(column).__name__ for column in here})}")
    if isinstance(first, Lazy):
        if len({column.kind for column in here}) > 1:
            raise ValueError(f"column {name!r} holds {sorted({c.kind for c in here})}")
        readers = {part: rows[name].read for part, rows in parts.items()
                   if name in rows.columns}
        sources = [(part, rows[name].sources[k] if part in readers else None)
                   for part, rows in parts.items() for k in range(len(rows))]
        told = {column.version for column in here}
        version = (told.pop() if len(told) == 1 else None if None in told
                   else f"{RECIPE} {sorted(told)}")
        return Lazy(sources, partial(_read, readers=readers), first.kind, version)
    if isinstance(first, Tensor):
        if len({column.shape[1:] for column in here}) > 1:
            raise ValueError(f"column {name!r}: rows are {[list(c.shape[1:]) for c in here]}")
        return torch.cat([rows[name] if name in rows.columns
                          else first.new_zeros(len(rows), *first.shape[1:])
                          for rows in parts.values()])
    if isinstance(first, list):
        return [text for rows in parts.values() for text in (
            rows[name] if name in rows.columns else [""] * len(rows))]
    raise ValueError(f"column {name!r}: {type(first).__name__} cannot be stacked")


def _read(source: tuple, readers: Mapping) -> object:
    """A row of a stacked column; KeyError where its part has none."""
    part, inner = source
    return readers[part](inner)
