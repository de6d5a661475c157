"""`add_features`, and its cache under attack: kills, damage, two writers."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_encoders import TEXTS, picture

from alignkit.data.columns import Lazy, Tokens
from alignkit.data.fetch import asset, cache_dir
from alignkit.data.pairs import Pairs
from alignkit.data.pictures import to_rgb
from alignkit.encoders import add_features, load
from alignkit.encoders import cache as cache_module
from alignkit.encoders import stored
from alignkit.encoders.encoder import Encoder, Output, shortened


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache in which the assets are those of the real one."""
    real = cache_dir() / "assets"
    asset("efficientnet-lite0"), asset("minilm")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "assets").symlink_to(real, target_is_directory=True)
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Scale(torch.nn.Module):
    def __init__(self, by: float):
        super().__init__()
        self.by = by

    def forward(self, x):
        return self.by * x


# --- add_features --------------------------------------------------------------------


def test_add_features_names_rows_and_missing(own_cache):
    pictures = Lazy([0, 1, 0, 2], picture)
    pairs = Pairs.make({"image": pictures, "text": [*TEXTS[:3], TEXTS[0]]},
                       item=[0, 1, 0, 2], present={"image": [True, False, True, True]})
    asked = []
    pictures.read = lambda number: asked.append(number) or picture(number)
    done = add_features(pairs, "image", "image:efficientnet-lite0", layers=(-1, 2),
                        tokens=True)
    assert asked == [0, 2]  # shared pictures once, missing ones never
    assert set(done.columns) == {"image", "text", "image_features", "image_layer2",
                                 "image_tokens"}
    assert done.provenance == pairs.provenance
    encoder = load("image:efficientnet-lite0")
    wanted = encoder.encode([picture(i) for i in (0, 2)])[-1]
    features, tokens = done["image_features"], done["image_tokens"]
    torch.testing.assert_close(features, torch.stack(
        [wanted[0], torch.zeros(1280), wanted[0], wanted[1]]), atol=1e-5, rtol=1e-4)
    assert done["image_layer2"].shape == (4, 40)
    assert tokens.mask.all(1).tolist() == [True, False, True, True]
    torch.testing.assert_close(tokens.values.mean(1), features, atol=1e-4, rtol=1e-4)
    for name in ("image_features", "image_layer2", "image_tokens"):
        assert done.present[name].tolist() == [True, False, True, True]

    asked.clear()
    warm = add_features(pairs, "image", "image:efficientnet-lite0", layers=(2, 7))
    assert asked == []  # layer 7 is the last layer: already there
    assert torch.equal(warm["image_layer7"], features)


def test_text_tokens_are_padded_to_the_longest_of_the_column(own_cache):
    pairs = Pairs.make({"text": sorted(TEXTS, key=len)})
    done = add_features(pairs, "text", "text:minilm", layers="all", tokens=True)
    alone = load("text:minilm").encode(pairs["text"], tokens=True)[-1]
    assert torch.equal(done["text_tokens"].mask, alone.mask)
    torch.testing.assert_close(done["text_tokens"].values, alone.values, atol=1e-4,
                               rtol=1e-3)
    assert [f"text_layer{k}" in done.columns for k in range(8)] == [True] * 7 + [False]


@pytest.mark.slow
def test_warm_features_cost_no_model(own_cache):
    """A notebook with warm features imports neither timm nor transformers."""
    pairs = Pairs.make({"text": TEXTS})
    add_features(pairs, "text", "text:minilm")
    code = textwrap.dedent(f"""
        import sys
        from alignkit.data.pairs import Pairs
        from alignkit.encoders import add_features
        pairs = add_features(Pairs.make({{"text": {TEXTS!r}}}), "text", "text:minilm")
        assert pairs["text_features"].shape == (4, 384)
        assert not {{"timm", "transformers"}} & set(sys.modules)
    """)
    subprocess.run([sys.executable, "-c", code], check=True)


class Faulty:
    """Reads 40 rows; one of them is what `bad` says."""

    def __init__(self, bad):
        self.bad = bad

    def __call__(self, k):
        if k == 17 and isinstance(self.bad, Exception):
            raise self.bad
        return self.bad if k == 17 else Image.new("RGB", (2, 2))


@pytest.mark.parametrize("bad, words", [
    (KeyError("k"), "in row 17 of a column of pictures, 17"),
    (OSError("gone"), "in row 17 of a column of pictures, 17"),
    (None, "at the row of id 'row 17'"), (Image.new("RGB", (0, 3)), "at the row of id 'row 17'")])
