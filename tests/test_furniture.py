"""Sweet Home 3D's furniture: points on the models' surfaces, icons, names."""

import re
import zipfile

import numpy as np
import pytest
import torch
from needs import needs_asset

from alignkit.data import furniture as module
from alignkit.data.furniture import (
    LANGUAGES, POINTS, furniture, sample, triangles, unit_sphere,
)  # fmt: skip

SQUARE = "v 0 0 0\nv 2 0 0\nv 2 3 0\nv 0 3 0\n"


@pytest.fixture(scope="module")
def base():
    needs_asset("furniture")
    return furniture()


# --- from a model to points --------------------------------------------------------


def test_an_obj_file_by_hand():
    text = f"# a square\nmtllib x.mtl\n{SQUARE}vn 0 0 1\ng side\nf 1/1/1 2//1 3/2 4\n"
    a, b, c, d = np.array([[0, 0, 0], [2, 0, 0], [2, 3, 0], [0, 3, 0]], float)
    assert np.array_equal(triangles(text), [[a, b, c], [a, c, d]])
    assert np.array_equal(triangles(f"{SQUARE}f -4 -3 -2\n"), [[a, b, c]])


@pytest.mark.parametrize("text, words", [
    ("v 0 0 0\n", "no faces"), (f"{SQUARE}f 1 2 5\n", "1 to 5, there are 4"),
    (f"{SQUARE}f -5 1 2\n", "corners 0 to 2")])
def test_a_damaged_obj_file_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        triangles(text)


def test_points_are_uniform_on_the_surface():
    """Two triangles in two planes, one three times as large as the other."""
    small = [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    large = [[0, 0, 5], [3, 0, 5], [0, 1, 5]]
    x = sample(np.array([small, large], float), 40_000, seed=0)
    low = x[x[:, 2] < 2.5]
    assert abs(len(low) / len(x) - 1 / 4) < 0.01
    assert np.all(low[:, 2] == 0) and np.all(low[:, :2] >= 0)
    assert np.allclose(x[x[:, 2] > 2.5, 2], 5)
    assert np.all(low[:, :2].sum(1) <= 1 + 1e-12)
    assert np.abs(low[:, :2].mean(0) - 1 / 3).max() < 0.01  # the centre
    # The corner cut off at half the height has a quarter of the area.
    assert abs((low[:, 0] > 1 / 2).mean() - 1 / 4) < 0.015
    assert np.array_equal(x, sample(np.array([small, large], float), 40_000, seed=0))
    with pytest.raises(ValueError, match="without area"):
        sample(np.zeros((2, 3, 3)), 5, seed=0)


def test_unit_sphere():
    x = unit_sphere(np.array([[1, 1, 1], [1, 1, 3], [1, 1, 8.0]]))
    assert np.allclose(x, [[0, 0, -0.75], [0, 0, -0.25], [0, 0, 1]])


# --- the corpus --------------------------------------------------------------------


def test_counts(base):
    assert (len(base), len(base.item.unique())) == (820, 612)
    assert len(base.label_names["category"]) == 12
    assert base.labels["library"].bincount().tolist() == [175, 135, 90, 25, 395]
    assert base["points"].shape == (820, POINTS, 3) and base["points"].dtype == torch.float32
    assert "820 rows" in base.describe() and "CC BY 3.0" in base.describe()


def test_points_are_normalised_and_are_the_models(base):
    x = base["points"]
    assert x.mean(1).abs().max() < 1e-5
    assert torch.allclose(x.norm(dim=2).amax(1), torch.ones(820), atol=1e-5)
    assert (x.std(1) > 1e-3).sum(1).min() >= 2  # no model is a line
    for row in (0, 500):
        piece = module._pieces()[row]
        with zipfile.ZipFile(needs_asset("furniture") / piece.library) as library:
            corners = triangles(library.read(piece.model).decode("latin1"))
        again = unit_sphere(sample(corners, POINTS, seed=row))
        assert np.allclose(again, x[row].numpy(), atol=1e-6)
        sides, of_model = (np.ptp(p, axis=0) for p in (again, corners.reshape(-1, 3)))
        assert np.abs(sides / sides.max() - of_model / of_model.max()).max() < 0.05


def test_the_points_are_read_from_the_cache(base, monkeypatch):
    monkeypatch.setattr(module, "triangles", None)  # a second parse would fail
    assert torch.equal(furniture()["points"], base["points"])


def test_names_in_21_languages(base):
    pairs = furniture(LANGUAGES)
    row = base.ids.index("blendswap-cc-0/armchair")
    assert pairs["text"] == base["text"] and pairs["text"][row] == "Armchair"
    assert pairs["text_de"][row] == "Stuhl mit Armlehnen"
    assert pairs["text_ja"][row] == "肘掛け椅子"  # written with escapes in the file
    assert "Bill 10€" in pairs["text"]
    missing = {code: int((~pairs.present[f"text_{code}"]).sum()) for code in LANGUAGES[1:]}
    assert {code for code, n in missing.items() if n} == set(module.LEFT_ENGLISH)
    assert missing["zh_CN"] == 501
    for code in LANGUAGES[1:]:
        column = f"text_{code}"
        assert [bool(name) for name in pairs[column]] == pairs.present[column].tolist()
        assert not any("\\u" in name for name in pairs[column])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_name_stands_on_both_sides_of_a_split(seed):
    needs_asset("furniture")
    pairs = furniture(["de", "fr"])
    english = dict(zip(furniture().ids, furniture()["text"], strict=True))
    sides = [{re.sub(r"\d", "", name).strip().lower() for name in
              [*(f"de {t}" for t in part["text"]), *(f"fr {t}" for t in part["text_fr"]),
               *(f"en {english[i]}" for i in part.ids)]} for part in pairs.split(seed)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not sides[a] & sides[b]


def test_no_near_duplicate_is_missed(base):
    """Icons of different groups differ, mirrored or not."""
    small = [picture.reduce(7) for picture in base["image"]]
    x = torch.tensor(np.stack(small)).float() / 255
    assert x.flatten(1).std(1).min() > 0.02  # none is blank
    flat, mirrored = x.flatten(1), x.flip(2).flatten(1)
    far = torch.minimum(torch.cdist(flat, flat), torch.cdist(flat, mirrored))
    for i, j in (far / flat.shape[1] ** 0.5 < 0.04).nonzero().tolist():
        assert base.group[i] == base.group[j], (base.ids[i], base.ids[j])
    assert len(base.group.unique()) > 500


def test_pictures_provenance_and_limit(base):
    picture = base["image"][0]
    assert (picture.mode, picture.size) == ("RGB", (224, 224))
    p = base.provenance
    assert p.kind == "real" and p == furniture().provenance
    some, more = furniture("de", limit=20, size=64), furniture("de", limit=21, size=64)
    assert len(some.group.unique()) == 20 and set(some.ids) < set(more.ids)
    assert some["image"][0].size == (64, 64) and p.hash != some.provenance.hash
    at = base.ids.index(some.ids[3])
    assert torch.equal(some["points"][3], base["points"][at])


def test_wrong_arguments_are_named():
    needs_asset("furniture")
    for call in (lambda: furniture("xx"), lambda: furniture([]), lambda: furniture(size=0),
                 lambda: furniture(limit=0)):
        with pytest.raises(ValueError, match="language|size must|limit must"):
            call()
