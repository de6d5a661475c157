"""Sounds: decoded to their end whatever the header says, scaled by their type, resampled
at any rate."""

import io
import math
import struct
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from needs import examples
from test_encoders import cosines

from alignkit.data import Lazy, Pairs
from alignkit.data.blobs import Blob, sound
from alignkit.data.sounds import as_wave, decode
from alignkit.encoders import load
from alignkit.encoders import sound as resampling
from alignkit.encoders.sound import one_step, resample, to_waves


@cache
def noise(samples: int = 5000, form: str = "WAV", rate: int = 16_000, seed: int = 0,
          **how) -> bytes:
    draw = np.random.default_rng(seed)
    file = io.BytesIO()
    soundfile.write(file, draw.uniform(-0.5, 0.5, samples), rate, format=form, **how)
    return file.getvalue()


def wave(raw: bytes) -> torch.Tensor:
    return decode(raw, "it")[0]


# Lengths that the header does not know ---------------------------------------------------


# What a pipe's writer leaves, and where: (place of the size of the samples, its type).
SIZES = {
    "WAV": (0x7FFFF000, (lambda raw: raw.find(b"data") + 4, "<I")),
    "AIFF": (0x7F000008, (lambda raw: raw.find(b"SSND") + 4, ">I")),
    "AU": (2**32 - 1, (lambda raw: 8, ">I")),
    "W64": (2**63 - 1, (lambda raw: raw.find(b"data") + 16, "<Q")),
    "CAF": (2**64 - 1, (lambda raw: raw.find(b"data") + 4, ">Q")),
    "RF64": (2**64 - 1, (lambda raw: 28, "<Q")),
}  # fmt: skip


def with_sizes(form: str, whole: int, samples: int) -> bytes:
    """The file with other sizes of the whole and of its samples."""
    raw = bytearray(noise(form=form))
    place, number = SIZES[form][1]
    outer = {"WAV": (4, "<I"), "AIFF": (4, ">I"), "W64": (16, "<Q"), "RF64": (20, "<Q")}
    if form in outer:
        struct.pack_into(outer[form][1], raw, outer[form][0], whole)
    struct.pack_into(number, raw, place(raw), samples)
    return bytes(raw)


PIPES = [  # the writers that leave them: FFmpeg, SoX, arecord, Python's wave, …
    *(("WAV", *sizes) for sizes in [
        (0, 0), (2**32 - 1, 2**32 - 1), (0x7FFFF024, 0x7FFFF000), (0x24, 0),
        (0x80000024, 0x80000000), (0x7FFFFFFF, 0x7FFFFFFF), (0, 2**32 - 1),
        (0x7F000024, 0x7F000000)]),
    *(("AIFF", *sizes) for sizes in [
        (0, 0), (46, 8), (2**32 - 1, 2**32 - 1), (0x7F00002E, 0x7F000008)]),
    *(("AU", 0, size) for size in (0, 2**32 - 1, 0x7F000000)),
    *(("W64", 0, size) for size in (0, 24, 2**63 - 1, 2**64 - 1)),
    *(("RF64", size, size) for size in (0, 2**64 - 1, 2**63 - 1)),
    ("CAF", 0, 2**64 - 1),
]  # fmt: skip


@pytest.mark.parametrize("form, whole, samples", PIPES)
def test_a_sound_from_a_pipe_is_whole(form, whole, samples):
    known = noise(form=form)
    raw = with_sizes(form, whole, samples)
    assert raw != known and len(wave(raw)) == 5000
    assert torch.equal(wave(raw), wave(known))
    assert torch.equal(sound(Blob("it", raw))[0], wave(known))
    for share in (0.5, 0.999):  # of the known one
        with pytest.raises(ValueError, match="^it: a sound that is cut off"):
            wave(known[:int(share * len(known))])


