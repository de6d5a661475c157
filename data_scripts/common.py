"""What the scripts of real data sets share: terms, downloads, archives, shards.

A script names its `DataSet` and yields a `Sample` an item; `run` does the rest:

    python data_scripts/esc50.py out/ --accept-licence [--limit 100] [--from …]
"""

import argparse
import csv
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from alignkit.data.archives import UnsafeArchive, unpack
from alignkit.data.blobs import ENDINGS
from alignkit.data.links import walk
from alignkit.data.download import WrongHash, download, file_hash
from alignkit.data.shard_files import MANIFEST
from alignkit.data.shards import Sample, Skipped, open_shards, write_shards

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".xz", ".bz2", ".7z")
LARGEST, MOST = 64 * 2**30, 2_000_000  # bytes and files of one archive


class Source(NamedTuple):
    """A file to download; no hash where its publisher and its users name none."""

    url: str
    sha256: str = ""
    md5: str = ""


@dataclass(frozen=True)
class DataSet:
    """A data set: its terms, where it comes from, and what has to be asked for."""

    name: str
    licence: str
    page: str
    recipe: str
    files: tuple[Source, ...] = ()
    ask: str = ""  # how to get what cannot be downloaded; --from is then needed


# Karpathy & Fei-Fei's captions and splits of COCO, Flickr8k and Flickr30k; the hash is
# the one that TensorFlow Datasets holds (url_checksums/coco_captions.txt).
KARPATHY = Source(
    "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
    "4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817")


class Files:
    """The files that were downloaded, unpacked or given, found by the end of a path."""

    def __init__(self, roots: Iterable[Path]):
        self.paths, self.by_name = [], {}
        for root in roots:
            for path in sorted(walk(root)) if root.is_dir() else [root]:
                if path.is_file() and not _is_of_mac(path):
                    self.paths.append(path)
                    self.by_name.setdefault(path.name, []).append(path)

    def find(self, name: str) -> Path:
        """A file whose path ends with `name`; a path of no file if there is none."""
        wanted = Path(name).parts
        found = (path for path in self.by_name.get(Path(name).name, ())
                 if path.parts[-len(wanted):] == wanted)
        return next(found, Path(name))

    def need(self, name: str) -> Path:
        """The same. Raises FileNotFoundError if there is none."""
        path = self.find(name)
        if path not in self.paths:
            raise FileNotFoundError(f"no file {name} in what was downloaded or given "
                                    f"({len(self.paths)} files)")
        return path

    def sound(self, *stems: str) -> Path:
        """A sound called by one of `stems`, whatever its ending."""
        names = [f"{stem}.{ending}" for stem in stems for ending in ENDINGS["sound"]]
        return self.find(next((n for n in names if n in self.by_name), names[0]))


def _is_of_mac(path: Path) -> bool:
    """Does macOS lay it beside a file ("._cat.jpg", "__MACOSX/…")?"""
    return path.name.startswith("._") or "__MACOSX" in path.parts


def item(name: str, path: Path, captions: Iterable[str] = (), **rest) -> Sample:
    """A sample of one file; `name` becomes its key, with a hash if it has to change."""
    key = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    if key != name or len(key) > 80:
        key = f"{key[:64]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    captions = [c.strip() for c in captions if c.strip()]
    return Sample(key, {path.suffix[1:].lower(): path}, captions, **rest)


