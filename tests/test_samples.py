"""What is written into shards: wrong types refused at once, bad rows named and skipped,
one writer, and nothing of an earlier run beside the new shards."""

import importlib
import json
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from needs import examples
from safetensors.torch import save
from test_shards import ABOUT, jpg, png

from alignkit.data import Pairs
from alignkit.data.shards import Sample, Skipped, open_shards, write_shards
from alignkit.data.writing import clear, fits, only_writer
from alignkit.parts import DualEncoder, Settings
from alignkit.training import Budget, fit

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))
HALF = "a cat \ud83d"  # an emoji that was cut in two


def one(key="k", **more) -> Sample:
    return Sample(key, {"png": png()}, **more)


# --- types, at once --------------------------------------------------------------------
@pytest.mark.parametrize("fields, words", [
    ({"captions": "a cat"}, r"'k': captions is 'a cat' \(str\); a list of texts.*\['a cat'\]"),
    ({"captions": None}, r"captions is None \(NoneType\)"),
    ({"captions": {"a cat"}}, r"captions is .*\(set\)"),
    ({"captions": 3}, r"captions is 3 \(int\)"),
    ({"files": [b"x"]}, r"files is .*\(list\); a dict"), ({"labels": "cat"}, "labels is 'cat'"),
    ({"files": {"jpg": "a.jpg"}}, r"its jpg is 'a.jpg' \(str\); bytes or a pathlib.Path"),
    ({"files": {"jpg": None}}, "its jpg is None"),
])
def test_a_sample_of_wrong_types_is_refused_where_it_is_made(fields, words):
    with pytest.raises(TypeError, match=words):
        Sample(**{"key": "k", "files": {}, **fields})


