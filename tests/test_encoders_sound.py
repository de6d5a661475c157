"""Hugging Face's and torchaudio's models of sound (tiny, random weights)."""

import pytest
import torch
from test_encoders import cosines
from test_encoders_more import sound, whisper_mel

from alignkit.encoders import load
from alignkit.encoders.sound import resample


def test_hf_sound_models_from_a_folder(tmp_path):
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2Model,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperModel,
    )

    sounds = [sound(0, 0.5), sound(1, 1.1)]
    small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 16, "vocab_size": 5}
    model = Wav2Vec2Model(Wav2Vec2Config(
        **small, conv_dim=(8, 8), conv_kernel=(10, 8), conv_stride=(8, 8),
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)).eval()
    model.save_pretrained(tmp_path / "w2v")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "w2v")
    encoder = load(f"hf:{tmp_path / 'w2v'}")
    assert encoder.modality == "sound" and encoder.widths == {0: 8, 1: 8, 2: 8}
    got, tokens = encoder.encode(sounds)[-1], encoder.encode(sounds, tokens=True)[-1]
    for row, (wave, _) in enumerate(sounds):  # the extractor makes mean 0, deviation 1
        x = (wave - wave.mean()) / wave.std(correction=0)
        with torch.no_grad():
            wanted = model(x[None]).last_hidden_state[0]
        assert cosines(tokens.values[row][tokens.mask[row]], wanted).min() > 0.9999
        torch.testing.assert_close(got[row], wanted.mean(0), atol=1e-4, rtol=1e-3)

    model = WhisperModel(WhisperConfig(
        d_model=8, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        vocab_size=5, max_source_positions=100)).eval()
    model.save_pretrained(tmp_path / "whisper")
    WhisperFeatureExtractor(chunk_length=2).save_pretrained(tmp_path / "whisper")
    tokens = load(f"hf:{tmp_path / 'whisper'}").encode(sounds, tokens=True)[-1]
    assert tokens.mask.sum(1).tolist() == [25, 55]  # of 20 ms each
    for row, (wave, _) in enumerate(sounds):
        mel = torch.from_numpy(whisper_mel(wave.numpy(), 2))
        with torch.no_grad():
            wanted = model.encoder(mel).last_hidden_state[0]
        t = int(tokens.mask[row].sum())
        assert cosines(tokens.values[row, :t], wanted[:t]).min() > 0.999