def test_flac_without_its_count_of_samples():
    raw = bytearray(noise(60_000, "FLAC"))
    raw[21] &= 0xF0  # 36 bits
    raw[22:26] = bytes(4)
    assert torch.equal(wave(bytes(raw)), wave(noise(60_000, "FLAC")))
    with pytest.raises(ValueError, match="it: not a sound"):
        wave(bytes(raw[:-100]))


def test_an_empty_sound_with_a_note_behind_it_stays_empty():
    raw = noise(0) + b"LIST" + struct.pack("<I", 8) + b"INFOabcd"
    raw = raw[:4] + struct.pack("<I", len(raw) - 8) + raw[8:]
    with pytest.raises(ValueError, match="it: a sound without samples"):
        wave(raw)


def test_a_note_that_is_cut_off_is_no_loss():
    raw = noise() + b"LIST" + struct.pack("<I", 800) + b"INFOabcd"
    raw = raw[:4] + struct.pack("<I", len(noise()) + 800) + raw[8:]
    assert torch.equal(wave(raw), wave(noise()))


@pytest.mark.parametrize("form, order", [("WAV", "<"), ("AIFF", ">")])
@pytest.mark.parametrize("pad", [b"", b"\0"])
def test_chunks_of_odd_length_with_and_without_the_byte_behind_them(form, order, pad):
    raw = noise(form=form)
    for name, size in ((b"inst", 7), (b"note", 5)):
        chunk = name + struct.pack(f"{order}I", size) + b"x" * size + pad
        raw = raw[:12] + chunk + raw[12:]
    raw = raw[:4] + struct.pack(f"{order}I", len(raw) - 8) + raw[8:]
    assert torch.equal(wave(raw), wave(noise(form=form)))


def test_more_than_two_channels_and_big_endian_from_a_pipe():
    for how in ({"endian": "BIG"}, {"subtype": "PCM_24"}, {"subtype": "FLOAT"}):
        file = io.BytesIO()
        x = np.random.default_rng(0).uniform(-0.5, 0.5, (999, 3))
        soundfile.write(file, x, 8000, format="WAV", **how)
        raw = bytearray(file.getvalue())
        order = ">" if raw[:4] == b"RIFX" else "<"
        struct.pack_into(f"{order}I", raw, raw.find(b"data") + 4, 0x7FFFF000)
        got, rate = decode(bytes(raw), "it")
        assert rate == 8000
        np.testing.assert_allclose(got, x.mean(1), atol=1e-4)


