"""One thing to play with a notebook, and a still figure where nobody can play."""

from collections.abc import Callable, Sequence

from .frontend import interactive
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
            else a menu.

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

    kinds = {
        name: (
            ipywidgets.SelectionSlider
            if all(isinstance(option, (int, float)) for option in options)
            else ipywidgets.Dropdown
        )
        for name, options in controls.items()
    }
    made = {
        name: kind(options=list(controls[name]), value=values[name], description=name)
        for name, kind in kinds.items()
    }
    for slider in made.values():
        slider.continuous_update = False  # redraw when the handle is let go
    ipywidgets.interact(redraw, **made)


def listen(wave, rate: int, text: str) -> None:
    """Play a sound where somebody can hear it; elsewhere print what it is.

    Args:
        wave: samples in [-1, 1], [t] or [channels, t].
        rate: samples a second.
        text: what is heard, in words.
    """
    seconds = wave.shape[-1] / rate
    print(f"sound, {seconds:.0f} s: {text}")
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
        if values[name] not in options:
            raise ValueError(
                f"start[{name!r}] = {values[name]!r} is none of {list(options)}"
            )
    return values
