"""ESC-50: 2,000 environmental sounds of five seconds in 50 classes -> shards.

    python data_scripts/esc50.py out/ --accept-licence

The text of a sound is its class ("crying baby"). Instead of a split there are five
folds: labels `fold`; sounds of one recording are one group, which is never cut.
"""

from pathlib import Path

from common import DataSet, Source, item, rows, run

COMMIT = "33c8ce9eb2cf0b1c2f8bcf322eb349b6be34dbb6"
ABOUT = DataSet(
    name="ESC-50",
    licence="CC BY-NC 3.0 (the part ESC-10: CC BY); each clip is credited in LICENSE.",
    page="https://github.com/karolpiczak/ESC-50",
    recipe="esc50 1",
    # GitHub promises no hash of an archive; this one is in the pins of two projects
    files=(Source(f"https://github.com/karolpiczak/ESC-50/archive/{COMMIT}.zip",
                  "661183a6f53ef04f12c9bd618fed0ddc1713280d6c94a5a5431e844ba6f6a21f"),),
)


def samples(files):
    """The clips of meta/esc50.csv."""
    for row in rows(files.need("meta/esc50.csv")):
        text = row["category"].replace("_", " ")
        yield item(Path(row["filename"]).stem, files.find(f"audio/{row['filename']}"),
                   [text], labels={"category": text, "fold": row["fold"]},
                   group=row["src_file"])


if __name__ == "__main__":
    run(ABOUT, samples)
