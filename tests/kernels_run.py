"""The kernels for GPUs on this CPU, in Triton's interpreter: run by test_kernels.py in a
process of its own, for the interpreter is chosen when Triton is imported."""

import sys
import warnings

import torch
from large_batch_run import multiply_16_bits_here
from torch.testing import assert_close

from alignkit.parts import info_nce, positives_of, sigmoid_loss, unit
from alignkit.parts.large_batch import kernels, plain, tiled_info_nce, tiled_sigmoid, tiles


def rows(n: int, m: int, d: int, kind: torch.dtype) -> tuple:
    g = torch.Generator().manual_seed(n)
    a, b = (unit(torch.randn(k, d, generator=g)).to(kind) for k in (n, m))
    items = (torch.randint(60, (k,), generator=g) for k in (n, m))
    return a, b, *items


def test_a_tile(kind: torch.dtype, n: int, m: int, d: int, scale: float) -> None:
    a, b, *items = rows(n, m, d, kind)
    scale, within = torch.tensor(scale), dict(rtol=1e-5, atol=1e-5)
    x = plain.left(a, scale)
    found = kernels.sums(a, b, scale, *items), plain.sums(x, b, scale, *items)
    for mine, right in zip(*found, strict=True):
        assert_close(mine[:, 0] + mine[:, 1].log(), right[:, 0] + right[:, 1].log(), **within)
        assert_close(mine[:, 2:], right[:, 2:], rtol=1e-5, atol=1e-4)
    sums = [right.index_put((torch.arange(len(right)), torch.tensor(3)), right[:, 3].clamp_min(1))
            for right in found[1]]
    coarse = dict(rtol=2e-3, atol=1e-6) if kind == torch.float16 else dict(rtol=1e-2, atol=1e-4)
    mine, right = (make.weights(rows, b, scale, *items, *(make.factors(s, 1.0) for s in sums))
                   for make, rows in ((kernels, a), (plain, x)))
    assert mine.dtype == kind and mine.shape == (n, m)
    assert_close(mine.float(), right, **coarse)
    bias = torch.tensor(-3.0)
    value, total, weight = kernels.sigmoids(a, b, scale, bias, *items, 1.0)
    right = plain.sigmoids(x, b, scale, bias, *items, 1.0)
    assert_close(value, right[0])
    assert_close(total, right[1], rtol=1e-4, atol=1e-3)
    assert_close(weight.float(), right[2], **coarse)


def test_the_losses() -> None:
    """Whole losses whose tiles the kernels make, against the losses of all logits. The
    sigmoid's weights are up to 1, the softmax's up to 1 / n: float16 holds both."""
    tiles._maker = lambda a: kernels
    multiply_16_bits_here()
    a, b, item, _ = rows(150, 150, 16, torch.float16)
    for scale in (5.0, 100.0):
        for mine, whole in (
                (lambda *x: tiled_info_nce(*x, item, tile=90),
                 lambda *x: info_nce(*x, positives_of(item))),
                (lambda *x: tiled_sigmoid(*x, -scale / 2, tile=90),
                 lambda *x: sigmoid_loss(*x, -scale / 2))):
            found = []
            for loss, kind in ((mine, torch.float16), (whole, torch.float64)):
                inputs = [*(x.to(kind, copy=True).requires_grad_() for x in (a, b)),
                          torch.tensor(scale, requires_grad=True)]
                value = loss(*inputs)
                found.append([value, *torch.autograd.grad(value, inputs)])
            for x, y in zip(*found, strict=True):
                assert (x - y).norm() <= 2e-3 * y.norm() + 1e-6, (scale, x, y)


def test_the_trial() -> None:
    """It finds each kernel that gives something else."""
    torch.cuda.get_device_name = lambda device: "this CPU"
    device, right = torch.device("cpu"), dict(vars(kernels))
    assert tiles._runs(device, torch.float16, 16)
    for name, place in (("sums", 0), ("weights", ...), ("sigmoids", 2)):
        def wrong(*inputs, name=name, place=place):
            found = right[name](*inputs)
            found[place][3, 5 if name != "sums" else 1] += 0.1
            return found

        setattr(kernels, name, wrong)
        tiles._runs.cache_clear()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert not tiles._runs(device, torch.float16, 16)
        assert f"wrong {name}" in str(said[-1].message), said[-1].message
        setattr(kernels, name, right[name])


if __name__ == "__main__":
    for kind, n, m, d in ((torch.float16, 70, 150, 40), (torch.float16, 256, 128, 32),
                          (torch.float16, 300, 200, 72), (torch.float16, 5, 3, 8)):
        for scale in (5.0, 100.0):
            test_a_tile(kind, n, m, d, scale)
    test_the_trial()
    test_the_losses()
    print("as plain", file=sys.stdout)
