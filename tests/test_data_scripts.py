"""The scripts of real data sets, from the download to Pairs, on small look-alikes."""
# ruff: noqa: F811 (pytest's fixtures are imported and then named by arguments)

import csv
import hashlib
import importlib
import io
import json
import runpy
import sys
import tarfile
import warnings
import zipfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import py7zr
import pytest
import soundfile
import torch
from asset_server import Handler, own_cache, server, sha, tarred, zipped  # noqa: F401
from test_archives import special, zip_link
from test_shards import jpg, mp4, png

from alignkit.data import Pairs
from alignkit.data import download as downloads
from alignkit.data.archives import UnsafeArchive
from alignkit.data.shards import official_splits

SCRIPTS = Path(__file__).parents[1] / "data_scripts"
sys.path.insert(0, str(SCRIPTS))
common, urls = importlib.import_module("common"), importlib.import_module("urls")
NAMES = ["audiocaps", "cc12m", "cc3m", "clotho", "coco", "cuhk_pedes", "esc50",
         "flickr30k", "flickr8k", "gqa", "modelnet40", "msrvtt"]  # fmt: skip


def wav(seconds: float = 0.05, seed: int = 0) -> bytes:
    file, drawn = io.BytesIO(), torch.Generator().manual_seed(seed)
    noise = torch.rand(int(8000 * seconds), generator=drawn) - 0.5
    soundfile.write(file, noise.numpy(), 8000, format="WAV")
    return file.getvalue()


def table(header: str, *lines: tuple) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerows([header.split(","), *lines])
    return file.getvalue().encode()


def caption_sets(which: str, *images: tuple[str, str]) -> bytes:
    """Karpathy's archive: (file name, split) -> two captions each."""
    found = [{"filename": name, "filepath": "x", "split": split, "imgid": k,
              "sentences": [{"raw": f"{name} shown", "tokens": []},
                            {"raw": " again.", "tokens": []}]}
             for k, (name, split) in enumerate(images)]
    text = json.dumps({"images": found, "dataset": which}).encode()
    return zipped({f"dataset_{which}.json": text})


def serve(server, name: str, files: dict[str, bytes], promise: str = "sha256"):
    """The script's module, whose data set is now at our server."""
    module = importlib.import_module(name)
    server.files |= files
    known = {"sha256": sha, "md5": lambda raw: hashlib.md5(raw).hexdigest()}
    sources = tuple(common.Source(server.url(called), **(
        {promise: known[promise](raw)} if promise else {}))
        for called, raw in files.items())
    return module, replace(module.ABOUT, files=sources)


def make(module, about, out, *options) -> Pairs:
    go = urls.run_urls if hasattr(module, "lines") else common.run
    rows = getattr(module, "lines", None) or module.samples
    go(about, rows, [str(out), "--accept-licence", *map(str, options)])
    return Pairs.load(out)


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, raw in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)
    return folder


# --- each set ------------------------------------------------------------------------

ESC = table("filename,fold,target,category,esc10,src_file,take",
            ("1-7-A-0.wav", 1, 0, "dog", "True", 7, "A"),
            ("1-7-B-0.wav", 1, 0, "dog", "True", 7, "B"),
            ("2-8-A-20.wav", 2, 20, "crying_baby", "False", 8, "A"),
            ("2-9-A-20.wav", 2, 20, "crying_baby", "False", 9, "A"))  # fmt: skip


@cache  # a zip holds the time at which it was made
def esc50(last: bytes = b"RIFF") -> bytes:
    top = "ESC-50-33c8"
    return zipped({f"{top}/meta/esc50.csv": ESC, f"{top}/audio/1-7-A-0.wav": wav(),
                   f"{top}/audio/1-7-B-0.wav": wav(seed=1),
                   f"{top}/audio/2-8-A-20.wav": wav(seed=2),
                   f"{top}/audio/2-9-A-20.wav": last})


