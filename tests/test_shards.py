"""Webdataset shards: what is written, opened without the tars, streamed, and lost."""

import io
import json
import pickle
import tarfile
import warnings

import pytest
import soundfile
import torch
import webdataset
from PIL import Image
from safetensors.torch import save

from alignkit.data import Pairs
from alignkit.data.blobs import Blob, sound
from alignkit.data.shards import (
    Sample, Skipped, changed_shards, official_splits, open_shards, read_shards,
    write_shards,
)  # fmt: skip

ABOUT = {"name": "toy", "licence": "CC0", "source": "made here"}


def jpg(number: int) -> bytes:
    file = io.BytesIO()
    drawn = torch.Generator().manual_seed(number)
    noise = torch.randint(256, (48, 64, 3), dtype=torch.uint8, generator=drawn)
    noise[:, :32] = torch.tensor([25 * number, 0, 0])
    Image.fromarray(noise.numpy()).save(file, "JPEG")
    return file.getvalue()


def samples(n=9) -> list[Sample]:
    """Items a0 … with two captions each; a4 and a5 are one group."""
    split = ["train"] * (n - 3) + ["val", "test", "test"]
    return [Sample(f"a{i}", {"jpg": jpg(i)}, [f"number {i}", f"the {i}th"],
                   {"parity": "odd" if i % 2 else "even"},
                   "pair" if i in (4, 5) else "", split[i]) for i in range(n)]


@pytest.fixture
def folder(tmp_path):
    write_shards(samples(), tmp_path / "toy", items_per_shard=3, **ABOUT)
    return tmp_path / "toy"


def damage(folder, shard: int, member: str, how) -> None:
    """Change a member's bytes where they lie in the tar."""
    path = folder / f"{shard:05d}.tar"
    with tarfile.open(path) as tar:
        info = tar.getmember(member)
    raw = bytearray(path.read_bytes())
    end = info.offset_data + info.size
    raw[info.offset_data:end] = how(bytes(raw[info.offset_data:end]))
    path.write_bytes(raw)


# --- what is written and opened ----------------------------------------------------


def test_the_bytes_captions_labels_and_groups_come_back(folder):
    pairs = open_shards(folder)
    assert len(pairs) == 18 and pairs.ids[:3] == ["a0#0", "a0#1", "a1#0"]
    assert pairs["text"][2:4] == ["number 1", "the 1th"]
    assert pairs.item.tolist() == [i // 2 for i in range(18)]
    assert len(pairs.group.unique()) == 8 and pairs.group[8] == pairs.group[10]
    assert pairs.label_names == {"parity": ["even", "odd"],
                                 "split": ["train", "val", "test"]}
    assert pairs.labels["parity"].tolist() == [0, 0, 1, 1] * 4 + [0, 0]
    for row in (0, 7, 17):
        source = pairs["image"].sources[row]
        expected = Image.open(io.BytesIO((folder / source.tar).read_bytes()[
            source.offset : source.offset + source.size]))
        assert pairs["image"][row].tobytes() == expected.tobytes()
        red = pairs["image"][row].getpixel((5, 5))[0]
        assert abs(red - 25 * pairs.item[row]) < 8
    assert pairs.tables["skipped"] == []
    assert pairs.provenance.name == "toy" and len(pairs.provenance.hash) == 64


def test_opening_reads_no_tar(folder):
    sizes = [path.stat().st_size for path in sorted(folder.glob("*.tar"))]
    for path, size in zip(sorted(folder.glob("*.tar")), sizes, strict=True):
        path.write_bytes(bytes(size))
    pairs = open_shards(folder)
    assert len(pairs) == 18
    with pytest.raises(ValueError, match="00000.tar a0.jpg: its bytes have changed"):
        pairs["image"][0]
    assert changed_shards(folder) == ["00000.tar", "00001.tar", "00002.tar"]


def test_rows_can_be_sent_to_other_processes(folder):
    for pairs in (open_shards(folder), next(read_shards(folder))):
        sent = pickle.loads(pickle.dumps(pairs["image"]))
        assert sent[3].tobytes() == pairs["image"][3].tobytes()


def test_pairs_load_opens_shards_and_save_keeps_them(folder, tmp_path):
    pairs = Pairs.load(folder)
    assert changed_shards(folder) == []
    assert pairs.ids == open_shards(folder).ids
    pairs.select(range(2)).save(tmp_path / "kept")
    kept = Pairs.load(tmp_path / "kept")
    assert kept["image"][0].tobytes() == pairs["image"][0].tobytes()


def test_webdataset_reads_what_we_wrote(folder):
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in found] == [f"a{i}" for i in range(9)]
    assert found[4]["json"] == {
        "key": "a4", "captions": ["number 4", "the 4th"], "labels": {"parity": "even"},
        "group": "pair", "split": "train"}  # fmt: skip
    assert found[4]["jpg"].size == (64, 48)


