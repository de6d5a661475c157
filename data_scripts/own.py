"""Your own pictures and captions, or a data set of the Hugging Face hub -> shards.

    python data_scripts/own.py my.csv out/ --licence "CC BY 4.0, by me"
    python data_scripts/own.py folder/ out/ --licence …       (cat.png and cat.txt)
    python data_scripts/own.py hf:someone/things out/ --revision COMMIT --licence …

For the hub: `pip install datasets`; `hf:folder/` reads a copy on this machine.
"""

import argparse
from itertools import islice
from pathlib import Path

from common import item, report
from urls import STARTS

from alignkit.data.shards import Sample, Skipped, write_shards
from alignkit.data.tables import read_folder, read_table

SPLIT = {"train": "train", "validation": "val", "valid": "val", "val": "val",
         "dev": "val", "test": "test"}  # fmt: skip


def from_files(table):
    """An item a picture; files of the same bytes are one."""
    found = {}
    for number, path, text in zip(table.item, table.pictures, table.captions,
                                  strict=True):
        found.setdefault(number, (path, []))[1].append(text)
    for number, (path, texts) in found.items():
        yield item(f"{number:07d}-{path.stem}", path, texts)


def from_hub(name: str, revision: str | None, image: str, caption: str):
    """An item a row; a caption column may hold one text or a list."""
    import datasets

    if not revision and not Path(name).exists():
        raise SystemExit(f"{name}: a data set changes. Give --revision COMMIT (its "
                         "'Files and versions' page shows the commits)")
    for split, found in datasets.load_dataset(
            name, revision=revision, streaming=True).items():
        found = found.cast_column(image, datasets.Image(decode=False))
        for number, row in enumerate(found):
            key, texts = f"{split}{number:08d}", row[caption]
            try:
                raw = _bytes(row[image] or {})
            except OSError as error:
                yield Skipped(key, f"its picture cannot be read: {error}")
                continue
            ending = next((STARTS[s] for s in STARTS if raw.startswith(s)), None)
            texts = texts if isinstance(texts, list) else [] if texts is None else [texts]
            yield (Sample(key, {ending: raw}, texts, split=SPLIT.get(split, ""))
                   if ending else Skipped(key, "the row has no picture"))


def _bytes(picture: dict) -> bytes:
    """A row's picture: its bytes, or those of the file that it names."""
    if picture.get("bytes") is None and picture.get("path"):
        return Path(picture["path"]).read_bytes()
    return picture.get("bytes") or b""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", help="CSV table, folder, or hf:NAME")
    parser.add_argument("out", type=Path, help="folder of the shards, to be made")
    parser.add_argument("--licence", required=True, help="terms of the data, in words")
    parser.add_argument("--revision", help="commit of the hub's data set")
    parser.add_argument("--image", default="image", help="column of the pictures")
    parser.add_argument("--caption", default="caption", help="column of the captions")
    parser.add_argument("--limit", type=int, help="only the first items")
    args = parser.parse_args(argv)

    path, is_hub = Path(args.source), args.source.startswith("hf:")
    if is_hub:
        made = from_hub(args.source[3:], args.revision, args.image, args.caption)
    else:
        made = from_files(read_folder(path) if path.is_dir() else
                          read_table(path, args.image, args.caption))
    write_shards(islice(made, args.limit), args.out, name=path.stem,
                 kind="real" if is_hub else "user", licence=args.licence,
                 source=f"{args.source}@{args.revision}" if is_hub else path.name,
                 recipe="own 1")
    report(args.out)


if __name__ == "__main__":
    main()
