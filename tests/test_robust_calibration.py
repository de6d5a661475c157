"""Calibration against a slow loop written from the equations, and its exact properties."""

import math

import pytest
import torch

from alignkit.claims import robust_calibration as claims_file
from alignkit.claims.claim import Trained
from alignkit.claims.robust_calibration import SCALES, accuracy, adaptive, attacked_apart
from alignkit.data import Pairs
from alignkit.encoders.pixels import DEVIATION, MEAN, ClipTowers
from alignkit.evaluation import robust_accuracy, shortfall
from alignkit.methods.robust_calibration import (
    Calibration, CalibrationSettings, Contrast, Distance, Uncalibrated, attacked_rows,
    scores_of,
)  # fmt: skip
from alignkit.parts import unit

KINDS = {"ce": Calibration, "l2": Distance, "nce": Contrast}


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def pairs(n: int = 6, d: int = 5) -> Pairs:
    """Three classes; texts of one class are equal."""
    clean = rows(n, d)
    return Pairs.from_features({
        "image_features": clean, "image_attacked": clean + 0.5 * rows(n, d, 1),
        "text_features": rows(3, d, 2)[torch.arange(n) % 3]})


def toy_features(more: Pairs) -> Pairs:
    """For the tests of all papers (toys.py): rows of attacked pictures."""
    g = torch.Generator().manual_seed(0)
    clean = more["image_features"]
    return more.with_features(image_attacked=clean + 0.5 * torch.randn(clean.shape, generator=g))


def made(kind=Calibration, moved: bool = True, **changes) -> Calibration:
    torch.manual_seed(0)
    method = kind(CalibrationSettings(**changes), pairs()).double()
    method.centres = unit(pairs()["text_features"]).unique(dim=0)  # in double precision
    with torch.no_grad():
        for k, p in enumerate(method.parameters() if moved else ()):
            p += 0.3 * rows(p.numel(), 1, 10 + k).view(p.shape)
    return method


# The loop -----------------------------------------------------------------------------
def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def loop_unit(x):
    length = dot(x, x) ** 0.5
    return [a / length for a in x]


def loop_head(method: Calibration, z: list) -> list:
    norm, first, _, last = method.head.bent
    mean = sum(z) / len(z)
    variance = sum((a - mean) ** 2 for a in z) / len(z)
    x = [norm.weight[k] * (a - mean) / (variance + norm.eps) ** 0.5 + norm.bias[k]
         for k, a in enumerate(z)]
    x = [dot(first.weight[i], x) + first.bias[i] for i in range(len(first.bias))]
    x = [a * (1 + torch.erf(a / 2**0.5)) / 2 for a in x]
    x = [dot(last.weight[i], x) + last.bias[i] for i in range(len(last.bias))]
    return loop_unit([a + b for a, b in zip(z, x, strict=True)])


def loop_loss(method: Calibration, kind: str) -> torch.Tensor:
    data, s = pairs(), method.settings
    clean, attacked, text = ([loop_unit(list(row)) for row in data[c]] for c in (
        "image_features", "image_attacked", "text_features"))
    centres, n, total = text[:3], len(clean), 0.0
    for i in range(n):
        g, gz = loop_head(method, attacked[i]), loop_head(method, clean[i])
        if kind == "l2":
            total = total + sum((a - b) ** 2 for a, b in zip(g, clean[i], strict=True))
        else:
            others = centres if kind == "ce" else clean
            factor = s.scale if kind == "ce" else 1 / s.temperature
            right = i % 3 if kind == "ce" else i
            logits = [factor * dot(g, c) for c in others]
            total = total - logits[right] + sum(x.exp() for x in logits).log()
        total = total + s.keep * sum((a - b) ** 2 for a, b in zip(gz, clean[i], strict=True))
    return total / n


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_the_equations(kind):
    method = made(KINDS[kind], keep=0.7, scale=3.0, temperature=0.4)
    fast, slow = sum(method(pairs().batch()).values()), loop_loss(method, kind)
    assert abs(fast / slow - 1) < 1e-9
    weights = list(method.parameters())
    for x, y in zip(*(torch.autograd.grad(loss, weights) for loss in (fast, slow)),
                    strict=True):
        assert (x - y).norm() <= 1e-9 * (1 + y.norm())


# Exact properties ---------------------------------------------------------------------
def test_untrained_the_head_is_the_identity():
    batch = pairs().batch()
    for kind in (*KINDS.values(), Uncalibrated):
        method = made(kind, moved=False)
        assert (method.calibrate(batch["image_attacked"])
                - unit(batch["image_attacked"])).abs().max() < 1e-15
        assert method(batch)["keep_loss"] < 1e-30
    assert list(made(Uncalibrated).stages()) == []
    trained = sum(p.numel() for p in made().parameters() if p.requires_grad)
    assert trained == 2 * 5 + (2 * 5 + 2) + (5 * 2 + 5)


def test_without_an_attack_the_label_free_losses_are_known():
    batch = pairs().batch()
    batch["image_attacked"] = batch["image_features"]
    assert made(Distance, moved=False)(batch)["main_loss"] < 1e-30
    z = unit(batch["image_features"])
    wanted = -torch.log_softmax(z @ z.T / 0.07, 1).diagonal().mean()
    assert abs(made(Contrast, moved=False)(batch)["main_loss"] - wanted) < 1e-12


def test_turning_the_space_turns_no_untrained_answer():
    turn = torch.linalg.qr(rows(5, 5, 7))[0]
    z, centres = rows(40, 5, 3), unit(rows(4, 5, 4))
    method = made(moved=False)
    before = scores_of(lambda x: x, centres, method)(z)
    after = scores_of(lambda x: x @ turn, centres @ turn, method)(z)
    assert (before - after).abs().max() < 1e-12


