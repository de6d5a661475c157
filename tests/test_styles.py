"""Emoji in other styles and their keywords, ImageNet's prompts: what is in them, and
that the default corpus stays what it was, byte for byte."""

import hashlib
import json
import pickle

import numpy as np
import pytest
import torch
from needs import needs_asset

from alignkit.course.portrait import portrait
from alignkit.data import fetch
from alignkit.data.emoji import LANGUAGES, emoji
from alignkit.data.fetch import FetchError, asset, manifest
from alignkit.data.imagenet import TEMPLATES, class_names, imagenet_prompts
from alignkit.data.styles import STYLES, draw, drawings, read_keywords
from alignkit.evaluation import class_embeddings

OTHERS = ("noto", "twemoji", "fluent")
COUNTS = {"openmoji": (1914, 3944), "noto": (1652, 3682), "twemoji": (1908, 3938),
          "fluent": (1594, 3139)}  # fmt: skip


@pytest.fixture(scope="module")
def base():
    return emoji()


@pytest.fixture(scope="module")
def every():
    for style in OTHERS:
        needs_asset(STYLES[style].asset)
    return emoji(style=list(STYLES))


# --- the default -------------------------------------------------------------------


@pytest.mark.parametrize("options, provenance, content", [
    ({}, "94632f87c2fbbd041429297448b2848817df9b72c2852a4183d3b633cd274b5d",
     "f1021997c44ddf72b35659b7a109e7c4385fddb6f1cb995ed7daaff1e4b02026"),
    ({"language": LANGUAGES, "skin_tones": True},
     "2f1add56428daf65afbd2a6865040540492df8f766f50d2ffa9c58cc48e91cdf",
     "c8970fa91f9a7d69e42dc7c2785d63e5e41e12b3b074301ce7c87e4a196d89ad"),
    ({"language": ["de", "en"], "size": 64, "limit": 40},
     "843821ce3c02831c3cd08e3f9366b7d8a2128134ae72fa7d230e21d70776e3f1",
     "9bf951f7763e92728f7455a82c7c609a866e57960552360e69d79045696a5926"),
])  # fmt: skip
def test_the_default_is_what_published_results_name(options, provenance, content):
    """Features are kept under this hash, and results name it: it must not move."""
    pairs = emoji(**options)
    rows = [pairs.ids, pairs.item.tolist(), pairs.group.tolist(), sorted(pairs.columns),
            [path.name for path in pairs["image"].sources], pairs["text"],
            {k: v.tolist() for k, v in pairs.labels.items()}, pairs.label_names,
            {k: v.tolist() for k, v in pairs.present.items()}]  # fmt: skip
    assert pairs.provenance.hash == provenance
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == content
    assert emoji(style=["openmoji"], **options).provenance == pairs.provenance


# --- styles ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("style", OTHERS)
def test_a_style_alone(style, base):
    needs_asset(STYLES[style].asset)
    pairs, tones = emoji(style=style), emoji(style=style, skin_tones=True)
    assert (len(pairs), len(tones)) == COUNTS[style]
    assert list(pairs.columns) == ["image", "text"] and set(pairs.labels) == {
        "group", "subgroup"}  # fmt: skip
    said = dict(zip(base.ids, base["text"], strict=True))
    assert all(said[name] == text
               for name, text in zip(pairs.ids, pairs["text"], strict=True))
    p = pairs.provenance
    assert STYLES[style].licence in p.licence and "OpenMoji" not in p.source
    assert manifest()[STYLES[style].asset]["licence"] in p.licence
    assert p.hash != base.provenance.hash and p == emoji(style=style).provenance
    dog = pairs.ids.index("1F415")
    assert pairs["image"].sources[dog] == (style, "dog")
    picture = pairs["image"][dog]
    assert (picture.mode, picture.size) == ("RGB", (224, 224))
    again = pickle.loads(pickle.dumps(pairs["image"]))[dog]
    assert picture.tobytes() == again.tobytes()
    assert picture.tobytes() != base["image"][base.ids.index("1F415")].tobytes()
    small = emoji(style=style, size=48, limit=30)
    assert len(small.group.unique()) == 30 and small["image"][0].size == (48, 48)
    portrait(small, 3)