def test_the_row_that_fails_is_named(own_cache, bad, words):
    pairs = Pairs.make({"image": Lazy(range(40), Faulty(bad), version="1")},
                       ids=[f"row {k}" for k in range(40)])

    def run(pictures, layers):
        return {0: Output(torch.stack([torch.ones(3) * to_rgb(p).width for p in pictures]), None)}

    encoder = Encoder("mine", "image", {0: 3}, "w", "p", lambda: run)
    with pytest.raises((LookupError, OSError, TypeError, ValueError)) as told:
        add_features(pairs, "image", encoder)
    assert words in told.value.__notes__
    if isinstance(bad, Exception):
        assert told.value is bad
        for call in (lambda: list(pairs["image"]), lambda: pairs.save(own_cache / "x")):
            bad.__notes__.clear()
            with pytest.raises(type(bad)):
                call()
            assert bad.__notes__ == [words]


def test_add_features_refuses_what_it_cannot_encode(own_cache):
    pairs = Pairs.make({"text": TEXTS, "x": torch.zeros(4, 2)})
    with pytest.raises(KeyError, match="no column 'image'"):
        add_features(pairs, "image", "text:minilm")
    with pytest.raises(ValueError, match="'x' holds tensor.*encodes text"):
        add_features(pairs, "x", "text:minilm")
    with pytest.raises(ValueError, match="every row is missing"):
        add_features(pairs.with_present("text", torch.zeros(4, dtype=torch.bool)),
                     "text", "text:minilm")


# --- the cache -----------------------------------------------------------------------


class Counting(torch.nn.Module):
    """x -> 2x; counts its rows, but not the copies that fill up a few."""

    rows = 0

    def forward(self, x):
        Counting.rows += len(x.unique(dim=0))
        return 2 * x


def numbers(n: int) -> Pairs:
    return Pairs.make({"x": torch.arange(2.0 * n).view(n, 2)})


def encoded(pairs: Pairs) -> int:
    """Rows that had to be encoded; the features are checked."""
    Counting.rows = 0
    done = add_features(pairs, "x", Counting())
    assert torch.equal(done["x_features"], 2 * pairs["x"])
    return Counting.rows


def test_the_key_tells_corpora_rows_layers_and_encoders_apart(own_cache):
    pairs = numbers(10)
    assert [encoded(pairs), encoded(pairs), encoded(numbers(9))] == [10, 0, 9]
    assert encoded(pairs.select([1, 0])) == 2
    assert encoded(pairs.with_columns(x=pairs["x"] + 1)) == 10
    doubled = add_features(pairs, "x", Scale(2.0))["x_features"]
    tripled = add_features(pairs, "x", Scale(3.0))["x_features"]
    assert torch.equal(doubled * 1.5, tripled)


def test_the_key_stays_what_it_was(own_cache):
    """Another key would encode everything again, and published results could no longer
    be told to rest on the same features."""
    encoder = Encoder("x:y", "text", {0: 1}, "weights", "as it is; 1",
                      lambda: lambda texts, layers: {0: Output(torch.ones(2, 1), None)})
    add_features(Pairs.make({"text": ["a dog", "a cat"]}, ids=["0", "1"]), "text", encoder)
    (folder,) = (own_cache / "features").glob("*/")
    assert folder.name == (
        "77e1f9fb32349b7e08068395a63aacfd576605bc14349b4deeb3310b0a9bf920")


def start(nap: float, n: int, log: Path) -> subprocess.Popen:
    """A process that encodes `numbers(n)`, `nap` seconds a batch of 32 rows."""
    code = textwrap.dedent(f"""
        import sys
        import time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_feature_cache as t
        from alignkit.encoders.encoder import Encoder
        outputs = Encoder.outputs
        def slow(self, inputs, *rest):
            time.sleep({nap})
            return outputs(self, inputs, *rest)
        Encoder.outputs = slow
        rows = t.encoded(t.numbers({n}))
        open({str(log)!r}, "w").write(str(rows))
    """)
    return subprocess.Popen([sys.executable, "-c", code])


def indexed(folder: Path) -> int:
    return sum(path.read_text().count('"file"') for path in folder.rglob("index.json"))


@pytest.mark.slow
def test_work_goes_on_after_a_kill(own_cache, tmp_path):
    process = start(0.05, 1000, tmp_path / "log")
    end = time.monotonic() + 60
    while indexed(own_cache / "features") < 2 and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "log").exists()  # it was killed on the way
    blocks = indexed(own_cache / "features")
    assert 2 <= blocks < 4
    assert encoded(numbers(1000)) == 1000 - 256 * blocks
    assert not list((own_cache / "features").rglob("*.tmp"))


@pytest.mark.slow
def test_two_processes_encode_each_row_once(own_cache, tmp_path):
    logs = [tmp_path / "a", tmp_path / "b"]
    processes = [start(0.02, 600, log) for log in logs]
    assert [p.wait(timeout=60) for p in processes] == [0, 0]
    assert sorted(int(log.read_text()) for log in logs) == [0, 600]


