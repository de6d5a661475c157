"""GQA: questions on 113,000 photographs, each with an answer; the balanced ones -> shards.

    python data_scripts/gqa.py out/ --accept-licence --limit 20000

A sample is a question with its picture, which comes again with its other questions, and the
label `answer`; all questions on a picture are one group. The test questions have no answers
and are left out. Questions come in an order that mixes the pictures, so that the first ones
are no sample of few.
"""

import hashlib
import json

from common import DataSet, Source, item, run

URL = "https://downloads.cs.stanford.edu/nlp/data/gqa"
ABOUT = DataSet(
    name="GQA",
    licence="CC BY 4.0 (questions); the pictures are those of Visual Genome and belong to "
            "their owners.",
    page="https://cs.stanford.edu/people/dorarad/gqa/download.html",
    recipe="gqa 1",
    files=(Source(f"{URL}/questions1.2.zip"), Source(f"{URL}/images.zip")),
)


def samples(files):
    """The questions of train_balanced_questions.json and val_balanced_questions.json."""
    for split in ("train", "val"):
        asked = json.loads(files.need(f"{split}_balanced_questions.json").read_text("utf-8"))
        for number in sorted(asked, key=lambda k: hashlib.sha256(k.encode()).digest()):
            one = asked[number]
            yield item(number, files.find(f"images/{one['imageId']}.jpg"), [one["question"]],
                       labels={"answer": one["answer"]}, group=one["imageId"], split=split)


if __name__ == "__main__":
    run(ABOUT, samples)
