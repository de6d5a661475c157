"""Links are followed where that is safe and called links where it is not; names that
differ only in their Unicode form or capitals name each other; what systems lay beside
the files is left alone."""

import errno
import importlib
import os
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from needs import examples
from test_samples import ABOUT, one
from test_shards import png

from alignkit.data import Pairs, fetch, write_shards
from alignkit.data.cache_folder import cache_dir, lock_of, writable
from alignkit.data.fetch import ensure, tree_hash
from alignkit.data.links import LeadsOut, inside, twin, walk
from alignkit.encoders import Encoder, add_features
from alignkit.encoders.encoder import Output

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))


@pytest.fixture
def folder(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / f"{name}.png").write_bytes(png())
        (tmp_path / f"{name}.txt").write_text(f"a {name}")
    return tmp_path


# --- hub snapshots ---------------------------------------------------------------------
def snapshot(source: Path, hub: Path) -> Path:
    """`source` as the hub's client keeps it: every file is a link to its store."""
    commit = hub / "datasets--me--set" / "snapshots" / "abc"
    store = hub / "datasets--me--set" / "blobs"
    store.mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in source.rglob("*") if p.is_file())):
        link = commit / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(store / f"{number:040x}")
        link.symlink_to(os.path.relpath(store / f"{number:040x}", link.parent))
    return commit


def test_saved_pairs_shards_and_folders_open_as_a_hub_snapshot(folder, tmp_path):
    pairs = Pairs.from_folder(folder)
    pairs.save(tmp_path / "saved")
    write_shards([one("a", captions=["a cat"])], tmp_path / "shards", **ABOUT)
    for name in ("saved", "shards"):
        opened = Pairs.load(snapshot(tmp_path / name, tmp_path / f"hub-{name}"))
        assert opened["image"][0].getpixel((0, 0)) == (255, 0, 0)
        assert opened["text"][0] == "a cat"
    (tmp_path / "plain").mkdir()
    for path in folder.glob("*.*"):
        path.rename(tmp_path / "plain" / path.name)
    assert Pairs.from_folder(snapshot(tmp_path / "plain", tmp_path / "hub")
                             )["text"] == ["a cat", "a dog"]


def test_a_link_out_of_the_folder_is_called_a_link(folder, tmp_path):
    Pairs.from_folder(folder).save(tmp_path / "saved")
    picture = tmp_path / "saved" / "image" / "0000000.png"
    picture.rename(tmp_path / "far.png")
    picture.symlink_to(tmp_path / "far.png")
    with pytest.raises(ValueError, match=r"saved: 'image/0000000.png' is a link to .*far.png, "
                                         r"out of the folder: copy .*cp -rL") as told:
        Pairs.load(tmp_path / "saved")
    assert "damaged" not in str(told.value)
    picture.unlink()
    picture.symlink_to("0000001.png")  # within the folder
    assert Pairs.load(tmp_path / "saved")["image"][0].size == (5, 4)
    picture.unlink()
    picture.symlink_to("0000000.png")
    with pytest.raises(ValueError, match="is a link that leads back to itself|nothing is"):
        Pairs.load(tmp_path / "saved")
    picture.unlink()
    picture.symlink_to("gone.png")
    with pytest.raises(ValueError, match="is a link to .*gone.png, and nothing is there"):
        Pairs.load(tmp_path / "saved")


def test_a_snapshot_leads_to_its_own_store_only(folder, tmp_path):
    Pairs.from_folder(folder).save(tmp_path / "saved")
    opened = snapshot(tmp_path / "saved", tmp_path / "hub")
    link = opened / "image" / "0000000.png"
    (tmp_path / "hub" / "datasets--you--other" / "blobs").mkdir(parents=True)
    other = tmp_path / "hub" / "datasets--you--other" / "blobs" / "0"
    other.write_bytes(png())
    link.unlink()
    link.symlink_to(other)
    with pytest.raises(ValueError, match="is a link to .*other/blobs/0, out of the folder"):
        Pairs.load(opened)


# --- data folders ----------------------------------------------------------------------
def test_linked_folders_of_a_data_set_are_walked(tmp_path):
    common = importlib.import_module("common")
    (tmp_path / "disk" / "inner").mkdir(parents=True)
    (tmp_path / "disk" / "inner" / "a.jpg").write_bytes(b"a")
    (tmp_path / "disk" / "._a.jpg").write_bytes(b"mac")
    (tmp_path / "disk" / "__MACOSX").mkdir()
    (tmp_path / "disk" / "__MACOSX" / "a.jpg").write_bytes(b"mac")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "up").symlink_to(tmp_path / "data")  # a ring
    files = common.Files([tmp_path / "data"])
    assert [p.relative_to(tmp_path).as_posix() for p in files.paths] == [
        "data/images/inner/a.jpg"]
    assert files.find("inner/a.jpg").read_bytes() == b"a"


