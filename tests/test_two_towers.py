"""The small towers: their files and recipe, embeddings in place of inputs, the corpus they
know, average precision, and the script that trains them, at its smallest."""

import json
import runpy
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alignkit.data import Tokens
from alignkit.data.objects import objects, plate_caption, short_caption
from alignkit.evaluation import average_precision, mean_average_precision, zero_shot
from alignkit.parts import optimise_inputs, shipped
from alignkit.parts.two_towers import (
    FOLDER,
    TwoTowers,
    TwoTowersSettings,
    load_two_towers,
    pixels_of,
    variant_of,
)  # fmt: skip

SCRIPT = Path(__file__).parents[1] / "data_scripts" / "train_two_towers.py"
SEEDS, INTRA = range(8), (0.0, 1.0)


@pytest.fixture(scope="module")
def towers() -> TwoTowers:
    return load_two_towers()


def recipe() -> dict:
    return shipped.recipe("two-towers")


def tower_file(seed: int, intra: float) -> str:
    return shipped.file_name(seed, variant_of(intra))


# The files ------------------------------------------------------------------------
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("intra", INTRA)
def test_every_pair_of_towers_is_whole_and_frozen(seed, intra):
    towers = load_two_towers(seed, intra)  # checks the sha256
    assert asdict(towers.settings) == recipe()["settings"]
    assert not towers.training
    assert not any(p.requires_grad for p in towers.parameters())
    assert all(x.dtype == torch.float32 and x.isfinite().all()
               for x in towers.state_dict().values())


def test_there_are_eight_pairs_of_each_kind():
    assert set(recipe()["files"]) == {f"seed-{seed}-intra-{intra}.safetensors"
                                      for seed in SEEDS for intra in (0, 1)}
    assert len({entry["sha256"] for entry in recipe()["files"].values()}) == 16


def test_the_corpus_is_the_one_of_the_recipe():
    corpus = recipe()["corpus"]
    pairs = objects(corpus["each"], corpus_seed=corpus["corpus_seeds"]["train"])
    assert pairs.provenance.hash == corpus["hash"]


def test_a_broken_file_is_refused(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "towers")
    path = tmp_path / "towers" / tower_file(0, 0)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="broken.*train_two_towers"):
        load_two_towers(0, folder=tmp_path / "towers")
    with pytest.raises(FileNotFoundError, match="no seed-9-intra-0.5.*there are seed-0"):
        load_two_towers(9, 0.5)


