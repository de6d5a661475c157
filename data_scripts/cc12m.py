"""Conceptual 12M: 12 million picture addresses with alt texts -> shards.

    python data_scripts/cc12m.py out/ --accept-licence --limit 2000

The list alone is 2.7 GB; the pictures fill more than a terabyte.
"""

from common import DataSet, Source
from urls import Line, columns, run_urls

ABOUT = DataSet(
    name="Conceptual 12M",
    licence="The captions may be freely used for any purpose, naming Google LLC as the "
            "source is appreciated; the pictures belong to their owners.",
    page="https://github.com/google-research-datasets/conceptual-12m",
    recipe="cc12m 1",
    files=(Source("https://storage.googleapis.com/conceptual_12m/cc12m.tsv"),),
)


def lines(files):
    """The list: address, caption. There is no official split."""
    for number, url, caption in columns(files.need("cc12m.tsv")):
        yield Line(f"cc{number:08d}", url, caption, "")


if __name__ == "__main__":
    run_urls(ABOUT, lines)