@pytest.mark.parametrize("harm", ["flip", "cut", "delete"])
def test_a_damaged_shard_is_noticed_and_mended(own_cache, harm):
    assert encoded(numbers(600)) == 600
    path = sorted((own_cache / "features").rglob("*.safetensors"))[1]
    data = bytearray(path.read_bytes())
    if harm == "delete":
        path.unlink()
    else:
        data[-1] ^= 1
        path.write_bytes(data if harm == "flip" else data[:-100])
    with pytest.warns(UserWarning, match="damaged or gone; rows from 256 on"):
        assert encoded(numbers(600)) == 256
    assert encoded(numbers(600)) == 0


def test_a_damaged_index_is_noticed(own_cache):
    encoded(numbers(10))
    next((own_cache / "features").rglob("index.json")).write_text('{"rows": 10, "bl')
    with pytest.warns(UserWarning, match="index.json is damaged"):
        assert encoded(numbers(10)) == 10


def test_shards_stay_under_their_size_and_keep_the_order(own_cache, monkeypatch):
    monkeypatch.setattr(cache_module, "SHARD_BYTES", 1000)  # 8 bytes a row
    assert encoded(numbers(600)) == 600
    shards = list((own_cache / "features").rglob("*.safetensors"))
    assert len(shards) == 3 + 3 + 1 and max(s.stat().st_size for s in shards) < 1100
    assert encoded(numbers(600)) == 0


@pytest.mark.slow
def test_reading_maps_the_shards(own_cache, tmp_path):
    """Beside the 256 MiB result a read holds little: shards are not loaded whole."""
    code = textwrap.dedent("""
        import torch
        from alignkit.encoders.cache import Store
        store = Store({"test": 1}, 16 * 256)
        for block in range(16):
            store.write(block, torch.full((256, 2**14), float(block)))
        del store
        before = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
        x = Store({"test": 1}, 16 * 256).read(torch.arange(16 * 256))
        after = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
        assert x[::256, 0].tolist() == [float(b) for b in range(16)]
        print((after - before) // 1024)
    """)
    out = subprocess.run([sys.executable, "-c", code], check=True, text=True,
                         stdout=subprocess.PIPE, env={**os.environ,
                                                      "ALIGNKIT_CACHE": str(tmp_path)})
    assert int(out.stdout) < 256 + 128  # two copies would take 512


def test_a_long_job_says_how_long(own_cache, capsys):
    encoder = load(Counting())
    stored._announce(encoder, 10, 0.001)
    assert capsys.readouterr().err == ""
    stored._announce(encoder, 2000, 0.05)
    assert "2,000 rows" in (said := capsys.readouterr().err) and "about 100 s" in said


def test_a_number_of_tokens_keeps_the_means_of_so_many_stretches(own_cache):
    pairs = Pairs.make({"text": TEXTS})
    whole = add_features(pairs, "text", "text:minilm", tokens=True)["text_tokens"]
    few = add_features(pairs, "text", "text:minilm", tokens=3)["text_tokens"]
    assert few.values.shape == (4, 3, 384)
    for values, mask, kept, real in zip(*whole, *few, strict=True):
        t = int(mask.sum())
        size, longer = divmod(t, 3)  # the first `longer` stretches have one token more
        ends = [size * (k + 1) + min(k + 1, longer) for k in range(3)]
        starts = [0, *ends[:-1]]
        for k in range(3):
            if t > 3:
                wanted = sum(values[i] for i in range(starts[k], ends[k])) / (
                    ends[k] - starts[k])
                torch.testing.assert_close(kept[k], wanted)
        assert int(real.sum()) == min(t, 3)
    again = add_features(pairs, "text", "text:minilm", tokens=1)["text_tokens"]
    features = add_features(pairs, "text", "text:minilm")["text_features"]
    torch.testing.assert_close(again.values[:, 0], features, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="tokens must be True, False or.*got 0"):
        add_features(pairs, "text", "text:minilm", tokens=0)


def test_shortened_keeps_short_rows_and_never_reads_padding():
    values = torch.arange(12.0).view(2, 3, 2)
    values[0, 2] = torch.nan  # padding
    mask = torch.tensor([[True, True, False], [True, True, True]])
    one = shortened(Tokens(values, mask), 2)
    assert one.values.tolist() == [[[0, 1], [2, 3]], [[7, 8], [10, 11]]]
    assert one.mask.all()
    five = shortened(Tokens(values, mask), 5)
    assert five.mask.tolist() == mask.tolist() and not five.values[0, 2].any()
    with pytest.raises(ValueError, match="n must be at least 1"):
        shortened(Tokens(values, mask), 0)
