"""Modality inversion against slow loops in float64, its exact properties, and what its
claims measure."""

import math
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from alignkit.claims import Trained
from alignkit.claims import cross_the_gap as claims
from alignkit.claims.common import model_of
from alignkit.claims.runner import SEEDS
from alignkit.claims.runs import PILOT_SEEDS, TUNING_SEEDS
from alignkit.course import cross_the_gap as exercises
from alignkit.evaluation import mean_average_precision
from alignkit.methods.cross_the_gap import (
    CrossTheGap,
    CrossTheGapSettings,
    inverted,
    picture_of,
    text_of,
)  # fmt: skip
from alignkit.parts import unit
from alignkit.parts.two_towers import TwoTowersSettings, load_two_towers


@cache
def tiny():
    return claims.data("tiny")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed),
                       dtype=torch.float64)


@pytest.fixture(scope="module")
def towers():
    return load_two_towers().double()


@pytest.fixture(scope="module")
def goals(towers) -> dict[str, Tensor]:
    texts = towers.text(towers.tokens([f"a photo of a {x}" for x in ("dog", "bee", "cow")]))
    return {"text": texts, "image": unit(texts + 0.02 * noise(*texts.shape))}


def made(towers, **rest) -> CrossTheGap:
    settings = CrossTheGapSettings(towers.settings, tuple(towers.pieces.vocabulary), **rest)
    method = CrossTheGap(settings, None).double()
    method.towers.load_state_dict(towers.state_dict())
    return method


# The equations, one step at a time ----------------------------------------------------
def by_hand_text(towers, e: Tensor) -> Tensor:
    """t(e) of one query [R, width]: the ids' rows, e before [SEP], places, the tower."""
    ids = towers.tokens(["a photo of"]).values[0].tolist()
    rows = [towers.word_table.weight[i] for i in ids[:-1]] + list(e)
    rows = torch.stack([*rows, towers.word_table.weight[ids[-1]]])
    x = (rows + towers.text_places[:len(rows)])[None]
    for layer in towers.text_encoder.layers:
        x = layer(x)
    z = towers.text_head(towers.text_encoder.norm(x)[0, -1])
    return z / z.norm()


