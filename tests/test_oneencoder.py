"""OneEncoder against a slow loop written from the equations; what docking leaves as it
was; its splits, docks and exercises."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from toys import with_tones

from alignkit.claims import oneencoder as claims
from alignkit.data import Pairs, Tokens
from alignkit.evaluation import encode_pairs
from alignkit.methods.oneencoder import (
    FUSIONS, OneEncoder, OneEncoderSettings, _Universal,
)  # fmt: skip
from alignkit.training import Budget, fit

COLUMNS = {"image": 5, "text": 4, "speech": 3}  # widths of the encoders


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def tokens(n: int, t: int, d: int, seed: int = 0) -> Tokens:
    """Row k has 1 + k mod t tokens; what stands at padding must not matter."""
    mask = torch.arange(t) < 1 + torch.arange(n)[:, None] % t
    return Tokens(rows(n, t, d, seed=seed), mask)


def pairs(n: int = 6, t: int = 3) -> Pairs:
    return Pairs.from_features({f"{name}_tokens": tokens(n, t, d, k)
                                for k, (name, d) in enumerate(COLUMNS.items())})


def toy_pairs(some: Pairs) -> Pairs:
    """For the tests of all papers (toys.py)."""
    return with_tones(some)


def toy_features(some: Pairs) -> Pairs:
    """And tokens of it that know something of the text's."""
    values, mask = some["text_tokens"]
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(1))
    return toy_pairs(some).with_features(speech_tokens=Tokens(
        (values.flip(2) + 0.3 * noise) * mask[..., None], mask))


def made(rows_: Pairs | None = None, **changes) -> OneEncoder:
    """In double precision, with norms and biases off their neutral start."""
    torch.manual_seed(0)
    settings = OneEncoderSettings(docks={"speech": "speech_tokens"},
                                  **{"width": 8, "ffn": 6, "heads": 2} | changes)
    method = OneEncoder(settings, rows_ or pairs()).double()
    with torch.no_grad():
        for k, p in enumerate(method.parameters()):
            p += 0.1 * rows(p.numel(), seed=10 + k).view(p.shape)
    return method


# The equations, one number at a time ---------------------------------------------------
def linear(layer, x: list) -> list:
    return [sum(layer.weight[i, k] * x[k] for k in range(len(x))) + layer.bias[i]
            for i in range(len(layer.weight))]


def norm(layer: nn.LayerNorm, x: list) -> list:
    mean = sum(x) / len(x)
    variance = sum((one - mean) ** 2 for one in x) / len(x)
    return [layer.weight[k] * (one - mean) / (variance + layer.eps).sqrt() + layer.bias[k]
            for k, one in enumerate(x)]


def relu(x: list) -> list:
    return [one * (one > 0) for one in x]


def plus(x: list, y: list) -> list:
    return [a + b for a, b in zip(x, y, strict=True)]


def dot(x: list, y: list):
    return sum(a * b for a, b in zip(x, y, strict=True))


def softmax(x: list) -> list:
    exps = [one.exp() for one in x]
    return [one / sum(exps) for one in exps]


def weighed(weights: list, values: list) -> list:
    return [sum(w * value[k] for w, value in zip(weights, values, strict=True))
            for k in range(len(values[0]))]


def loop_align(layers: nn.Sequential, x: list) -> list:
    hidden = [one * (1 + torch.erf(one / 2**0.5)) / 2 for one in linear(layers[0], x)]
    return norm(layers[4], linear(layers[2], hidden))


def loop_token(part, name: str) -> list[list]:
    mlp = part.project
    return [norm(mlp[5], linear(mlp[4], relu(linear(mlp[2], relu(linear(mlp[0], list(row)))))))
            for row in part.tokens[name]]


