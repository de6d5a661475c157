"""Videos: eight frames of what a player shows, turned as it would."""

import io
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from needs import examples

from alignkit.data.videos import decode

av = pytest.importorskip("av")


def film(count: int = 15, codec: str = "mpeg4", form: str = "mp4", *, cut: int = 0,
         change=None, size=(64, 48), cover: bool = False, sound: float = 0.0) -> bytes:
    """Frame k is grey with the value 16 k, its left upper quarter white.

    cut: so many frames lie before time 0 (an edit list hides them). change: packets ->
    packets. sound: seconds of silence beside it.
    """
    file, packets = io.BytesIO(), []
    with av.open(file, "w", format=form) as container:
        extra = container.add_stream("png") if cover else None
        stream = container.add_stream(codec, rate=5)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        if cover:
            extra.width, extra.height, extra.pix_fmt = 32, 32, "rgb24"
            extra.disposition = av.stream.Disposition.attached_pic
            red = np.full((32, 32, 3), 7, np.uint8)
            container.mux(extra.encode(av.VideoFrame.from_ndarray(red, "rgb24")))
        heard = container.add_stream("aac", rate=8000, layout="mono") if sound else None
        for k in range(count):
            grey = np.full((*size[::-1], 3), 16 * k % 256, np.uint8)
            grey[:size[1] // 2, :size[0] // 2] = 255
            packets += stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24"))
        packets += stream.encode()
        for packet in change(packets) if change else packets:
            if cut:
                shift = int(cut / 5 / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = stream
            container.mux(packet)
        for k in range(int(sound * 8000) // 1024):
            quiet = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp",
                                               "mono")
            quiet.rate, quiet.pts = 8000, 1024 * k
            container.mux(heard.encode(quiet))
        if heard:
            container.mux(heard.encode())
    return file.getvalue()


def greys(frames: torch.Tensor) -> list[int]:
    """k of each frame."""
    return frames[:, -9:, -9:].float().mean((1, 2, 3)).div(16).round().int().tolist()


def turned(a: int, b: int, c: int, d: int) -> bytes:
    """The film with this matrix in its track header: (x, y) goes to (a x + c y, b x +
    d y), x to the right and y down (ISO 14496-12, 8.3.2)."""
    raw = bytearray(film())
    at = raw.find(b"tkhd") + 4 + 40
    assert struct.unpack_from(">9i", raw, at)[:5] == (65536, 0, 0, 0, 65536)
    struct.pack_into(">9i", raw, at, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return bytes(raw)


TURNS = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0),
         (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)]


@pytest.mark.parametrize("matrix", TURNS)
def test_a_turned_video_is_set_upright(matrix):
    """Every pixel of the stored frames goes where the matrix says."""
    a, b, c, d = matrix
    stored, shown = (decode(raw, "it", 8).numpy() for raw in (film(), turned(*matrix)))
    y, x = np.mgrid[:48, :64]
    right, down = a * x + c * y, b * x + d * y
    wanted = np.zeros((8, np.ptp(down) + 1, np.ptp(right) + 1, 3), np.uint8)
    wanted[:, down - down.min(), right - right.min()] = stored
    assert np.array_equal(shown, wanted)
    assert shown.shape[1:3] == ((48, 64) if a else (64, 48))


def test_a_phones_upright_video():
    """Its frames are stored on their side; the matrix turns them clockwise."""
    frame = decode(turned(0, 1, -1, 0), "it", 8)[0]
    assert frame[:3, -3:].min() > 200 and frame[:3, :3].max() < 60


def test_frames_that_an_edit_list_hides_are_not_shown():
    raw = film(15, cut=5)
    with av.open(io.BytesIO(raw)) as container:
        assert container.streams.video[0].frames == 15
        assert sum(packet.is_discard for packet in container.demux(video=0)) == 5
    assert greys(decode(raw, "it", 8)) == [5, 6, 8, 9, 10, 11, 13, 14]
    assert greys(decode(raw, "it", 10)) == list(range(5, 15))


def test_frames_that_are_only_references_are_not_counted():
    """VP8's have a bit that says so; encoders leave some in."""

    def hide(packets):
        for k, packet in enumerate(packets):
            raw = bytearray(bytes(packet))
            raw[0] &= ~(16 if k in (3, 4, 8) else 0)
            other = av.Packet(bytes(raw))
            other.pts, other.dts, other.time_base = packet.pts, packet.dts, packet.time_base
            yield other

    raw = film(11, "libvpx", "webm", change=hide)
    assert greys(decode(raw, "it", 8)) == [0, 1, 2, 5, 6, 7, 9, 10]


def test_a_cover_is_no_video():
    assert decode(film(cover=True), "it", 8).shape == (8, 48, 64, 3)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        quiet = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        quiet.rate, quiet.pts = 8000, 0
        container.mux(stream.encode(quiet))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="^it: not a video: no moving pictures"):
        decode(file.getvalue(), "it", 8)


@pytest.mark.parametrize("codec, form", [("mpeg4", "mp4"), ("mpeg4", "avi"),
                                         ("libvpx", "webm"), ("mpeg4", "matroska")])
def test_a_video_that_is_cut_off_is_refused(codec, form):
    raw = film(40, codec, form)
    assert len(decode(raw, "it", 8)) == 8
    for share in (0.1, 0.5, 0.8):
        with pytest.raises(ValueError, match="^it: (a video that is cut off|not a video)"):
            decode(raw[:int(share * len(raw))], "it", 8)