def test_weights_of_other_shapes_are_refused(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "towers")
    changed = recipe()
    changed["settings"]["width"] = 32
    (tmp_path / "towers" / "recipe.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="does not fit a TwoTowers"):
        load_two_towers(0, folder=tmp_path / "towers")


# Embeddings in place of inputs ------------------------------------------------------
def test_embeddings_give_what_words_and_pixels_give(towers):
    tokens = towers.tokens(["a dog on a blue disc", "a photo of an owl"])
    z = towers.text(tokens)
    assert torch.equal(towers.text_from(towers.words(tokens)), z)
    assert z.shape == (2, towers.settings.shared)
    assert torch.allclose(z.norm(dim=1), torch.ones(2))
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    patches = towers.patches(x)
    assert patches.shape == (3, towers.settings.patches, towers.settings.width)
    assert torch.equal(towers.image_from(patches), towers.image(x))
    assert not torch.allclose(towers.image_from(patches.flip(1)), towers.image(x))


def test_padding_changes_nothing_and_the_last_place_is_read(towers):
    short, long = "a photo of an owl", "a dog on a blue disc"
    alone = towers.text(towers.tokens([short]))
    assert torch.allclose(towers.text(towers.tokens([long, short]))[1:], alone, atol=1e-5)
    values, mask = towers.words(towers.tokens([short]))
    junk = torch.cat([values, torch.full_like(values[:, :2], 9.0)], 1)
    longer = torch.cat([mask, mask[:, :2] & False], 1)
    assert torch.allclose(towers.text_from(Tokens(junk, longer)), alone, atol=1e-5)


def test_the_last_piece_has_the_direction_of_the_text(towers):
    tokens = towers.tokens(["a photo of an owl", "a dog on a blue disc"])
    values, mask = towers.text_tokens(tokens)
    assert torch.equal(mask, tokens.mask) and len({*mask.sum(1).tolist()}) == 2
    assert (values[~mask] == 0).all() and not torch.allclose(values[0, 0], values[0, 1])
    last = torch.stack([row[real][-1] for row, real in zip(values, mask)])
    assert (last.norm(dim=1) - 1).abs().min() > 0.01  # of any length
    torch.testing.assert_close(last / last.norm(dim=1, keepdim=True), towers.text(tokens))


def test_gradients_reach_the_embeddings_and_no_weight(towers):
    words = towers.words(towers.tokens(["a photo of an owl"]))
    leaf = words.values.clone().requires_grad_()
    goal = load_two_towers(1).text(towers.tokens(["a dog"]))
    (slope,) = torch.autograd.grad((towers.text_from(Tokens(leaf, words.mask)) * goal).sum(),
                                   leaf)
    assert (slope.abs().sum(2) > 0).all()
    assert all(p.grad is None for p in towers.parameters())


def test_they_know_the_nouns_of_new_drawings(towers):
    pairs = objects(1, corpus_seed=77)
    z = towers.image(pixels_of(pairs["image"]).float() / 255)
    prompts = towers.text(towers.tokens(pairs["text_short"]))
    assert zero_shot(z, prompts, pairs.labels["noun"])["accuracy"] > 0.6  # chance: 1/64


def test_settings_say_what_is_wrong():
    with pytest.raises(ValueError, match="power of 2"):
        TwoTowersSettings(patch=24, size=72)
    small = replace(TwoTowersSettings(), size=32, patch=8, width=16, shared=4)
    towers = TwoTowers(small, recipe()["vocabulary"])
    assert towers.image(torch.rand(2, 3, 32, 32)).shape == (2, 4)
    assert small.patches == 16 == towers.patches(torch.rand(1, 3, 32, 32)).shape[1]


def test_pixels_are_the_pictures():
    picture = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
    pixels = pixels_of([picture, Image.new("L", (8, 8), 7)])
    assert pixels.dtype == torch.uint8 and pixels.shape == (2, 3, 64, 64)
    assert np.array_equal(pixels[0].permute(1, 2, 0), np.array(picture))
    assert (pixels[1] == 7).all()


# The corpus ---------------------------------------------------------------------------
def test_objects_say_what_they_show():
    pairs = objects(2, corpus_seed=3)
    assert len(pairs) == 128 and pairs.provenance.kind == "composed"
    for i in (0, 5, 70):
        noun, colour, shape = (pairs.label_names[k][int(pairs.labels[k][i])]
                               for k in ("noun", "colour", "shape"))
        thing = pairs["image"].sources[i][1][-1]
        assert (thing[0], *thing[-2:]) == (noun, colour, shape)
        assert all(not other[-1] and other[0] != noun
                   for other in pairs["image"].sources[i][1][:-1])
        assert pairs["text"][i] == plate_caption(colour, shape, noun)
        assert pairs["text_short"][i] == short_caption(noun)
    assert short_caption("owl") == "a photo of an owl"
    assert plate_caption("orange", "disc", "dog") == "a dog on an orange disc"
    assert pairs.labels["noun"].bincount().tolist() == [2] * 64


def test_more_objects_begin_with_the_fewer_and_seeds_differ():
    few, more, other = objects(1), objects(2), objects(1, corpus_seed=1)
    assert more["image"].sources[:64] == few["image"].sources
    assert few["image"].sources != other["image"].sources
    assert len({p.provenance.hash for p in (few, more, other)}) == 3
    with pytest.raises(ValueError, match="each"):
        objects(0)


def test_the_plate_has_its_colour():
    pairs = objects(1, corpus_seed=5)
    pixels = pixels_of(pairs["image"])
    from alignkit.data.scenes import COLOURS
    for i in range(64):
        code = COLOURS[pairs.label_names["colour"][int(pairs.labels["colour"][i])]]
        rgb = torch.tensor([int(code[k:k + 2], 16) for k in (1, 3, 5)])
        share = ((pixels[i].long() - rgb[:, None, None]).abs().sum(0) < 12).float().mean()
        assert share > 0.03, pairs["text"][i]


# Average precision ----------------------------------------------------------------------
def test_average_precision_by_hand():
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    relevant = torch.tensor([[True, False, True, False]])
    assert average_precision(scores, relevant).item() == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(-scores, relevant).item() == pytest.approx((1 / 2 + 2 / 4) / 2)
    both = torch.cat([scores, -scores])
    assert mean_average_precision(both, relevant.repeat(2, 1)) == pytest.approx(
        (5 / 6 + 1 / 2) / 2)


def test_average_precision_agrees_with_a_slow_loop_and_counts_ties_against():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 5, (20, 30), generator=generator) / 5
    relevant = torch.rand(20, 30, generator=generator) < 0.3
    relevant[:, 0] = True
    for row, mask, found in zip(scores, relevant, average_precision(scores, relevant)):
        order = sorted(range(30), key=lambda j: (-row[j].item(), bool(mask[j])))
        hits = [k for k, j in enumerate(order, 1) if mask[j]]
        assert found.item() == pytest.approx(
            sum(n / k for n, k in enumerate(hits, 1)) / len(hits))
    flat = average_precision(torch.zeros(1, 4), torch.tensor([[True, False, False, False]]))
    assert flat.item() == 1 / 4
    with pytest.raises(ValueError, match="relevant row"):
        average_precision(scores, relevant & False)


# Inversion's optimiser ------------------------------------------------------------------
def test_weight_decay_shrinks_and_its_absence_is_adam():
    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    still = optimise_inputs(lambda x: 0 * x.sum(1), start, 10, lr=0.1, weight_decay=0.5)
    assert torch.allclose(still, start * 0.95**10)
    x = start.clone().requires_grad_()
    adam = torch.optim.Adam([x], lr=0.1)
    for _ in range(20):
        (x.grad,) = torch.autograd.grad((x - 2).square().sum(), x)
        adam.step()
    same = optimise_inputs(lambda x: (x - 2).square().sum(1), start, 20, lr=0.1)
    assert torch.equal(same, x.detach())


# The script -----------------------------------------------------------------------------
@pytest.mark.slow
def test_the_script_trains_and_goes_on(tmp_path, monkeypatch, capsys):
    def call(*more: str) -> None:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path), "--each", "2",
                                          "--steps", "2", "--batch-size", "16", *more])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    call("--seeds", "0", "--intra", "0")
    first = (tmp_path / tower_file(0, 0)).read_bytes()
    call("--seeds", "0", "--intra", "0", "1")
    made = json.loads((tmp_path / "recipe.json").read_text("utf-8"))
    assert set(made["files"]) == {tower_file(0, 0), tower_file(0, 1)}
    assert (tmp_path / tower_file(0, 0)).read_bytes() == first
    for entry in made["files"].values():
        assert 0 <= entry["zero_shot"] <= 1 and entry["last_loss"] > 0
        assert load_two_towers(entry["seed"], entry["intra"], tmp_path).settings.size == 64
    with pytest.raises(ValueError, match="another recipe"):
        call("--seeds", "0", "--steps", "3")
    assert capsys.readouterr().out.count("sha256") == 2
