"""Log-mel filterbanks against a slow loop from the definition."""

import math

import pytest
import torch

from alignkit.data import Lazy, Pairs
from alignkit.encoders import add_features, load
from alignkit.encoders.fbank import frames_of


def mel(hertz: float) -> float:
    return 1127 * math.log(1 + hertz / 700)


def loop(wave: torch.Tensor, bands: int, step: int, window: int) -> list[list[float]]:
    """Kaldi's: frames inside the sound alone, each without its mean, pre-emphasised by 0.97,
    under a Hann window; power; triangles straight on the mel scale from 20 Hz up."""
    wave = (wave - wave.mean()).double()
    size, hop = window * 16, step * 16
    padded = 2 ** math.ceil(math.log2(size))
    low, high = mel(20), mel(8000)
    width = (high - low) / (bands + 1)
    found = []
    for start in range(0, len(wave) - size + 1, hop):
        x = wave[start:start + size]
        x = x - x.mean()
        x = torch.cat([x[:1] - 0.97 * x[:1], x[1:] - 0.97 * x[:-1]])
        at = torch.arange(size, dtype=torch.float64)
        x = x * (0.5 - 0.5 * (2 * math.pi * at / (size - 1)).cos())
        power = torch.fft.rfft(x, padded).abs().square()
        row = []
        for b in range(bands):
            left, total = low + b * width, 0.0
            for k in range(padded // 2):
                m = mel(16_000 * k / padded)
                share = min((m - left) / width, (left + 2 * width - m) / width)
                total += max(0.0, share) * float(power[k])
            row.append(math.log(max(total, torch.finfo(torch.float32).eps)))
        found.append(row)
    return found


def test_frames_are_kaldis():
    wave = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    found = frames_of(wave, 8, 30, 60)
    slow = torch.tensor(loop(wave, 8, 30, 60))
    assert found.shape == slow.shape == (3, 8)
    assert (found - slow).abs().max() < 1e-3


def test_a_sound_is_tokens_and_their_mean():
    waves = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (3000, 400)]
    sounds = Lazy([0, 1], lambda k: (waves[k], 16_000), "sound", version="noise")
    pairs = add_features(Pairs.make({"speech": sounds}), "speech", "fbank:8x30", tokens=True)
    values, mask = pairs["speech_tokens"]
    assert values.shape == (2, 5, 8) and mask.sum(1).tolist() == [5, 1]  # one: filled up
    assert torch.allclose(values[0, :5], frames_of(waves[0], 8, 30, 60))
    assert torch.allclose(pairs["speech_features"][0], values[0, :5].mean(0), atol=1e-5)


def test_a_size_that_is_none_is_refused():
    for name in ("fbank:32", "fbank:0x10", "fbank:a"):
        with pytest.raises(ValueError, match="must be fbank:<bands>x<milliseconds>"):
            load(name)
    with pytest.raises(ValueError, match="is no encoder"):
        load("random:fbank:32x10")
