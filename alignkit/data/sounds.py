"""Sounds: a file's bytes decoded to their end, and a reader's samples scaled by their
type, both to a waveform in -1 … 1 and its rate."""

import io
import struct

import numpy as np
import torch
from torch import Tensor

from alignkit.data.sound_headers import (
    LAYOUTS, with_its_length, with_its_padding, with_its_width,
)  # fmt: skip

BLOCK = 2**20  # values at a time
# A full scale that all agree on: what a sample of the type is divided by.
FULL = {"int8": 2**7, "uint8": 2**7, "int16": 2**15, "int32": 2**31}
LOUDEST = 128.0  # 42 dB above full scale: no sound, but integers kept as floats


def as_wave(sound) -> tuple[Tensor, float]:
    """(waveform [t] float32 on the CPU, rate in Hz) of (samples [t], rate in Hz).

    Integers are scaled to -1 … 1 by their type (int8, int16, int32; uint8 has its
    silence at 128, as in WAV); floats lie there and are kept as they are.

    Raises TypeError for what is no such pair or has samples of another type, ValueError
    for samples that are none, not finite, of more than one channel or out of scale, and
    for a rate that is no number of Hz.
    """
    if not isinstance(sound, tuple) or len(sound) != 2:
        raise TypeError("a sound encoder needs (waveform [t], rate in Hz) each, "
                        f"got {type(sound).__name__}: make the column "
                        'Lazy(…, kind="sound")')
    samples, rate = sound
    if isinstance(samples, Tensor):
        samples, kind = samples.detach().cpu(), str(samples.dtype).removeprefix("torch.")
    else:
        samples = np.asarray(samples)
        kind = samples.dtype.name
    if kind not in FULL and "float" not in kind:
        raise TypeError(f"samples must be floats in -1 … 1, or {', '.join(FULL)}, which "
                        f"are scaled to it; got {kind}: divide by its full scale first")
    if not isinstance(samples, Tensor):
        samples = torch.from_numpy(samples.astype(np.float64))
    wave = samples.double()
    if kind in FULL:
        wave = (wave - (128 if kind == "uint8" else 0)) / FULL[kind]
    wave = wave.float()
    if wave.dim() != 1 or not len(wave) or not torch.isfinite(wave).all():
        raise ValueError("a waveform must be finite samples [t], one channel, got "
                         f"{tuple(wave.shape)}; average the channels first")
    if (peak := float(wave.abs().max())) > LOUDEST:
        raise ValueError(f"a waveform of floats lies in -1 … 1, got {peak:,.0f}: divide "
                         "by the full scale first, 32768 for samples of 16 bits")
    return wave, _hertz(rate)


def _hertz(rate) -> float:
    try:
        found = float(rate)
    except (TypeError, ValueError):
        found = 0.0
    if not 1 <= found <= 1e7:
        raise ValueError(f"the rate must be a number of Hz, 1 … 10,000,000, got {rate!r}")
    return int(found) if found == int(found) else found


# Files ----------------------------------------------------------------------------------
def decode(raw: bytes, name: str) -> tuple[Tensor, int]:
    """(waveform [t] float32, rate in Hz) of a sound file's bytes, channels averaged.

    It is read to its end, whatever length its header gives: lengths that were not known
    when it was written (to a pipe, without a Xing header) and those of a first part
    alone (Ogg streams one after the other) are not believed. A tag ID3 in front of a WAV
    or the like is taken off: libsndfile would lose as many bytes at the end.

    Raises ValueError, which starts with `name`, for what is no sound, has no samples or
    is cut off.
    """
    import soundfile

    if raw[(at := _behind_a_tag(raw)):][:4] in (*LAYOUTS, b".snd", b"OggS", b"fLaC"):
        raw = raw[at:]
    try:
        whole = with_its_width(with_its_length(with_its_padding(raw), name))
        read = [_read(part, name) for part in _parts(whole, name)]
    except (soundfile.SoundFileError, RuntimeError) as error:
        why = getattr(error, "error_string", error)
        raise ValueError(f"{name}: not a sound: {why}") from None
    waves, rates = zip(*read, strict=True)
    if len(set(rates)) > 1:
        raise ValueError(f"{name}: its parts have other rates, {sorted(set(rates))} Hz")
    wave = torch.cat(waves)
    if not len(wave):
        raise ValueError(f"{name}: a sound without samples")
    return wave, rates[0]


