"""Shipped models: what is stored comes back, rounded as said; recipes are true; the room
they take."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from alignkit.data.objects import objects
from alignkit.evaluation import zero_shot
from alignkit.parts import shipped
from alignkit.parts.two_towers import load_two_towers, pixels_of

ROOT = Path(__file__).parents[1]
CHECKOUT = 60_000_000


class Small(nn.Module):
    """A table that is used twice, a convolution, numbers that are whole, an empty tensor."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.table, self.out = nn.Embedding(5, 4), nn.Linear(4, 5)
        self.out.weight = self.table.weight
        self.stem = nn.Conv2d(3, 4, 2)
        self.register_buffer("count", torch.tensor([3, 2**40]))
        self.register_buffer("none", torch.zeros(0, 4))


def stored(folder: Path, model: nn.Module, seed: int = 0, **rest) -> nn.Module:
    shipped.begin(folder, "train_small.py", settings={"width": 4})
    shipped.add(folder, model, seed, **rest)
    return shipped.fill(Small(9), folder, seed, rest.get("variant", ""))


# What comes with the package -----------------------------------------------------------
@pytest.mark.parametrize("kind", shipped.kinds())
def test_a_recipe_is_true(kind):
    made, folder = shipped.recipe(kind), shipped.FOLDER / kind
    assert {path.name for path in folder.iterdir()} == {*made["files"], shipped.RECIPE}
    assert (ROOT / "data_scripts" / made["script"]).is_file(), "the script is in data_scripts"
    for name, entry in made["files"].items():
        assert name.startswith(f"seed-{entry['seed']}")
        variant = name.removesuffix(".safetensors").removeprefix(f"seed-{entry['seed']}")
        assert entry["seed"] in shipped.units(kind, variant[1:])
        found = shipped.weights(kind, entry["seed"], variant[1:])  # checks the sha256
        assert found and all(x.isfinite().all() for x in found.values())


def test_all_of_them_are_small():
    size = sum(path.stat().st_size for path in shipped.FOLDER.rglob("*") if path.is_file())
    assert size <= shipped.LARGEST, (
        f"the shipped models take {size / 1e6:.1f} MB, {shipped.LARGEST / 1e6:.0f} are "
        "allowed: store some in 8 bits (`shipped.add(…, bits=8)`), or ship five seeds")


def test_a_checkout_is_small():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("no git checkout")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    size = sum(path.stat().st_size for path in files if path.is_file())
    assert size <= CHECKOUT, f"tracked files take {size / 1e6:.1f} MB"


# What is stored comes back --------------------------------------------------------------
def test_halves_are_the_rounded_weights(tmp_path):
    model = Small()
    wanted = {k: v.half().float() if v.is_floating_point() else v.clone()
              for k, v in model.state_dict().items()}
    found = stored(tmp_path, model)
    assert not found.training and not any(p.requires_grad for p in found.parameters())
    for state in (found.state_dict(), model.state_dict()):  # the model is rounded, too
        assert all(torch.equal(state[k], v) for k, v in wanted.items())


def test_rows_of_8_bits_by_hand():
    model = nn.Linear(3, 3)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.27, -0.635, 0.012], [0, 0, 0], [254, 1, -3]]))
        model.bias.copy_(torch.tensor([0.1, 1.0, -2.0]))
    made = shipped.packed(model, 8)
    assert made["weight"].tolist() == [[127, -64, 1], [0, 0, 0], [127, 0, -2]]
    assert torch.allclose(made["weight:scale"], torch.tensor([0.01, 0.0, 2.0]))
    assert made["bias"].dtype == torch.float16
    back = shipped.unpacked(made)
    assert torch.allclose(back["weight"], torch.tensor(
        [[1.27, -0.64, 0.01], [0, 0, 0], [254, 0, -4]]))
    assert back.keys() == {"weight", "bias"}


