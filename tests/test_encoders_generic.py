"""Hugging Face models (tiny, random, from a folder) and the user's own modules."""

import numpy as np
import pytest
import torch
from test_encoders import cosines, picture
from torch.nn import functional as F

from alignkit.encoders import Encoder, load


def test_hf_text_model_from_a_folder(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "a", "dog", "cat", "red"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]",
                            unk_token="[UNK]",
                            model_max_length=16).save_pretrained(tmp_path)
    model = BertModel(BertConfig(vocab_size=6, hidden_size=8, num_hidden_layers=2,
                                 num_attention_heads=2, intermediate_size=16)).eval()
    model.save_pretrained(tmp_path)

    encoder = load(f"hf:{tmp_path}")
    assert encoder.modality == "text" and encoder.widths == {0: 8, 1: 8, 2: 8}
    got = encoder.encode(["a red dog", "cat"], layers=range(3))
    with torch.no_grad():
        for row, ids in enumerate([[2, 5, 3], [4]]):
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            for k in range(3):
                torch.testing.assert_close(got[k][row], states[k][0].mean(0),
                                           atol=1e-5, rtol=1e-4)
    twin = load(f"random:hf:{tmp_path}", seed=1)
    assert twin.weights_hash != encoder.weights_hash


@pytest.mark.parametrize("kind", ["ViT", "Dinov2"])
def test_hf_picture_models_from_a_folder(kind, tmp_path):
    import transformers

    transformers.BitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32},
        image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(tmp_path)
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=8, num_hidden_layers=2, patch_size=8, num_attention_heads=2,
        intermediate_size=16, image_size=32)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    model.save_pretrained(tmp_path)
    encoder = load(f"hf:{tmp_path}")
    x = torch.from_numpy(np.asarray(picture(0, (32, 32))) / 127.5 - 1).float()
    with torch.no_grad():
        wanted = model(x.permute(2, 0, 1)[None], output_hidden_states=True)
    assert encoder.modality == "image" and encoder.widths == {0: 8, 1: 8, 2: 8}
    tokens = encoder.encode([picture(0, (32, 32))], tokens=True)[-1]
    torch.testing.assert_close(tokens.values, wanted.last_hidden_state, atol=1e-4,
                               rtol=1e-3)
    first = encoder.encode([picture(0, (32, 32))], layers=[1])[1]
    torch.testing.assert_close(first, wanted.hidden_states[1].mean(1), atol=1e-4,
                               rtol=1e-3)


def test_hf_two_towers(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPConfig,
        CLIPModel,
        PreTrainedTokenizerFast,
        ViTImageProcessor,
    )

    plain = Tokenizer(models.WordLevel({"[PAD]": 0, "dog": 1, "end": 2}, "[PAD]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]",
                            model_max_length=8).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 16}
    model = CLIPModel(CLIPConfig(
        text_config={**small, "vocab_size": 3, "eos_token_id": 2},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=5)).eval()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="two towers: name"):
        load(f"hf:{tmp_path}")
    x = torch.from_numpy(np.asarray(picture(0, (32, 32))) / 127.5 - 1).float()
    with torch.no_grad():
        seen = model(input_ids=torch.tensor([[1, 2]]),
                     pixel_values=x.permute(2, 0, 1)[None])
    image = load(f"hf:{tmp_path}#image").encode([picture(0, (32, 32))], layers=(1, -1))
    text = load(f"hf:{tmp_path}#text").encode(["dog end"])
    assert image[1].shape == (1, 8) and image[-1].shape == text[-1].shape == (1, 5)
    assert cosines(image[-1], seen.image_embeds) > 0.9999
    assert cosines(text[-1], seen.text_embeds) > 0.9999


def test_hf_siglip_sees_its_padding(tmp_path):
    """Its texts are padded to their full length, and it pools the last place."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        SiglipConfig,
        SiglipImageProcessor,
        SiglipModel,
    )

    plain = Tokenizer(models.WordLevel({"dog": 0, "[PAD]": 1, "red": 2}, "[PAD]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]",
                            model_input_names=["input_ids"]).save_pretrained(tmp_path)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 16}
    model = SiglipModel(SiglipConfig(
        text_config={**small, "vocab_size": 3, "max_position_embeddings": 4,
                     "projection_size": 8, "bos_token_id": 0, "eos_token_id": 1},
        vision_config={**small, "image_size": 32, "patch_size": 8})).eval()
    model.save_pretrained(tmp_path)
    x = torch.from_numpy(np.asarray(picture(0, (32, 32))) / 127.5 - 1).float()
    with torch.no_grad():
        seen = model(input_ids=torch.tensor([[0, 1, 1, 1], [2, 0, 1, 1]]),
                     pixel_values=x.permute(2, 0, 1)[None])
        states = model.text_model(torch.tensor([[2, 0, 1, 1]]),
                                  output_hidden_states=True).hidden_states
    image = load(f"hf:{tmp_path}#image").encode([picture(0, (32, 32))])[-1]
    reader = load(f"hf:{tmp_path}#text")
    text = reader.encode(["dog", "red dog"], layers=(1, -1))
    assert cosines(image, seen.image_embeds) > 0.9999
    assert cosines(text[-1], seen.text_embeds).min() > 0.9999
    tokens = reader.encode(["dog", "red dog"], layers=[1], tokens=True)[1]
    assert tokens.mask.tolist() == [[True] + [False] * 3, [True] * 2 + [False] * 2]
    torch.testing.assert_close(text[1][1], states[1][0, :2].mean(0), atol=1e-5,
                               rtol=1e-4)
    alone = reader.encode(["dog"])[-1]  # what stands beside it changes nothing
    torch.testing.assert_close(alone, text[-1][:1], atol=1e-5, rtol=1e-4)


class Scale(torch.nn.Module):
    def __init__(self, by: float):
        super().__init__()
        self.by = by

    def forward(self, x):
        return self.by * x


class Cube(torch.nn.Module):
    def forward(self, x):
        return x**3


class Lengths(torch.nn.Module):
    def forward(self, texts):
        return torch.tensor([[float(len(text))] for text in texts])


def test_a_module_of_the_user():
    x = torch.randn(5, 4)
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 3)).train()
    encoder = load(model)
    wanted = F.linear(x, model[1].weight, model[1].bias)  # eval mode: no dropout
    torch.testing.assert_close(encoder.encode(list(x))[-1], wanted)
    assert model.training and model[0].training
    assert not encoder.encode(list(x))[-1].requires_grad
    assert load(Lengths()).encode(["cat", "horse"])[-1].tolist() == [[3.0], [5.0]]
    hashes = {load(m).weights_hash for m in (Scale(1.0), Scale(2.0), Cube(), model)}
    assert len(hashes) == 4 and load(Scale(2.0)).weights_hash in hashes
    with pytest.raises(ValueError, match=r"must return a tensor \[n, d\].*got \(64,\) for 16"):
        load(torch.nn.Flatten(0)).encode(list(x))
    with pytest.raises(ValueError, match="pooled features only"):
        encoder.encode(list(x), tokens=True)


def test_a_torch_mismatch_is_one_sentence(monkeypatch):
    """What torchvision says by itself is about operators; the reader needs a command."""
    def broken():
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("alignkit.versions.problem", {"torchvision": "mend …"}.get)
    encoder = Encoder("x", "any", {0: None}, "", "", broken)
    with pytest.raises(ImportError, match="^mend …$"):
        encoder.start()
    monkeypatch.setattr("alignkit.versions.problem", lambda name: None)
    with pytest.raises(RuntimeError, match="nms"):
        encoder.start()
