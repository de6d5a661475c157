"""What the headers of WAV, AIFF, AU, W64, CAF and RF64 say of the samples, mended where
it is not so."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

# Writers to a pipe cannot go back to fill in a size. They leave 0 or one of 7F000000,
# 7FFFF000, 7FFFFFFF, 80000000, FFFFFFFF: from here on a size of 32 bits says nothing.
UNKNOWN = {"I": 0x7F000000, "Q": 2**62}


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
USUAL = (b"fmt ", b"data", b"fact", b"LIST", b"COMM", b"SSND")


def with_its_length(raw: bytes, name: str) -> bytes:
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


def with_its_padding(raw: bytes) -> bytes:
    """A WAV or AIFF with the byte that belongs behind a chunk of odd length, where its
    writer left that out (of at most eight chunks): the next one stands right behind it."""
    for _ in range(8):
        ends = (chunk.start + chunk.size for chunk in _chunks(raw)
                if LAYOUTS.get(raw[:4], (0,))[-1] == 2 and chunk.size % 2)
        if (end := next((at for at in ends if _begins(raw, at)), None)) is None:
            break
        raw = raw[:end] + b"\0" + raw[end:]
    return raw


def _begins(raw: bytes, at: int) -> bool:
    """Does a chunk begin here, and not one byte further on?"""
    def is_name(name: bytes) -> bool:
        return len(name) == 4 and name.isascii() and name.decode().isprintable()

    here, further = raw[at:at + 4], raw[at + 1:at + 5]
    return here in USUAL or is_name(here) and not is_name(further)


def with_its_width(raw: bytes) -> bytes:
    """A WAV whose samples are wider than they have bits (24 in four bytes), as one of so
    many bits: the bits stand at the upper end (mmreg.h), and libsndfile reads the samples
    as if they stood side by side."""
    if raw[:4] not in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return raw
    head = next((c for c in _chunks(raw) if c.name == b"fmt "), None)
    if head is None or head.size < 16 or head.start + 16 > len(raw):
        return raw
    form = LAYOUTS[raw[:4]][0] + "HHIIHH"
    kind, channels, rate, second, frame, bits = struct.unpack_from(form, raw, head.start)
    agree = channels and second == rate * frame and frame % channels == 0
    wide = 8 * frame // channels if agree else 0
    if kind != 1 or not bits < wide <= 32 or (bits + 7) // 8 * 8 == wide:
        return raw
    at = head.start + 14
    return raw[:at] + struct.pack(form[0] + "H", wide) + raw[at + 2:]


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