def test_8_bits_are_off_by_half_a_step_at_most_and_half_as_large(tmp_path):
    model = nn.Conv2d(8, 16, 3)
    exact = model.weight.detach().clone()
    half = sum(x.nbytes for x in shipped.packed(model).values())
    eighth = sum(x.nbytes for x in shipped.packed(model, 8).values())
    assert eighth < 0.6 * half
    off = shipped.unpacked(shipped.packed(model, 8))["weight"] - exact
    step = exact.flatten(1).abs().amax(1) / 127
    assert (off.flatten(1).abs().amax(1) <= 0.501 * step).all() and off.any()


@pytest.mark.parametrize("bits", [8, 16])
def test_scores_are_those_of_the_stored_model(tmp_path, bits):
    model, x = Small(), torch.randn(2, 3, 4, 4)
    exact = model.stem(x).sum().item()
    shipped.begin(tmp_path, "train_small.py")
    entry = shipped.add(tmp_path, model, 3, bits=bits, seconds=1,
                        scores=lambda m: {"sum": m.stem(x).sum().item()})
    found = shipped.fill(Small(9), tmp_path, 3)
    assert entry["sum"] == found.stem(x).sum().item() != exact
    assert shipped.recipe(tmp_path)["files"]["seed-3.safetensors"] == entry
    assert entry["seconds"] == 1 and found.out.weight is found.table.weight


def test_towers_in_8_bits_know_as_much():
    """What 8 bits cost a real model: the nouns of 64 new drawings."""
    pairs = objects(1, corpus_seed=77)
    pixels = pixels_of(pairs["image"]).float() / 255
    found = []
    for bits in (16, 8):
        towers = load_two_towers()
        towers.load_state_dict(shipped.unpacked(shipped.packed(towers, bits)))
        prompts = towers.text(towers.tokens(pairs["text_short"]))
        found.append(zero_shot(towers.image(pixels), prompts,
                               pairs.labels["noun"])["accuracy"])
    assert abs(found[0] - found[1]) <= 2 / 64


# Variants, seeds, and what is refused ---------------------------------------------------
def test_units_are_the_seeds_of_a_variant(tmp_path):
    shipped.begin(tmp_path, "train_small.py")
    for seed, variant in ((3, "early"), (1, "early"), (1, ""), (12, "early-2")):
        shipped.add(tmp_path, Small(seed), seed, variant)
    assert shipped.units(tmp_path, "early") == [1, 3] and shipped.units(tmp_path) == [1]
    assert shipped.units(tmp_path, "late") == []
    early, plain = (shipped.weights(tmp_path, 1, v)["stem.weight"] for v in ("early", ""))
    assert torch.equal(early, plain)
    with pytest.raises(FileNotFoundError, match="no seed-3.safetensors.*seed-1-early"):
        shipped.weights(tmp_path, 3)
    with pytest.raises(FileNotFoundError, match="'nothing'; there are .*two-towers"):
        shipped.recipe("nothing")


def test_a_recipe_is_gone_on_with_and_no_other(tmp_path):
    stored(tmp_path, Small())
    before = shipped.recipe(tmp_path)
    shipped.begin(tmp_path, "train_small.py", settings={"width": 4})
    assert shipped.recipe(tmp_path) == before and before["files"]
    with pytest.raises(ValueError, match="another recipe"):
        shipped.begin(tmp_path, "train_small.py", settings={"width": 5})
    assert not list(tmp_path.glob("*.part"))


def test_a_broken_or_foreign_file_is_refused(tmp_path):
    stored(tmp_path / "made", Small())
    path = shutil.copytree(tmp_path / "made", tmp_path / "copy") / "seed-0.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="broken.*data_scripts/train_small.py"):
        shipped.weights(tmp_path / "copy", 0)
    with pytest.raises(ValueError, match="seed-0.safetensors does not fit a Linear"):
        shipped.fill(nn.Linear(2, 2), tmp_path / "made", 0)
    other = Small()
    other.stem = nn.Conv2d(3, 5, 2)
    with pytest.raises(ValueError, match="(?s)does not fit a Small.*stem"):
        shipped.fill(other, tmp_path / "made", 0)


def test_weights_that_halves_cannot_hold_are_refused():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match="weight holds numbers that are not finite"):
        shipped.packed(model, 8)
    with pytest.raises(ValueError, match="bits must be 8 or 16, got 4"):
        shipped.packed(nn.Linear(2, 2), 4)
