"""`Pairs`: what is refused, how rows are chosen and split, and what a file keeps."""

import pickle
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from alignkit.data import Lazy, Pairs, Tokens


def square(shade: int, size: int = 8) -> Image.Image:
    return Image.new("RGB", (size, size), (shade, 255 - shade, 7))


def tone(hertz: float, rate: int = 8000) -> tuple[Tensor, int]:
    return 1.5 * torch.sin(torch.arange(400) * hertz), rate


def every_kind(n: int = 12) -> Pairs:
    """Pairs with a column of each kind; two captions an item, two items a group."""
    mask = torch.arange(5) < torch.randint(1, 6, (n, 1), generator=rng(0))
    return Pairs.make(
        {
            "image": Lazy(list(range(n)), partial(square, size=6)),
            "sound": Lazy([0.1 * (i + 1) for i in range(n)], tone, "sound"),
            "text": [f"caption {i} — “ü”, 猫" for i in range(n)],
            "text_de": [f"Nummer {i}" for i in range(n)],
            "words": Tokens(torch.randint(0, 9, (n, 5), generator=rng(1)), mask),
            "image_features": torch.randn(n, 3, generator=rng(2)),
            "image_tokens": Tokens(torch.randn(n, 5, 2, generator=rng(3)), mask),
            "half": torch.randn(n, 2, generator=rng(4)).bfloat16(),
        },
        ids=[f"row-{i}" for i in range(n)],
        item=torch.arange(n) // 2,
        group=torch.arange(n) // 4,
        present={"sound": torch.arange(n) % 3 > 0},
        labels={"kind": torch.arange(n) % 3},
        label_names={"kind": ["a", "b", "c"]},
        tables={"edges": torch.tensor([[0, 1], [1, 2]]), "words": ["x", "y"],
                "deep": {"1": torch.ones(2), 1: torch.zeros(1), "list": [1, None]}},
    )  # fmt: skip


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def content(pairs: Pairs) -> dict:
    """Everything in a form that == compares."""

    def plain(thing):
        if isinstance(thing, Tokens):
            return [plain(t) for t in thing]
        if isinstance(thing, Lazy):
            return [plain(x) for x in thing]
        if isinstance(thing, Image.Image):
            return (thing.mode, thing.size, thing.tobytes())
        if isinstance(thing, Tensor):
            return (str(thing.dtype), thing.tolist())
        if isinstance(thing, dict):
            return {k: plain(v) for k, v in thing.items()}
        return [plain(t) for t in thing] if isinstance(thing, tuple) else thing

    return {name: plain(getattr(pairs, name)) for name in (
        "columns", "ids", "item", "group", "present", "labels", "label_names",
        "tables")} | {"provenance": asdict(pairs.provenance)}  # fmt: skip


# --- what is refused ---------------------------------------------------------------

