"""What every kernel started from here has in common."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def kernel_for(path: Path | str) -> Iterator[None]:
    """Kernels started inside draw widgets as still figures, and one that does not come
    to its end is told of with the notebook's path.

    Raises:
        RuntimeError: a kernel died, or a cell took longer than its limit.
    """
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    before = os.environ.get("ALIGNKIT_STATIC")
    os.environ["ALIGNKIT_STATIC"] = "1"
    try:
        yield
    except DeadKernelError:
        raise RuntimeError(
            f"{path}: the kernel died while it ran this notebook (out of memory, or a "
            f"library that crashed?)") from None
    except CellTimeoutError as error:
        first = str(error).partition("\n")[0]
        raise RuntimeError(f"{path}: {first}") from None
    finally:
        if before is None:
            del os.environ["ALIGNKIT_STATIC"]
        else:
            os.environ["ALIGNKIT_STATIC"] = before