def test_esc50_keeps_recordings_together_and_skips_a_truncated_sound(
        server, tmp_path, capsys):
    module, about = serve(server, "esc50", {"e.zip": esc50()})
    with pytest.warns(UserWarning, match="1 samples were skipped.*2-9-A-20"):
        pairs = make(module, about, tmp_path / "out")
    assert pairs.ids == ["1-7-A-0#0", "1-7-B-0#0", "2-8-A-20#0"]
    assert pairs["text"] == ["dog", "dog", "crying baby"]
    assert pairs.group[0] == pairs.group[1] != pairs.group[2]
    assert pairs.label_names == {"category": ["crying baby", "dog"], "fold": ["1", "2"]}
    assert torch.equal(pairs["sound"][1][0], torch.from_numpy(
        soundfile.read(io.BytesIO(wav(seed=1)), dtype="float32")[0]))
    said = capsys.readouterr().out
    assert "Terms: CC BY-NC 3.0" in said and "skipped 1: its wav: not a sound" in said
    manifest = json.loads((tmp_path / "out/shards.json").read_text())
    assert manifest["downloads"] == [{
        "url": server.url("e.zip"), "sha256": sha(esc50()), "bytes": len(esc50()),
        "promised": "sha256"}]  # fmt: skip


def seven(files: dict[str, bytes], called: str = "") -> bytes:
    """A 7z archive; `called`: what its header says instead of the first name."""
    file = io.BytesIO()
    with py7zr.SevenZipFile(file, "w") as archive:
        for name, raw in files.items():
            archive.writestr(raw, name)
        if called:  # py7zr itself would not write such a name
            archive.header.files_info.files[0]["filename"] = called
    return file.getvalue()