KINDS = [(form, subtype) for form, subtypes in {
    "WAV": ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"],
    "AIFF": ["PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "ULAW"],
    "AU": ["PCM_S8", "PCM_16", "PCM_24", "FLOAT", "ALAW"],
    "W64": ["PCM_16", "FLOAT"], "RF64": ["PCM_16", "PCM_24"], "CAF": ["PCM_16", "FLOAT"],
    "FLAC": ["PCM_S8", "PCM_16", "PCM_24"],
}.items() for subtype in subtypes]  # fmt: skip


@given(st.sampled_from(KINDS), st.integers(1, 3000), st.integers(1, 4),
       st.sampled_from([8000, 11_127, 44_100, 96_000]), st.integers(0, 2**16), st.booleans())
@settings(max_examples=examples(100), deadline=None)
def test_any_coding_length_and_channels_from_a_pipe_or_not(kind, n, channels, rate, seed,
                                                           piped):
    form, subtype = kind
    # Bytes that fill up the last word are told by the length alone; and libsndfile counts
    # those that it writes into an AIFF.
    n = 8 * n if piped or form == "AIFF" else n
    x = np.random.default_rng(seed).uniform(-0.5, 0.5, (n, channels))
    file = io.BytesIO()
    soundfile.write(file, x, rate, format=form, subtype=subtype)
    raw = bytearray(file.getvalue())
    if piped and form == "FLAC":
        raw[21] &= 0xF0
        raw[22:26] = bytes(4)
    elif piped:
        unknown, where = SIZES[form]
        struct.pack_into(where[1], raw, where[0](raw), unknown)
    got, found = decode(bytes(raw), "it")
    steps = {"PCM_U8": 2**-7, "PCM_S8": 2**-7, "ULAW": 2**-5, "ALAW": 2**-5}
    assert found == rate and len(got) == n
    np.testing.assert_allclose(got, x.mean(1), atol=steps.get(subtype, 2**-14))
    assert torch.equal(got, wave(file.getvalue()))


@pytest.mark.parametrize("form", ["WAV", "AIFF", "AU", "W64", "CAF", "RF64", "FLAC", "OGG"])
def test_a_tag_in_front_costs_no_sample(form):
    """libsndfile skips the tag and then believes that the file is as much shorter."""
    for size in (0, 7, 300):
        tag = b"ID3\4\0\0" + bytes([0, 0, size >> 7, size & 127]) + bytes(size)
        assert torch.equal(wave(tag + noise(form=form)), wave(noise(form=form)))


@given(st.integers(1, 200), st.integers(1, 3), st.sampled_from([
    (bits, wide) for wide in (2, 3, 4) for bits in range(8 * wide - 15, 8 * wide + 1)]),
       st.sampled_from("<>"), st.integers(0, 2**16))  # fmt: skip
@settings(max_examples=examples(60), deadline=None)
def test_samples_wider_than_their_bits_are_read_from_the_upper_end(n, channels, kind, order,
                                                                   seed):
    bits, wide = kind
    x = np.random.default_rng(seed).integers(-2**(bits - 1), 2**(bits - 1), (n, channels))
    left = (x << 8 * wide - bits).astype("<i8" if order == "<" else ">i8")
    rows = left.view(np.uint8).reshape(n, channels, 8)
    data = rows[..., :wide].tobytes() if order == "<" else rows[..., 8 - wide:].tobytes()
    head = struct.pack(f"{order}HHIIHH", 1, channels, 8000, 8000 * wide * channels,
                       wide * channels, bits)
    body = b"WAVEfmt " + struct.pack(f"{order}I", 16) + head + b"data" + struct.pack(
        f"{order}I", len(data)) + data + bytes(len(data) % 2)
    raw = (b"RIFF" if order == "<" else b"RIFX") + struct.pack(f"{order}I", len(body)) + body
    got, rate = decode(raw, "it")
    assert rate == 8000 and len(got) == n
    np.testing.assert_allclose(got, x.mean(1) / 2**(bits - 1), atol=2**-15, rtol=0)


# MP3 and Ogg -----------------------------------------------------------------------------


@cache
def music() -> bytes:
    """An MP3 of variable bit rate: two quiet seconds, then six loud ones."""
    t = np.arange(352_800) / 44_100
    draw = np.random.default_rng(0)
    x = np.where(t < 2, 0.3 * np.sin(2 * np.pi * 440 * t), draw.uniform(-0.5, 0.5, len(t)))
    file = io.BytesIO()
    soundfile.write(file, x, 44_100, format="MP3", bitrate_mode="VARIABLE",
                    compression_level=0.1)
    return file.getvalue()


def frames(raw: bytes) -> list[bytes]:
    """The frames of an MPEG-1 layer III stream."""
    kbit = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320]
    found, at = [], 0
    while raw[at:at + 1] == b"\xff":
        padding = raw[at + 2] >> 1 & 1
        size = 144_000 * kbit[raw[at + 2] >> 4] // 44_100 + padding
        found.append(raw[at:at + size])
        at += size
    return found


needs_vbr = pytest.mark.skipif(tuple(map(int, soundfile.__version__.split(".")[:2]))
                               < (0, 13), reason="this soundfile writes no VBR")