def rows(path: Path) -> list[dict]:
    """The lines of a CSV with a header; in Latin-1 where they are not UTF-8."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def karpathy(files: Files, which: str) -> Iterator[Sample]:
    """The pictures of `dataset_<which>.json`: captions and split (restval: train)."""
    found = json.loads(files.need(f"dataset_{which}.json").read_text("utf-8"))
    for image in found["images"]:
        split = "train" if image["split"] == "restval" else image["split"]
        yield item(Path(image["filename"]).stem, files.find(image["filename"]),
                   [sentence["raw"] for sentence in image["sentences"]], split=split)


# From the command line to shards ------------------------------------------------------
def arguments(about: DataSet, argv: list[str] | None) -> argparse.Namespace:
    """The options that all scripts have. Exits, with the reason, where it must not go
    on: the terms are not accepted, something has to be asked for, `out` is there."""
    parser = argparse.ArgumentParser(description=f"{about.name} as shards for Pairs")
    parser.add_argument("out", type=Path, help="folder of the shards, to be made")
    parser.add_argument("--accept-licence", action="store_true",
                        help="you have read the terms and accept them")
    parser.add_argument("--limit", type=int, help="only the first items, for a trial")
    parser.add_argument("--from", dest="given", type=Path, nargs="+", default=[],
                        metavar="FOLDER_OR_ARCHIVE", help="what you got yourself")
    parser.add_argument("--downloads", type=Path, help="where downloads are kept")
    parser.add_argument("--no-download", action="store_true",
                        help="everything is in --from")
    args = parser.parse_args(argv)
    print(f"{about.name}: {about.page}\nTerms: {about.licence}")
    if not args.accept_licence:
        parser.exit(2, f"Nothing was downloaded: read the terms of {about.name} at "
                       f"{about.page}; if you accept them, add --accept-licence.\n")
    if (args.out / MANIFEST).exists():
        parser.exit(2, f"{args.out} holds shards already: name a new folder\n")
    if about.ask and not args.given:
        parser.exit(2, f"{about.ask}\nThen add --from FOLDER_OR_ARCHIVE.\n")
    for path in args.given:
        if not path.exists():
            parser.exit(2, f"--from {path}: there is no such file or folder\n")
    args.downloads = args.downloads or args.out.with_name(f"{args.out.name}-downloads")
    return args


def collect(about: DataSet, args: argparse.Namespace) -> tuple[Files, list[dict]]:
    """(all files, a record each of what they came from): downloads and unpacks."""
    records, roots = [], []
    for source in () if args.no_download else about.files:
        path, record = bring(source, args.downloads)
        records.append(record)
        roots.append(unpacked(path, record["sha256"], args.downloads))
    for path in args.given:
        sha = "" if path.is_dir() else file_hash(path)
        records.append({"given": path.name, "sha256": sha})
        roots.append(unpacked(path, sha, args.downloads))
    return Files(roots), records


def run(about: DataSet, samples: Callable[[Files], Iterable[Sample | Skipped]],
        argv: list[str] | None = None) -> None:
    """Download, unpack, write the shards of `samples(files)` and say what there is."""
    args = arguments(about, argv)
    files, records = collect(about, args)
    write_shards(islice(samples(files), args.limit), args.out, name=about.name,
                 licence=about.licence, source=about.page, recipe=about.recipe,
                 downloads=records)
    report(args.out)


def report(out: Path) -> None:
    """What the shards hold, and how many samples were skipped for each reason."""
    pairs, reasons = open_shards(out), {}
    print(pairs.describe())
    for _, reason in pairs.tables["skipped"]:
        kind = ":".join(reason.split(":")[:2])
        reasons[kind] = reasons.get(kind, 0) + 1
    for reason, count in sorted(reasons.items(), key=lambda one: -one[1])[:20]:
        print(f"  skipped {count}: {reason}")


def bring(source: Source, folder: Path) -> tuple[Path, dict]:
    """(the file, {url, sha256, bytes, promised}); resumed after a cut.

    Where no hash is promised, that of the first download is kept in
    `downloads.json`, and a later file that differs is refused with WrongHash.
    """
    path = folder / Path(urlsplit(source.url).path).name
    kept = folder / "downloads.json"
    folder.mkdir(parents=True, exist_ok=True)
    seen = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
    known = source.sha256 or seen.get(source.url, {}).get("sha256")
    hint = "" if source.sha256 or not known else (
        f": the first download was another file; if the new one is right, take "
        f"{source.url} out of {kept}")
    if not path.is_file():
        try:
            download(source.url, path, sha256=known, label=path.name)
        except WrongHash as error:
            raise WrongHash(f"{error}{hint}") from None
    sha = file_hash(path)
    if known and sha != known:
        raise WrongHash(f"{path}: sha256 {sha}, expected {known}{hint}; delete it and "
                        "run again")
    if source.md5:
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
        if md5 != source.md5:
            raise WrongHash(f"{path}: md5 {md5}, expected {source.md5}; delete it and "
                            "run again")
    promised = "sha256" if source.sha256 else "md5" if source.md5 else "nothing"
    if promised == "nothing":
        print(f"{path.name}: no official hash is known. sha256 {sha} is kept in "
              f"{kept}; another file under this address will be refused.")
    record = {"url": source.url, "sha256": sha, "bytes": path.stat().st_size,
              "promised": promised}
    part = kept.with_suffix(".part")
    part.write_text(json.dumps(seen | {source.url: record}, indent=1), "utf-8")
    os.replace(part, kept)
    return path, record


def unpacked(path: Path, sha256: str, folder: Path) -> Path:
    """The folder of what an archive holds, unpacked once; other paths as they are.

    Raises UnsafeArchive for a hostile one; nothing of it is kept.
    """
    if path.is_dir() or path.suffix.lower() not in ARCHIVES:
        return path
    target = folder / f"{path.name}-{sha256[:12]}"
    if not target.is_dir():
        part = target.with_name(f"{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            if path.suffix.lower() == ".7z":
                unpack_7z(path, part)
            else:
                unpack(path, part, {"*": ""}, max_bytes=LARGEST, max_members=MOST)
        except BaseException:
            shutil.rmtree(part)
            raise
        os.replace(part, target)
    return target


def unpack_7z(path: Path, folder: Path) -> None:
    """Unpack a 7z archive; each member is checked first, as `unpack` does."""
    try:
        import py7zr
    except ImportError:
        raise SystemExit(f"{path.name} needs `pip install py7zr`; or unpack it "
                         "yourself and give --from FOLDER --no-download") from None
    with py7zr.SevenZipFile(path) as archive:
        for info in archive.files:
            name = info.filename
            if (re.match(r"/|[A-Za-z]:", name) or "\\" in name or "\0" in name
                    or ".." in name.split("/")):
                raise UnsafeArchive(f"member {name!r} leaves its folder")
            if info.is_symlink or info.is_junction or info.is_socket:
                raise UnsafeArchive(f"member {name!r} is a link or a device")
        if sum(info.uncompressed or 0 for info in archive.files) > LARGEST:
            raise UnsafeArchive(f"unpacks to more than {LARGEST} bytes")
        archive.extractall(folder)
