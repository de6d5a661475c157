"""One thing to play with a notebook, and a still figure where nobody can play."""

from collections.abc import Callable, Sequence
from numbers import Real

from .frontend import fold, interactive
from .plots import show


def explore(
    draw: Callable, alt: str, /, start: dict | None = None, **controls: Sequence
) -> None:
    """Draw a figure that follows sliders and menus.

    In JupyterLab, Colab and VS Code: a live widget. Under nbval, papermill and
    nbclient, and whenever ALIGNKIT_STATIC is set: the figure once, as a PNG with
    alt text, at the starting values; no widget state reaches the file.

    Args:
        draw: a function of the controls' names that returns a figure.
        alt: alt text; the values of the controls are added to it.
        start: a starting value for some controls (default: the first value).
        controls: name = the list of its values. Numbers become a slider, anything
            else a menu; a value may be of any kind, a pair or an array too.

    Example:
        explore(draw, "similarity of pictures and names",
                start={"temperature": 0.1}, temperature=[0.02, 0.05, 0.1, 0.5])
    """
    values = _start(controls, start or {})

    def redraw(**chosen) -> None:
        setting = ", ".join(f"{name} = {value}" for name, value in chosen.items())
        show(draw(**chosen), f"{alt} ({setting})")

    if not interactive():
        redraw(**values)
        return
    import ipywidgets

    def control(name: str, options: list):
        numbers = all(_is_number(option) for option in options)
        kind = ipywidgets.SelectionSlider if numbers else ipywidgets.Dropdown
        return kind(
            # The places stand for the values: ipywidgets would take a pair for a label
            # and its value, and cannot compare arrays.
            options=[(_label(option), place) for place, option in enumerate(options)],
            value=_place(values[name], options),
            description=name,
            style={"description_width": "initial"},  # else a long name is cut
            layout={"width": "min(100%, 32em)"},
            **({"continuous_update": False} if numbers else {}),  # when it is let go
        )

    every = {name: list(options) for name, options in controls.items()}
    ipywidgets.interact(
        lambda **places: redraw(**{name: every[name][k] for name, k in places.items()}),
        **{name: control(name, options) for name, options in every.items()},
    )


def _is_number(option) -> bool:
    return isinstance(option, Real) and not isinstance(option, bool)


def _label(option) -> str:
    """A value on one short line."""
    text = " ".join(str(option).split())
    return text if len(text) <= 60 else f"{text[:59]}…"


def listen(wave, rate: int, text: str) -> None:
    """Play a sound where somebody can hear it; elsewhere print what it is.

    Args:
        wave: samples in [-1, 1], [t] or [channels, t].
        rate: samples a second.
        text: what is heard, in words.
    """
    seconds = wave.shape[-1] / rate
    print(fold(f"sound, {seconds:.0f} s: {text}"))
    if interactive():
        from IPython.display import Audio, display

        display(Audio(wave, rate=rate))


def _start(controls: dict[str, Sequence], start: dict) -> dict:
    """The starting value of every control.

    Raises:
        ValueError: no control, an empty one, or a start that is not among its values.
    """
    if not controls:
        raise ValueError("explore needs a control, such as temperature=[0.05, 0.1]")
    unknown = sorted(set(start) - set(controls))
    if unknown:
        raise ValueError(f"start names {unknown}, controls are {sorted(controls)}")
    values = {}
    for name, options in controls.items():
        if len(options) == 0:
            raise ValueError(f"control {name} has no values")
        values[name] = start.get(name, options[0])
        _place(values[name], list(options), name)
    return values


def _place(value, options: list, name: str = "") -> int:
    """Where the value stands among the options; itself, or else its equal.

    Raises:
        ValueError: it is none of them.
    """
    for same in (lambda a, b: a is b, _equal):
        for place, option in enumerate(options):
            if same(value, option):
                return place
    raise ValueError(f"start[{name!r}] = {value!r} is none of {options}")


def _equal(a, b) -> bool:
    """Arrays and tensors compare by element, and only with the same shape."""
    try:
        if hasattr(a, "shape") or hasattr(b, "shape"):
            return a.shape == b.shape and bool((a == b).all())
        return bool(a == b)
    except Exception:  # what cannot be compared is not equal
        return False