@needs_vbr
def test_an_mp3_without_a_xing_header_is_decoded_to_its_end():
    tag, *rest = frames(music())
    assert b"Xing" in tag and len({len(frame) for frame in rest}) > 2
    whole, bare = wave(music()), wave(b"".join(rest))
    assert len(whole) == 352_800 and len(bare) == 1152 * len(rest)
    # Without the tag nobody knows of the encoder's delay, 576 + 529 samples.
    torch.testing.assert_close(bare[1105:1105 + 352_800], whole, atol=1e-3, rtol=0)
    assert torch.equal(wave(b"".join(rest) + b"TAG" + bytes(125)), bare)
    with pytest.raises(ValueError, match="cut off"):
        wave(music()[:len(music()) // 2])


@needs_vbr
def test_mp3s_one_after_the_other_are_heard_to_the_end():
    both = wave(music() + music())
    assert len(both) >= 2 * 352_800
    cover = b"ID3\4\0\0" + bytes([0, 1, 0, 0]) + bytes(2**14)
    assert torch.equal(wave(cover + music()), wave(music()))


@pytest.mark.parametrize("how", [{}, {"subtype": "OPUS"}])
def test_oggs_one_after_the_other_are_heard_to_the_end(how):
    one, two = noise(9000, "OGG", **how), noise(7000, "OGG", seed=1, **how)
    assert torch.equal(wave(one + two), torch.cat([wave(one), wave(two)]))
    with pytest.raises(ValueError, match=r"other rates, \[8000, 16000\] Hz"):
        wave(one + noise(7000, "OGG", 8000, **how))
    for raw in (one[:-1], one + two[:len(two) // 2], one[:100]):
        with pytest.raises(ValueError, match="^it: .*(cut off|not a sound)"):
            wave(raw)


def without_its_end(raw: bytes) -> bytes:
    """An Ogg file as a recorder leaves it that is stopped: no page is the last."""
    at = raw.rfind(b"OggS")
    page = bytearray(raw[at:])
    page[5] &= ~4
    page[22:26] = bytes(4)
    check = 0
    for byte in page:
        check ^= byte << 24
        for _ in range(8):
            check = ((check << 1) ^ (0x04C11DB7 if check >> 31 else 0)) & 0xFFFFFFFF
    return raw[:at] + bytes(page[:22]) + struct.pack("<I", check) + bytes(page[26:])


@pytest.mark.parametrize("how", [{}, {"subtype": "OPUS"}])
@pytest.mark.parametrize("samples", [900, 50_000])
def test_an_ogg_whose_end_is_not_marked_is_whole(how, samples):
    raw = noise(samples, "OGG", **how)
    open_ended = without_its_end(raw)
    assert len(open_ended) == len(raw) and open_ended != raw
    assert torch.equal(wave(open_ended), wave(raw))
    assert torch.equal(wave(open_ended + raw), torch.cat([wave(raw)] * 2))
    for torn in (open_ended[:-1], raw + open_ended[:20], open_ended + b"OggS"):
        with pytest.raises(ValueError, match="^it: a sound that is cut off"):
            wave(torn)


@pytest.mark.parametrize("form, subtype", [
    ("WAV", "ULAW"), ("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM"), ("WAVEX", "PCM_24"),
    ("AIFF", "ALAW"), ("AIFF", "FLOAT"), ("AU", "ULAW"), ("CAF", "ALAC_16")])
def test_codings_from_a_pipe(form, subtype):
    raw = bytearray(noise(2000, form, subtype=subtype))
    unknown, (place, number) = SIZES["WAV" if form == "WAVEX" else form]
    struct.pack_into(number, raw, place(raw), unknown)
    assert torch.equal(wave(bytes(raw)), wave(noise(2000, form, subtype=subtype)))


@pytest.mark.filterwarnings("ignore:Chunk")
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT"])
def test_scipys_samples_are_those_of_the_file(subtype):
    """24 bits come as int32 with the value in the upper three bytes."""
    from scipy.io import wavfile

    rate, samples = wavfile.read(io.BytesIO(noise(subtype=subtype)))
    torch.testing.assert_close(as_wave((samples, rate))[0], wave(noise(subtype=subtype)),
                               atol=1e-7, rtol=0)


# What a reader of one's own gives --------------------------------------------------------


@given(st.sampled_from(["int8", "uint8", "int16", "int32"]), st.sampled_from("<>"),
       st.lists(st.floats(-1, 0.99), min_size=1, max_size=20), st.booleans())
@settings(max_examples=examples(150), deadline=None)
def test_integers_are_scaled_by_their_type(kind, order, values, as_tensor):
    full = {"int8": 2**7, "uint8": 2**7, "int16": 2**15, "int32": 2**31}[kind]
    x = np.floor(np.array(values) * full)
    samples = (x + (128 if kind == "uint8" else 0)).astype(np.dtype(kind).newbyteorder(order))
    if as_tensor:
        samples = torch.from_numpy(samples.astype(kind))
    got, rate = as_wave((samples, np.int64(8000)))
    assert got.dtype == torch.float32 and rate == 8000 and isinstance(rate, int)
    np.testing.assert_array_equal(got, (x / full).astype(np.float32))


@pytest.mark.parametrize("samples", [
    torch.tensor([0.5, -1.5]), torch.tensor([0.5, -1.5], dtype=torch.bfloat16),
    torch.tensor([0.5, -1.5], requires_grad=True), np.array([0.5, -1.5], ">f4"),
    np.array([0.5, -1.5], np.longdouble), np.array([0.5, -1.5], np.float16), [0.5, -1.5],
])  # fmt: skip
def test_floats_stay_as_they_are(samples):
    got, rate = as_wave((samples, 11_025.5))
    assert got.tolist() == [0.5, -1.5] and not got.requires_grad and rate == 11_025.5


@pytest.mark.parametrize("samples, rate, message", [
    ([1, 2], 8000, "got int64: divide by its full scale"),
    (np.uint16([1]), 8000, "got uint16"), (np.array([True]), 8000, "got bool"),
    (np.array([1j]), 8000, "got complex128"), (np.array(["a"]), 8000, "got str"),
    (np.array([None]), 8000, "got object"), (torch.tensor([1]), 8000, "got int64"),
    (np.float32([3000, -5]), 8000, "lies in -1 … 1, got 3,000: .*32768"),
    (np.zeros((5, 2), np.int16), 8000, r"one channel, got \(5, 2\)"),
    (np.int16([]), 8000, r"got \(0,\)"), (np.float32([np.inf]), 8000, "must be finite"),
    (np.float64([1e300]), 8000, "must be finite"), (np.float32(0.5), 8000, r"got \(\)"),
    ([0.5], 0, "rate must be a number of Hz.*got 0"), ([0.5], -8000, "got -8000"),
    ([0.5], float("nan"), "got nan"), ([0.5], None, "got None"), ([0.5], "8k", "'8k'"),
])  # fmt: skip
def test_what_has_no_scale_or_rate_is_refused(samples, rate, message):
    with pytest.raises((TypeError, ValueError), match=message):
        as_wave((samples, rate))


def test_integers_have_the_features_of_the_floats():
    t = np.arange(16_000) / 16_000
    x = np.round(9000 * np.sin(2 * np.pi * 440 * t) * (1 - t))
    kinds = [(x / 2**15).astype(np.float32), x.astype(np.int16),
             torch.from_numpy(x.astype(np.int32) * 2**16)]
    found = load("random:sound:yamnet").encode([(kind, 16_000) for kind in kinds])[-1]
    assert (found == found[:1]).all()


def test_integers_are_saved_as_the_sound_that_they_are(tmp_path):
    x = np.int16([0, 2**14, -(2**15)])
    Pairs.make({"voice": Lazy([0], lambda _: (x, 8000), "sound")}).save(tmp_path / "p")
    got, rate = Pairs.load(tmp_path / "p")["voice"][0]
    assert got.tolist() == [0, 0.5, -1] and rate == 8000
    odd = Pairs.make({"voice": Lazy([0], lambda _: (x, 8000.5), "sound")})
    with pytest.raises(ValueError, match="voice: row 0 has 8000.5 Hz"):
        odd.save(tmp_path / "q")


# Rates -----------------------------------------------------------------------------------


def tones(rate: float, seconds: float, top: float) -> torch.Tensor:
    """Sines below `top` Hz that swell and die away, at any rate the same sound."""
    t = torch.arange(math.ceil(seconds * rate), dtype=torch.float64) / rate
    bell = torch.exp(-((t - seconds / 2) / (seconds / 9)) ** 2)
    pitches = torch.tensor([0.03, 0.21, 0.5, 0.97], dtype=torch.float64) * top
    return (bell * torch.sin(2 * torch.pi * t[:, None] * pitches + 1).mean(1)).float()


@pytest.mark.slow
@given(st.one_of(st.integers(1000, 24_000), st.sampled_from(
           [8000, 11_025, 11_127, 22_050, 22_254, 44_100, 48_000, 96_000, 11_127.25])),
       st.sampled_from([16_000, 48_000]), st.floats(0.3, 0.6))  # fmt: skip
@settings(max_examples=examples(5), deadline=None)
def test_any_rate_becomes_another_exactly(old, new, seconds):
    top = 0.43 * min(old, new)  # below what the filter begins to take
    given_ = tones(old, seconds, top)
    got, wanted = resample(given_, old, new), tones(new, seconds, top)
    assert len(got) == math.ceil(len(given_) * Fraction(new) / Fraction(old))
    n = min(len(got), len(wanted))
    torch.testing.assert_close(got[:n], wanted[:n], atol=1e-6, rtol=0)


def test_what_lies_above_the_new_rates_half_is_taken_out():
    for old in (44_100, 44_101):
        high = torch.sin(2 * torch.pi * 9000 * torch.arange(old).double() / old)
        assert resample(high.float(), old, 16_000)[500:-500].abs().max() < 1e-4


def test_an_odd_rate_costs_little_memory():
    """0.1 s at 11,127 Hz took 3.3 GB: what scipy and numpy take is traced."""
    import tracemalloc

    resampling._kernel.cache_clear()
    tracemalloc.start()
    got = resample(torch.ones(1113), 11_127, 16_000)
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()
    assert len(got) == math.ceil(1113 * 16_000 / 11_127)


@pytest.mark.slow
def test_a_usual_and_an_odd_rate_give_the_same_features():
    rows = [(tones(rate, 0.6, 5000), rate) for rate in (16_000, 22_051, 44_101, 22_050)]
    found = load("random:sound:yamnet").encode(rows)[-1]
    assert cosines(found, found[:1].expand(4, -1)).min() > 0.9999


def test_a_sound_shorter_than_a_models_first_step_gets_silence_behind_it():
    """wav2vec 2.0 needs 400 samples for its first output, and refused fewer."""
    kernels, strides = [10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2]
    least = one_step(kernels, strides)
    x = torch.ones(1, 1, least)
    for kernel, stride in zip(kernels, strides, strict=True):
        x = torch.nn.functional.conv1d(x, torch.ones(1, 1, kernel), stride=stride)
    assert (least, x.shape) == (400, (1, 1, 1)) and one_step([], []) == 0
    short, long = to_waves([(np.float32([0.5]), 16_000), (np.ones(500, "f4"), 16_000)],
                           least=least)
    assert short.tolist() == [0.5] + [0.0] * 399 and long.tolist() == [1.0] * 500


# Damaged files ---------------------------------------------------------------------------


@given(st.sampled_from(["WAV", "AIFF", "AU", "W64", "RF64", "CAF", "FLAC", "OGG", "MP3"]),
       st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=4),
       st.booleans(), st.none() | st.integers(0, 3000))
@settings(max_examples=examples(200), deadline=None)
def test_any_damaged_sound_is_read_or_refused(form, changes, in_head, end):
    raw = bytearray(noise(900, form)[:end])
    for place, byte in changes:
        if raw:
            raw[place % min(len(raw), 64 if in_head else len(raw))] = byte
    try:
        got, rate = decode(bytes(raw), "it")
    except ValueError as error:
        assert str(error).startswith("it: ")
    else:
        assert got.dim() == 1 and len(got) and rate > 0
