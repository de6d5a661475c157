"""LXMERT as a method: its losses from the equations, scores of every picture with every
sentence, what the shipped models start, questions and splits. The network itself is compared
with transformers' and with a plain loop in test_fusion.py."""

from dataclasses import replace

import pytest
import torch

from alignkit.claims import Runs
from alignkit.claims import lxmert as claims_file
from alignkit.claims.common import model_of
from alignkit.data import Lazy, Pairs, Tokens
from alignkit.data.questions import ANSWERS, MIX
from alignkit.data.scenes import NOUNS, boxes_of, scenes, things_of
from alignkit.methods.lxmert import Lxmert, LxmertSettings
from alignkit.parts import shipped
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


def toy_pairs(pairs: Pairs) -> Pairs:
    """Half as many pictures, for the encoder reads equal ones once, and four boxes in each,
    none of them blank: most of the time would go into the clusters of a grid's 36 cells."""
    first = pairs.first_of_item()[:35].tolist()
    few = Lazy([k % 35 for k in pairs.item.tolist()],
               lambda k: pairs["image"][first[k]], version="35")
    boxes = torch.tensor([[0, 0, 1, 1], [0, 0, 0.8, 0.8], [0.2, 0.2, 1, 1], [0.2, 0, 1, 0.8]])
    return pairs.with_columns(image=few).with_features(image_boxes=Tokens(
        boxes.repeat(len(pairs), 1, 1), torch.ones(len(pairs), 4, dtype=torch.bool)))


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


def drawn_scenes(n: int = 200) -> Pairs:
    """Scenes with random regions of the width that the shipped models read."""
    pairs = scenes(n)
    real = things_of(pairs, "noun").mask
    g = torch.Generator().manual_seed(0)
    return pairs.with_features(
        image_regions=Tokens(torch.randn(*real.shape, 192, generator=g) * real[:, :, None], real),
        image_boxes=boxes_of(pairs))


def test_a_start_is_the_shipped_model_but_for_what_is_new():
    method, shipped_ = made(rows()), load_fusion(0)
    own = set(method.state_dict())
    assert len(own) == len(shipped_.state_dict())
    for new in (claims_file.NEW, (*claims_file.NEW, "cross_layers", "pool")):
        start = claims_file.started("five", new, claims_file.FIRST)
        assert own - set(start) == {k for k in own if k.startswith(
            tuple(f"model.{name}." for name in new))}
        for name, x in start.items():
            assert torch.equal(x, shipped_.state_dict()[name.removeprefix("model.")])
    assert LxmertSettings().vocabulary == tuple(shipped_.pieces.vocabulary)
    assert list(LxmertSettings().answers) == shipped_.answers


def test_each_paired_seed_has_models_of_its_own():
    for variant in ("five", "words"):
        there = shipped.units(claims_file.KIND, variant)
        assert len(there) == claims_file.UNITS
        assert model_of(claims_file.FIRST + 7, there, claims_file.FIRST) == there[7]


def test_questions_of_a_seed_stay_with_their_scenes():
    scale = replace(claims_file.Scale(), questions=(40, 20, 30), captions=30)
    splits = claims_file._arms(drawn_scenes(), scale)["scratch"].data(claims_file.FIRST)
    assert [len(p) for p in splits[:2]] == [sum(max(1, m * v // 100) for k, v in
                                                MIX.items() if k != "noun")
                                            for m in (40, 20)]
    items = [set(part.item.tolist()) for part in splits]
    assert not items[0] & items[1] and not items[0] & items[2] and not items[1] & items[2]
    assert splits.test.tables["unit"] == 0 and splits.train["text"] == splits.train["question"]


def test_own_and_other_differ_in_the_picture_alone_and_with_the_null_both_are_others():
    arms = claims_file._arms(drawn_scenes(), replace(claims_file.Scale(), captions=30))
    own, other = (arms[name].data(100) for name in ("own", "other"))
    n = len(own.test)
    assert own.test["text"] == other.test["text"]

    def shown(rows):  # the row of `own` whose picture each row has
        known = [x.tobytes() for x in own.test["image_boxes"].values.numpy()]
        return [known.index(x.tobytes()) for x in rows["image_boxes"].values.numpy()]

    assert shown(other.test) == [(i - 1) % n for i in range(n)]
    for seed in range(20):
        for splits in (own, other):
            found = shown(claims_file.dealt_anew(splits, seed).test)
            assert sorted(found) == list(range(n)) and all(i != k for i, k in enumerate(found))


def test_a_caption_speaks_of_the_first_two_plates():
    pairs = drawn_scenes(30)
    for text, row in zip(pairs["text"], things_of(pairs, "noun").values.tolist(), strict=True):
        words = [w for w in text.split() if w in NOUNS]
        assert words == [list(NOUNS)[k] for k in row[:2]]


def test_the_words_that_are_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(claims_file, "fill_in_accuracy", lambda *a: asked.append(a[-1]) or 0.0)
    model, one = load_fusion(0), drawn_scenes(1)
    for group in ("content", "little", "nouns"):
        claims_file.filled_in(model, one, group)
    ids = model.tokens(one["text"]).values
    said = [[model.pieces.vocabulary[k] for k in ids[of].tolist()] for of in asked]
    text = one["text"][0].split()
    assert said == [[w for w in text if w not in claims_file.LITTLE],
                    [w for w in text if w in claims_file.LITTLE],
                    [w for w in text if w in NOUNS]]


def test_the_null_turns_answers_of_training_and_validation_alone():
    pairs = rows(30)
    splits = pairs.split(0)
    turned = claims_file.unanswered(splits, 3)
    assert turned.test is splits.test
    for a, b in zip(turned[:2], splits[:2]):
        assert a["text"] == b["text"]
        assert sorted(a.labels["answer"].tolist()) == sorted(b.labels["answer"].tolist())
    assert not torch.equal(turned.train.labels["answer"], splits.train.labels["answer"])


@pytest.mark.slow
def test_every_claim_on_scenes_can_be_measured():
    found = claims_file.claims(drawn_scenes(120), "tiny")
    runs = Runs(found)
    for claim in found:
        for null in (False, True):
            figures = runs.figures(claim, claims_file.FIRST, null)
            assert all(0 <= x <= 1 for x in figures.values())
        assert -1 <= claim.difference(figures) <= 1
    base = runs.trained(found[0], claims_file.FIRST)["scratch"]
    assert all(-1 <= c.measure(base) <= 1 for c in found[0].conditions)
    with torch.no_grad():  # nothing is tuned: what was shipped
        given = runs.trained(found[-1], claims_file.FIRST)["own"].method.model
    assert all(torch.equal(x, load_fusion(0).state_dict()[k])
               for k, x in given.state_dict().items())


def test_without_an_answer_nothing_is_scored():
    pairs = rows(6)
    method = made(pairs).float()
    pairs.labels["answer"][:] = torch.tensor([0, IGNORED, 1, IGNORED, 2, 3])
    asks = pairs.select([0, 2, 4, 5])
    assert claims_file.answered(method, pairs) == claims_file.answered(method, asks)
