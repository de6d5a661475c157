"""Dynamic reflections against slow loops, its exact properties, its claims on planted data."""

import math
from functools import partial

import pytest
import torch

from alignkit.claims import paper
from alignkit.claims.dynamic_reflections import (
    agreement, chance, copies, law_gain, scored_rows_choose,
)  # fmt: skip
from alignkit.claims.runs import TUNING_SEEDS, Runs
from alignkit.data import Lazy, Pairs
from alignkit.evaluation import evaluate_retrieval, mutual_knn
from alignkit.methods.dynamic_reflections import (
    DynamicReflections, DynamicReflectionsSettings, clamp_levels, frame_places, joined,
    search_layers, sub_clips,
)  # fmt: skip
from alignkit.training import Budget, fit


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def rotation(d: int, seed: int = 9) -> torch.Tensor:
    return torch.linalg.qr(rows(d, d, seed)).Q


IMAGE, TEXT = ("image_layer0", "image_layer1"), ("text_layer0", "text_layer1")
LAYERS = {"image": IMAGE, "text": TEXT}


def concepts(n: int = 60, views: int = 4, captions: int = 3, noise: float = 0.7) -> Pairs:
    """Layer 1 of both sees a hidden thing, the more amounts the better; layer 0 nothing,
    aloud."""
    hidden = rows(n, 5)
    seen = torch.stack([hidden + noise * rows(n, 5, 10 + v) for v in range(views)], 1)
    told = torch.stack([hidden + noise / (c + 1) * rows(n, 5, 30 + c)
                        for c in range(captions)], 1)
    return Pairs.from_features({
        "image_layer0": 4 * rows(n, 4 * views, 1).view(n, views, 4),
        "image_layer1": seen @ rows(5, 6, 2),
        "text_layer0": 4 * rows(n, 7 * captions, 3).view(n, captions, 7),
        "text_layer1": told @ rows(5, 7, 4)})


def looked(pairs: Pairs, **settings) -> DynamicReflections:
    method = DynamicReflections(
        DynamicReflectionsSettings(**{"layers": LAYERS, "k": 5, **settings}), pairs).double()
    fit(method, pairs, Budget(steps=0))
    return method


# The equations, one number at a time -----------------------------------------------------
def loop_level(layers, quantile: float) -> float:
    """Mean over rows of the quantile (between the two nearest values) of |values| of all
    layers of a row."""
    total, n = 0.0, len(layers[0])
    for i in range(n):
        values = sorted(abs(float(v)) for x in layers for v in x[i])
        place = quantile * (len(values) - 1)
        low = math.floor(place)
        high = min(low + 1, len(values) - 1)
        total += values[low] + (place - low) * (values[high] - values[low])
    return total / n


def loop_score(x, y, k: int) -> float:
    """A: the mean share of common neighbours; no ties."""
    def near(z, i):
        def cosine(j):
            dot = sum(float(a) * float(b) for a, b in zip(z[i], z[j]))
            return dot / math.sqrt(sum(float(a) ** 2 for a in z[j]))
        others = [j for j in range(len(z)) if j != i]
        return set(sorted(others, key=cosine, reverse=True)[:k])
    n = len(x)
    return sum(len(near(x, i) & near(y, i)) for i in range(n)) / (n * k)


def loop_search(pairs: Pairs, views, said: int, k: int, quantile: float):
    """(place of the best layer of each side, its score), with the last place for all side
    by side: views averaged, clamped, every pair scored."""
    sides = []
    for columns, places in ((IMAGE, views), (TEXT, (said,))):
        layers = []
        for column in columns:
            x = pairs[column]
            layers.append([[sum(float(x[i, p, d]) for p in places) / len(places)
                            for d in range(x.shape[2])] for i in range(len(x))])
        one_width = len({len(x[0]) for x in layers}) == 1
        levels = [loop_level(layers if one_width else [x], quantile) for x in layers]
        layers = [[[min(max(v, -q), q) for v in row] for row in x]
                  for x, q in zip(layers, levels)]
        sides.append([*layers, [a + b for a, b in zip(*layers)]])
    found = {(i, j): loop_score(x, y, k) for i, x in enumerate(sides[0])
             for j, y in enumerate(sides[1])}
    best = max(found, key=found.get)
    return best, found[best]


