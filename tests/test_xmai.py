"""XMAI against a loop written from its equations, its exact properties, what is measured."""

import math
import random
from dataclasses import replace

import pytest
import torch

from alignkit.claims import xmai as claims
from alignkit.claims.claim import Trained
from alignkit.data import Pairs, Splits
from alignkit.methods.xmai import (
    HIDDEN, STOP, Spot, Tools, Xmai, XmaiSettings, attack, candidates, inserted, proposed, scaled,
    scores, spots,
)  # fmt: skip

VOCABULARY = ["[UNK]", "the", "red", "blue", "dog", "disc", "##ly", "large", "small", "wooden",
              "green", ",", "cat", "old"]
WORDS = {word for word in VOCABULARY if word.isalpha() and word != "the"}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def row_of(text: str, d: int = 6) -> torch.Tensor:
    """A vector of a text's own, the same wherever it stands."""
    g = random.Random(text)
    return torch.tensor([g.gauss(0, 1) for _ in range(d)], dtype=torch.float64)


def cosines(a, b) -> torch.Tensor:
    return torch.stack([torch.stack([torch.cosine_similarity(row_of(x), row_of(y), 0)
                                     for y in b]) for x in a])


TOOLS = Tools(VOCABULARY,
              lambda sentences: torch.stack([row_of(" ".join(s), len(VOCABULARY)).softmax(0)
                                             for s in sentences]) if sentences else torch.zeros(0),
              cosines, lambda texts: torch.stack([row_of(text) for text in texts]))
TEXTS = ["a dog on a disc", "a cat and a dog on the disc", "an old bus", "dog asleep", "a disc disc"]
SEEN = [[("large", "dog"), ("red", "disc")],
        [("blue", "disc"), ("small", "cat"), ("", "dog"), ("green", "disc")],
        [("red", "disc")], [("large", "dog"), ("small", "dog")], [("red", "disc")]]
IMAGES = drawn(len(TEXTS), 6)


# The shared tests' small data ---------------------------------------------------------
def toy_features(pairs: Pairs) -> Pairs:
    """Rows of captions as each arm has them, around the caption's own."""
    text = pairs["text_features"]
    made = {f"text_{arm}": text + 0.1 * drawn(*text.shape, seed=i).float()
            for i, arm in enumerate(claims.ARMS)}
    return pairs.with_features(places=torch.ones(len(pairs), 1), **made)


def toy_pairs(pairs: Pairs) -> Pairs:
    """What a user brings: what a detector saw of each picture."""
    named = ("circle", "square", "triangle", "cross")
    return pairs.with_columns(detected=["; ".join(f"{a} {b}" for a, b in zip(
        text.split(), text.split()[1:]) if b in named) for text in pairs["text"]])


# The loop -----------------------------------------------------------------------------
def loop_scaled(values):
    low, high = min(values), max(values)
    low = 0.0 if low == high else low
    return [(v - low) / max(high - low, 1e-12) for v in values]


def loop_attack(text, seen, image, settings) -> str:
    """One caption of a direct match, word by word."""
    words, found = text.split(), {}
    for attribute, thing in seen:
        for i in range(1, len(words)):
            if words[i] == thing:
                found.setdefault(i, []).append(attribute)
                break
    now, hidden, shift = list(words), list(words), 0
    for place in sorted(found):
        hidden.insert(place + shift, HIDDEN)
        chance = row_of(" ".join(hidden), len(VOCABULARY)).softmax(0).tolist()
        near = {w.lower() for w in words[max(0, place - 3):place + 1]}
        best = sorted(range(len(VOCABULARY)), key=lambda i: -chance[i])[:settings.top]
        kept = [i for i in best if VOCABULARY[i].isalpha() and VOCABULARY[i] not in near
                and VOCABULARY[i] not in STOP][:settings.k]
        attributes = [a for a in found[place] if a]
        p = [chance[i] for i in kept]
        s = [max([float(torch.cosine_similarity(row_of(VOCABULARY[i]), row_of(a), 0))
                  for a in attributes], default=0.0) for i in kept]
        d = []
        for i in kept:
            tried = [*now[:place + shift], VOCABULARY[i], *now[place + shift:]]
            z = row_of(settings.prefix + " ".join(tried))
            d.append(1 - float(z @ image / z.norm() / image.norm()))
        total = [sum(w * x for w, x in zip(settings.weights, parts)) / sum(settings.weights)
                 for parts in zip(*map(loop_scaled, (p, s, d)))]
        if kept:
            now.insert(place + shift, VOCABULARY[kept[total.index(max(total))]])
            shift += 1
        else:
            raise AssertionError("a spot without candidates")
    return " ".join(now)


def rewritten(settings: XmaiSettings, tools: Tools = TOOLS, images=IMAGES) -> list[str]:
    places = proposed(TEXTS, SEEN, tools, settings)
    return [*map(inserted, TEXTS, places, attack(TEXTS, places, images, tools, settings))]