# --- bad rows, by name -----------------------------------------------------------------
BAD = {
    "caption": ({"captions": ["a", HALF]}, r"caption 1 holds half a surrogate pair: a cat \\ud83d"),
    "none": ({"captions": [None]}, r"caption 0 is None \(NoneType\), no text"),
    "number": ({"captions": ["a", 5]}, r"caption 1 is 5 \(int\), no text"),
    "blank": ({"captions": [" \t"]}, "caption 0 is blank"),
    "empty": ({"captions": ["a", ""]}, "caption 1 is blank"),
    "nested": ({"captions": [["a"]]}, r"caption 0 is \['a'\] \(list\), no text"),
    "label": ({"labels": {"kind": None}}, r"label 'kind' is None \(NoneType\), no text"),
    "nan": ({"labels": {"kind": float("nan")}}, "label 'kind' is nan"),
    "half label": ({"labels": {"kind": HALF}}, "label 'kind' holds half"),
    "group": ({"group": None}, "the group is None"), "half group": ({"group": HALF}, "the group holds"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_one_bad_row_is_named_and_the_others_are_written(tmp_path, case):
    fields, words = BAD[case]
    labels = {"kind": "x"} if "labels" in fields else {}
    made = [one("a", labels=labels), one("bad", **fields), one("b", labels=labels)]
    with pytest.warns(UserWarning, match=f"1 samples were skipped.*bad: {words}"):
        write_shards(made, tmp_path / "s", **ABOUT)
    pairs = open_shards(tmp_path / "s")
    assert pairs.ids == ["a#0", "b#0"]
    ((key, reason),) = pairs.tables["skipped"]
    assert key == "bad" and reason.encode()


def test_a_reason_that_no_file_can_hold_is_spelled_out(tmp_path):
    made = [one("a"), Skipped("caf\udce9.jpg", "no file caf\udce9.jpg"),
            Sample("gone", {"jpg": tmp_path / "caf\udce9.jpg"})]
    with pytest.warns(UserWarning, match="2 samples were skipped"):
        write_shards(made, tmp_path / "s", **ABOUT)
    skipped = open_shards(tmp_path / "s").tables["skipped"]
    assert skipped == [[r"caf\udce9.jpg", r"no file caf\udce9.jpg"],
                       ["gone", r"there is no file caf\udce9.jpg"]]


def test_what_is_wrong_with_the_whole_is_told_before_the_first_sample(tmp_path):
    def never():
        raise AssertionError
        yield

    for field in ("name", "licence", "source", "recipe"):
        with pytest.raises(ValueError, match=rf"{field} must be a text.*\\\\ud83d"):
            write_shards(never(), tmp_path / "s", **ABOUT | {field: HALF})


@pytest.mark.parametrize("second, words", [
    ({"key": "k0"}, "two items have the key 'k0'"),
    ({"labels": {}}, r"k9: labels \[\], the items before have \['kind'\]"),
    ({"labels": {"kind": 3}}, "k9: label 'kind' is a number, those before are texts"),
    ({"labels": {"kind": "x", "split": "dev"}}, "k9: a label 'split' must be one of"),
    ({"key": 7}, "key 7"), ({"key": "a\n"}, "key"),
])
def test_a_fault_of_the_run_is_told_at_its_sample(tmp_path, second, words):
    """Not when all the others have been written."""
    asked = []

    def made():
        for k in range(5):
            asked.append(k)
            yield one(f"k{k}", labels={"kind": "x"})
        yield Sample(**{"key": "k9", "files": {"png": png()}, "labels": {"kind": "x"}} | second)
        raise AssertionError("went on")

    with pytest.raises(ValueError, match=words):
        write_shards(made(), tmp_path / "s", items_per_shard=2, **ABOUT)
    assert asked == list(range(5))


def test_labels_that_worked_still_do(tmp_path):
    made = [one(f"k{n}", labels={"n": n, "empty": "", "split": "train"}) for n in (3, 1)]
    write_shards(made, tmp_path / "s", **ABOUT)
    pairs = open_shards(tmp_path / "s")
    assert pairs.label_names == {"n": [1, 3], "empty": [""], "split": ["train", "val", "test"]}
    assert pairs.labels["n"].tolist() == [1, 0]


# --- clouds, and files of one kind ---------------------------------------------------------
def cloud(points: torch.Tensor) -> bytes:
    return save({"points": points})


CLOUDS = {
    "more points": (torch.ones(6, 3), r"its points are \[6, 3\], those before \[5, 3\]"),
    "flat": (torch.ones(5, 2), r"its points are \[5, 2\]"), "no points": (torch.ones(0, 3), "finite"),
    "not finite": (torch.full((5, 3), torch.nan), "its safetensors: points must be finite"),
    "one number": (torch.ones(()), "its safetensors: points must be finite"),
}  # fmt: skip


@pytest.mark.parametrize("case", CLOUDS)
def test_one_bad_cloud_is_named_and_the_others_open(tmp_path, case):
    """Written, the shards could not be opened at all."""
    bad, words = CLOUDS[case]
    made = [Sample("a", {"safetensors": cloud(torch.ones(5, 3))}),
            Sample("bad", {"safetensors": cloud(bad)}),
            Sample("b", {"safetensors": cloud(2 * torch.ones(5, 3))})]
    with pytest.warns(UserWarning, match=f"1 samples were skipped.*bad: .*{words}"):
        write_shards(made, tmp_path / "s", **ABOUT)
    assert open_shards(tmp_path / "s")["points"][:, 0, 0].tolist() == [1, 2]


def test_a_row_without_a_cloud_is_missing(tmp_path):
    made = [one("a"), Sample("b", {"safetensors": cloud(torch.ones(5, 3))})]
    write_shards(made, tmp_path / "s", **ABOUT)
    pairs = open_shards(tmp_path / "s")
    assert pairs["points"].sum((1, 2)).tolist() == [0, 15]
    assert pairs.present["points"].tolist() == [False, True]


def test_two_files_of_one_kind_are_refused(tmp_path):
    """One of them would be seen, the other not, without a word."""
    with pytest.raises(ValueError, match="a: png, jpg are of one kind"):
        write_shards([Sample("a", {"png": png(), "jpg": jpg(1)})], tmp_path / "s", **ABOUT)


def test_pairs_that_another_has_saved_meanwhile(tmp_path, monkeypatch):
    pairs = Pairs.make({"x": torch.zeros(2, 2)})
    replace = os.replace

    def late(part, folder):
        monkeypatch.setattr(os, "replace", replace)
        pairs.save(folder)
        replace(part, folder)

    monkeypatch.setattr(os, "replace", late)
    with pytest.raises(FileExistsError, match="p: another process has written it"):
        pairs.save(tmp_path / "p")
    assert [p.name for p in tmp_path.iterdir()] == ["p"] and len(Pairs.load(tmp_path / "p")) == 2


# --- texts of pairs --------------------------------------------------------------------
def test_pairs_name_the_row_with_half_a_surrogate_pair(tmp_path):
    x = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="column 'text': row 1 holds half.*character 6"):
        Pairs.make({"text": ["a dog", HALF]})
    with pytest.raises(ValueError, match=r"ids\[1\] holds half"):
        Pairs.make({"x": x}, ids=["a", HALF])
    pairs = Pairs.make({"x": x}, label_names={"kind": [HALF]})
    with pytest.raises(ValueError, match="rest/label_names/kind holds half"):
        pairs.save(tmp_path / "p")
    assert not list(tmp_path.iterdir())
    assert Pairs.make({"text": ["\U0001f63a", "𝕏"]})["text"] == ["\U0001f63a", "𝕏"]


def test_ids_that_are_numbers_are_written_out_and_train():
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    for ids in (range(10, 16), torch.arange(10, 16), torch.arange(10, 16).numpy()):
        pairs = Pairs.make({"image_features": z, "text_features": z}, ids=ids)
        assert pairs.ids == ["10", "11", "12", "13", "14", "15"]
    fit(DualEncoder(Settings(width=2), pairs), pairs, Budget(steps=1, batch_size=3))
    for wrong in (None, 1.5, b"x", True, ("a",)):
        with pytest.raises(TypeError, match=r"ids\[1\] is "):
            Pairs.make({"x": z[:2]}, ids=["a", wrong])
    with pytest.raises(ValueError, match="'1' stands more than once"):
        Pairs.make({"x": z[:2]}, ids=[1, "1"])


X = torch.zeros(3, 2)
MISSHAPEN = {
    "item of rows": (lambda: Pairs.make({"x": X}, item=torch.zeros(3, 1)), r"item .*\[3, 1\]"),
    "labels of rows": (lambda: Pairs.make({"x": X}, labels={"k": X}), r"labels\['k'\].*\[3, 2\]"),
    "one label": (lambda: Pairs.make({"x": X}, labels={"k": 1}), r"labels\['k'\].*\[\]"),
    "endless": (lambda: Pairs.make({"x": X}, labels={"k": [1, 2, float("inf")]}), "whole num"),
    "far too large": (lambda: Pairs.make({"x": X}, labels={"k": [1, 2, 1e30]}), "whole num"),
    "complex": (lambda: Pairs.make({"x": X}, labels={"k": [1, 2, 1j]}), "whole num"),
    "present of rows": (lambda: Pairs.make({"x": X}, present={"x": torch.ones(3, 1)}), "present"),
    "present, unknown": (lambda: Pairs.make({"x": X}, present={"x": [1, 0, float("nan")]}),
                         r"present\['x'\] needs whole numbers"),
    "present in words": (lambda: Pairs.make({"x": X}, present={"x": ["no"] * 3}), "present"),
    "letters as ids": (lambda: Pairs.make({"x": X}, ids="abc"), "ids needs a list .* 'abc'"),
    "rows of parts": (lambda: Pairs.make({"x": X}).select([0.0, 1.7]), "rows must be whole"),
    "mask of rows": (lambda: Pairs.make({"x": X}).select(X == 0), "rows must be whole"),
    "sparse": (lambda: Pairs.make({"x": torch.eye(3).to_sparse()}), "column 'x': a dense"),
    "meta": (lambda: Pairs.make({"x": X.to("meta")}), "column 'x': a dense .* on meta"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISSHAPEN)
def test_what_has_no_number_a_row_is_refused_by_name(case):
    call, words = MISSHAPEN[case]
    with pytest.raises((TypeError, ValueError), match=words):
        call()


def test_a_mask_of_numbers_is_a_mask():
    """As numbers it stayed, and ~1 is -2: all were there, and all were missing."""
    pairs = Pairs.make({"x": X}, present={"x": [1, 1, 0]})
    for mask in (torch.tensor([1, 0, 1]), torch.tensor([1.0, 0.0, 1.0])):
        assert pairs.with_present("x", mask).present["x"].tolist() == [True, False, False]


# --- one writer, and what was left -----------------------------------------------------
@pytest.mark.slow
def test_a_second_writer_is_refused(tmp_path):
    code = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_samples import ABOUT, one, write_shards
        def made():
            yield one("a")
            print("writing", flush=True)
            input()
            yield one("b")
        write_shards(made(), {str(tmp_path / "s")!r}, **ABOUT)
    """)
    first = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "writing\n"
    with pytest.raises(FileExistsError, match="another process is writing shards there"):
        write_shards([one("c")], tmp_path / "s", **ABOUT)
    first.communicate("\n")
    assert first.returncode == 0 and open_shards(tmp_path / "s").ids == ["a#0", "b#0"]
    assert {p.name for p in (tmp_path / "s").iterdir()} == {
        "00000.tar", "00000.json", "shards.json"}


def cut_off(folder: Path, shards: int) -> None:
    """A run that is stopped after so many shards of one sample."""
    def made():
        yield from (one(f"old{k}") for k in range(shards))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(made(), folder, items_per_shard=1, **ABOUT)


def test_shards_of_a_run_that_was_cut_off_are_removed_and_said(tmp_path):
    cut_off(tmp_path / "s", 5)
    (tmp_path / "s" / "00005.part").write_bytes(b"half")
    (tmp_path / "s" / "notes.txt").write_text("mine")
    with pytest.warns(UserWarning, match="5 shards .* removed: 00000.tar, .*00004.tar"):
        write_shards([one("new")], tmp_path / "s", **ABOUT)
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [
        "00000.json", "00000.tar", "notes.txt", "shards.json"]
    assert open_shards(tmp_path / "s").ids == ["new#0"]


@pytest.mark.parametrize("name, raw", [("00000.tar", b"x"), ("00003.tar", b"x"),
                                       ("00001.json", b'{"url": "x"}'), ("00001.json", b"[]")])
def test_what_alignkit_did_not_write_is_never_removed(tmp_path, name, raw):
    cut_off(tmp_path / "s", 2)
    for path in (tmp_path / "s").glob(name.split(".")[0] + ".*"):
        path.unlink()
    (tmp_path / "s" / name).write_bytes(raw)
    before = {p.name for p in (tmp_path / "s").iterdir()}
    with pytest.raises(FileExistsError, match=f"holds {name}, which alignkit did not write"):
        write_shards([one("new")], tmp_path / "s", **ABOUT)
    assert {p.name for p in (tmp_path / "s").iterdir()} == before


@pytest.fixture
def urls(monkeypatch):
    module = importlib.import_module("urls")
    monkeypatch.setattr(module, "LINES", 3)
    monkeypatch.setattr(module, "ask", lambda url: jpg(1))
    return module


def lines(urls, n: int, word="number", key="k"):
    return [urls.Line(f"{key}{i}", f"http://x/{i}", f"{word} {i}", "") for i in range(n)]


def test_a_list_goes_on_but_never_into_another_lists_shards(tmp_path, urls):
    assert urls.write_all(lines(urls, 9), tmp_path) == 3
    for other in (lines(urls, 9, word="letter"), lines(urls, 9, key="x")):
        with pytest.raises(FileExistsError, match="00000.tar is of another run: .*k0"):
            urls.write_all(other, tmp_path)
    whole = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    (tmp_path / "00001.tar").unlink()  # cut off between the two files
    assert urls.write_all(lines(urls, 9), tmp_path) == 3
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == whole


def test_another_limit_loses_and_keeps_nothing(tmp_path, urls):
    assert urls.write_all(lines(urls, 4), tmp_path) == 2  # the second has one of three
    assert urls.write_all(lines(urls, 8), tmp_path) == 3
    keys = [item["key"] for path in sorted(tmp_path.glob("*.json"))
            for item in json.loads(path.read_text())["items"]]
    assert keys == [f"k{i}" for i in range(8)]
    with pytest.warns(UserWarning, match="1 shards .*: 00002.tar"):
        clear(tmp_path, 2)
    assert not fits(tmp_path, 2, [])
    with only_writer(tmp_path), pytest.raises(FileExistsError), only_writer(tmp_path):
        pass


# --- whatever stands in a row ----------------------------------------------------------
ANY = (st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=3)
       | st.text(max_size=5) | st.sampled_from([HALF, "\udc80", "", " ", "\x85", "\0", "猫"])
       | st.text(st.characters(categories=["Cs", "L"]), max_size=3))


@settings(max_examples=examples(100), deadline=None, suppress_health_check=list(HealthCheck))
@given(captions=st.lists(ANY, max_size=3) | ANY, label=ANY, group=ANY,
       key=st.text(max_size=4) | st.just("k"), skipped=st.tuples(st.text(), st.text()))
def test_any_sample_is_written_skipped_by_name_or_refused(
        tmp_path_factory, captions, label, group, key, skipped):
    folder = tmp_path_factory.mktemp("any") / "s"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = one(key, captions=captions, labels={"kind": label}, group=group)
            write_shards([made, Skipped(*skipped)], folder, **ABOUT)
        except (TypeError, ValueError) as error:
            assert str(error).encode()
            return
    pairs = open_shards(folder)
    assert pairs["text"] == captions if captions else "text" not in pairs.columns
    assert pairs.label_names["kind"] == [label]