@pytest.mark.parametrize("views, said, quantile", [((0,), 0, 0.95), ((0, 2, 3), 2, 0.6)])
def test_the_search_and_the_score_are_the_equations(views, said, quantile):
    pairs = concepts(24)
    method = looked(pairs, views=views, said=said, quantile=quantile)
    best, score = loop_search(pairs, views, said, 5, quantile)
    assert tuple(method.chosen.tolist()) == best
    assert abs(agreement(method, pairs) - score) < 1e-9
    assert best == (1, 1) and score > 5 / 23


def test_levels_are_of_each_layer_unless_all_have_one_width():
    wide, other, narrow = rows(9, 6), 3 * rows(9, 6, 1), rows(9, 4, 2)
    assert abs(clamp_levels([wide, other]) - loop_level([wide, other], 0.95)).max() < 1e-12
    levels = clamp_levels([wide, narrow], 0.5)
    for level, x in zip(levels, (wide, narrow)):
        assert abs(level - loop_level([x], 0.5)) < 1e-12


def test_a_clamp_of_one_is_left_out():
    pairs = concepts(24)
    method = looked(pairs, quantile=1.0)
    assert torch.equal(method.layers(pairs.batch(), "text")[0], pairs["text_layer0"][:, 0])
    assert not torch.equal(looked(pairs).layers(pairs.batch(), "text")[0],
                           pairs["text_layer0"][:, 0])


# The paper's exact properties --------------------------------------------------------------
def test_a_space_agrees_with_itself_and_with_all_neighbours_everything_agrees():
    x, y = rows(30, 5), rows(30, 4, 1)
    assert abs(mutual_knn(x, x, 7) - 1) < 1e-9
    assert abs(mutual_knn(x, y, 29) - 1) < 1e-9


def test_rotations_lengths_and_a_common_order_change_nothing():
    x, order = rows(40, 5), rows(40, 1, 5)[:, 0].argsort()
    y = x @ rows(5, 4, 1) + 0.5 * rows(40, 4, 2)
    score, lengths = mutual_knn(x, y, 6), 0.1 + rows(40, 2, 3).abs()
    assert score > 2 * 6 / 39
    for a, b in ((x @ rotation(5), y), (x, 7 * y @ rotation(4)), (x[order], y[order]),
                 (lengths[:, :1] * x, lengths[:, 1:] * y)):
        assert abs(mutual_knn(a, b, 6) - score) < 1e-9
    drawn = [mutual_knn(x, y[rows(40, 1, 50 + i)[:, 0].argsort()], 6) for i in range(60)]
    assert abs(sum(drawn) / 60 - 6 / 39) < 0.01  # chance


def test_copies_of_a_view_and_the_order_of_views_change_nothing():
    pairs = concepts()
    once = looked(pairs, views=(1,)).features(pairs.batch())["image"]
    again = looked(pairs, views=(1, 1, 1, 1)).features(pairs.batch())["image"]
    assert (once - again).abs().max() < 1e-12
    there = looked(pairs, views=(0, 1, 2, 3)).features(pairs.batch())["image"]
    back = looked(pairs, views=(3, 2, 1, 0)).features(pairs.batch())["image"]
    assert (there - back).abs().max() < 1e-12
    assert (there - once).abs().max() > 0.01


# Frames and captions -------------------------------------------------------------------------
def test_frames_are_even_and_one_is_the_first():
    assert frame_places(9, 1).tolist() == [0]
    assert frame_places(9, 3).tolist() == [0, 4, 8]
    assert frame_places(3, 6).tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="at least 1"):
        frame_places(0, 1)