def test_all_styles_of_a_thing_are_one_item(every, base):
    assert len(every) == sum(count for count, _ in COUNTS.values())
    assert every.labels["style"].bincount().tolist() == [n for n, _ in COUNTS.values()]
    assert every.label_names["style"] == list(STYLES)
    code = [name.split()[0] for name in every.ids]
    style = [name.split()[1] for name in every.ids]
    assert [every.label_names["style"][k] for k in every.labels["style"]] == style
    item = dict(zip(code, every.item.tolist(), strict=True))
    assert [item[c] for c in code] == every.item.tolist()
    assert len(set(item.values())) == len(every.item.unique()) == 1856
    # What was one item or group in OpenMoji still is.
    for kind in ("item", "group"):
        wide = dict(zip(code, getattr(every, kind).tolist(), strict=True))
        known: dict = {}
        for name, number in zip(base.ids, getattr(base, kind).tolist(), strict=True):
            assert known.setdefault(number, wide[name]) == wide[name]
    dogs = [name for name, c in zip(every.ids, code, strict=True) if c == "1F415"]
    assert dogs == [f"1F415 {style}" for style in STYLES]
    assert item["1F9D1-200D-1F680"] == item["1F469-200D-1F680"]  # Noto's astronauts
    assert len({item[c] for c in ("1F415", "1F408", "1F600", "1F603", "2764")}) == 5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_thing_stands_on_both_sides_of_a_split(every, seed):
    sides = [{name.split()[0] for name in part.ids} for part in every.split(seed)]
    assert not sides[0] & sides[1] and not sides[0] & sides[2]
    assert not sides[1] & sides[2] and min(map(len, sides)) > 100


@pytest.mark.slow
def test_no_near_duplicate_is_missed(every):
    """Drawings of the three styles that differ by less than 0.05 at 32 px are in one
    group, whatever their style; faces, whose expression is the difference, are left
    out. And no drawing is blank."""
    faces = [i for i, name in enumerate(every.label_names["subgroup"])
             if name.startswith("face-")]  # fmt: skip
    rows = (every.labels["style"] > 0).nonzero()[:, 0]
    x = torch.tensor(np.stack([draw(every["image"].sources[row], 64).reduce(2)
                               for row in rows])).flatten(1) / 255.0
    assert float((1 - x).pow(2).mean(1).sqrt().min()) > 0.02
    near = torch.cdist(x, x) / x.shape[1] ** 0.5 < 0.05
    is_face = torch.isin(every.labels["subgroup"][rows], torch.tensor(faces))
    group = every.group[rows]
    missed = near & (group[:, None] != group) & ~(is_face[:, None] & is_face)
    assert not [(every.ids[rows[i]], every.ids[rows[j]]) for i, j in missed.nonzero()]


def test_a_drawing_keeps_its_proportions():
    needs_asset("emoji-twemoji")
    melon = np.asarray(draw(drawings("twemoji")["1F349"], 72))  # 36 × 25.22 units
    is_ink = (melon < 250).any(-1)
    rows, columns = (np.flatnonzero(is_ink.any(axis)) for axis in (1, 0))
    assert np.ptp(columns) >= 70 and 48 <= np.ptp(rows) <= 51
    assert abs(rows.min() - (71 - rows.max())) <= 2  # in the middle


# --- keywords ----------------------------------------------------------------------


def test_keywords():
    needs_asset("emoji-keywords")
    pairs = emoji(["de", "en"], keywords=["en", "sw", "de_CH"])
    assert list(pairs.columns) == ["image", "text", "text_en", "keywords",
                                   "keywords_sw", "keywords_de_CH"]  # fmt: skip
    dog, flag = (pairs.ids.index(code) for code in ("1F415", "1F1F3-1F1F4"))
    assert pairs["keywords"][dog] == "animal, animals, dog, dogs, pet"
    assert pairs["keywords_sw"][dog].startswith("mbwa")
    heart = pairs.ids.index("2764")  # in CLDR without its variation selector
    assert "love" in pairs["keywords"][heart].split(", ")
    mask = pairs.present["keywords"]
    assert int(mask.sum()) == 1588 and not mask[flag]
    assert [bool(text) for text in pairs["keywords"]] == mask.tolist()
    assert 50 < int(pairs.present["keywords_de_CH"].sum()) < 200
    assert pairs.present["text"].all()
    assert torch.equal(pairs.item, emoji(["de", "en"]).item)
    assert "326 missing" in pairs.describe()
    for code in LANGUAGES:
        assert len(read_keywords(code)[code]) > 1500


def test_keywords_change_the_hash():
    needs_asset("emoji-keywords")
    p = [emoji(limit=9, keywords=asked).provenance
         for asked in ((), "en", ["en"], ["en", "de"])]
    assert p[1] == p[2] and len({x.hash for x in p}) == 3
    assert "keywords of CLDR 48.2.0" in p[1].source and "CLDR 48" not in p[0].source


