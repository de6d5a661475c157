"""Shards on disk: tars as webdataset reads them, each with an index, and a manifest
that is written last. One item is read out of a tar without unpacking it."""

import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from alignkit.data.blobs import COLUMN, KIND, READ, Blob, Place, fetch, read
from alignkit.data.columns import Lazy
from alignkit.data.keys import content
from alignkit.data.samples import SPLITS, Sample, Skipped, check, writable_text

FORMAT, MANIFEST = 1, "shards.json"


# Writing ------------------------------------------------------------------------------
def write_shard(samples: Iterable[Sample | Skipped], folder: Path, number: int) -> None:
    """Write `00007.tar`, then its index `00007.json`; temporary names come first.

    Every picture, sound, … is decoded once; samples that fail stand in the index as
    skipped. Raises ValueError for a wrong key, ending or split.
    """
    path = folder / f"{number:05d}.tar"
    part, items, skipped = path.with_suffix(".part"), [], []
    with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            if isinstance(sample, Sample):
                sample = check(sample)
            if isinstance(sample, Sample):
                sample = _load(sample)
            if isinstance(sample, Skipped):
                skipped.append([writable_text(part) for part in sample])
                continue
            about = {"key": sample.key, "captions": list(sample.captions),
                     "labels": sample.labels, "group": sample.group,
                     "split": sample.split}
            text = json.dumps(about, ensure_ascii=False).encode()
            crcs = {}
            for ending, raw in {**sample.files, "json": text}.items():
                info = tarfile.TarInfo(f"{sample.key}.{ending}")
                info.size, crcs[ending] = len(raw), zlib.crc32(raw)
                tar.addfile(info, io.BytesIO(raw))
            items.append(about | {"members": crcs})
    with tarfile.open(part) as tar:
        lies = {info.name: [info.offset_data, info.size] for info in tar}
    for item in items:
        item["members"] = {ending: [*lies[f"{item['key']}.{ending}"], crc]
                           for ending, crc in item["members"].items()}
    with part.open("rb") as file:
        sha = hashlib.file_digest(file, "sha256").hexdigest()
    os.replace(part, path)
    _write_json(path.with_suffix(".json"), {"sha256": sha, "bytes": path.stat().st_size,
                                            "items": items, "skipped": skipped})


def _load(sample: Sample) -> Sample | Skipped:
    """The sample with its bytes, if they can be decoded."""
    files = {}
    for ending, content in sample.files.items():
        try:
            raw = content.read_bytes() if isinstance(content, Path) else bytes(content)
            READ[COLUMN[ending]](Blob(f"its {ending}", raw))
        except FileNotFoundError:
            return Skipped(sample.key, f"there is no file {Path(content).name}")
        except (ValueError, OSError) as error:
            return Skipped(sample.key, str(error))
        files[ending] = raw
    return replace(sample, files=files) if files else Skipped(sample.key,
                                                              "it has no file")


def write_manifest(
    folder: Path, count: int, provenance: dict, downloads: list[dict]
) -> None:
    """Write `shards.json` from the indexes of the first `count` shards of `folder`.

    provenance: the fields of a `Provenance` but its hash, which is of the tars.
    Raises ValueError if two items have one key, or only some have a label or split.
    """
    shards, keys, names, columns = [], set(), {}, set()
    for number in range(count):
        index, first = _read_json(folder / f"{number:05d}.json"), len(keys)
        for item in index["items"]:
            labels = _labels(item)
            if item["key"] in keys:
                raise ValueError(f"two items have the key {item['key']!r}")
            if keys and set(labels) != set(names):
                raise ValueError(f"{item['key']}: labels {sorted(labels)}, the items "
                                 f"before have {sorted(names)}; each needs all")
            keys.add(item["key"])
            columns |= {COLUMN[e] for e in item["members"] if e != "json"}
            columns |= {"text"} if item["captions"] else set()
            for label, value in labels.items():
                names.setdefault(label, set()).add(value)
        shards.append({"file": f"{number:05d}.tar", "sha256": index["sha256"],
                       "bytes": index["bytes"], "first": first,
                       "items": len(index["items"]), "skipped": len(index["skipped"])})
    if not keys:
        raise ValueError(f"{folder}: no item was written; see what was skipped")
    sha = hashlib.sha256(json.dumps(
        [provenance["recipe"], *(shard["sha256"] for shard in shards)]).encode())
    known = {n: SPLITS if n == "split" else sorted(v) for n, v in names.items()}
    _write_json(folder / MANIFEST, {
        "format": FORMAT, "columns": sorted(columns), "label_names": known,
        "provenance": provenance | {"hash": sha.hexdigest()}, "downloads": downloads,
        "shards": shards})


