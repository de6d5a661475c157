"""A figure of point clouds, beside those of plots.py."""

from collections.abc import Sequence

from .plots import COLOURS, WIDTH, _figure, _same_length, _wrap


def clouds(clouds: Sequence, captions: Sequence[str], columns: int = 6,
           marked: Sequence[int] = (), turn: float = 35, tilt: float = 20):
    """Clouds of points [p, 3], y up, in a grid, a caption under each; near points are dark.

    Args:
        marked: places of those with a blue frame and a ✓.
        turn, tilt: degrees round the upright axis, and from above.
    """
    import numpy as np

    _same_length(clouds=clouds, captions=captions)
    columns = min(columns, len(clouds))
    rows = -(-len(clouds) // columns)
    figure, axes = _figure(rows, columns, height=rows * (WIDTH / columns + 0.35))
    for axis in axes.flat[len(clouds) :]:
        axis.axis("off")
    a, b = np.radians([turn, tilt])
    for place, (axis, cloud, caption) in enumerate(zip(axes.flat, clouds, captions)):
        x, y, z = np.asarray(cloud, dtype=float).T
        x, z = np.cos(a) * x - np.sin(a) * z, np.sin(a) * x + np.cos(a) * z
        y, z = np.cos(b) * y - np.sin(b) * z, np.sin(b) * y + np.cos(b) * z
        order = np.argsort(z)  # far ones first
        axis.scatter(x[order], y[order], s=1.5, c=-z[order], cmap="cividis", linewidths=0)
        axis.set(xticks=[], yticks=[], xlim=(-1.05, 1.05), ylim=(-1.05, 1.05))
        axis.set_box_aspect(1)
        good = place in marked
        axis.set_xlabel(_wrap(caption, 90 // columns, lines=2) + " ✓" * good, size=8)
        for spine in axis.spines.values():
            spine.set(visible=True, color=COLOURS["blue"] if good else "#BBBBBB",
                      linewidth=2 if good else 1)
    return figure
