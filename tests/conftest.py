"""One thread a process (two workers share two cores), and features before notebooks."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported


def pytest_sessionstart(session):
    """A full run fills the feature cache first, with its progress shown: otherwise the
    first notebook of each worker would wait in silence."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    if session.config.args_source.name == "TESTPATHS":
        from alignkit.cli import main

        if main(["features"]):
            pytest.exit("the features could not be made: see the line above", 1)
