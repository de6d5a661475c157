"""AudioCaps (the first edition): 51,308 sounds of 10 seconds with captions -> shards.

    python data_scripts/audiocaps.py out/ --accept-licence --from audio/

One caption a sound in train, five in val and test. The captions are downloaded from
the authors' repository; the sounds, of YouTube's videos, have to be asked for.
"""

from common import DataSet, Source, item, rows, run

BASE = ("https://raw.githubusercontent.com/cdjkim/audiocaps/"
        "d004db3ea1b01cf4fd0347dd8d27db90cadc8809/dataset")
ABOUT = DataSet(
    name="AudioCaps",
    licence="Academic purposes only; the sounds belong to the videos' owners.",
    page="https://github.com/cdjkim/audiocaps",
    recipe="audiocaps 1",
    files=(  # hashes of the files in that commit
        Source(f"{BASE}/train.csv",
               "c0c5223db682b3bf724ce7e7ce58d5b36929f74572e8526a7211f92d2eef7c8e"),
        Source(f"{BASE}/val.csv",
               "dab1c96641d5f3053ddb99dca3949450da9a75737bda53e11cc0aa8b102be0c3"),
        Source(f"{BASE}/test.csv",
               "b91c4b7ded2f4f6e7db5b9c4983dc1e1dca3d556f505b61e3fd65cac7e1c638a")),
    ask="Ask the authors for the sounds with the form https://forms.gle/"
        "2wF54Y1Ft2LtPdhW8 (named in dataset/README.md of their repository). A sound "
        "may be called by its YouTube id (r1nicOVtvkQ.wav), by Y and the id, by id and "
        "start (r1nicOVtvkQ_130.wav), or by its audiocap_id (91139.wav).",
)


def samples(files):
    """A sound a video and start; all captions that it has."""
    for split in ("train", "val", "test"):
        found = {}
        for row in rows(files.need(f"{split}.csv")):
            found.setdefault((row["youtube_id"], row["start_time"]), []).append(row)
        for (video, start), same in found.items():
            path = files.sound(video, f"Y{video}", f"{video}_{start}",
                               *(row["audiocap_id"] for row in same))
            yield item(f"{video}_{start}", path, [row["caption"] for row in same],
                       group=video, split=split)


if __name__ == "__main__":
    run(ABOUT, samples)