class Pipe(io.RawIOBase):
    """Can only be written to, one byte after the other."""

    raw = b""

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.raw += bytes(data)
        return len(data)


@pytest.mark.parametrize("codec, form, how", [
    ("mpeg4", "avi", {}), ("libvpx", "webm", {}), ("mpeg4", "matroska", {}),
    ("libvpx", "webm", {"live": "1"}),
    ("mpeg4", "mp4", {"movflags": "frag_keyframe+empty_moov"}),
])
def test_a_video_from_a_pipe_is_whole(codec, form, how):
    """Its header knows neither the number of frames (an AVI then says 2**30) nor the
    seconds."""
    pipe = Pipe()
    with av.open(pipe, "w", format=form, options=how) as container:
        stream = container.add_stream(codec, rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in range(15):
            grey = np.full((48, 64, 3), 16 * k, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24")))
        container.mux(stream.encode())
    assert greys(decode(pipe.raw, "it", 8)) == [0, 2, 4, 6, 8, 10, 12, 14]


@pytest.mark.parametrize("form", ["mp4", "matroska"])
def test_a_sound_that_goes_on_longer_is_no_fault(form):
    assert greys(decode(film(10, form=form, sound=6.0), "it", 10)) == list(range(10))


def test_frames_that_change_their_size_are_refused():
    def change(packets):
        # A key frame of VP8 tells its own size.
        return packets[:5] + wide

    wide = []
    film(15, "libvpx", "webm", size=(80, 48), change=lambda found: wide.extend(found) or found)
    wide = [packet for packet in wide if packet.pts >= wide[5].pts or packet.is_keyframe]
    for k, packet in enumerate(wide):
        packet.pts = packet.dts = wide[0].pts + (1000 + 200 * k)
    with pytest.raises(ValueError, match="^it: a video whose frames change their size"):
        decode(film(15, "libvpx", "webm", change=change), "it", 8)


def test_frames_are_even_in_time_where_their_rate_changes():
    """A screen that is filmed when something moves: ten frames in a second, five after
    it, one every two seconds."""
    seconds = [k / 10 for k in range(10)] + [1 + 2 * k for k in range(5)]

    def slow(packets):
        for packet, when in zip(packets, seconds, strict=True):
            packet.time_base = Fraction(1, 1000)
            packet.pts = packet.dts = round(1000 * when)
            yield packet

    for codec, form in [("libvpx", "webm"), ("mpeg4", "matroska"), ("mpeg4", "mp4")]:
        raw = film(15, codec, form, change=slow)
        seen = [seconds[k] for k in greys(decode(raw, "it", 8))]
        for moment, when in zip(np.linspace(0, 9, 8), seen, strict=True):
            assert abs(moment - when) <= min(abs(moment - t) for t in seconds) + 1e-3


@pytest.mark.parametrize("space, red, blue", [(5, 0.299, 0.114), (1, 0.2126, 0.0722)])
@pytest.mark.parametrize("full", [False, True])
def test_colours_are_those_of_the_videos_own_matrix_and_range(space, red, blue, full):
    """BT.601 and BT.709, 16 … 235 and 0 … 255, from the standards' formulas."""
    rgb = np.repeat(np.array([[200, 30, 40], [30, 180, 60], [40, 50, 210], [128] * 3]), 16, 0)
    r, g, b = rgb.T / 255
    y = red * r + (1 - red - blue) * g + blue * b
    u, v = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
    planes = ([255 * y, 128 + 255 * u, 128 + 255 * v] if full
              else [16 + 219 * y, 128 + 224 * u, 128 + 224 * v])
    planes = np.repeat(np.stack(planes).round().clip(0, 255)[:, :, None], 64, 2)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=5, options={"qp": "0"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv444p"
        for part in (stream.codec_context,
                     frame := av.VideoFrame.from_ndarray(planes.astype(np.uint8), "yuv444p")):
            part.colorspace, part.color_range = space, 2 if full else 1
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    shown = decode(file.getvalue(), "it", 1)[0].numpy().astype(int)
    assert np.abs(shown - rgb[:, None]).max() <= 2


@pytest.mark.parametrize("width", [98, 66, 130])
def test_widths_that_are_no_multiple_of_eight_are_whole(width):
    frame = decode(film(3, size=(width, 50)), "it", 1)[0].float()
    assert frame.shape == (50, width, 3)
    assert frame[:20, :width // 2 - 8].min() > 235 and frame[30:].max() < 20


@given(st.integers(1, 40), st.integers(1, 12),
       st.sampled_from([("mpeg4", "mp4"), ("mpeg4", "avi"), ("libvpx", "webm")]))
@settings(max_examples=examples(15), deadline=None)
def test_frames_are_even_in_time_at_any_length(count, frames, kind):
    found = decode(film(count, *kind), "it", frames)
    wanted = torch.linspace(0, count - 1, frames).round().int() % 16
    assert greys(found) == wanted.tolist()


FILMS = {kind: film(12, *kind) for kind in
         [("mpeg4", "mp4"), ("mpeg4", "avi"), ("libvpx", "webm")]}


@given(st.sampled_from(sorted(FILMS)),
       st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=4),
       st.none() | st.integers(0, 8000))
@settings(max_examples=examples(100), deadline=None)
def test_any_damaged_video_is_read_or_refused(kind, changes, end):
    raw = bytearray(FILMS[kind][:end])
    for place, byte in changes:
        if raw:
            raw[place % len(raw)] = byte
    try:
        assert len(decode(bytes(raw), "it", 8)) == 8
    except ValueError as error:
        assert str(error).startswith("it: ")
