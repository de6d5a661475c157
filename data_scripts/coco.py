"""COCO Captions: 123,287 photographs with five captions, Karpathy's split -> shards.

    python data_scripts/coco.py out/ --accept-licence

20 GB to download and as much again unpacked. Split: 113,287 / 5,000 / 5,000.
"""

from common import KARPATHY, DataSet, Source, karpathy, run

BASE = "http://images.cocodataset.org/zips"
ABOUT = DataSet(
    name="COCO Captions",
    licence="Annotations: CC BY 4.0. Pictures: Flickr's terms of use; they belong to "
            "their owners.",
    page="https://cocodataset.org/#termsofuse",
    recipe="coco 1",
    files=(  # the hashes are those that TensorFlow Datasets holds
        Source(f"{BASE}/train2014.zip",
               "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775"),
        Source(f"{BASE}/val2014.zip",
               "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"),
        KARPATHY),
)


def samples(files):
    """The pictures of both folders, by Karpathy's list."""
    return karpathy(files, "coco")


if __name__ == "__main__":
    run(ABOUT, samples)