def test_the_same_samples_give_the_same_shards(folder, tmp_path):
    write_shards(again(folder), tmp_path / "b", items_per_shard=3, **ABOUT)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def again(folder):
    """The samples of `folder`, out of its tars by the standard library."""
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            raw = {info.name: tar.extractfile(info).read() for info in tar}
        for name in [name for name in raw if name.endswith("jpg")]:
            about = json.loads(raw[name.replace("jpg", "json")])
            yield Sample(files={"jpg": raw[name]}, **about)


def test_sounds_points_and_missing_modalities(tmp_path):
    wave = io.BytesIO()
    soundfile.write(wave, torch.linspace(-0.5, 0.5, 800).numpy(), 8000, format="FLAC")
    cloud = torch.arange(12.0).reshape(4, 3)
    made = [Sample("x", {"flac": wave.getvalue(), "png": png(),
                         "safetensors": save({"points": cloud})}, ["a rise"]),
            Sample("y", {"flac": wave.getvalue(),
                         "safetensors": save({"points": cloud + 1})})]
    write_shards(made, tmp_path / "s", **ABOUT)
    pairs = open_shards(tmp_path / "s")
    assert sorted(pairs.columns) == ["image", "points", "sound", "text"]
    heard, rate = pairs["sound"][0]
    assert rate == 8000
    assert torch.allclose(heard, torch.linspace(-0.5, 0.5, 800), atol=1e-4)
    assert torch.equal(pairs["points"], torch.stack([cloud, cloud + 1]))
    assert pairs.present["image"].tolist() == [True, False]
    assert pairs.present["text"].tolist() == [True, False]
    with pytest.raises(ValueError, match=r"present\['image'\]"):
        pairs["image"][1]


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (5, 4), "red").save(file, "PNG")
    return file.getvalue()


def test_videos_are_eight_frames_evenly_in_time(tmp_path):
    write_shards([Sample("v", {"mp4": mp4(15)}, ["it gets brighter"])], tmp_path / "s",
                 **ABOUT)
    frames = open_shards(tmp_path / "s")["video"][0]
    assert frames.shape == (8, 48, 64, 3) and frames.dtype == torch.uint8
    shown = frames.float().mean((1, 2, 3))
    assert torch.allclose(shown, torch.arange(0, 15, 2) * 16.0, atol=4)