@pytest.mark.parametrize("settings", [
    XmaiSettings(), XmaiSettings(k=4, weights=(1, 0, 0)), XmaiSettings(k=5, weights=(0, 1, 0.5)),
    XmaiSettings(weights=(2, 1, 9), prefix="This is "), XmaiSettings(k=2, top=14)])
def test_the_captions_are_the_loops(settings):
    direct = replace(settings, threshold=2.0)  # nothing is near enough
    found = rewritten(direct)
    assert found == [loop_attack(*row, direct) for row in zip(TEXTS, SEEN, IMAGES)]
    assert found[0] != TEXTS[0] and found[2:4] == TEXTS[2:4]


def test_the_scores_are_the_equation():
    spot = Spot(1, ("red", "old"), ("blue", "large", "green"), (0.4, 0.3, 0.1))
    d = torch.tensor([0.9, 0.2, 0.6], dtype=torch.float64)
    agree = [max(float(cosines([w], [a])) for a in spot.attributes) for w in spot.words]
    parts = [loop_scaled(x) for x in (spot.chances, agree, d.tolist())]
    want = [(1 * p + 5 * s + 5 * q) / 11 for p, s, q in zip(*parts)]
    assert scores(spot, d, cosines, (1, 5, 5)).tolist() == pytest.approx(want, abs=1e-9)
    assert scaled(d).tolist() == pytest.approx([1, 0, 4 / 7], abs=1e-12)


# The exact properties -------------------------------------------------------------------
def test_without_a_match_the_caption_stays():
    assert rewritten(XmaiSettings(threshold=2.0))[2] == "an old bus"


@pytest.mark.parametrize("k", [1, 3, 6])
def test_taking_the_words_out_gives_the_caption_back(k):
    settings = XmaiSettings(k=k, threshold=2.0)
    places = proposed(TEXTS, SEEN, TOOLS, settings)
    chosen = attack(TEXTS, places, IMAGES, TOOLS, settings)
    for text, row, words in zip(TEXTS, places, chosen):
        assert len(words) == len(row)
        made = inserted(text, row, words).split()
        for shift, spot in enumerate(row):
            assert made.pop(spot.place) == words[shift]
        assert " ".join(made) == text


def test_the_weights_decide_as_they_say():
    likeliest = rewritten(XmaiSettings(weights=(1, 0, 0)))
    assert likeliest == rewritten(XmaiSettings(k=1)) == rewritten(XmaiSettings(
        k=1, weights=(0, 0, 1)))
    assert rewritten(XmaiSettings()) == rewritten(XmaiSettings(weights=(0.2, 1, 1)))
    assert likeliest != rewritten(XmaiSettings(k=6, weights=(0, 0, 1)))


def test_dissimilarity_alone_takes_the_farthest_caption():
    settings = XmaiSettings(k=5, weights=(0, 0, 1))
    text, seen = ["a dog on a chair"], [[("large", "dog")]]
    places = proposed(text, seen, TOOLS, settings)
    tried = [inserted(text[0], places[0], [word]) for word in places[0][0].words]
    found = inserted(text[0], places[0], attack(text, places, IMAGES[:1], TOOLS, settings)[0])
    cosine = [float(torch.cosine_similarity(row_of(t), IMAGES[0], 0)) for t in tried]
    assert len(tried) == 5 and found == tried[cosine.index(min(cosine))]


def test_a_constant_in_a_part_counts_for_nothing():
    spot = Spot(1, (), ("blue", "large", "green"), (0.4, 0.3, 0.1))
    d = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    torch.testing.assert_close(scores(spot, d, cosines, (1, 5, 5)),
                               scores(spot, d + 7, cosines, (1, 5, 5)))
    flat = scores(spot, torch.full_like(d, 0.4), cosines, (1, 0, 5))
    assert int(flat.argmax()) == 0 and scaled(torch.zeros(3)).tolist() == [0, 0, 0]
    assert scaled(torch.full((3,), 0.2)).tolist() == [1, 1, 1]


# Its parts -----------------------------------------------------------------------------
def test_an_object_is_found_where_it_stands_as_whole_words():
    def at(text, *things):
        return [(spot.place, spot.attributes) for spot in spots(text, things)]

    assert at("a goalie at the goal", ("small", "goal")) == [(4, ("small",))]
    assert at("dog beside a dog", ("old", "dog")) == [(3, ("old",))]  # not at the first word
    assert at("a fire hydrant", ("red", "fire hydrant"), ("old", "fire hydrant")) == [
        (1, ("red", "old"))]
    assert at("a dog", ("", "dog")) == [(1, ())] and not at("a dog", ("old", "cat"))


