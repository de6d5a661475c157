"""What a cache key holds: two columns of other content never share their features, and
what cannot be told is not cached."""

import functools
import io
import json
import os
import importlib
import logging
import random
import socket
import sqlite3
import sys
import threading
import urllib.request
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from needs import examples
from PIL import Image

from alignkit.data import Lazy, Pairs, Provenance
from alignkit.data.columns import BY_PROVENANCE, decided, digest
from alignkit.data.code import is_python
from alignkit.data.keys import content
from alignkit.encoders import add_features


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


class Red(torch.nn.Module):
    """The red of a picture's corner; counts its rows."""

    rows = 0

    def forward(self, pictures):
        Red.rows += len(pictures)
        return torch.tensor([[float(p.getpixel((0, 0))[0])] for p in pictures])


class First(torch.nn.Module):
    """The first sample of a sound, or the first value of a video."""

    def forward(self, inputs):
        return torch.tensor([[float((x[0] if isinstance(x, tuple) else x).flatten()[0])]
                             for x in inputs])


def plain(red: int) -> Image.Image:
    return Image.new("RGB", (2, 2), (red, 0, 0))


def reds(column: Lazy, **more) -> list[float]:
    pairs = Pairs.make({"image": column}, **more)
    return add_features(pairs, "image", Red())["image_features"][:, 0].tolist()


def encoded(column: Lazy, **more) -> int:
    """How many rows had to be encoded."""
    before = Red.rows
    reds(column, **more)
    return Red.rows - before


# --- the reading function --------------------------------------------------------------
FACTOR = 1


def by_factor(k):
    return plain(FACTOR * k)


def helped(k):
    return plain(shade(k))


def shade(k):
    return 5 * k


class Reader:
    step = 2

    def __init__(self, by):
        self.by = by

    def __call__(self, k):
        return plain(self.by * k)

    def read(self, k):
        return plain(self.step * self.by * k)


@dataclass(slots=True)
class Slotted:
    by: int

    def read(self, k):
        return plain(self.by * k)


def with_default(k, by=3):
    return plain(by * k)


def closed(by):
    return lambda k: plain(by * k)


def nested(k):
    return [plain(9 * j) for j in (k,)][0]


TABLE = {1: 10, 2: 20}
READERS = {
    "code": (lambda k: plain(k), [1, 2]), "other code": (lambda k: plain(7 * k), [7, 14]),
    "closure": (closed(4), [4, 8]), "other closure": (closed(6), [6, 12]),
    "default": (with_default, [3, 6]), "partial": (functools.partial(with_default, by=8), [8, 16]),
    "global": (by_factor, [1, 2]), "a function of a function": (helped, [5, 10]),
    "object": (Reader(11), [11, 22]), "method": (Reader(3).read, [6, 12]),
    "slots": (Slotted(17).read, [17, 34]), "other slots": (Slotted(18).read, [18, 36]),
    "table": (lambda k: plain(TABLE[k]), [10, 20]), "nested": (nested, [9, 18]),
    "cached": (functools.cache(lambda k: plain(13 * k)), [13, 26]),
    "tensor": ((lambda t: lambda k: plain(int(t[k])))(torch.tensor([0, 15, 30])), [15, 30]),
}  # fmt: skip


def test_equal_sources_with_other_readers_have_their_own_features():
    """All at once: each is right though all have the same ids and sources."""
    for _ in range(2):  # the second time out of the cache
        for name, (read, expected) in READERS.items():
            assert reds(Lazy([1, 2], read)) == expected, name
    assert encoded(Lazy([1, 2], READERS["closure"][0])) == 0


SHADE = 1


def sets_an_attribute_of_that_name(k):
    holder = Reader(1)
    holder.SHADE = SHADE
    return plain(holder.SHADE * k)


def test_an_attribute_of_the_same_name_hides_no_variable(monkeypatch):
    for by in (3, 4):
        monkeypatch.setattr("test_keys.SHADE", by)
        assert reds(Lazy([1], sets_an_attribute_of_that_name)) == [by]


