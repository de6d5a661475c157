"""Files that want to do harm, or are damaged: refused in one clear error, nothing lost.
Archives, tables and pictures have such tests in test_archives.py and test_tables.py."""

import io
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
from needs import examples
from PIL import Image

from alignkit.data import Lazy, Pairs, Tokens, write_shards
from alignkit.data.shards import Sample
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


@cache
def shards() -> Path:
    """A folder of `write_shards`: three pictures in two shards."""
    folder = Path(mkdtemp()) / "shards"
    write_shards([Sample(f"k{k}", {"png": picture(k)}, [f"a {k}"], {"kind": "xy"[k % 2]})
                  for k in range(3)], folder, name="three", licence="none", source="here",
                 items_per_shard=2)
    return folder


def picture(red: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


FILES = {"pairs.json": saved, "shards.json": shards, "00000.json": shards}


def opened(text: str, name: str = "pairs.json") -> Pairs:
    """The folder with another file `name`, read as far as its pictures."""
    folder = Path(mkdtemp()) / "pairs"
    shutil.copytree(FILES[name](), folder)
    try:
        (folder / name).write_text(text, "utf-8")
        found = Pairs.load(folder)
        for column in found.columns.values():
            if isinstance(column, Lazy):
                column[0]
        return found
    finally:
        shutil.rmtree(folder.parent)


@pytest.mark.parametrize("name", FILES)
def test_the_folders_are_whole(name):
    assert len(opened((FILES[name]() / name).read_text("utf-8"), name)) == 3


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


@settings(max_examples=examples(40), deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(sorted(FILES)), place=st.integers(0, 10**6), value=ANY,
       remove=st.booleans())
def test_any_manifest_is_read_or_refused(name, place, value, remove):
    """One value of the tree replaced by anything, or taken out."""
    tree = json.loads((FILES[name]() / name).read_text("utf-8"))
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
        opened(json.dumps(tree), name)
    except REFUSED as error:
        assert str(error)


@settings(max_examples=examples(60), deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(sorted(FILES)), place=st.integers(0, 10**6),
       raw=st.text(max_size=4), cut=st.booleans())
def test_any_damage_of_a_manifest_is_read_or_refused(name, place, raw, cut):
    text = (FILES[name]() / name).read_text("utf-8")
    place %= len(text)
    try:
        opened(text[:place] + raw + ("" if cut else text[place + 1:]), name)
    except REFUSED as error:
        assert str(error)


@pytest.mark.parametrize("file", ["../shards/00000.tar", "/etc/passwd"])
def test_shards_name_no_file_outside(file):
    text = (shards() / "shards.json").read_text("utf-8")
    assert '"00000.tar"' in text
    with pytest.raises(REFUSED):
        opened(text.replace('"00000.tar"', json.dumps(file)), "shards.json")
