"""Features of boxes in pictures: the mean of the map within, cached, and boxes that are
none; the things of scenes; tokens of inner layers."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from alignkit.data import Lazy, Pairs, Tokens
from alignkit.data.scenes import boxes_of, scenes, things_of
from alignkit.encoders import Encoder, add_features, add_regions, add_tokens, load
from alignkit.encoders.encoder import Output, as_tokens
from alignkit.encoders.regions import grid_boxes, other_regions, regions

SIDE = 8


def pixels_as_map(calls: list | None = None) -> Encoder:
    """A picture's own pixels as layer 0, twice them as layer 1."""
    def run(pictures, layers):
        x = torch.stack([torch.from_numpy(np.array(p)).float() for p in pictures])
        if calls is not None:
            calls.append(len(pictures))
        tokens = as_tokens(x.permute(0, 3, 1, 2))
        return {k: Output(tokens.values.mean(1) * (k + 1),
                          Tokens(tokens.values * (k + 1), tokens.mask)) for k in layers}

    return Encoder("pixels", "image", {0: 3, 1: 3}, "none", "whole picture; 1", lambda: run)


def drawings(n: int) -> Pairs:
    x = np.random.default_rng(0).integers(0, 256, (n, SIDE, SIDE, 3), np.uint8)
    return Pairs.make({"image": Lazy([a.tobytes() for a in x], lambda raw: Image.frombytes(
        "RGB", (SIDE, SIDE), raw), version="random pixels")})


def boxes(*rows: list[tuple]) -> Tokens:
    most = max(map(len, rows))
    values, mask = torch.zeros(len(rows), most, 4), torch.zeros(len(rows), most).bool()
    for i, row in enumerate(rows):
        values[i, :len(row)], mask[i, :len(row)] = torch.tensor(row).view(-1, 4), True
    return Tokens(values, mask)


def by_hand(picture: Image.Image, box: tuple) -> torch.Tensor:
    """The mean of bilinear points, as many a side as the box has cells, rounded up."""
    x = torch.from_numpy(np.array(picture)).double()
    x0, y0, x1, y1 = (v * SIDE for v in box)
    wide, high = math.ceil(x1 - x0), math.ceil(y1 - y0)
    found = []
    for i in range(high):
        for j in range(wide):
            v = min(max(y0 + (i + 0.5) * (y1 - y0) / high - 0.5, 0), SIDE - 1)
            u = min(max(x0 + (j + 0.5) * (x1 - x0) / wide - 0.5, 0), SIDE - 1)
            top, left = int(v), int(u)
            low, right = min(top + 1, SIDE - 1), min(left + 1, SIDE - 1)
            a, b = v - top, u - left
            found.append((1 - a) * ((1 - b) * x[top, left] + b * x[top, right])
                         + a * ((1 - b) * x[low, left] + b * x[low, right]))
    return torch.stack(found).mean(0)


# Values ---------------------------------------------------------------------------------
def test_whole_cells_are_their_plain_mean():
    pairs = drawings(2)
    cells = [(1, 2, 4, 3), (0, 0, 8, 8), (7, 7, 8, 8)]
    given = boxes([tuple(v / SIDE for v in c) for c in cells], [(0, 0.5, 0.5, 1)])
    found = add_regions(pairs, "image", pixels_as_map(), boxes=given, layers=(0, 1))
    values, mask = found["image_layer0_regions"]
    assert mask.tolist() == [[True] * 3, [True, False, False]]
    x = np.array(pairs["image"][0]).astype(float)
    for k, (x0, y0, x1, y1) in enumerate(cells):
        wanted = torch.from_numpy(x[y0:y1, x0:x1].mean((0, 1)))
        torch.testing.assert_close(values[0, k].double(), wanted, atol=1e-4, rtol=0)
    other = np.array(pairs["image"][1]).astype(float)[4:, :4].mean((0, 1))
    torch.testing.assert_close(values[1, 0].double(), torch.from_numpy(other), atol=1e-4, rtol=0)
    assert not values[1, 1:].any() and torch.equal(found["image_layer1_regions"].values,
                                                   2 * values)
    assert torch.equal(found["image_boxes"].values, given.values)


