"""Pictures of any mode, depth and orientation: the right bytes, or a clear refusal."""

import io
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from needs import examples
from PIL import Image

from alignkit.data import Lazy, Pairs
from alignkit.data.pictures import open_picture, to_rgb
from alignkit.encoders import load
from alignkit.encoders.generic import middle


def grey(picture) -> list[int]:
    """The first row's grey values; RGB must agree."""
    assert picture.mode == "RGB"
    x = np.asarray(picture)
    assert (x == x[..., :1]).all()
    return x[0, :, 0].tolist()


def tiff(x: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(x).save(file, "TIFF")
    file.seek(0)
    return file


DEPTHS = {  # what a file holds -> what is seen
    "float 0 … 1": (np.float32([[0, 0.25, 0.5, 1]]), [0, 64, 128, 255]),
    "float 0 … 255": (np.float32([[0, 64, 127.6, 255]]), [0, 64, 128, 255]),
    "float, all black": (np.float32([[0, 0]]), [0, 0]),
    "16 bits": (np.uint16([[0, 0x4000, 0x80FF, 0xFFFF]]), [0, 64, 128, 255]),
    "16 bits, dark": (np.uint16([[0, 255, 256]]), [0, 0, 1]),
    "16 bits, big-endian": (np.array([[0, 0x4000, 0x80FF, 0xFFFF]], ">u2"),
                            [0, 64, 128, 255]),
    "32 bits that hold 8": (np.int32([[0, 64, 128, 255]]), [0, 64, 128, 255]),
    "32 bits that hold 16": (np.int32([[0, 0x4000, 0x80FF, 0xFFFF]]), [0, 64, 128, 255]),
    "32 bits": (np.int32([[0, 2**29, 2**30, 2**31 - 1]]), [0, 64, 128, 255]),
}  # fmt: skip


@pytest.mark.parametrize("depth", DEPTHS)
def test_grey_of_any_depth(depth):
    """From a file, and as an own reader would hand it to an encoder."""
    x, seen = DEPTHS[depth]
    assert grey(open_picture(tiff(x))) == seen
    assert grey(to_rgb(Image.fromarray(x))) == seen


def test_32_bits_without_a_sign():
    """PIL writes the tag SampleFormat as 2, signed; other programs leave 1."""
    signed = bytes([0x53, 1, 3, 0, 1, 0, 0, 0, 2, 0])
    for x, seen in [([0, 2**30, 2**31, 2**32 - 1], [0, 64, 128, 255]),
                    ([0, 2**30, 2**31 - 1], [0, 64, 127]), ([0, 200], [0, 200])]:
        raw = tiff(np.uint32([x]).view(np.int32)).getvalue()
        assert raw.count(signed) == 1
        raw = raw.replace(signed, signed[:8] + b"\1\0")
        assert grey(open_picture(io.BytesIO(raw))) == seen


def test_16_bits_of_png_and_pgm_are_16_however_dark():
    file = io.BytesIO()
    Image.fromarray(np.uint16([[0, 255, 512]])).save(file, "PNG")
    assert grey(open_picture(file)) == [0, 0, 2]
    pgm = io.BytesIO(b"P5 3 1 65535\n" + bytes([0, 0, 0, 255, 2, 0]))
    assert grey(open_picture(pgm)) == [0, 0, 2]


@pytest.mark.parametrize("x, seen", [
    (np.uint8([[0, 128, 255]]), [255, 127, 0]), (np.float32([[0, 0.5, 1]]), [255, 127, 0]),
    (np.uint16([[0, 0x8000, 0xFFFF]]), [255, 127, 0])])
def test_a_tiff_whose_zero_is_white(x, seen):
    raw = tiff(x).getvalue()
    shows = bytes([6, 1, 3, 0, 1, 0, 0, 0, 1])  # PhotometricInterpretation
    assert raw.count(shows) == 1
    assert grey(open_picture(io.BytesIO(raw.replace(shows, shows[:8] + b"\0")))) == seen


def test_a_value_that_is_not_drawn_in_grey_of_16_bits():
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return len(data).to_bytes(4, "big") + kind + data + check.to_bytes(4, "big")

    head = chunk(b"IHDR", bytes([0, 0, 0, 3, 0, 0, 0, 1, 16, 0, 0, 0, 0]))
    row = zlib.compress(bytes([0, 0x80, 0, 0x12, 0x34, 0x12, 0x35]))
    raw = b"\x89PNG\r\n\x1a\n" + head + chunk(b"tRNS", b"\x12\x34") + chunk(
        b"IDAT", row) + chunk(b"IEND", b"")
    assert grey(open_picture(io.BytesIO(raw))) == [128, 255, 0x12]


def test_a_picture_without_pixels_is_refused():
    for size in ((0, 4), (4, 0)):
        with pytest.raises(ValueError, match=f"{size[0]} × {size[1]} has no pixels"):
            to_rgb(Image.new("L", size))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 25))