def test_walk_gives_each_file_in_order(tmp_path):
    for name in ("b/2", "b/1", "a/x/1", "c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "z").symlink_to("b")
    (tmp_path / "nothing").symlink_to("gone")
    (tmp_path / "b" / "self").symlink_to(".")
    assert [p.relative_to(tmp_path).as_posix() for p in walk(tmp_path)] == [
        "a/x/1", "b/1", "b/2", "c", "z/1", "z/2"]


def test_dot_files_do_not_stop_a_folder(folder):
    for name in ("._cat.png", ".DS_Store", ".hidden.png", "._cat.txt"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Pairs.from_folder(folder)["text"] == ["a cat", "a dog"]


def test_pictures_in_folders_below_are_not_skipped_without_a_word(folder, tmp_path):
    (folder / "more").symlink_to(tmp_path, target_is_directory=True)
    (folder / "notes").mkdir()
    (folder / "looks.png").mkdir()
    with pytest.warns(UserWarning, match=r"pictures in 1 folders in it \(more\) are not read"):
        assert Pairs.from_folder(folder)["text"] == ["a cat", "a dog"]
    for path in folder.glob("*.*g"):
        path.rename(folder / "notes" / path.name)
    with pytest.raises(ValueError, match=r"pictures in 1 folders in it \(notes\)"):
        Pairs.from_folder(folder)


def test_linked_pictures_are_read_and_broken_links_named(folder, tmp_path):
    (folder / "cat.png").rename(tmp_path / "far.bin")
    (folder / "cat.png").symlink_to(tmp_path / "far.bin")
    assert Pairs.from_folder(folder)["image"][0].size == (5, 4)
    (tmp_path / "far.bin").unlink()
    with pytest.raises(FileNotFoundError, match="cat.png is a link to .*far.bin, where noth"):
        Pairs.from_folder(folder)


def test_a_name_that_is_no_utf_8_is_read_and_spelled_out(tmp_path):
    """As Linux keeps those that came out of an old archive."""
    for ending, raw in (("png", png()), ("txt", b"a cat")):
        (tmp_path / os.fsdecode(b"caf\xe9." + ending.encode())).write_bytes(raw)
    pairs = Pairs.from_folder(tmp_path)
    assert pairs.ids == [r"caf\udce9.png#1"] and pairs["image"][0].size == (5, 4)
    pairs.save(tmp_path / "saved")
    assert Pairs.load(tmp_path / "saved").ids == pairs.ids


NAMES = st.sampled_from(["a", "b", "c", "a/a", "a/b", "b/a", "c/c/c"])
TARGETS = NAMES | st.sampled_from([".", "..", "../a", "../out", "../../out", "gone", "/",
                                   "../blobs/x"])


@settings(max_examples=examples(100), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(NAMES, st.none() | TARGETS), max_size=7), NAMES | TARGETS)
def test_any_tree_of_links_ends_and_leads_nowhere_else(tmp_path_factory, made, asked):
    """`walk` ends and gives files; `inside` gives none that lies elsewhere."""
    top = tmp_path_factory.mktemp("tree")
    root = top / "in"
    root.mkdir()
    (top / "out").write_text("secret")
    for name, target in made:  # None: a file
        path = root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.parent.resolve().is_relative_to(root.resolve()):
                continue  # through a link that was made before, into another test's tree
            path.write_text("x") if target is None else path.symlink_to(target)
        except (OSError, RuntimeError):  # there is something else, or a ring of links
            continue
    if not any(target == "/" for _, target in made):  # that would walk the whole disk
        found = list(walk(root))
        assert all(path.is_file() for path in found) and len(set(found)) == len(found)
        plain = {p for p in root.rglob("*") if p.is_file() and not any(
            q.is_symlink() for q in (p, *p.parents))}
        assert plain <= set(found)
    try:
        path = inside(root, asked)
    except LeadsOut as error:
        assert str(error)
    else:
        assert path.resolve().is_relative_to(root.resolve())


# --- names that differ in form ---------------------------------------------------------
NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize("here, asked", [(NFD, NFC), (NFC, NFD), ("Cat", "cat"), ("cat", "CAT")])
def test_a_name_in_another_form_names_its_twin(tmp_path, here, asked):
    (tmp_path / here).mkdir()
    (tmp_path / here / f"{here}.png").write_bytes(png())
    for written in (f"{here}/{asked}.png", f"{asked}/{asked}.png"):
        (tmp_path / "t.csv").write_text(f"image,caption\n{written},a cat\n", "utf-8")
        with pytest.raises(FileNotFoundError) as told:
            Pairs.from_table(tmp_path / "t.csv")
        assert f"there is {ascii(str(tmp_path / here / f'{here}.png')[1:])}" in str(told.value)
        assert "line 2" in str(told.value) and ascii(asked)[1:-1] in str(told.value)
    (tmp_path / here / f"{asked}.txt").write_text("a cat")
    with pytest.raises(FileNotFoundError, match=rf"no caption file.*there is '.*\.txt'"):
        Pairs.from_folder(tmp_path / here)
    with pytest.raises(FileNotFoundError, match="no such file; there is '.*t.csv'"):
        Pairs.from_table(tmp_path / "T.CSV")


@settings(max_examples=examples(150), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"),
               min_size=1, max_size=20), st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_any_name_has_a_twin_or_none(tmp_path_factory, name, form):
    folder = tmp_path_factory.mktemp("names")
    try:
        (folder / name).write_text("x")
    except OSError:  # "..", or too long for the disk
        return
    asked = folder / unicodedata.normalize(form, name)
    found = twin(asked)
    if form in ("NFC", "NFD"):
        assert found == folder / name
    assert found is None or found.is_file() or asked.name in (".", "..") or "/" in asked.name


# --- caches that cannot be written ------------------------------------------------------
@pytest.fixture
def asset(tmp_path, monkeypatch):
    """(entry, its folder in a cache): an asset of one file that is whole."""
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "_checked", set())
    sha = "6ca13d52ca70c883e0f0bb101e425a89e8624de51db2d2392593af6a84118090"  # of abc123
    entry = {"files": {"a": sha}, "sources": []}
    path = tmp_path / "cache" / "assets" / f"x-{tree_hash(entry['files'])[:8]}"
    path.mkdir(parents=True)
    (path / "a").write_text("abc123")
    return entry, path