def test_any_box_is_the_mean_of_bilinear_points():
    pairs, draw = drawings(3), np.random.default_rng(1)
    rows = []
    for _ in range(3):
        ends = np.sort(draw.uniform(0, 1, (4, 2, 2)), 1)  # box, low/high, x/y
        rows.append([(*low, *high) for low, high in ends.tolist()])
    values, _ = add_regions(pairs, "image", pixels_as_map(), boxes=boxes(*rows))[
        "image_regions"]
    for i, row in enumerate(rows):
        for k, box in enumerate(row):
            wanted = 2 * by_hand(pairs["image"][i], torch.tensor(box).tolist())
            torch.testing.assert_close(values[i, k].double(), wanted, atol=2e-3, rtol=1e-5)


def test_the_whole_picture_is_the_pooled_feature():
    pairs = scenes(3)
    whole = boxes(*[[(0, 0, 1, 1)]] * 3)
    name, layers = "image:efficientnet-lite0", (3, 5)
    found = add_regions(add_features(pairs, "image", name, layers=layers), "image", name,
                        boxes=whole, layers=layers)
    for k in layers:
        torch.testing.assert_close(found[f"image_layer{k}_regions"].values[:, 0],
                                   found[f"image_layer{k}"], atol=1e-4, rtol=1e-3)


def test_a_box_takes_no_heed_of_the_others():
    encoder, picture = regions(pixels_as_map()), drawings(1)["image"][0]
    two, one = ((0.1, 0.2, 0.5, 0.6), (0.3, 0.1, 0.9, 0.4)), ((0.3, 0.1, 0.9, 0.4),)
    found = encoder.encode([(picture, two), (picture, one)], tokens=True)[-1]
    assert torch.equal(found.values[0, 1], found.values[1, 0])
    assert not torch.equal(found.values[0, 0], found.values[0, 1])


# Scenes -----------------------------------------------------------------------------------
def test_the_plates_of_scenes_after_select():
    pairs = scenes(6)
    chosen = pairs.select([4, 1, 4])
    nouns, mask = things_of(chosen, "noun")
    where = boxes_of(chosen)
    for row, scene in enumerate((4, 1, 4)):
        things = pairs["image"].sources[scene][1]
        assert mask[row].sum() == len(things)
        assert [pairs.tables["vocabulary"][i] for i in nouns[row, mask[row]]] == [
            thing[0] for thing in things]
        for box, (_, size, _, _, x, y) in zip(where.values[row].tolist(), things):
            side = {"small": 52, "large": 84}[size]
            assert box == pytest.approx([x / 224, y / 224, (x + side) / 224,
                                         (y + side) / 224])
    half = scenes(6, size=112)
    assert torch.allclose(boxes_of(half).values, boxes_of(pairs).values)
    with pytest.raises(ValueError, match="no table 'objects' with item and 'noun'"):
        things_of(drawings(1), "noun")


def test_features_are_kept_and_boxes_decide(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path))
    pairs, calls = drawings(4), []
    first = boxes(*[[(0, 0, 0.5, 0.5)]] * 4)
    other = boxes(*[[(0, 0, 0.5, 0.25)]] * 4)
    made = [add_regions(pairs, "image", pixels_as_map(calls), boxes=b)["image_regions"].values
            for b in (first, other, first)]
    assert len(calls) == 2 and torch.equal(made[0], made[2])
    assert not torch.equal(made[0], made[1])
    # The same picture with other boxes is another row.
    twice = Pairs.make({"image": Lazy([pairs["image"].sources[0]] * 2, pairs["image"].read,
                                      version="random pixels")})
    found = add_regions(twice, "image", pixels_as_map(), boxes=boxes(
        [(0, 0, 0.5, 0.5)], [(0, 0, 0.5, 0.25)]))["image_regions"].values
    assert torch.equal(found, torch.stack([made[0][0], made[1][0]]))


