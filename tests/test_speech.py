"""Sentences read by people and names read by espeak-ng."""

import pickle

import pytest
import torch
from needs import needs_asset

from alignkit.data import speech as module
from alignkit.data.corpora import plain
from alignkit.data.emoji import emoji
from alignkit.data.fetch import machine
from alignkit.data.speech import READ, say, speech
from alignkit.data.stamps import SPOKEN, stamps


@pytest.fixture(scope="module")
def real():
    needs_asset("stamps")
    return speech()


@pytest.fixture(scope="module")
def generated():
    needs_asset(f"espeak-{machine()}")
    return speech(kind="generated")


def language_of(pairs, row: int) -> str:
    return pairs.label_names["language"][pairs.labels["language"][row]]


def test_read_by_people(real):
    counts = dict(zip(real.label_names["language"],
                      real.labels["language"].bincount().tolist(), strict=True))
    assert counts == {"en": 65, "be": 688, "bg": 910, "ca": 915, "da": 321, "el": 657,
                      "es": 888, "fr": 925, "nl": 67, "ro": 913, "ru": 918}
    assert len(real) == 7267 and real.provenance.kind == "real"
    assert list(real.columns) == ["speech", "text", "text_en", "image"]
    row = real.ids.index("animals/mammals/cats/tiger es")
    assert (real["text"][row], real["text_en"][row]) == ("Un tigre.", "A tiger.")
    wave, rate = real["speech"][row]
    assert wave.dtype == torch.float32 and 0.5 < len(wave) / rate < 3
    assert real["image"][row].size == (224, 224)
    assert "7267 rows" in real.describe() and "(real)" in real.describe()


def test_the_recordings_are_the_stamps(real):
    pairs = stamps(SPOKEN)
    for row in range(0, len(real), 101):
        name, code = real.ids[row].rsplit(" ", 1)
        at = pairs.ids.index(name)
        assert code == language_of(real, row)
        column = ("text", "speech") if code == "en" else (f"text_{code}", f"speech_{code}")
        assert real["text"][row] == pairs[column[0]][at]
        assert real["speech"].sources[row] == pairs[column[1]].sources[at]


@pytest.mark.parametrize("kind", ["real", "generated"])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_thing_and_no_text_stands_on_both_sides(request, kind, seed):
    pairs = request.getfixturevalue(kind)
    things, texts = [], []
    for part in pairs.split(seed):
        things.append({name.rsplit(" ", 1)[0] for name in part.ids})
        texts.append({(name.rsplit(" ", 1)[1], plain(text))
                      for name, text in zip(part.ids, part["text"], strict=True)})
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not things[a] & things[b] and not texts[a] & texts[b]


def test_rows_of_one_text_are_one_item(real):
    kept = real.select([row for row in range(len(real)) if language_of(real, row) == "es"])
    assert len(kept.item.unique()) == len(set(kept["text"])) < len(kept)
    flowers = [row for row, text in enumerate(real["text_en"]) if text == "A flower."]
    assert len(real.group[flowers].unique()) == 1 < len(real.item[flowers].unique())


def test_read_by_espeak(generated):
    assert generated.provenance.kind == "generated" and "espeak-ng" in generated.provenance.source
    assert len(generated) == 13 * 1914
    row = generated.ids.index("1F415 de")
    assert (generated["text"][row], generated["text_en"][row]) == ("hund", "dog")
    names = emoji(["en", "de"])
    assert generated["text_en"][:1914] == names["text"]
    wave, rate = pickle.loads(pickle.dumps(generated["speech"]))[row]
    assert rate == 22050 and wave.dtype == torch.float32 and 0.2 < len(wave) / rate < 1
    assert wave.abs().max() <= 1 and wave.square().mean() > 1e-4


@pytest.mark.parametrize("code", READ)
def test_every_language_has_a_voice(generated, code):
    at = generated.ids.index(f"1F34E {code}")  # a red apple
    wave, rate = generated["speech"][at]
    assert 0.4 < len(wave) / rate < 1.6 and wave.square().mean() > 1e-4


def test_the_same_text_gives_the_same_sound_whatever_was_said_before(generated):
    first = say(("en", "a red fox"))[0]
    other = say(("de", "ein roter Fuchs"))[0]
    assert torch.equal(first, say(("en", "a red fox"))[0])
    assert not torch.equal(first[:5000], other[:5000])
    with pytest.raises(ValueError, match="no voice 'xx'"):
        say(("xx", "a"))
    assert torch.equal(first, say(("en", "a red fox"))[0])  # also after a failure


def test_some_languages_and_a_limit(generated):
    pairs = speech(["fr", "it"], kind="generated", limit=10)
    assert len(pairs) == 2 * len({i.split()[0] for i in pairs.ids})
    assert pairs.label_names["language"] == ["fr", "it"]
    assert pairs["text_en"][0] and pairs["text_en"][0] != pairs["text"][0]
    assert pairs.provenance.hash != generated.provenance.hash


def test_wrong_arguments_are_named():
    for call in (lambda: speech(kind="sung"), lambda: speech("xx"), lambda: speech(size=1),
                 lambda: speech("ja", kind="generated")):
        with pytest.raises(ValueError, match="kind must|language|size must"):
            call()


def test_a_machine_that_espeak_is_not_packaged_for(monkeypatch):
    monkeypatch.setattr(module, "machine", lambda: "Plan9-mips")
    with pytest.raises(ValueError, match="Linux-x86_64.*Plan9-mips.*kind='real'"):
        speech(kind="generated")
