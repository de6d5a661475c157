"""Seeded damage: of the size that was asked, in the chosen rows and in no others."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.data import Pairs, drop_modality, few_pairs, label_noise, shuffle_pairs


def two_captions_an_item(n: int = 12) -> Pairs:
    return Pairs.make({
        "image": [f"picture {i // 2}" for i in range(n)],
        "text": [f"caption {i}" for i in range(n)],
        "text_de": [f"Nummer {i}" for i in range(n)],
        "image_features": torch.arange(n),
    }, item=torch.arange(n) // 2)  # fmt: skip


@given(st.integers(0, 1000), st.floats(0, 1), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_shuffle_breaks_the_chosen_pairs_and_no_others(seed, fraction, captions):
    n = 36
    item = torch.arange(n) // captions
    pairs = Pairs.make({"image": torch.arange(n), "text": [str(i) for i in range(n)],
                        "text_features": torch.arange(n)}, item=item)
    out = shuffle_pairs(pairs, "text", seed, fraction)
    moved = out["text_features"]
    assert out["image"].tolist() == list(range(n))
    assert sorted(moved.tolist()) == list(range(n))
    assert out["text"] == [str(i) for i in moved.tolist()]
    chosen = round(fraction * n)
    if chosen >= 12:  # no item holds half of the rows
        assert int((moved // captions != item).sum()) == chosen
    assert out["text"] == shuffle_pairs(pairs, "text", seed, fraction)["text"]
    assert out.provenance.hash != pairs.provenance.hash


def test_shuffle_leaves_the_other_language_in_place():
    out = shuffle_pairs(two_captions_an_item(), "text", 0)
    assert out["text_de"] == two_captions_an_item()["text_de"]
    assert torch.equal(out["image_features"], two_captions_an_item()["image_features"])


def test_drop_modality_marks_rows_and_keeps_content():
    pairs = two_captions_an_item()
    out = drop_modality(pairs, "image", 1, 0.25)
    assert int((~out.present["image"]).sum()) == 3
    assert torch.equal(out.present["image"], out.present["image_features"])
    assert torch.equal(out["image_features"], pairs["image_features"])
    assert out.provenance.hash != pairs.provenance.hash


def test_label_noise_is_always_wrong_and_of_the_size_asked():
    pairs = Pairs.make({"x": torch.arange(90)}, labels={"k": torch.arange(90) % 3 * 5})
    out = label_noise(pairs, "k", 0, 0.4)
    changed = out.labels["k"] != pairs.labels["k"]
    assert int(changed.sum()) == 36
    assert set(out.labels["k"].tolist()) == {0, 5, 10}
    with pytest.raises(KeyError, match="no label 'x'"):
        label_noise(pairs, "x", 0, 0.1)
    single = replace(pairs, labels={"k": torch.zeros(90).long()})
    with pytest.raises(ValueError, match="one class"):
        label_noise(single, "k", 0, 0.1)
    with pytest.raises(ValueError, match="fraction must lie in"):
        label_noise(pairs, "k", 0, 1.1)


def test_few_pairs_are_nested_and_keep_whole_items():
    pairs = two_captions_an_item()
    draws = [few_pairs(pairs, n, 5) for n in range(1, 7)]
    for n, (small, large) in enumerate(pairwise(draws), 1):
        assert set(small.ids) < set(large.ids) and len(small) == 2 * n
    with pytest.raises(ValueError, match="n must lie in"):
        few_pairs(pairs, 7, 0)
