"""The fused models that come with the package look at the picture, and the script that
trains them, at its smallest.

With another scene's picture no model may know more than words do. That is a null hypothesis:
its answers are then right as often as `words_alone` says, .347 for the questions asked here
and .264 for those of the recipe, of which half ask for colours and nouns. (The bar was .35 for
both: for the second it leaves room, for the first it is chance itself, and every other model
that knows nothing would have missed it.) Each of the 16 models may lie above by as much as
chance gives one of 16 once in a hundred times. Their mean may lie above by as much as it gives
a single model: all are asked the same questions with the same pictures, and where two scenes
happen to have as many things, all are right, so that more models are no more questions.
(Found: .303 to .358, on average .336; the bars are at .424 and .402.) What was chosen
beforehand and not loosened is `NOUN_GAP`.
"""

import json
import runpy
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist, mean
from typing import NamedTuple

import pytest
import torch

from alignkit.data.questions import ANSWERS, KINDS, questions, words_alone
from alignkit.data.scenes import COLOURS, NOUNS, scenes
from alignkit.encoders import add_regions
from alignkit.evaluation import answers_of, fill_in_accuracy, matched
from alignkit.parts import shipped
from alignkit.parts.fusion import load_fusion

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[1] / "data_scripts" / "train_fusion.py"
EACH = {"colour": 120, "shape": 60, "size": 60, "exists": 60, "count": 60}
VALIDATED = 400  # the recipe's figures are of so many questions for each share of 1
NOUN_GAP, ANSWERS_OTHER = 0.3, 0.35  # the script's bar
RARELY = 0.01  # how often chance alone may fail a test of all models


def recipe() -> dict:
    return shipped.recipe("fusion")


def all_of_them() -> list[tuple[int, str]]:
    if "fusion" not in shipped.kinds():
        return []
    return [(seed, variant) for variant in recipe()["tasks"]
            for seed in shipped.units("fusion", variant)]


@pytest.fixture(scope="module")
def seen():
    """New scenes: their captions, questions, and the regions of their own and another."""
    made = recipe()["corpus"]
    pairs = add_regions(scenes(120, corpus_seed=made["corpus_seeds"]["val"] + 1), "image",
                        made["encoder"], layers=(made["layer"],))
    name = f"image_layer{made['layer']}_regions"
    other = pairs.with_features(**{
        column: type(pairs[column])(*(x.roll(1, 0) for x in pairs[column]))
        for column in (name, "image_boxes")})
    return [(p, p[name], p["image_boxes"], asked, asked[name], asked["image_boxes"])
            for p, asked in ((p, questions(p, EACH, seed=0)) for p in (pairs, other))]


# The bar --------------------------------------------------------------------------------
class Looked(NamedTuple):
    """What a model gets, with a scene's own picture and with another's."""

    nouns: tuple[float, float]
    answers: tuple[float, float]
    knows_its_own: float


@pytest.fixture(scope="module")
def look(seen) -> Callable[[int, str], Looked]:
    @lru_cache
    def of(seed: int, variant: str) -> Looked:
        model = load_fusion(seed, variant)
        nouns = torch.tensor([model.pieces.vocabulary.index(noun) for noun in NOUNS])
        filled, answered, right = [], [], seen[0][3].labels["answer"]
        for pairs, regions, boxes, asked, *theirs in seen:
            words = model.tokens(pairs["text"])
            filled.append(fill_in_accuracy(model, words, regions, boxes,
                                           torch.isin(words.values, nouns)))
            answered.append((answers_of(model, model.tokens(asked["question"]), *theirs)
                             == right).float().mean().item())
        words = model.tokens(seen[0][0]["text"])
        own, other = (matched(model, words, regions, boxes) for _, regions, boxes, *_ in seen)
        return Looked(tuple(filled), tuple(answered), (own > other).float().mean().item())
    return of


