"""Flickr8k: 8,000 photographs with five captions and the official split -> shards.

    python data_scripts/flickr8k.py out/ --accept-licence --from Flickr8k_Dataset.zip

The pictures have to be got by yourself; captions and split are downloaded.
"""

from common import KARPATHY, DataSet, karpathy, run

ABOUT = DataSet(
    name="Flickr8k",
    licence="Non-commercial research and education only; Flickr's terms of use, the "
            "pictures belong to their owners.",
    page="http://nlp.cs.illinois.edu/HockenmaierGroup/8k-pictures.html",
    recipe="flickr8k 1",
    files=(KARPATHY,),
    ask="The University of Illinois gave the pictures (Flickr8k_Dataset.zip) on "
        "request at https://forms.illinois.edu/sec/1713398, which was later taken "
        "down: write to the authors (Hodosh, Young, Hockenmaier), or take a copy that "
        "your institution holds.",
)


def samples(files):
    """The pictures that were given, by Karpathy's list."""
    return karpathy(files, "flickr8k")


if __name__ == "__main__":
    run(ABOUT, samples)