@settings(max_examples=examples(60), deadline=None)
def test_of_a_picture_that_is_far_too_long_the_middle_is_seen(width, height, most):
    x = np.arange(width * height).reshape(height, width).astype(np.int32)
    got = np.asarray(middle(Image.fromarray(x), most))
    if max(width, height) <= most * min(width, height):
        assert np.array_equal(got, x)
        return
    long = most * min(width, height)
    assert got.min() + got.max() == x.max()  # as much is cut off on both sides
    assert max(got.shape) in (long, long + 1) and min(got.shape) == min(x.shape)


@pytest.mark.parametrize("x, message", [
    (np.float32([[-0.1, 1]]), r"0 … 1 or in 0 … 255, got -0.1 … 1: scale"),
    (np.float32([[0, 1.2]]), r"got 0 … 1.2"), (np.float32([[0, 300]]), r"got 0 … 300"),
    (np.float32([[0, np.nan]]), "got nan … nan"), (np.float32([[0, np.inf]]), "inf"),
    (np.int32([[-1, 5]]), "must not be negative, got -1"),
])  # fmt: skip
def test_values_that_no_scale_holds_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        to_rgb(Image.fromarray(x))
    with pytest.raises(ValueError, match=message):
        open_picture(tiff(x))


def turned(x: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera that stores `x` with that tag shows: the EXIF standard's table of
    where the 0th row and the 0th column stand."""
    row, column = {1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"),
                   4: ("bottom", "left"), 5: ("left", "top"), 6: ("right", "top"),
                   7: ("right", "bottom"), 8: ("left", "bottom")}[orientation]
    if row in ("left", "right"):
        x = x.swapaxes(0, 1)
    return x[::-1 if "bottom" in (row, column) else 1,
             ::-1 if "right" in (row, column) else 1]


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I;16B", "I",
         "F", "La", "RGBa", "LAB", "PA", "RGBX"]


@given(st.sampled_from(MODES), st.integers(1, 8), st.integers(1, 9), st.integers(1, 9),
       st.integers(0, 2**32 - 1))
@settings(max_examples=examples(150), deadline=None)
def test_any_mode_turned_in_any_way(mode, orientation, height, width, seed):
    draw = np.random.default_rng(seed)
    if mode == "F":
        picture = Image.fromarray(draw.random((height, width), np.float32))
    elif mode == "I":
        picture = Image.fromarray(draw.integers(0, 2**31, (height, width), np.int32))
    else:
        size = len(Image.new(mode, (width, height)).tobytes())
        picture = Image.frombytes(mode, (width, height), draw.bytes(size))
    flat = to_rgb(picture.copy())  # PIL remembers the EXIF that it saw first
    assert flat.mode == "RGB" and flat.size == (width, height)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.info["exif"] = exif.tobytes()
    assert np.array_equal(to_rgb(picture), turned(np.asarray(flat), orientation))
    if mode in ("L", "RGB", "1", "CMYK", "YCbCr"):
        assert np.array_equal(flat, picture.convert("RGB"))
    if mode in ("I;16", "I;16B"):
        wide = "<u2" if mode == "I;16" else ">u2"
        x = np.frombuffer(picture.tobytes(), wide).reshape(height, width)
        assert np.array_equal(np.asarray(flat)[..., 0], x // 256)


@pytest.mark.parametrize("part", ["PIL.Image.Image.getexif", "PIL.ImageOps.exif_transpose"])
def test_damaged_exif_costs_no_picture(tmp_path, monkeypatch, part):
    """Versions of Pillow raise ZeroDivisionError, UnicodeDecodeError, SyntaxError, …"""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 7), "red").save(tmp_path / "x.png", exif=exif)
    monkeypatch.setattr(part, lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="damaged .ZeroDivisionError.*as it is stored"):
        assert open_picture(tmp_path / "x.png").size == (9, 7)


@pytest.mark.parametrize("exif", [
    b"Exif\0\0", b"Exif\0\0junkjunk", b"Exif\0\0II*\0\xff\xff\0\0",
    b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\xe8\3\0\0\6\0\0\0",
    b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\2\0\2\0\0\0" + b"6\0\0\0\0\0\0\0",
    b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0" + b"\x09\0\0\0\0\0\0\0",
])  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_exif_of_no_use_is_left(exif):
    file = io.BytesIO()
    Image.new("RGB", (9, 7), "red").save(file, "JPEG", exif=exif)
    assert open_picture(io.BytesIO(file.getvalue())).size == (9, 7)


def test_a_palettes_transparency_and_the_inks_of_a_jpeg():
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    file = io.BytesIO()
    palette.save(file, "PNG", transparency=bytes([0, 255]))
    picture = open_picture(file)
    assert [picture.getpixel((k, 0)) for k in (0, 1)] == [(255,) * 3, (0, 0, 255)]
    inks = io.BytesIO()
    Image.new("RGB", (8, 8), (250, 10, 20)).convert("CMYK").save(inks, "JPEG", quality=95)
    assert open_picture(inks).getpixel((3, 3)) == (250, 10, 20)


def test_a_picture_of_an_own_reader_keeps_its_turn_when_it_is_saved(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    x = np.zeros((4, 6, 3), np.uint8)
    x[0, 0] = 255
    Image.fromarray(x).save(tmp_path / "x.png", exif=exif)
    pairs = Pairs.make({"image": Lazy([tmp_path / "x.png"], Image.open)})
    pairs.save(tmp_path / "saved")
    assert np.array_equal(Pairs.load(tmp_path / "saved")["image"][0], turned(x, 6))
    deep = Lazy([0], lambda _: Image.fromarray(np.float32([[0, 0.5, 1]])))
    Pairs.make({"image": deep}).save(tmp_path / "deep")
    assert grey(Pairs.load(tmp_path / "deep")["image"][0]) == [0, 128, 255]


@pytest.mark.slow
def test_a_deep_picture_has_the_features_of_the_shallow_one():
    y, x = np.mgrid[:64, :64]
    shallow = ((x * y) // 16).astype(np.uint8)
    kinds = [shallow, shallow.astype(np.uint16) << 8, shallow.astype(np.int32),
             (shallow.astype(np.uint16) << 8).astype(">u2"),
             (shallow / np.float32(255)).astype(np.float32)]
    found = load("random:image:efficientnet-lite0").encode(
        [Image.fromarray(kind) for kind in kinds])[-1]
    assert (found == found[:1]).all()


def damaged(kind: str) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    x = np.random.default_rng(0).integers(0, 255, (6, 5), np.uint8)
    how = {"tiff 16": (x.astype(">u2") * 256, "TIFF"), "tiff float": (x / 255, "TIFF"),
           "tiff 32": (x.astype(np.int32), "TIFF"), "png 16": (x.astype(np.uint16), "PNG"),
           "png": (x, "PNG"), "jpeg": (x, "JPEG"), "webp": (x, "WEBP"), "gif": (x, "GIF"),
           "bmp": (x, "BMP")}
    array, form = how[kind]
    array = array.astype(np.float32) if array.dtype == float else array
    Image.fromarray(array).save(file, form, **({"exif": exif} if form != "BMP" else {}))
    return file.getvalue()


@pytest.mark.filterwarnings("ignore")  # Pillow describes the damage
@given(st.sampled_from(["tiff 16", "tiff float", "tiff 32", "png 16", "png", "jpeg", "webp",
                        "gif", "bmp"]),
       st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=4),
       st.none() | st.integers(0, 400))
@settings(max_examples=examples(200), deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
def test_any_damaged_picture_is_read_or_refused(kind, changes, end):
    raw = bytearray(damaged(kind)[:end])
    for place, byte in changes:
        if raw:
            raw[place % len(raw)] = byte
    try:
        assert open_picture(io.BytesIO(bytes(raw))).mode == "RGB"
    except ValueError:
        pass