def test_encoder_and_centres_stay_as_they_are():
    """No weight of the encoder, no centre and no clean row gets a gradient."""
    method, batch = made(), pairs().batch()
    assert not method.centres.requires_grad
    encoder = torch.nn.Linear(12, 5).double().requires_grad_(False)
    x, y = rows(4, 12, 5).sigmoid(), torch.tensor([0, 1, 2, 0])
    before = encoder.weight.clone()
    clean, attacked = attacked_rows(encoder, x, y, method.centres, 0.1, 5)
    assert torch.equal(encoder.weight, before) and encoder.weight.grad is None
    assert torch.equal(clean, encoder(x)) and not attacked.requires_grad
    worse = [shortfall(unit(z) @ method.centres.T, y) for z in (clean, attacked)]
    assert (worse[1] >= worse[0]).all() and (worse[1] > worse[0]).any()
    batch["image_features"].requires_grad_(True)
    sum(method(batch).values()).backward()
    assert all(p.grad is not None for p in method.parameters())


def test_centres_are_the_different_texts():
    centres = made().centres
    assert centres.shape == (3, 5) and torch.allclose(centres.norm(dim=1),
                                                      torch.ones(3).double())
    found = (unit(pairs()["text_features"]) @ centres.T).argmax(1)
    assert torch.equal(found[:3], found[3:]) and len(found[:3].unique()) == 3


# The claims' figures ------------------------------------------------------------------
@pytest.fixture(scope="module")
def tiny():
    claims = claims_file.claims(claims_file.data("tiny"), "tiny")
    splits = claims[0].arms["none"].data(1000)
    method = claims[0].arms["none"].build(splits).eval()
    return claims, splits, Trained(method, splits, None)


@pytest.mark.slow
def test_without_a_head_both_attacks_are_one(tiny):
    """So the gain that an adaptive attack takes is measured against one number."""
    _, splits, none = tiny
    found = accuracy(none.method, splits.test)
    assert adaptive(none, SCALES["tiny"]) == found
    assert found <= accuracy(none.method, splits.test, "image_features")


def test_the_stored_rows_are_those_of_attacked_pictures(tiny):
    _, splits, none = tiny
    test = splits.test
    towers = claims_file.towers_of("two-towers", 1000)
    scores = scores_of(towers.image, test.tables["prompts"])
    x, noun = claims_file.pixels(test), test.labels["noun"]
    assert robust_accuracy(scores, x, noun) == accuracy(none.method, test, "image_features")
    assert x.min() >= 0 and x.max() <= 1 and len(test.tables["prompts"]) == 64
    assert not {*splits.train.ids} & {*test.ids}


def test_what_the_claim_on_adaptive_attacks_subtracts(tiny):
    claim = next(c for c in tiny[0] if c.name == "adaptive")
    for through, wanted in ((0.1, 0.2), (0.3, 0.0), (0.5, -0.2)):
        figures = {"none": 0.1, "ce": 0.5, "ce, adaptive": through}
        assert math.isclose(claim.difference(figures), wanted, abs_tol=1e-12)


def test_the_null_keeps_no_row_with_its_attack(tiny):
    _, splits, _ = tiny
    before, after = (s.train["image_attacked"] for s in (splits, attacked_apart(splits, 0)))
    assert not (before == after).all(1).any()
    assert torch.equal(before.sum(1).sort().values, after.sum(1).sort().values)


def test_every_seed_draws_pictures_and_takes_towers_of_its_own(tiny):
    with pytest.raises(ValueError, match="has no model of its own"):
        claims_file.towers_of("two-towers", 108)
    assert "object 1000 0" in {*tiny[1].train.ids, *tiny[1].val.ids, *tiny[1].test.ids}


# A CLIP -------------------------------------------------------------------------------
def small_clip() -> ClipTowers:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                 num_attention_heads=2, projection_dim=6)
    config = CLIPConfig(
        text_config=shape | dict(vocab_size=30, eos_token_id=29, max_position_embeddings=9),
        vision_config=shape | dict(image_size=16, patch_size=8), projection_dim=6)

    def tokenizer(texts, **options):
        ids = torch.tensor([[1, len(text), 29] for text in texts])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return ClipTowers(CLIPModel(config), tokenizer)


def test_a_clip_takes_pixels_from_0_to_1_and_is_attacked_like_the_towers():
    towers = small_clip()
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    centres = towers.text(towers.tokens(["a", "bb", "ccc"]))
    clean, attacked = attacked_rows(towers.image, x, torch.tensor([0, 1, 2, 0]), centres,
                                    8 / 255, 5)
    assert clean.shape == attacked.shape == (4, 6) and centres.shape == (3, 6)
    seen = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
    features = towers.model.get_image_features(pixel_values=seen)
    features = getattr(features, "pooler_output", features)
    assert torch.allclose(clean, unit(features), atol=1e-6)
    assert not torch.equal(clean, attacked)
    assert all(p.grad is None and not p.requires_grad for p in towers.parameters())


def test_the_real_clip_has_under_one_percent_in_its_head():
    """ImageBind's picture tower, OpenCLIP's ViT-H/14, by shape alone."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    wide = pairs(d=1024)
    with torch.device("meta"):
        tower = CLIPVisionModelWithProjection(CLIPVisionConfig(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32,
            num_attention_heads=16, patch_size=14, projection_dim=1024))
        head = Calibration(CalibrationSettings(), wide).head
    counts = [sum(p.numel() for p in module.parameters()) for module in (tower, head)]
    assert 630e6 < counts[0] < 634e6 and counts[1] == 2 * 1024 * 512 + 512 + 3 * 1024
    assert counts[1] < 0.01 * counts[0]