def blind_at_most(each: Mapping[str, int], tests: int = 1) -> float:
    """The share of right answers that who sees nothing exceeds in `RARELY` of all cases, in
    any of so many tests; each: questions of every kind, whose answers are balanced."""
    chances = {kind: 1 / len(KINDS[kind][0]) for kind in each}
    sd = sum(n * chances[kind] * (1 - chances[kind]) for kind, n in each.items()) ** 0.5
    return words_alone(each) + NormalDist().inv_cdf(1 - RARELY / tests) * sd / sum(each.values())


def test_chance_is_told_from_the_number_of_questions():
    few = blind_at_most({"size": 100})
    assert few == pytest.approx(0.5 + 2.326 * 0.05, abs=1e-4)
    assert blind_at_most({"size": 400}) - 0.5 == pytest.approx((few - 0.5) / 2)
    assert blind_at_most(EACH) < blind_at_most(EACH, 16) == pytest.approx(0.424, abs=1e-3)


@pytest.mark.parametrize("seed, variant", all_of_them())
def test_every_shipped_model_looks_at_the_picture(look, seed, variant):
    assert asdict(load_fusion(seed, variant).settings) == recipe()["settings"]
    found = look(seed, variant)
    assert found.nouns[0] - found.nouns[1] >= NOUN_GAP, found
    assert found.answers[1] <= blind_at_most(EACH, len(all_of_them())), found
    assert found.answers[0] > words_alone(EACH) + 0.1, found
    assert found.knows_its_own > 0.7
    entry = recipe()["files"][shipped.file_name(seed, variant)]
    assert entry["noun_gap"] >= NOUN_GAP and entry["answers_other"] <= ANSWERS_OTHER
    validated = {kind: round(VALIDATED * share)
                 for kind, share in recipe()["corpus"]["questions"].items()}
    assert entry["answers_other"] <= blind_at_most(validated, len(all_of_them()))
    assert entry["noun_own"] == pytest.approx(found.nouns[0], abs=0.12)


def test_all_together_are_blind_with_another_picture(look):
    if not all_of_them():
        pytest.skip("none is shipped yet")
    answers = [look(*unit).answers[1] for unit in all_of_them()]
    assert mean(answers) <= blind_at_most(EACH), answers


def test_they_are_of_scenes_that_no_paper_uses():
    if "fusion" not in shipped.kinds():
        pytest.skip("none is shipped yet")
    made = recipe()
    assert min(made["corpus"]["corpus_seeds"].values()) > 30 and made["answers"] == ANSWERS
    units = shipped.units("fusion", "five")
    sums = {entry["sha256"] for entry in made["files"].values()}
    assert len(sums) == len(made["files"]) >= len(units)


# The script -----------------------------------------------------------------------------
def test_the_script_trains_goes_on_and_keeps_nothing_blind(tmp_path, monkeypatch, capsys):
    out = tmp_path / "fusion"

    def call(*more: str) -> None:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(out), "--scenes", "45", "--first",
                                          "2", "--steps", "2", "--batch-size", "16", *more])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    call("--seeds", "0")
    assert "under the bar" in capsys.readouterr().out and not shipped.units(out, "five")
    call("--seeds", "0", "--any")
    first = (out / "seed-0-five.safetensors").read_bytes()
    call("--seeds", "0", "1", "--variants", "five", "words", "--any")
    made = json.loads((out / "recipe.json").read_text("utf-8"))
    assert sorted(made["files"]) == [f"seed-{seed}-{variant}.safetensors" for seed in (0, 1)
                                     for variant in ("five", "words")]
    assert (out / "seed-0-five.safetensors").read_bytes() == first
    model = load_fusion(1, "words", out)
    assert not model.training and model.answers == ANSWERS
    assert model.pieces.vocabulary == made["vocabulary"] and set(COLOURS) < set(
        model.pieces.vocabulary)
    with pytest.raises(ValueError, match="another recipe"):
        call("--steps", "3")
