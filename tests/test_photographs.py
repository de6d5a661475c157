"""Windows of photographs: what is in them, and what stays together."""

import numpy as np
import pytest
from needs import needs_asset

from alignkit.data.photographs import photographs


@pytest.fixture(scope="module")
def windows():
    needs_asset("stamps")
    return photographs(96, limit=30)


@pytest.mark.slow
def test_windows_are_squares_of_photographs(windows):
    assert len(windows.group.unique()) == 30 <= len(windows) <= 180
    assert windows["image"][0].size == (96, 96)
    for i in (0, len(windows) // 2, len(windows) - 1):
        pixels = np.asarray(windows["image"][i])
        assert pixels.shape == (96, 96, 3) and pixels.std() > 5
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200  # no flat drawing


def test_windows_of_one_photo_stay_on_one_side(windows):
    stamps = [name.rsplit(" ", 3)[0] for name in windows.ids]
    first = {}
    for stamp, group in zip(stamps, windows.group.tolist()):
        assert first.setdefault(stamp, group) == group
    parts = windows.split(0)
    names = [{name.rsplit(" ", 3)[0] for name in part.ids} for part in parts]
    assert not names[0] & names[2] and not names[0] & names[1]


def test_few_groups_are_some_of_all(windows):
    """And cost less: of other groups no photograph is opened."""
    from alignkit.data import photographs as module

    module._opened.cache_clear(), module.windows.cache_clear()
    few = photographs(96, limit=5)
    assert len(few.group.unique()) == 5 and {*few.ids} < {*windows.ids}
    assert few.ids == [name for name in windows.ids if name in {*few.ids}]
    assert module._opened.cache_info().misses < 60


def test_photographs_refuse():
    for bad in ({"size": 8}, {"most": 0}, {"limit": 0}):
        with pytest.raises(ValueError, match="at least"):
            photographs(**bad)