def refuse(number):
    def raises(*args, **more):
        raise OSError(number, os.strerror(number))
    return raises


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_stamp_that_cannot_be_written_is_no_error(asset, monkeypatch, number):
    entry, path = asset
    monkeypatch.setattr(Path, "write_text", refuse(number))
    assert ensure("x", entry) == path
    monkeypatch.setattr(fetch, "_checked", set())
    (path / "a").write_bytes(b"abc124")  # and it is still checked
    with pytest.raises(Exception, match="could not be had|was changed"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ensure("x", entry)


def test_a_stamp_that_cannot_be_replaced_or_read_is_no_error(asset):
    entry, path = asset
    path.with_name(f"{path.name}.stamp.json").mkdir()
    assert ensure("x", entry) == path
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, f"{path.name}.stamp.json"]


def test_a_cache_that_lacks_something_and_cannot_be_written_says_what_to_set(asset, monkeypatch):
    entry, path = asset
    pairs, encoder = Pairs.make({"text": ["a"]}), Encoder(
        "x", "text", {0: 1}, "w", "p",
        lambda: lambda texts, layers: {0: Output(torch.ones(1, 1), None)})
    add_features(pairs, "text", encoder)
    monkeypatch.setattr(os, "access", lambda *args: False)
    assert add_features(pairs, "text", encoder)["text_features"].item() == 1  # all is there
    assert ensure("x", entry) == path
    for call in (lambda: add_features(Pairs.make({"text": ["b"]}), "text", encoder),
                 lambda: ensure("y", entry)):
        with pytest.raises(PermissionError, match="cannot be written.*ALIGNKIT_CACHE"):
            call()


def test_a_lock_of_another_user_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "x.lock").write_text("")
    with lock_of(tmp_path / "x.lock"), lock_of(tmp_path / "y.lock"):
        pass
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(PermissionError, match="x.lock belongs to another.*ALIGNKIT_CACHE"):
        lock_of(tmp_path / "x.lock")


def test_a_cache_below_a_file_says_what_to_set(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match=r"\(Not a directory\).*ALIGNKIT_CACHE"):
        writable(tmp_path / "file" / "cache")
    with pytest.raises(PermissionError, match=r"\(File exists\).*ALIGNKIT_CACHE"):
        writable(tmp_path / "file")


def test_without_a_home_directory_the_variable_is_named(monkeypatch):
    for name in ("ALIGNKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(RuntimeError, match="no place for the cache.*ALIGNKIT_CACHE"):
        cache_dir()
    monkeypatch.setenv("ALIGNKIT_CACHE", "/somewhere")
    assert cache_dir() == Path("/somewhere")
    monkeypatch.delenv("ALIGNKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/there")
    assert cache_dir() == Path("/there/alignkit")
