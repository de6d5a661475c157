"""A sound's token against a slow loop written from the equations, and its exact properties."""

import pytest
import torch
from torch import nn
from toys import with_tones

from alignkit.data import Pairs
from alignkit.evaluation import mutual_knn, outside_subspace
from alignkit.methods.sound_llava import (
    SoundSettings, SoundToken, Untrained, caption, mlp, raw_token, substitute,
)  # fmt: skip
from alignkit.parts import cosine


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def pairs(n: int = 5) -> Pairs:
    return Pairs.from_features({"image_features": rows(n, 4), "speech_features": rows(n, 3, 1)})


def toy_pairs(pairs: Pairs) -> Pairs:
    """For the tests of all papers (toys.py)."""
    return with_tones(pairs)


def made(**changes) -> SoundToken:
    torch.manual_seed(0)
    method = SoundToken(SoundSettings(hidden=6, **changes), pairs()).double()
    if method.settings.rebuild:  # as built they are in single precision
        sound = pairs()["speech_features"]
        method.mean, method.deviation = sound.mean(0), sound.std(0)
    with torch.no_grad():  # norms and biases off their neutral start
        for k, p in enumerate(method.parameters()):
            p += 0.1 * rows(p.numel(), 1, 10 + k).view(p.shape)
    return method


def loop_linear(layer: nn.Linear, x: list) -> list:
    return [sum(layer.weight[i, k] * x[k] for k in range(len(x))) + layer.bias[i]
            for i in range(len(layer.weight))]


def loop_norm(layer: nn.LayerNorm, x: list) -> list:
    mean = sum(x) / len(x)
    variance = sum((one - mean) ** 2 for one in x) / len(x)
    return [layer.weight[k] * (one - mean) / (variance + layer.eps).sqrt() + layer.bias[k]
            for k, one in enumerate(x)]


def loop_gelu(x: list) -> list:
    return [one * (1 + torch.erf(one / 2 ** 0.5)) / 2 for one in x]


def loop_mlp(head: nn.Sequential, a: torch.Tensor) -> list:
    x = list(a)
    for k in (0, 3):
        x = loop_gelu(loop_norm(head[k + 1], loop_linear(head[k], x)))
    return loop_linear(head[6], x)


def loop_loss(method: SoundToken, a, v) -> torch.Tensor:
    """½ [CE(rows of p̂ v̂ᵀ / τ) + CE(columns)] + λ mean((W₄ p − (a − mean) / deviation)²)."""
    n, scale = len(a), method.temperature.log_scale.exp()
    p = [loop_mlp(method.head, row) for row in a]

    def cos(x, y):
        def dot(x, y):
            return sum(s * t for s, t in zip(x, y, strict=True))
        return dot(x, y) / (dot(x, x).sqrt() * dot(y, y).sqrt())

    s = [[scale * cos(p[i], list(v[j])) for j in range(n)] for i in range(n)]
    total = 0.0
    for i in range(n):
        total = total - s[i][i] + sum(s[i][j].exp() for j in range(n)).log() / 2
        total = total + sum(s[j][i].exp() for j in range(n)).log() / 2
    total = total / n
    if method.settings.rebuild:
        for i in range(n):
            for k, back in enumerate(loop_linear(method.back, p[i])):
                column = [float(one) for one in pairs()["speech_features"][:, k]]
                mean = sum(column) / n
                deviation = (sum((c - mean) ** 2 for c in column) / (n - 1)) ** 0.5
                error = back - (a[i, k] - mean) / deviation
                total = total + method.settings.rebuild * error**2 / (n * a.shape[1])
    return total


@pytest.mark.parametrize("rebuild", [0.0, 0.7])
def test_loss_and_gradients_are_the_equations(rebuild):
    method, batch = made(rebuild=rebuild), pairs().batch()
    fast = sum(method(batch).values())
    slow = loop_loss(method, batch["speech_features"], batch["image_features"])
    assert abs(fast / slow - 1) < 1e-9
    weights = list(method.parameters())
    for x, y in zip(*(torch.autograd.grad(loss, weights) for loss in (fast, slow)),
                    strict=True):
        assert (x - y).norm() <= 1e-9 * (1 + y.norm())
    assert len(method(batch)) == 1 + (rebuild > 0)


def test_gradient_agrees_with_finite_differences():
    head = mlp(3, 5, 4).double()
    assert torch.autograd.gradcheck(head, rows(2, 3).requires_grad_())


