"""Files as bytes: a picture, sound, video or cloud of points out of a tar, checked."""

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from alignkit.data.tables import open_picture

ENDINGS = {
    "image": ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"),
    "sound": ("flac", "wav", "ogg", "mp3"),
    "video": ("mp4", "webm", "mkv", "avi"),
    "points": ("safetensors",),
}
COLUMN = {ending: column for column, endings in ENDINGS.items() for ending in endings}
FRAMES = 8  # of a video, evenly in time


class Blob(NamedTuple):
    """A file's bytes and the name that errors call it by."""

    name: str
    raw: bytes


class Place(NamedTuple):
    """Where a member's bytes lie in a tar of the folder, and their crc32."""

    tar: str
    member: str
    offset: int
    size: int
    crc: int


class _File(io.BytesIO):
    def __init__(self, blob: Blob):
        super().__init__(blob.raw)
        self.called = blob.name

    def __str__(self) -> str:
        return self.called


def picture(blob: Blob) -> Image.Image:
    """The picture, as `open_picture` gives it. Raises ValueError."""
    return open_picture(_File(blob))


def sound(blob: Blob) -> tuple[Tensor, int]:
    """(waveform [t] float32, rate in Hz), channels averaged. Raises ValueError."""
    import soundfile

    try:
        with soundfile.SoundFile(_File(blob)) as file:
            wave, promised = file.read(dtype="float32", always_2d=True), file.frames
            rate = file.samplerate
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise ValueError(f"{blob.name}: not a sound: {error}") from None
    if not len(wave):
        raise ValueError(f"{blob.name}: a sound without samples")
    if len(wave) < 0.9 * promised or _ends_early(blob.raw):  # 0.9: MP3s only estimate
        raise ValueError(f"{blob.name}: a sound that is cut off")
    return torch.from_numpy(wave.mean(1)), rate


def _ends_early(raw: bytes) -> bool:
    """Is it the beginning of a WAV or Ogg file? They are read without complaint."""
    if raw[:4] == b"RIFF":  # then its size; all ones where it was not known
        size = int.from_bytes(raw[4:8], "little")
        return size != 2**32 - 1 and size + 8 > len(raw)
    if raw[:4] == b"OggS":  # the last page has the flag "end of stream"
        return not raw[raw.rfind(b"OggS"):].ljust(6)[5] & 4
    return False


def video(blob: Blob, frames: int = FRAMES) -> Tensor:
    """`frames` frames [t, h, w, 3] (uint8), evenly in time. Raises ValueError."""
    import av  # an extra: only videos need it

    try:
        with av.open(_File(blob)) as container:
            count = sum(packet.size > 0 for packet in container.demux(video=0))
        at, found = torch.linspace(0, count - 1, frames).round().int().tolist(), {}
        with av.open(_File(blob)) as container:  # again: only these are kept in memory
            for number, frame in enumerate(container.decode(video=0)):
                if number in at:
                    found[number] = torch.from_numpy(frame.to_ndarray(format="rgb24"))
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise ValueError(f"{blob.name}: not a video: {error}") from None
    if set(at) - set(found):
        raise ValueError(f"{blob.name}: a video that is cut off")
    return torch.stack([found[number] for number in at])


def points(blob: Blob) -> Tensor:
    """Points [n, 3] of a safetensors file that holds them alone. Raises ValueError."""
    try:
        return safetensors.torch.load(blob.raw)["points"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{blob.name}: no points: {error}") from None


READ = {"image": picture, "sound": sound, "video": video, "points": points}
KIND = {"image": "picture", "sound": "sound", "video": "video"}


def fetch(place: Place, folder: Path) -> Blob:
    """The bytes at `place`. Raises ValueError if they are not those written."""
    with (folder / place.tar).open("rb") as file:
        file.seek(place.offset)
        raw = file.read(place.size)
    if zlib.crc32(raw) != place.crc:
        raise ValueError(f"{place.tar} {place.member}: its bytes have changed since "
                         "they were written; make the shards again")
    return Blob(f"{place.tar} {place.member}", raw)


def read(source, column: str, blob_of: Callable):
    """A row's picture, sound, video or points. Raises ValueError where it has none."""
    if source is None:
        raise ValueError(f"this row has no {column}: ask present[{column!r}] first")
    return READ[column](blob_of(source))