def test_near_objects_count_where_none_is_named():
    def alike(a, b):
        return torch.tensor([[0.9 if {x, y} == {"puppy", "dog"} else 0.1 for y in b] for x in a])

    seen = [("large", "dog"), ("red", "disc")]
    assert spots("the puppy on a chair", seen, alike) == [Spot(1, ("large",))]
    assert spots("the puppy on a disc", seen, alike) == [Spot(4, ("red",))]  # one is named
    assert not spots("the puppy on a chair", seen, alike, 0.95)


def test_candidates_leave_out_what_may_not_stand_there():
    chances = torch.tensor([.2, .19, .18, .1, .09, .08, .05, .04, .03, .02, .01, .01, 0, 0])
    kept, p = candidates(chances, VOCABULARY, "a red dog on".split(), 2, 3, 14)
    assert kept == ("blue", "disc", "large") and p == pytest.approx((0.1, 0.08, 0.04))
    assert candidates(chances, VOCABULARY, "a red dog on".split(), 2, 3, 4)[0] == ("blue",)


def test_a_place_without_candidates_gets_no_word():
    tools = TOOLS._replace(vocabulary=["the"], propose=lambda s: torch.ones(len(s), 1))
    assert rewritten(XmaiSettings(top=3), tools) == TEXTS


@pytest.mark.parametrize("wrong", [{"k": 0}, {"top": 2}, {"weights": (0, 0, 0)},
                                   {"weights": (1, -1, 1)}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="k must be at least 1"):
        XmaiSettings(**wrong)


# What the claims measure ----------------------------------------------------------------
def judged(text, image, name: str = "xmai") -> Trained:
    rows = Pairs.from_features({"image_features": image, "text_original": image,
                                f"text_{name}": text}).with_features(
        places=torch.tensor([[2.0], [0.0], [1.0], [1.0]]))
    return Trained(Xmai(XmaiSettings(text=f"text_{name}"), rows), Splits(rows, rows, rows), None)


def test_mrr_is_the_mean_of_one_over_the_rank():
    image = torch.eye(4)
    text = torch.tensor([[1., 0, 0, 0], [.9, .5, 0, 0], [.9, .8, .5, 0], [1., 1, 1, 1]])
    arm = judged(text, image)
    assert claims.mrr(arm.method, arm.splits.test) == pytest.approx(
        (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)  # of equal scores the own one is last
    assert claims.of_originals(arm) == 1 and claims.with_place(arm) == 0.75


def test_the_null_leaves_no_caption_its_picture():
    rows = judged(torch.eye(4), torch.eye(4)).splits
    moved = claims.other_pictures(rows, 3).test
    assert (moved["image_features"] != rows.test["image_features"]).any(1).all()


def test_the_captions_name_no_attribute_and_the_detector_is_right():
    pairs = claims.data("tiny")
    for text, seen, names in zip(pairs["text"], pairs["detected"], zip(
            *(pairs.labels[x].tolist() for x in ("noun", "colour", "shape")))):
        noun, colour, shape = (pairs.label_names[x][i] for x, i in zip(
            ("noun", "colour", "shape"), names))
        assert text.split()[1:] == [noun, "on", "a", shape]
        found = claims.detections(seen)
        assert found[:2] == [("large", noun), (colour, shape)]
        assert all(size == "small" and other != noun for size, other in found[2:])


def test_detections_are_read():
    assert claims.detections("blue disc; dog;old fire hydrant; ") == [
        ("blue", "disc"), ("", "dog"), ("old", "fire hydrant")]
    assert claims.detections("") == []


def test_random_attributes_are_those_of_such_an_object():
    places = [[Spot(1, ()), Spot(4, ())], [Spot(1, ())]] * 40
    texts = ["a dog on a disc", "a puppy"] * 40
    seen = [[("large", "dog"), ("red", "disc")], [("small", "dog"), ("blue", "disc")]] * 40
    words = claims.random_attributes(texts, places, seen, 0)
    assert {row[0] for row in words[::2]} == {"large", "small"}
    assert {row[1] for row in words[::2]} == {"red", "blue"}
    assert {row[0] for row in words[1::2]} == {"large", "small", "red", "blue"}
    assert words == claims.random_attributes(texts, places, seen, 0)


def test_each_arm_has_its_captions():
    made = claims.with_attacks(claims.data("tiny", corpus_seed=1001), claims.SCALES["tiny"], 1001)
    said = {arm: made[f"said_{arm}"] for arm in claims.ARMS}
    assert said["original"] == made["text"] and (made["places"] == 2).all()
    for arm, more in {"xmai": 2, "agreeing": 2, "likely": 2, "random": 2, "large": 1,
                      "others": 2}.items():
        assert all(len(a.split()) == len(b.split()) + more
                   for a, b in zip(said[arm], said["original"])), arm
    assert all(text.split()[1] == "large" for text in said["large"])
    towers = claims.towers_of("", claims.number_of(1001))
    again = towers.text(towers.tokens(said["xmai"]))
    assert (made["text_xmai"] - again).abs().max() < 1e-5
    assert math.isclose(float(made["image_features"].norm(dim=1).mean()), 1, abs_tol=1e-5)
