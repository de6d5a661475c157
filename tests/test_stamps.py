"""Tux Paint's stamps: what is in them, what is missing, and what stays together."""

import pickle

import numpy as np
import pytest
import torch
from needs import needs_asset

from alignkit.data import fetch
from alignkit.data.corpora import on_white, plain, some_groups, together
from alignkit.data.fetch import FetchError, asset, manifest
from alignkit.data.stamps import SILENT, SPOKEN, draw, hear, languages, read_stamps, stamps


@pytest.fixture(scope="module")
def base():
    needs_asset("stamps")
    return stamps()


@pytest.fixture(scope="module")
def spoken():
    needs_asset("stamps")
    return stamps(SPOKEN)


def test_counts(base, spoken):
    assert (len(base), len(base.item.unique()), len(languages())) == (950, 804, 78)
    assert len(base.label_names["folder"]) == 16
    assert int(base.present["sound"].sum()) == 106
    recorded = {code: int(spoken.present["speech" if code == "en" else f"speech_{code}"].sum())
                for code in SPOKEN}
    assert recorded == {"en": 65, "be": 692, "bg": 915, "ca": 915, "da": 321, "el": 657,
                        "es": 888, "fr": 925, "nl": 67, "ro": 918, "ru": 918}
    assert "950 rows" in base.describe() and "GPL-2" in base.describe()


def test_sentences_in_many_languages(base):
    row = base.ids.index("animals/mammals/cats/tiger")
    pairs = stamps(["de", "en", "pt_BR", "sr@latin", "ja", "mk"])
    assert list(pairs.columns) == ["image", "text", "text_en", "text_pt_BR",
                                   "text_sr_latin", "text_ja", "text_mk", "speech_en", "sound"]
    assert pairs["text"][row] == "Ein Tiger." and pairs["text_en"][row] == "A tiger."
    assert pairs["text_en"] == base["text"] and pairs["text_ja"][row].startswith("トラ")
    assert int(pairs.present["text_mk"].sum()) == 201
    for name in pairs.columns:
        if name.startswith("text"):
            assert [bool(text) for text in pairs[name]] == pairs.present[name].tolist()
            assert all(text == text.strip() for text in pairs[name])


