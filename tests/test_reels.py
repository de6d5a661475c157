"""Reels: a caption is true of the frames it tells, and of no other of its part.

What a frame shows is read from its drawing (the one thing that stands on a plate), never
from the columns that are tested.
"""

import pytest
import torch

from alignkit.data import Pairs
from alignkit.data.objects import objects
from alignkit.data.reels import frames, reels
from alignkit.data.scenes import NOUNS
from alignkit.encoders import add_features

FEW = tuple(NOUNS)[:8]  # 96 things
LENGTH = 8


@pytest.fixture(scope="module")
def pool() -> Pairs:
    made = frames(8, nouns=FEW)
    drawn = torch.Generator().manual_seed(0)
    return made.with_features(image_features=torch.randn(len(made), 5, generator=drawn),
                              text_features=torch.randn(96, 3, generator=drawn)
                              .repeat_interleave(8, 0))


def said(source: tuple) -> str:
    """The caption of a drawing: its thing on a plate, read from what is drawn."""
    (noun, *_, colour, shape), = [thing for thing in source[1] if thing[5]]
    first, second = ("an" if word[0] in "aeiou" else "a" for word in (noun, colour))
    return f"{first} {noun} on {second} {colour} {shape}"


def test_the_pool_has_every_thing_equally_often(pool):
    assert len(pool) == 8 * 12 * 8 and set(pool.item.bincount().tolist()) == {8}
    assert [said(source) for source in pool["image"].sources] == pool["text"]
    assert len(set(pool["text"])) == 96 == len(set(zip(pool["text"], pool.item.tolist())))
    for row in range(0, len(pool), 37):
        noun, colour, shape = (pool.label_names[k][pool.labels[k][row]]
                               for k in ("noun", "colour", "shape"))
        words = pool["text"][row].split()
        assert words[1] == noun and words[-2:] == [colour, shape]
    assert {thing[0] for _, placed in pool["image"].sources for thing in placed} == {*FEW}
    assert len(set(pool["image"].sources)) == len(pool)  # no drawing twice


def test_the_pool_is_a_function_of_its_seed(pool):
    again, other = frames(8, nouns=FEW), frames(8, nouns=FEW, corpus_seed=1)
    assert again.provenance == pool.provenance and pool.provenance.kind == "composed"
    assert again["image"].sources == pool["image"].sources
    assert not {*other["image"].sources} & {*pool["image"].sources}
    assert len({p.provenance.hash for p in (pool, other, frames(7, nouns=FEW),
                                            frames(8, nouns=FEW, size=32))}) == 4
    for seed in (0, 1, 2):  # of 0 and 1 the towers know the drawings
        theirs = {tuple(map(tuple, placed)) for _, placed in
                  objects(8, nouns=FEW, corpus_seed=seed)["image"].sources}
        assert not theirs & {placed for _, placed in pool["image"].sources}


@pytest.mark.parametrize("told", range(1, LENGTH + 1))
def test_a_caption_tells_its_frames_and_fits_no_other_of_its_part(pool, told):
    for part in reels(pool, 3, told=told, each=2):
        shown = [[said(frame) for frame in reel] for reel in part["video"].sources]
        assert (part["told"].sum(1) == told).all() and part["told"].dtype == torch.bool
        for text, reel, is_told in zip(part["text"], shown, part["told"].tolist()):
            assert [what == text for what in reel] == is_told  # those told, and all of them
            assert len(set(reel)) == LENGTH - told + 1  # the others show each another thing
        for text, item in zip(part["text"], part.item.tolist()):
            fits = [text in reel for reel in shown]
            assert fits == (part.item == item).tolist()


def test_frames_and_table_say_what_the_video_shows(pool):
    part = reels(pool, 0).test
    table = part.tables["frames"]
    for rows, sources in zip(part["frame"].tolist(), part["video"].sources):
        assert [pool["image"].sources[row] for row in rows] == [*sources]
        for row, source in zip(rows, sources):
            words = [pool.label_names[k][int(table[k][row])]
                     for k in ("noun", "colour", "shape")]
            assert {*words} == {*said(source).split()} - {"a", "an", "on"}
    here = table["item"][part["frame"]] == part.item[:, None]
    assert torch.equal(here, part["told"])
    for name in part.labels:
        assert torch.equal(part.labels[name], table[name][part["frame"]][part["told"]][::2])
    few = part.select([7, 2])  # columns go with their rows
    assert torch.equal(few["told"], part["told"][[7, 2]])
    video = few["video"][1]
    assert video.shape == (8, 64, 64, 3) and video.dtype == torch.uint8
    drawn = torch.stack([pixels(pool["image"][row]) for row in part["frame"][2].tolist()])
    assert torch.equal(video, drawn)


def pixels(picture) -> torch.Tensor:
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(64, 64, 3)


@pytest.mark.parametrize("seed", range(4))
def test_the_pool_is_split_before_reels_are_made(pool, seed):
    parts = reels(pool, seed, told=3, each=3)
    drawings = [{frame for reel in part["video"].sources for frame in reel}
                for part in parts]
    things = [{said(frame) for frame in of} for of in drawings]
    numbers = [set(part["frame"].flatten().tolist()) for part in parts]
    for sides in (drawings, things, numbers):
        assert not (sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2])
    # 39, 19 and 38 things, half of them with a caption; in training three reels of each
    assert [len(part) for part in parts] == [3 * 20, 10, 19]
    assert [len(part.item.unique()) for part in parts] == [20, 10, 19]
    for part in parts:
        assert all(len({*reel}) == LENGTH for reel in part["frame"].tolist())


