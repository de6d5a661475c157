"""Log-mel filterbanks of a sound: the picture of it that a tower can look at."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from alignkit.encoders.encoder import Encoder, Output, Run
from alignkit.encoders.sound import RATE, join, to_waves

QUIETEST = -15.942385  # the log of the smallest float32 step: what Kaldi gives for silence


def fbank(size: str) -> Encoder:
    """`fbank:<bands>x<milliseconds>`: as many mel bands, a frame every so often.

    Kaldi's filterbank in the version of torchaudio: the mean of the waveform taken out,
    windows of 25 ms (or of two steps, where that is longer) under a Hann window, the log
    of the power in each band. A frame is a token, a sound's feature the mean of its
    frames. Nothing is learned.

    Raises ValueError for a size that is not two numbers above 0.
    """
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", size)
    if not found:
        raise ValueError(f"fbank must be fbank:<bands>x<milliseconds>, such as "
                         f"fbank:128x10, got {size!r}")
    bands, step = int(found[1]), int(found[2])
    window = max(25, 2 * step)

    def build() -> Run:
        def run(sounds: list, layers: Sequence[int]) -> dict[int, Output]:
            frames = [frames_of(wave, bands, step, window) for wave in to_waves(sounds)]
            out = join(torch.cat(frames), [len(x) for x in frames])
            return dict.fromkeys(layers, out)

        return run

    return Encoder(name=f"fbank:{size}", modality="sound", widths={0: bands},
                   weights_hash="no weights", build=build, fills=False,
                   preprocessing=f"16 kHz, Kaldi, Hann windows of {window} ms; 1")


def frames_of(wave: Tensor, bands: int, step: int, window: int) -> Tensor:
    """A waveform [t] at 16 kHz -> log-mel frames [f, bands]; a sound shorter than a window is
    filled up with silence."""
    from torchaudio.compliance import kaldi

    short = max(0, window * RATE // 1000 - len(wave))
    wave = torch.nn.functional.pad(wave - wave.mean(), (0, short))
    return kaldi.fbank(wave[None], num_mel_bins=bands, sample_frequency=RATE, dither=0.0,
                       frame_length=window, frame_shift=step, htk_compat=True,
                       use_energy=False, window_type="hanning")