def test_items_share_the_sentence_of_the_first_language():
    needs_asset("stamps")
    pairs = stamps("nso")  # 28 sentences: the other rows are alone
    have = pairs.present["text"]
    assert len(pairs.item[~have].unique()) == int((~have).sum())
    for a, text in enumerate(pairs["text"]):
        for b in range(a) if text else ():
            assert (pairs["text"][b] == text) == (pairs.item[a] == pairs.item[b])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_sentence_stands_on_both_sides_of_a_split(spoken, seed):
    texts = [name for name in spoken.columns if name.startswith("text")]
    sides = [{(name, plain(text)) for name in texts for text in part[name] if text}
             for part in spoken.split(seed)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not sides[a] & sides[b]


@pytest.mark.parametrize("together_", [
    "animals/mammals/cats/lion animals/mammals/cats/lion-2",
    "symbols/alphabets/english/filled/lowercase/b_filled "
    "symbols/alphabets/english/outlined/uppercase/D_outline",
    "symbols/math/operators/op6_lessthan symbols/math/operators/op9_greaterthanequal",
    "people/body_parts/eye_brown_left people/body_parts/eye_green_left",
])  # fmt: skip
def test_variants_are_one_group(base, together_):
    rows = [base.ids.index(name) for name in together_.split()]
    assert len(base.group[rows].unique()) == 1


def test_what_differs_is_not_one_group(base):
    assert len(base.group.unique()) > 740 and base.group.bincount().max() <= 8


@pytest.mark.slow
def test_all_drawings_and_no_near_duplicate_is_missed(base):
    """No picture is blank, and drawings of different groups differ, mirrored or not."""
    small = [draw(path, 64).reduce(2) for path in base["image"].sources]
    x = torch.tensor(np.stack(small)).float() / 255
    blank = x.flatten(1).std(1) < 0.01
    assert not blank.any(), [base.ids[i] for i in blank.nonzero()]
    flat, mirrored = x.flatten(1), x.flip(2).flatten(1)
    far = torch.minimum(torch.cdist(flat, flat), torch.cdist(flat, mirrored))
    near = far / flat.shape[1] ** 0.5 < 0.05
    faint = ((1 - flat) ** 2).mean(1).sqrt() < 0.09  # a glass, a line: near to white
    near &= ~(faint[:, None] & faint[None])
    for i, j in near.nonzero().tolist():
        assert base.group[i] == base.group[j], (base.ids[i], base.ids[j])


def test_pictures(base):
    picture = base["image"][base.ids.index("animals/mammals/cats/tiger")]
    assert (picture.mode, picture.size) == ("RGB", (224, 224))
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    again = pickle.loads(pickle.dumps(base["image"]))
    assert again[base.ids.index("animals/mammals/cats/tiger")].tobytes() == picture.tobytes()
    assert stamps(size=64, limit=2)["image"][0].size == (64, 64)
    wide = on_white(picture.crop((0, 50, 224, 100)), 40)
    assert wide.size == (40, 40) and wide.getpixel((20, 2)) == (255, 255, 255)


def test_sounds(spoken):
    sounding = spoken.present["sound"].nonzero()[:, 0].tolist()
    for row in sounding:
        wave, rate = spoken["sound"][row]
        assert wave.dtype == torch.float32 and wave.dim() == 1 and 5000 <= rate <= 48000
        assert wave.square().mean() > 1e-6, spoken.ids[row]
    ids = {spoken.ids[row] for row in sounding}
    assert {"animals/mammals/cats/tiger", "hobbies/music/string/cello"} <= ids
    assert not any("alphabets" in name or "symbols/math" in name for name in ids)
    root = asset("stamps") / "stamps"
    assert not any(hear(root / f"{name}.ogg")[0].any() for name in SILENT)
    row = spoken.ids.index("animals/mammals/cats/tiger")
    wave, rate = spoken["speech_fr"][row]
    assert 0.5 < len(wave) / rate < 3
    row = spoken.ids.index("animals/mammals/giraffe")
    with pytest.raises(ValueError, match="no sound: ask present"):
        spoken["sound"][row]


def test_provenance_and_limit(base):
    p = base.provenance
    assert (p.kind, len(p.hash)) == ("real", 64) and p == stamps().provenance
    assert p.licence.startswith("GPL-2") and manifest()["stamps"]["licence"] == "GPL-2"
    some, more = stamps(limit=20), stamps(limit=21)
    assert len(some.group.unique()) == 20 and set(some.ids) < set(more.ids)
    others = [stamps("fr"), stamps(size=64), some]
    assert len({p.hash, *(other.provenance.hash for other in others)}) == 4


def test_saved_and_loaded(tmp_path):
    needs_asset("stamps")
    pairs = stamps(["fr", "en"], limit=6)
    pairs.save(tmp_path / "s")
    back = type(pairs).load(tmp_path / "s")
    assert back["text_en"] == pairs["text_en"] and back.provenance == pairs.provenance
    assert back["image"][1].tobytes() == pairs["image"][1].tobytes()
    row = int(pairs.present["speech"].nonzero()[0])
    assert torch.equal(back["speech"][row][0], pairs["speech"][row][0])


def test_wrong_arguments_are_named():
    needs_asset("stamps")
    for call in (lambda: stamps("xx"), lambda: stamps([]), lambda: stamps(["en", "en"]),
                 lambda: stamps(size=0), lambda: stamps(limit=0)):
        with pytest.raises(ValueError, match="language|size must|limit must"):
            call()


@pytest.mark.parametrize("name", ["stamps", "furniture"])
def test_where_there_is_no_source_it_says_what_to_bring(tmp_path, monkeypatch, name):
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt-get
    monkeypatch.delenv("ALIGNKIT_BRING", raising=False)
    monkeypatch.setattr(fetch, "_checked", set())
    with pytest.raises(FetchError) as raised:
        asset(name)
    said, source = str(raised.value), manifest()[name]["sources"][0]
    assert "apt-get is not installed here" in said and "apt-get update" in said
    assert source["file"] in said and "packages.debian.org" in said
    assert "ALIGNKIT_BRING" in said


def test_reading_twice_is_reading_once(base):
    assert read_stamps() is read_stamps()


def test_together_links_rows_through_others():
    assert together([["a"], ["b"], ["c"], ["b", "c"], ["d"]]) == [0, 1, 1, 1, 4]
    assert together([["x"], ["y"], ["y", "x"]]) == [0, 0, 0]
    assert together([[], []]) == [0, 1]


def test_some_groups_are_nested():
    group, names = [0, 0, 2, 3, 3, 5], list("abcdef")
    for limit in range(1, 4):
        rows, more = (set(some_groups(group, names, n)) for n in (limit, limit + 1))
        assert rows < more and len({group[row] for row in rows}) == limit
    assert some_groups(group, names, None) == list(range(6))
    with pytest.raises(ValueError, match="limit"):
        some_groups(group, names, 0)
