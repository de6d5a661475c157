"""Sweet Home 3D's furniture: a cloud of points, a rendered icon, and a name in 21
languages."""

import io
import os
import re
import zipfile
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from alignkit.data.columns import BY_PROVENANCE, Lazy
from alignkit.data.corpora import choose, column, on_white, plain, some_groups, together
from alignkit.data.emoji import sources_hash
from alignkit.data.fetch import asset, cache_dir
from alignkit.data.pairs import Pairs, Provenance

LANGUAGES = ("en", "bg", "cs", "de", "el", "es", "fi", "fr", "hu", "it", "ja", "nl",
             "pl", "pt", "pt_PT", "ru", "sv", "tr", "vi", "zh_CN", "zh_TW")  # fmt: skip
# Here a name that equals the English one was not translated (501 of 820 in Chinese);
# elsewhere it may be the same word ("Sofa").
LEFT_ENGLISH = ("bg", "el", "ja", "ru", "vi", "zh_CN", "zh_TW")
# English names of families that differ by a detail: two icons of different groups
# differ by at least 0.04 (root mean square at 32 px), mirrored or not: a test compares
# them all.
SAME = (r".*\b(plug|switch)\b.*", r".*\b(window|door|pane)s?\b.*")
POINTS = 1024
RECIPE = "furniture 1"
CATALOGUE = "PluginFurnitureCatalog"


class _Piece(NamedTuple):
    library: str  # file of the asset
    name: str  # "scopia/bed1", as the model's file is called
    icon: str  # members of the library
    model: str
    category: str
    names: dict[str, str]


def furniture(language: str | Sequence[str] = "en", *, size: int = 224,
              limit: int | None = None) -> Pairs:
    """820 pieces of furniture and household things, as people placed them in rooms.

    Columns: `points` (tensor [n, 1024, 3], y up, drawn uniformly on the surface,
    centred, the farthest at distance 1), `image` (Lazy, RGB of size × size: an
    icon of 128 px, rendered), `text` (the name in the first language) and
    `text_<code>` for each further one. ids are "scopia/bed1"; labels `category` (12:
    "Kitchen") and `library` (5). Rows of the same name in the first language are one
    item; rows of the same name, numbers aside, in English or one of the languages asked
    for, or of one family (`SAME`), and rows linked through such rows are one group. So
    ask for all the languages that you will use at once (all 21 make one group of 230).

    The first call parses 350 MB of models, about half a minute; the points are then in
    the cache.

    Args:
        language: one of `LANGUAGES`, or several.
        size: side of the pictures in pixels.
        limit: only so many groups, the same at each call (for tests and small runs).

    Raises: ValueError for an unknown language or a number out of range; FetchError,
        which says what to install or bring, where the package is not here.
    """
    if size < 8:
        raise ValueError(f"size must be at least 8 pixels, got {size}")
    asked = choose(language, LANGUAGES)
    found = _pieces()
    group = together([
        [*((code, _bare(piece.names[code])) for code in {"en", *asked}
           if code in piece.names),
         *(family for family in SAME if re.fullmatch(family, plain(piece.names["en"])))]
        for piece in found
    ])  # fmt: skip
    kept = some_groups(group, [piece.name for piece in found], limit)
    points = _all_points()[kept]
    found, group = [found[row] for row in kept], [group[row] for row in kept]

    folder = asset("furniture")
    columns: dict = {
        "points": points,
        "image": Lazy([(p.library, p.icon) for p in found],
                      partial(_icon, folder=folder, size=size),
                      version=BY_PROVENANCE),
    }
    present = {}
    for code in asked:
        name = column("text", code, asked[0])
        columns[name] = [piece.names.get(code, "") for piece in found]
        present[name] = torch.tensor([code in piece.names for piece in found])
    values = {"category": [p.category for p in found],
              "library": [p.library.removesuffix(".sh3f") for p in found]}
    known = {label: sorted(set(each)) for label, each in values.items()}
    return Pairs.make(
        columns,
        ids=[piece.name for piece in found],
        item=together([[p.names.get(asked[0], p.name)] for p in found]),
        group=group,
        present=present,
        labels={label: torch.tensor([known[label].index(value) for value in each])
                for label, each in values.items()},
        label_names=known,
        provenance=Provenance(
            "furniture", "real",
            "CC BY 3.0 (Kator Legaz, Reallusion, Scopia, Blend Swap), CC0 (Blend Swap)",
            "sweethome3d-furniture 1.8 (Debian)", RECIPE,
            sources_hash(["furniture"], f"{RECIPE} {asked} {size} {limit}"),
        ),
    )  # fmt: skip


