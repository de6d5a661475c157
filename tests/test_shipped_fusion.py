"""The fused models that come with the package look at the picture, and the script that
trains them, at its smallest."""

import json
import runpy
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from alignkit.data.questions import ANSWERS, questions, words_alone
from alignkit.data.scenes import COLOURS, NOUNS, scenes
from alignkit.encoders import add_regions
from alignkit.evaluation import answers_of, fill_in_accuracy, matched
from alignkit.parts import shipped
from alignkit.parts.fusion import load_fusion

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[1] / "data_scripts" / "train_fusion.py"
EACH = {"colour": 120, "shape": 60, "size": 60, "exists": 60, "count": 60}
NOUN_GAP, ANSWERS_OTHER = 0.3, 0.35  # the bar


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
@pytest.mark.parametrize("seed, variant", all_of_them())
def test_every_shipped_model_looks_at_the_picture(seen, seed, variant):
    model = load_fusion(seed, variant)
    assert asdict(model.settings) == recipe()["settings"]
    nouns = torch.tensor([model.pieces.vocabulary.index(noun) for noun in NOUNS])
    filled, answered, right = [], [], seen[0][3].labels["answer"]
    for pairs, regions, boxes, asked, *theirs in seen:
        words = model.tokens(pairs["text"])
        filled.append(fill_in_accuracy(model, words, regions, boxes,
                                       torch.isin(words.values, nouns)))
        answered.append((answers_of(model, model.tokens(asked["question"]), *theirs)
                         == right).float().mean().item())
    assert filled[0] - filled[1] >= NOUN_GAP, filled
    chance = 2 * (ANSWERS_OTHER * (1 - ANSWERS_OTHER) / len(right)) ** 0.5  # of as many questions
    assert answered[1] <= ANSWERS_OTHER + chance, answered
    assert answered[0] > words_alone(EACH) + 0.1, answered
    words = model.tokens(seen[0][0]["text"])
    own, other = (matched(model, words, regions, boxes) for _, regions, boxes, *_ in seen)
    assert (own > other).float().mean() > 0.7
    entry = recipe()["files"][shipped.file_name(seed, variant)]
    assert entry["noun_gap"] >= NOUN_GAP and entry["answers_other"] <= ANSWERS_OTHER
    assert entry["noun_own"] == pytest.approx(filled[0], abs=0.12)


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