def test_what_a_reader_reaches_may_change(monkeypatch):
    column = Lazy([1, 2], by_factor)
    assert reds(column) == [1, 2]
    monkeypatch.setattr("test_keys.FACTOR", 50)
    assert reds(column) == [50, 100]
    monkeypatch.setattr("test_keys.shade", lambda k: 21 * k)
    assert reds(Lazy([1, 2], helped)) == [21, 42]
    monkeypatch.setattr(Reader, "step", 4)
    assert reds(Lazy([1, 2], Reader(3).read)) == [12, 24]
    monkeypatch.setitem(TABLE, 1, 99)
    assert reds(Lazy([1, 2], READERS["table"][0])) == [99, 20]


def test_the_hash_of_the_pairs_tells_readers_apart():
    """`fit` goes on with a checkpoint by this hash."""
    hashes = {Pairs.make({"image": Lazy([1, 2], read)}).provenance.hash
              for read, _ in READERS.values()}
    assert len(hashes) == len(READERS)
    base = Pairs.make({"image": Lazy([1, 2], closed(4))})
    changed = {base.with_columns(image=Lazy([1, 2], closed(by))).provenance.hash
               for by in (4, 5)}
    assert len(changed) == 2


@pytest.mark.parametrize("kind, read", [
    ("sound", lambda by: lambda k: (torch.full((9,), by * k), 8000)),
    ("video", lambda by: lambda k: torch.full((3, 2, 2, 3), int(by * k), dtype=torch.uint8)),
])  # fmt: skip
def test_sounds_and_videos_too(kind, read):
    for by in (0.25, 0.5, 8.0):
        pairs = Pairs.make({"x": Lazy([1, 2], read(by), kind)})
        found = add_features(pairs, "x", First())["x_features"][:, 0]
        assert found.tolist() == [torch.tensor(by * k).to(
            torch.uint8 if kind == "video" else torch.float32) for k in (1, 2)]


def test_a_provenance_of_ones_own_does_not_hide_the_reader():
    mine = Provenance("mine", "real", "mine", "here", "1", "always the same")
    for by in (4, 5):
        assert reds(Lazy([1, 2], closed(by)), provenance=mine) == [by, 2 * by]