# Exact properties ---------------------------------------------------------------------
def test_zeros_change_no_cosine_and_cutting_does():
    a = rows(20, 6)
    filled, cut = raw_token(a, 9), raw_token(a, 4)
    assert filled.shape == (20, 9) and torch.equal(filled[:, :6], a)
    assert not filled[:, 6:].any() and torch.equal(cut, a[:, :4])
    assert (cosine(filled, filled) - cosine(a, a)).abs().max() < 1e-12
    assert mutual_knn(filled, a, 3) == 1 > mutual_knn(cut, a, 3)
    assert (cosine(cut, cut) - cosine(a, a)).abs().max() > 0.1


def test_substitution_does_not_see_the_length_of_the_token():
    token, patches = rows(3, 5), rows(3 * 7, 5, 1).view(3, 7, 5)
    for k in (0, 2, 7):
        found, longer = substitute(token, patches, k), substitute(9.0 * token, patches, k)
        assert found.shape == (3, 1 + k, 5) and torch.equal(found[:, 0], token)
        assert torch.equal(found[:, 1:], longer[:, 1:])


def test_patches_are_the_nearest_and_all_of_them_are_the_set():
    token, patches = rows(3, 5), rows(3 * 7, 5, 1).view(3, 7, 5)
    every = substitute(token, patches, 7)[:, 1:]
    for i in range(3):
        order = sorted(range(7), key=lambda j, i=i: -float(
            cosine(token[i:i + 1], patches[i, j:j + 1])))
        assert torch.equal(every[i], patches[i, order])
        assert torch.equal(substitute(token, patches, 2)[i, 1:], patches[i, order[:2]])


def test_pictures_lie_inside_their_own_subspace():
    v = rows(12, 6)
    centred = v - v.mean(0)
    assert outside_subspace(centred, v) < 1e-7
    assert outside_subspace(centred, v, 2) > 0.1


# The method ---------------------------------------------------------------------------
def test_pictures_have_no_head_and_random_is_the_projector_as_it_starts():
    batch, settings = pairs().batch(), SoundSettings(hidden=6)
    tokens = []
    for kind in (SoundToken, Untrained):
        torch.manual_seed(3)
        method = kind(settings, pairs()).double()
        outputs = method.encode(batch)
        assert outputs["image"] is batch["image_features"]
        tokens.append(outputs["sound"])
    assert torch.equal(*tokens) and tokens[0].shape == (5, 4)
    assert list(Untrained(settings, pairs()).stages()) == []
    raw = Untrained(SoundSettings(head="raw"), pairs())
    assert not [name for name, _ in raw.named_parameters() if name.startswith("head")]
    assert torch.equal(raw.encode(batch)["sound"], raw_token(batch["speech_features"], 4))
    assert isinstance(made(head="linear").head, nn.Linear)


def test_the_page_names_three_layers_with_norm_and_gelu():
    kinds = [type(layer).__name__ for layer in mlp(4, 6, 5)]
    assert kinds == ["Linear", "LayerNorm", "GELU"] * 2 + ["Linear"]


def test_a_llava_reads_tokens_in_the_place_of_its_image():
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration
    from transformers import MistralConfig

    torch.manual_seed(0)
    llava = LlavaForConditionalGeneration(LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=8, intermediate_size=8, image_size=28,
                                       num_hidden_layers=1, num_attention_heads=2),
        text_config=MistralConfig(hidden_size=16, intermediate_size=16, vocab_size=40,
                                  num_hidden_layers=1, num_attention_heads=2,
                                  num_key_value_heads=2),
        image_token_index=7)).eval()
    options = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    prompt, tokens = torch.tensor([1, 7, 3, 5]), rows(2, 24).view(2, 3, 8).float()
    ids = caption(llava, tokens, prompt, **options)
    words = llava.get_input_embeddings()
    by_hand = torch.cat([words(prompt[:1]), llava.model.multi_modal_projector(tokens[1]),
                         words(prompt[2:])])
    for step in range(4):  # greedy, one word at a time
        logits = llava(inputs_embeds=by_hand[None]).logits[0, -1]
        assert ids[1, step] == logits.argmax()
        by_hand = torch.cat([by_hand, words(ids[1, step:step + 1])])
    for bad in ([1, 3], [7, 7]):
        with pytest.raises(ValueError, match="image tokens, it needs one"):
            caption(llava, tokens, torch.tensor(bad), **options)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="'mlp', 'linear' or 'raw', got 'deep'"):
        SoundSettings(head="deep")
    for token, k in ((rows(3, 4), 1), (rows(3, 5), 8), (rows(3, 5), -1)):
        with pytest.raises(ValueError, match="k between 0 and 7"):
            substitute(token, rows(21, 5).view(3, 7, 5), k)