def loop_attention(attention: nn.MultiheadAttention, xs: list) -> list:
    d, heads = len(xs[0]), attention.num_heads
    w, b = attention.in_proj_weight, attention.in_proj_bias

    def projected(x, part):
        return [dot(list(w[part * d + i]), x) + b[part * d + i] for i in range(d)]

    q, k, v = ([projected(x, part) for x in xs] for part in range(3))
    found = []
    for i in range(len(xs)):
        joined = []
        for h in range(heads):
            of = slice(h * d // heads, (h + 1) * d // heads)
            weights = softmax([dot(q[i][of], k[j][of]) / (d / heads) ** 0.5
                               for j in range(len(xs))])
            joined += weighed(weights, [one[of] for one in v])
        found.append(linear(attention.out_proj, joined))
    return found


def loop_fused(up: _Universal, xs: list, m: list) -> list:
    if up.fusion == "addition":
        return [plus(x, m[0]) for x in xs]
    if up.fusion == "multiplication":
        return [[a * b for a, b in zip(x, m[0], strict=True)] for x in xs]
    if up.fusion == "concatenation":
        return m + xs
    if up.fusion == "attention":
        query, d = linear(up.query, m[0]), len(m[0])
        weights = softmax([dot(query, linear(up.key, x)) / d**0.5 for x in xs])
        context = weighed(weights, [linear(up.value, x) for x in xs])
        return [plus(x, context) for x in xs]
    return xs


def loop_up(up: _Universal, xs: list, m: list) -> list:
    layer, us = up.layer, loop_fused(up, xs, m)
    x = [norm(up.norm, u) for u in us]
    x = [norm(layer.norm1, plus(a, b)) for a, b in zip(x, loop_attention(layer.self_attn, x))]
    x = [norm(layer.norm2, plus(a, linear(layer.linear2, relu(linear(layer.linear1, a)))))
         for a in x]
    out = [plus(a, u) for a, u in zip(x, us)]
    out = out[len(m):] if up.fusion == "concatenation" else out
    return [sum(one[k] for one in out) / len(out) for k in range(len(out[0]))]


def loop_loss(method: OneEncoder, batch: dict, name: str) -> torch.Tensor:
    """½ [CE(rows of e^2.5 · a bᵀ) + CE(columns)] of a modality and the texts."""
    def embeddings(which):
        own = method.docked[which] if which in method.docked else method.first
        m = loop_token(own["tokens"], which) if "tokens" in own else []
        for values, mask in zip(*batch[f"{which}_tokens"], strict=True):
            xs = [loop_align(own["align"][which], list(x)) for x in values[mask]]
            z = loop_up((own if "universal" in own else method.first)["universal"], xs, m)
            yield [one / dot(z, z).sqrt() for one in z]

    n = len(batch["item"])
    a, b = (list(embeddings(which)) for which in (name, "text"))
    s = [[math.exp(2.5) * dot(a[i], b[j]) for j in range(n)] for i in range(n)]
    total = 0.0
    for i in range(n):
        total = total - s[i][i] + sum(s[i][j].exp() for j in range(n)).log() / 2
        total = total + sum(s[j][i].exp() for j in range(n)).log() / 2
    return total / n


@pytest.mark.parametrize(("name", "dock", "fusion"), [
    ("image", "frozen", "attention"), ("speech", "fresh", "addition"), *(
        pytest.param(*names, marks=pytest.mark.slow) for names in (
            *(("image", "frozen", fusion) for fusion in FUSIONS if fusion != "attention"),
            ("speech", "frozen", "addition")))])
def test_the_loss_equals_a_slow_loop_in_value_and_gradient(monkeypatch, name, dock, fusion):
    monkeypatch.setattr("alignkit.methods.oneencoder.IN_FRONT", 2)  # 15 take a minute
    some = pairs(3, 2)
    method = made(some, fusion=fusion, dock=dock, width=4, ffn=3).eval()
    batch = some.batch()
    found = method(batch)[f"{name}_loss"]
    wanted = loop_loss(method, batch, name)
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)
    learned = [p for p in method.parameters()]
    ours, theirs = (torch.autograd.grad(loss, learned, allow_unused=True)
                    for loss in (found, wanted))
    for p, q in zip(ours, theirs, strict=True):
        assert (p is None) == (q is None)
        if p is not None:
            torch.testing.assert_close(p, q, atol=1e-9, rtol=1e-7)


