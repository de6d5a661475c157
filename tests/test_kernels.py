"""The kernels for GPUs: what they compute, in Triton's interpreter; on a GPU test_gpu.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alignkit.parts.large_batch import tiles

pytestmark = pytest.mark.slow


def test_the_kernels_give_what_torchs_operations_give():
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, str(Path(__file__).parent / "kernels_run.py")],
                          env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True,
                          text=True)
    assert done.stdout == "as plain\n", done.stderr[-2000:]


def test_a_gpu_that_cannot_run_them_is_told_and_gets_torchs_operations(monkeypatch):
    """Here there is none, so that the trial fails as it does on a GPU they do not fit."""
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an odd GPU")
    tiles._runs.cache_clear()
    with pytest.warns(UserWarning, match="slower: the kernels do not run on an odd GPU"):
        assert not tiles._runs(torch.device("cpu"), torch.float32, 16)
    tiles._runs.cache_clear()
