"""Attention blocks against loops; padding, order and causality."""

import math
import warnings

import pytest
import torch

from alignkit.data import Tokens
from alignkit.parts import (
    AttentionPooling, CrossAttention, TokenEmbedding, TransformerDecoder,
    TransformerEncoder,
)  # fmt: skip

WIDTH = 8


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def tokens(n, t, seed=0) -> Tokens:
    """Rows of n, n - 1, … real tokens (at least 1), then padding."""
    lengths = (t - torch.arange(n)).clamp_min(1)
    return Tokens(randn(n, t, WIDTH, seed=seed), torch.arange(t) < lengths[:, None])


def make(kind, **options):
    torch.manual_seed(0)
    block = kind(WIDTH, heads=2, **options).double()
    with torch.no_grad():  # away from the zeros and ones of the start
        for parameter in block.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return block


MEMORY = tokens(4, 6, seed=5)
BLOCKS = {
    "pooling": lambda block=make(AttentionPooling): lambda x, memory: block(x),
    "encoder": lambda block=make(TransformerEncoder): lambda x, memory: block(x),
    "cross": lambda block=make(CrossAttention): block,
    "decoder": lambda block=make(TransformerDecoder): block,
    "queries": lambda block=make(TransformerDecoder, causal=False): block,
}
BLOCKS = {name: get() for name, get in BLOCKS.items()}


def values(output):
    return output.values if isinstance(output, Tokens) else output


# Attention as a loop ------------------------------------------------------------------
def loop_attention(layer, queries, seen, visible):
    """softmax_j(q_i·k_j / √width of a head) v_j over the visible j, head by head."""
    w_q, w_k, w_v = layer.in_proj_weight.chunk(3)
    b_q, b_k, b_v = layer.in_proj_bias.chunk(3)
    size, rows = WIDTH // layer.num_heads, []
    for i, query in enumerate(queries):
        heads = []
        for h in range(layer.num_heads):
            part = slice(h * size, (h + 1) * size)
            q = (w_q @ query + b_q)[part]
            logits = [(q @ (w_k @ x + b_k)[part]).item() / math.sqrt(size) for x in seen]
            powers = [math.exp(z) * bool(visible[i][j]) for j, z in enumerate(logits)]
            heads.append(sum(p / sum(powers) * (w_v @ x + b_v)[part]
                             for p, x in zip(powers, seen, strict=True)))
        rows.append(layer.out_proj(torch.cat(heads)))
    return torch.stack(rows)


def sees(mask, t):
    return mask[None].expand(t, -1)


def feed(layer, x):
    return layer.linear2(torch.nn.functional.gelu(layer.linear1(x)))


def loop_encoder(block, x, mask):
    for layer in block.layers:
        normed = layer.norm1(x)
        x = x + loop_attention(layer.self_attn, normed, normed, sees(mask, len(x)))
        x = x + feed(layer, layer.norm2(x))
    return block.norm(x)


def loop_decoder(block, x, mask, memory, real):
    causal = torch.ones(len(x), len(x)).tril().bool() & mask
    for layer in block.layers:
        normed = layer.norm1(x)
        x = x + loop_attention(layer.self_attn, normed, normed, causal)
        x = x + loop_attention(layer.multihead_attn, layer.norm2(x), memory,
                               sees(real, len(x)))
        x = x + feed(layer, layer.norm3(x))
    return block.norm(x)


def loop_cross(block, x, mask, memory, real):
    seen = block.norm_memory(memory)
    x = x + loop_attention(block.attention, block.norm_x(x), seen, sees(real, len(x)))
    return x + block.mlp(block.norm_mlp(x))


def loop_pooling(block, x, mask):
    seen = block.norm(x)
    return loop_attention(block.attention, block.query[0], seen, sees(mask, 1))[0]


LOOPS = {
    "pooling": (make(AttentionPooling), loop_pooling),
    "encoder": (make(TransformerEncoder), loop_encoder),
    "cross": (make(CrossAttention), loop_cross),
    "decoder": (make(TransformerDecoder), loop_decoder),
}


