"""Pictures that are heard: what is said, by whom, and what of it is seen."""

from collections import Counter

import pytest
import torch
from needs import needs_asset

from alignkit.data import Pairs
from alignkit.data.fetch import machine
from alignkit.data.heard import HIDDEN, PAUSE, VOICES, heard, recite, split_by_voice, spoken
from alignkit.data.objects import objects
from alignkit.data.scenes import NOUNS
from alignkit.data.speech import say

SHOWN, OFF = list(NOUNS)[::2], list(NOUNS)[1::4]


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    needs_asset(f"espeak-{machine()}")
    return heard(16, nouns=SHOWN, off_screen=OFF)


def names(pairs: Pairs, label: str) -> list[str]:
    return [pairs.label_names[label][k] for k in pairs.labels[label].tolist()]


def test_rows_and_labels(pairs):
    assert len(pairs) == 16 * 32 and pairs.provenance.kind == "composed"
    assert "espeak-ng" in pairs.provenance.source
    assert set(pairs.columns) == {"image", "text", "text_short", "text_heard", "speech",
                                  "image_off"}
    for row, (noun, off, last) in enumerate(zip(
            names(pairs, "noun"), names(pairs, "off"), pairs.labels["last"], strict=True)):
        said = pairs["text_heard"][row].split(", ")
        assert said == ([noun, off] if last else [off, noun])
        assert noun in pairs["text"][row] and off not in pairs["text"][row]
        assert pairs["speech"].sources[row][1] == tuple(said)


def test_every_voice_says_every_noun_equally_often(pairs):
    counts = Counter(zip(names(pairs, "voice"), names(pairs, "noun"), strict=True))
    assert len(counts) == 16 * 32 and set(counts.values()) == {1}


def test_the_word_off_the_screen_says_nothing_of_the_picture(pairs):
    """Chi-square of noun × off and of voice × off is about its degrees of freedom."""
    for label, classes in (("noun", 32), ("voice", 16)):
        number = torch.tensor([sorted(set(names(pairs, label))).index(name)
                               for name in names(pairs, label)])
        table = torch.zeros(classes, 16).index_put_(
            (number, pairs.labels["off"]), torch.ones(len(pairs)), accumulate=True)
        expected = table.sum(1, keepdim=True) * table.sum(0) / len(pairs)
        chi, freedom = ((table - expected) ** 2 / expected).sum(), (classes - 1) * 15
        assert abs(chi - freedom) < 4 * (2 * freedom) ** 0.5
    assert 0.4 < pairs.labels["last"].double().mean() < 0.6


def test_pictures_never_show_a_word_off_the_screen(pairs):
    drawn = {thing[0] for _, placed in pairs["image"].sources for thing in placed}
    assert drawn == set(SHOWN)
    for (_, placed), off in zip(pairs["image_off"].sources, names(pairs, "off"), strict=True):
        assert placed[-1][0] == off and {thing[0] for thing in placed} <= set(OFF)
    assert len(set(pairs["image_off"].sources)) == HIDDEN * len(OFF)


def test_the_pictures_are_those_of_objects():
    needs_asset(f"espeak-{machine()}")
    ours, base = heard(1, says="caption", corpus_seed=3), objects(1, corpus_seed=3)
    assert ours["image"].sources == base["image"].sources
    assert ours["text_heard"] == ours["text"] == base["text"]
    assert "off" not in ours.labels and "image_off" not in ours.columns


def test_a_sound_is_its_phrases_with_a_pause_between():
    needs_asset(f"espeak-{machine()}")
    # Not f2, f3 or f5: there espeak-ng reads memory that it has not set, and the last bits of
    # a sound depend on what the process did before.
    wave, rate = recite(("f4", ("dog", "bell")))
    (dog, _), (bell, _) = (say(("en+f4", word)) for word in ("dog", "bell"))
    silence = round(PAUSE * rate)
    assert len(wave) == len(dog) + silence + len(bell) and rate == 22050
    assert torch.equal(wave[:len(dog)], dog) and torch.equal(wave[-len(bell):], bell)
    assert not wave[len(dog):len(dog) + silence].any()
    again, _ = recite(("f4", ("dog", "bell")))
    assert torch.equal(wave, again)


def test_voices_differ():
    needs_asset(f"espeak-{machine()}")
    sounds = [recite((voice, ("elephant",)))[0] for voice in VOICES]
    assert all(0.2 < len(wave) / 22050 < 2 and wave.abs().max() > 0.1 for wave in sounds)
    assert len({(len(wave), float(wave.abs().sum())) for wave in sounds}) == len(VOICES)


def test_the_corpus_is_drawn_from_its_seed(pairs):
    again, other = (heard(16, nouns=SHOWN, off_screen=OFF, corpus_seed=s) for s in (0, 1))
    assert again.provenance == pairs.provenance and again["text_heard"] == pairs["text_heard"]
    assert other.provenance.hash != pairs.provenance.hash
    assert other["text_heard"] != pairs["text_heard"]


def test_no_voice_and_no_picture_stands_on_both_sides(pairs):
    found = []
    for seed in (0, 1):
        parts = split_by_voice(pairs, seed, (8, 4, 4))
        assert [len(part) for part in parts] == [256, 128, 128]
        heard_in = [set(names(part, "voice")) for part in parts]
        assert [len(v) for v in heard_in] == [8, 4, 4] and len(set.union(*heard_in)) == 16
        assert len({i for part in parts for i in part.item.tolist()}) == len(pairs)
        found.append(heard_in)
    assert found[0] != found[1]


def test_what_does_not_fit_is_refused(pairs):
    with pytest.raises(ValueError, match="'dog'.*shown and off"):
        heard(1, nouns=SHOWN, off_screen=["dog", *OFF])
    with pytest.raises(ValueError, match="says must be"):
        heard(1, says="all")
    with pytest.raises(ValueError, match="voice 'm9' must be one of"):
        heard(1, voices=["m9"])
    with pytest.raises(ValueError, match="four at least"):
        heard(1, nouns=["dog"])
    with pytest.raises(ValueError, match="unknown.*there are m1"):
        spoken([("dog",)], ["en"])
    with pytest.raises(ValueError, match="1 rows, phrases 2"):
        spoken([("dog",), ("cat",)], ["m1"])
    with pytest.raises(ValueError, match="sum 16"):
        split_by_voice(pairs, 0, (8, 4, 3))
    with pytest.raises(ValueError, match="needs the label voice"):
        split_by_voice(objects(1), 0)
    twice = Pairs.make({"x": torch.zeros(4, 1)}, item=[0, 0, 1, 1],
                       labels={"voice": torch.tensor([0, 1, 2, 2])})
    with pytest.raises(ValueError, match="several voices"):
        split_by_voice(twice, 0, (1, 1, 1))
