"""Features on disk: shards of rows that survive a kill, a crash and a second process.

A `Store` is one folder: the features of some rows from one encoder at one layer. Rows
are written in blocks of 256; a block is safe once `index.json` names its shards with
their sha256, so work that was stopped goes on at the next block.
"""

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import Timeout
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from alignkit.data.columns import Tokens
from alignkit.data.cache_folder import cache_dir, lock_of, writable

BLOCK = 256  # rows between two points from which work can go on
SHARD_BYTES = 64 * 2**20


class Store:
    """Features of `rows` rows that `fields` describe; their hash names the folder, in the
    cache or in `parent`.

    Only a process that holds `locked()` may call `write`.
    """

    def __init__(self, fields: dict, rows: int, parent: str | Path | None = None):
        text = json.dumps(fields, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        self.fields, self.rows = fields, rows
        self.folder = Path(parent or cache_dir() / "features") / key

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the one writer; says so where another process has to be waited for."""
        writable(self.folder.parent)
        lock = lock_of(self.folder.with_suffix(".lock"))
        try:
            lock.acquire(timeout=2)
        except Timeout:
            print("another process is encoding these rows: waiting", file=sys.stderr)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def missing(self) -> list[int]:
        """Blocks to encode: never written, or damaged (then with a warning)."""
        index = self._index()
        blocks = range(-(-self.rows // BLOCK))
        return [b for b in blocks if str(b) not in index or not self._whole(b, index)]

    def write(self, block: int, x: Tensor | Tokens, notes: dict | None = None) -> None:
        """Save block number `block`, in as many shards as 64 MiB a shard asks for; and
        what was seen of its rows, words -> [how many, the first]."""
        parts = {"values": x.values, "mask": x.mask} if isinstance(x, Tokens) else {
            "values": x}
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob("*.tmp"):  # of a writer that was killed
            left.unlink()
        n = len(parts["values"])
        row_bytes = sum(p.nbytes for p in parts.values()) // n
        step = max(1, SHARD_BYTES // (row_bytes + 1))
        shards = []
        for number, start in enumerate(range(0, n, step)):
            path = self.folder / f"{block:06d}-{number:03d}.safetensors"
            temporary = path.with_suffix(".tmp")
            piece = {k: p[start:start + step].contiguous() for k, p in parts.items()}
            save_file(piece, temporary)
            digest = _sha256(temporary)
            os.replace(temporary, path)
            shards.append({"file": path.name, "start": block * BLOCK + start,
                           "shape": list(piece["values"].shape), "sha256": digest})
        index = self._index() | {str(block): shards}
        noted = self.notes() | {str(block): notes or {}}
        whole = {"fields": self.fields, "rows": self.rows, "blocks": index,
                 "notes": {key: value for key, value in noted.items() if value}}
        temporary = self.folder / "index.tmp"
        temporary.write_text(json.dumps(whole, indent=1), "utf-8")
        os.replace(temporary, self.folder / "index.json")

    def read(self, at: Tensor) -> Tensor | Tokens:
        """Rows `at` [m] of the store (−1: a missing row, zeros and mask False).

        Shards are mapped, not loaded: beside the result, one shard's rows are held.
        """
        shards = [shard for block in self._index().values() for shard in block]
        shapes = [s["shape"][1:] for s in shards]
        # Token blocks are padded to their own longest row: the longest of all decides.
        shape = [max(sizes) for sizes in zip(*shapes, strict=True)]
        values = torch.zeros(len(at), *shape)
        mask = None
        if len(shape) == 2:
            mask = torch.zeros(len(at), shape[0], dtype=torch.bool)
        for shard in shards:
            place = at - shard["start"]
            here = ((place >= 0) & (place < shard["shape"][0])).nonzero()[:, 0]
            if not len(here):
                continue
            with safe_open(self.folder / shard["file"], "pt") as file:
                mapped = file.get_tensor("values")
                if mask is None:
                    values[here] = mapped[place[here]]
                else:
                    t = mapped.shape[1]
                    values[here, :t] = mapped[place[here]]
                    mask[here, :t] = file.get_tensor("mask")[place[here]]
                del mapped  # unmaps this shard before the next
        return values if mask is None else Tokens(values, mask)

    def notes(self) -> dict[str, dict[str, tuple[int, str]]]:
        """What was seen of each block's rows when they were encoded."""
        return (self._read_index() or {}).get("notes", {})

    def _index(self) -> dict[str, list[dict]]:
        found = self._read_index()
        if found is not None:
            return found.get("blocks", {})
        warnings.warn(f"feature cache: {self.folder / 'index.json'} is damaged; its rows "
                      "are encoded again", stacklevel=4)
        return {}

    def _read_index(self) -> dict | None:
        """index.json, {} where there is none yet, None where it is damaged."""
        try:
            found = json.loads((self.folder / "index.json").read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            return None
        is_whole = isinstance(found, dict) and found.get("rows") == self.rows and (
            isinstance(found.get("blocks"), dict))
        return found if is_whole else None

    def _whole(self, block: int, index: dict) -> bool:
        for shard in index[str(block)]:
            path = self.folder / shard["file"]
            if not path.is_file() or _sha256(path) != shard["sha256"]:
                warnings.warn(
                    f"feature cache: {path} is damaged or gone; rows from "
                    f"{shard['start']} on are encoded again", stacklevel=4)
                return False
        return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
