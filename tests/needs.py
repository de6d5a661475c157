"""Tests of an optional asset run where it can be had and say why where it cannot."""

import os
from pathlib import Path

import pytest

from alignkit.data.fetch import FetchError, asset


def needs_asset(name: str) -> Path:
    """Folder of an asset, fetched if it is missing; the test is skipped, with what to
    install or bring, where no source serves."""
    try:
        return asset(name)
    except FetchError as error:
        pytest.skip(str(error))


def examples(n: int) -> int:
    """How many examples a fuzz test draws: n, or as many as the variable ALIGNKIT_FUZZ says
    (`ALIGNKIT_FUZZ=10000 python -m pytest -k fuzz_name`), each kind alike."""
    return int(os.environ.get("ALIGNKIT_FUZZ", n))
