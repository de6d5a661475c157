"""An audio tower made of a picture tower, against slow loops written from the equations."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import with_tones

from alignkit.claims import vip_ant as claims
from alignkit.data import Pairs, Tokens
from alignkit.data.objects import objects
from alignkit.data.two_phrases import PLATES, captions, said, split_said, two_phrases
from alignkit.data.heard import VOICES
from alignkit.methods.vip_ant import (
    VipAnt, VipAntSettings, audio_loss, curated, hidden, picture_tower, window,
)  # fmt: skip
from alignkit.parts import info_nce, unit
from alignkit.parts.audio_tower import AudioTower, inside, one_channel, stretched
from alignkit.parts.two_towers import TwoTowers, TwoTowersSettings, load_two_towers
from alignkit.training import Budget, fit

SMALL = TwoTowersSettings(width=8, heads=2, shared=6)
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def toy_pairs(some: Pairs) -> Pairs:
    """For the tests of all papers (toys.py)."""
    return with_tones(some)


def pairs(n: int = 6) -> Pairs:
    mask = torch.arange(20) < torch.randint(9, 21, (n, 1), generator=torch.Generator())
    return Pairs.from_features({
        "speech_tokens": Tokens(rows(n, 20, 5).float() * mask[..., None], mask),
        "image_features": rows(n, 6, seed=1).float(), "text_features": rows(n, 6, seed=2).float()})


def made(plan=(("image", None),), **changes) -> VipAnt:
    torch.manual_seed(0)
    return VipAnt(VipAntSettings(plan=plan, picture=SMALL, frames=24, **changes), pairs())


# The loss -----------------------------------------------------------------------------
def loop_loss(a, targets, scale):
    """CE of rows + CE of columns; rows with equal targets share the right answer."""
    n, total = len(a), 0.0
    same = [[all(targets[i] == targets[j]) for j in range(n)] for i in range(n)]
    s = [[scale * sum(x * y for x, y in zip(a[i], targets[j], strict=True))
          for j in range(n)] for i in range(n)]
    for i in range(n):
        right = [j for j in range(n) if same[i][j]]
        row = sum(s[i][j].exp() for j in range(n)).log()
        column = sum(s[j][i].exp() for j in range(n)).log()
        for j in right:
            total = total + (row - s[i][j] + column - s[j][i]) / len(right) / n
    return total


@pytest.mark.parametrize("twice", [False, True])
def test_loss_and_gradient_are_the_equations(twice):
    x, targets = rows(5, 4).requires_grad_(), unit(rows(5, 4, seed=3))
    w = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    if twice:
        targets[3] = targets[1]
    found = []
    for loss in (audio_loss(unit(x), targets, w.exp()), loop_loss(unit(x), targets, w.exp())):
        found.append([loss.detach(), *torch.autograd.grad(loss, (x, w))])
    for fast, slow in zip(*found, strict=True):
        assert (fast - slow).abs().max() < 1e-9


def test_the_loss_is_twice_clips_and_zero_for_one_row():
    a, v = unit(rows(7, 4)), unit(rows(7, 4, seed=1))
    assert torch.equal(audio_loss(a, v, 9.0), 2 * info_nce(a, v, 9.0))
    x = rows(1, 4).requires_grad_()
    loss = audio_loss(unit(x), v[:1], 9.0)
    loss.backward()
    assert loss == 0 and not x.grad.any()


# The tower ----------------------------------------------------------------------------
def test_the_kernels_mean_gives_a_third_of_three_equal_colours():
    conv = nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False).double()
    x = rows(2, 1, 9, 12)
    with torch.no_grad():
        assert (3 * one_channel(conv).double()(x) - conv(x.expand(-1, 3, -1, -1))
                ).abs().max() < 1e-6


def test_places_are_stretched_as_a_slow_loop_does():
    places, (h, w) = rows(1 + 9, 4), (2, 7)
    found = stretched(places, (h, w))
    assert torch.equal(found[0], places[0]) and found.shape == (1 + h * w, 4)
    assert torch.equal(stretched(places, (3, 3)), places)
    for i in range(h):
        for j in range(w):  # the middle of each new place, on the old square
            y = min(max((i + 0.5) * 3 / h - 0.5, 0), 2)
            x = min(max((j + 0.5) * 3 / w - 0.5, 0), 2)
            slow = 0
            for r in range(3):
                for c in range(3):
                    slow = slow + (max(0, 1 - abs(y - r)) * max(0, 1 - abs(x - c))
                                   * places[1 + 3 * r + c])
            assert (found[1 + w * i + j] - slow).abs().max() < 1e-12


def test_it_begins_as_the_picture_tower():
    """On a square spectrogram with the picture's stride it is that tower for a grey picture,
    with a kernel three times as large."""
    picture = load_two_towers(0, 1.0)
    tower = AudioTower(picture, 64, 64, (2, 2))
    x = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tower.stem[0].weight *= 3
        seen = picture.image(x.expand(-1, 3, -1, -1))
        assert (unit(tower(2 * x - 1)) - seen).abs().max() < 1e-5
    assert all(p.requires_grad for p in tower.parameters())
    assert not any(p.requires_grad for p in picture.parameters())


def test_a_finer_stride_gives_more_places():
    towers = load_two_towers(0)
    assert len(AudioTower(towers, 32, 64, (2, 2)).places) == 1 + 2 * 4
    assert len(AudioTower(towers, 32, 64, (2, 1)).places) == 1 + 2 * 8
    with pytest.raises(ValueError, match=r"at most \(32, 64\), got \(32, 65\)"):
        AudioTower(towers, 32, 64, (2, 1))(torch.zeros(1, 1, 32, 65))
    with pytest.raises(TypeError, match="got Linear"):
        inside(nn.Linear(2, 2))


def test_a_clip_tower_listens_too():
    shape = (("hidden_size", 16), ("intermediate_size", 32), ("num_hidden_layers", 2),
             ("num_attention_heads", 2), ("image_size", 32), ("patch_size", 8))
    settings = VipAntSettings(picture=shape)
    clip = picture_tower(settings, 6).eval()
    tower = AudioTower(clip, 32, 32, (8, 8)).eval()
    x = rows(2, 1, 32, 32).float()
    with torch.no_grad():
        tower.stem[0].weight *= 3
        seen = clip(pixel_values=x.expand(-1, 3, -1, -1)).image_embeds
        assert (tower(x) - seen).abs().max() < 1e-5
    finer = AudioTower(clip, 32, 50, (6, 4))
    assert len(finer.places) == 1 + 5 * 11  # (32 - 8) // 6 + 1, (50 - 8) // 4 + 1
    method = VipAnt(replace(settings, frames=24, stride=(6, 4)), pairs())
    history = fit(method, pairs(), Budget(steps=3, batch_size=4))
    assert all(math.isfinite(x) for x in history.curve())


# The method ---------------------------------------------------------------------------
def test_training_changes_no_score_of_pictures_and_texts():
    method, batch = made((("image", 2), ("text", 2))), pairs()
    before = [method.encode(batch.batch())[k] for k in ("image", "text")]
    first = method.tower.first.detach().clone()
    history = fit(method, batch, Budget(steps=2, batch_size=4, lr=1e-2))
    after = [method.encode(batch.batch())[k] for k in ("image", "text")]
    assert torch.equal(method.score(*before), method.score(*after))
    assert not torch.equal(first, method.tower.first)
    assert [row["stage"] for row in history.steps] == ["images"] * 2 + ["texts"] * 2
    assert all(("image_loss" in r) == (r["stage"] == "images") for r in history.steps)


def test_rows_without_a_caption_do_not_train_on_one():
    method = made((("text", None),))
    few = pairs().with_present("text_features", torch.arange(6) < 2)
    assert method.view(few, "text").ids == ["0", "1"]
    assert [*method.view(few, "text").columns] == ["speech_tokens", "text_features"]


def test_zeros_before_the_normalisation_and_masks_in_training_alone():
    method, data = made(mask=(3, 8)).eval(), pairs()
    g = torch.Generator().manual_seed(0)
    values, real = data["speech_tokens"]
    x = method.collate(data, g)["speech_tokens_seen"]
    assert x.shape == (6, 1, 5, 24)
    assert torch.allclose(x[..., 20:], -method.mean / method.deviation)
    heard = x[:, 0, :, :20].transpose(1, 2)[real] * method.deviation + method.mean
    assert torch.allclose(heard, values[real], atol=1e-5)
    assert torch.equal(x, method.collate(data, g)["speech_tokens_seen"])
    hid = method.train().collate(data, g)["speech_tokens_seen"]
    assert (hid == 0).any() and torch.equal(hid[hid != 0], x[hid != 0])


def test_masks_hide_neighbours():
    x = torch.ones(200, 1, 6, 9)
    for axis, most in ((2, 4), (3, 5)):
        gone = (hidden(x, most, axis, torch.Generator().manual_seed(0)) == 0)
        lines = gone.amax((1, 5 - axis))
        assert set(lines.sum(1).tolist()) == set(range(most + 1))
        for line in lines[lines.sum(1) > 1]:
            at = line.nonzero()[:, 0]
            assert at[-1] - at[0] + 1 == len(at)


def test_a_window_is_drawn_and_leaves_silence():
    sound = 0.01 * rows(30, 2).float()
    sound[:10] = rows(10, 2, seed=1).float()
    assert window(sound, 40, None) is sound
    draws = [window(sound, 8, torch.Generator().manual_seed(seed)) for seed in range(40)]
    assert all(len(part) == 8 and part.std() >= sound.std() / 2 for part in draws)
    assert len({float(part.sum()) for part in draws}) > 3  # not the first ones alone
    assert torch.equal(window(sound, 8, None), sound[:8])  # the middle is silent
    assert torch.equal(window(sound[:10], 8, None), sound[1:9])
    late = sound.flip(0)
    late[:8] = 0  # the first ones are more silent than the middle
    assert torch.equal(window(late, 8, None), late[-8:])


def test_curated_captions_are_the_nearest():
    pictures, texts = unit(rows(4, 5)), unit(rows(9, 5, seed=1))
    found = curated(pictures, texts, 3)
    for i in range(4):
        order = sorted(range(9), key=lambda j, i=i: -float(pictures[i] @ texts[j]))
        assert found[i].tolist() == order[:3]
    with pytest.raises(ValueError, match="between 1 and 9"):
        curated(pictures, texts, 10)


def test_what_does_not_fit_is_refused():
    for plan in ((), (("sound", 3),)):
        with pytest.raises(ValueError, match="must name 'image' or 'text'"):
            VipAntSettings(plan=plan)


# The corpus ---------------------------------------------------------------------------
def phrases(nouns: int) -> Tokens:
    """Frames that tell voice and phrase: numbers, one to three frames a phrase."""
    n = len(VOICES) * (nouns + len(PLATES))
    values = torch.arange(1.0, n + 1)[:, None, None].expand(n, 3, 2).clone()
    mask = torch.arange(3) < (1 + torch.arange(n) % 3)[:, None]
    return Tokens(values * mask[..., None], mask)


def test_a_caption_is_its_two_phrases_in_its_voice():
    table, nouns = phrases(4), 4
    voice, caption = torch.tensor([0, 15, 3]), torch.tensor([0, 47, 13])
    values, mask = said(table, voice, caption, slot=4)
    for row, (v, c) in enumerate(zip(voice.tolist(), caption.tolist(), strict=True)):
        first = v * (nouns + len(PLATES)) + c // len(PLATES)
        second = v * (nouns + len(PLATES)) + nouns + c % len(PLATES)
        slow = [first + 1] * (1 + first % 3)
        slow += [1] * (4 - len(slow))  # the smallest number stands for silence
        slow += [second + 1] * (1 + second % 3)
        assert values[row, mask[row], 0].tolist() == slow
    with pytest.raises(ValueError, match="slot is 2 frames"):
        said(table, torch.tensor([0]), torch.tensor([2 * len(PLATES)]), slot=2)


def test_no_voice_and_no_caption_is_on_two_sides():
    nouns = ["dog", "cat", "bee", "owl"]
    shown = objects(30, nouns=nouns, corpus_seed=5)
    parts = split_said(shown, phrases(4), seed=1, each=2)
    known = captions([k for k in shown.label_names["noun"] if k in nouns])
    for name in ("voice", "caption"):
        sets = [set(part.labels[name].tolist()) for part in parts]
        assert all(sets) and not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    for part in parts:
        assert [known[c] for c in part.labels["caption"].tolist()] == part["text"]
        assert torch.equal(part["speech_tokens"].values, said(
            phrases(4), part.labels["voice"], part.labels["caption"]).values)
    train, test = parts.train, parts.test
    assert len(train) == 2 * len(set(train.ids)) and len(test) == 3 * len(set(test.ids))
    assert len(set(test.ids)) == len(test.labels["caption"].unique())
    with pytest.raises(ValueError, match="sum to 16"):
        split_said(shown, phrases(4), 0, voices=(8, 3, 3))
    with pytest.raises(ValueError, match="show 4 nouns and the phrases have 5"):
        split_said(shown, phrases(5), 0)


def test_phrases_are_said_by_every_voice():
    found = two_phrases(["owl", "dog", "bee", "cat"])
    assert len(found) == 16 * (4 + 12) and found["text_heard"][:4] == [
        "an owl", "a dog", "a bee", "a cat"]
    assert found["text_heard"][4] == "on a red disc"


def test_the_claims_arms_have_what_they_say():
    data = claims.data("tiny")
    found = {c.name: c for c in claims.claims(data, "tiny")}
    arms = found["few-gold"].arms | found["curated"].arms
    gold, both = arms["gold@16"].data(7).train, arms["both@16"].data(7).train
    have = gold.present["text_features"]
    assert int(have.sum()) == 16 == len(gold.labels["caption"][have].unique())
    assert torch.equal(have, both.present["text_features"])
    near, drawn = arms["curated"].data(7).train, arms["any-caption"].data(7).train
    z = unit(near["image_features"])
    close, far = ((z * unit(part["text_features"])).sum(1).mean() for part in (near, drawn))
    assert close > far + 0.2
    with pytest.raises(ValueError, match="--pairs FOLDER"):
        claims.data("gpu")
