"""A user's own table or folder: what is read, and what is refused with its line."""

import io
import struct
import warnings
import zlib

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from needs import examples
from PIL import Image

from alignkit.data import Pairs
from alignkit.data.pictures import open_picture

HEAD = "image,caption\n"


def png(colour="red", mode="RGB", **how) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (9, 7), colour).save(file, "PNG", **how)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    for name, colour in {"cat": "red", "dog": "blue", "owl": "green"}.items():
        (tmp_path / f"{name}.png").write_bytes(png(colour))
    return tmp_path


def table(folder, text: str | bytes):
    path = folder / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# --- what is read ------------------------------------------------------------------


def test_several_captions_share_an_item(folder):
    (folder / "twin.png").write_bytes((folder / "cat.png").read_bytes())
    pairs = Pairs.from_table(table(folder, "\ufeffcaption,extra,image\r\n"
        'a cat,1,cat.png\r\n"a dog, or\r\ntwo",2,dog.png\r\n\r\n'
        "the same cat,3,./cat.png\r\ncopied cat,4,twin.png\r\n"))  # fmt: skip
    assert pairs["text"] == ["a cat", "a dog, or\r\ntwo", "the same cat", "copied cat"]
    assert pairs.item.tolist() == [0, 1, 0, 0]  # a copied file is the same picture
    assert pairs.ids[0] == "cat.png#2"
    assert pairs["image"][1].getpixel((0, 0)) == (0, 0, 255)
    assert pairs.provenance.kind == "user" and len(pairs.provenance.hash) == 64


def test_unusual_line_ends_inside_a_caption_are_kept(folder):
    path = table(folder, HEAD + "cat.png,one\u2028two\x0bthree\x85\n")
    pairs = Pairs.from_table(path)
    assert pairs["text"] == ["one\u2028two\x0bthree"]


def test_other_column_names_and_folders(folder):
    (folder / "sub").mkdir()
    (folder / "cat.png").rename(folder / "sub" / "cat.png")
    path = table(folder, "file;x,words\nsub/cat.png,hi\n")
    pairs = Pairs.from_table(path, image="file;x", caption="words")
    assert pairs["text"] == ["hi"]


def test_the_ending_of_a_picture_does_not_matter(folder):
    (folder / "cat.png").rename(folder / "cat.jpg")
    pairs = Pairs.from_table(table(folder, HEAD + "cat.jpg,a cat\n"))
    assert pairs["image"][0].getpixel((0, 0)) == (255, 0, 0)


def test_the_hash_is_of_the_bytes(folder):
    path = table(folder, HEAD + "cat.png,a cat\n")
    before = Pairs.from_table(path).provenance.hash
    assert Pairs.from_table(path).provenance.hash == before
    (folder / "cat.png").write_bytes(png("black"))
    assert Pairs.from_table(path).provenance.hash != before


def test_every_mode_is_read_as_rgb(tmp_path):
    expected = {
        ("RGBA", (255, 0, 0, 0)): (255, 255, 255),  # transparent: the white below it
        ("LA", (0, 255)): (0, 0, 0), ("L", 128): (128, 128, 128), ("1", 1): (255,) * 3,
        ("I;16", 128 * 256): (128, 128, 128), ("P", 0): (0, 0, 0),
    }  # fmt: skip
    for (mode, colour), rgb in expected.items():
        (tmp_path / "x.png").write_bytes(png(colour, mode))
        picture = open_picture(tmp_path / "x.png")
        assert picture.mode == "RGB" and picture.getpixel((3, 3)) == rgb, mode
    (tmp_path / "x.png").write_bytes(png("red", transparency=(255, 0, 0)))
    assert open_picture(tmp_path / "x.png").getpixel((0, 0)) == (255, 255, 255)


