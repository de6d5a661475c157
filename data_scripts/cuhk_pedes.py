"""CUHK-PEDES: 40,206 pictures of 13,003 persons with two descriptions each -> shards.

    python data_scripts/cuhk_pedes.py out/ --accept-licence --from CUHK-PEDES/

All pictures of a person are one group. The folder has reid_raw.json and imgs/.
"""

import json

from common import DataSet, item, run

ABOUT = DataSet(
    name="CUHK-PEDES",
    licence="Academic use only, on request; pictures of persons: do not pass them on.",
    page="https://github.com/ShuangLI59/Person-Search-with-Natural-Language-Description",
    recipe="cuhk-pedes 1",
    ask="Ask for the data set by mail from your university's address, as the README at "
        "https://github.com/ShuangLI59/Person-Search-with-Natural-Language-Description "
        "says (it names whom to write to).",
)


def samples(files):
    """The pictures of reid_raw.json."""
    for entry in json.loads(files.need("reid_raw.json").read_text("utf-8")):
        yield item(entry["file_path"], files.find(f"imgs/{entry['file_path']}"),
                   entry["captions"], labels={"person": str(entry["id"])},
                   group=str(entry["id"]), split=entry["split"])


if __name__ == "__main__":
    run(ABOUT, samples)
