"""The offline encoders against other people's code; random twins; timm."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from alignkit.data.fetch import asset
from alignkit.encoders import load

TEXTS = ["a photo of a dog", "grinning face", "the stock market fell",
         "a small red car is parked in the street, near two trees"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def picture(number: int, size=(224, 224)) -> Image.Image:
    """A drawing that differs by number in colours, shapes and places."""
    rng = np.random.default_rng(number)
    image = Image.new("RGB", size, tuple(int(c) for c in rng.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, r = (int(v) for v in rng.integers(20, 180, 3))
        draw.ellipse((x, y, x + r, y + r // 2),
                     fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
    return image


def cosines(a, b):
    return F.cosine_similarity(a.flatten(1), b.flatten(1))


@pytest.mark.slow
def test_lite0_equals_efficientnet_lite_pytorch_at_every_layer():
    from efficientnet_lite_pytorch import EfficientNet

    other = EfficientNet.from_name("efficientnet-lite0")
    path = next(asset("efficientnet-lite0").glob("*.pth"))
    other.load_state_dict(torch.load(path, weights_only=True))
    other.eval()
    pictures = [picture(i) for i in range(5)] + [picture(5, (300, 150))]
    arrays = [np.asarray(p.resize((224, 224), Image.BICUBIC), np.float32)
              for p in pictures]
    x = torch.from_numpy((np.stack(arrays).transpose(0, 3, 1, 2) - 127) / 128)
    wanted, ends = {}, {0: 0, 2: 1, 4: 2, 7: 3, 10: 4, 14: 5, 15: 6}  # block -> stage
    with torch.no_grad():
        h = F.relu6(other._bn0(other._conv_stem(x)))
        for number, block in enumerate(other._blocks):
            h = block(h)
            if number in ends:
                wanted[ends[number]] = h
        wanted[7] = other.extract_features(x)

    encoder = load("image:efficientnet-lite0")
    ours = encoder.encode(pictures, layers=range(8))
    assert encoder.widths == {k: m.shape[1] for k, m in wanted.items()}
    for k, maps in wanted.items():
        assert cosines(ours[k], maps.mean((2, 3))).min() > 0.99999, k
    grid = encoder.encode(pictures, tokens=True)[-1]
    assert grid.values.shape == (6, 49, 1280) and grid.mask.all()
    torch.testing.assert_close(grid.values[:, 7 * 2 + 3], wanted[7][:, :, 2, 3],
                               atol=1e-4, rtol=1e-4)


def test_minilm_equals_a_bert_in_plain_torch():
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    folder = asset("minilm")
    w = load_file(folder / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()

    def norm(x, name):
        return F.layer_norm(x, (384,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def states(text):  # one text at a time: no padding, no mask
        ids = tokenizer.encode(text).ids
        x = (w["embeddings.word_embeddings.weight"][ids]
             + w["embeddings.position_embeddings.weight"][:len(ids)]
             + w["embeddings.token_type_embeddings.weight"][0])
        x = norm(x, "embeddings.LayerNorm")
        found = [x]
        for i in range(6):
            part = f"encoder.layer.{i}."
            q, k, v = (linear(x, f"{part}attention.self.{n}").view(-1, 12, 32)
                       .transpose(0, 1) for n in ("query", "key", "value"))
            a = ((q @ k.mT) / 32**0.5).softmax(-1) @ v
            a = linear(a.transpose(0, 1).reshape(-1, 384),
                       f"{part}attention.output.dense")
            x = norm(x + a, f"{part}attention.output.LayerNorm")
            a = linear(F.gelu(linear(x, f"{part}intermediate.dense")),
                       f"{part}output.dense")
            x = norm(x + a, f"{part}output.LayerNorm")
            found.append(x)
        return found

    encoder = load("text:minilm")
    pooled = encoder.encode(TEXTS, layers=range(7))
    tokens = encoder.encode(TEXTS, tokens=True)[-1]
    for row, text in enumerate(TEXTS):
        wanted = states(text)
        for k in range(7):
            torch.testing.assert_close(pooled[k][row], wanted[k].mean(0), atol=1e-4,
                                       rtol=1e-3)  # the length too, not the angle only
        t = len(wanted[6])
        assert tokens.mask[row].tolist() == [True] * t + [False] * (
            tokens.mask.shape[1] - t)
        torch.testing.assert_close(tokens.values[row, :t], wanted[6], atol=1e-4,
                                   rtol=1e-3)
        assert (tokens.values[row, t:] == 0).all()


def test_minilm_cuts_texts_at_128_tokens():
    tokens = load("text:minilm").encode(["word " * 500], tokens=True)[-1]
    assert tokens.values.shape == (1, 128, 384)


def test_features_can_be_trained_on():
    x = load("text:minilm").encode(TEXTS)[-1]
    weight = torch.zeros(384, 2, requires_grad=True)
    (x @ weight).sum().backward()  # inference tensors would be refused here
    assert torch.equal(weight.grad[:, 0], x.sum(0))


def test_transparent_parts_are_white():
    clear = Image.new("RGBA", (224, 224), (255, 0, 0, 0))
    white = Image.new("RGB", (224, 224), "white")
    features = load("image:efficientnet-lite0").encode([clear, white])[-1]
    assert torch.equal(features[0], features[1])


@pytest.mark.slow
@pytest.mark.parametrize("name, inputs", [
    pytest.param("random:image:efficientnet-lite0", [picture(0), picture(1)],
                 marks=pytest.mark.slow),
    ("random:text:minilm", TEXTS),
    ("random:timm:resnet10t", [picture(0), picture(1)]),
])
def test_random_twins(name, inputs):
    state = torch.random.get_rng_state()
    first, again, other = (load(name, seed=s) for s in (1, 1, 2))
    a, b, c = (e.encode(inputs)[-1] for e in (first, again, other))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(a, b) and first.weights_hash == again.weights_hash
    assert first.weights_hash != other.weights_hash
    assert cosines(a - a.mean(0), c - c.mean(0)).abs().max() < 0.9
    # What stands beside a row in the batch changes nothing: the norms are fixed.
    alone = first.encode(inputs[:1])[-1]
    torch.testing.assert_close(alone, a[:1], atol=1e-4, rtol=1e-4)


def test_norms_of_the_random_cnn_are_calibrated():
    """Its features spread about twice as wide as without calibration."""
    pictures = [picture(i) for i in range(4)]
    x = load("random:image:efficientnet-lite0").encode(pictures)[-1]
    assert x.std(0).mean() > 0.15 * x.abs().mean()


def test_timm_layers_match_timm():
    import timm

    encoder = load("random:timm:test_vit", seed=3)
    pictures = [picture(0), picture(1)]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = timm.create_model("test_vit").eval()
    config = timm.data.resolve_model_data_config(model)
    size = config["input_size"][1:]
    x = torch.stack([torch.from_numpy(np.asarray(p.resize(size, Image.BICUBIC)) / 255.0)
                     .permute(2, 0, 1).float() for p in pictures])
    x = (x - torch.tensor(config["mean"]).view(3, 1, 1)) / torch.tensor(
        config["std"]).view(3, 1, 1)
    with torch.no_grad():
        last = model.forward_features(x)
        wanted = model.forward_head(last, pre_logits=True)
    assert cosines(encoder.encode(pictures)[-1], wanted).min() > 0.999
    tokens = encoder.encode(pictures, tokens=True)[-1]
    assert cosines(tokens.values, last[:, model.num_prefix_tokens:]).min() > 0.999


def test_load_names_what_it_knows():
    with pytest.raises(ValueError, match="image:efficientnet-lite0.*nn.Module"):
        load("clip")
    with pytest.raises(ValueError, match="no such model"):
        load("random:timm:no_such_net")
    with pytest.raises(ValueError, match="layers 0 … 6"):
        load("text:minilm").encode(TEXTS, layers=[7])
    with pytest.raises(TypeError, match="needs texts, got int"):
        load("text:minilm").encode([3])
