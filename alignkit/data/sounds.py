"""Sounds: a file's bytes decoded to their end, and a reader's samples scaled by their
type, both to a waveform in -1 … 1 and its rate."""

import io
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**20  # values at a time
# Writers to a pipe cannot go back to fill in a size. They leave 0 or one of 7F000000,
# 7FFFF000, 7FFFFFFF, 80000000, FFFFFFFF: from here on a size of 32 bits says nothing.
UNKNOWN = {"I": 0x7F000000, "Q": 2**62}
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
    alone (Ogg streams one after the other) are not believed.

    Raises ValueError, which starts with `name`, for what is no sound, has no samples or
    is cut off.
    """
    import soundfile

    try:
        read = [_read(part, name) for part in _parts(_with_its_length(raw, name), name)]
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
    at = 0
    if raw[:3] == b"ID3":  # a size of four times seven bits, behind ten bytes
        at = 10 + sum((byte & 127) << shift
                      for byte, shift in zip(raw[6:10], (21, 14, 7, 0), strict=False))
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


class _Chunk(NamedTuple):
    """The chunk of a file: where its size stands, how it is written, where it begins."""

    name: bytes
    place: int
    form: str
    start: int
    size: int


# What a file begins with -> byte order, first chunk, length of a chunk's name, its size's
# type, how much of the size is the chunk's own head, what its end is rounded up to.
LAYOUTS = {
    b"RIFF": ("<", 12, 4, "I", 0, 2), b"RIFX": (">", 12, 4, "I", 0, 2),
    b"RF64": ("<", 12, 4, "I", 0, 2), b"BW64": ("<", 12, 4, "I", 0, 2),
    b"FORM": (">", 12, 4, "I", 0, 2), b"riff": ("<", 40, 16, "Q", 24, 8),
    b"caff": (">", 8, 4, "Q", 0, 1),
}  # fmt: skip


def _with_its_length(raw: bytes, name: str) -> bytes:
    """The file with the size of its samples written in, where it had not been known.

    Raises ValueError if it was known and fewer are here.
    """
    found = next((c for c in _chunks(raw) if c.name[:4] in (b"data", b"SSND", b"BODY")),
                 None)
    if found is None or found.start > len(raw):
        return raw
    own = LAYOUTS[raw[:4]][4] if raw[:4] in LAYOUTS else 0
    rest = len(raw) - found.start + own
    head = own + {b"SSND": 8}.get(found.name, 0)  # of a chunk without samples
    empty = found.size <= head and not _is_finished(raw)
    if empty or found.size >= UNKNOWN[found.form[1]]:
        size = struct.pack(found.form, rest)
        return raw[:found.place] + size + raw[found.place + len(size):]
    if found.size > rest:
        raise ValueError(f"{name}: a sound that is cut off")
    return raw


def _chunks(raw: bytes) -> Iterator[_Chunk]:
    """The chunks of a WAV, RF64, W64, AIFF or CAF file; of AU the one that it has."""

    def number(form: str, at: int) -> int:
        return struct.unpack_from(form, raw, at)[0]

    if raw[:4] == b".snd" and len(raw) >= 24:
        yield _Chunk(b"data", 8, ">I", number(">I", 4), number(">I", 8))
    if raw[:4] not in LAYOUTS:
        return
    order, at, letters, kind, own, whole = LAYOUTS[raw[:4]]
    form, head = order + kind, letters + struct.calcsize(kind)
    while at + head <= len(raw):
        called, size = raw[at:at + letters], number(form, at + letters)
        place, wide = at + letters, form
        if raw[:4] in (b"RF64", b"BW64") and called == b"data" and size == 2**32 - 1:
            place, wide = 28, "<Q"  # in the first chunk, ds64
            size = number(wide, place)
        yield _Chunk(called, place, wide, at + head, size)
        at += head + max(size - own, 0)
        at += -at % whole


def _is_finished(raw: bytes) -> bool:
    """Is the whole file's size right? Then what is empty in it is meant to be."""
    place, form, own = {b"RF64": (20, "<Q", 8), b"BW64": (20, "<Q", 8),
                        b"riff": (16, "<Q", 0), b"RIFF": (4, "<I", 8)}.get(
                            raw[:4], (4, ">I", 8))
    if raw[:4] in (b".snd", b"caff"):
        return raw[:4] == b"caff"  # has a number of its own for "not known"
    return abs(struct.unpack_from(form, raw, place)[0] + own - len(raw)) <= 1