# What must hold exactly ----------------------------------------------------------------
def bits(method: OneEncoder, some: Pairs) -> dict:
    return encode_pairs(method, some, ("image", "text"))


def single(some: Pairs) -> Pairs:
    return Pairs.from_features({name: Tokens(column.values.float(), column.mask)
                                for name, column in some.columns.items()})


@pytest.mark.parametrize("dock", ["frozen", "fresh", "linear", "tuned"])
def test_docking_changes_no_bit_unless_step_1_is_tuned(dock):
    some = single(pairs(40))
    method = made(some, dock=dock, aligned=True).float()
    before, started = bits(method, some), {k: v.clone() for k, v in method.state_dict().items()}
    fit(method, some, Budget(steps=4, batch_size=16), seed=1)
    after, same = bits(method, some), dock != "tuned"
    for name in before:
        assert torch.equal(before[name], after[name]) == same
    moved = {k.split(".")[0] for k, v in method.state_dict().items()
             if not torch.equal(v, started[k])}
    assert moved == ({"docked"} if same else {"docked", "first"})


def test_step_1_leaves_what_will_dock_as_it_was_and_step_2_goes_through_the_projection():
    some = single(pairs(40))
    some = some.with_present("speech_tokens", torch.arange(40) < 20)
    method = made(some).float()
    names = [(stage.name, sorted(stage.view(some).columns), len(stage.view(some)))
             for stage in method.stages()]
    assert names == [("align", ["image_tokens", "text_tokens"], 40),
                     ("dock speech", ["speech_tokens", "text_tokens"], 20)]
    history = fit(method, some, Budget(steps=3, batch_size=16), seed=1)
    assert [set(row) & {"image_loss", "speech_loss"} for row in history.steps] == (
        [{"image_loss"}] * 3 + [{"speech_loss"}] * 3)
    for p in method.first.parameters():
        p.requires_grad_(False)
    method.train()
    batch = some.select(range(20)).only("text_tokens", "speech_tokens").batch()
    sum(method(batch).values()).backward()
    assert all(p.grad is not None for p in method.docked.parameters())
    assert all(p.grad is None for p in method.first.parameters())


def test_what_is_frozen_has_no_dropout():
    some = single(pairs(8))
    method = made(some, dropout=0.5).float()
    method.train()
    assert all(module.training for module in method.modules())
    for p in method.first.parameters():
        p.requires_grad_(False)
    method.train()
    assert not any(module.training for module in method.first.modules())
    assert all(module.training for module in method.docked.modules())
    one, two = (method.encode(some.batch()) for _ in range(2))
    assert torch.equal(one["text"], two["text"])
    assert not torch.equal(one["speech"], two["speech"])


def test_the_scale_is_a_constant_and_a_silent_layer_leaves_the_mean():
    method = made()
    assert float(method.temperature()) == pytest.approx(math.exp(2.5))
    assert "temperature.log_scale" not in dict(method.named_parameters())
    up = _Universal(8, 2, 6).double().eval()
    with torch.no_grad():
        up.layer.norm2.weight.zero_(), up.layer.norm2.bias.zero_()
    x = tokens(5, 3, 8)
    mean = torch.stack([v[k].mean(0) for v, k in zip(*x, strict=True)])
    torch.testing.assert_close(up(x, torch.zeros(1, 8).double()), mean)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_order_and_padding_of_tokens_do_not_matter(fusion):
    method, some = made(fusion=fusion).eval(), pairs()
    values, mask = some["image_tokens"]
    z = method.embed("image", some["image_tokens"])
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(method.embed("image", Tokens(values[:, order],
                                                            mask[:, order])), z)
    noisy = torch.where(mask[..., None], values, 1e3)
    more = nn.functional.pad(noisy, (0, 0, 0, 4), value=7.0)
    torch.testing.assert_close(method.embed(
        "image", Tokens(more, nn.functional.pad(mask, (0, 4)))), z)


