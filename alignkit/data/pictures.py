"""Pictures of any mode as RGB of 8 bits, upright, transparency laid on white."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 80_000_000
ORIENTATION, PHOTOMETRIC, SAMPLE_FORMAT = 0x0112, 262, 339  # tags of EXIF and of TIFF


def open_picture(path: Path) -> Image.Image:
    """The picture as RGB, upright; transparency is laid on white.

    Raises ValueError for a file that is not a picture, is truncated or too large.
    """
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height <= MAX_PIXELS:
                return to_rgb(picture)
            size = f"{picture.width} × {picture.height} pixels"
    except FileNotFoundError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        size = str(error)
    except Exception as error:  # Pillow's readers raise anything on damaged files
        raise ValueError(f"{path}: not a picture that Pillow reads: {error}") from None
    raise ValueError(f"{path} is too large ({size}): make it smaller, {MAX_PIXELS:,} "
                     "pixels in all are read at most")


def to_rgb(picture: Image.Image) -> Image.Image:
    """The picture as RGB of 8 bits, as a camera turned it, transparent parts white.

    Grey of more bits is scaled, not cut: 16 bits a pixel by 256; 32 bits by what its
    largest value needs, 8, 16 or all of them; floats by 255 if they lie in 0 … 1, not
    at all in 0 … 255.

    Raises TypeError for what is no picture of PIL, ValueError for one without pixels or
    with values out of these.
    """
    if not isinstance(picture, Image.Image):
        raise TypeError("an image encoder needs PIL pictures, got "
                        f"{type(picture).__name__}: make the column Lazy pictures")
    if not picture.width * picture.height:
        raise ValueError(f"a picture of {picture.width} × {picture.height} has no pixels")
    tags = getattr(picture, "tag_v2", None)
    unsigned = tags is not None and 1 in tags.get(SAMPLE_FORMAT, (1,))
    white_is_zero = tags is not None and tags.get(PHOTOMETRIC) == 0
    sixteen = picture.format in ("PNG", "PPM")  # grey of more than 8 bits is of 16
    picture = _upright(picture)
    if picture.mode == "F" or picture.mode.startswith("I"):
        x = np.asarray(picture)
        grey = (_floats(x) if picture.mode == "F" else _integers(x, unsigned, sixteen)
                if picture.mode == "I" else (x >> 8).astype(np.uint8))
        grey = 255 - grey if white_is_zero else grey  # of 8 bits Pillow turns it itself
        clear = picture.info.get("transparency")  # a value that is not drawn
        picture = Image.fromarray(np.where(x == clear, np.uint8(255), grey)
                                  if isinstance(clear, int) else grey)
    elif picture.mode == "La":  # converts to nothing else
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        picture = Image.alpha_composite(white, layer)
    return picture.copy() if picture.mode == "RGB" else picture.convert("RGB")


def _upright(picture: Image.Image) -> Image.Image:
    picture.load()  # a file that is cut off is told as that
    try:
        if picture.getexif().get(ORIENTATION, 1) != 1:
            return ImageOps.exif_transpose(picture)
    except Exception as error:  # Pillow's readers raise anything on damaged EXIF or XMP
        warnings.warn(f"a picture's notes on its turn are damaged ({error!r}): it is taken "
                      "as it is stored", stacklevel=3)
    return picture


def _floats(x: np.ndarray) -> np.ndarray:
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    if not (low >= 0 and (high <= 1 or 2 <= high <= 255)):  # NaN is none of these
        raise ValueError("a picture of floats must lie in 0 … 1 or in 0 … 255, got "
                         f"{low:g} … {high:g}: scale it first")
    return (x * 255 if high <= 1 else x).round().astype(np.uint8)


def _integers(x: np.ndarray, unsigned: bool, sixteen: bool) -> np.ndarray:
    """32 bits [h, w], which PIL keeps signed whatever they were in the file."""
    x = x.view(np.uint32) if unsigned else x
    high = int(x.max(initial=0))
    if (x < 0).any():
        raise ValueError(f"a picture of integers must not be negative, got {x.min()}: "
                         "scale it first")
    whole = 24 if unsigned else 23  # a sign takes one of the 32
    shift = 0 if high < 2**8 and not sixteen else 8 if high < 2**16 else whole
    return (x >> shift).astype(np.uint8)