X = torch.zeros(4, 2)
WRONG = {
    "nothing": (lambda: Pairs.make({}), ValueError, "columns is empty"),
    "no rows": (lambda: Pairs.make({"a": X[:0]}), ValueError, "'a' has no rows"),
    "length": (lambda: Pairs.make({"a": X, "b": X[:3]}), ValueError, "b has 3 rows"),
    "ids short": (lambda: Pairs.make({"a": X}, ids=["1"]),
                  ValueError, "ids has 1 rows"),
    "ids twice": (lambda: Pairs.make({"a": X}, ids=list("abca")),
                  ValueError, "'a' stands"),
    "item names": (lambda: Pairs.make({"a": X}, item=list("abcd")),
                   TypeError, "item needs"),
    "item float": (lambda: Pairs.make({"a": X}, item=X[:, 0] + 0.5),
                   TypeError, "item needs"),
    "group": (lambda: Pairs.make({"a": X}, item=[0, 0, 1, 2], group=[0, 1, 2, 3]),
              ValueError, "group splits an item"),
    "label words": (lambda: Pairs.make({"a": X}, labels={"k": ["cat"] * 4}), TypeError,
                    r"labels\['k'\] needs whole numbers"),
    "label short": (lambda: Pairs.make({"a": X}, labels={"k": [1]}), ValueError,
                    r"labels\['k'\] has 1 rows"),
    "present": (lambda: Pairs.make({"a": X}, present={"b": X[:, 0] > 0}), ValueError,
                "no columns"),
    "present short": (lambda: Pairs.make({"a": X}, present={"a": [True]}), ValueError,
                      r"present\['a'\] has 1 rows"),
    "nan": (lambda: Pairs.make({"a": X.index_fill(0, torch.tensor([2]), torch.nan)}),
            ValueError, "'a': row 2 is not finite"),
    "scalar": (lambda: Pairs.make({"a": torch.tensor(1.0)}), ValueError, "'a'.*scalar"),
    "array": (lambda: Pairs.make({"a": np.zeros(3)}),
              TypeError, "'a' must be a tensor"),
    "not text": (lambda: Pairs.make({"a": ["x", None]}),
                 TypeError, "'a': row 1 is None"),
    "name": (lambda: Pairs.make({"a/../b": X}), ValueError, "a/../b"),
    "reserved": (lambda: Pairs.make({"item": X}), ValueError, "'item'"),
    "mask kind": (lambda: Pairs.make({"a": Tokens(X, torch.ones(4, 2))}), ValueError,
                  "'a': tokens need"),
    "mask size": (lambda: Pairs.make({"a": Tokens(X, torch.ones(4, 3).bool())}),
                  ValueError, "'a': tokens need"),
    "token nan": (lambda: Pairs.make({"a": Tokens(X / 0, torch.ones(4, 2).bool())}),
                  ValueError, "'a'.*not finite"),
    "features": (lambda: Pairs.from_features({"a": [[1.0]]}), TypeError,
                 r"features\['a'\].*as_tensor"),
    "kind": (lambda: Lazy([1], square, "film"), ValueError, "kind"),
    "added": (lambda: every_kind().with_features(new=X),
              ValueError, "'new' has 4 rows"),
    "column": (lambda: every_kind()["smell"], KeyError, "no column 'smell'"),
    "mask": (lambda: every_kind().select(torch.ones(3).bool()), ValueError, "3 rows"),
    "row": (lambda: every_kind(8).select([0, 8]), IndexError, "from 0 to 8, the pairs 8"),
    "row before": (lambda: every_kind(8).select([-9]), IndexError, "from -9 to -9"),
    "presence": (lambda: every_kind().with_present("text", torch.ones(3).bool()),
                 ValueError, "mask has shape"),
    "fractions": (lambda: every_kind().split(0, (0.5, 0.5, 0.5)),
                  ValueError, "fractions"),
    "negative": (lambda: every_kind().split(0, (1.2, -0.1, -0.1)),
                 ValueError, "fractions"),
    "too few": (lambda: every_kind(8).split(0),
                ValueError, "needs more than 2 different"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case):
    call, error, words = WRONG[case]
    with pytest.raises(error, match=words):
        call()


def test_not_finite_padding_is_allowed():
    values = torch.tensor([[1.0, torch.nan]])
    pairs = Pairs.make({"a": Tokens(values, torch.tensor([[True, False]]))})
    assert len(pairs) == 1


# --- rows and splits ---------------------------------------------------------------


def test_defaults_and_hash():
    a = Pairs.from_features({"image": X, "text": X + 1})
    assert a.ids == ["0", "1", "2", "3"] and a.item.tolist() == [0, 1, 2, 3]
    assert a.group.tolist() == a.item.tolist() and a.present["image"].all()
    assert a.provenance.kind == "user"
    same = Pairs.from_features({"image": X.clone(), "text": X + 1})
    swapped = Pairs.from_features({"image": X + 1, "text": X})
    assert same.provenance.hash == a.provenance.hash != swapped.provenance.hash


def test_select_keeps_every_part_aligned():
    pairs = every_kind()
    rows = [7, 2, 2 - len(pairs)]
    picked = content(pairs.select(torch.tensor(rows)))
    whole = content(pairs)
    for name in ("item", "group"):
        assert picked[name][1] == [whole[name][1][r] for r in rows]
    assert picked["ids"] == [whole["ids"][r] for r in rows]
    for name in ("image", "sound", "text", "text_de"):
        assert picked["columns"][name] == [whole["columns"][name][r] for r in rows]
    for part in range(2):
        got, had = (c["columns"]["words"][part][1] for c in (picked, whole))
        assert got == [had[r] for r in rows]
    assert picked["labels"]["kind"][1] == [whole["labels"]["kind"][1][r] for r in rows]
    had = whole["present"]["sound"][1]
    assert picked["present"]["sound"][1] == [had[r] for r in rows]
    assert picked["tables"] == whole["tables"]
    assert pairs.select(pairs.item == 3).ids == ["row-6", "row-7"]
    assert len(pairs.select([])) == 0
    assert pairs.first_of_item().tolist() == [0, 2, 4, 6, 8, 10]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_split_never_divides_a_group(data):
    n = data.draw(st.integers(12, 80))
    item = data.draw(st.lists(st.integers(0, 40), min_size=n, max_size=n))
    group = [i // 2 for i in item]
    seed = data.draw(st.integers(0, 2**31))
    pairs = Pairs.make({"x": torch.arange(n)}, item=item, group=group)
    if len(set(group)) < 5:  # too few for one group in each tenth
        return
    parts = pairs.split(seed)
    rows = [set(part["x"].tolist()) for part in parts]
    assert sorted(r for part in rows for r in part) == list(range(n))
    groups = [set(part.group.tolist()) for part in parts]
    assert not groups[0] & groups[1] and not groups[0] & groups[2]
    assert not groups[1] & groups[2] and all(groups)


def test_split_is_a_function_of_the_seed():
    pairs = Pairs.make({"x": torch.arange(100)})
    one, again, other = pairs.split(3), pairs.split(3), pairs.split(4)
    assert [p.ids for p in one] == [p.ids for p in again]
    assert one.test.ids != other.test.ids
    assert [len(p) for p in one] == [70, 10, 20]


def test_lazy_pairs_travel_to_another_process():
    pairs = every_kind()
    back = pickle.loads(pickle.dumps(pairs))
    assert content(back) == content(pairs)


# --- columns and what is missing ---------------------------------------------------


def test_features_follow_the_column_they_are_made_of():
    pairs = every_kind()
    few = pairs.with_present("image", torch.arange(12) < 5)
    for name in ("image", "image_features", "image_tokens"):
        assert few.present[name].tolist() == (torch.arange(12) < 5).tolist()
    assert few.present["text"].all() and pairs.present["image"].all()
    more = few.with_features(image_layer3=torch.zeros(12, 1), other=torch.zeros(12, 1))
    assert not more.present["image_layer3"].all() and more.present["other"].all()
    # A text is a source of its own, though its name begins with another's.
    no_text = pairs.with_present("text", torch.zeros(12).bool())
    assert no_text.present["text_de"].all()
    german = pairs.with_present("text_de", torch.zeros(12).bool())
    german = german.with_features(text_de_features=torch.zeros(12, 1),
                                  text_features=torch.zeros(12, 1))
    assert german.present["text_features"].all()
    assert not german.present["text_de_features"].any()


def test_features_keep_the_hash_and_columns_change_it():
    pairs = every_kind()
    assert pairs.with_features(a=torch.ones(12)).provenance == pairs.provenance
    one = pairs.with_columns(text=["new"] * 12)
    two = pairs.with_columns(text=["newer"] * 12)
    hashes = {p.provenance.hash for p in (pairs, one, two)}
    assert len(hashes) == 3 and "text=" in one.provenance.recipe
    assert pairs["text"][0].startswith("caption") and one["text"][0] == "new"
    assert one.provenance == pairs.with_columns(text=["new"] * 12).provenance


def test_describe_says_what_is_there():
    words = every_kind().describe()
    for part in ("12 rows, 6 items, 3 groups", "sounds, read when asked for, 4 missing",
                 "label kind: 3 classes", "table edges", "tokens [12, 5]"):  # fmt: skip
        assert part in words


# --- files -------------------------------------------------------------------------


def test_save_and_load_keep_everything(tmp_path):
    pairs = every_kind()
    pairs.save(tmp_path / "a" / "pairs")
    assert content(Pairs.load(tmp_path / "a" / "pairs")) == content(pairs)
    with pytest.raises(FileExistsError, match="exists"):
        pairs.save(tmp_path / "a" / "pairs")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["pairs"]


def test_a_row_without_a_source_is_saved_as_missing(tmp_path):
    column = Lazy([3, None, 5], square)
    pairs = Pairs.make({"image": column}, present={"image": [True, False, True]})
    pairs.save(tmp_path / "p")
    back = Pairs.load(tmp_path / "p")
    assert back["image"].sources[1] is None
    assert back["image"][2].tobytes() == square(5).tobytes()


def test_a_failed_save_leaves_nothing(tmp_path):
    def broken(source):
        raise OSError("no more paper")

    with pytest.raises(OSError, match="paper"):
        Pairs.make({"image": Lazy([1, 2], broken)}).save(tmp_path / "p")
    with pytest.raises(TypeError, match="rest/tables/thing.*object"):
        Pairs.make({"a": X}, tables={"thing": object()}).save(tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_load_refuses_what_is_not_whole(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pairs\.json"):
        Pairs.load(tmp_path)
    every_kind().save(tmp_path / "p")
    weights = tmp_path / "p" / "pairs.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(ValueError, match="damaged"):
        Pairs.load(tmp_path / "p")
    (tmp_path / "p" / "pairs.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="format 99"):
        Pairs.load(tmp_path / "p")
