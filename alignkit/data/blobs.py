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

from alignkit.data import sounds, videos
from alignkit.data.pictures import open_picture

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
    return sounds.decode(blob.raw, blob.name)


def video(blob: Blob, frames: int = FRAMES) -> Tensor:
    """`frames` frames [t, h, w, 3] (uint8), evenly in time. Raises ValueError."""
    return videos.decode(blob.raw, blob.name, frames)


def points(blob: Blob) -> Tensor:
    """Points [n, 3] of a safetensors file that holds them alone. Raises ValueError."""
    try:
        found = safetensors.torch.load(blob.raw)["points"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{blob.name}: no points: {error}") from None
    if found.dim() != 2 or not found.numel() or not torch.isfinite(found).all():
        raise ValueError(f"{blob.name}: points must be finite and [n, 3], got "
                         f"{list(found.shape)}")
    return found


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
