"""The emoji and the scenes: what is in them, and that their words are true."""

import pickle
import re

import numpy as np
import pytest
import torch

from alignkit.data.emoji import LANGUAGES, draw, emoji
from alignkit.data.fetch import manifest
from alignkit.data.scenes import COLOURS, NOUNS, SIZES, scenes


@pytest.fixture(scope="module")
def base():
    return emoji()


@pytest.fixture(scope="module")
def tones():
    return emoji(LANGUAGES, skin_tones=True)


@pytest.fixture(scope="module")
def composed():
    return scenes(300)


# --- emoji -------------------------------------------------------------------------


def test_counts(base, tones):
    assert (len(base), len(tones)) == (1914, 3944)
    assert set(base.ids) < set(tones.ids)
    assert len(base.labels["group"].unique()) == 9
    assert len(base.labels["subgroup"].unique()) == 98


def test_names_are_written_as_people_write_them(base, tones):
    at = dict(zip(base.ids, base["text"], strict=True))
    assert at["1F600"] == "grinning face" and at["1F415"] == "dog"
    assert at["1F1F3-1F1F4"] == "Norway" and at["0031-FE0F-20E3"] == "keycap 1"
    columns = ["text", *(f"text_{code}" for code in LANGUAGES[1:])]
    for column in columns:
        assert tones.present[column].all()
        for name in tones[column]:
            assert name and name == name.strip(" :") and "_" not in name
    dog = tones.ids.index("1F415")
    assert tones["text_de"][dog] == "hund" and tones["text_zh"][dog] == "狗"
    assert [len(set(tones[c])) > 3900 for c in columns] == [True] * 14


def test_labels_are_unicodes(base):
    def label(kind, code):
        number = base.labels[kind][base.ids.index(code)]
        return base.label_names[kind][number]

    assert label("group", "1F34E") == "Food & Drink"
    assert label("subgroup", "1F34E") == "food-fruit"
    assert label("group", "1F1F3-1F1F4") == "Flags"


def test_provenance(base):
    p = base.provenance
    assert (p.kind, len(p.hash)) == ("real", 64) and "CC BY-SA 4.0" in p.licence
    assert "CC BY-SA 4.0" in manifest()["openmoji"]["licence"]
    assert p == emoji().provenance
    others = [emoji("de"), emoji(size=64), emoji(limit=9), emoji(skin_tones=True)]
    assert len({p.hash, *(other.provenance.hash for other in others)}) == 5


def test_several_languages_and_a_limit():
    pairs = emoji(["ja", "en"], limit=40)
    assert list(pairs.columns) == ["image", "text", "text_en"]
    assert len(pairs.group.unique()) == 40
    assert pairs["text_en"] == emoji(limit=40)["text"]
    assert set(pairs.ids) < set(emoji(limit=41).ids)
    with_tones = emoji(limit=40, skin_tones=True)
    assert set(pairs.ids) <= set(with_tones.ids)
    assert len(with_tones.group.unique()) == 40


