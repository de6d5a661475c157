"""LXMERT as a method: its losses from the equations, scores of every picture with every
sentence, what the shipped models start, questions and splits. The network itself is compared
with transformers' and with a plain loop in test_fusion.py."""

from dataclasses import replace

import pytest
import torch

from alignkit.claims import lxmert as claims_file
from alignkit.data import Pairs, Tokens
from alignkit.data.questions import ANSWERS
from alignkit.data.scenes import scenes
from alignkit.methods.lxmert import Lxmert, LxmertSettings
from alignkit.parts.fusion import FusionSettings, load_fusion
from alignkit.parts.fusion_tasks import FIVE
from alignkit.parts.text import IGNORED

SMALL = FusionSettings(width=16, heads=2, clusters=3)
ASKED = ["what colour is the dog on", "is there a cat", "how many things are there"]


def toy_features(pairs: Pairs) -> Pairs:
    """Random regions with their boxes, questions, and answers."""
    g, n = torch.Generator().manual_seed(1), len(pairs)
    values, real = pairs["image_tokens"]
    low, size = torch.rand(2, n, values.shape[1], 2, generator=g) / 2
    made = pairs.with_features(
        image_regions=Tokens(values, real),
        image_boxes=Tokens(torch.cat([low, low + size], 2) * real[:, :, None], real),
        text=[ASKED[i % 3] for i in range(n)])
    return replace(made, labels={**made.labels, "answer": torch.arange(n) % 5})


def rows(n: int = 6) -> Pairs:
    g = torch.Generator().manual_seed(0)
    real = torch.arange(4) < torch.randint(1, 5, (n, 1), generator=g)
    pairs = Pairs.make({"text": [ASKED[i % 3] for i in range(n)]})
    pairs = pairs.with_features(image_tokens=Tokens(
        torch.randn(n, 4, 7, generator=g) * real[:, :, None], real))
    return toy_features(pairs)


def made(pairs: Pairs, **settings) -> Lxmert:
    torch.manual_seed(0)
    return Lxmert(LxmertSettings(SMALL, **settings), pairs).double().eval()


def double(batch):
    if isinstance(batch, Tokens):
        return Tokens(*map(double, batch))
    if isinstance(batch, dict):
        return {k: double(v) for k, v in batch.items()}
    return batch.double() if isinstance(batch, torch.Tensor) and batch.is_floating_point() else batch


def test_the_tuning_loss_is_the_equation_in_value_and_gradient():
    pairs = rows()
    pairs.labels["answer"][2] = IGNORED
    method = made(pairs)
    batch = double(method.collate(pairs, torch.Generator()))
    fast = method(batch)["answers_loss"]
    logits = method.model.answer_logits(method.model(
        batch["text_ids"], batch["image_regions"], batch["image_boxes"]))
    slow = 0.0
    for i in (0, 1, 3, 4, 5):
        for a in range(len(ANSWERS)):
            p = 1 / (1 + (-logits[i, a]).exp())
            right = batch["answer"][i] == a
            slow = slow - (p if right else 1 - p).log() / 5
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=0)
    weights = [p for p in method.parameters()]
    for a, b in zip(*(torch.autograd.grad(x, weights, allow_unused=True) for x in (fast, slow))):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_scores_are_those_of_every_two_read_together():
    pairs = rows(5)
    method = made(pairs)
    batch = double(method.collate(pairs, torch.Generator()))
    found = method.encode(batch)
    scores = method.score(found["image"], found["text"])
    torch.testing.assert_close(method.score(found["text"], found["image"]), scores.T)
    for picture in range(5):
        for sentence in range(5):
            at = [Tokens(t.values[[k]], t.mask[[k]]) for t, k in (
                (batch["text_ids"], sentence), (batch["image_regions"], picture),
                (batch["image_boxes"], picture))]
            no, yes = method.model.match_logits(method.model(*at))[0]
            torch.testing.assert_close(scores[picture, sentence], yes - no)


def test_pretraining_gives_five_losses_and_falls():
    pairs = rows(12)
    method = made(pairs, tasks=FIVE).float()
    batch = method.collate(pairs, torch.Generator().manual_seed(0))
    assert method(batch).keys() == {f"{name}_loss" for name in FIVE}
    assert method.model.centres.any()


def test_a_start_is_the_shipped_model_but_for_its_answers():
    method, shipped_ = made(rows()), load_fusion(0)
    start = claims_file.started("five", claims_file.FIRST)
    own = method.state_dict().keys()
    assert {k for k in own if k not in start} == {k for k in own if "answer_head" in k}
    for name, x in start.items():
        assert torch.equal(x, shipped_.state_dict()[name.removeprefix("model.")])
    assert LxmertSettings().vocabulary == tuple(shipped_.pieces.vocabulary)
    assert list(LxmertSettings().answers) == shipped_.answers


def test_questions_of_a_seed_stay_with_their_scenes():
    pairs = scenes(200)
    n = len(pairs)
    g = torch.Generator().manual_seed(0)
    real = torch.ones(n, 2, dtype=torch.bool)
    pairs = pairs.with_features(
        image_regions=Tokens(torch.randn(n, 2, 3, generator=g), real),
        image_boxes=Tokens(torch.rand(n, 2, 4, generator=g), real))
    scale = replace(claims_file.Scale(), few=20, some=40, many=50, val=20, test=30)
    splits = claims_file.arms_of(pairs, scale)["scratch"].data(claims_file.FIRST)
    assert [len(p) for p in splits[:2]] == [sum(max(1, m * v // 100) for k, v in
                                                claims_file.MIX.items() if k != "noun")
                                            for m in (40, 20)]
    items = [set(part.item.tolist()) for part in splits]
    assert not items[0] & items[1] and not items[0] & items[2]
    assert splits.test.tables["unit"] == 0 and splits.train["text"] == splits.train["question"]


def test_the_null_turns_answers_of_training_and_validation_alone():
    pairs = rows(30)
    splits = pairs.split(0)
    turned = claims_file.unanswered(splits, 3)
    assert turned.test is splits.test
    for a, b in zip(turned[:2], splits[:2]):
        assert a["text"] == b["text"]
        assert sorted(a.labels["answer"].tolist()) == sorted(b.labels["answer"].tolist())
    assert not torch.equal(turned.train.labels["answer"], splits.train.labels["answer"])


def test_pairs_of_ones_own_are_refused():
    with pytest.raises(ValueError, match="take no pairs of your own"):
        claims_file.data("tiny", rows())
