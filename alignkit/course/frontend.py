"""Is somebody there to move a slider?"""

import os
import sys


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
