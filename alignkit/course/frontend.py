"""Is somebody there to move a slider, and how is text shown to them?"""

import os
import sys
import textwrap

WIDTH = 78  # columns of a printed line: front ends break longer ones inside words
WORDS = "<style>.jp-OutputArea-output pre {word-break: normal !important; " \
        "overflow-wrap: anywhere !important}</style>"


def kernel():
    """The running IPython shell, None in plain Python."""
    module = sys.modules.get("IPython")
    return module.get_ipython() if module else None


def interactive() -> bool:
    """Whether a front end with a person is attached to this kernel.

    Positive marks only, so that every executor (nbval, papermill, nbclient,
    nbconvert) counts as static without being told: a Jupyter server puts the
    session's name into its kernels' environment, Colab has its own package loaded,
    and VS Code puts a name into the kernel. ALIGNKIT_STATIC=1 says no in any case
    (needed only where an executor is started from inside a live notebook).
    """
    shell = kernel()
    if shell is None or os.environ.get("ALIGNKIT_STATIC"):
        return False
    return (
        "JPY_SESSION_NAME" in os.environ
        or "google.colab" in sys.modules
        or "__vsc_ipynb_file__" in shell.user_ns
    )


def fold(text: str, width: int = WIDTH) -> str:
    """The text in lines of at most `width` columns, broken between words alone.

    A line that goes on is set in below its beginning, so that columns stay readable.
    """
    lines = []
    for line in text.split("\n"):
        start = line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(
            line, width, initial_indent="", subsequent_indent=f"{start}    ",
            break_long_words=False, break_on_hyphens=False, drop_whitespace=True,
            replace_whitespace=False,
        ) or [""]  # fmt: skip
    return "\n".join(lines)


def break_between_words() -> None:
    """Have JupyterLab break long printed lines between words, in this notebook.

    Its own style, `word-break: break-all`, breaks them anywhere.
    """
    if interactive():
        from IPython.display import publish_display_data

        publish_display_data({"text/html": WORDS})
