"""Clotho 2.1: 5,929 sounds of 15 to 30 seconds with five captions each -> shards.

    python data_scripts/clotho.py out/ --accept-licence

7z archives: needs `pip install py7zr`, or unpack them yourself and give the folder with
the CSV files: --from folder/ --no-download.
"""

from pathlib import Path

from common import DataSet, Source, item, rows, run

BASE = "https://zenodo.org/records/4783391/files"
SPLITS = {"development": "train", "validation": "val", "evaluation": "test"}
MD5 = {  # Zenodo's, as the soundata library holds them
    "clotho_audio_development.7z": "c8b05bc7acdb13895bb3c6a29608667e",
    "clotho_audio_validation.7z": "7dba730be08bada48bd15dc4e668df59",
    "clotho_audio_evaluation.7z": "4569624ccadf96223f19cb59fe4f849f",
    "clotho_captions_development.csv": "d4090b39ce9f2491908eebf4d5b09bae",
    "clotho_captions_validation.csv": "5879e023032b22a2c930aaa0528bead4",
    "clotho_captions_evaluation.csv": "1b16b9e57cf7bdb7f13a13802aeb57e2",
}
ABOUT = DataSet(
    name="Clotho 2.1",
    licence="Captions: Tampere University's licence, non-commercial use with credit. "
            "Sounds: the Creative Commons licence of each (clotho_metadata_*.csv).",
    page="https://zenodo.org/records/4783391",
    recipe="clotho 1",
    files=tuple(Source(f"{BASE}/{name}?download=1", md5=md5)
                for name, md5 in MD5.items()),
)


def samples(files):
    """The sounds of the three parts."""
    for part, split in SPLITS.items():
        for row in rows(files.need(f"clotho_captions_{part}.csv")):
            name = row["file_name"]
            yield item(f"{part}-{Path(name).stem}", files.find(f"{part}/{name}"),
                       [row[f"caption_{k}"] for k in range(1, 6)], split=split)


if __name__ == "__main__":
    run(ABOUT, samples)
