"""Pairs in webdataset shards: write them, open them without reading the tars, or read
them shard by shard.

    write_shards(samples, "flickr/", name="Flickr30k", licence="…", source="…")
    pairs = open_shards("flickr/")             # Pairs.load("flickr/") does the same
    train, val, test = official_splits(pairs)  # or pairs.split(seed)
    for pairs in read_shards("flickr/", start=7): ...

`webdataset.WebDataset("flickr/{00000..00031}.tar")` reads them too.
"""

import warnings
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import torch

from alignkit.data import shard_files
from alignkit.data.blobs import COLUMN, Blob
from alignkit.data.download import file_hash
from alignkit.data.pairs import Pairs, Provenance, Splits
from alignkit.data.samples import Sample, Seen, Skipped, writable_text
from alignkit.data.shard_files import SPLITS
from alignkit.data.writing import clear, only_writer

__all__ = ["Sample", "Skipped", "changed_shards", "official_splits", "open_shards",
           "read_shards", "write_shards"]


def write_shards(
    samples: Iterable[Sample | Skipped], folder: str | Path, *, name: str,
    licence: str, source: str, kind: str = "real", recipe: str = "shards 1",
    items_per_shard: int = 1000, downloads: Iterable[dict] = (),
) -> None:  # fmt: skip
    """Write tar shards (KEY.jpg, KEY.json) and, when all are whole, `shards.json`.

    Pictures and sounds are kept as the bytes that they came as; each is decoded once.
    A sample whose file fails, or with a caption, label or group that is no text, blank or
    holds half a surrogate pair, is skipped, counted in a warning and named in
    `tables["skipped"]`. Shards of a run that was cut off are removed, and said.

    Args:
        samples: items, each with a key of its own; `Skipped` ones are only recorded.
        folder: a new folder, or one where an earlier call was cut off.
        name, licence, source, kind, recipe: the pairs' `Provenance`.
        downloads: what the data were made of (URL, sha256, …), for the manifest.

    Raises: FileExistsError if `folder` holds whole shards, tars that are not alignkit's
        or another writer is at work there: nothing is overwritten; ValueError for a
        wrong or second key, ending, split or other labels than before, and if no item
        could be written.
    """
    folder, samples, seen = Path(folder), iter(samples), Seen()
    if (folder / shard_files.MANIFEST).exists():
        raise FileExistsError(f"{folder} holds shards: name a new folder")
    if items_per_shard < 1:
        raise ValueError(f"items_per_shard must be at least 1, got {items_per_shard}")
    provenance = {"name": name, "kind": kind, "licence": licence, "source": source,
                  "recipe": recipe}
    for field, text in provenance.items():
        if writable_text(text) != text:
            raise ValueError(f"{field} must be a text that UTF-8 can hold, got "
                             f"{writable_text(text)!r}")
    with only_writer(folder):
        clear(folder)
        count = 0
        while batch := list(islice(map(seen.check, samples), items_per_shard)):
            shard_files.write_shard(batch, folder, count)
            count += 1
        shard_files.write_manifest(folder, count, provenance, list(downloads))
    shards = shard_files.read_manifest(folder)["shards"]
    tell([one for shard in shards for one in
          shard_files.read_index(folder, shard)["skipped"]])


def tell(skipped: list) -> None:
    """Warn of the samples [key, reason] that were skipped: how many, which, and why."""
    if skipped:
        shown = "; ".join(f"{key}: {reason}" for key, reason in skipped[:10])
        warnings.warn(f"{len(skipped)} samples were skipped (tables['skipped'] names "
                      f"all): {shown}{' …' if len(skipped) > 10 else ''}", stacklevel=3)


def open_shards(folder: str | Path) -> Pairs:
    """The shards of `folder` as Pairs; the tars are read when a row is asked for.

    A row is a caption (an item without one is a row too); rows of one picture, sound
    or video share an `item`. Columns: those of `image`, `sound`, `video` (Lazy, eight
    frames), `points` (a tensor, read now) and `text` that the shards have. The labels
    have an official split as `labels["split"]` (0 train, 1 val, 2 test): see
    `official_splits`; `Pairs.split(seed)` ignores it and redraws all rows by group.
    `tables["skipped"]`: [key, reason] of each sample that is not here. A row whose
    bytes have changed since raises ValueError when it is read.

    Raises FileNotFoundError or ValueError for a folder without whole shards.
    """
    if not (Path(folder) / shard_files.MANIFEST).is_file():
        shard_files.read_manifest(Path(folder))  # says what is missing
    return Pairs.load(folder)


