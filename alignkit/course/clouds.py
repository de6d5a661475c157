"""A figure of point clouds, beside those of plots.py."""

from collections.abc import Sequence

from .plots import COLOURS, frame, grid


def clouds(clouds: Sequence, captions: Sequence[str], columns: int = 6,
           marked: Sequence[int] = (), turn: float = 35, tilt: float = 20):
    """Clouds of points [p, 3], y up, in a grid, a caption under each; near points are dark.

    Args:
        marked: places of those with a blue frame and a ✓.
        turn, tilt: degrees round the upright axis, and from above.
    """
    import numpy as np

    figure, axes = grid(clouds, captions, columns)
    a, b = np.radians([turn, tilt])
    for place, (axis, cloud) in enumerate(zip(axes, clouds)):
        x, y, z = np.asarray(cloud, dtype=float).T
        x, z = np.cos(a) * x - np.sin(a) * z, np.sin(a) * x + np.cos(a) * z
        y, z = np.cos(b) * y - np.sin(b) * z, np.sin(b) * y + np.cos(b) * z
        order = np.argsort(z)  # far ones first
        axis.scatter(x[order], y[order], s=1.5, c=-z[order], cmap="cividis", linewidths=0)
        axis.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05))
        frame(axis)
        if place in marked:
            frame(axis, COLOURS["blue"], 2)
            axis.set_xlabel(f"{axis.get_xlabel()} ✓")
    return figure
