"""ModelNet40: 12,311 CAD models in 40 classes -> clouds of 1,024 points in shards.

    python data_scripts/modelnet40.py out/ --accept-licence

The text of a model is its class ("night stand"). Points lie uniformly on the surface,
centred, the farthest at distance 1. The official split has no val part.
"""

import numpy as np
import torch
from common import DataSet, Source, run
from safetensors.torch import save

from alignkit.data.furniture import sample, unit_sphere
from alignkit.data.shards import Sample, Skipped

ABOUT = DataSet(
    name="ModelNet40",
    licence="Academic research; the models belong to their authors.",
    page="https://modelnet.cs.princeton.edu/",
    recipe="modelnet40 1",
    files=(Source("http://modelnet.cs.princeton.edu/ModelNet40.zip"),),
)
POINTS = 1024


def triangles(text: str) -> np.ndarray:
    """Corners [t, 3, 3] of an OFF file; some have no break behind the word OFF."""
    numbers = [float(word) for word in text.strip().removeprefix("OFF").split()]
    count, faces = int(numbers[0]), int(numbers[1])
    corners, at = np.reshape(numbers[3 : 3 + 3 * count], (count, 3)), 3 + 3 * count
    found = []
    for _ in range(faces):
        sides = int(numbers[at])
        face = [int(i) for i in numbers[at + 1 : at + 1 + sides]]
        found += [(face[0], face[k], face[k + 1]) for k in range(1, sides - 1)]
        at += sides + 1
    return corners[np.array(found)]


def samples(files):
    """ModelNet40/<class>/<train or test>/<class>_0001.off."""
    models = [path for path in files.paths if path.suffix == ".off"
              and path.parent.name in ("train", "test") and path.name[0] != "."]
    for number, path in enumerate(models):
        try:
            drawn = sample(triangles(path.read_text("latin-1")), POINTS, seed=number)
        except (ValueError, IndexError) as error:
            yield Skipped(path.stem, f"not an OFF model: {error}")
            continue
        points = torch.from_numpy(unit_sphere(drawn)).float()
        kind = path.parent.parent.name.replace("_", " ")
        yield Sample(path.stem, {"safetensors": save({"points": points})}, [kind],
                     {"category": kind}, split=path.parent.name)


if __name__ == "__main__":
    run(ABOUT, samples)
