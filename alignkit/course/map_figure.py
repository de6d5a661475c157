"""The map of the course as a drawing: a column a part, a line to what is read before."""

import io

from .guide import Card, _before


def course_map(found: list[Card]) -> str:
    """An SVG whose boxes link to the notebooks. A prerequisite that another one already
    asks for has no line."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    parts = list(dict.fromkeys(card.name.partition("/")[0] for card in found))
    rows = {part: [c for c in found if c.name.startswith(part)] for part in parts}
    place = {card.name: (3 * column, -row) for column, part in enumerate(parts)
             for row, card in enumerate(rows[part])}
    needs = {card.name: card.needs for card in found}
    with rc_context({"svg.fonttype": "none"}):  # text stays text, in the page's own font
        tall = max(len(cards) for cards in rows.values())
        figure = Figure(figsize=(2.9 * len(parts), 0.42 * tall + 0.7), layout="constrained")
        axis = figure.add_subplot()
        axis.set(xlim=(-0.1, 3 * len(parts) - 0.7), ylim=(0.6 - tall, 1.4))
        axis.axis("off")
        for column, part in enumerate(parts):
            axis.text(3 * column, 0.9, part, weight="bold")
        for name, (x, y) in place.items():
            for need in needs[name]:
                others = [n for n in needs[name] if n != need]
                if need in place and not any(need in _before(n, needs) for n in others):
                    _line(axis, place[need], (x, y))
            box = FancyBboxPatch((x, y - 0.28), 2.2, 0.56, boxstyle="round,pad=0.04",
                                 facecolor="#8884", edgecolor="#888", url=f"{name}.html")
            axis.add_patch(box)
            axis.text(x + 0.06, y, name.partition("/")[2], va="center", size=8,
                      url=f"{name}.html")
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True)
    svg = out.getvalue()
    label = f"The {len(found)} notebooks by part, each joined to those read before it"
    said = f'<svg role="img" aria-label="{label}" style="min-width: {225 * len(parts)}px"'
    svg = svg[svg.index("<svg"):].replace(" target=\"_blank\"", "")
    return svg.replace("<svg", said, 1)


def _line(axis, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From the right side of a box to the left of another; within a column, beside it."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    (x, y), (u, v) = start, end
    x += 2.25
    if u < x:  # the same column: out on the right, and back
        u += 2.25
        knots = [(x, y), (x + 0.45, y), (u + 0.45, v), (u, v)]
    else:
        u -= 0.05
        knots = [(x, y), (x + 0.5, y), (u - 0.5, v), (u, v)]
    codes = [Path.MOVETO] + 3 * [Path.CURVE4]
    axis.add_patch(PathPatch(Path(knots, codes), fill=False, edgecolor="#888", alpha=0.7,
                             linewidth=0.9))