# --- files -----------------------------------------------------------------------------
def put(path: Path, red: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    plain(red).save(path, "PNG")
    return path


def opened(path):
    return Image.open(path).convert("RGB")


SPELLED = {
    "Path": lambda f: (f / "a.png", opened),
    "text": lambda f: (str(f / "a.png"), opened),
    "a tuple with a text": lambda f: ((str(f / "a.png"), 3), lambda s: opened(s[0])),
    "a dict": lambda f: ({"file": f / "a.png"}, lambda s: opened(s["file"])),
    "a folder in the closure": lambda f: ("a.png", lambda s: opened(f / s)),
    "a folder in a partial": lambda f: ("a", functools.partial(
        lambda s, folder: opened(f"{folder}/{s}.png"), folder=str(f))),
    "without its ending": lambda f: (str(f / "a"), lambda s: opened(f"{s}.png")),
    "a number": lambda f: (7, lambda s, f=f: opened(f / "a.png")),
}


@pytest.mark.parametrize("how", SPELLED)
def test_a_file_that_is_replaced_is_read_again(tmp_path, how):
    source, read = SPELLED[how](tmp_path / "f")
    put(tmp_path / "f" / "a.png", 40)
    column = Lazy([source], read)
    assert reds(column) == [40] and encoded(column) == 0
    os.utime(put(tmp_path / "f" / "a.png", 90), ns=(1, 1))
    assert reds(Lazy([source], read)) == [90]
    assert reds(column) == [90]  # and the pairs that were there


@pytest.mark.parametrize("source, read", [
    ("a.png", opened), ("pictures/a.png", opened), ("pictures/a", lambda s: opened(s + ".png")),
    ("a", lambda s: opened(f"pictures/{s}.png")), (1, lambda s: opened("pictures/a_%d.png" % s)),
])  # fmt: skip
def test_two_folders_with_equal_relative_names(tmp_path, monkeypatch, source, read):
    for number, name in enumerate(("one", "two")):
        for file in ("a.png", "pictures/a.png", "pictures/a_1.png"):
            put(tmp_path / name / file, 30 + number)
        monkeypatch.chdir(tmp_path / name)
        assert reds(Lazy([source], read)) == [30 + number]


def test_files_behind_linked_folders_count(tmp_path):
    put(tmp_path / "real" / "a.png", 5)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sub").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "up").symlink_to(tmp_path / "real")  # a ring
    folder = tmp_path / "data"
    read = lambda s: opened(folder / "sub" / s)  # noqa: E731
    assert reds(Lazy(["a.png"], read)) == [5]
    os.utime(put(tmp_path / "real" / "a.png", 6), ns=(1, 1))
    assert reds(Lazy(["a.png"], read)) == [6]


def test_tables_and_saved_pairs_see_a_changed_file(tmp_path):
    put(tmp_path / "a.png", 10)
    (tmp_path / "t.csv").write_text("image,caption\na.png,a square\n")
    pairs = Pairs.from_table(tmp_path / "t.csv")
    pairs.save(tmp_path / "kept")
    loaded = Pairs.load(tmp_path / "kept")
    for rows, file in ((pairs, tmp_path / "a.png"),
                       (loaded, tmp_path / "kept/image/0000000.png")):
        assert add_features(rows, "image", Red())["image_features"].item() == 10
        put(file, 20)
        assert add_features(rows, "image", Red())["image_features"].item() == 20


def test_equal_numbers_of_other_types_are_other_sources():
    def read(source):
        return plain({int: 1, bool: 2, float: 3, tuple: 4}[type(source)]
                     + (type(source[0]) is bool if isinstance(source, tuple) else 0))

    assert reds(Lazy([1, True, 1.0, (1,), (True,), 1], read)) == [1, 2, 3, 4, 5, 1]


def test_a_data_set_that_is_moved_keeps_its_hash_and_its_features(tmp_path):
    put(tmp_path / "here" / "a.png", 10)
    (tmp_path / "here" / "t.csv").write_text("image,caption\na.png,a square\n")
    before = Pairs.from_table(tmp_path / "here" / "t.csv")
    add_features(before, "image", Red())
    (tmp_path / "here").rename(tmp_path / "there")
    after = Pairs.from_table(tmp_path / "there" / "t.csv")
    assert after.provenance.hash == before.provenance.hash
    rows = Red.rows
    assert add_features(after, "image", Red())["image_features"].item() == 10
    assert Red.rows == rows


def test_a_reader_that_looks_at_names_is_asked_anew_where_they_change(tmp_path):
    for number, name in enumerate(("7.png", "8.png")):
        path = put(tmp_path / name, 10)
        read = lambda p: plain(int(Path(p).stem))  # noqa: E731
        assert reds(Lazy([path], read)) == [7 + number]


def test_an_imported_function_that_was_edited_is_another(tmp_path, monkeypatch):
    """Functions of a module of one's own are no library: their code counts."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for by in (3, 4):
        (tmp_path / "my_readers.py").write_text(
            f"from PIL import Image\n\nBY = {by}\n\ndef read(k):\n"
            f"    return Image.new('RGB', (2, 2), (BY * k, 0, 0))\n")
        sys.modules.pop("my_readers", None)
        importlib.invalidate_caches()
        module = importlib.import_module("my_readers")
        assert reds(Lazy([1, 2], module.read)) == [by, 2 * by]
        assert reds(Lazy([1, 2], lambda k: module.read(k))) == [by, 2 * by]
    sys.modules.pop("my_readers")


OUTER = {  # how a reader takes in another module while it runs
    "import": "def read(k):\n    import helper_of\n    return helper_of.plain(k)",
    "from": "def read(k):\n    from helper_of import plain as p\n    return p(k)",
    "by another": "def read(k):\n    import goes_on\n    return goes_on.plain(k)",
    "of a package": "def read(k):\n    from pack.inner import plain\n    return plain(k)",
    "at the top": "import goes_on\ndef read(k):\n    return goes_on.plain(k)",
}


@pytest.mark.parametrize("how", OUTER)
def test_a_module_that_is_imported_while_it_reads_was_edited(tmp_path, monkeypatch, how):
    """Before it was ever imported, the key holds the same as afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "inner.py").write_text("from .deep import plain")
    (tmp_path / "goes_on.py").write_text("from helper_of import plain")
    for by in (3, 4):
        text = ("from PIL import Image\ndef plain(k):\n"
                f"    return Image.new('RGB', (2, 2), ({by} * k, 0, 0))\n")
        for file in ("helper_of.py", "pack/deep.py"):
            (tmp_path / file).write_text(text)
        for name in ("helper_of", "goes_on", "pack", "pack.inner", "pack.deep"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        exec(OUTER[how], space := {"__name__": "__main__"})
        column = Lazy([1, 2], space["read"])
        assert reds(column) == [by, 2 * by] and encoded(column) == 0


ASKED = {  # what a reader asks that no code tells
    "environ": lambda k: (os.environ.get("MY_DATA"), plain(4 * k))[1],
    "getenv": lambda k: (os.getenv("MY_DATA"), plain(4 * k))[1],
    "urlopen": lambda k: (urllib.request.urlopen, plain(4 * k))[1],
    "sqlite3": lambda k: (sqlite3.sqlite_version, plain(4 * k))[1],
}


@pytest.mark.parametrize("what", ASKED)
def test_what_a_reader_asks_elsewhere_is_not_kept_and_said(own_cache, what):
    with pytest.warns(UserWarning, match=f"not kept: they depend on what {what} gives"):
        assert reds(Lazy([1, 2], ASKED[what])) == [4, 8]
    assert not list(own_cache.rglob("*.safetensors"))


def test_what_an_object_of_c_holds_is_not_told():
    """sqlite3's are, though their module is a file of Python; one's own classes are not."""
    class Slots:
        __slots__ = ("a", "b", "__weakref__")

    class Both(Slots):
        pass

    assert not is_python(sqlite3.Connection) and not is_python(sqlite3.Row)
    assert not is_python(torch.Generator)
    assert all(map(is_python, (Slots, Both, Red, Path, functools.partialmethod)))


def test_loggers_and_locks_decide_nothing():
    log, lock = logging.getLogger("mine"), threading.Lock()

    def read(k):
        with lock:
            log.debug("reading %s", k)
            return plain(6 * k)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reds(Lazy([1, 2], read)) == [6, 12] and encoded(Lazy([1, 2], read)) == 0


# --- what cannot be told ---------------------------------------------------------------
UNTOLD = {
    "a socket": socket.socket(), "a generator": torch.Generator(), "a file": io.BytesIO(),
    "an iterator": iter([1]), "a random state": random.Random(0),
}  # fmt: skip


@pytest.mark.parametrize("what", UNTOLD)
def test_what_cannot_be_told_is_not_kept_and_said(own_cache, what):
    held, by = UNTOLD[what], [4]
    column = Lazy([1, 2], lambda k: (held, plain(by[0] * k))[1])
    with pytest.warns(UserWarning, match="features are not kept: they depend on a .*version"):
        assert reds(column) == [4, 8]
    assert not list(own_cache.rglob("*.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named = Lazy([1, 2], column.read, version="mine 1")
        assert reds(named) == [4, 8] and encoded(named) == 0
        by[0] = 5
        assert reds(Lazy([1, 2], column.read, version="mine 2")) == [5, 10]
        assert reds(Lazy([1, 3], column.read, version="mine 2")) == [5, 15]
    assert named.version == Pairs.make({"image": named}).select([1])["image"].version


def test_a_library_is_told_by_its_version(monkeypatch):
    before = content([1], opened, "picture")
    monkeypatch.setattr("PIL.__version__", "0.0")
    assert content([1], opened, "picture")[0] != before[0] and not before[1]


def test_a_corpus_keeps_its_keys_but_its_columns_are_told_apart_elsewhere():
    def corpus(by):
        return Lazy([1, 2], closed(by), version=BY_PROVENANCE)

    assert digest(corpus(1)) == digest(corpus(2))  # there its provenance differs
    hashes = {Pairs.make({"image": corpus(by)}).provenance.hash for by in (1, 2)}
    hashes |= {Pairs.make({"x": torch.ones(2)}).with_columns(image=corpus(by)
                                                            ).provenance.hash for by in (1, 2)}
    assert len(hashes) == 4


# --- whatever a reader holds -----------------------------------------------------------
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.binary(max_size=4)
    | st.text(max_size=5) | st.sampled_from(["", "/", "..", "\0", "\ud800", "x" * 5000, "%s{"]),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner)
    | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    | st.frozensets(st.integers() | st.text(max_size=3), max_size=3), max_leaves=6)


def same(a, b) -> bool:
    return type(a) is type(b) and repr(a) == repr(b)


@settings(max_examples=examples(200), deadline=None, suppress_health_check=list(HealthCheck))
@given(VALUE, VALUE)
def test_two_keys_are_equal_where_the_values_are(a, b):
    def held(x):
        return decided(Lazy([1], lambda k: x))[0]

    assert held(a) == held(a)
    assert decided(Lazy([a], plain)) == decided(Lazy([a], plain))
    if not same(a, b):
        assert held(a) != held(b)
        assert decided(Lazy([a], plain))[0] != decided(Lazy([b], plain))[0]
    json.dumps(decided(Lazy([a], lambda k: b)))  # words only


# --- a module of one's own -------------------------------------------------------------
class Times(torch.nn.Module):
    factor, calls = 2, 0

    def __init__(self, shift=0.0, shown=None):
        super().__init__()
        self.shift, self.shown = torch.tensor(shift), shown  # no buffer

    def forward(self, x):
        Times.calls += 1
        return self.factor * x + self.shift + (self.shown(x) if self.shown else 0)


def outside(x):
    return FACTOR * x


def test_a_module_is_told_by_all_that_its_code_reaches(monkeypatch, own_cache):
    pairs = Pairs.make({"x": torch.tensor([[1.0], [2.0]])})

    def made(model):
        return add_features(pairs, "x", model)["x_features"][:, 0].tolist()

    for _ in range(2):
        assert made(Times()) == [2, 4] and made(Times(1.0)) == [3, 5]
        assert made(Times(shown=outside)) == [3, 6]
        assert made(Times(shown=lambda x: 7 * x)) == [9, 18]
        assert made(Times().train()) == [2, 4]
    kept = len(list(own_cache.rglob("index.json")))
    assert kept == 4  # a counter that the code counts itself is no setting
    monkeypatch.setattr(Times, "factor", 10)
    assert made(Times()) == [10, 20]
    monkeypatch.setattr("test_keys.FACTOR", 5)
    assert made(Times(shown=outside)) == [15, 30]
    with pytest.warns(UserWarning, match="not kept: they depend on a .*Generator.*forward"):
        draws = torch.Generator()
        assert made(Times(shown=lambda x: 0 * x if draws else x)) == [10, 20]


def test_counters_and_logs_of_a_reader_do_not_encode_anew():
    count, log, seen, table = 0, [], set(), []

    def read(k):
        nonlocal count
        count += 1
        log.append(k)
        [seen.add(j) for j in (k,)]
        return plain(5 * k)

    column = Lazy([1, 2], read)
    assert reds(column) == [5, 10] and encoded(column) == 0
    assert count == 2 and log == [1, 2] and seen == {1, 2}

    def looked_up(k):  # a list that is read, too, decides
        table.append(k)
        return plain(10 * len(table))

    assert reds(Lazy([1], looked_up)) == [10]
    assert reds(Lazy([1], looked_up)) == [20]