# --- ImageNet's names --------------------------------------------------------------


@pytest.fixture(scope="module")
def prompts():
    needs_asset("imagenet-names")
    return imagenet_prompts()


def test_class_names(prompts):
    names = class_names()
    assert len(set(names)) == len(names) == 1000 and all(names)
    assert [names[k] for k in (0, 207, 657, 744, 836, 837, 999)] == [
        "tench", "Golden Retriever", "missile", "projectile", "sunglass", "sunglasses",
        "toilet paper"]  # fmt: skip
    wordnet = [name.split()[0] for name in prompts.ids[:: len(TEMPLATES)]]
    assert wordnet == sorted(wordnet) and wordnet[0] == "n01440764"  # ImageNet's order


def test_prompts_are_class_by_class(prompts):
    k = len(TEMPLATES)
    assert len(prompts) == 1000 * k and prompts.label_names["class"] == class_names()
    assert prompts.item.tolist() == [row // k for row in range(1000 * k)]
    assert torch.equal(prompts.labels["class"], prompts.item)
    assert prompts["text"][207 * k + 1] == "a photo: Golden Retriever."
    names = class_names()
    assert prompts["text"] == [t.format(name) for name in names for t in TEMPLATES]
    assert prompts.provenance.kind == "composed" and "MIT" in prompts.provenance.licence
    assert "label class: 1000 classes" in prompts.describe()


def test_prompts_are_what_class_embeddings_takes(prompts):
    """A text's place among the numbers stands for its embedding."""
    k = len(TEMPLATES)
    z = torch.randn(len(prompts), 8, generator=torch.Generator().manual_seed(0))
    class_z = class_embeddings(z.view(1000, -1, 8))
    slow = class_embeddings([z[prompts.item == number] for number in range(1000)])
    torch.testing.assert_close(class_z, slow)
    of_7 = torch.nn.functional.normalize(z[7 * k : 8 * k], dim=1).mean(0)
    torch.testing.assert_close(class_z[7], of_7 / of_7.norm())


def test_descriptions(prompts):
    told = imagenet_prompts(["the {}"], descriptions=True)
    assert len(told) == 2000 and told["text"][0] == "the tench"
    assert told["text"][1].startswith("tench: A thick-bodied freshwater fish")
    bare = [name for name, text in zip(class_names(), told["text"][1::2], strict=True)
            if text == name]  # fmt: skip
    assert len(bare) == 25
    assert told.provenance.kind == "generated"
    alone = imagenet_prompts([], descriptions=True)
    assert alone["text"] == told["text"][1::2]
    plain = imagenet_prompts(["{}"])
    assert len({p.provenance.hash for p in (prompts, told, alone, plain)}) == 4


# --- what is wrong, and what is not here -------------------------------------------


@pytest.mark.parametrize("call, words", [
    (lambda: emoji(style="apple"), "style 'apple' must be one of openmoji, noto"),
    (lambda: emoji(style=[]), "style '' must be one of"),
    (lambda: emoji(style=["noto", "noto"]), "style 'noto' must be .* at most once"),
    (lambda: imagenet_prompts("a {}"), "templates must be several"),
    (lambda: imagenet_prompts(["a photo"]), "'a photo' needs one {}"),
    (lambda: imagenet_prompts([]), "templates is empty"),
])  # fmt: skip
def test_wrong_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_wrong_languages_of_keywords_are_named():
    needs_asset("emoji-keywords")
    with pytest.raises(ValueError, match="keywords 'xx' must be one of af, ak"):
        emoji(keywords=["en", "xx"])
    with pytest.raises(ValueError, match="keywords 'bew': CLDR has none"):
        read_keywords("bew")


@pytest.mark.parametrize("name", [*(STYLES[style].asset for style in OTHERS),
                                  "emoji-keywords"])
def test_where_there_is_no_source_it_says_what_to_bring(tmp_path, monkeypatch, name):
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))  # no npm
    monkeypatch.delenv("ALIGNKIT_BRING", raising=False)
    monkeypatch.setattr(fetch, "_checked", set())
    with pytest.raises(FetchError) as raised:
        asset(name)
    said, source = str(raised.value), manifest()[name]["sources"][0]
    assert "npm is not installed here" in said and source["file"] in said
    assert "ALIGNKIT_BRING" in said and manifest()[name]["optional"]