def test_a_turned_photo_is_set_upright(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held on its side
    Image.new("RGB", (9, 7)).save(tmp_path / "x.jpg", exif=turned)
    assert open_picture(tmp_path / "x.jpg").size == (7, 9)


def test_dots_in_names_and_folders_are_no_endings(tmp_path):
    for folder, name in (("v1.0", "22.05"), ("v1.0", "22.06"), ("a.b.c", "x")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.png").write_bytes(png())
        (tmp_path / folder / f"{name}.txt").write_text(name)
    assert Pairs.from_folder(tmp_path / "v1.0")["text"] == ["22.05", "22.06"]
    assert Pairs.from_folder(tmp_path / "a.b.c").ids == ["x.png#1"]


def test_from_folder(folder):
    captions = {"cat": "a cat\n\nanother\n", "dog": "a dog", "owl": "owl"}
    for name, words in captions.items():
        (folder / f"{name}.txt").write_text(words)
    (folder / "notes.md").write_text("not a picture")
    pairs = Pairs.from_folder(folder)
    assert pairs["text"] == ["a cat", "another", "a dog", "owl"]
    assert pairs.ids == ["cat.png#1", "cat.png#3", "dog.png#1", "owl.png#1"]
    assert pairs.item.tolist() == [0, 0, 1, 2]


def test_captions_without_a_picture_that_is_read_are_named(folder):
    """A kind of picture that is not read is not passed over without a word."""
    for name in ("cat", "dog", "owl", "new.v2", "old"):
        (folder / f"{name}.txt").write_text("a caption")
    (folder / "new.v2.heic").write_bytes(b"heic")
    with pytest.warns(UserWarning, match="2 text files .* not read: new.v2.txt, old.txt .*jpeg"):
        assert len(Pairs.from_folder(folder)) == 3
    with pytest.raises(FileNotFoundError, match="a folder; read it with Pairs.from_folder"):
        Pairs.from_table(folder)


def test_captions_of_a_folder_end_at_line_ends_alone(folder):
    """As in a table: U+2028, NEL, vertical tab and form feed stand within a caption."""
    words = "one\u2028two\x0bthree\x85four\x0cfive\u2029six\x1cseven\x1d\x1eeight"
    (folder / "cat.txt").write_bytes(f"{words}\r\na cat\rmy cat\n\n\rhers".encode())
    for name in ("dog", "owl"):
        (folder / f"{name}.txt").write_bytes(b"\xef\xbb\xbfa caption\n")
    pairs = Pairs.from_folder(folder)
    assert pairs["text"] == [words, "a cat", "my cat", "hers", "a caption", "a caption"]
    assert pairs.ids[:4] == ["cat.png#1", "cat.png#2", "cat.png#3", "cat.png#6"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"),
                        min_size=1, max_size=8), min_size=1, max_size=4, unique_by=str.strip),
       st.sampled_from(["\n", "\r\n", "\r"]))
@pytest.mark.filterwarnings("ignore:.*no picture of their name")
@settings(max_examples=examples(150), deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
def test_any_captions_come_back_line_by_line(folder, lines, end):
    for name in ("dog", "owl"):
        (folder / f"{name}.png").unlink(missing_ok=True)
    (folder / "cat.txt").write_bytes(end.join(lines).encode())
    kept = [line.lstrip("\ufeff" if k == 0 else "").strip() for k, line in enumerate(lines)]
    kept = [line for line in kept if line]
    try:
        assert Pairs.from_folder(folder)["text"] == kept
    except ValueError as error:
        assert not kept and "no caption" in str(error) or len(set(kept)) < len(kept)


CODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252", "cp932", "gb18030",
           "koi8-r", "mac-roman"]


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12),
       st.sampled_from(CODINGS), st.sampled_from(["\n", "\r\n", "\r"]))
