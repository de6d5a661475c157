"""An encoder gives the same bits with any number of threads, and a row the same among any
others (a text: among the texts it is padded with)."""

import numpy as np
import pytest
import torch
from test_encoders import picture
from test_encoders_more import sound
from torch import nn

from alignkit.encoders import encoder as encoders
from alignkit.encoders import load
from alignkit.encoders.regions import regions

pytestmark = pytest.mark.slow
N = encoders.LEAST + 1
WORDS = "a small dog chases two red balloons over the old bridge while children sing".split()
INPUTS = {
    "image": lambda: [picture(i, (64, 64)) for i in range(N)],
    "text": lambda: [" ".join(WORDS[: 1 + i % len(WORDS)]) for i in range(N)],
    "sound": lambda: [sound(i, 0.3 + i % 3) for i in range(3)],
    "points": lambda: list(torch.from_numpy(
        np.random.default_rng(0).standard_normal((3, 700, 3))).float()),
    "video": lambda: [[picture(i, (64, 64)) for i in range(1 + k)] for k in range(3)],
    "any": lambda: list(torch.from_numpy(
        np.random.default_rng(0).standard_normal((N, 3, 20, 20))).float()),
}
NAMES = ["image:efficientnet-lite0", "image:mobilenetv2", "text:minilm",
         "text:e5-multilingual", "sound:yamnet", "sound:whisper-tiny.en", "points:grid",
         "frames:image:mobilenetv2"]


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def features(encoder, inputs: list, threads: int) -> list[torch.Tensor]:
    """Every layer's features of the inputs, made by `threads`."""
    torch.set_num_threads(threads)
    found = encoder.encode(inputs, layers=sorted(encoder.widths))
    return [found[k] for k in sorted(found)]


def check(make, inputs: list | None = None) -> None:
    """`make()` gives an encoder; what it draws or calibrates must not see the threads."""
    torch.set_num_threads(1)
    encoder, inputs = make(), inputs or INPUTS[make().modality]()
    wanted = features(encoder, inputs, 1)
    assert not torch.equal(wanted[-1][0], wanted[-1][1])
    torch.set_num_threads(3)
    again = make()
    again.start()
    assert again.weights_hash == encoder.weights_hash
    for threads in (2, 3):
        assert all(map(torch.equal, features(again, inputs, threads), wanted)), threads
    for threads, rows in ((1, slice(0, 1)), (2, slice(0, 1)), (1, slice(1, 3))):
        among = inputs[rows]
        if encoder.modality == "text":  # beside the one that decides the padded length
            among = [*among, max(inputs, key=len)]
        found = features(again, among, threads)
        n = len(inputs[rows])
        assert all(torch.equal(x[:n], y[rows])
                   for x, y in zip(found, wanted, strict=True)), (threads, rows)


@pytest.mark.parametrize("name", [*NAMES, *(f"random:{name}" for name in NAMES),
                                  "random:timm:resnet18", "random:timm:vit_tiny_patch16_224"])
def test_encoders_and_their_random_twins(name):
    check(lambda: load(name, seed=1))


@pytest.mark.parametrize("name", ["image:efficientnet-lite0", "random:image:mobilenetv2"])
def test_regions(name):
    inputs = [(picture(i), ((0.1, 0.2, 0.4, 0.9), (0, 0.3, 0.37, 0.5))[: 1 + i % 2])
              for i in range(N)]
    check(lambda: regions(load(name, seed=1)), inputs)


def test_models_of_torchaudio():
    pytest.importorskip("torchaudio")
    check(lambda: load("random:torchaudio:WAV2VEC2_BASE"))


@pytest.mark.parametrize("kind", ["ViT", "Bert", "Wav2Vec2"])
def test_models_of_hugging_face(kind, tmp_path):
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 256}
    if kind == "ViT":
        small |= {"image_size": 32, "patch_size": 8}
        transformers.BitImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32},
            image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(tmp_path)
    elif kind == "Bert":
        words = {w: i for i, w in enumerate(["[PAD]", "[UNK]", *WORDS])}
        small["vocab_size"] = len(words)
        plain = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        plain.pre_tokenizer = pre_tokenizers.Whitespace()
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]",
            model_max_length=16).save_pretrained(tmp_path)
    else:
        small |= {"conv_dim": [32] * 7, "num_conv_pos_embeddings": 16,
                  "num_conv_pos_embedding_groups": 4}
        transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    getattr(transformers, f"{kind}Config")(**small).save_pretrained(tmp_path)
    check(lambda: load(f"random:hf:{tmp_path}"))


def test_a_module_of_the_user():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 16, 1),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    check(lambda: load(model))


def test_a_long_list_goes_as_the_cache_takes_it():
    """In groups of `BATCH` rows: texts are padded to the longest of theirs."""
    encoder = load("random:text:minilm")
    texts = [" ".join(WORDS[: 1 + i % 5]) for i in range(encoders.BATCH)]
    longest = " ".join(WORDS * 2)
    wanted = encoder.encode(texts, tokens=True)[-1]
    found = encoder.encode([*texts, longest], tokens=True)[-1]
    size = wanted.mask.shape[1]
    assert torch.equal(found.values[:-1, :size], wanted.values) and size < found.mask.shape[1]
    assert not found.mask[:-1, size:].any() and not found.values[:-1, size:].any()
    with pytest.raises(ValueError, match="inputs is empty"):
        encoder.encode([])
