"""ALPRO as a method: its four losses by a loop over pairs, crops and soft labels, the official
threshold, and what the claims compose."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from alignkit.claims import Runs
from alignkit.claims import alpro as claims_file
from alignkit.claims.tower_rows import with_patches
from alignkit.claims import Runs
from alignkit.data import Pairs, Tokens


from alignkit.methods.alpro import Alpro, AlproSettings, entity_loss, kept, prompts_of
from alignkit.parts.crops import boxes_at, cropped, inside
from alignkit.parts.two_towers import TwoTowers, TwoTowersSettings, load_two_towers
from alignkit.training import seed_all

VOCABULARY = tuple(load_two_towers().pieces.vocabulary)
TINY = TwoTowersSettings(size=32, patch=8, width=16, image_layers=1, text_layers=1, heads=2,
                         shared=6)
SMALL = AlproSettings(VOCABULARY, width=16, heads=2, image_layers=1, text_layers=1, shared=8,
                      prompter=partial(TwoTowers, TINY, VOCABULARY),
                      entities=("dog", "cat", "bus", "key", "hat"), threshold=0.0)


def toy_features(pairs: Pairs) -> Pairs:
    """Pixels of random pictures, as large as the shipped towers want them."""
    g = torch.Generator().manual_seed(3)
    return pairs.with_features(image_pixels=torch.rand(len(pairs), 3, 64, 64, generator=g))


def rows(n: int = 5) -> Pairs:
    g = torch.Generator().manual_seed(0)
    said = ["a dog on a red disc", "a cat", "a photo of a bus", "a hat on a blue square", "a key"]
    return Pairs.make({"text": [said[i % 5] for i in range(n)]}).with_features(
        image_tokens=Tokens(torch.randn(n, 16, 7, generator=g), torch.ones(n, 16) > 0),
        image_pixels=torch.rand(n, 3, 32, 32, generator=g))


def made(**changed) -> tuple[Alpro, dict]:
    torch.manual_seed(0)
    method = Alpro(replace(SMALL, **changed), rows()).double().eval()
    with torch.no_grad():  # from larger tables, so that words and places matter
        method.words.ids.weight.mul_(20)
        method.image_places.mul_(20)
    batch = method.collate(rows(), torch.Generator().manual_seed(1))
    if method.settings.prompter:
        method.ask()
        batch["image_crops"] = batch["image_crops"].double()
    batch["image_tokens"] = Tokens(batch["image_tokens"].values.double(),
                                   batch["image_tokens"].mask)
    return method, batch


def one(tokens: Tokens, i: int) -> Tokens:
    """Row i without its padding."""
    return Tokens(tokens.values[[i]][:, tokens.mask[i]], tokens.mask[[i]][:, tokens.mask[i]])


def slow_losses(method: Alpro, batch: dict, official_rows: int | None = None) -> dict:
    """Each loss from its equation, a pair at a time."""
    n, out = len(batch["item"]), {}
    seen = [method.look(one(batch["image_tokens"], i)) for i in range(n)]
    said = [method.read(one(batch["text_ids"], i)) for i in range(n)]
    z = [method.image_head(x.values[0, 0]) for x in seen]
    w = [method.text_head(x.values[0, -1]) for x in said]
    z, w = ([x / x.norm() for x in side] for side in (z, w))
    s = [[z[i] @ w[j] * method.temperature() for j in range(n)] for i in range(n)]

    def share(row, i):
        return -(row[i].exp() / sum(x.exp() for x in row)).log() / n

    out["vtc_loss"] = sum(share(s[i], i) + share([s[j][i] for j in range(n)], i)
                          for i in range(n)) / 2
    picture, caption = method.negatives(
        torch.stack(z), torch.stack(w), torch.eye(n) > 0)

    def fused(words, patches):
        values = torch.cat([words.values, patches.values], 1)
        return method.fusion(Tokens(values, torch.ones(values.shape[:2]) > 0)).values[0]

    def match(i, j, right):  # picture i, words j
        a = method.match_head(fused(said[j], seen[i])[0])
        return -(a[right].exp() / (a[0].exp() + a[1].exp())).log()

    out["vtm_loss"] = sum(
        match(i, i, 1) + match(picture[i], i, 0) + match(i, caption[i], 0)
        for i in range(n)) / (3 * n)
    asked = []
    for i in range(n):
        words = method.read(one(batch["text_masked"], i))
        logits = method.word_logits(fused(words, seen[i]))
        for place, wanted in enumerate(batch["text_targets"][i].tolist()):
            if wanted >= 0:
                asked.append(-(logits[place, wanted].exp() / logits[place].exp().sum()).log())
    out["mlm_loss"] = sum(asked) / len(asked)
    q = method.labels(batch["image_crops"])
    sure, each = [], []
    for i in range(n):
        whole = fused(said[i], seen[i])[said[i].values.shape[1] + 1:]
        chosen = [whole[k] for k in range(16) if batch["image_inside"][i, k]]
        logits = method.entity_head(sum(chosen) / len(chosen))
        p = logits.exp() / logits.exp().sum()
        if q[i].max() >= method.settings.threshold:
            sure.append(i)
            each.append(-(q[i] * p.log()).sum())
    out["pem_loss"] = sum(each) / len(each)
    return out


@pytest.mark.parametrize("hard", [True, False])
def test_the_losses_are_the_equations_in_value_and_gradient(hard):
    method, batch = made(hard=hard)
    q = method.labels(batch["image_crops"]).max(1).values.sort().values
    method.settings = replace(method.settings, threshold=float(q[1:3].mean()))  # some dropped
    seed_all(1)
    fast = method(batch)
    seed_all(1)
    slow = slow_losses(method, batch)
    assert fast.keys() == slow.keys()
    weights = [p for p in method.parameters() if p.requires_grad]
    for name in fast:
        torch.testing.assert_close(fast[name], slow[name], rtol=1e-9, atol=1e-12)
        for a, b in zip(*(torch.autograd.grad(x[name], weights, allow_unused=True,
                                              retain_graph=True) for x in (fast, slow))):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


def test_without_alignment_nothing_teaches_the_heads_that_align():
    method, batch = made(vtc=False, prompter=None, hard=False)
    assert method(batch).keys() == {"vtm_loss", "mlm_loss"}
    assert not any(p.requires_grad for p in (*method.image_head.parameters(),
                                             *method.text_head.parameters()))
    assert "prompts" not in method.state_dict() and len(method.stages()) == 1


def test_the_entity_loss_pulls_p_to_q_and_is_least_at_the_entropy():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=g, dtype=torch.double, requires_grad=True)
    q = torch.randn(6, 4, generator=g, dtype=torch.double).softmax(1)
    keep = torch.tensor([1, 1, 0, 1, 0, 1]) > 0
    gradient, = torch.autograd.grad(entity_loss(logits, q, keep), logits)
    torch.testing.assert_close(gradient, (logits.softmax(1) - q) * keep[:, None] / 4)
    entropy = -(q * q.log()).sum(1)[keep].mean()
    torch.testing.assert_close(entity_loss(q.log(), q, keep), entropy)
    assert entity_loss(logits, q, keep) > entropy
    assert entity_loss(logits, q, torch.zeros(6) > 0) == 0


def test_the_order_of_entities_does_not_matter_but_in_the_official_rule():
    g = torch.Generator().manual_seed(0)
    q = (3 * torch.randn(200, 5, generator=g)).softmax(1)
    turn = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(kept(q, 0.6), kept(q[:, turn], 0.6)) and 0 < kept(q, 0.6).sum() < 200
    assert not torch.equal(kept(q, 0.6, official=True), kept(q[:, turn], 0.6, official=True))
    assert torch.equal(kept(q, 0.2, official=True), q.argmax(1) > 0)


def test_a_crop_of_all_is_the_picture_and_nothing_outside_is_seen():
    method, _ = made()
    pixels = torch.rand(3, 3, 32, 32, dtype=torch.double)
    whole = torch.tensor([[0, 0, 4, 4]] * 3)
    for in_place in (False, True):
        torch.testing.assert_close(cropped(pixels, whole, 4, in_place), pixels)
        boxes = torch.tensor([[0, 1, 2, 2], [2, 0, 1, 3], [1, 1, 3, 2]])
        outside = ~inside(boxes, 4).view(3, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
        other = pixels + outside * torch.rand_like(pixels)
        q = [method.labels(cropped(x, boxes, 4, in_place)) for x in (pixels, other)]
        assert torch.equal(*q)
    cut = cropped(pixels, torch.tensor([[1, 2, 2, 2]] * 3), 4)
    near = torch.nn.functional.interpolate(pixels[:, :, 8:24, 16:32], (32, 32), mode="bilinear")
    assert torch.equal(cut, near)


def test_crops_are_whole_patches_of_the_papers_area():
    for side in (4, 14):
        boxes = boxes_at(400, side, torch.Generator().manual_seed(0))
        top, left, height, width = boxes.T
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] >= 1).all()
        assert (top + height <= side).all() and (left + width <= side).all()
        area = (height * width).float() / side**2
        assert area.max() <= 0.5  # rounded down
        assert torch.equal(inside(boxes, side).sum(1), height * width)
        assert inside(torch.tensor([[1, 0, 2, 3]]), 4).view(4, 4).int().tolist() == [
            [0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert 0.25 < area.mean() < 0.4  # of 14 × 14 patches little is lost to rounding


def test_prompts_are_the_mean_of_templates_and_not_made_unit_again():
    towers = load_two_towers()
    found = prompts_of(towers, ["dog", "cat"], ["a photo of a {}", "a {} on a red disc"])
    for k, name in enumerate(("dog", "cat")):
        two = towers.text(towers.tokens([f"a photo of a {name}", f"a {name} on a red disc"]))
        torch.testing.assert_close(found[k], two.mean(0), atol=1e-6, rtol=0)
    assert (found.norm(dim=1) < 0.999).all()


def test_the_prompter_is_frozen_and_written_before_training():
    method, batch = made()
    seed_all(1)
    sum(method(batch).values()).backward()
    assert all(p.grad is None for p in method.prompter.parameters())
    trained = [p for n, p in method.named_parameters() if not n.startswith("prompter")]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    assert method.stages()[0].solve and method.prompts.any()


def test_scores_are_those_of_every_two_read_together():
    method, batch = made()
    found = method.encode(batch)
    scores = method.score(found["text"], found["image"])
    torch.testing.assert_close(method.score(found["image"], found["text"]), scores.T)
    for j in range(5):
        words, patches = method.read(one(batch["text_ids"], j)), method.look(
            one(batch["image_tokens"], 2))
        no, yes = method.match_head(method.fuse(words, patches)[:, 0])[0]
        torch.testing.assert_close(scores[j, 2], yes - no)


def test_a_still_of_equal_frames_is_its_picture():
    method, batch = made(prompter=None)
    torch.manual_seed(0)
    films = rows().with_features(image_tokens=Tokens(
        rows()["image_tokens"].values.repeat(1, 3, 1), torch.ones(5, 48) > 0))
    film = Alpro(replace(SMALL, prompter=None, frames=3), films).double().eval()
    own = {name.replace("image_encoder", "image_encoder.space"): x
           for name, x in method.state_dict().items()}
    film.load_state_dict({**film.state_dict(), **own})
    tokens = batch["image_tokens"]
    found = film.look(Tokens(tokens.values.repeat(1, 3, 1), torch.ones(5, 48) > 0))
    torch.testing.assert_close(found.values, method.look(tokens).values)
    seed_all(1)
    assert film(film.collate(films, torch.Generator().manual_seed(0)) | {
        "image_tokens": Tokens(films["image_tokens"].values.double(),
                               films["image_tokens"].mask)})["vtm_loss"] > 0


# The claims on composed pictures ------------------------------------------------------
@pytest.fixture(scope="module")
def tiny() -> Pairs:
    return claims_file.data("tiny")


def arms(tiny: Pairs) -> dict:
    return claims_file._arms(tiny, claims_file.SCALES["tiny"])


def test_a_start_is_the_picture_tower_of_a_seed_and_the_text_tower_of_the_next(tiny):
    picture, text = load_two_towers(7), load_two_towers(0)
    for name in ("aligned", "prompted"):
        arm = arms(tiny)[name]
        splits = arm.data(claims_file.FIRST + 7)
        method, start = arm.build(splits), arm.start(claims_file.FIRST + 7)
        own = method.state_dict()
        assert all(own[name].shape == x.shape for name, x in start.items())
        assert not any(name.startswith(("image_head", "text_head", "fusion")) for name in start)
        method.load_state_dict({**own, **start})
        rows = splits.test.select(range(3))
        batch = method.collate(rows, torch.Generator().manual_seed(0))
        ids = batch["text_ids"]
        said = text.text_encoder(Tokens(
            text.word_table(ids.values) + text.text_places[:ids.values.shape[1]], ids.mask))
        found = method.encode(batch)
        torch.testing.assert_close(found["text"]["words"], said.values, atol=1e-5, rtol=0)
        if name == "aligned":  # one patch each: what the picture tower says
            seen = picture.image(rows["image_pixels"].float() / 255)
            head = picture.image_head(found["image"]["patches"][:, 0])
            torch.testing.assert_close(head / head.norm(dim=1, keepdim=True), seen, atol=1e-5,
                                       rtol=0)
    prompter = load_two_towers(7, 1.0).state_dict()
    assert all(torch.equal(x, prompter[name]) for name, x in method.prompter.state_dict().items())


def test_four_patches_of_the_stem_become_one_at_its_place(tiny):
    rows = tiny.tables["corners"].select(range(3))
    found = with_patches(rows, 2)["image_tokens"].values.view(3, 4, 4, 4, 64)
    fine = load_two_towers(2).patches(rows["image_pixels"].float() / 255).view(3, 8, 8, 64)
    for y in range(4):
        for x in range(4):
            for k in range(4):
                torch.testing.assert_close(found[:, y, x, k],
                                           fine[:, 2 * y + k // 2, 2 * x + k % 2])


def test_the_null_turns_captions_in_training_and_the_prompters_pictures_everywhere(tiny):
    splits = arms(tiny)["prompted"].data(100)
    turned = claims_file.dealt_anew(splits, 3)
    for a, b, told in zip(splits, turned, (False, False, True)):
        same = [x == y for x, y in zip(a["text"], b["text"])]
        assert all(same) if told else not any(same)
        assert torch.equal(a["image_tokens"].values, b["image_tokens"].values)
        assert not (a["image_pixels"] == b["image_pixels"]).flatten(1).all(1).any()
        assert torch.equal(a["nouns"], b["nouns"])


def test_a_crop_shows_the_plate_of_which_it_has_most_and_corners_are_whole(tiny):
    splits = arms(tiny)["prompted"].data(100)
    rows, method = splits.test, arms(tiny)["prompted"].build(splits).eval()
    crops = claims_file.crops_named(method, rows)
    for i in range(len(rows)):
        top, left, height, width = (crops["boxes"][i] / 4).tolist()
        most, noun = 0.0, -1
        for corner in range(4):
            x0, y0, x1, y1 = rows["boxes"][i, corner].tolist()
            part = max(0, min(x1, left + width) - max(x0, left)) * max(
                0, min(y1, top + height) - max(y0, top))
            if part > most:
                most, noun = part, int(rows["nouns"][i, corner])
        assert noun == crops["shown"][i]
    z, noun = claims_file.unnamed_corners(method, rows)
    assert len(z) == len(noun) == int((rows["nouns"] >= 0).sum()) - len(rows)
    assert (noun >= 0).all()


def test_every_claim_on_composed_pictures_can_be_measured(tiny):
    found = claims_file.claims(tiny, "tiny")
    runs = Runs(found)
    for claim in found:
        for null in (False, True):
            assert all(0 <= x <= 1 for x in runs.figures(claim, 100, null).values())
        base = runs.trained(claim, 100)[claim.baseline]
        assert all(0 <= c.measure(base) <= 1 for c in claim.conditions)


def test_each_item_asks_once_and_both_ways_count(tiny):
    splits = arms(tiny)["fused"].data(100)
    rows = claims_file.asking(splits.test)
    assert len(rows) == len(rows.item.unique()) == 8

    class Known(torch.nn.Module):  # scores that are right for all texts, and for one picture
        def score(self, query, gallery):
            return torch.eye(8) + 10 * (torch.arange(8) == 3)[:, None]

        def eval(self):
            return self

        def collate(self, rows, generator):
            return {"text_ids": 0, "image_tokens": 0}

        def encode(self, batch):
            z = torch.zeros(8, 1)
            return {"image": z, "text": z}

        def parameters(self, recurse=True):
            return iter([torch.zeros(1)])

    assert claims_file.found(Known(), splits.test)["hit@1"] == pytest.approx((1 + 1 / 8) / 2)


