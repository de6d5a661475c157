"""The clips: their words are true, their frames show it, and order alone tells left
from right."""

import itertools
import pickle
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import nn

from alignkit.data import Lazy, Pairs
from alignkit.data.clips import (
    DIRECTIONS, GROUNDS, MOTIONS, PACES, SPEEDS, WAYS, WORDINGS, Clip, clips,
    draw_clip, moving,
)  # fmt: skip
from alignkit.data.emoji import emoji
from alignkit.data.fetch import asset
from alignkit.data.scenes import NOUNS
from alignkit.encoders import add_features

SIZE = 112
OPPOSITE = {"right": "left", "left": "right", "up": "down", "down": "up"}


@pytest.fixture(scope="module")
def made():
    return clips(400)


def film(**changes) -> np.ndarray:
    """Frames [t, h, w, 3] of a clip; a bell that moves to the right unless told."""
    clip = Clip("bell", "steady", "right", "fast", "plain", 2, 112, 112)
    frames = draw_clip(clip._replace(**changes), asset("openmoji") / "svg", 8, SIZE)
    assert frames.dtype == torch.uint8 and frames.shape == (8, SIZE, SIZE, 3)
    return frames.numpy().astype(int)


def figure(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of the pixels that differ from the corner of a plain ground."""
    y, x = (np.abs(frame - frame[0, 0]).max(-1) > 12).nonzero()
    return x, y


def places(frames: np.ndarray) -> np.ndarray:
    """The middle of the figure in each frame, [t, 2], in units of the canvas."""
    return np.array([[(v.min() + v.max()) / 2 for v in figure(frame)]
                     for frame in frames]) * 224 / SIZE  # fmt: skip


def test_clips_are_a_function_of_the_seed(made):
    again, other, fewer = clips(400), clips(400, corpus_seed=1), clips(20)
    p = made.provenance
    assert p == again.provenance and p.kind == "composed" and "CC BY-SA" in p.licence
    assert made["text"] == again["text"] != other["text"]
    assert made["text"][:40] == fewer["text"] and made.ids[:40] == fewer.ids
    assert torch.equal(made["video"][7], fewer["video"][7])
    one = clips(20, captions=1)
    assert one["text"] == fewer["text"][::2]
    hashes = {x.provenance.hash for x in (
        made, other, fewer, one, clips(20, size=64), clips(20, frames=9),
        clips(20, held_out="combination"))}  # fmt: skip
    assert len(hashes) == 7


def test_what_a_row_is(made):
    assert len(made) == 800 and len(made.item.unique()) == 400
    assert made.ids[15] == "clip 7 caption 1"
    for column in (made.ids, made["video"].sources):
        assert len(column) == 800
    for item in range(400):
        rows = (made.item == item).nonzero()[:, 0].tolist()
        assert len({made["text"][row] for row in rows}) == 2
        assert len({made["video"].sources[row] for row in rows}) == 1
        for label in made.labels.values():
            assert len(label[rows].unique()) == 1
    for name, label in made.labels.items():
        assert len(label.unique()) == len(made.label_names[name])
    five = clips(30, captions=5)
    assert [len(set(five["text"][i : i + 5])) for i in range(0, 150, 5)] == [5] * 30


def test_no_caption_fits_two_clips_and_each_is_true(made):
    meant = defaultdict(set)
    words = itertools.product(WORDINGS, MOTIONS, DIRECTIONS, SPEEDS)
    for wording, motion, direction, speed in words:
        for (deed, end), way, pace in itertools.product(
            MOTIONS[motion], WAYS[direction], PACES[speed]
        ):
            said = wording.format(thing="*", deed=deed, way=way, pace=pace, end=end)
            meant[said].add((motion, direction, speed))
    assert len(meant) == 5 * 15 * 12 * 6 and {len(x) for x in meant.values()} == {1}

    def label(name, row):
        return made.label_names[name][made.labels[name][row]]

    for row, text in enumerate(made["text"]):
        noun = label("object", row)
        thing = f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
        assert text.count(thing) == 1
        truth = tuple(label(name, row) for name in ("motion", "direction", "speed"))
        assert meant[text.replace(thing, "*")] == {truth}


@pytest.mark.parametrize("direction, speed", [*itertools.product(DIRECTIONS, SPEEDS)])
def test_the_frames_show_the_way(direction, speed):
    way = np.array(DIRECTIONS[direction])
    for motion in ("steady", "zigzag", "pulsing"):
        place = places(film(motion=motion, direction=direction, speed=speed))
        went = place[-1] - place[0]
        assert np.abs(went - SPEEDS[speed] * way).max() < 5, motion
        steps = np.diff(place, axis=0) @ way
        assert (steps > 0).all() and np.ptp(steps) < 8
        aside = np.ptp(place @ way[::-1])
        assert aside > 20 if motion == "zigzag" else aside < 4
    place = places(film(motion="returning", direction=direction, speed=speed))
    assert np.abs(place[-1] - place[0]).max() < 1
    assert (place[3] - place[0]) @ way > 0.35 * SPEEDS[speed]


def test_the_frames_show_the_motion():
    def shapes(motion):  # bounding boxes of the figure, [t, 2]
        return np.array([[np.ptp(v) for v in figure(frame)]
                         for frame in film(motion=motion)])  # fmt: skip

    for motion in ("steady", "zigzag", "returning"):
        assert np.ptp(shapes(motion), axis=0).max() <= 1
    large, small = shapes("pulsing").max(0), shapes("pulsing").min(0)
    assert (large / small > 1.4).all()
    crops = []
    for frame in film(motion="rolling")[[0, 2, 7]]:
        x, y = figure(frame)
        crops.append(frame[y.min() : y.max() + 1, x.min() : x.max() + 1])
    first, turned, last = crops
    assert first.shape == last.shape and np.abs(first - last).mean() < 6  # a whole turn
    assert turned.shape[0] < 0.95 * first.shape[0] < turned.shape[1]  # on its side


@pytest.mark.parametrize("motion, speed", [*itertools.product(MOTIONS, SPEEDS)])
def test_opposite_ways_have_the_same_frames_in_another_order(motion, speed):
    for direction in ("right", "down"):
        one, other = (
            [frame.tobytes() for frame in film(
                motion=motion, speed=speed, direction=d, ground="dotted", x=100, y=121)]
            for d in (direction, OPPOSITE[direction])
        )  # fmt: skip
        assert sorted(one) == sorted(other) and one != other
        if motion != "returning":
            assert one == other[::-1]


def test_grounds(made):
    """Each ground has its own look, and the figure never leaves the frame."""
    edges = {}
    for ground in GROUNDS:
        frames = film(ground=ground)
        assert (frames[:, :2] == frames[0, :2]).all()  # the ground stands still
        edges[ground] = frames[0].tobytes()
    assert len(set(edges.values())) == 4
    boxes = made.tables["boxes"]
    assert boxes.shape == (400, 8, 4) and boxes.min() > 0 and boxes.max() < SIZE


def test_boxes_hold_the_figure(made):
    plain = made.label_names["ground"].index("plain")
    rolling = made.label_names["motion"].index("rolling")
    upright = (made.labels["ground"] == plain) & (made.labels["motion"] != rolling)
    test = made.select(upright).select(torch.arange(0, 60, 6))
    for row, video in enumerate(test["video"]):
        for frame, box in zip(video, made.tables["boxes"][test.item[row]], strict=True):
            x, y = figure(frame.numpy().astype(int))
            low, high = (box[:2] - 1).tolist(), (box[2:] + 1).tolist()
            assert low[0] <= x.min() and x.max() <= high[0]
            assert low[1] <= y.min() and y.max() <= high[1]
            assert max(np.ptp(x), np.ptp(y)) > 0.5 * float(box[2] - box[0])
    assert float(made.tables["boxes"][0, 0, 2] - made.tables["boxes"][0, 0, 0]) > 20


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_variant_stands_on_both_sides_of_a_split(made, seed):
    names = {"object": ["object"],
             "combination": ["object", "motion", "direction", "speed"]}
    for held_out, fields in names.items():
        pairs = made if held_out == "object" else clips(400, held_out=held_out)
        sides = [set(zip(*(part.labels[f].tolist() for f in fields), strict=True))
                 for part in pairs.split(seed)]  # fmt: skip
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert not sides[a] & sides[b]
        items = [set(part.item.tolist()) for part in pairs.split(seed)]
        assert sum(map(len, items)) == 400
    objects = [set(part.labels["object"].tolist()) for part in pairs.split(seed)]
    assert len(objects[2] & objects[0]) > 30  # known objects in new ways


def test_no_object_is_a_variant_of_another():
    base = emoji()
    group = {name.replace("-FE0F", ""): g for name, g
             in zip(base.ids, base.group.tolist(), strict=True)}  # fmt: skip
    assert len({group[code] for code in NOUNS.values()}) == len(NOUNS) == 64


class Shade(nn.Module):
    """The mean colour of stacked videos [b, t, h, w, 3], of the first frame alone."""

    def forward(self, batch):
        return batch[:, 0].float().mean((1, 2))


def test_encoders_of_videos_take_them(made, tmp_path, monkeypatch):
    few = made.select(range(6))
    want = torch.stack([video[0].float().mean((0, 1)) for video in few["video"]])
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path))
    pairs = add_features(few, "video", Shade())
    torch.testing.assert_close(pairs["video_features"], want)
    with pytest.raises(ValueError, match="'video' holds video; .* encodes image"):
        add_features(few, "video", "random:timm:test_vit")


def test_they_travel_to_another_process(made):
    back = pickle.loads(pickle.dumps(made))
    assert torch.equal(back["video"][5], made["video"][5])


def test_save_and_load_keep_the_frames(made, tmp_path):
    few = made.select([0, 5])
    few.save(tmp_path / "c")
    back = Pairs.load(tmp_path / "c")
    assert isinstance(back["video"], Lazy) and back["video"].kind == "video"
    for row in range(2):
        assert torch.equal(back["video"][row], few["video"][row])
    assert back.provenance == few.provenance
    assert torch.equal(back.tables["boxes"], few.tables["boxes"])


@pytest.mark.parametrize("wrong, words", [
    ({"n": 0}, "n must be at least 1"), ({"size": 8}, "size must be at least 32"),
    ({"frames": 5}, "frames must be at least 6"),
    ({"captions": 0}, "captions must be at least 1"),
    ({"captions": 6}, "captions must be at most 5"),
    ({"held_out": "ground"}, "held_out must be 'object' or 'combination'")])
def test_wrong_arguments_are_named(wrong, words):
    with pytest.raises(ValueError, match=words):
        clips(**wrong)


def test_describe(made):
    said = made.describe()
    for words in ("clips (composed): 800 rows, 400 items, 64 groups",
                  "videos, read when", "label motion: 5 classes", "OpenMoji 17.0.0"):
        assert words in said


def test_any_drawing_moves_and_the_same_each_time():
    codes = ["1F436", "2764", "1F436"]
    one, two = moving(codes, frames=4, size=64), moving(codes[:1], frames=4, size=64)
    assert len(one) == 3 and one.kind == "video"
    assert one[0].shape == (4, 64, 64, 3) and one[0].dtype == torch.uint8
    assert torch.equal(one[0], one[2]) and torch.equal(one[0], two[0])
    assert not torch.equal(one[0], one[1]) and not torch.equal(one[0][0], one[0][3])
    assert one.version != moving(codes, frames=6, size=64).version


@pytest.mark.parametrize("wrong", [{"frames": 1}, {"size": 16}])
def test_clips_of_drawings_need_frames_and_pixels(wrong):
    with pytest.raises(ValueError, match="at least 2"):
        moving(["1F436"], **wrong)
