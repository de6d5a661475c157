"""One thread a process (two workers share two cores), features before notebooks, quick
tests, and the tests by paper."""

import os

import pytest
from by_paper import ByPaper, is_whole

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported


def pytest_configure(config):
    config.pluginmanager.register(ByPaper())


def pytest_sessionstart(session):
    """A full run fills the feature cache first, with its progress shown: otherwise the
    first notebook of each worker would wait in silence."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    if is_whole(session.config):
        import torch

        from alignkit.cli import main

        torch.set_num_threads(os.cpu_count() or 1)  # no worker is there yet; the same bits
        if main(["features"]):
            pytest.exit("the features could not be made: see the line above", 1)
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def first_step():
    """A step of training: what torch imports at a process's first one (2 s) is no one
    paper's cost."""
    import torch

    from alignkit import Budget, Pairs, fit
    from alignkit.parts import DualEncoder, Settings

    pairs = Pairs.from_features({"image_features": torch.eye(4), "text_features": torch.eye(4)})
    fit(DualEncoder(Settings(), pairs), pairs, Budget(steps=1))


@pytest.fixture(scope="session")
def kornia():
    """Views, edges and homographies of some papers; nor is its import (a second)."""
    import kornia

    return kornia


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """`-m quick`: all but notebooks and what is marked slow."""
    for item in items:
        if item.path.suffix == ".py" and not item.get_closest_marker("slow"):
            item.add_marker("quick")
