"""Figures of a space of many kinds of material, beside those of plots.py."""

from collections.abc import Mapping, Sequence

from .plots import COLOURS, MARKERS, WIDTH, frame, grid


def tiles(contents: Sequence, captions: Sequence[str], columns: int = 6):
    """Rows of any kind of material in a grid (see `tile`), a caption under each."""
    figure, axes = grid(contents, captions, columns)
    for axis, content in zip(axes, contents, strict=True):
        tile(axis, content)
    return figure


def tile(axis, content) -> None:
    """Draw one row in a square: a picture, a clip [t, h, w, 3] (its first four frames, or two), a
    cloud [p, 3] with y up, a sound (samples [t], rate), or a text."""
    import numpy as np

    if isinstance(content, str):
        axis.text(0.5, 0.5, content.replace(" ", "\n", 2), ha="center", va="center", size=8)
    elif isinstance(content, tuple):
        wave = np.asarray(content[0])
        axis.plot(wave[::max(1, len(wave) // 800)], linewidth=0.5)
    elif (x := np.asarray(content)).ndim == 4:
        axis.imshow(np.concatenate([np.concatenate(list(x[k:k + 2]), 1)
                                    for k in ((0, 2) if len(x) > 3 else (0,))]))
    elif x.shape[1] == 3:
        order = np.argsort(-x[:, 0])
        axis.scatter(-x[order, 2], x[order, 1], s=0.4, c=-x[order, 0], cmap="cividis")
        axis.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05))
    else:
        axis.imshow(x)
    frame(axis)


def space(points: Mapping[str, Sequence], shown: Sequence[tuple] = ()):
    """A map: the points [n, 2] of each kind in a colour and a marker of its own.

    Args:
        shown: (place, picture or text, kind), drawn there in the kind's colour.
    """
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    figure = Figure(figsize=(WIDTH, 0.8 * WIDTH), layout="constrained")
    axis = figure.subplots()
    colour = dict(zip(points, COLOURS.values(), strict=False))
    for (kind, rows), marker in zip(points.items(), MARKERS, strict=False):
        axis.scatter(*np.asarray(rows).T, s=7, color=colour[kind], marker=marker, label=kind,
                     alpha=0.5)
    for place, content, kind in shown:
        if isinstance(content, str):
            axis.annotate(content, np.asarray(place), size=7, color=colour[kind],
                          weight="bold", bbox={"facecolor": "white", "alpha": 0.6,
                                               "linewidth": 0, "pad": 0.5})
            continue
        picture = np.asarray(content)
        axis.add_artist(AnnotationBbox(
            OffsetImage(picture, zoom=24 / len(picture)), np.asarray(place), pad=0.1,
            bboxprops={"edgecolor": colour[kind], "linewidth": 1.5}))
    axis.legend(loc="best", markerscale=2.5, fontsize=8)
    axis.set(xticks=[], yticks=[])
    return figure
