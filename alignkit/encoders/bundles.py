"""Sound encoders of torchaudio's own collection: wav2vec 2.0, HuBERT and WavLM."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from alignkit.encoders.encoder import (
    Encoder,
    Output,
    as_tokens,
    device,
    hash_weights,
    one_thread,
    seeded,
)
from alignkit.encoders.sound import one_step, to_waves, together
from alignkit.versions import problem


def torchaudio_bundle(name: str, seed: int | None = None) -> Encoder:
    """A model of torchaudio.pipelines, such as WAV2VEC2_BASE: layer k its block k + 1.

    A token is 20 ms of sound, features are means over the tokens. Sounds go through
    the model one at a time, so that none is padded for another. Pretrained weights come
    from torchaudio's server. With a seed: random weights of the same configuration.
    Raises ImportError with the mending command where torchaudio is missing or does not
    work beside this torch (nothing else needs it), ValueError for a name that it does not
    know.
    """
    if found := problem("torchaudio"):
        raise ImportError(found)
    from torchaudio import models, pipelines

    bundle = getattr(pipelines, name, None)
    if not isinstance(bundle, pipelines.Wav2Vec2Bundle):
        known = [n for n in dir(pipelines)
                 if isinstance(getattr(pipelines, n), pipelines.Wav2Vec2Bundle)]
        raise ValueError(f"torchaudio:{name}: torchaudio knows {', '.join(known)}")
    create = {"Wav2Vec2": models.wav2vec2_model, "WavLM": models.wavlm_model}
    with seeded(seed):
        model = (bundle.get_model() if seed is None
                 else create[bundle._model_type](**bundle._params))
    model = model.to(device()).eval()
    rate = int(bundle.sample_rate)
    convolutions = getattr(model, "model", model).feature_extractor.conv_layers
    least = one_step([layer.kernel_size for layer in convolutions],
                     [layer.stride for layer in convolutions])
    # A model from get_model does this itself.
    normalise = seed is not None and bundle._normalize_waveform

    def layers_of(wave: Tensor) -> list[Output]:
        wave = F.layer_norm(wave, wave.shape) if normalise else wave
        states, _ = model.extract_features(wave[None].to(device()))
        return [Output(x.mean(1), as_tokens(x)) for x in states]

    @one_thread()  # a sound alone is too short for several to give the same bits
    def run(sounds: list, layers: Sequence[int]) -> dict[int, Output]:
        alone = [layers_of(wave) for wave in to_waves(sounds, rate, least)]
        return {k: together([outputs[k] for outputs in alone]) for k in layers}

    with torch.inference_mode():
        probe = layers_of(torch.sin(torch.arange(rate) / 10))
    return Encoder(
        name="random:" * (seed is not None) + f"torchaudio:{name}",
        modality="sound",
        widths={k: output.pooled.shape[1] for k, output in enumerate(probe)},
        weights_hash=hash_weights(model),
        preprocessing=f"{rate} Hz; 2",
        build=lambda: run,
        fills=False,
    )