def _read(raw: bytes, name: str) -> tuple[Tensor, int]:
    import soundfile

    class Stream(soundfile.SoundFile):
        def seekable(self) -> bool:  # else only as far as the header says
            return False

    def heard(file) -> tuple[list[np.ndarray], Stream]:
        with Stream(file) as sound:
            n = max(1, BLOCK // sound.channels)
            blocks = [sound.read(n, "float32", always_2d=True)]
            while len(blocks[-1]):
                blocks.append(sound.read(n, "float32", always_2d=True))
        return blocks, sound

    blocks, sound = heard(_Bytes(raw))
    if sound.format == "MP3" and (bare := _without_a_wrong_length(raw)) is not None:
        blocks, sound = heard(_Endless(bare))
    elif sound.frames < 2**40 and sum(map(len, blocks)) < 0.9 * sound.frames:
        raise ValueError(f"{name}: a sound that is cut off")  # 0.9: MP3s only estimate
    return torch.from_numpy(np.concatenate(blocks).mean(1)), sound.samplerate


class _Bytes(io.BytesIO):
    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:  # before the beginning: libsndfile asks where it is then
            return self.tell()


class _Endless(_Bytes):
    """Says that it is long, so that nobody estimates where its samples end."""

    ended = False

    def seek(self, offset: int, whence: int = 0) -> int:
        self.ended = whence == 2 and offset == 0
        return super().seek(offset, whence)

    def tell(self) -> int:
        return super().tell() + self.ended * 2**40


def _without_a_wrong_length(raw: bytes) -> bytes | None:
    """An MP3 of which no header tells the length, None if one does.

    The tag Xing (or Info) counts frames and bytes; where more bytes follow than it
    counts, it speaks of the first of several files, and is taken out.
    """
    at = _behind_a_tag(raw)
    head = raw[at:at + 64]
    if b"VBRI" in head:
        return None
    place = max(head.find(b"Xing"), head.find(b"Info"))
    if place < 0:
        return raw
    flags, _, counted = struct.unpack(">III", raw[at + place + 4:at + place + 16].ljust(
        12, b"\0"))
    if flags & 3 == 1 or (flags & 3 == 3
                          and len(raw) - at <= 1.01 * counted + 4096):  # 4096: tags
        return None
    return raw[:at + place] + b"\0\0\0\0" + raw[at + place + 4:]


def _behind_a_tag(raw: bytes) -> int:
    """Where the sound begins: behind a tag ID3, if there is one in front."""
    if raw[:3] != b"ID3":  # its size is four times seven bits, behind ten bytes
        return 0
    return 10 + sum((byte & 127) << shift
                    for byte, shift in zip(raw[6:10], (21, 14, 7, 0), strict=False))


def _parts(raw: bytes, name: str) -> list[bytes]:
    """The Ogg streams that stand one after the other, each of which is a file; any
    other file as it is. Raises ValueError if it ends within a page."""
    if raw[:4] != b"OggS":
        return [raw]
    pages, at = [], 0
    while raw[at:at + 4] == b"OggS" and at + 27 <= len(raw):
        pages.append(at)
        count = raw[at + 26]
        at += 27 + count + sum(raw[at + 27:at + 27 + count])
    first, last = ([bool(raw[page + 5] & flag) for page in pages] for flag in (2, 4))
    if at > len(raw) or raw[at:at + 4] == b"OggS" or not (at == len(raw) or last[-1]):
        raise ValueError(f"{name}: a sound that is cut off")
    # Streams side by side all begin before any of them goes on.
    starts = [k for k in range(len(pages)) if first[k] and not (k and first[k - 1])]
    if starts[:1] != [0]:  # it begins in the middle
        return [raw]
    places = [*pages, at]
    return [_ended(raw[places[a]:places[b]], places[b - 1] - places[a])
            for a, b in zip(starts, [*starts[1:], len(pages)], strict=True)]


def _ended(raw: bytes, at: int) -> bytes:
    """The Ogg stream with its last page, at `at`, marked as the last.

    Recorders that are stopped leave that out; libsndfile then refuses Opus.
    """
    if raw[at + 5] & 4:
        return raw
    page = bytearray(raw[at:])
    page[5] |= 4
    page[22:26] = bytes(4)
    check = 0  # RFC 3533: a CRC of 32 bits, polynomial 04C11DB7, nothing reflected
    for byte in page:
        check ^= byte << 24
        for _ in range(8):
            check = (check << 1 ^ 0x04C11DB7 * (check >> 31)) & 0xFFFFFFFF
    page[22:26] = struct.pack("<I", check)
    return raw[:at] + bytes(page)