@settings(max_examples=examples(60), deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
def test_a_caption_of_any_coding_is_read_as_it_is_or_refused(folder, words, coding, end):
    """As other letters only where its bytes happen to be UTF-8, too."""
    said = words.strip().lstrip("\ufeff").strip()
    try:
        lines = [HEAD.strip(), 'cat.png,"' + said.replace('"', '""') + '"']
        raw = end.join(lines).encode(coding)
    except UnicodeEncodeError:
        return
    try:
        got = Pairs.from_table(table(folder, raw))["text"]
    except ValueError as error:
        assert not said or "not UTF-8" in str(error) or "NUL" in str(error)
    else:
        assert got == [said] or coding[:3] != "utf" and got[0].encode() in raw


# --- what is refused ---------------------------------------------------------------

WRONG = {
    "missing file": (HEAD + "cat.png,a cat\nnone.png,x\n", FileNotFoundError,
                     "line 3.*none.png"),
    "missing column": ("file,caption\ncat.png,x\n", ValueError,
                       "line 1: 0 columns.*'image'"),
    "column twice": ("image,caption,caption\ncat.png,x,y\n", ValueError,
                     "line 1: 2 columns"),
    "nothing": ("", ValueError, "line 1.*there are none"),
    "no rows": (HEAD, ValueError, "no rows"),
    "not a picture": (HEAD + "table.csv,me\n", ValueError, "line 2.*not a picture"),
    "a folder": (HEAD + ".,me\n", FileNotFoundError, "line 2"),
    "no name": (HEAD + ",me\n", ValueError, "line 2: column 'image' names no picture"),
    "long name": (HEAD + "x" * 5000 + ",me\n", FileNotFoundError, "line 2"),
    "no caption": (HEAD + "cat.png,a cat\ndog.png,  \n", ValueError, "line 3.*empty"),
    "twice": (HEAD + "cat.png,a\ndog.png,b\ncat.png,a\n", ValueError,
              "line 4.*line 2; remove"),
    "encoding": (HEAD.encode() + "cat.png,Zürich".encode("latin-1"), ValueError,
                 "line 2: not UTF-8"),
    "utf-16": ((HEAD + "cat.png,a cat").encode("utf-16"), ValueError, "not UTF-8"),
    "NUL": (HEAD + "cat.png,a\0cat\n", ValueError, "line 2: a NUL byte"),
    "ragged": (HEAD + "cat.png,a\ndog.png,b,c\n", ValueError,
               "line 3: 2 columns.*quotes"),
    "short": (HEAD + "cat.png,a\ndog.png\n", ValueError, "line 3: 2 columns"),
    "open quote": (HEAD + 'cat.png,"a\n', ValueError, "line 2"),
    "huge field": (HEAD + "cat.png," + "x" * 140_000, ValueError,
                   "line 2: field larger"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_bad_table_is_refused_by_its_line(folder, case):
    text, error, words = WRONG[case]
    with pytest.raises(error, match=words):
        Pairs.from_table(table(folder, text))


@pytest.mark.parametrize("mark, name", [("\t", "tabs"), (";", "semicolons"), ("|", "bars")])
def test_another_separator_is_named(folder, mark, name):
    path = table(folder, f"image{mark}caption\ncat.png{mark}a cat\n")
    with pytest.raises(ValueError, match=f"line 1: .*parted by {name}, save them with commas"):
        Pairs.from_table(path)


def test_a_missing_table_or_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        Pairs.from_table(tmp_path / "none.csv")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Pairs.from_folder(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no picture"):
        Pairs.from_folder(tmp_path)


def test_a_truncated_picture_is_refused(folder):
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 60).save(whole, "JPEG")
    (folder / "cut.jpg").write_bytes(whole.getvalue()[:-900])
    with pytest.raises(ValueError, match=r"line 2: .*cut.jpg.*truncated"):
        Pairs.from_table(table(folder, HEAD + "cut.jpg,half a picture\n"))


@pytest.mark.parametrize("side", [9_400, 30_000])  # Pillow: a warning, an error
def test_a_picture_that_would_fill_the_memory_is_refused(folder, side):
    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")
    (folder / "bomb.png").write_bytes(bomb)
    path = table(folder, HEAD + "bomb.png,boom\n")
    for how in ("ignore", "error"):
        with warnings.catch_warnings():
            warnings.simplefilter(how)
            with pytest.raises(ValueError, match="line 2.*too large"):
                Pairs.from_table(path)


def test_a_bad_folder_is_refused_by_file_and_line(folder):
    (folder / "cat.txt").write_text("a cat\n")
    with pytest.raises(FileNotFoundError, match=r"dog.png has no caption file dog.txt"):
        Pairs.from_folder(folder)
    (folder / "dog.txt").write_text("\n \n")
    (folder / "owl.txt").write_text("an owl\nan owl\n")
    with pytest.raises(ValueError, match="dog.txt: no caption"):
        Pairs.from_folder(folder)
    (folder / "dog.txt").write_bytes(b"a dog\n\xff")
    with pytest.raises(ValueError, match="dog.txt line 2: not UTF-8"):
        Pairs.from_folder(folder)
    (folder / "dog.txt").write_text("a dog")
    with pytest.raises(ValueError, match="owl.txt line 2.*owl.txt line 1"):
        Pairs.from_folder(folder)


def test_too_few_items_for_a_split(folder):
    rows = "".join(f"{name}.png,{i}\n" for name in ("cat", "dog", "owl")
                   for i in range(9))  # fmt: skip
    pairs = Pairs.from_table(table(folder, HEAD + rows))
    with pytest.raises(ValueError, match="more than 3 different items"):
        pairs.split(0)


# --- whatever stands in the table --------------------------------------------------

CELL = st.one_of(
    st.sampled_from(["cat.png", "dog.png", "cut.png", "a cat", "", " ", '"', "..", "/",
                     "\0", "cat.png/x", "~", "x" * 300, "CON", "%s", "\\", "\r"]),
    st.text(max_size=12),
)  # fmt: skip
TEXT = st.lists(st.lists(CELL, max_size=4).map(",".join), max_size=5).map("\n".join)


@given(st.one_of(TEXT.map(lambda rows: (HEAD + rows).encode("utf-8", "surrogatepass")),
                 TEXT.map(lambda rows: rows.encode("utf-8", "surrogatepass")),
                 st.binary(max_size=60).map(lambda rows: HEAD.encode() + rows)))
@example(b"image,caption\ncat.png,a cat\n")
@settings(max_examples=examples(60), deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
def test_any_table_is_read_or_refused(folder, raw):
    (folder / "cut.png").write_bytes(png()[:30])
    path = table(folder, raw)
    try:
        pairs = Pairs.from_table(path)
    except (ValueError, FileNotFoundError) as error:
        assert str(folder) in str(error)
    else:
        assert all(text.strip() for text in pairs["text"])
        assert len(pairs.item) == len(pairs) and not torch.any(pairs.item < 0)
        assert all(picture.mode == "RGB" for picture in pairs["image"])


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # Pillow describes the damage
@given(st.integers(0, 70), st.integers(0, 255),
       st.sampled_from(["PNG", "GIF", "TIFF", "BMP"]))
@settings(max_examples=examples(150), deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
def test_a_damaged_picture_is_read_or_refused(tmp_path, place, byte, kind):
    file = io.BytesIO()
    Image.new("RGB", (5, 4), "red").save(file, kind)
    raw = bytearray(file.getvalue())
    raw[place % len(raw)] = byte
    (tmp_path / "x").write_bytes(raw)
    try:
        assert open_picture(tmp_path / "x").mode == "RGB"
    except ValueError as error:
        assert str(tmp_path) in str(error)