def changed_shards(folder: str | Path) -> list[str]:
    """The tars whose sha256 is not the manifest's; reads them all."""
    folder = Path(folder)
    return [shard["file"] for shard in shard_files.read_manifest(folder)["shards"]
            if not (folder / shard["file"]).is_file()
            or file_hash(folder / shard["file"]) != shard["sha256"]]


def official_splits(pairs: Pairs, seed: int = 0, val: float = 0.1) -> Splits:
    """The data set's own train, val and test.

    Where it has no val, a share `val` of the train groups is drawn for it with `seed`.
    Raises ValueError if there are no official splits, or train or test is empty.
    """
    if "split" not in pairs.labels:
        raise ValueError("these pairs have no labels['split']: use pairs.split(seed)")
    parts = [pairs.labels["split"] == number for number in range(len(SPLITS))]
    if not parts[0].any() or not parts[2].any():
        raise ValueError("the official split has no train or no test rows: use "
                         "pairs.split(seed)")
    if not parts[1].any():
        groups = pairs.group[parts[0]].unique()
        draw = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(groups), generator=draw)
        drawn = groups[order[: max(1, round(val * len(groups)))]]
        parts[1] = parts[0] & torch.isin(pairs.group, drawn)
        parts[0] = parts[0] & ~parts[1]
    return Splits(*(pairs.select(part) for part in parts))


def read_shards(folder: str | Path, start: int = 0) -> Iterator[Pairs]:
    """One Pairs a shard, each tar read once and in order, by the webdataset library.

    For passes over data that do not fit a cache; a thread reads the next tar while you
    work with this one, so two are in memory. Goes on at shard `start`, with the
    same ids, items, groups and labels as `open_shards`, and the shard's number as
    `tables["shard"]`. A sample that is damaged or no longer there is skipped, stands in
    `tables["skipped"]` and is counted in a warning at the end; a shard without a whole
    sample gives no Pairs. Raises ValueError if `start` is out of range.
    """
    folder = Path(folder)
    manifest = shard_files.read_manifest(folder)
    if not 0 <= start < len(manifest["shards"]):
        raise ValueError(f"start must be in 0 … {len(manifest['shards']) - 1}, "
                         f"got {start}")
    told, left = [], manifest["shards"][start:]
    for (place, shard), found in zip(enumerate(left, start), _ahead(
            [folder / shard["file"] for shard in left]), strict=True):
        index, items = shard_files.read_index(folder, shard), []
        skipped = list(index["skipped"])
        for number, item in enumerate(index["items"], shard["first"]):
            files = found.get(item["key"], {})
            if reason := _fault(item, files):
                skipped.append([item["key"], f"{shard['file']}: {reason}"])
                continue
            sources = {COLUMN[ending]: Blob(f"{item['key']}.{ending}", files[ending])
                       for ending in item["members"] if ending != "json"}
            items.append((number, item, sources))
        told += skipped
        if items:
            columns, rest = shard_files.table(manifest, items, skipped, _itself)
            rest["provenance"] = Provenance(**rest["provenance"])
            rest["tables"]["shard"] = place
            yield Pairs.make(columns, **rest)
    tell(told)


def _itself(blob: Blob) -> Blob:
    return blob


def _ahead(tars: list[Path]) -> Iterator[dict[str, dict[str, bytes]]]:
    """What `_stream` finds in each, one ahead."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(_stream, tars[0])
        for after in [*tars[1:], None]:
            found = coming.result()
            coming = after and thread.submit(_stream, after)
            yield found


def _stream(tar: Path) -> dict[str, dict[str, bytes]]:
    """{key: {ending: bytes}} as far as webdataset can read the tar."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    def go_on(error: Exception) -> bool:
        return True  # what is lost shows when it is compared with the index

    with tar.open("rb") as file:
        source = [{"url": str(tar), "stream": file}]
        groups = list(group_by_keys(tar_file_expander(source, handler=go_on),
                                    handler=go_on))
    found: dict[str, dict[str, bytes]] = {}
    for sample in groups:  # of a tar packed anew, a sample's files may stand apart
        found.setdefault(sample["__key__"], {}).update(sample)
    return found


def _fault(item: dict, files: dict[str, bytes]) -> str:
    """Why a sample of the index cannot be used, "" if it can."""
    if not files:
        return "the tar ends before it, or lacks it"
    for ending, (_, _, crc) in item["members"].items():
        if ending not in files:
            return f"it has no {ending}"
        if zlib.crc32(files[ending]) != crc:
            return f"its {ending} is damaged"
    return ""