def sample(corners: np.ndarray, n: int, seed: int) -> np.ndarray:
    """n points [n, 3] drawn uniformly on the surface of triangles [t, 3, 3].

    Raises ValueError if the triangles have no area.
    """
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    if not area.sum() > 0:
        raise ValueError(f"{len(corners)} triangles without area: nothing to draw on")
    drawn = np.random.default_rng(seed)
    chosen = drawn.choice(len(corners), n, p=area / area.sum())
    u, v = drawn.random((2, n, 1))
    u = np.sqrt(u)  # uniform in the triangle: Osada et al. 2002, equation 1
    return (1 - u) * a[chosen] + u * (1 - v) * b[chosen] + u * v * c[chosen]


def unit_sphere(points: np.ndarray) -> np.ndarray:
    """The points [n, 3] with their mean at 0 and the farthest at distance 1."""
    points = points - points.mean(0)
    return points / np.linalg.norm(points, axis=1).max()


def triangles(text: str) -> np.ndarray:
    """Corners [t, 3, 3] of the faces of an OBJ file; polygons are cut into fans.

    Raises ValueError for a file without faces or a face without its corners.
    """
    corners, faces = [], []
    for line in text.splitlines():
        if line.startswith("v "):
            corners.append(line[2:])
        elif line.startswith("f "):
            # "7/2/3": corner 7; "-1": the last one so far
            at = [int(word.partition("/")[0]) for word in line.split()[1:]]
            if min(at) < 0:
                at = [i if i > 0 else len(corners) + 1 + i for i in at]
            faces += [(at[0], at[k], at[k + 1]) for k in range(1, len(at) - 1)]
    if not faces:
        raise ValueError("not an OBJ model: it has no faces")
    faces = np.array(faces)
    if faces.min() < 1 or faces.max() > len(corners):
        raise ValueError(f"faces name the corners {faces.min()} to {faces.max()}, "
                         f"there are {len(corners)}")
    return np.loadtxt(corners, usecols=(0, 1, 2), ndmin=2)[faces - 1]


def _all_points() -> Tensor:
    """Points [820, 1024, 3] float32 of all pieces, from the cache or made now."""
    key = sources_hash(["furniture"], f"{RECIPE} points {POINTS}")
    path = cache_dir() / "corpora" / f"furniture-{key[:16]}.safetensors"
    if not path.is_file():
        folder, clouds = asset("furniture"), []
        libraries = {p.library: zipfile.ZipFile(folder / p.library) for p in _pieces()}
        for row, piece in enumerate(tqdm(_pieces(), desc="furniture", unit="model")):
            text = libraries[piece.library].read(piece.model).decode("latin1")
            drawn = sample(triangles(text), POINTS, seed=row)
            clouds.append(torch.from_numpy(unit_sphere(drawn)).float())
        for library in libraries.values():
            library.close()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file({"points": torch.stack(clouds)}, temporary)
        os.replace(temporary, path)
    return load_file(path)["points"]


@cache
def _pieces() -> list[_Piece]:
    folder, found = asset("furniture"), []
    for path in sorted(folder.glob("*.sh3f")):
        with zipfile.ZipFile(path) as library:
            catalogues = {
                code: _properties(library.read(file)) for code in LANGUAGES
                if (file := CATALOGUE + ("" if code == "en" else f"_{code}")
                    + ".properties") in library.namelist()
            }  # fmt: skip
        english = catalogues["en"]
        numbers = {key.split("#")[1] for key in english if key.startswith("model#")}
        for number in sorted(numbers, key=int):
            names = {code: name for code, catalogue in catalogues.items()
                     if (name := catalogue.get(f"name#{number}", "").strip())}
            for code in LEFT_ENGLISH:
                if names.get(code) == names["en"]:
                    del names[code]
            icon, model = (english[f"{key}#{number}"].strip("/")
                           for key in ("icon", "model"))
            found.append(_Piece(path.name, model.rsplit("/", 1)[0], icon, model,
                                english[f"category#{number}"], names))
    return found


def _bare(name: str) -> str:
    """"Concept Sedan 02" → "concept sedan"; "Bill 10€" → "bill"."""
    return re.sub(r"[\d\W_]+", " ", plain(name)).strip()


def _properties(raw: bytes) -> dict[str, str]:
    r"""A Java properties file: lines `name#7=B\u00f6gen`, in Latin-1 with escapes."""
    found = {}
    for line in raw.decode("latin1").splitlines():
        if match := re.match(r"\s*([\w#]+)\s*=\s*(.*)", line):
            key, value = match.groups()
            if "\\" in value:  # few have
                value = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), value)
            found[key] = value
    return found


def _icon(source: tuple[str, str], folder: Path, size: int) -> Image.Image:
    library, member = source
    return on_white(Image.open(io.BytesIO(_icons(folder / library)[member])), size)


@cache
def _icons(library: Path) -> dict[str, bytes]:
    """All icons of a library, a few MB: to open the file for each takes 10 ms."""
    with zipfile.ZipFile(library) as archive:
        return {piece.icon: archive.read(piece.icon) for piece in _pieces()
                if piece.library == library.name}
