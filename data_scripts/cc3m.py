"""Conceptual Captions 3M: 3.3 million picture addresses with alt texts -> shards.

    python data_scripts/cc3m.py out/ --accept-licence --limit 2000

Many pictures are gone (a tenth to a fifth and more each year); the shards say which.
"""

from common import DataSet, Source
from urls import Line, columns, run_urls

BASE = "https://storage.googleapis.com/gcc-data"
ABOUT = DataSet(
    name="Conceptual Captions 3M",
    licence="The captions may be freely used for any purpose, naming Google LLC as the "
            "source is appreciated; the pictures belong to their owners.",
    page="https://ai.google.com/research/ConceptualCaptions/download",
    recipe="cc3m 1",
    files=(Source(f"{BASE}/Train/GCC-training.tsv"),
           Source(f"{BASE}/Validation/GCC-1.1.0-Validation.tsv")),
)


def lines(files):
    """Both lists: caption, address. The test list is not public."""
    for split, name in (("train", "GCC-training.tsv"),
                        ("val", "GCC-1.1.0-Validation.tsv")):
        for number, caption, url in columns(files.need(name)):
            yield Line(f"{split}{number:08d}", url, caption, split)


if __name__ == "__main__":
    run_urls(ABOUT, lines)