def test_a_video_docks_after_a_sound_and_moves_nothing():
    some = single(pairs(24))
    video = tokens(24, 4, 6, 9)
    some = some.with_features(video_tokens=Tokens(video.values.float(), video.mask))
    docks = {"speech": "speech_tokens", "video": "video_tokens"}
    torch.manual_seed(0)
    method = OneEncoder(OneEncoderSettings(docks=docks, width=8, ffn=6, heads=2), some)
    seen = []
    fit(method, some, Budget(steps=2, batch_size=8, validate_every=2), seed=0,
        validate=lambda m: seen.append(encode_pairs(m, some, ("text", "speech"))) or {})
    assert [stage.name for stage in method.stages()] == ["align", "dock speech", "dock video"]
    assert torch.equal(seen[0]["text"], seen[2]["text"])
    assert torch.equal(seen[1]["speech"], seen[2]["speech"])


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="fusion must be one of .*'sum'"):
        OneEncoderSettings(fusion="sum")
    with pytest.raises(ValueError, match="dock one of .*'loose'"):
        OneEncoderSettings(dock="loose")
    with pytest.raises(ValueError, match="anchor must be one of towers.*'sound'"):
        OneEncoderSettings(anchor="sound")


def test_the_paper_s_sizes():
    """1.88 and 0.305 million weights, as the sheet counts them."""
    method = made(Pairs.from_features({
        f"{name}_tokens": tokens(2, 2, 768) for name in COLUMNS}),
        width=256, ffn=2048, heads=4)
    count = {part: sum(p.numel() for p in getattr(method, part).parameters())
             for part in ("first", "docked")}
    align, up, mlp = 768 * 256 + 256 + 256 * 256 + 256 + 512, 1_315_584, 42_112
    assert count == {"first": 2 * align + up + mlp + 6, "docked": align + mlp + 3}


# The claims ----------------------------------------------------------------------------
def table(n: int = 200) -> Pairs:
    some = replace(single(pairs(n)), group=torch.arange(n) // 2)
    return some.with_present("speech_tokens", torch.arange(n) < 150)


@pytest.mark.parametrize("anchor", ["text", "image"])
def test_no_row_and_no_group_has_all_three(anchor):
    parts = claims.split(table(), 5, 20, 60, anchor)
    sets = [set(part.group.tolist()) for part in parts]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    train, other = parts.train, {"text": "image", "image": "text"}[anchor]
    sound = train.present["speech_tokens"]
    assert int(sound.sum()) == 20 and torch.equal(train.present[f"{other}_tokens"], ~sound)
    assert train.present[f"{anchor}_tokens"].all()
    assert not set(train.group[sound].tolist()) & set(train.group[~sound].tolist())
    assert all(part.present["speech_tokens"].all() for part in parts[1:])
    many = claims.split(table(), 5, 60, 60, anchor).train
    aligned = [set(one.ids[k] for k in (~one.present["speech_tokens"]).nonzero()[:, 0])
               for one in (train, many)]
    assert aligned[0] == aligned[1]  # step 1 is the same whatever step 2 gets


def test_the_null_moves_the_sounds_of_step_2_alone():
    parts = claims.split(table(), 5, 20, 60)
    null = claims.docked_apart(parts, 1).train
    here = parts.train.present["speech_tokens"]
    before, after = parts.train["speech_tokens"].values, null["speech_tokens"].values
    assert torch.equal(before[~here], after[~here])
    assert not (before[here] == after[here]).flatten(1).all(1).any()
    assert sorted(before[here].flatten().tolist()) == sorted(after[here].flatten().tolist())
    assert torch.equal(parts.train["text_tokens"].values, null["text_tokens"].values)