def test_a_sound_shorter_than_a_window_is_encoded(tmp_path):
    """The extractor of spectrograms refuses less than 25 ms, wav2vec 2.0 less than a step."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 8}
    ASTModel(ASTConfig(**small, max_length=64)).save_pretrained(tmp_path)
    ASTFeatureExtractor(max_length=64).save_pretrained(tmp_path)
    encoder = load(f"hf:{tmp_path}")
    one, padded = ((torch.ones(1), 16_000), (torch.eye(400)[0], 16_000))
    found = encoder.encode([one, padded])[-1]
    assert found.isfinite().all() and torch.equal(found[0], found[1])


def test_hf_sound_and_text_towers(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import (
        ClapConfig,
        ClapFeatureExtractor,
        ClapModel,
        PreTrainedTokenizerFast,
    )

    plain = Tokenizer(models.WordLevel({"dog": 0, "[PAD]": 1, "end": 2}, "[PAD]"))
    PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]",
                            model_max_length=8).save_pretrained(tmp_path)
    extractor = ClapFeatureExtractor(truncation="rand_trunc")
    extractor.save_pretrained(tmp_path)
    model = ClapModel(ClapConfig(
        text_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
                     "intermediate_size": 16, "vocab_size": 5},
        audio_config={"patch_embeds_hidden_size": 8, "hidden_size": 16,
                      "depths": [1, 1], "num_attention_heads": [2, 2]},
        projection_dim=5)).eval()
    with torch.no_grad():  # some weights are as the memory was, now and then not a number
        for k, weight in enumerate(model.parameters()):
            weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(k))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="#sound or hf:.*#text"):
        load(f"hf:{tmp_path}")
    wave = sound(0, 12.0)[0]
    heard = load(f"hf:{tmp_path}#sound")
    got = heard.encode([(wave, 48_000), (wave[:9000], 48_000)])[-1]
    read = load(f"hf:{tmp_path}#text").encode(["dog"])[-1]
    assert heard.modality == "sound" and got.shape == (2, 5) and read.shape == (1, 5)
    for row, x in enumerate((wave[:480_000], wave[:9000])):
        with torch.no_grad():
            seen = model(torch.tensor([[0]]), **extractor(
                [x.numpy()], sampling_rate=48_000, return_tensors="pt"))
        assert cosines(got[row:row + 1], seen.audio_embeds) > 0.9999
        assert cosines(read, seen.text_embeds) > 0.9999


def test_torchaudio_bundle_equals_hugging_face(monkeypatch):
    from torchaudio import pipelines
    from torchaudio.models.wav2vec2.utils import import_huggingface_model
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    other = Wav2Vec2Model(Wav2Vec2Config(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8, 8), conv_kernel=(10, 8), conv_stride=(8, 8), vocab_size=5,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)).eval()
    weights = import_huggingface_model(other).state_dict()

    class Tiny(pipelines.Wav2Vec2Bundle):
        def _get_state_dict(self, _):  # stands for the download
            return weights

    settings = {
        "extractor_mode": "group_norm", "extractor_conv_bias": False,
        "extractor_conv_layer_config": [(8, 10, 8), (8, 8, 8)], "encoder_embed_dim": 8,
        "encoder_projection_dropout": 0.0, "encoder_pos_conv_kernel": 4,
        "encoder_pos_conv_groups": 2, "encoder_num_layers": 2, "encoder_num_heads": 2,
        "encoder_attention_dropout": 0.0, "encoder_ff_interm_features": 16,
        "encoder_ff_interm_dropout": 0.0, "encoder_dropout": 0.0,
        "encoder_layer_norm_first": False, "encoder_layer_drop": 0.0,
        "aux_num_out": None}
    tiny = Tiny("", settings, 16_000, True, "Wav2Vec2")
    monkeypatch.setattr(pipelines, "TINY", tiny, raising=False)
    sounds = [sound(0, 0.5), sound(1, 1.1)]
    encoder = load("torchaudio:TINY")
    assert encoder.modality == "sound" and encoder.widths == {0: 8, 1: 8}
    got = encoder.encode(sounds, layers=(0, 1))
    tokens = encoder.encode(sounds, tokens=True)[-1]
    for row, (wave, _) in enumerate(sounds):
        x = (wave - wave.mean()) / wave.std(correction=0)
        with torch.no_grad():
            states = other(x[None], output_hidden_states=True).hidden_states
        for k in (0, 1):
            assert cosines(got[k][row:row + 1], states[k + 1].mean(1)) > 0.9999
        seen = tokens.values[row][tokens.mask[row]]
        assert cosines(seen, states[2][0]).min() > 0.9999
    twin, again = (load("random:torchaudio:TINY", seed=2) for _ in range(2))
    assert twin.weights_hash == again.weights_hash != encoder.weights_hash
    assert torch.equal(twin.encode(sounds)[-1], again.encode(sounds)[-1])
    louder = [(3 * wave, rate) for wave, rate in sounds]  # the twin normalises as well
    torch.testing.assert_close(twin.encode(louder)[-1], twin.encode(sounds)[-1],
                               atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="torchaudio:CLAP: .*WAV2VEC2_BASE"):
        load("torchaudio:CLAP")


@pytest.mark.parametrize("source", [8_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_what_16_khz_can_hold(source):
    """A tone at the new rate is the same tone; above the new Nyquist frequency is silence."""
    def tone(hertz, rate):
        return torch.sin(2 * torch.pi * hertz * torch.arange(rate + 7).double() / rate).float()

    found = resample(tone(1_234, source), source, 16_000)
    assert found.dtype == torch.float32
    assert len(found) == -(-(source + 7) * 16_000 // source)
    middle = slice(200, -200)  # away from the ends, beyond which there is silence
    expected = tone(1_234, 16_000)[:len(found)][middle]
    torch.testing.assert_close(found[middle][:len(expected)], expected, atol=1e-5, rtol=0)
    if source > 16_000:
        assert resample(tone(9_000, source), source, 16_000)[middle].abs().max() < 1e-5


def test_resampling_equals_torchaudio_of_librosas_best():
    """Whose kernel is computed in float32: hence the tolerance, -80 dB."""
    from torchaudio.functional import resample as of_torchaudio

    wave = torch.randn(22_057, generator=torch.Generator().manual_seed(0))
    expected = of_torchaudio(wave, 22_050, 16_000, resampling_method="sinc_interp_kaiser",
                             lowpass_filter_width=64, rolloff=0.9475937167399596,
                             beta=14.769656459379492)
    found = resample(wave, 22_050, 16_000)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
