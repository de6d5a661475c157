"""The figures of the course: one size, one font, colours for every eye.

Functions return a figure; `show` puts it into the notebook as a PNG with alt text.
Nothing is measured here: numbers come in, ink goes out.
"""

import base64
import io
from collections.abc import Sequence

from .frontend import interactive, kernel

# Okabe and Ito's colours can be told apart with every common colour vision.
COLOURS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "red": "#D55E00",
    "sky": "#56B4E9",
    "black": "#000000",
}
WIDTH, HEIGHT = 7.0, 3.6  # inches; 700 x 360 pixels
MARKERS = "osD^vPX"


def style() -> None:
    """Set matplotlib to the look of the course (called by `setup`)."""
    import matplotlib

    matplotlib.rcParams.update(
        {
            "figure.figsize": (WIDTH, HEIGHT),
            "figure.dpi": 100,
            "savefig.dpi": 100,
            "font.family": "DejaVu Sans",  # comes with matplotlib: same on any machine
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": matplotlib.cycler(color=list(COLOURS.values())),
            "image.cmap": "cividis",
            "legend.frameon": False,
        }
    )


def show(figure, alt: str, *, note: str = "", keep: bool = True) -> None:
    """Put the figure into the notebook as a PNG with alt text, and close it.

    In plain Python nothing is shown.

    Args:
        alt: what a reader who cannot see the figure needs to know.
        note: drawn in the corner, such as "composed data" or "generated".
        keep: False for pictures under a licence that the repository does not carry:
            drawn for a person, but only described where the output is saved.

    Raises:
        ValueError: alt is empty.
    """
    if not alt.strip():
        raise ValueError("alt is empty: say in words what the figure shows")
    if note:
        figure.supxlabel(note, x=0.995, ha="right", size=8, alpha=0.7)
    if kernel() is None:
        data = None
    elif not keep and not interactive():
        data = {"text/plain": f"figure, drawn when run: {alt}"}
    else:
        # No text/plain beside it: nbval would compare the numbers that alt names.
        data = {"image/png": _png(figure)}
    _close(figure)
    if data:
        from IPython.display import publish_display_data

        publish_display_data(data, metadata={"image/png": {"alt": alt}})


def _png(figure) -> str:
    """The figure as base64 PNG in 256 colours: a third of the size, same look."""
    from PIL import Image

    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", facecolor="white")
    Image.open(raw).convert("RGB").quantize(256).save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def _close(figure) -> None:
    import matplotlib.pyplot as plt

    plt.close(figure)  # else the notebook would draw it a second time


