"""Sound as it reaches the encoders: (waveform [t], rate in Hz) checked and made 16 kHz;
and the joining of windows back into sounds."""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from alignkit.data.columns import Tokens
from alignkit.data.sounds import as_wave
from alignkit.encoders.encoder import Output, masked_mean

RATE = 16_000  # Hz
# The filter of librosa's "kaiser_best": shorter ones, such as scipy's default, take from
# the highest bands of a mel spectrogram.
ZEROS, ROLLOFF, BETA = 64, 0.9475937167399596, 14.769656459379492
MOST_PHASES = 2**17  # a filter of 140 MB


def to_waves(sounds: list, rate: int = RATE, least: int = 0) -> list[Tensor]:
    """(samples [t], rate in Hz) each -> waveforms [t'] float32 on the CPU at `rate`, with
    silence behind those of fewer than `least` samples.

    Raises TypeError or ValueError as `as_wave` does.
    """
    waves = [resample(*as_wave(sound), rate) for sound in sounds]
    return [torch.nn.functional.pad(wave, (0, max(0, least - len(wave)))) for wave in waves]


def one_step(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Samples that a model of convolutions without padding needs for one output: it
    refuses fewer (0 for a model of none)."""
    needed = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        needed = (needed - 1) * stride + kernel
    return needed if len(kernels) else 0


def resample(wave: Tensor, source: float, target: int) -> Tensor:
    """A waveform [t] at `source` Hz -> [⌈t · target / source⌉] at `target` Hz.

    The filter is a sinc of `ZEROS` zero crossings a side under a Kaiser window, cut off at
    `ROLLOFF` of the lower of both Nyquist frequencies. A ratio of whole numbers above
    `MOST_PHASES` (of 131,073 Hz and more, if they share no factor) is rounded, by less
    than 8e-6: a quartz clock errs by 2e-5.
    """
    from scipy.signal import resample_poly

    if source == target:
        return wave
    ratio = (Fraction(target) / Fraction(source)).limit_denominator(MOST_PHASES)
    up, down = ratio.numerator, ratio.denominator
    out = resample_poly(wave.double().numpy(), up, down, window=_kernel(max(up, down)))
    return torch.from_numpy(out).float()


@lru_cache(maxsize=2)  # the sounds of a data set have mostly one rate
def _kernel(phases: int) -> np.ndarray:
    """The filter at `phases` times the lower rate; resample_poly multiplies it by `up`."""
    step = ROLLOFF / phases  # in zero crossings
    reach = int(ZEROS / step)
    place = np.arange(-reach, reach + 1) * step
    window = np.i0(BETA * np.sqrt(1 - (place / ZEROS) ** 2)) / np.i0(BETA)
    return np.sinc(place) * window * step


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