@pytest.mark.parametrize("block, slow", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("training", [True, False])  # torch has a fast path for eval
def test_blocks_are_the_loop(block, slow, training):
    block.train(training)
    x = tokens(4, 5)
    both = (MEMORY,) if block.__class__ in (CrossAttention, TransformerDecoder) else ()
    with torch.set_grad_enabled(training):
        found = values(block(x, *both))
        for i in range(4):
            wanted = slow(block, x.values[i], x.mask[i], *(side[i] for m in both for side in m))
            if wanted.dim() == 2:
                assert not found[i][~x.mask[i]].any()
                wanted, row = wanted[x.mask[i]], found[i][x.mask[i]]
            else:
                row = found[i]
            assert torch.allclose(row, wanted, rtol=1e-9, atol=1e-12)


# Masks and order ----------------------------------------------------------------------
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("dirt", [1e6, math.inf, math.nan])
def test_padding_changes_nothing(block, dirt):
    x = tokens(4, 5)
    dirty = [Tokens(torch.where(t.mask[..., None], t.values, dirt), t.mask)
             for t in (x, MEMORY)]
    longer = [Tokens(torch.nn.functional.pad(t.values, (0, 0, 0, 2), value=3.0),
                     torch.nn.functional.pad(t.mask, (0, 2))) for t in (x, MEMORY)]
    plain = values(block(x, MEMORY))
    assert torch.equal(values(block(*dirty)), plain)
    cut = values(block(*longer))
    cut = cut[:, :5] if cut.dim() == 3 else cut
    assert torch.allclose(cut, plain, rtol=1e-9, atol=1e-12)
    for i in range(4):  # a row alone, without padding
        alone = [Tokens(t.values[i:i + 1][:, t.mask[i]], t.mask[i:i + 1][:, t.mask[i]])
                 for t in (x, MEMORY)]
        row = plain[i][x.mask[i]] if plain.dim() == 3 else plain[i]
        assert torch.allclose(values(block(*alone))[0], row, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", BLOCKS)
def test_order_of_tokens(name):
    full = Tokens(randn(4, 5, WIDTH), torch.ones(4, 5).bool())
    turn, turn_memory = torch.tensor([3, 0, 4, 2, 1]), torch.tensor([5, 2, 0, 1, 4, 3])
    plain = values(BLOCKS[name](full, MEMORY))
    moved = Tokens(MEMORY.values[:, turn_memory], MEMORY.mask[:, turn_memory])
    assert torch.allclose(values(BLOCKS[name](full, moved)), plain, rtol=1e-9, atol=1e-12)
    turned = values(BLOCKS[name](Tokens(full.values[:, turn], full.mask), MEMORY))
    if name == "decoder":  # only a causal one knows the order
        assert not torch.allclose(turned, plain[:, turn], rtol=1e-3)
    else:
        wanted = plain if plain.dim() == 2 else plain[:, turn]
        assert torch.allclose(turned, wanted, rtol=1e-9, atol=1e-12)


def test_a_causal_decoder_does_not_see_what_comes():
    x = Tokens(randn(4, 5, WIDTH), torch.ones(4, 5).bool())
    changed = x.values.clone()
    changed[:, 3:] += randn(4, 2, WIDTH, seed=1)
    for name, blind in (("decoder", True), ("queries", False)):
        before, after = (values(BLOCKS[name](Tokens(v, x.mask), MEMORY))
                         for v in (x.values, changed))
        assert torch.equal(before[:, :3], after[:, :3]) is blind
        assert not torch.allclose(before[:, 3:], after[:, 3:])


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_gradients_of_the_blocks(block):
    x, memory = tokens(2, 3), tokens(2, 3, seed=1)

    def run(a, b):
        return values(block(Tokens(a, x.mask), Tokens(b, memory.mask)))

    a, b = x.values.requires_grad_(), memory.values.requires_grad_()
    assert torch.autograd.gradcheck(run, (a, b))
    for_a, for_b = torch.autograd.grad(run(a, b).square().sum(), (a, b), allow_unused=True)
    assert not for_a[~x.mask].any() and for_a[x.mask].any()
    assert for_b is None or not for_b[~memory.mask].any() and for_b[memory.mask].any()


def test_layers_start_different_and_say_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        blocks = [TransformerEncoder(WIDTH, heads=2), TransformerDecoder(WIDTH, heads=2)]
    for block in blocks:
        first, second = (layer.linear1.weight for layer in block.layers)
        assert not torch.equal(first, second)


@pytest.mark.parametrize("call, message", [
    (lambda x, e: BLOCKS["encoder"](Tokens(x.values, x.mask & False), x),
     "tokens has 4 rows without a real token"),
    (lambda x, e: BLOCKS["cross"](x, Tokens(x.values, x.mask & False)), "memory has 4 rows"),
    (lambda x, e: BLOCKS["pooling"](Tokens(x.values, x.mask.long()), x), "tokens must be"),
    (lambda x, e: BLOCKS["decoder"](Tokens(x.values, x.mask.flip(1)), x), "pad on the right"),
    (lambda x, e: e(Tokens(torch.zeros(2, 4).long(), torch.ones(2, 4).bool())),
     "tokens have 4 places, the embedding 3"),
])
def test_blocks_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call(tokens(4, 5), TokenEmbedding(7, WIDTH, 3))


def test_embedding_is_id_plus_place():
    embed = TokenEmbedding(7, WIDTH, 3)
    ids, mask = torch.tensor([[4, 4, 0]]), torch.tensor([[True, True, False]])
    found = embed(Tokens(ids, mask)).values[0]
    for place in range(2):
        assert torch.equal(found[place], embed.ids.weight[4] + embed.places.weight[place])
    assert not found[2].any()
