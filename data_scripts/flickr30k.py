"""Flickr30k: 31,014 photographs with five captions, Karpathy's split -> shards.

    python data_scripts/flickr30k.py out/ --accept-licence --from pictures.tar.gz

The pictures have to be asked for; captions and split are downloaded.
"""

from common import KARPATHY, DataSet, karpathy, run

ABOUT = DataSet(
    name="Flickr30k",
    licence="Non-commercial research and education only; Flickr's terms of use, the "
            "pictures belong to their owners.",
    page="https://shannon.cs.illinois.edu/DenotationGraph/",
    recipe="flickr30k 1",
    files=(KARPATHY,),
    ask="Ask the University of Illinois for the pictures with the form "
        "https://forms.illinois.edu/sec/229675.",
)


def samples(files):
    """The pictures that were given, by Karpathy's list."""
    return karpathy(files, "flickr30k")


if __name__ == "__main__":
    run(ABOUT, samples)