def by_hand_picture(towers, e: Tensor) -> Tensor:
    """p(e) of one query [R, width]: place k takes e's row floor(k · R / places)."""
    count = towers.settings.patches
    rows = [towers.class_token] + [e[k * len(e) // count] for k in range(count)]
    x = (torch.stack(rows) + towers.image_places)[None]
    for layer in towers.image_encoder.layers:
        x = layer(x)
    z = towers.image_head(towers.image_encoder.norm(x)[0, 0])
    return z / z.norm()


def by_hand_inversion(tower, goal: Tensor, start: Tensor, steps: int) -> Tensor:
    """AdamW written out, one query [R, width]: rate 2e-2, decay 0.01."""
    e, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for k in range(1, steps + 1):
        leaf = e.detach().requires_grad_()
        (g,) = torch.autograd.grad(1 - tower(leaf) @ goal, leaf)
        e = e * (1 - 2e-2 * 0.01)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        e = e - 2e-2 * (first / (1 - 0.9**k)) / ((second / (1 - 0.999**k)).sqrt() + 1e-8)
    return e.detach()


WAYS = [(text_of, by_hand_text, 1), (text_of, by_hand_text, 3),
        (picture_of, by_hand_picture, 1), (picture_of, by_hand_picture, 3)]


def bound(function, towers):
    if function is text_of:
        return lambda e: text_of(towers, "a photo of", e)
    return lambda e: function(towers, e)


@pytest.mark.parametrize("package, hand, count", WAYS)
def test_value_and_gradient_agree_with_the_loop(towers, package, hand, count):
    e = 0.1 * noise(3, count, towers.settings.width)
    goal = unit(noise(3, towers.settings.shared, seed=1))
    found = []
    for z in (bound(package, towers), lambda e: torch.stack([hand(towers, x) for x in e])):
        leaf = e.clone().requires_grad_()
        loss = (1 - (z(leaf) * goal).sum(1)).sum()
        found.append((loss, *torch.autograd.grad(loss, leaf)))
    for mine, theirs in zip(*found):
        assert (mine - theirs).norm() <= 1e-9 * theirs.norm()
    assert theirs.abs().max() > 1e-6


@pytest.mark.parametrize("package, hand, count", WAYS)
def test_the_inversion_agrees_with_adamw_written_out(towers, goals, package, hand, count):
    start = 0.02 * noise(3, count, towers.settings.width)
    e = inverted(bound(package, towers), goals["image"], start, 8)
    for i in range(3):
        alone = by_hand_inversion(lambda x: hand(towers, x), goals["image"][i], start[i], 8)
        assert (e[i] - alone).norm() <= 1e-6 * alone.norm()
    assert (e - start).norm() > 0.1 * start.norm()


# Exact properties -----------------------------------------------------------------------
def test_no_weight_moves_and_none_gets_a_gradient(towers, goals):
    method = made(towers, word_steps=5, patch_steps=5)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    z = method.from_image(goals["image"]), method.from_text(goals["text"])
    assert all(torch.equal(before[k], v) for k, v in method.state_dict().items())
    assert all(p.grad is None for p in method.parameters())
    assert not any(x.requires_grad for x in z)


@pytest.mark.parametrize("way", ["OTI", "OVI"])
@pytest.mark.slow
def test_the_loss_falls_to_a_plateau_above_zero(towers, goals, way):
    tower = bound(text_of if way == "OTI" else picture_of, towers)
    goal = goals["image" if way == "OTI" else "text"]
    start = 0.02 * noise(3, 1, towers.settings.width)
    loss = [float((1 - (tower(inverted(tower, goal, start, n)) * goal).sum(1)).mean())
            for n in (0, 20, 100, 150)]
    assert loss[0] > 5 * loss[1] > 5 * loss[3] > 0
    assert loss[2] - loss[3] < 0.05 * (loss[0] - loss[3])


@pytest.mark.slow
def test_a_query_does_not_see_who_is_inverted_beside_it(towers, goals):
    tower = bound(text_of, towers)
    start = 0.02 * noise(3, 1, towers.settings.width)
    together = inverted(tower, goals["image"], start, 60)
    for i in range(3):
        alone = inverted(tower, goals["image"][i:i + 1], start[i:i + 1], 60)
        assert torch.allclose(together[i], alone[0], rtol=0, atol=1e-6)
    chunks = inverted(tower, goals["image"], start, 60, chunk=2)
    assert torch.allclose(chunks, together, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_in_a_long_inversion_rounding_grows():
    """300 steps in float32 from starts that differ in the last digit, as another batch or
    machine may make it: most end alike, but not all (cosines of 0.98 were seen)."""
    towers = load_two_towers()
    nouns = [name for name in tiny().label_names["noun"]][:16]
    goal = towers.text(towers.tokens([f"a photo of a {name}" for name in nouns]))
    start = noise(len(nouns), 1, towers.settings.width).float() * 0.02
    for steps, least in ((60, 0.9999), (300, 0.9)):
        one, other = (picture_of(towers, inverted(bound(picture_of, towers), goal, x, steps))
                      for x in (start, start * (1 + 2e-7)))
        cosines = (one * other).sum(1)
        assert cosines.min() > least and cosines.median() > 0.9999


def test_without_steps_all_queries_are_nearly_one_and_find_nothing(towers):
    pairs = tiny()
    trained = arm("inverted", pairs, word_steps=0)
    query, _ = claims.pictures(trained)
    plain, _ = claims.pictures(arm("plain", pairs))
    assert (query @ query.T).mean() > 0.8 > 3 * (plain @ plain.T).mean()
    noun = pairs.label_names["noun"]
    chance = 1 / len(noun)
    assert claims.image_map(trained) < 4 * chance < claims.image_map(arm("plain", pairs)) / 5


def test_a_perfect_inversion_is_the_plain_query():
    pairs = tiny()
    plain, crossed = arm("plain", pairs), arm("inverted", pairs)
    query, _ = claims.pictures(plain)
    crossed.method.made["OTI"] = query.clone()
    assert claims.image_map(crossed) == claims.image_map(plain)
    assert claims.accuracy_of_images(crossed) == claims.accuracy_of_images(plain)


def arm(name: str, pairs, seed: int = 0, **rest) -> Trained:
    scale = claims.replace(claims.SCALES["tiny"], **rest)
    made = claims.arms_of(pairs, scale)[name]
    torch.manual_seed(seed)
    splits = made.data(seed)
    return Trained(made.build(splits), splits, None)


# The method -------------------------------------------------------------------------
def test_inversion_brings_the_right_noun(towers, goals):
    method = made(towers)
    back = method.from_image(goals["image"], torch.Generator().manual_seed(0))
    assert (back @ goals["text"].T).argmax(1).tolist() == [0, 1, 2]
    assert torch.allclose(back.norm(dim=1), torch.ones(3).double())


def test_the_start_is_noise_of_the_generator(towers, goals):
    method = made(towers, word_steps=0, start=3.0)
    one, same, other = (method.from_image(goals["image"], torch.Generator().manual_seed(k))
                        for k in (0, 0, 1))
    assert torch.equal(one, same) and not torch.allclose(one, other)


@pytest.mark.parametrize("wrong", [{"words": 0}, {"patches": 17}, {"word_steps": -1}])
def test_settings_that_cannot_be(wrong):
    with pytest.raises(ValueError):
        CrossTheGapSettings(TwoTowersSettings(), ("[PAD]",), **wrong)
    with pytest.raises(ValueError, match="as many starts"):
        inverted(lambda e: e[:, 0], noise(3, 4), noise(2, 1, 4), 1)


# What the claims measure ------------------------------------------------------------
def test_towers_and_draws_go_by_the_seed():
    pairs = tiny()
    plain, again, crossed = (arm(n, pairs, 6) for n in ("plain", "plain", "inverted"))
    assert torch.equal(plain.method.asks, crossed.method.asks)
    assert torch.equal(plain.method.asks, again.method.asks)
    assert not set(plain.method.asks.tolist()) & set(plain.method.asked.tolist())
    assert not torch.equal(plain.method.asks, arm("plain", pairs, 1).method.asks)
    for trained, intra in ((plain, 0.0), (arm("plain-intra", pairs, 6), 1.0)):
        theirs = load_two_towers(6, intra).state_dict()
        assert all(torch.equal(v, theirs[k])
                   for k, v in trained.method.towers.state_dict().items())
    # No two paired seeds share towers.
    assert [model_of(seed, range(claims.TOWERS)) for seed in SEEDS] == list(range(8))
    assert all(model_of(seed, range(claims.TOWERS)) in SEEDS
               for seed in (*TUNING_SEEDS, *PILOT_SEEDS))
    assert [model_of(seed, [2, 5], first=100) for seed in (100, 101)] == [2, 5]
    with pytest.raises(ValueError, match="seed 8 has no model of its own: there are 8"):
        arm("plain", tiny(), 8)


def test_retrieval_of_pictures_by_hand():
    trained = arm("plain", tiny())
    test, method = trained.splits.test, trained.method
    z = method.encode(method.collate(test, None))["image"]
    values = []
    for i in method.asks.tolist():
        score = {j: float(z[i] @ z[j]) for j in method.asked.tolist()}
        right = {j for j in score if test.labels["noun"][j] == test.labels["noun"][i]}
        hits = [k for k, j in enumerate(sorted(score, key=score.get, reverse=True), 1)
                if j in right]
        if right:
            values.append(sum(n / k for n, k in enumerate(hits, 1)) / len(hits))
    assert claims.image_map(trained) == pytest.approx(sum(values) / len(values), abs=1e-4)


def test_captions_ask_for_their_noun_on_other_plates():
    trained = arm("plain", tiny())
    asks, asked, relevant = claims.captions(trained)
    assert len(asks) == trained.method.texts == len(relevant)
    assert relevant.shape[1] == len(asked) and relevant.any()
    assert (asks @ asked.T).max() < 1 - 1e-4  # no caption stands on both sides


@pytest.mark.parametrize("way", ["centred", "span"])
def test_controls_change_both_sides_by_what_is_known_without_the_queries(way):
    trained = arm(way, tiny())
    query, gallery = claims.pictures(trained)
    plain = arm("plain", tiny())
    q, g = claims.pictures(plain)
    if way == "span":
        prompts = claims.plain_prompts(plain).double()
        span = torch.linalg.svd(prompts, full_matrices=False)[2].float()
        inside, other = (x @ span.T @ span for x in (q, g))
    else:
        seen = claims.own(plain, "train", "image")
        directions = torch.linalg.eigh((seen - seen.mean(0)).T.double()
                                       @ (seen - seen.mean(0)).double())[1][:, -64:].float()
        inside, other = ((x - seen.mean(0)) @ directions @ directions.T for x in (q, g))
    assert torch.allclose(query @ gallery.T, unit(inside) @ unit(other).T, atol=1e-3)
    assert not torch.allclose(query @ gallery.T, q @ g.T, atol=1e-3)


def test_the_control_parts_rows_from_their_nouns():
    splits = arm("plain", tiny()).splits
    mixed = claims.shuffled_nouns(splits, 0)
    noun, other = splits.test.labels["noun"], mixed.test.labels["noun"]
    assert torch.equal(noun.sort().values, other.sort().values)
    assert (noun == other).double().mean() < 0.2
    assert mixed.train is splits.train


@pytest.mark.parametrize("name, sign", [
    ("images", 1), ("texts", 1), ("mirror-images", -1),
    ("beyond-centring", 1), ("beyond-span", 1), ("intra-modal", 1)])
def test_positive_is_what_the_paper_says(name, sign):
    claim = next(c for c in claims.claims(tiny(), "tiny") if c.name == name)
    figures = {n: 0.5 + 0.2 * sign * (n == "inverted") for n in claim.arms}
    assert claim.difference(figures) == pytest.approx(0.2)
    assert f"{claim.figure} of the arm '{claim.baseline}'" in claim.condition.name


def test_pairs_of_a_users_own_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="know its drawings only"):
        claims.data("small", SimpleNamespace())
    assert claims.NEEDS is None


# The exercises teach what the package computes ------------------------------------
def test_the_package_passes_the_exercises(towers):
    def spread(tokens, places):
        fake = SimpleNamespace(settings=SimpleNamespace(patches=places),
                               image_from=lambda patches: patches)
        return picture_of(fake, tokens)

    assert exercises.spread.grade(spread)
    assert exercises.average_precision.grade(
        lambda scores, relevant: torch.tensor(mean_average_precision(
            scores[None], relevant[None])).to(scores))
    assert math.isclose(mean_average_precision(torch.tensor([[1.0, 0.0]]),
                                               torch.tensor([[False, True]])), 0.5)
