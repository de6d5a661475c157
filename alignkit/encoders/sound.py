"""Sound as it reaches the encoders: (waveform [t], rate in Hz) checked and made 16 kHz;
and the joining of windows back into sounds."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from alignkit.data.columns import Tokens
from alignkit.encoders.encoder import Output, masked_mean

RATE = 16_000  # Hz
# The filter of librosa's "kaiser_best": shorter ones, such as scipy's default, take from
# the highest bands of a mel spectrogram.
ZEROS, ROLLOFF, BETA = 64, 0.9475937167399596, 14.769656459379492


def to_waves(sounds: list, rate: int = RATE) -> list[Tensor]:
    """(waveform [t], rate in Hz) each -> waveforms [t'] float32 on the CPU at `rate`.

    Raises TypeError for what is no such pair, ValueError for a sound that is empty, not
    finite, or of more than one channel.
    """
    waves = []
    for sound in sounds:
        if not isinstance(sound, tuple) or len(sound) != 2:
            raise TypeError("a sound encoder needs (waveform [t], rate in Hz) each, "
                            f"got {type(sound).__name__}: make the column "
                            'Lazy(…, kind="sound")')
        wave = torch.as_tensor(np.asarray(sound[0]), dtype=torch.float32)
        if wave.dim() != 1 or not len(wave) or not torch.isfinite(wave).all():
            raise ValueError("a waveform must be finite samples [t], one channel, got "
                             f"{tuple(wave.shape)}; average the channels first")
        if sound[1] != rate:
            wave = resample(wave, int(sound[1]), rate)
        waves.append(wave)
    return waves


def resample(wave: Tensor, source: int, target: int) -> Tensor:
    """A waveform [t] at `source` Hz -> [⌈t · target / source⌉] at `target` Hz.

    The filter is a sinc of `ZEROS` zero crossings a side under a Kaiser window, cut off at
    `ROLLOFF` of the lower of both Nyquist frequencies.
    """
    from scipy.signal import resample_poly

    shared = math.gcd(source, target)
    up, down = target // shared, source // shared
    step = ROLLOFF / max(up, down)  # of the filter, in zero crossings
    reach = int(ZEROS / step)
    place = np.arange(-reach, reach + 1) * step
    window = np.i0(BETA * np.sqrt(1 - (place / ZEROS) ** 2)) / np.i0(BETA)
    kernel = np.sinc(place) * window * step  # resample_poly multiplies by `up`
    out = resample_poly(wave.double().numpy(), up, down, window=kernel)
    return torch.from_numpy(out).float()


def join(rows: Tensor, counts: list[int]) -> Output:
    """Rows [sum of counts, d], sound after sound -> their means and padded tokens."""
    parts = rows.split(counts)
    values = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    lengths = torch.tensor(counts, device=rows.device)
    mask = torch.arange(values.shape[1], device=rows.device) < lengths[:, None]
    return Output(masked_mean(values, mask), Tokens(values, mask))


def together(outputs: Sequence[Output]) -> Output:
    """One layer of several sounds, from sounds encoded one at a time."""
    rows = [out.tokens.values[0][out.tokens.mask[0]] for out in outputs]
    tokens = join(torch.cat(rows), [len(row) for row in rows]).tokens
    return Output(torch.cat([out.pooled for out in outputs]), tokens)
