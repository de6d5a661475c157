"""MSR-VTT: 10,000 video clips with twenty captions each, official split -> shards.

    python data_scripts/msrvtt.py out/ --accept-licence --from MSRVTT/

Needs `pip install av` to read the videos; Pairs shows eight frames of each. The split
is the official one (6,513 / 497 / 2,990), not the 1k-A one of later papers.
"""

import json

from common import DataSet, item, run

ABOUT = DataSet(
    name="MSR-VTT",
    licence="Research only; the clips belong to the videos' owners (YouTube).",
    page="https://www.microsoft.com/en-us/research/publication/msr-vtt-a-large-video-"
         "description-dataset-for-bridging-video-and-language/",
    recipe="msrvtt 1",
    ask="The challenge's site (ms-multimedia-challenge.com) is gone. Papers use the "
        "copy named at https://github.com/m-bain/frozen-in-time (MSRVTT.zip); ask your "
        "institution or Microsoft Research whether you may. Needed: "
        "train_val_videodatainfo.json, test_videodatainfo.json, and video0.mp4 …",
)
SPLIT = {"train": "train", "validate": "val", "test": "test"}


def samples(files):
    """The clips of the annotation files, with all their captions."""
    for name in ("train_val_videodatainfo.json", "test_videodatainfo.json"):
        found = json.loads(files.need(name).read_text("utf-8"))
        captions = {}
        for sentence in found["sentences"]:
            captions.setdefault(sentence["video_id"], []).append(sentence["caption"])
        for video in found["videos"]:
            called = video["video_id"]
            yield item(called, files.find(f"{called}.mp4"), captions.get(called, ()),
                       labels={"category": str(video["category"])},
                       group=video.get("url", "").partition("v=")[2],
                       split=SPLIT[video["split"]])


if __name__ == "__main__":
    run(ABOUT, samples)
