"""Sound encoder: Whisper tiny.en's encoder from a CTranslate2 file."""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from alignkit.data.fetch import asset, manifest
from alignkit.encoders.encoder import Encoder, Output, device, random_hash, seeded
from alignkit.encoders.sound import RATE, join, to_waves

WINDOW = 6  # seconds
STEP = 320  # samples that one token stands for
WINDOWS = 32  # at a time
WIDTH, LAYERS = 384, 4
# CTranslate2's name -> transformers' name, in a layer.
PARTS = {"self_attention/layer_norm": "self_attn_layer_norm",
         "self_attention/linear_1": "self_attn.out_proj",
         "ffn/layer_norm": "final_layer_norm",
         "ffn/linear_0": "fc1", "ffn/linear_1": "fc2"}
KINDS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}


def whisper_tiny_en(seed: int | None = None) -> Encoder:
    """Whisper tiny.en's encoder: layer 0 the convolutions, 1–4 the blocks (384-d).

    A token is 20 ms of sound. Whisper was trained on windows of 30 s; here a sound is
    cut into windows of 6 s (the first 300 positions), the last one filled with
    silence, so that short sounds cost a fifth. (Means over ten spoken sentences of 1 to
    6 s have cosines of 0.96 to 0.99 with those of 30-s windows.) Tokens of the filling
    are masked, the feature is the mean over the others; no token sees past its window.
    With a seed: the twin of random weights, for which nothing is downloaded.
    """

    def build():
        from transformers import WhisperConfig, WhisperFeatureExtractor
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        positions = WINDOW * RATE // STEP
        config = WhisperConfig(
            d_model=WIDTH, encoder_layers=LAYERS, encoder_attention_heads=6,
            encoder_ffn_dim=4 * WIDTH, max_source_positions=positions)
        with seeded(seed):
            model = WhisperEncoder(config)
        if seed is None:
            weights = dict(_weights(asset("whisper-tiny.en") / "model.bin"))
            place = "embed_positions.weight"
            weights[place] = weights[place][:positions]
            model.load_state_dict(weights)
        model = model.to(device()).eval()
        log_mel = WhisperFeatureExtractor(chunk_length=WINDOW)  # 80 bands, 10 ms

        def run(sounds: list, layers: Sequence[int]) -> dict[int, Output]:
            waves = to_waves(sounds)
            windows = [w for wave in waves for w in wave.split(WINDOW * RATE)]
            rows = {k: [] for k in layers}
            for start in range(0, len(windows), WINDOWS):
                some = windows[start:start + WINDOWS]
                mel = log_mel([w.numpy() for w in some], sampling_rate=RATE,
                              return_tensors="pt").input_features  # [b, 80, 600]
                found = model(mel.to(device()), output_hidden_states=True)
                states = [*found.hidden_states[:-1], found.last_hidden_state]
                for k in layers:
                    rows[k] += [x[:-(-len(w) // STEP)]
                                for x, w in zip(states[k], some, strict=True)]
            counts = [-(-len(wave) // STEP) for wave in waves]
            return {k: join(torch.cat(rows[k]), counts) for k in layers}

        return run

    return Encoder(
        name="random:" * (seed is not None) + "sound:whisper-tiny.en",
        modality="sound",
        widths=dict.fromkeys(range(LAYERS + 1), WIDTH),
        weights_hash=manifest()["whisper-tiny.en"]["files"]["model.bin"]
        if seed is None else random_hash(seed, "transformers"),
        preprocessing=f"16 kHz, log-mel 80, windows of {WINDOW} s, masked mean; 2",
        build=build,
        fills=False,
    )


def _weights(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(transformers' name, weights) of the encoder."""
    for name, x in _tensors(path):
        where, _, kind = name.removeprefix("encoder/").rpartition("/")
        if not name.startswith("encoder/") or where == "":
            continue  # the decoder's, and encoder/num_heads
        kind = KINDS.get(kind, "weight")
        if where == "position_encodings":
            yield "embed_positions.weight", x
        elif not where.startswith("layer_") or where == "layer_norm":
            yield f"{where}.{kind}", x
        else:
            layer, _, part = where.removeprefix("layer_").partition("/")
            if part in PARTS:
                yield f"layers.{layer}.{PARTS[part]}.{kind}", x
                continue
            # self_attention/linear_0: queries, keys and values in one
            for projection, third in zip("qkv", x.chunk(3), strict=True):
                if (projection, kind) != ("k", "bias"):  # zeros: keys have no bias
                    yield f"layers.{layer}.self_attn.{projection}_proj.{kind}", third


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, float32) of the float16 tensors of a CTranslate2 file, version 4 to 6."""
    data = memoryview(path.read_bytes())
    at = 0

    def take(form: str):
        nonlocal at
        value, = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(f"<{form}")
        return value

    def text() -> str:
        return take(f"{take('H')}s").removesuffix(b"\0").decode()

    version = take("I")
    if version not in (4, 5, 6):
        raise ValueError(f"{path.name}: CTranslate2 file of version {version}, "
                         "need 4, 5 or 6")
    text()  # the kind of model
    take("I")  # its revision
    for _ in range(take("I")):
        name = text()
        shape = [take("I") for _ in range(take("B"))]
        is_half, size = take("B") == 4, take("I")
        if is_half:
            raw = bytearray(data[at:at + size])
            yield name, torch.frombuffer(raw, dtype=torch.float16).view(shape).float()
        at += size
