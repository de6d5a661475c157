"""The full-size models of Hugging Face and torchaudio, built and run on the meta device:
real class, real preprocessing, no weights and no network."""

from importlib.util import find_spec

import pytest
import torch

from alignkit.encoders import bundles, generic, load

LARGE = {"d_model": 1280, "encoder_layers": 32, "decoder_layers": 32,
         "encoder_attention_heads": 20, "decoder_attention_heads": 20,
         "encoder_ffn_dim": 5120, "decoder_ffn_dim": 5120, "num_mel_bins": 128,
         "vocab_size": 51866}
CROP = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}
# Config (its defaults are a published model's), settings; preprocessor, settings; the
# published model's parameters in millions; tower: width of the first layer, of the last
# one, number of the last one.
MODELS = {
    "CLIP ViT-B/32": ("CLIPConfig", {}, "CLIPImageProcessor", {}, 151.3,
                      {"#image": (768, 512, 12), "#text": (512, 512, 12)}),
    "SigLIP base": ("SiglipConfig", {}, "SiglipImageProcessor", {}, 203.2,
                    {"#image": (768, 768, 12), "#text": (768, 768, 12)}),
    "DINOv2 base": ("Dinov2Config", {"image_size": 518}, "BitImageProcessor", CROP,
                    86.6, {"": (768, 768, 12)}),
    "Whisper large-v3": ("WhisperConfig", LARGE, "WhisperFeatureExtractor",
                         {"feature_size": 128}, 1543.5, {"": (1280, 1280, 32)}),
    "CLAP HTSAT unfused": ("ClapConfig", {}, "ClapFeatureExtractor",
                           {"truncation": "rand_trunc"}, 153.5,
                           {"#sound": (96, 512, 4), "#text": (768, 512, 12)}),
    "wav2vec 2.0 base": ("Wav2Vec2Config", {}, "Wav2Vec2FeatureExtractor", {}, 94.4,
                         {"": (768, 768, 12)}),
}
BUNDLES = {"WAV2VEC2_BASE": (94.4, 768, 11), "HUBERT_LARGE": (315.4, 1024, 23),
           "WAVLM_BASE_PLUS": (94.4, 768, 11), "WAV2VEC2_XLSR_2B": (2159.3, 1920, 47)}


@pytest.fixture
def on_meta(monkeypatch):
    """Weights have shapes and no values; their "hash" is how many millions they are."""
    for module in (generic, bundles):
        monkeypatch.setattr(module, "device", lambda: torch.device("meta"))
        monkeypatch.setattr(module, "seeded", lambda seed: torch.device("meta"))
        monkeypatch.setattr(module, "hash_weights", lambda model: round(
            sum(p.numel() for p in model.parameters()) / 1e6, 1))
    # Otherwise it asks whether a mask is all True, which has no answer here.
    if find_spec("transformers.masking_utils"):
        monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda *_: True,
                            raising=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_hf_models_at_full_size(name, on_meta, tmp_path):
    import transformers
    from tokenizers import Tokenizer, models

    config, settings, processor, options, millions, towers = MODELS[name]
    getattr(transformers, config)(**settings).save_pretrained(tmp_path)
    getattr(transformers, processor)(**options).save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({"a": 0, "[PAD]": 1}, "[PAD]"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]").save_pretrained(tmp_path)
    for tower, (first, last, number) in towers.items():
        encoder = load(f"random:hf:{tmp_path}{tower}")
        assert encoder.weights_hash == millions
        assert encoder.widths[0] == first
        assert max(encoder.widths) == number and encoder.widths[number] == last


@pytest.mark.parametrize("name", BUNDLES)
def test_torchaudio_models_at_full_size(name, on_meta):
    millions, width, number = BUNDLES[name]
    encoder = load(f"random:torchaudio:{name}")
    assert encoder.weights_hash == millions
    assert encoder.widths == dict.fromkeys(range(number + 1), width)
