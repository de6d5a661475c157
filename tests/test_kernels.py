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


def compiled(name: str, shape: dict, capability: int):
    """A kernel as it is built for rows of width 512 in bfloat16 on a GPU that is not here."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from alignkit.parts.large_batch import kernels

    kernel, size = getattr(kernels, f"_{name}"), {"D": 512, "WHOLE": True, **shape}
    options = {key: size.pop(key) for key in ("num_warps", "num_stages")}
    kinds = {"a": f"tensordesc<bf16[{size['BM']}, {size['BK']}]>",
             "b": f"tensordesc<bf16[{size['BN']}, {size['BK']}]>", "n": "i32", "m": "i32",
             "item_a": "*i64", "item_b": "*i64", "share": "fp32",
             "weight": "*bf16", **dict.fromkeys(
                 ("row", "in_row", "column", "in_column"), "i32")}
    names = kernel.arg_names
    return compile(ASTSource(
        fn=kernel, signature={x: "constexpr" if x in size else kinds.get(x, "*fp32")
                              for x in names},
        constexprs={(place,): size[x] for place, x in enumerate(names) if x in size}),
        target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.parametrize("name", ["sums", "weights", "sigmoids"])
def test_they_compile_for_large_gpus_and_fit_into_small_ones(name):
    pytest.importorskip("triton")
    from alignkit.parts.large_batch.kernels import ROOM, SHAPES, SMALL

    for capability, shape, room in ((90, SHAPES[name], ROOM), (86, SMALL, 99 * 2**10)):
        assert 0 < compiled(name, shape, capability).metadata.shared <= room


def test_a_gpu_that_cannot_run_them_is_told_and_gets_torchs_operations(monkeypatch):
    """Here there is none, so that the trial fails as it does on a GPU they do not fit."""
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an odd GPU")
    tiles._runs.cache_clear()
    with pytest.warns(UserWarning, match="slower: the kernels do not run on an odd GPU"):
        assert not tiles._runs(torch.device("cpu"), torch.bfloat16, 16)
    tiles._runs.cache_clear()