def mp4(count: int) -> bytes:
    """Frame k is grey with the value 16 k."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in range(count):
            grey = torch.full((48, 64, 3), 16 * k, dtype=torch.uint8).numpy()
            for packet in stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return file.getvalue()


# --- splits --------------------------------------------------------------------------


def test_official_splits_are_kept(folder):
    parts = official_splits(open_shards(folder))
    assert [sorted(set(part.item.tolist())) for part in parts] == [
        [0, 1, 2, 3, 4, 5], [6], [7, 8]]


@pytest.mark.parametrize("seed", range(4))
def test_without_a_val_part_one_is_drawn_by_group(tmp_path, seed):
    made = [Sample(s.key, s.files, s.captions, s.labels, s.group,
                   s.split.replace("val", "train")) for s in samples()]
    write_shards(made, tmp_path / "s", **ABOUT)
    parts = official_splits(open_shards(tmp_path / "s"), seed, val=0.5)
    items = [set(part.item.tolist()) for part in parts]
    assert items[0] | items[1] == set(range(7)) and items[2] == {7, 8}
    assert items[1] and not items[0] & items[1]
    assert len({4, 5} & items[1]) in (0, 2)  # a group stays whole


def test_a_redrawn_split_keeps_groups_on_one_side(folder):
    pairs = open_shards(folder)
    for seed in range(5):
        parts = pairs.split(seed, (0.5, 0.25, 0.25))
        assert sum(bool({4, 5} & set(part.item.tolist())) for part in parts) == 1


def test_pairs_without_an_official_split_say_so(tmp_path):
    write_shards([Sample("a", {"png": png()})], tmp_path / "s", **ABOUT)
    with pytest.raises(ValueError, match=r"use pairs.split\(seed\)"):
        official_splits(open_shards(tmp_path / "s"))


# --- streams -------------------------------------------------------------------------


def same(a: Pairs, b: Pairs) -> bool:
    return (a.ids == b.ids and a["text"] == b["text"] and torch.equal(a.item, b.item)
            and torch.equal(a.group, b.group)
            and all(torch.equal(a.labels[k], b.labels[k]) for k in a.labels)
            and all(a["image"][i].tobytes() == b["image"][i].tobytes()
                    for i in range(len(a))))


def test_streaming_gives_the_rows_that_opening_gives(folder):
    whole = open_shards(folder)
    shards = list(read_shards(folder))
    assert [pairs.tables["shard"] for pairs in shards] == [0, 1, 2]
    for k, pairs in enumerate(shards):
        assert same(pairs, whole.select(range(6 * k, 6 * k + 6)))
    assert {p.provenance.hash for p in shards} == {whole.provenance.hash}


def test_corrupt_samples_are_skipped_counted_and_named_and_resume_is_the_same(folder):
    damage(folder, 0, "a1.jpg", lambda raw: raw[: len(raw) // 2].ljust(len(raw), b"\0"))
    damage(folder, 2, "a7.json", lambda raw: b"{" * len(raw))
    with pytest.warns(UserWarning, match="2 samples were skipped.*a1: .*a7: "):
        shards = list(read_shards(folder))
    assert [sorted(set(p.item.tolist())) for p in shards] == [[0, 2], [3, 4, 5], [6, 8]]
    assert [p.tables["skipped"] for p in shards] == [
        [["a1", "00000.tar: its jpg is damaged"]], [],
        [["a7", "00002.tar: its json is damaged"]]]
    with pytest.warns(UserWarning, match="1 samples were skipped"):
        rest = list(read_shards(folder, start=1))
    assert len(rest) == 2 and all(map(same, rest, shards[1:]))


@pytest.mark.parametrize("share", [0.1, 0.4, 0.6, 0.8])
def test_a_torn_tar_loses_what_lies_behind_its_end(folder, share):
    path = folder / "00001.tar"
    path.write_bytes(path.read_bytes()[:int(share * last_byte(path))])
    with pytest.warns(UserWarning, match="samples were skipped"):
        shards = {p.tables["shard"]: p for p in read_shards(folder)}
    lost = [f"a{i}" for i in range(3, 6)
            if 1 not in shards or f"a{i}#0" not in shards[1].ids]
    assert lost and {0, 2} <= set(shards)
    opened = open_shards(folder)
    assert [key for key, _ in opened.tables["skipped"]] == lost
    assert opened.tables["skipped"][0][1] == "00001.tar ends before it"
    assert len(opened) == 18 - 2 * len(lost)
    for row in range(len(opened)):
        opened["image"][row]


def last_byte(path) -> int:
    with tarfile.open(path) as tar:
        return max(info.offset_data + info.size for info in tar)


def test_files_of_a_sample_that_stand_apart_are_one_sample(folder):
    """As in a tar that was packed anew, sorted by ending."""
    before = [(pairs.ids, pairs["text"]) for pairs in read_shards(folder)]
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            members = [(info, tar.extractfile(info).read()) for info in tar]
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for info, raw in sorted(members, key=lambda one: one[0].name.split(".")[1]):
                tar.addfile(info, io.BytesIO(raw))
    assert [(pairs.ids, pairs["text"]) for pairs in read_shards(folder)] == before


def test_a_member_that_is_gone_is_named(folder):
    path = folder / "00000.tar"
    with tarfile.open(path) as tar:
        kept = [(info, tar.extractfile(info).read()) for info in tar
                if info.name != "a0.jpg"]
    with tarfile.open(path, "w") as tar:
        for info, raw in kept:
            tar.addfile(info, io.BytesIO(raw))
    with pytest.warns(UserWarning, match="a0: 00000.tar: it has no jpg"):
        first = next_of(read_shards(folder))
    assert first.ids[0] == "a1#0"


def next_of(shards):
    first = next(shards)
    list(shards)
    return first


def test_a_bad_start_is_refused(folder):
    with pytest.raises(ValueError, match=r"start must be in 0 … 2, got 3"):
        next(read_shards(folder, start=3))


# --- what is skipped or refused when it is written ------------------------------------


def test_what_cannot_be_decoded_is_skipped_when_it_is_written(tmp_path):
    made = [Sample("cut", {"jpg": jpg(3)[:-900]}), Sample("good", {"jpg": jpg(1)}),
            Sample("html", {"png": b"<html>not found"}),
            Sample("gone", {"jpg": tmp_path / "none.jpg"}),
            Sample("mute", {"wav": b"RIFF"}), Sample("film", {"mp4": b"ftyp"}),
            Sample("half", {"mp4": mp4(15)[:-400]}), Sample("bare", {"wav": noise(0)}),
            Sample("empty", {}), Skipped("remote", "HTTP 404")]
    with pytest.warns(UserWarning, match="9 samples were skipped.*remote: HTTP 404"):
        write_shards(made, tmp_path / "s", **ABOUT)
    pairs = open_shards(tmp_path / "s")
    assert pairs.ids == ["good#0"]
    reasons = dict(pairs.tables["skipped"])
    assert "truncated" in reasons["cut"] and "not a picture" in reasons["html"]
    assert reasons["gone"] == "there is no file none.jpg"
    assert "not a sound" in reasons["mute"] and "not a video" in reasons["film"]
    assert "not a video" in reasons["half"] and "without samples" in reasons["bare"]
    assert reasons["empty"] == "it has no file" and reasons["remote"] == "HTTP 404"


def noise(samples: int, form="WAV") -> bytes:
    file, drawn = io.BytesIO(), torch.Generator().manual_seed(0)
    wave = torch.rand(samples, generator=drawn).sub(0.5).numpy()
    soundfile.write(file, wave, 16_000, format=form)
    return file.getvalue()


@pytest.mark.parametrize("form", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_sound_that_is_cut_off_is_refused_though_it_could_be_played(form, share):
    raw = noise(80_000, form.upper())
    assert len(sound(Blob("it", raw))[0]) == 80_000
    with pytest.raises(ValueError, match="it: .*(cut off|not a sound)"):
        sound(Blob("it", raw[:int(share * len(raw))]))


@pytest.mark.parametrize("wrong, words", [
    ({"key": "../x"}, r"key '\.\./x'"), ({"key": "a.b"}, "key 'a.b'"),
    ({"files": {"exe": b""}}, "ending 'exe' is none of"),
    ({"split": "dev"}, "split 'dev' is none of"),
    ({"key": "other"}, "two items have the key 'other'"),
    ({"labels": {"x": "y"}}, r"labels \['x'\], the items before have \[\]"),
])
def test_a_wrong_sample_is_refused(tmp_path, wrong, words):
    fields = {"key": "k", "files": {"png": png()}} | wrong
    with pytest.raises(ValueError, match=words):
        write_shards([Sample("other", {"png": png()}), Sample(**fields)],
                     tmp_path / "s", **ABOUT)


def test_nothing_is_overwritten_and_half_written_folders_are_not_opened(folder):
    with pytest.raises(FileExistsError, match="name a new folder"):
        write_shards(samples(), folder, **ABOUT)
    (folder / "shards.json").unlink()
    with pytest.raises(FileNotFoundError, match="not to its end"):
        open_shards(folder)
    write_shards(samples(5), folder, items_per_shard=5, **ABOUT)  # once more
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(open_shards(folder)) == 10
        assert len(list(read_shards(folder))) == 1


@pytest.mark.parametrize("text, words", [("{", "shards.json is damaged"),
                                         ('{"format": 2}', "format 2, this version"),
                                         ("[]", "format None"),
                                         ('{"format": 1, "shards": [{"file": "../x"}]}',
                                          "'../x' is no name of a shard"),
                                         ('{"format": 1}', "damaged: KeyError"),
                                         ('{"format": 1, "shards": [7]}', "damaged")])
def test_a_damaged_manifest_is_refused(folder, text, words):
    (folder / "shards.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        open_shards(folder)


def test_a_tar_or_index_that_is_gone_is_named(folder):
    for name in ("00001.tar", "00002.json"):
        raw = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            open_shards(folder)
        (folder / name).write_bytes(raw)
    (folder / "00002.json").write_text("[]")
    with pytest.raises(ValueError, match="is damaged"):
        open_shards(folder)


def test_a_command_takes_shards_as_pairs_of_ones_own(folder):
    from alignkit.claims.train import own_pairs

    assert own_pairs(folder, ("image", "text")).ids == open_shards(folder).ids
