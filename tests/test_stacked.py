"""Corpora one under another: what is missing is missing, and equal names are one item."""

import pytest
import torch

from alignkit.data import Lazy, Pairs, Tokens
from alignkit.data.columns import BY_PROVENANCE
from alignkit.data.stacked import bare_name, stack


def part(texts, **columns) -> Pairs:
    return Pairs.make({"text": texts, **columns})


def test_rows_follow_each_other_and_lack_what_their_part_has_not():
    one = part(["dog", "cat"], image_features=torch.ones(2, 3))
    two = part(["A dog.", "bee", "Cat"], points=torch.full((3, 4, 3), 2.0))
    both = stack({"drawn": one, "made": two})
    assert both.ids == ["drawn 0", "drawn 1", "made 0", "made 1", "made 2"]
    assert both.present["image_features"].tolist() == [True, True, False, False, False]
    assert both.present["points"].tolist() == [False, False, True, True, True]
    assert both["image_features"][2:].eq(0).all() and both["points"][2:].eq(2).all()
    assert both.item.tolist() == [0, 1, 0, 3, 1]  # by name
    assert both.labels["part"].tolist() == [0, 0, 1, 1, 1]
    assert both.label_names["part"] == ["drawn", "made"]


def test_two_names_of_one_thing_are_one_item():
    one, two = part(["lipstick", "dog"]), part(["Lip stick", "A bee."])
    both = stack({"a": one, "b": two}, {"lip stick": "lipstick"})
    assert both.item.tolist() == both.group.tolist() == [0, 1, 0, 3]
    with pytest.raises(ValueError, match=r"no row is called \['lip  stick'\]"):
        stack({"a": one, "b": two}, {"lip  stick": "lipstick"})


def test_rows_with_equal_features_are_one_item_where_they_have_them():
    """Badger and beaver share a recording; zeros of rows that have none are no recording."""
    sound = torch.tensor([[1.0, 2], [1, 2], [3, 4], [0, 0], [0, 0]])
    rows = part(["badger", "beaver", "cow", "mute", "dumb"], sound=sound).with_present(
        "sound", torch.tensor([1, 1, 1, 0, 0]).bool())
    both = stack({"heard": rows, "drawn": part(["beaver", "mute"])}, equal=["sound"])
    assert both.item.tolist() == [0, 0, 2, 3, 4, 0, 3]
    assert stack({"heard": rows}).item.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="no part has features 'points'"):
        stack({"heard": rows}, equal=["points"])


def test_groups_are_joined_through_items():
    one = Pairs.make({"text": ["red heart", "blue heart", "dog"]}, group=[0, 0, 2])
    both = stack({"one": one, "two": part(["Blue heart.", "dog house"])})
    assert both.group.tolist() == [0, 0, 2, 0, 4]


def test_a_row_is_read_by_its_part():
    def lazy(word):
        return Lazy([1, 2], lambda k: f"{word} {k}", version=BY_PROVENANCE)

    both = stack({"a": part(["x", "y"], image=lazy("first")), "b": part(["u", "v"]),
                  "c": part(["p", "q"], image=lazy("third"))})
    assert [both["image"][k] for k in (0, 1, 4, 5)] == ["first 1", "first 2", "third 1",
                                                        "third 2"]
    with pytest.raises(KeyError):
        both["image"][2]
    assert both["image"].version == BY_PROVENANCE


def test_a_version_that_one_part_has_not_is_none():
    parts = {name: part(["x"], image=Lazy([1], str, version=version))
             for name, version in (("a", "1"), ("b", None))}
    assert stack(parts)["image"].version is None
    parts = {name: part(["x"], image=Lazy([1], str, version=name)) for name in "ab"}
    assert "'a', 'b'" in stack(parts)["image"].version


def test_the_hash_is_of_all_parts():
    def hashed(*texts):
        return stack({str(k): part([text]) for k, text in enumerate(texts)}).provenance.hash

    assert hashed("dog", "cat") == hashed("dog", "cat") != hashed("dog", "bee")
    parts = {"a": part(["dog", "hound"])}
    assert stack(parts).provenance.hash != stack(parts, {"hound": "dog"}).provenance.hash


@pytest.mark.parametrize("text, bare", [
    ("A dog.", "dog"), ("Dog", "dog"), ("an owl", "owl"), ("The end", "end"),
    ("ant", "ant"), ("a", "a"), ("theme park", "theme park")])
def test_bare_names(text, bare):
    assert bare_name(text) == bare


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        stack({})
    with pytest.raises(ValueError, match="'x': rows are"):
        stack({"a": part(["p"], x=torch.ones(1, 2)), "b": part(["p"], x=torch.ones(1, 3))})
    with pytest.raises(ValueError, match="'x' is of several kinds"):
        stack({"a": part(["p"], x=torch.ones(1, 2)), "b": part(["p"], x=["text"])})
    with pytest.raises(ValueError, match="'x' holds"):
        stack({kind: part(["p"], x=Lazy([1], str, kind)) for kind in ("sound", "video")})
    tokens = Tokens(torch.ones(1, 2, 3), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="cannot be stacked"):
        stack({"a": part(["p"], x=tokens)})
    with pytest.raises(KeyError):
        stack({"a": Pairs.make({"x": torch.ones(1, 2)})})