def _figure(rows: int = 1, columns: int = 1, height: float = HEIGHT):
    """A figure that pyplot does not know, so that only `show` displays it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _tile(axis, content) -> None:
    """A picture (PIL or array [h, w, 3]) or a text, in a frame without ticks."""
    import numpy as np

    if isinstance(content, str):
        axis.text(0.5, 0.5, _wrap(content), ha="center", va="center", size=9)
        axis.set(xlim=(0, 1), ylim=(0, 1))
    else:
        axis.imshow(np.asarray(content))
    frame(axis)


def frame(axis, colour: str = "#BBBBBB", width: float = 0.8) -> None:
    """Make an axis a square without ticks, in a frame."""
    axis.set(xticks=[], yticks=[])
    axis.set_box_aspect(1)
    for spine in axis.spines.values():
        spine.set(visible=True, color=colour, linewidth=width)


def _wrap(text: str, width: int = 15, lines: int = 5) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" …"))


def _same_length(**lists: Sequence) -> None:
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"need the same number, at least one, of each; got {lengths}")


def grid(contents: Sequence, captions: Sequence[str], columns: int = 6):
    """(a figure, an axis for each of the contents to be drawn on, its caption below it)."""
    _same_length(contents=contents, captions=captions)
    columns = min(columns, len(contents))
    rows = -(-len(contents) // columns)
    figure, axes = _figure(rows, columns, height=rows * (WIDTH / columns + 0.35))
    for axis in axes.flat[len(contents) :]:
        axis.axis("off")
    for axis, caption in zip(axes.flat, captions):
        axis.set_xlabel(_wrap(caption, 90 // columns, lines=2), size=8)
    return figure, axes.flat[: len(contents)]


def gallery(pictures: Sequence, captions: Sequence[str], columns: int = 6):
    """Pictures in a grid, a caption under each."""
    figure, axes = grid(pictures, captions, columns)
    for axis, picture in zip(axes, pictures):
        _tile(axis, picture)
    return figure


def retrieved(
    queries: Sequence, results: Sequence[Sequence], correct: Sequence[Sequence[bool]]
):
    """One row a query: the query, then what was found, best first.

    Args:
        queries: pictures or texts, n of them.
        results: for each query the k first pictures or texts.
        correct: [n, k], whether each is right (marked by sign and by colour).
    """
    _same_length(queries=queries, results=results, correct=correct)
    k = len(results[0])
    figure, axes = _figure(len(queries), k + 1, height=len(queries) * WIDTH / (k + 1))
    axes[0, 0].set_title("query", size=9)
    for row, query, found, right in zip(axes, queries, results, correct):
        _tile(row[0], query)
        for rank, axis in enumerate(row[1:]):
            _tile(axis, found[rank])
            good = bool(right[rank])
            colour = COLOURS["blue"] if good else COLOURS["orange"]
            axis.set_title(f"{rank + 1} {'✓' if good else '✗'}", size=9, color=colour)
            frame(axis, colour, 2)
    return figure


def intervals(rows: dict[str, tuple[float, float, float]], *, margin: float | None = None,
              xlabel: str):
    """Means with their intervals, one below the other; zero and the margin drawn.

    Args:
        rows: name -> (mean, low, high).
        margin: the difference that was asked for before the run.
    """
    _same_length(rows=rows)
    figure, ((axis,),) = _figure(height=1.1 + 0.4 * len(rows))
    for place, (mean, low, high) in enumerate(rows.values()):
        axis.plot([low, high], [place, place], color=COLOURS["blue"], linewidth=3)
        axis.plot(mean, place, "o", color=COLOURS["blue"], markeredgecolor="white")
    axis.axvline(0, color="black", linewidth=1)
    if margin is not None:
        axis.axvline(margin, color=COLOURS["red"], linestyle="--", label="margin")
        axis.legend(loc="best")
    axis.set(yticks=range(len(rows)), yticklabels=list(rows), xlabel=xlabel)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    return figure


def bars(values: dict[str, float], *, marked: Sequence[str] = (), picture=None,
         xlabel: str = ""):
    """A bar a name, the first on top, its number behind it; `marked` ones are blue.

    The axis ends where the longest bar does, so that bars are seen however short all
    of them are; the numbers say how long that is.

    Args:
        picture: a picture or text drawn beside the bars.
    """
    _same_length(values=values)
    figure, axes = _figure(1, 1 if picture is None else 2, height=1 + 0.28 * len(values))
    axis = axes[0, -1]
    colours = [COLOURS["blue" if name in marked else "orange"] for name in values]
    places = list(range(len(values)))
    drawn = axis.barh(places, list(values.values()), color=colours)
    axis.bar_label(drawn, fmt=lambda value: f"{value:.3g}", padding=3, size=8)
    axis.set(yticks=places, xlabel=xlabel)
    axis.set_yticklabels([_wrap(name, 30, lines=1) for name in values])
    axis.margins(x=0.15)
    axis.invert_yaxis()
    if picture is not None:
        _tile(axes[0, 0], picture)
    return figure


def paired(
    baseline: Sequence[float],
    method: Sequence[float],
    names: tuple[str, str] = ("baseline", "method"),
    *,
    ylabel: str = "",
):
    """One line a seed, from the baseline's value to the method's."""
    _same_length(baseline=baseline, method=method)
    figure, ((axis,),) = _figure()
    for before, after in zip(baseline, method):
        colour = COLOURS["blue"] if after > before else COLOURS["orange"]
        dash = "-" if after > before else "--"
        axis.plot([0, 1], [before, after], dash, color=colour, marker="o")
    axis.set(xticks=[0, 1], xticklabels=list(names), xlim=(-0.4, 1.4), ylabel=ylabel)
    return figure


def heat(matrix, xlabels: Sequence, ylabels: Sequence, title: str = ""):
    """A matrix [rows, columns] in colours, each value written in when there is room."""
    import numpy as np

    matrix = np.asarray(matrix, dtype=float)
    if matrix.shape != (len(ylabels), len(xlabels)):
        raise ValueError(
            f"matrix is {list(matrix.shape)}, labels ask for "
            f"[{len(ylabels)}, {len(xlabels)}] (ylabels, xlabels)"
        )
    height = min(max(HEIGHT, 0.32 * len(ylabels) + 1), 7)
    figure, ((axis,),) = _figure(height=height)
    image = axis.imshow(matrix, aspect="auto", cmap="cividis")
    figure.colorbar(image)
    axis.set(xticks=range(len(xlabels)), yticks=range(len(ylabels)), title=title)
    axis.set_xticklabels(list(xlabels), rotation=45 if len(xlabels) > 6 else 0)
    axis.set_yticklabels(list(ylabels))
    if matrix.size <= 64:
        middle = (np.nanmin(matrix) + np.nanmax(matrix)) / 2
        for (y, x), value in np.ndenumerate(matrix):
            colour = "white" if value < middle else "black"
            axis.text(x, y, f"{value:.2f}", ha="center", va="center", color=colour)
    return figure


def lines(
    x: Sequence[float],
    series: dict[str, tuple[Sequence, Sequence, Sequence]],
    *,
    xlabel: str = "",
    ylabel: str = "",
    log_x: bool = False,
):
    """Curves with their bands: name -> (means, lows, highs), each as long as x.

    Raises:
        ValueError: lengths differ, or more curves than colours.
    """
    if len(series) > len(COLOURS):
        raise ValueError(f"{len(series)} curves; {len(COLOURS)} can be told apart")
    figure, ((axis,),) = _figure()
    for name, colour, marker in zip(series, COLOURS.values(), MARKERS):
        mean, low, high = series[name]
        _same_length(x=x, means=mean, lows=low, highs=high)
        axis.plot(x, mean, color=colour, marker=marker, label=name)
        axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    axis.set(xlabel=xlabel, ylabel=ylabel, xscale="log" if log_x else "linear")
    axis.legend()
    return figure