def test_a_seed_redraws_all(pool):
    one, again, other = (reels(pool, seed, each=2) for seed in (0, 0, 1))
    for a, b, c in zip(one, again, other):
        assert torch.equal(a["frame"], b["frame"]) and a.provenance == b.provenance
        assert a.provenance.hash != c.provenance.hash and {*a["text"]} != {*c["text"]}
        assert not torch.equal(a["told"][:len(c)], c["told"][:len(a)])
    hashes = {p.provenance.hash for p in one} | {reels(pool, 0, told=3).test.provenance.hash}
    assert len(hashes) == 4
    train = one.train  # told frames stand anywhere, and two reels of a thing differ
    assert (train["told"].float().mean(0) > 0.05).all()
    assert not torch.equal(train["frame"][::2], train["frame"][1::2])
    assert torch.equal(train.item[::2], train.item[1::2])


def test_more_told_frames_leave_the_rest_as_it_was(pool):
    made = {told: reels(pool, 5, told=told).test for told in (2, 3, 8)}
    for less, more in ((2, 3), (3, 8)):
        a, b = made[less], made[more]
        assert a["text"] == b["text"] and torch.equal(a.item, b.item)
        assert (a["told"] <= b["told"]).all()
        kept = a["told"] | ~b["told"]  # told before, or not told yet
        assert torch.equal(a["frame"][kept], b["frame"][kept])
        assert (a["frame"][~kept] != b["frame"][~kept]).all()


def test_features_of_frames_become_tokens_of_reels(pool):
    for part in reels(pool, 0, told=2):
        values, mask = part["video_tokens"]
        assert values.shape == (len(part), 8, 5) and mask.all()
        for n, rows in enumerate(part["frame"].tolist()):
            assert torch.equal(values[n], pool["image_features"][rows])
            assert torch.equal(part["text_features"][n],
                               pool["text_features"][pool["text"].index(part["text"][n])])
    bare = reels(frames(8, nouns=FEW), 0).train
    assert sorted(bare.columns) == ["frame", "text", "told", "video"]


class Counted(torch.nn.Module):
    """The mean colour of pictures, and how many were encoded."""

    seen = 0

    def forward(self, pictures):
        self.seen += len(pictures)
        return torch.stack([pixels(picture).float().mean((0, 1)) for picture in pictures])


def test_a_frame_is_encoded_once_for_all_reels(tmp_path, monkeypatch):
    encoder, few = Counted(), frames(2, nouns=FEW)
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path))
    encoded = add_features(few, "image", encoder)
    seen = encoder.seen
    made = [reels(encoded, seed, each=4) for seed in (0, 1)]
    assert sum(part["frame"].numel() for splits in made for part in splits) > 2 * len(few)
    assert all("video_tokens" in part.columns for splits in made for part in splits)
    assert encoder.seen == seen <= len(few) + 1  # one more where it is tried first


def test_save_and_load_keep_them(pool, tmp_path):
    few = reels(pool, 0).test.select([3, 1])
    few.save(tmp_path / "reels")
    back = Pairs.load(tmp_path / "reels")
    assert torch.equal(back["video"][1], few["video"][1])
    assert torch.equal(back["told"], few["told"]) and back.provenance == few.provenance
    assert torch.equal(back["video_tokens"].values, few["video_tokens"].values)


@pytest.mark.parametrize("wrong, words", [
    ({"told": 0}, "told must lie in 1 to length"), ({"told": 9}, "got 9 of 8"),
    ({"each": 0}, "each be at least 1"), ({"each": (2, 0, 1)}, "each be at least 1"),
    ({"each": (2, 1)}, "each be at least 1"), ({"captioned": 1.0}, "between 0 and 1"),
    ({"captioned": 0.9}, "train has 39 things, of which 4 have no caption"),
    ({"captioned": 0.001}, "of which 39 have no caption"),
    ({"told": 9, "length": 9}, "told: 9 frames of a thing are needed, one has 8"),
    ({"fractions": (0.5, 0.5, 0.5)}, "fractions")])
def test_wrong_reels_are_refused(pool, wrong, words):
    with pytest.raises(ValueError, match=words):
        reels(pool, 0, **wrong)


def test_each_part_may_have_reels_of_its_own_number(pool):
    one, many = reels(pool, 0), reels(pool, 0, each=(2, 1, 4))
    assert [len(part) for part in many] == [2 * len(one.train), len(one.val), 4 * len(one.test)]
    for part, every, n in zip(many, one, (2, 1, 4)):  # in order, a caption's side by side
        assert torch.equal(part.item, every.item.repeat_interleave(n))
    assert torch.equal(many.val["frame"], one.val["frame"])
    assert len({tuple(row) for row in many.test["frame"].tolist()}) == len(many.test)


def test_pairs_that_are_no_pool_are_refused(pool):
    first = torch.arange(len(pool)) > 0
    plain = pool.with_columns(image=torch.zeros(len(pool), 4))
    twice = pool.with_columns(text=["a dog", *pool["text"][1:-1], "a dog"])
    for wrong, words in ((pool.with_present("image", first), "none missing"),
                         (plain, "must hold pictures"), (twice, "'a dog' is said of two")):
        with pytest.raises(ValueError, match=words):
            reels(wrong, 0)


@pytest.mark.parametrize("wrong, words", [
    ({"each": 0}, "each must be at least 1"), ({"size": 7}, "size at least 8"),
    ({"nouns": FEW[:3]}, "four at least"), ({"nouns": (*FEW, "soul")}, "soul")])
def test_a_wrong_pool_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        frames(**{"nouns": FEW, **wrong})
