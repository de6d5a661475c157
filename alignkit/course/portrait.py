"""A corpus at a glance: rows with their pictures, videos, sounds, points and words."""

from functools import partial

import numpy as np
from torch import Tensor

from alignkit.course.plots import COLOURS, WIDTH, _figure, _tile, _wrap
from alignkit.data import Lazy, Pairs


def portrait(pairs: Pairs, n: int = 6):
    """A figure of n rows, spread evenly over those that lack least: one column a row,
    one line for each column that can be drawn, and the words below.

    Pictures are shown, sounds drawn over time (seconds), points [m, 3] seen from the
    front; of a video four frames, the first above and the last below. Where a row lacks
    something its place is empty.

    Raises ValueError if no column can be drawn, or n is not 1 to the number of rows.
    """
    if not 1 <= n <= len(pairs):
        raise ValueError(f"n must be 1 to {len(pairs)}, the number of rows, got {n}")
    drawn = [(name, draw) for name, column in pairs.columns.items()
             for draw in _ways_to_draw(column)]
    # Pictures last: the words stand under them.
    drawn.sort(key=lambda line: line[1] is _tile)
    if not drawn:
        raise ValueError("no pictures, videos, sounds or points in "
                         f"{sorted(pairs.columns)}")
    lacking = sum((~pairs.present[name]).long() for name in {name for name, _ in drawn})
    rows = (lacking == lacking.min()).nonzero()[:, 0].tolist()
    if len(rows) < n:
        rows = lacking.argsort(stable=True)[:n].sort().values.tolist()
    rows = [rows[i * len(rows) // n] for i in range(n)]

    side = WIDTH / n
    figure, axes = _figure(len(drawn), n, height=len(drawn) * (side + 0.15) + 0.8)
    for line, (name, draw) in zip(axes, drawn, strict=True):
        line[0].set_ylabel(name, size=8)
        for axis, row in zip(line, rows, strict=True):
            axis.set(xticks=[], yticks=[])
            axis.set_box_aspect(1)
            if pairs.present[name][row]:
                draw(axis, pairs[name][row])
    words = next((c for c in ("text_en", "text") if c in pairs.columns), None)
    for axis, row in zip(axes[-1], rows, strict=True):
        said = pairs[words][row] if words else pairs.ids[row]
        axis.set_title(_wrap(said, 90 // n, lines=3), size=8, y=-0.12, va="top")
    figure.suptitle(f"{pairs.provenance.name} ({pairs.provenance.kind})", size=10)
    return figure


def _ways_to_draw(column) -> list:
    """The functions that draw a cell of this column, one for each of its lines."""
    if isinstance(column, Lazy):
        return {"picture": [_tile], "sound": [_wave],
                "video": [partial(_frame, share=i / 3) for i in range(4)]}[column.kind]
    if isinstance(column, Tensor) and column.dim() == 3 and column.shape[-1] == 3:
        return [_points]
    return []


def _frame(axis, video: Tensor, share: float) -> None:
    _tile(axis, video[round(share * (len(video) - 1))])


def _wave(axis, sound) -> None:
    wave, rate = sound
    # The highest and lowest of each of 200 stretches: what a line a pixel would show.
    stretches = np.array_split(wave.numpy(), min(200, len(wave)))
    time = np.linspace(0, len(wave) / rate, len(stretches))
    axis.fill_between(time, [s.min() for s in stretches], [s.max() for s in stretches],
                      color=COLOURS["blue"], linewidth=0.5)
    axis.set(ylim=(-1, 1), xlim=(0, time[-1]))
    axis.set_xticks([time[-1]], [f"{time[-1]:.1f} s"], size=7)


def _points(axis, points: Tensor) -> None:
    x, y, z = points.T.numpy()
    axis.scatter(x, y, c=z, s=0.4, cmap="cividis")
    axis.set(xlim=(-1, 1), ylim=(-1, 1))
