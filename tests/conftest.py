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
        import torch

        from alignkit.cli import main

        torch.set_num_threads(os.cpu_count() or 1)  # no worker is there yet; the same bits
        if main(["features"]):
            pytest.exit("the features could not be made: see the line above", 1)
        torch.set_num_threads(1)