def test_clotho_reads_7z_and_keeps_its_split(server, tmp_path):
    header = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"
    files = {}
    for seed, part in enumerate(("development", "validation", "evaluation")):
        name = f"Caf\u00e9, {part}.wav"
        files[f"clotho_audio_{part}.7z"] = seven({f"{part}/{name}": wav(seed=seed)})
        lines = table(header, (name, *(f"{part} {k}" for k in range(5))))
        files[f"clotho_captions_{part}.csv"] = (
            lines.decode().encode("latin-1") if seed else lines)
    module, about = serve(server, "clotho", files, "md5")
    pairs = make(module, about, tmp_path / "out")
    parts = official_splits(pairs)
    assert [part["text"][0] for part in parts] == [
        "development 0", "validation 0", "evaluation 0"]
    assert [len(part) for part in parts] == [5, 5, 5] and len(pairs.item.unique()) == 3
    server.files["clotho_audio_validation.7z"] = seven({"x": b""})
    with pytest.raises(downloads.WrongHash, match="md5 .*, expected"):
        make(module, about, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_audiocaps_finds_sounds_under_their_usual_names(server, tmp_path):
    header = "audiocap_id,youtube_id,start_time,caption"
    files = {
        "train.csv": table(header, (1, "-a_b", 30, "Water, pouring"),
                           (2, "gone", 0, "x")),
        "val.csv": table(header, (3, "vv", 0, "A"), (4, "vv", 0, "B")),
        "test.csv": table(header, (5, "tt", 10, "C")),
    }
    module, about = serve(server, "audiocaps", files)
    given = put(tmp_path / "audio",
                {"Y-a_b.wav": wav(), "vv_0.wav": wav(), "5.wav": wav()})
    with pytest.warns(UserWarning, match="gone_0: there is no file gone.flac"):
        pairs = make(module, about, tmp_path / "out", "--from", given)
    assert pairs["text"] == ["Water, pouring", "A", "B", "C"]
    assert pairs.item.tolist() == [0, 1, 1, 2]
    assert pairs.labels["split"].tolist() == [0, 1, 1, 2]


def test_coco_takes_karpathys_split_and_skips_a_truncated_picture(server, tmp_path):
    train = {f"train2014/COCO_train2014_{k}.jpg": jpg(k) for k in range(2)}
    val = {f"val2014/COCO_val2014_{k}.jpg": jpg(k) for k in (3, 4)}
    val["val2014/COCO_val2014_5.jpg"] = jpg(5)[:-500]
    module, about = serve(server, "coco", {
        "train2014.zip": zipped(train), "val2014.zip": zipped(val),
        "caption_datasets.zip": caption_sets(
            "coco", ("COCO_train2014_0.jpg", "train"), ("COCO_train2014_1.jpg", "val"),
            ("COCO_val2014_3.jpg", "restval"), ("COCO_val2014_4.jpg", "test"),
            ("COCO_val2014_5.jpg", "test"))})  # fmt: skip
    with pytest.warns(UserWarning, match="COCO_val2014_5: its jpg: .*truncated"):
        pairs = make(module, about, tmp_path / "out")
    parts = official_splits(pairs)
    assert [sorted(set(part.item.tolist())) for part in parts] == [[0, 2], [1], [3]]
    assert parts[2]["text"] == ["COCO_val2014_4.jpg shown", "again."]
    assert abs(pairs["image"][4].getpixel((3, 3))[0] - 75) < 8


@pytest.mark.parametrize("name", ["flickr8k", "flickr30k"])
def test_flickr_takes_the_pictures_that_were_given(server, tmp_path, name):
    module, about = serve(server, name, {"caption_datasets.zip": caption_sets(
        name, ("1.jpg", "train"), ("2.jpg", "val"), ("3.jpg", "test"))})
    archive = tmp_path / "pictures.tar.gz"
    archive.write_bytes(tarred({f"images/{k}.jpg": jpg(k) for k in (1, 2, 3)}))
    pairs = make(module, about, tmp_path / "out", "--from", archive)
    assert pairs.ids == ["1#0", "1#1", "2#0", "2#1", "3#0", "3#1"]
    assert pairs.labels["split"].tolist() == [0, 0, 1, 1, 2, 2]
    given = json.loads((tmp_path / "out/shards.json").read_text())["downloads"][1]
    assert given == {"given": "pictures.tar.gz", "sha256": sha(archive.read_bytes())}


def test_msrvtt(tmp_path):
    module = importlib.import_module("msrvtt")

    def annotations(videos: dict[str, str]) -> bytes:
        return json.dumps({
            "videos": [{"video_id": v, "split": split, "category": 9,
                        "url": "https://www.youtube.com/watch?v=q"}
                       for v, split in videos.items()],
            "sentences": [{"video_id": v, "caption": f"{v} {k}", "sen_id": k}
                          for k in range(2) for v in videos]}).encode()  # fmt: skip

    given = put(tmp_path / "given", {
        "train_val_videodatainfo.json": annotations(
            {"video0": "train", "video1": "validate"}),
        "test_videodatainfo.json": annotations({"video7": "test"}),
        **{f"all/video{k}.mp4": mp4(3) for k in (0, 1, 7)}})
    pairs = make(module, module.ABOUT, tmp_path / "out", "--from", given)
    assert pairs["text"][:3] == ["video0 0", "video0 1", "video1 0"]
    assert pairs.labels["split"].tolist() == [0, 0, 1, 1, 2, 2]
    assert len(pairs.group.unique()) == 1 and pairs["video"][5].shape == (8, 48, 64, 3)


CUBE = [[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
SIDES = [[0, 1, 3, 2], [4, 5, 7, 6], [0, 1, 5, 4], [2, 3, 7, 6], [0, 2, 6, 4],
         [1, 3, 7, 5]]


def off(head: str) -> bytes:
    lines = [head, *(" ".join(map(str, corner)) for corner in CUBE),
             *(" ".join(map(str, [4, *side])) for side in SIDES)]
    return "\n".join(lines).encode()


def test_modelnet40_draws_points_of_every_way_of_writing_off(server, tmp_path):
    module, about = serve(server, "modelnet40", {"ModelNet40.zip": zipped({
        "ModelNet40/night_stand/train/night_stand_0001.off": off("OFF\n8 6 0"),
        "ModelNet40/night_stand/test/night_stand_0002.off": off("OFF8 6 0"),
        "ModelNet40/bed/train/bed_0001.off": b"OFF\n8 6",
        "__MACOSX/ModelNet40/night_stand/train/._night_stand_0001.off": b"x"})})
    with pytest.warns(UserWarning, match="bed_0001: not an OFF model"):
        pairs = make(module, about, tmp_path / "out")
    assert pairs["points"].shape == (2, 1024, 3)
    assert torch.allclose(pairs["points"].norm(dim=2).amax(1), torch.ones(2))
    largest = pairs["points"].abs().amax(2)  # of a cube: all near the same
    assert largest.max() / largest.min() < 1.25
    assert pairs["text"] == ["night stand"] * 2
    assert sorted(pairs.labels["split"].tolist()) == [0, 2]


def test_cuhk_pedes_keeps_a_person_on_one_side(tmp_path):
    module = importlib.import_module("cuhk_pedes")
    entries = [{"split": "train", "captions": ["A man.", "He."],
                "file_path": "CUHK01/1.png", "id": 1},
               {"split": "train", "captions": ["The man."], "file_path": "Market/1.png",
                "id": 1},
               {"split": "test", "captions": ["A woman."], "file_path": "Market/2.png",
                "id": 2}]  # fmt: skip
    given = put(tmp_path / "given", {
        "reid_raw.json": json.dumps(entries).encode(),
        **{f"imgs/{entry['file_path']}": png() for entry in entries}})
    pairs = make(module, module.ABOUT, tmp_path / "out", "--from", given)
    assert pairs.item.tolist() == [0, 0, 1, 2]
    assert pairs.group[0] == pairs.group[2] != pairs.group[3]
    assert pairs.label_names["person"] == ["1", "2"]


def test_gqa_keeps_the_questions_on_a_picture_together(server, tmp_path):
    asked = {split: json.dumps({f"{split}{k}": {
        "imageId": str(k // 2), "question": f"What is {k}?", "answer": "xyz"[k % 3]}
        for k in range(lo, lo + 4)}).encode() for lo, split in ((0, "train"), (4, "val"))}
    module, about = serve(server, "gqa", {
        "questions1.2.zip": zipped({f"{s}_balanced_questions.json": x
                                    for s, x in asked.items()}),
        "images.zip": zipped({f"images/{k}.jpg": jpg(k) for k in range(4)})})
    pairs = make(module, about, tmp_path / "out")
    assert sorted(pairs["text"]) == [f"What is {k}?" for k in range(8)]
    assert sorted(pairs.labels["split"].tolist()) == [0] * 4 + [1] * 4
    for text, name, answer, group in zip(pairs["text"], pairs.ids, pairs.labels["answer"].tolist(),
                                         pairs.group.tolist(), strict=True):
        k = int(text[8])
        assert name.startswith(("train", "val")[k // 4] + str(k))
        assert pairs.label_names["answer"][answer] == "xyz"[k % 3]
        assert sum(pairs.group == group) == 2


# --- lists of URLs -------------------------------------------------------------------


class OptedOut(Handler):
    """Sends X-Robots-Tag with what lies under private/."""

    def end_headers(self):
        if self.path.startswith("/private/"):
            self.send_header("X-Robots-Tag", "otherbot: noarchive, NoAI")
        super().end_headers()


@pytest.fixture
def web(server, monkeypatch):
    """Pictures 0 … 6, and addresses that fail, each in its own way."""
    server.RequestHandlerClass = OptedOut
    server.files |= {f"{k}.jpg": jpg(k) for k in range(7)}
    server.files |= {"private/0.jpg": jpg(0), "page": b"<html>",
                     "cut.jpg": jpg(1)[:-600], "big.jpg": jpg(1) + bytes(40_000)}
    for name, value in {"LINES": 3, "WAIT": 0.001, "LARGEST": 30_000}.items():
        monkeypatch.setattr(urls, name, value)
    return server


def address_list(web, names, flip=False) -> bytes:
    lines = [(f"caption of {name}", name if ":" in name else web.url(name))
             for name in names]
    return "".join("\t".join(line[::-1] if flip else line) + "\n"
                   for line in lines).encode()  # fmt: skip


def test_cc12m_counts_what_cannot_be_had_and_puts_nothing_in_its_place(
        web, tmp_path, capsys):
    names = ["0.jpg", "none.jpg", "1.jpg", "private/0.jpg", "page", "cut.jpg",
             "big.jpg", "file:///etc/hostname", "2.jpg"]
    found = address_list(web, names, flip=True)
    module, about = serve(web, "cc12m", {"cc12m.tsv": found}, "")
    pairs = make(module, about, tmp_path / "out")
    assert pairs["text"] == ["caption of 0.jpg", "caption of 1.jpg", "caption of 2.jpg"]
    reasons = {key: reason for key, reason in pairs.tables["skipped"]}
    assert reasons.pop("cc00000005").startswith("its jpg: ")
    assert reasons == {
        "cc00000001": "HTTP 404", "cc00000003": "its server opted out (X-Robots-Tag)",
        "cc00000004": "the answer is not a picture",
        "cc00000006": "larger than 30000 bytes",
        "cc00000007": "not an http address"}  # fmt: skip
    said = capsys.readouterr().out
    assert "skipped 1: HTTP 404" in said
    assert "no official hash is known" in said and sha(web.files["cc12m.tsv"]) in said
    assert len(list((tmp_path / "out").glob("*.tar"))) == 3


def test_cc3m_goes_on_where_it_was_cut_off(web, tmp_path, monkeypatch):
    files = {"GCC-training.tsv": address_list(web, [f"{k}.jpg" for k in range(5)]),
             "GCC-1.1.0-Validation.tsv": address_list(web, ["5.jpg", "6.jpg"])}
    module, about = serve(web, "cc3m", files)
    write = urls.write_shard

    def cut(samples, folder, number):
        if number == 1:
            raise KeyboardInterrupt
        write(samples, folder, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(urls, "write_shard", cut)
        make(module, about, tmp_path / "out")
    before = [name for name, _ in web.requests]
    pairs = make(module, about, tmp_path / "out")
    after = [name for name, _ in web.requests][len(before):]
    assert sorted(after) == ["3.jpg", "4.jpg", "5.jpg", "6.jpg"]  # nothing of shard 0
    assert pairs["text"] == [f"caption of {k}.jpg" for k in range(7)]
    assert pairs.labels["split"].tolist() == [0] * 5 + [1] * 2
    fresh = make(module, about, tmp_path / "fresh")
    assert fresh.provenance.hash == pairs.provenance.hash


def test_a_server_is_asked_a_few_things_at_a_time(web, tmp_path, monkeypatch):
    import threading

    now, most, lock = [0], [0], threading.Lock()
    ask = urls.ask

    def counted(url):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        threading.Event().wait(0.02)
        raw = ask(url)
        with lock:
            now[0] -= 1
        return raw

    monkeypatch.setattr(urls, "ask", counted)
    monkeypatch.setattr(urls, "LINES", 100)
    names = [f"{k % 7}.jpg" for k in range(14)]
    module, about = serve(web, "cc12m", {"cc12m.tsv": address_list(web, names, True)})
    assert len(make(module, about, tmp_path / "out")) == 14
    assert most == [urls.PER_HOST]


# --- one's own -----------------------------------------------------------------------


def own(*options) -> None:
    importlib.import_module("own").main([*map(str, options), "--licence", "mine"])


def test_a_table_and_a_folder_of_ones_own(tmp_path):
    put(tmp_path, {"cat.png": png(), "dog.jpg": jpg(3), "cat.txt": b"a cat\nmy cat",
                   "dog.txt": b"a dog"})
    (tmp_path / "t.csv").write_text("image,caption\ncat.png,a cat\ndog.jpg,a dog\n"
                                    "cat.png,my cat\n")
    for source in (tmp_path / "t.csv", tmp_path):
        own(source, tmp_path.parent / f"{source.stem}-shards")
        pairs = Pairs.load(tmp_path.parent / f"{source.stem}-shards")
        assert pairs["text"] == ["a cat", "my cat", "a dog"]
        assert pairs.item.tolist() == [0, 0, 1]
        assert pairs.provenance.licence == "mine" and pairs.provenance.kind == "user"


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    import datasets

    pictures = [{"bytes": jpg(1), "path": None}, {"bytes": png(), "path": None}]
    said = {"train": [["one", "uno"], ["two"]], "validation": [[], ["x"]]}
    for split, rows in said.items():
        made = datasets.Dataset.from_dict({"photo": pictures, "said": rows})
        (tmp_path / "set").mkdir(exist_ok=True)
        made.cast_column("photo", datasets.Image()).to_parquet(
            tmp_path / "set" / f"{split}-00000.parquet")
    own(f"hf:{tmp_path / 'set'}", tmp_path / "out", "--image", "photo",
        "--caption", "said")
    pairs = Pairs.load(tmp_path / "out")
    assert pairs["text"] == ["one", "uno", "two", "", "x"]
    assert pairs.labels["split"].tolist() == [0, 0, 0, 1, 1]
    assert pairs["image"][2].size == (5, 4)
    with pytest.raises(SystemExit, match="Give --revision"):
        own("hf:someone/things", tmp_path / "other")


def test_a_hub_row_may_name_a_file_or_lack_what_it_needs(tmp_path, monkeypatch):
    """Pictures that lie beside the table, rows without one, captions that are none."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    import datasets

    put(tmp_path, {"far.jpg": jpg(3)})
    pictures = [{"bytes": None, "path": str(tmp_path / "far.jpg")}, {"bytes": png(), "path": None},
                None, {"bytes": None, "path": str(tmp_path / "none.jpg")},
                {"bytes": jpg(2), "path": None}]
    made = datasets.Dataset.from_dict({"image": pictures,
                                       "caption": ["a file", None, "x", "y", " "]})
    (tmp_path / "set").mkdir()
    made.to_parquet(tmp_path / "set" / "train-00000.parquet")
    with pytest.warns(UserWarning, match="3 samples were skipped"):
        own(f"hf:{tmp_path / 'set'}", tmp_path / "out")
    pairs = Pairs.load(tmp_path / "out")
    assert pairs["text"] == ["a file", ""] and pairs.present["text"].tolist() == [True, False]
    assert abs(pairs["image"][0].getpixel((5, 5))[0] - 75) < 8
    reasons = dict(pairs.tables["skipped"])
    assert reasons["train00000002"] == "the row has no picture"
    assert "none.jpg" in reasons["train00000003"]
    assert reasons["train00000004"] == "caption 0 is blank"


# --- what is refused -----------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_script_refuses_without_its_licence_and_says_what_to_ask_for(
        name, tmp_path, monkeypatch, capsys):
    def run(*options):
        monkeypatch.setattr(sys, "argv", [name, str(tmp_path / "out"), *options])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        assert stopped.value.code == 2 and not list(tmp_path.iterdir())
        return capsys.readouterr()

    said = run()
    about = importlib.import_module(name).ABOUT
    assert f"Terms: {about.licence}" in said.out
    assert "add --accept-licence" in said.err and about.page in said.err
    if about.ask:
        assert about.ask in run("--accept-licence").err
        assert "no such file" in run("--accept-licence", "--from", "none").err


def test_there_is_a_test_for_every_script():
    scripts = {path.stem for path in SCRIPTS.glob("*.py")}
    elsewhere = {"train_fusion",  # tests/test_shipped_fusion.py
                 "train_two_towers",  # tests/test_two_towers.py
                 "train_voxel_priors"}  # tests/test_voxels.py
    assert scripts == {*NAMES, "common", "urls", "own", "encode"} | elsewhere


@pytest.mark.parametrize("name", NAMES)
def test_promised_hashes_look_like_hashes(name):
    about = importlib.import_module(name).ABOUT
    assert about.files or about.ask
    for source in about.files:
        assert source.url.startswith("http")
        assert len(source.sha256) in (0, 64) and len(source.md5) in (0, 32)
        assert not set(source.sha256 + source.md5) - set("0123456789abcdef")


def test_a_wrong_hash_is_refused(server, tmp_path):
    module, about = serve(server, "esc50", {"e.zip": esc50()})
    server.files["e.zip"] = esc50(wav())
    with pytest.raises(downloads.WrongHash, match=sha(esc50())):
        make(module, about, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "out-downloads").glob("e.zip*"))


def test_without_a_promise_the_first_download_is_the_promise(server, tmp_path):
    module, about = serve(server, "esc50", {"e.zip": esc50(wav())}, "")
    options = ("--downloads", tmp_path / "kept")
    make(module, about, tmp_path / "out", *options)
    manifest = json.loads((tmp_path / "out/shards.json").read_text())
    assert manifest["downloads"][0]["promised"] == "nothing"
    assert manifest["downloads"][0]["sha256"] == sha(esc50(wav()))
    (tmp_path / "kept/e.zip").unlink()
    server.files["e.zip"] = esc50(wav(seed=5))
    with pytest.raises(downloads.WrongHash, match="the first download was another"):
        make(module, about, tmp_path / "second", *options)


def test_an_interrupted_download_goes_on(server, tmp_path, monkeypatch):
    whole = esc50(wav(40.0))
    module, about = serve(server, "esc50", {"e.zip": whole})
    server.faults["e.zip"] = "cut"
    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(downloads, "TRIES", 1)
        make(module, about, tmp_path / "out")
    assert len(make(module, about, tmp_path / "out")) == 4
    assert server.requests == [("e.zip", None), ("e.zip", "bytes=300000-")]


def test_downloads_are_kept_and_a_limit_takes_the_first_items(server, tmp_path):
    module, about = serve(server, "esc50", {"e.zip": esc50(wav())})
    options = ("--downloads", tmp_path / "kept")
    assert len(make(module, about, tmp_path / "a", "--limit", 2, *options)) == 2
    assert len(make(module, about, tmp_path / "b", *options)) == 4
    assert len(server.requests) == 1


def test_a_truncated_archive_is_refused_and_nothing_is_kept(server, tmp_path):
    module, about = serve(server, "esc50", {"e.zip": esc50()[:-100]}, "")
    with pytest.raises(zipfile.BadZipFile):
        make(module, about, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert {path.name for path in (tmp_path / "out-downloads").iterdir()} == {
        "e.zip", "downloads.json"}


HOSTILE = {
    "absolute.zip": zipped({"/etc/x": b""}),
    "climbs.zip": zipped({"a/../../x": b""}),
    "link.zip": zip_link(),
    "absolute.tar.gz": tarred({"/etc/x": b""}),
    "climbs.tar.gz": tarred({"../x": b""}),
    "link.tar.gz": tarred({}, extra=[special(tarfile.SYMTYPE)]),
    "device.tar.gz": tarred({}, extra=[special(tarfile.CHRTYPE)]),
    "climbs.7z": seven({"x": b"1"}, "a/../../x"),
    "absolute.7z": seven({"x": b"1"}, "/etc/x"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("how", ["given", "downloaded"])
def test_a_hostile_archive_is_refused_and_nothing_of_it_is_kept(
        server, tmp_path, name, how):
    archive = tmp_path / "got" / name
    put(tmp_path / "got", {name: HOSTILE[name]})
    module, about = serve(server, "esc50", {name: HOSTILE[name]}, "")
    options = ["--from", archive, "--no-download"] if how == "given" else []
    with pytest.raises(UnsafeArchive):
        make(module, about, tmp_path / "run" / "out", *options)
    kept = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert kept <= {name, "downloads.json"}
    assert not [path for path in tmp_path.rglob("*") if path.name in ("x", "bad")]


def test_a_link_in_a_7z_is_refused(tmp_path):
    (tmp_path / "real").write_bytes(b"secret")
    (tmp_path / "link").symlink_to("real")
    with py7zr.SevenZipFile(tmp_path / "a.7z", "w") as archive:
        archive.write(tmp_path / "real", "real")
        archive.write(tmp_path / "link", "link")
    (tmp_path / "to").mkdir()
    with pytest.raises(UnsafeArchive, match="'link' is a link"):
        common.unpack_7z(tmp_path / "a.7z", tmp_path / "to")
    assert not list((tmp_path / "to").iterdir())


def test_shards_that_are_there_are_not_overwritten(server, tmp_path, capsys):
    module, about = serve(server, "esc50", {"e.zip": esc50(wav())})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(module, about, tmp_path / "out")
    with pytest.raises(SystemExit):
        make(module, about, tmp_path / "out")
    assert "name a new folder" in capsys.readouterr().err and len(server.requests) == 1
