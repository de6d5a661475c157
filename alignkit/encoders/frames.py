"""Videos through a picture encoder, a frame at a time."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from alignkit.encoders.encoder import Encoder, Output, around
from alignkit.encoders.sound import join


def frame_by_frame(inner: Encoder) -> Encoder:
    """A video as the frames that `inner`, a picture encoder, sees: a token a frame, in
    their order, and the mean over them, at each of `inner`'s layers.

    The mean knows nothing of the order; only the tokens do. A video is frames
    [t, h, w, 3] (uint8, RGB) or a sequence of PIL pictures or of frames [h, w, 3];
    videos may differ in length. In a batch, frames of equal content are encoded once.
    Raises ValueError if `inner` encodes no pictures.
    """
    if inner.modality != "image":
        raise ValueError(f"frames: {inner.name} encodes {inner.modality}; give an image "
                         "encoder, such as frames:image:efficientnet-lite0")

    def run(videos: list, layers: Sequence[int]) -> dict[int, Output]:
        pictures, places, at, counts = [], {}, [], []
        for video in videos:
            frames = to_pictures(video)
            counts.append(len(frames))
            for frame in frames:
                content = hashlib.sha256(frame.tobytes()).digest()
                key = (frame.mode, frame.size, content)
                if key not in places:
                    places[key] = len(pictures)
                    pictures.append(frame)
                at.append(places[key])
        found = inner.outputs(pictures, layers)
        return {k: join(found[k].pooled[at], counts) for k in layers}

    return around(inner, "frames", "video", "mean over frames; 1", run)


def to_pictures(video) -> list:
    """The frames of a video as PIL pictures.

    Raises TypeError for what is no video, ValueError for one without frames.
    """
    from PIL import Image

    if not isinstance(video, Tensor | np.ndarray | Sequence) or isinstance(video, str):
        raise TypeError("a video encoder needs frames [t, h, w, 3] or a list of pictures "
                        f"each, got {type(video).__name__}: make the column "
                        'Lazy(…, kind="video") or a tensor [n, t, h, w, 3]')
    if not len(video):
        raise ValueError("a video needs at least one frame, got none; mark a missing "
                         "video with present={…}")
    pictures = []
    for frame in video:
        if not isinstance(frame, Image.Image):
            array = np.asarray(frame)
            if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
                raise TypeError("a frame must be a PIL picture or [h, w, 3] of uint8 "
                                f"(0 … 255), got {array.dtype} {array.shape}")
            frame = Image.fromarray(array)
        pictures.append(frame)
    return pictures
