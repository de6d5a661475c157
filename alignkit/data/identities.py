"""Composed crops with identities: several pictures and captions of one thing each.

An identity is what is meant by some fields of an object in a scene, say all dogs on red
plates; what else is known of an object differs from crop to crop, as does the wording
of its caption. Every result on them is labelled 'composed'.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from PIL import Image

from alignkit.data.columns import Lazy
from alignkit.data.pairs import Pairs

FIELDS = ("noun", "size", "colour", "shape")
SIDE = 96  # pixels of a crop
WORDINGS = (
    "{a_size} {noun} on {a_colour} {shape}",
    "on {a_colour} {shape} there is {a_size} {noun}",
    "the {shape} is {colour} and the {noun} on it is {size}",
    "a {noun}, {size}, above {a_colour} {shape}",
    "this {size} {noun} has {a_colour} {shape} under it",
    "{colour} is the {shape} behind the {size} {noun}",
)


def identities(scenes: Pairs, fields: Sequence[str] = ("noun", "colour"),
               each: int = 5) -> Pairs:
    """Objects cut out of scenes (of `data.scenes`), `each` of every identity.

    Columns: `image` (Lazy, the box of an object's plate), `text` (one caption; those of
    an identity differ in wording), `scene` [n] (the row of `scenes`) and `box` [n, 4]
    in its pixels. Label and group: `identity`, the objects equal in `fields`; identities
    with fewer objects are left out. Raises ValueError if none is left, for an unknown
    field, or if each is not between 1 and the number of wordings.
    """
    if not 1 <= each <= len(WORDINGS) or not fields or set(fields) - set(FIELDS):
        raise ValueError(f"each must lie in 1 to {len(WORDINGS)} and fields be some of "
                         f"{FIELDS}, got {each} and {tuple(fields)}")
    objects = scenes.tables["objects"]
    names = scenes.tables["names"] | {"noun": scenes.tables["vocabulary"]}
    members: dict[tuple, list[int]] = {}
    for row, key in enumerate(zip(*(objects[field].tolist() for field in fields))):
        members.setdefault(key, []).append(row)
    kept = [of[:each] for _, of in sorted(members.items()) if len(of) >= each]
    if not kept:
        raise ValueError(f"no identity has {each} objects in {len(scenes)} scenes: "
                         "give more scenes or fewer fields")
    rows = torch.tensor(kept).flatten()
    identity = torch.arange(len(kept)).repeat_interleave(each)
    scene, box = objects["item"][rows], objects["box"][rows]
    things = [{f: names[f][int(objects[f][row])] for f in FIELDS} for row in rows]
    pictures = scenes["image"]
    cuts = Lazy([(pictures.sources[i], tuple(b)) for i, b in zip(scene, box.tolist())],
                partial(cut_out, read=pictures.read), version=pictures.version)
    return Pairs.make(
        {"image": cuts, "scene": scene, "box": box, "text": [
            caption(thing, k % each + k // each) for k, thing in enumerate(things)]},
        ids=[f"object {row}" for row in rows.tolist()], group=identity,
        labels={"identity": identity},
        label_names={"identity": [" ".join(thing[f] for f in fields)
                                  for thing in things[::each]]},
        provenance=scenes.provenance.derive(f"identities 1 {fields} {each}"))


def cut_out(source: tuple, read: Callable) -> Image.Image:
    """The box of a scene, from (the scene's source, box)."""
    scene, box = source
    return read(scene).crop([round(x) for x in box]).resize((SIDE, SIDE))


def caption(thing: Mapping[str, str], wording: int) -> str:
    """What a caption says of an object, in one of six wordings."""
    article = "an" if thing["colour"] == "orange" else "a"
    return WORDINGS[wording % len(WORDINGS)].format(
        **thing, a_size=f"a {thing['size']}", a_colour=f"{article} {thing['colour']}")
