"""`Pairs`: columns aligned by row, the one shape of data that every method takes."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from alignkit.data import shard_files, storage
from alignkit.data.columns import (
    BY_PROVENANCE, Column, Lazy, Tokens, check_column, digest, length, made_of, parent,
    row_numbers, shape_of, take, texts, whole_numbers,
)  # fmt: skip
from alignkit.data.tables import Table, open_picture, read_folder, read_table


@dataclass(frozen=True)
class Provenance:
    """Where the rows come from: shown on figures and written into every result."""

    name: str
    kind: Literal["real", "composed", "generated", "user"]
    licence: str
    source: str
    recipe: str
    hash: str

    def derive(self, step: str) -> "Provenance":
        """The provenance after a change of the content that `step` describes."""
        new = hashlib.sha256(f"{self.hash}\n{step}".encode()).hexdigest()
        return replace(self, recipe=f"{self.recipe}; {step}", hash=new)


class Splits(NamedTuple):
    """Three disjoint sets of rows; no group stands in two of them."""

    train: "Pairs"
    val: "Pairs"
    test: "Pairs"


@dataclass(frozen=True)
class Pairs:
    """n aligned rows.

    columns: name -> tensor [n, …], `Tokens`, `Lazy` pictures or sounds, or texts.
    ids [n]: a name a row (numbers are written out). item [n]: rows of equal item are right
    answers to each other (many captions an image share one). group [n]: variants of one
    thing, kept on one side of a split; never finer than item. present[column] [n]: False
    where that modality is missing. labels[name] [n]: classes, named in label_names[name].
    tables: what is not a row (edges, interactions, a vocabulary, boxes).
    """

    columns: dict[str, Column]
    ids: list[str]
    item: Tensor
    group: Tensor
    present: dict[str, Tensor]
    labels: dict[str, Tensor]
    label_names: dict[str, list[str]]
    provenance: Provenance
    tables: dict[str, object] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        columns: Mapping[str, Column],
        *,
        ids: Sequence[str] | None = None,
        item: Sequence[int] | Tensor | None = None,
        group: Sequence[int] | Tensor | None = None,
        present: Mapping[str, Tensor] | None = None,
        labels: Mapping[str, Tensor] | None = None,
        label_names: Mapping[str, list[str]] | None = None,
        tables: Mapping[str, object] | None = None,
        provenance: Provenance | None = None,
    ) -> "Pairs":
        """Build pairs, filling what is not given and refusing what does not fit.

        Raises ValueError naming the column or field whose length, type or values are
        wrong, and TypeError for something that cannot be a column.
        """
        if not columns:
            raise ValueError("columns is empty: give at least one, {'image': x}")
        for name, column in columns.items():
            check_column(name, column)
        n = length(next(iter(columns.values())))
        if not n:
            raise ValueError(f"column {[*columns][0]!r} has no rows")
        ids = [str(i) for i in range(n)] if ids is None else texts("ids", ids)
        item = torch.arange(n) if item is None else whole_numbers("item", item)
        group = item if group is None else whole_numbers("group", group)
        present = {name: torch.ones(n, dtype=torch.bool) for name in columns} | {
            k: whole_numbers(f"present[{k!r}]", v).bool() for k, v in (present or {}).items()}
        labels = {k: whole_numbers(f"labels[{k!r}]", v) for k, v in (labels or {}).items()}
        for name, part in {"ids": ids, "item": item, "group": group, **columns,
                           **{f"present[{k!r}]": v for k, v in present.items()},
                           **{f"labels[{k!r}]": v for k, v in labels.items()}}.items():
            if length(part) != n:
                raise ValueError(f"{name} has {length(part)} rows, the first column has "
                                 f"{n}: every part of Pairs needs one entry a row")
        if len(set(ids)) != n:
            twice, _ = Counter(ids).most_common(1)[0]
            raise ValueError(f"ids must differ: {twice!r} stands more than once")
        if unknown := set(present) - set(columns):
            raise ValueError(f"present names {sorted(unknown)}, which are no columns")
        if len(torch.stack([item, group]).unique(dim=1)[0]) != len(item.unique()):
            raise ValueError("group splits an item: rows of one item need one group")
        if not provenance:
            sha = hashlib.sha256(repr([(k, digest(c, told=False))
                                       for k, c in columns.items()]).encode())
            provenance = Provenance("my pairs", "user", "the user's own", "in memory",
                                    "make 1", sha.hexdigest())
        return cls(dict(columns), ids, item, group, present, labels,
                   {k: list(v) for k, v in (label_names or {}).items()}, provenance,
                   dict(tables or {}))

    @classmethod
    def from_features(cls, features: Mapping[str, Tensor], **rest) -> "Pairs":
        """Pairs of features that you computed yourself: {'image': [n, d], 'text': …}.

        `rest` is passed to `make` (item, labels, …). Raises as `make` does.
        """
        for name, x in features.items():
            if not isinstance(x, Tensor | Tokens):
                raise TypeError(f"features[{name!r}] must be a torch tensor [n, d] or "
                                f"Tokens, got {type(x).__name__}: torch.as_tensor(x)")
        return cls.make(features, **rest)

    @classmethod
    def from_table(cls, path: str | Path, image: str = "image",
                   caption: str = "caption") -> "Pairs":
        """Pictures and captions from a CSV; several rows may name one picture.

        Picture paths are relative to the table. Columns: `image` (Lazy), `text`.
        Raises FileNotFoundError or ValueError naming the line.
        """
        table = read_table(Path(path), image, caption)
        return cls._from_files(table, Path(path))

    @classmethod
    def from_folder(cls, path: str | Path) -> "Pairs":
        """Pictures beside captions: `cat.png` and `cat.txt` (a caption a line)."""
        return cls._from_files(read_folder(Path(path)), Path(path))

    @classmethod
    def _from_files(cls, table: Table, path: Path) -> "Pairs":
        pictures = Lazy(table.pictures, open_picture)
        raw = digest(Lazy(table.pictures, open_picture, version=BY_PROVENANCE))  # bytes
        sha = hashlib.sha256((raw + digest(table.captions)).encode())
        provenance = Provenance(path.stem, "user", "the user's own", path.name,
                                "table 1", sha.hexdigest())
        return cls.make({"image": pictures, "text": table.captions}, ids=table.ids,
                        item=table.item, provenance=provenance)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, column: str) -> Column:
        if column not in self.columns:
            raise KeyError(f"no column {column!r}; there are {sorted(self.columns)}")
        return self.columns[column]

    def select(self, rows: Sequence[int] | Tensor) -> "Pairs":
        """The rows `rows` (indices, or a bool mask [n]), in that order.

        Raises ValueError for a mask of another length, IndexError for a row that is not
        there (−1 is the last one), TypeError for what is no row number.
        """
        rows = row_numbers(rows, len(self))
        return replace(
            self,
            columns={name: take(column, rows) for name, column in self.columns.items()},
            ids=take(self.ids, rows),
            item=self.item[rows],
            group=self.group[rows],
            present={name: mask[rows] for name, mask in self.present.items()},
            labels={name: label[rows] for name, label in self.labels.items()},
        )

    def first_of_item(self) -> Tensor:
        """Row numbers [n_items] of each item's first row, in order."""
        seen, rows = set(), []
        for row, item in enumerate(self.item.tolist()):
            if item not in seen:
                seen.add(item)
                rows.append(row)
        return torch.tensor(rows, dtype=torch.long)

    def only(self, *names: str) -> "Pairs":
        """The columns `names` alone: batches are cut faster."""
        return replace(self, columns={name: self[name] for name in names},
                       present={name: self.present[name] for name in names})

    def with_columns(self, **columns: Column) -> "Pairs":
        """New content: columns added or replaced, and the hash changed with them.

        Features made of a replaced column would be of the old one: they are dropped.
        """
        told = [getattr(c, "read", None) for c in self.columns.values()]
        made = "; ".join(f"{k}={digest(c, told=getattr(c, 'read', None) in told)[:12]}"
                         for k, c in columns.items())
        stale = {c for name in columns if name in self.columns
                 for c in made_of(name, self.columns)} - set(columns)
        kept = {name: c for name, c in self.columns.items() if name not in stale}
        present = {name: mask for name, mask in self.present.items() if name in kept}
        fresh = replace(self, columns=kept, present=present,
                        provenance=self.provenance.derive(f"columns {made}"))
        return fresh.with_features(**columns)

    def with_features(self, **columns: Column) -> "Pairs":
        """Columns computed from those that are here: the provenance stays as it is.

        A feature is missing where the column it is named after (`image_…`) is.
        """
        for name, column in columns.items():
            check_column(name, column)
            if length(column) != len(self):
                raise ValueError(f"column {name!r} has {length(column)} rows, the pairs "
                                 f"{len(self)}")
        present, together = dict(self.present), {**self.columns, **columns}
        for name in sorted(columns.keys() - present.keys(), key=len):
            source = parent(name, together)
            present[name] = (present[source] if source
                             else torch.ones(len(self), dtype=torch.bool))
        return replace(self, columns=together, present=present)

    def with_present(self, column: str, mask: Tensor) -> "Pairs":
        """`column` and the features made of it are missing where mask [n] is False."""
        self[column]
        mask = whole_numbers("mask", mask).bool()
        if mask.shape != (len(self),):
            raise ValueError(f"mask has shape {tuple(mask.shape)}, need ({len(self)},)")
        masked = {c: self.present[c] & mask for c in made_of(column, self.columns)}
        return replace(self, present={**self.present, **masked})

    def batch(self) -> dict:
        """The rows as a plain dict: the columns, and under keys of their own `ids`,
        `item` [n], `present` and `labels`; texts and pictures stay as they are."""
        return {**self.columns, "ids": self.ids, "item": self.item,
                "present": self.present, "labels": self.labels}

    def split(self, seed: int, fractions: Sequence[float] = (0.7, 0.1, 0.2)) -> Splits:
        """Redraw train, val and test by group.

        Raises ValueError if the fractions are wrong or a part would hold no group.
        """
        if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-9:
            raise ValueError(f"fractions: three positive numbers, sum 1; got {fractions}")
        groups = self.group.unique()
        n_val, n_test = (round(f * len(groups)) for f in fractions[1:])
        n_train = len(groups) - n_val - n_test
        if min(n_train, n_val, n_test) < 1:
            raise ValueError(f"a split {tuple(fractions)} needs more than {len(groups)} "
                             "different items (rows that share a picture count once)")
        order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
        parts = groups[order].split([n_train, n_val, n_test])
        return Splits(*(self.select(torch.isin(self.group, part)) for part in parts))

    def describe(self) -> str:
        """A few lines: rows, items, columns, labels, what is missing, the source."""
        p, items, groups = self.provenance, self.item.unique(), self.group.unique()
        lines = [f"{p.name} ({p.kind}): {len(self)} rows, {len(items)} items, "
                 f"{len(groups)} groups"]
        for name, column in self.columns.items():
            missing = int((~self.present[name]).sum())
            lines.append(f"  {name}: {shape_of(column)}"
                         + (f", {missing} missing" if missing else ""))
        for name, label in self.labels.items():
            lines.append(f"  label {name}: {len(label.unique())} classes")
        for name, table in self.tables.items():
            lines.append(f"  table {name}: {type(table).__name__}")
        lines.append(f"  source: {p.source}; licence: {p.licence}; hash {p.hash[:12]}")
        return "\n".join(lines)

    def save(self, folder: str | Path) -> None:
        """Write everything to a new folder (safetensors, JSON, PNG and WAV).

        Raises FileExistsError if the folder is there: nothing is overwritten.
        """
        storage.save(Path(folder), self.columns, {
            "ids": self.ids, "item": self.item, "group": self.group,
            "present": self.present, "labels": self.labels,
            "label_names": self.label_names, "tables": self.tables,
            "provenance": asdict(self.provenance)})

    @classmethod
    def load(cls, folder: str | Path) -> "Pairs":
        """Read what `save` or `write_shards` wrote (FileNotFoundError, ValueError)."""
        is_sharded = Path(folder, shard_files.MANIFEST).is_file()
        columns, rest = (shard_files if is_sharded else storage).load(Path(folder))
        try:
            rest["provenance"] = Provenance(**rest["provenance"])
            return cls.make(columns, **rest)
        except (TypeError, LookupError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{folder} is damaged: {error}; save it again") from None
