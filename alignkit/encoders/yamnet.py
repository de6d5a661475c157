"""Sound encoder: YAMNet from an ONNX file, whose weights are read in plain Python."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignkit.data.fetch import asset, manifest
from alignkit.encoders.encoder import (
    Encoder, Output, device, filled, one_thread, random_hash, seeded,
)  # fmt: skip
from alignkit.encoders.sound import RATE, join, to_waves

# Samples of a frame, from frame to frame, of a patch of 96 frames, from patch to patch.
FRAME, HOP, PATCH, STEP = 400, 160, 400 + 95 * 160, 48 * 160
BANDS, LOW, HIGH, FLOOR = 64, 125.0, 7500.0, 0.001  # mel bands, Hz, before the log
WIDTHS = [32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
HALVING = {0, 2, 4, 6, 12}  # blocks of stride 2
PATCHES = 128  # at a time


def yamnet(seed: int | None = None) -> Encoder:
    """YAMNet (AudioSet): layer 0 a convolution, 1–13 separable ones (the last 1024-d).

    A token is a patch of 0.96 s, a new one every 0.48 s; a sound is padded with silence
    to whole patches, its feature is the mean over them. Front end and padding are those
    of the original (Plakal and Ellis, TensorFlow models, research/audioset/yamnet).
    With a seed: the twin of random weights, for which nothing is
    downloaded.
    """

    def build():
        with seeded(seed):
            model = _network()
        if seed is None:
            _load_onnx(model, asset("yamnet"))
        else:
            _calibrate(model)
        model = model.to(device()).eval()

        def run(sounds: list, layers: Sequence[int]) -> dict[int, Output]:
            patches = [to_patches(wave) for wave in to_waves(sounds)]
            means = {k: [] for k in layers}
            for x in torch.cat(patches).split(PATCHES):
                n = len(x)
                x = filled(x).to(device())
                for k, block in enumerate(model):
                    x = block(x)
                    if k in means:
                        means[k].append(x.mean((2, 3))[:n])
            counts = [len(p) for p in patches]
            return {k: join(torch.cat(rows), counts) for k, rows in means.items()}

        return run

    return Encoder(
        name="random:" * (seed is not None) + "sound:yamnet",
        modality="sound",
        widths=dict(enumerate(WIDTHS)),
        weights_hash=manifest()["yamnet"]["files"]["model.data"]
        if seed is None else random_hash(seed, "torch") + ", calibrated by one thread",
        preprocessing="16 kHz, log-mel 64, patches of 0.96 s every 0.48 s; 2",
        build=build,
        fills=False,
    )


def to_patches(wave: Tensor) -> Tensor:
    """A waveform [t] at 16 kHz -> log-mel patches [n, 1, 96, 64]."""
    steps = -(-max(0, len(wave) - PATCH) // STEP)
    wave = F.pad(wave, (0, PATCH + steps * STEP - len(wave)))
    frames = wave.unfold(0, FRAME, HOP) * torch.hann_window(FRAME)
    mel = torch.fft.rfft(frames, 512).abs() @ mel_bands()
    patches = torch.log(mel + FLOOR).unfold(0, 96, 48)  # [n, 64, 96]
    return patches.transpose(1, 2)[:, None]


def mel_bands() -> Tensor:
    """Triangles [257 frequencies, 64 bands], straight on the mel scale (TensorFlow)."""

    def mel(hertz):
        return 1127 * np.log(1 + hertz / 700)

    place = mel(np.linspace(0, RATE / 2, 257))[:, None]
    edges = np.linspace(mel(LOW), mel(HIGH), BANDS + 2)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (place - left) / (centre - left)
    falling = (right - place) / (right - centre)
    return torch.from_numpy(np.maximum(0, np.minimum(rising, falling))).float()


def _network() -> nn.Sequential:
    """14 blocks; batch norms are already inside the convolutions' weights."""

    def convolution(inner: int, outer: int, size: int, stride: int, groups: int):
        # TensorFlow's "same" padding of an even picture at stride 2: right and below.
        sides = (0, 1, 0, 1) if stride == 2 else (size // 2,) * 4
        return [nn.ZeroPad2d(sides),
                nn.Conv2d(inner, outer, size, stride, groups=groups), nn.ReLU()]

    blocks = [nn.Sequential(*convolution(1, WIDTHS[0], 3, 2, 1))]
    for k in range(1, len(WIDTHS)):
        inner, outer = WIDTHS[k - 1], WIDTHS[k]
        blocks.append(nn.Sequential(
            *convolution(inner, inner, 3, 2 if k in HALVING else 1, inner),
            *convolution(inner, outer, 1, 1, 1)))
    return nn.Sequential(*blocks)


@one_thread()
def _calibrate(model: nn.Module) -> None:
    """Give every convolution of a random network outputs of mean 0 and deviation 1.

    As `calibrate_norms` does for networks with batch norms: once, from 32 patches of
    noise (a fixed seed), so that the twin depends on its seed alone.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(32, 1, 96, 64)
    for cells in (1, 2, 4, 8, 16, 32):
        noise = torch.randn(32, 1, cells, cells, generator=generator)
        x += F.interpolate(noise, (96, 64), mode="bilinear")
    x = x - 3  # log-mel values lie between −7 and 2
    with torch.no_grad():
        for module in (m for block in model for m in block):
            if isinstance(module, nn.Conv2d):
                module.bias.zero_()
                out = module(x)
                spread = out.std((0, 2, 3)).clamp(min=1e-6)
                module.weight /= spread[:, None, None, None]
                module.bias.copy_(-out.mean((0, 2, 3)) / spread)
            x = module(x)


# --- the file ----------------------------------------------------------------------


def _load_onnx(model: nn.Module, folder: Path) -> None:
    """The float weights that stand under the graph's quantisation nodes."""
    found = dict(_tensors(folder))
    # Exported as onnx::Conv_241 (weights), _242 (their biases), _244, _245, …
    names = sorted((n for n in found if re.fullmatch(r"onnx::Conv_\d+", n)),
                   key=lambda name: int(name.rpartition("_")[2]))
    ours = model.state_dict()
    pairs = list(zip(ours, names, strict=True))
    for name, other in pairs:
        if ours[name].shape != found[other].shape:
            raise ValueError(f"{other} {tuple(found[other].shape)} does not fit {name} "
                             f"{tuple(ours[name].shape)}")
    model.load_state_dict({name: found[other] for name, other in pairs})


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, floats) of the graph's weights, which lie in it or in model.data; the
    numbers of fields are those of the format (onnx.proto: ModelProto, GraphProto,
    TensorProto)."""
    data = (folder / "model.data").read_bytes()
    (graph,) = (value for number, value in _fields((folder / "model.onnx").read_bytes())
                if number == 7)
    for tensor in (value for number, value in _fields(graph) if number == 5):
        shape, kind, name, raw, place = [], 0, "", b"", {}
        for number, value in _fields(tensor):
            if number == 1:  # dims
                shape.append(value)
            elif number == 2:  # data_type, 1 for float32
                kind = value
            elif number == 8:
                name = value.decode()
            elif number == 9:  # raw_data
                raw = value
            elif number == 13:  # external_data: pairs of a key and a value
                key, text = (part.decode() for _, part in _fields(value))
                place[key] = text
        if place:
            start = int(place["offset"])
            raw = data[start:start + int(place["length"])]
        if kind == 1:
            x = torch.frombuffer(bytearray(raw), dtype=torch.float32)
            yield name, x.view(shape)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a protocol-buffer message's fields, in order."""
    at = 0

    def whole() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    while at < len(message):
        number, kind = divmod(whole(), 8)
        if kind == 0:
            yield number, whole()
            continue
        size = whole() if kind == 2 else {1: 8, 5: 4}[kind]
        yield number, message[at:at + size]
        at += size
