"""Files that want to do harm, or are damaged: refused in one clear error, nothing lost.
Archives, tables and pictures have such tests in test_archives.py and test_tables.py."""

import json
import pickle
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from alignkit.data import Lazy, Pairs, Tokens
from alignkit.parts import DualEncoder, Settings
from alignkit.training import Budget, checkpoint, fit

REFUSED = (ValueError, FileNotFoundError)


def pairs() -> Pairs:
    g = torch.Generator().manual_seed(0)
    return Pairs.from_features({f"{m}_features": torch.randn(20, 4, generator=g)
                                for m in ("image", "text")})


# Checkpoints ----------------------------------------------------------------------------
class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path):
        self.mark = str(mark)

    def __reduce__(self):
        return (Path.touch, (Path(self.mark),))


def test_a_pickle_in_disguise_is_no_checkpoint_and_does_not_run(tmp_path):
    checkpoint.save(tmp_path, 1, {"x": torch.ones(3)}, {"step": 1})
    mark, disguise = tmp_path / "mark", tmp_path / "step-000000002.safetensors"
    disguise.write_bytes(pickle.dumps(Bomb(mark)))
    sha = checkpoint._sha256(disguise)  # even with a note that vouches for it
    (tmp_path / "step-000000002.json").write_text(json.dumps({"step": 2, "sha256": sha}))
    assert checkpoint.newest(tmp_path)[1]["step"] == 1
    assert not mark.exists()


def test_a_checkpoint_of_other_shapes_is_refused_and_stays(tmp_path):
    budget = Budget(steps=4, batch_size=8, save_every=2)
    fit(DualEncoder(Settings(width=3), pairs()), pairs(), budget, folder=tmp_path)
    tensors, facts = checkpoint.newest(tmp_path)
    wide = {k: torch.cat([v, v]) if v.dim() == 2 else v for k, v in tensors.items()}
    facts.pop("sha256")
    checkpoint.save(tmp_path, 5, wide, facts | {"step": 3})
    kept = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises((ValueError, RuntimeError), match="size mismatch|shape"):
        fit(DualEncoder(Settings(width=3), pairs()), pairs(), budget, folder=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == kept


# Saved pairs ----------------------------------------------------------------------------
@cache
def saved() -> Path:
    """A folder of `Pairs.save` with every kind of column."""
    folder = Path(mkdtemp()) / "pairs"
    g = torch.Generator().manual_seed(0)
    Pairs.make(
        {"image": Lazy([0, 1, 2], lambda k: Image.new("RGB", (8, 8), (k, 0, 0))),
         "text": ["a", "b", "c"], "text_features": torch.randn(3, 4, generator=g),
         "text_tokens": Tokens(torch.randn(3, 2, 4, generator=g),
                               torch.ones(3, 2, dtype=torch.bool))},
        labels={"kind": torch.tensor([0, 1, 0])}, label_names={"kind": ["x", "y"]},
        tables={"note": [1, {"a": None}]},
    ).save(folder)
    return folder


def opened(text: str) -> Pairs:
    """The saved folder with another pairs.json, read as far as its pictures."""
    folder = Path(mkdtemp()) / "pairs"
    shutil.copytree(saved(), folder)
    try:
        (folder / "pairs.json").write_text(text, "utf-8")
        found = Pairs.load(folder)
        for name, column in found.columns.items():
            if isinstance(column, Lazy):
                column[0]
        return found
    finally:
        shutil.rmtree(folder.parent)


def test_the_folder_is_whole():
    assert len(opened((saved() / "pairs.json").read_text("utf-8"))) == 3


@pytest.mark.parametrize("file", ["/etc/passwd", "../pairs/image/0000000.png",
                                  "image/../../pairs/image/0000000.png"])
def test_saved_pairs_name_no_file_outside(file):
    text = (saved() / "pairs.json").read_text("utf-8")
    assert '"image/0000000.png"' in text
    with pytest.raises(ValueError, match="leads out of the folder"):
        opened(text.replace('"image/0000000.png"', json.dumps(file)))


def places(tree, path=()) -> list[tuple]:
    """The path of every value in a JSON tree."""
    inner = (tree.items() if isinstance(tree, dict)
             else enumerate(tree) if isinstance(tree, list) else ())
    return [path, *(p for key, value in inner for p in places(value, (*path, key)))]


ANY = st.recursive(st.none() | st.booleans() | st.integers(-3, 10**6) | st.floats()
                   | st.text(max_size=5) | st.just("0000 columns/text_features"),
                   lambda inner: st.lists(inner, max_size=3)
                   | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.integers(0, 10**6), value=ANY, remove=st.booleans())
def test_any_pairs_json_is_read_or_refused(place, value, remove):
    """One value of the tree replaced by anything, or taken out."""
    tree = json.loads((saved() / "pairs.json").read_text("utf-8"))
    every = places(tree)[1:]
    *path, last = every[place % len(every)]
    holder = tree
    for key in path:
        holder = holder[key]
    if remove:
        del holder[last]
    else:
        holder[last] = value
    try:
        opened(json.dumps(tree))
    except REFUSED as error:
        assert str(error)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.integers(0, 10**6), raw=st.text(max_size=4), cut=st.booleans())
def test_any_damage_of_pairs_json_is_read_or_refused(place, raw, cut):
    text = (saved() / "pairs.json").read_text("utf-8")
    place %= len(text)
    try:
        opened(text[:place] + raw + ("" if cut else text[place + 1:]))
    except REFUSED as error:
        assert str(error)
