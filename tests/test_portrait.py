"""A corpus at a glance, from rows made here."""

import pytest
import torch
from PIL import Image

from alignkit.course.portrait import portrait
from alignkit.data import Lazy, Pairs

RATE = 100


def made(n: int = 8, silent: tuple[int, ...] = (2, 5)) -> Pairs:
    pictures = Lazy(list(range(n)), lambda i: Image.new("RGB", (4, 4), (i * 20, 0, 0)))
    waves = Lazy([i + 1 for i in range(n)],
                 lambda s: (torch.linspace(-1, 1, s * RATE), RATE), "sound")
    heard = torch.tensor([i not in silent for i in range(n)])
    return Pairs.make(
        {"image": pictures, "sound": waves, "points": torch.rand(n, 30, 3) - 0.5,
         "text": [f"thing {i}" for i in range(n)], "image_features": torch.rand(n, 3)},
        present={"sound": heard},
    )  # fmt: skip


def test_what_is_drawn():
    pairs = made()
    figure = portrait(pairs, 6)
    assert figure.get_suptitle() == "my pairs (user)"
    lines = [figure.axes[i : i + 6] for i in range(0, 18, 6)]
    assert len(figure.axes) == 18
    assert [line[0].get_ylabel() for line in lines] == ["sound", "points", "image"]
    rows = [0, 1, 3, 4, 6, 7]  # those that lack nothing
    assert [axis.get_title() for axis in lines[2]] == [f"thing {row}" for row in rows]
    ends = [axis.get_xticklabels()[0].get_text() for axis in lines[0]]
    assert ends == [f"{row + 1}.0 s" for row in rows]
    reds = [int(axis.images[0].get_array()[0, 0, 0]) for axis in lines[2]]
    assert reds == [row * 20 for row in rows]
    shown = lines[1][2].collections[0].get_offsets()
    assert torch.allclose(torch.as_tensor(shown.data).float(), pairs["points"][3][:, :2])


def test_what_is_missing_stays_empty():
    figure = portrait(made(), 7)
    titles = [axis.get_title() for axis in figure.axes[14:]]
    assert titles == [f"thing {row}" for row in (0, 1, 2, 3, 4, 6, 7)]
    assert [len(axis.collections) for axis in figure.axes[:7]] == [1, 1, 0, 1, 1, 1, 1]


def test_a_video_is_four_frames_from_first_to_last():
    films = Lazy([10, 20], lambda s: torch.full((7, 4, 4, 3), s, dtype=torch.uint8)
                 + torch.arange(7, dtype=torch.uint8)[:, None, None, None], "video")
    figure = portrait(Pairs.make({"video": films, "text": ["a", "b"]}), 2)
    shown = [int(axis.images[0].get_array()[0, 0, 0]) for axis in figure.axes]
    assert shown == [10, 20, 12, 22, 14, 24, 16, 26]
    assert [axis.get_title() for axis in figure.axes] == [""] * 6 + ["a", "b"]


def test_wrong_arguments_are_named():
    for n in (0, 9):
        with pytest.raises(ValueError, match="n must be 1 to 8"):
            portrait(made(), n)
    with pytest.raises(ValueError, match=r"no pictures, videos, sounds or points in \['text'\]"):
        portrait(made().only("text"))