def test_few_frames_are_stretched_and_many_are_cut_into_clips():
    assert sub_clips(100, 1, 4).tolist() == [[0, 0, 0, 0]]
    assert sub_clips(100, 2, 4).tolist() == [[0, 0, 99, 99]]
    assert sub_clips(8, 8, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert sub_clips(100, 9, 4).shape == (3, 4)  # rounded up to whole clips
    assert sub_clips(100, 4, 4).tolist() == [frame_places(100, 4).tolist()]
    with pytest.raises(ValueError, match="native"):
        sub_clips(8, 2, 0)


def test_captions_are_joined():
    assert joined(["a dog", "it runs", "fast"], 2, ", ") == "a dog, it runs"
    for count in (0, 4):
        with pytest.raises(ValueError, match="between 1 and 3"):
            joined(["a", "b", "c"], count)


def test_settings_refuse():
    for wrong in ({"views": ()}, {"k": 0}, {"quantile": 0.0}, {"quantile": 1.1}):
        with pytest.raises(ValueError, match="views needs"):
            DynamicReflectionsSettings(**wrong)


# The method --------------------------------------------------------------------------------
def test_the_layers_that_agree_are_found_and_more_input_helps():
    pairs = concepts(150)
    poor, rich = looked(pairs), looked(pairs, views=(0, 1, 2, 3), said=2)
    assert poor.chosen.tolist() == rich.chosen.tolist() == [1, 1]
    assert agreement(rich, pairs) > agreement(poor, pairs) + 0.05 > 0.05 + 5 / 149


def test_the_last_candidate_is_all_layers_side_by_side():
    x, y = rows(40, 3), rows(40, 3, 1)
    seen = torch.cat([x, y], 1)
    best = search_layers([x, y, seen], [seen @ rotation(6)], 5)
    assert (best.image, best.text) == (2, 0) and abs(best.score - 1) < 1e-9
    assert best.grid.shape == (3, 1)


def test_rows_are_told_by_their_neighbours_among_the_training_rows():
    parts = concepts(300, noise=0.3).split(0, (0.5, 0.1, 0.4))
    method = looked(parts.train)
    batch = parts.test.batch()
    outputs = {name: z.double() for name, z in method.encode(batch).items()}
    assert outputs["image"].shape == (len(parts.test), len(parts.train))
    for z in outputs.values():
        assert ((z > 0).sum(1) == 5).all() and (z.norm(dim=1) - 1).abs().max() < 1e-6
    x = method.features(batch)["image"][0]
    anchors = torch.nn.functional.normalize(method.features(parts.train.batch())["image"])
    near = set((anchors @ x).argsort(descending=True)[:5].tolist())
    assert set(outputs["image"][0].nonzero()[:, 0].tolist()) == near
    share = method.score(outputs["image"][:1], outputs["text"])[0]
    told = outputs["text"][7].nonzero()[:, 0].tolist()
    assert abs(share[7] - len(near & set(told)) / 5) < 1e-6
    found = evaluate_retrieval(method, parts.test)["mean"]["hit@10"]
    assert found > 2 * 10 / len(parts.test)


# The claims ----------------------------------------------------------------------------------
def test_without_shared_content_the_score_is_chance():
    pairs = Pairs.from_features({c: rows(400, 6, i) for i, c in enumerate((*IMAGE, *TEXT))})
    method = looked(pairs.select(range(200)), k=10)
    test = pairs.select(range(200, 400))
    assert abs(agreement(method, test) - chance(test)) < 0.02


def test_the_law_is_told_from_the_line():
    at = {f"{f}x{c}": (f, c) for f in (1, 2, 3, 4) for c in (1, 2, 3, 4, 5, 6)}
    known = [n for n, (f, c) in at.items() if f <= 3 and c <= 3]
    law = {n: 0.4 - 0.1 * f**-2 - 0.2 * c**-1.5 for n, (f, c) in at.items()}
    line = {n: 0.1 + 0.05 * math.log(f * c) for n, (f, c) in at.items()}
    gain = partial(law_gain, at=at, known=known)
    assert gain(law) > 0.02 > 0 > gain(line)
    assert abs(gain({n: 0.2 for n in at})) < 1e-6


def planted(views: int = 4) -> Pairs:
    """What `data` gives, with random features."""
    pairs = concepts(120, views=views, captions=6)
    pairs = pairs.with_features(text_repeated_layer0=pairs["text_layer0"][:, :1],
                                text_repeated_layer1=pairs["text_layer1"][:, :1])
    columns = {c: pairs[c].float() for c in pairs.columns}
    return Pairs.make(columns, tables={
        "frames": list(range(1, views + 1)), "captions": [1, 2, 3, 4, 5, 6],
        "views in any order": True})


def test_the_claims_see_what_is_planted_and_their_controls_do_not():
    module = paper("dynamic-reflections")
    claims = {c.name: c for c in module.claims(planted(), "tiny")}
    assert list(claims) == ["richer-input", "captions", "new-words", "views", "law", "search"]
    runs, seed = Runs(list(claims.values())), TUNING_SEEDS[0]
    for name in ("richer-input", "captions", "new-words", "views"):
        claim = claims[name]
        assert claim.difference(runs.figures(claim, seed)) > 0.03, name
    for name in ("views", "search"):  # exactly nothing
        claim = claims[name]
        assert claim.difference(runs.figures(claim, seed, null=True)) == 0, name


def test_claims_that_need_several_views_are_left_out_without_them():
    names = [c.name for c in paper("dynamic-reflections").claims(planted(views=1), "tiny")]
    assert names == ["richer-input", "captions", "new-words", "search"]


def test_the_views_come_in_an_order_that_the_seed_draws():
    claim = paper("dynamic-reflections").claims(planted(), "tiny")[0]
    arm = claim.arms[claim.baseline]
    orders = {tuple(arm.data(seed).test["image_layer1"][0, :, 0].tolist()[:1])
              for seed in (1000, 2000)}
    assert len(orders) == 2
    one, again = (arm.data(s).test["image_layer1"] for s in (1000, 1000))
    assert torch.equal(one, again)


def test_controls_change_what_they_say():
    parts = planted().split(0)
    same = copies(parts, 0).test["image_layer1"]
    assert torch.equal(same[:, 3], parts.test["image_layer1"][:, 0])
    assert scored_rows_choose(parts, 0).train.ids == parts.test.ids


# Pairs of one's own ------------------------------------------------------------------------
def videos(captions: int = 2) -> Pairs:
    def read(i: int) -> torch.Tensor:
        return torch.full((5, 8, 8, 3), i, dtype=torch.uint8)
    n = 3 * captions
    return Pairs.make({"video": Lazy([i // captions for i in range(n)], read, "video", "1"),
                       "text": [f"caption {i}" for i in range(n)]},
                      item=[i // captions for i in range(n)])


def test_videos_of_ones_own_become_frames():
    pairs, views, texts = paper("dynamic-reflections")._own(videos(), 3)
    assert views == ("frame_0", "frame_1", "frame_2") and len(pairs) == 3
    assert texts[1] == ["caption 2", "caption 3"]
    assert pairs["frame_2"][1].getpixel((0, 0)) == (1, 1, 1)


def test_pairs_of_ones_own_are_refused_with_a_reason():
    own, data = paper("dynamic-reflections")._own, paper("dynamic-reflections").data
    with pytest.raises(ValueError, match="two at least are needed"):
        own(videos(captions=1), 3)
    with pytest.raises(ValueError, match="neither videos"):
        own(videos().only("text"), 3)
    with pytest.raises(ValueError, match="needs pairs of your own"):
        data("gpu")