def test_missing_pictures_need_no_boxes():
    pairs = drawings(2).with_present("image", torch.tensor([True, False]))
    found = add_regions(pairs, "image", pixels_as_map(), boxes=boxes([(0, 0, 1, 1)], []))
    assert not found.present["image_regions"][1] and not found["image_regions"].mask[1].any()
    assert not found["image_boxes"].mask[1].any()


# What is refused --------------------------------------------------------------------------
@pytest.mark.parametrize("box", [(0.5, 0, 0.5, 1), (0.6, 0, 0.5, 1), (-0.1, 0, 1, 1),
                                 (0, 0, 1, 1.01), (0, 0, math.nan, 1), (10, 20, 62, 72)])
def test_wrong_boxes_are_named(box):
    given = boxes([(0, 0, 1, 1)], [(0, 0, 1, 1), box])
    with pytest.raises(ValueError, match="1 are wrong, the first is box 1 of row 1"):
        add_regions(drawings(2), "image", pixels_as_map(), boxes=given)


def test_other_mistakes_are_named():
    pairs = drawings(2)
    with pytest.raises(ValueError, match="1 rows have none, the first is row 1"):
        add_regions(pairs, "image", pixels_as_map(), boxes=boxes([(0, 0, 1, 1)], []))
    with pytest.raises(ValueError, match=r"values \[2, r, 4\]"):
        add_regions(pairs, "image", pixels_as_map(), boxes=boxes([(0, 0, 1, 1)]))
    with pytest.raises(ValueError, match="name the boxes yourself"):
        add_regions(pairs, "image", pixels_as_map())
    with pytest.raises(ValueError, match="text:minilm encodes text"):
        regions(load("text:minilm"))
    flat = pixels_as_map()
    flat.build = lambda: lambda rows, layers: {
        k: Output(torch.zeros(len(rows), 3), as_tokens(torch.zeros(len(rows), 5, 3)))
        for k in layers}
    with pytest.raises(ValueError, match="gives 5 tokens, which are no square map"):
        regions(flat).encode([(pairs["image"][0], ((0, 0, 1, 1),))], tokens=True)


# Tokens of inner layers ---------------------------------------------------------------------
def test_tokens_of_several_layers_in_one_pass():
    pairs = Pairs.make({"text": ["a dog", "a small dog on a blue disc"]})
    encoder = load("random:text:minilm")
    found = add_tokens(pairs, "text", encoder, (2, -1))
    wanted = encoder.encode(pairs["text"], layers=(2, -1), tokens=True)
    for name, layer in (("text_layer2_tokens", 2), ("text_tokens", -1)):
        assert torch.equal(found[name].values, wanted[layer].values)
        assert torch.equal(found[name].mask, wanted[layer].mask)
    again = add_features(pairs, "text", encoder, tokens=True)["text_tokens"]
    assert torch.equal(again.values, found["text_tokens"].values)


def test_a_grid_covers_the_picture():
    values, mask = grid_boxes(2, 3)
    area = (values[:, :, 2:] - values[:, :, :2]).prod(2)
    assert values.shape == (2, 9, 4) and mask.all()
    torch.testing.assert_close(area.sum(1), torch.ones(2))
    assert values[0, 1].tolist() == pytest.approx([1 / 3, 0, 2 / 3, 1 / 3])


def test_other_regions_are_those_of_the_row_before():
    real = torch.tensor([[True, False], [True, True], [True, True]])
    rows = Pairs.from_features({"image_regions": Tokens(torch.rand(3, 2, 5), real),
                                "image_boxes": Tokens(torch.rand(3, 2, 4), real),
                                "text_features": torch.rand(3, 2)})
    for by, order in ((1, [2, 0, 1]), (2, [1, 2, 0])):
        found = other_regions(rows, by)
        for c in ("image_regions", "image_boxes"):
            assert all(torch.equal(a, b[order]) for a, b in zip(found[c], rows[c]))
        assert torch.equal(found["text_features"], rows["text_features"])
