"""Matches between two pictures, as lines."""

from torch import Tensor

from .plots import COLOURS, WIDTH


def matches(first: Tensor, second: Tensor, points: Tensor, there: Tensor, right: Tensor,
            title: str = ""):
    """Two pictures [h, w] side by side, and a line a match: from `points` [m, 2] to `there`
    [m, 2] (x, y), solid green where `right` [m], else dashed red."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, WIDTH / 2), layout="constrained")
    axis = figure.subplots()
    gap = first.shape[1] + 8
    for picture, left in ((first, 0), (second, gap)):
        h, w = picture.shape
        axis.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1,
                    extent=(left - 0.5, left + w - 0.5, h - 0.5, -0.5))
    for (x, y), (u, v), is_right in zip(points.tolist(), there.tolist(), right.tolist()):
        colour, line = (COLOURS["green"], "-") if is_right else (COLOURS["red"], ":")
        axis.plot([x, u + gap], [y, v], line, color=colour, linewidth=0.9)
    axis.set(xlim=(-0.5, gap + second.shape[1] - 0.5), ylim=(first.shape[0] - 0.5, -0.5),
             xticks=[], yticks=[], title=title)
    return figure