def _labels(item: dict) -> dict[str, str]:
    return item["labels"] | ({"split": item["split"]} if item["split"] else {})


def _write_json(path: Path, value) -> None:
    part = path.with_suffix(".json.part")
    part.write_text(json.dumps(value, ensure_ascii=False), "utf-8")
    os.replace(part, path)


# Opening ------------------------------------------------------------------------------
def read_manifest(folder: Path) -> dict:
    """`shards.json`. Raises FileNotFoundError, or ValueError if it is damaged."""
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} holds no {MANIFEST}: not written by "
                                "write_shards, or not to its end")
    manifest = _read_json(folder / MANIFEST)
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise ValueError(f"{folder}: format {found!r}, this version reads {FORMAT}")
    for shard in manifest.get("shards", ()):
        if not re.fullmatch(r"\d{5,}\.tar", str(shard.get("file"))):  # never elsewhere
            raise ValueError(f"{folder}: {shard.get('file')!r} is no name of a shard")
    return manifest


def read_index(folder: Path, shard: dict) -> dict:
    """What a shard of the manifest holds: `items` and `skipped`."""
    return _read_json(folder / shard["file"].replace(".tar", ".json"))


def _read_json(path: Path):
    try:
        return json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}; make the shards again") from None


def load(folder: Path) -> tuple[dict, dict]:
    """(columns, rest) of all shards, as `Pairs.make` takes them; no tar is read, but
    for points. Items that lie behind the end of a torn tar are skipped.

    Raises FileNotFoundError or ValueError.
    """
    try:
        return _load_all(folder, read_manifest(folder))
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} is damaged: {error!r}; make the shards again"
                         ) from None


def _load_all(folder: Path, manifest: dict) -> tuple[dict, dict]:
    items, skipped = [], []
    for shard in manifest["shards"]:
        index, end = read_index(folder, shard), (folder / shard["file"]).stat().st_size
        skipped += index["skipped"]
        for number, item in enumerate(index["items"], shard["first"]):
            if not all(isinstance(n, int) for place in item["members"].values()
                       for n in place):
                raise TypeError(f"{item['key']}: its places are no whole numbers")
            if max(at + size for at, size, _ in item["members"].values()) > end:
                skipped.append([item["key"], f"{shard['file']} ends before it"])
                continue
            sources = {COLUMN[e]: Place(shard["file"], f"{item['key']}.{e}", *place)
                       for e, place in item["members"].items() if e != "json"}
            items.append((number, item, sources))
    return table(manifest, items, skipped, partial(fetch, folder=folder))


def table(manifest: dict, items: list, skipped: list, blob_of) -> tuple[dict, dict]:
    """(columns, rest) of `items` [(number, entry of the index, {column: source})]; a
    row a caption. `blob_of(source)` gives the bytes."""
    rows = [(number, item, sources, caption) for number, item, sources in items
            for caption in item["captions"] or [""]]
    columns, present = {}, {}
    for name in manifest["columns"]:
        if name == "text":
            columns[name] = [caption for *_, caption in rows]
            present[name] = torch.tensor([bool(row[1]["captions"]) for row in rows])
            continue
        sources = [row[2].get(name) for row in rows]
        present[name] = torch.tensor([source is not None for source in sources])
        if name == "points":
            clouds = [s and read(s, name, blob_of) for s in sources]
            first = next((cloud for cloud in clouds if cloud is not None), torch.zeros(0, 3))
            none = torch.zeros_like(first)
            columns[name] = torch.stack([none if c is None else c for c in clouds])
        else:
            # The bytes are those of the provenance's hash; how they are read may change.
            how, _ = content([], READ[name], KIND[name])
            columns[name] = Lazy(sources, partial(read, column=name, blob_of=blob_of),
                                 KIND[name], f"shards, read by {how}")
    labels = {}
    for label, names in manifest["label_names"].items():
        at = {value: i for i, value in enumerate(names)}
        labels[label] = torch.tensor([at[_labels(row[1])[label]] for row in rows])
    return columns, {
        "ids": [f"{item['key']}#{i}" for _, item, _ in items
                for i in range(len(item["captions"]) or 1)],
        "item": torch.tensor([row[0] for row in rows], dtype=torch.long),
        "group": torch.tensor([_number(row[1]["group"]) if row[1]["group"] else row[0]
                               for row in rows], dtype=torch.long),
        "present": present, "labels": labels, "label_names": manifest["label_names"],
        "tables": {"skipped": [list(one) for one in skipped]},
        "provenance": manifest["provenance"],
    }  # fmt: skip


def _number(group: str) -> int:
    """A number for a group's name, the same in each shard; beyond those of items."""
    sha = hashlib.sha256(group.encode()).digest()
    return int.from_bytes(sha[:8], "big") >> 1 | 1 << 62