@pytest.mark.parametrize("call", [
    lambda: emoji("xx"), lambda: emoji([]), lambda: emoji(["en", "en"]),
    lambda: emoji(size=0), lambda: emoji(limit=0), lambda: scenes(0),
    lambda: scenes(4, size=5),
])  # fmt: skip
def test_wrong_arguments_are_named(call):
    with pytest.raises(ValueError, match="language|size must|limit must|n must"):
        call()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_variant_stands_on_both_sides_of_a_split(tones, seed):
    def bare(code):  # skin tone, gender, hair, direction taken away
        code = re.sub("-FE0F|-1F3F[B-F]|-200D-(2640|2642|27A1|1F9B[0-3])", "", code)
        return re.sub("1F46[89]", "1F9D1", code)

    sides = [{bare(code) for code in part.ids} for part in tones.split(seed)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not sides[a] & sides[b]


@pytest.mark.parametrize("together", [
    "1F44B 1F44B-1F3FB 1F44B-1F3FF",  # waving hand
    "1F46B 1F9D1-1F3FB-200D-1F91D-200D-1F9D1-1F3FF 1F46D-1F3FC",  # holding hands
    "1F91D 1FAF1-1F3FB-200D-1FAF2-1F3FE",  # handshake of two tones
    "1F3C3 1F3C3-200D-2640-FE0F 1F3C3-1F3FD-200D-2642-FE0F",  # running
    "1F9D1-200D-1F373 1F469-1F3FB-200D-1F373",  # cook
    "0031-FE0F-20E3 0023-FE0F-20E3",  # keycaps
    "1F1F3-1F1F4 1F1E7-1F1FB 1F1F8-1F1EF",  # Norway, Bouvet Island, Svalbard
    "1F550 1F567",  # clock faces
    "2764 1F499",  # hearts
    "1F468-200D-1F466 1F46A",  # families
    "1F534 1F535 1F315",  # discs: two colours, the full moon
])  # fmt: skip
def test_variants_are_one_group(tones, together):
    rows = [tones.ids.index(code) for code in together.split()]
    assert len(tones.group[rows].unique()) == 1


def test_what_differs_is_not_one_group(base):
    codes = ["1F415", "1F408", "1F1E9-1F1EA", "1F1EF-1F1F5", "1F600", "1F697", "1F373"]
    assert len(base.group[[base.ids.index(code) for code in codes]].unique()) == 7
    assert base.group.bincount().max() <= 30


@pytest.mark.slow
def test_no_near_duplicate_is_missed(base):
    """Every pair of drawings that differ by less than 0.05 at 32 px is in one group;
    faces, whose expression is the whole difference, are excepted."""
    faces = [i for i, name in enumerate(base.label_names["subgroup"])
             if name.startswith("face-")]  # fmt: skip
    rows = (~torch.isin(base.labels["subgroup"], torch.tensor(faces))).nonzero()[:, 0]
    small = [draw(base["image"].sources[row], 64).reduce(2) for row in rows]
    x = torch.tensor(np.stack(small)).flatten(1) / 255.0
    near = torch.cdist(x, x) / x.shape[1] ** 0.5 < 0.05
    group, item = base.group[rows], base.item[rows]
    for i, j in near.nonzero().tolist():
        assert group[i] == group[j], (base.ids[rows[i]], base.ids[rows[j]])
    for i, j in ((item[:, None] == item) & ~torch.eye(len(item)).bool()).nonzero():
        assert torch.equal(x[i], x[j])  # one item: the same drawing


def test_drawings(base):
    picture = base["image"][base.ids.index("1F415")]
    assert (picture.mode, picture.size) == ("RGB", (224, 224))
    again = pickle.loads(pickle.dumps(base["image"]))[base.ids.index("1F415")]
    assert picture.tobytes() == again.tobytes()
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    for row in range(0, len(base), 97):
        colours = base["image"][row].getcolors(224 * 224)
        assert len(colours) > 2, base.ids[row]  # not blank
    assert emoji(size=48, limit=2)["image"][0].size == (48, 48)


# --- scenes ------------------------------------------------------------------------


def test_scenes_are_a_function_of_the_seed(composed):
    again, other, shorter = scenes(300), scenes(300, corpus_seed=1), scenes(20)
    assert composed.provenance == again.provenance
    assert composed.provenance.kind == "composed"
    assert composed["text"] == again["text"] != other["text"]
    assert composed["text"][:20] == shorter["text"]
    assert len({p.provenance.hash for p in (composed, other, shorter)}) == 3
    assert composed["image"][3].tobytes() == shorter["image"][3].tobytes()
    assert len(set(composed["text_long"])) == 300


def test_boxes_lie_inside_and_apart(composed):
    objects = composed.tables["objects"]
    box = objects["box"]
    assert box.min() >= 0 and box.max() <= 224
    sides = torch.tensor(list(SIZES.values()))[objects["size"]].float()
    assert torch.equal(box[:, 2] - box[:, 0], sides)
    assert torch.equal(box[:, 3] - box[:, 1], sides)
    for item in composed.item.tolist():
        rows = (objects["item"] == item).nonzero()[:, 0]
        assert len(rows) == 2 + composed.labels["count"][item]
        assert len(objects["noun"][rows].unique()) == len(rows)
        low = torch.maximum(box[rows, None, :2], box[None, rows, :2])
        high = torch.minimum(box[rows, None, 2:], box[None, rows, 2:])
        overlap = (high - low).clamp(min=0).prod(-1)
        assert not overlap.fill_diagonal_(0).any()


def holds(relation: str, a: list[float], b: list[float]) -> bool:
    """Does box a stand in that relation to box b?"""
    return {"left of": a[2] <= b[0], "right of": b[2] <= a[0],
            "above": a[3] <= b[1], "below": b[3] <= a[1]}[relation]  # fmt: skip


def objects_of(pairs, row: int) -> dict[str, dict]:
    """noun -> its attributes in words, and its box."""
    table, names = pairs.tables["objects"], pairs.tables["names"]
    rows = (table["item"] == pairs.item[row]).nonzero()[:, 0].tolist()
    return {
        pairs.tables["vocabulary"][table["noun"][r]]:
            {f: names[f][table[f][r]] for f in ("size", "colour", "shape")}
            | {"box": table["box"][r].tolist()}
        for r in rows
    }  # fmt: skip


def test_captions_are_true(composed):
    thing = r"an? (small|large) (\w+) on (an?) (\w+) (disc|square)"
    relation = "(left of|right of|above|below)"
    test = composed.split(0).test  # tables hold after rows were chosen
    for row in range(len(test)):
        seen = objects_of(test, row)

        def check(size, noun, article, colour, shape, seen=seen):
            was = [seen[noun][field] for field in ("size", "colour", "shape")]
            assert was == [size, colour, shape]
            assert article == ("an" if colour == "orange" else "a")
            return noun

        said = re.fullmatch(f"{thing} {relation} {thing}", test["text"][row]).groups()
        first, second = check(*said[:5]), check(*said[6:])
        assert holds(said[5], seen[first]["box"], seen[second]["box"])
        long = test["text_long"][row]
        nouns = [check(*found) for found in re.findall(f"There is {thing}\\.", long)]
        assert set(nouns) == set(seen)
        claims = re.findall(rf"The (\w+) is {relation} the (\w+)\.", long)
        assert len(claims) == len(nouns) - 1
        assert all(holds(r, seen[a]["box"], seen[b]["box"]) for a, r, b in claims)


def test_the_relations_table_is_complete(composed):
    table, names = composed.tables["relations"], composed.tables["names"]["relation"]
    box, item = (composed.tables["objects"][k] for k in ("box", "item"))
    listed = set(zip(*(table[k].tolist() for k in ("subject", "relation", "object")),
                     strict=True))  # fmt: skip
    true = {
        (i, r, j)
        for i in range(100) for j in range(100) if i != j and item[i] == item[j]
        for r, name in enumerate(names) if holds(name, box[i].tolist(), box[j].tolist())
    }  # fmt: skip
    last = int(item[99])
    listed, true = ({x for x in s if item[x[0]] < last} for s in (listed, true))
    assert listed == true
    assert torch.equal(table["item"], item[table["subject"]])


def test_the_picture_shows_what_the_table_says(composed):
    """The plate's own colour covers its rim, the canvas lies outside, and a drawing
    stands in the middle."""
    table, names = composed.tables["objects"], composed.tables["names"]
    for row in range(12):
        pixels = np.asarray(composed["image"][row]).astype(int)
        for r in (table["item"] == row).nonzero()[:, 0].tolist():
            x0, y0, x1, _ = (round(v) for v in table["box"][r].tolist())
            colour = COLOURS[names["colour"][table["colour"][r]]]
            rgb = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
            middle = (x0 + x1) // 2
            assert np.abs(pixels[y0 + 2, middle] - rgb).max() <= 2
            is_square = names["shape"][table["shape"][r]] == "square"
            assert (np.abs(pixels[y0 + 2, x0 + 4] - rgb).max() <= 2) == is_square
            assert np.abs(pixels[y0 - 2, middle] - rgb).max() > 20
            inside = pixels[y0 + 8 : y0 + x1 - x0 - 8, x0 + 8 : x1 - 8]
            assert (np.abs(inside - rgb).max(-1) > 60).mean() > 0.08


def test_scenes_of_the_same_objects_stay_together():
    pairs = scenes(2000)
    table = pairs.tables["objects"]
    sets = [frozenset(re.findall(r"There is a \w+ (\w+)", long))
            for long in pairs["text_long"]]  # fmt: skip
    assert len(set(sets)) == len(pairs.group.unique()) < 2000
    known: dict = {}
    for nouns, group in zip(sets, pairs.group.tolist(), strict=True):
        assert known.setdefault(nouns, group) == group
    assert len(table["noun"].unique()) == len(NOUNS) == 64
    assert len(set(pairs["text"])) == 2000


def test_scenes_scale_with_the_canvas(tmp_path):
    small, large = scenes(6, size=112), scenes(6, size=224)
    boxes = [p.tables["objects"]["box"] for p in (small, large)]
    assert torch.equal(boxes[0] * 2, boxes[1])
    assert small["image"][0].size == (112, 112)
    shrunk = np.asarray(large["image"][0].reduce(2)).astype(int)
    assert np.abs(shrunk - np.asarray(small["image"][0])).mean() < 4
    small.save(tmp_path / "s")
    back = type(small).load(tmp_path / "s")
    assert torch.equal(back.tables["objects"]["box"], boxes[0])
    assert back["image"][2].tobytes() == small["image"][2].tobytes()
