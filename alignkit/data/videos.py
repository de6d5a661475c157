"""Videos: frames evenly in time, turned as the camera was."""

import io

import numpy as np
import torch
from torch import Tensor


def decode(raw: bytes, name: str, frames: int) -> Tensor:
    """`frames` frames [t, h, w, 3] (uint8, RGB) of a video's bytes, evenly in time.

    They are taken of those that a player shows, turned and mirrored as it would.

    Raises ValueError, which starts with `name`, for what is no video, is cut off or
    changes its size on the way.
    """
    import av  # an extra: only videos need it

    try:
        times, is_whole = _times(raw)
        found, shown = _pick(raw, _even(times, frames))
        if is_whole and shown and len(shown) < len(times):  # some packets show nothing
            found, shown = _pick(raw, _even(shown, frames))
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise ValueError(f"{name}: not a video: {error}") from None
    if not is_whole or len(found) < frames:
        raise ValueError(f"{name}: a video that is cut off")
    if len({frame.shape for frame in found}) > 1:
        raise ValueError(f"{name}: a video whose frames change their size")
    return torch.from_numpy(np.stack(found))


def _times(raw: bytes) -> tuple[list, bool]:
    """(when the packets that show a frame do, as far as can be told; are all here that
    the header speaks of?). Nothing is decoded."""
    import av

    times, packets = [], 0
    first, last = [], []
    with av.open(io.BytesIO(raw)) as container:
        film = _film(container)
        for packet in container.demux():
            if packet.pts is not None:
                first.append(packet.pts * packet.time_base)
                last.append((packet.pts + (packet.duration or 0)) * packet.time_base)
            if packet.stream.index == film.index and packet.size:
                packets += 1
                if not packet.is_discard:  # cut away without a new coding
                    times.append(packet.pts)
        told = float(container.duration or 0) / av.time_base
    heard = float(max(last) - min(first)) if last else told
    if film.frames > len(raw):  # written to a pipe: an AVI then says 2**30
        return times, True
    return times, packets >= film.frames and heard >= 0.9 * told


def _even(times: list, frames: int) -> list[int]:
    """Which of the frames shown at `times` (in any order of decoding) are the nearest to
    `frames` moments, evenly from the first to the last.

    Where a time is not known, or the frames come at one rate, their numbers are as good.
    """
    numbers = torch.linspace(0, len(times) - 1, frames).round().int().tolist()
    if len(times) < 3 or None in times:
        return numbers
    when = np.sort(np.array(times, float))
    steps = np.diff(when)
    if steps.min() <= 0 or steps.max() - steps.min() <= 0.2 * steps.mean():
        return numbers
    moments = np.linspace(when[0], when[-1], frames)
    return np.abs(when[:, None] - moments).argmin(0).tolist()


def _pick(raw: bytes, at: list[int]) -> tuple[list[np.ndarray], list]:
    """(the frames of the numbers `at`, as far as they are here; when all are shown)."""
    import av

    found, times = {}, []
    with av.open(io.BytesIO(raw)) as container:  # only what is asked for is kept
        for number, frame in enumerate(container.decode(_film(container))):
            times.append(frame.pts)
            if number in at:
                found[number] = _upright(frame)
    return [found[number] for number in at if number in found], times


def _film(container):
    """The first stream of moving pictures. Raises ValueError if there is none."""
    from av.stream import Disposition

    # A cover is a stream, too; without a decoder PyAV below 18.1 ends the process.
    films = [stream for stream in container.streams.video if stream.codec_context
             and not stream.disposition & Disposition.attached_pic]
    if not films:
        raise ValueError("no moving pictures in it")
    return films[0]


def _upright(frame) -> np.ndarray:
    """A frame [h, w, 3] turned by its display matrix: (x, y) is shown at (a x + c y,
    b x + d y), the nearest of the eight ways that a photograph can be turned."""
    picture = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        picture, a, d = picture.transpose(1, 0, 2), c, b
    return picture[::-1 if d < 0 else 1, ::-1 if a < 0 else 1].copy()
