"""Contrastive losses of batches whose logits [n, n] do not fit in memory.

The logits are made tile by tile, twice: for the sums of each row and column, then, in the
backward pass, for the gradient; nothing but the rows and those sums is kept for it. (The
sigmoid loss needs no sums: its gradient is ready when the loss is.) With several processes
each keeps its rows of a, and the rows of b with all that is summed for them travel round a
ring. Values and gradients are those of `parts.info_nce` and `parts.sigmoid_loss` on the
rows of all processes. A tile is made by `plain` or, on a GPU, by `kernels`.

Sources: the softmax over tiles is that of online softmax (Milakov & Gimelshein 2018);
that contrastive losses need no more memory than a tile is in Cheng et al. 2024 (Inf-CL,
section 4), the sigmoid loss round a ring in Zhai et al. 2023 (section 3.3).
"""

import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from alignkit.parts.large_batch import plain
from alignkit.parts.product import product
from alignkit.parts.large_batch.ring import pass_on, processes, row_counts


def tiled_info_nce(a: Tensor, b: Tensor, scale: Tensor | float,
                   item: Tensor | None = None, *, tile: int | None = None, group=None) -> Tensor:
    """`info_nce(a, b, scale, positives_of(item))` in the memory of a tile.

    L = 1/(2N) Σ_i [ log Σ_j exp(l_ij) − 1/|P_i| Σ_{j∈P_i} l_ij ] + the same over
    columns, l = scale · a bᵀ over the N rows of all processes; P_i: rows of its item.

    Every process of `group` must call it and gets the same value. The gradient is that
    of the whole loss times the number of processes: DistributedDataParallel takes the
    average over processes.

    Args:
        a, b: unit rows [n, d]; row i of both is a pair. Any floating type; logits and
            sums are float32 at least. On a GPU rows of 16 bits are multiplied in 16 bits.
        scale: 1 / temperature, a number or a scalar tensor.
        item: long [n], equal for rows that are right answers to each other, in all
            processes; None: only pairs are.
        tile: rows of a and of b whose logits exist at once; None: by the device.
    Raises:
        ValueError: shapes do not fit, or tile is below 1.
    """
    return _call(_InfoNCE, a, b, scale, 0.0, item, tile, group)


def tiled_sigmoid(a: Tensor, b: Tensor, scale: Tensor | float, bias: Tensor | float,
                  item: Tensor | None = None, *, tile: int | None = None, group=None) -> Tensor:
    """`sigmoid_loss(a, b, scale, bias, positives_of(item))` in the memory of a tile.

    L = −1/N Σ_ij log σ( sign_ij · (scale · a_i·b_j + bias) ). Arguments, errors and what
    holds for several processes: as for `tiled_info_nce`.
    """
    return _call(_Sigmoid, a, b, scale, bias, item, tile, group)


def _call(loss, a, b, scale, bias, item, tile, group) -> Tensor:
    if a.dim() != 2 or a.shape != b.shape:
        raise ValueError(f"a and b must be paired rows [n, d], got {tuple(a.shape)} and "
                         f"{tuple(b.shape)}")
    if item is not None and (item.shape != a.shape[:1] or item.is_floating_point()):
        raise ValueError(f"item must be whole numbers [{len(a)}], got "
                         f"{tuple(item.shape)} of {item.dtype}")
    if tile is not None and tile < 1:
        raise ValueError(f"tile must be at least 1, got {tile}")
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    if a.dtype != b.dtype:
        a, b = a.to(wide), b.to(wide)
    scale, bias = (x.to(a.device) if isinstance(x, Tensor)
                   else torch.tensor(x, dtype=wide, device=a.device) for x in (scale, bias))
    with torch.autocast(a.device.type, enabled=False):
        return loss.apply(a, b, scale, bias, item, tile, group)


class _Problem:
    """What both losses share: the rows of this process and those that go round the ring,
    and the module whose functions make a tile."""

    def __init__(self, a, b, scale, item, tile, group):
        self.scale, self.tile, self.group = scale, tile, group
        self.wide = torch.promote_types(a.dtype, torch.float32)
        self.counts = row_counts(len(a), group)
        rank, self.world = processes(group)
        if item is None:
            start = sum(self.counts[:rank])
            item = torch.arange(start, start + len(a), device=a.device)
        self.a, self.b, self.item, self.n = a, b, item.to(a.device), sum(self.counts)
        self.make = _maker(a)

    def lift(self, n: int) -> float:
        """What weights of 1 / n at most are multiplied by: in float16, which holds nothing
        below 6e-8 and nothing above 65,504, the largest are brought near 2¹⁴."""
        return 2.0 ** (13 + n.bit_length()) if self.a.dtype == torch.float16 else 1.0

    def blocks(self, *travelling: Tensor) -> Iterator[tuple]:
        """(b, item, their part of `travelling`) of one process after another. What is
        written into a block comes home: `travelling` has it in the end."""
        block = [self.b, self.item, *travelling]
        for step in range(self.world):
            yield block[0], block[1], block[2:]
            block = pass_on(block, self.counts, step, self.group)
        for mine, home in zip(travelling, block[2:], strict=True):
            if mine is not home:
                mine.copy_(home)

    def strips(self, columns: range, written: bool) -> Iterator[tuple]:
        """(rows, the prepared rows of a, the slices of `columns`) of every strip of tiles,
        which are only summed up or whose weights are `written`."""
        height, width = ((self.tile, self.tile) if self.tile
                         else self.make.tile_of(self.a, written))
        for rows in _slices(range(len(self.a)), height):
            yield rows, self.make.left(self.a[rows], self.scale), _slices(columns, width)

    def gradients(self, weigh: Callable, *travelling: Tensor, times: Tensor | float) -> tuple:
        """Gradients of a, b and scale of a loss whose gradient in the logits of a tile is
        `times` the weights that `weigh(rows, columns, x, b, item, *travelling)` gives.

        Rows of 16 bits get theirs by groups of columns, each summed in float32, so that
        the memory of these sums does not depend on the number of rows.
        """
        grad_a, grad_scale = torch.zeros_like(self.a), self.scale.new_zeros((), dtype=self.wide)
        home = torch.zeros_like(self.b, dtype=self.wide if self.world > 1 else self.b.dtype)
        times = torch.as_tensor(times, dtype=self.wide, device=self.a.device)
        for b, item, (*known, grad_b) in self.blocks(*travelling, home):
            for group in _slices(range(len(b)), self.make.GROUP):
                sum_b = _summed(grad_b[group], self.wide)
                for rows, x, places in self.strips(range(len(b))[group], True):
                    sum_a = _summed(grad_a[rows], self.wide)
                    for columns in places:
                        weight = weigh(rows, columns, x, b, item, *known)
                        _add_product(sum_a, weight, b[columns])
                        here = slice(columns.start - group.start, columns.stop - group.start)
                        _add_product(sum_b[here], weight.T, self.a[rows])
                        del weight  # before the next takes as much
                    if grad_a.dtype != self.wide:
                        grad_scale += (sum_a * self.a[rows]).sum() * times
                        grad_a[rows] += sum_a.mul_(self.scale).mul_(times)
                if grad_b.dtype != self.wide:
                    grad_b[group] += sum_b.mul_(self.scale).mul_(times)
        if grad_a.dtype == self.wide:
            grad_scale = torch.linalg.vecdot(grad_a, self.a).sum() * times
            grad_a.mul_(self.scale).mul_(times)
        if home.dtype == self.wide:
            home.mul_(self.scale).mul_(times)
        return grad_a, home.to(self.b.dtype), grad_scale.to(self.scale.dtype)

    def total(self, value: Tensor) -> Tensor:
        """The sum of `value` over the processes."""
        if self.world > 1:
            dist.all_reduce(value, group=self.group)
        return value


def _maker(a: Tensor) -> ModuleType:
    """`kernels` on a GPU that runs them, else `plain`."""
    if not (a.is_cuda and find_spec("triton")):
        return plain
    from alignkit.parts.large_batch import kernels

    return kernels if kernels.fits(a) and _runs(a.device, a.dtype, a.shape[1]) else plain


@lru_cache
def _runs(device: torch.device, kind: torch.dtype, width: int) -> bool:
    """Whether each kernel, tried once on a few rows, gives what `plain` gives: compilers
    and GPUs are many."""
    from alignkit.parts.large_batch import kernels

    g = torch.Generator().manual_seed(0)
    # Whole blocks, which are built for themselves: those of most batches are ready then.
    a, b = (F.normalize(torch.randn(n, width, generator=g)).to(device, kind) for n in (256, 512))
    scale = torch.tensor(20.0, device=device)
    items = [torch.arange(len(x), device=device) % 60 for x in (a, b)]
    try:
        right = _trial(plain, a, b, scale, items)
        for name, mine in _trial(kernels, a, b, scale, items).items():
            torch.testing.assert_close(mine, right[name], rtol=1e-2, atol=1e-3,
                                       check_dtype=False,
                                       msg=lambda said: f"wrong {name}: {said}")
    except Exception as error:  # the compiler's own kinds differ by version
        warnings.warn(f"large batches go by torch's operations, which are slower: the kernels "
                      f"do not run on {torch.cuda.get_device_name(device)} "
                      f"({' '.join(repr(error).split())[:300]})")
        return False
    return True


def _trial(make: ModuleType, a, b, scale, items) -> dict[str, Tensor | tuple]:
    """All that a module makes of one tile."""
    x = make.left(a, scale)
    found = make.sums(x, b, scale, *items)
    known = [make.factors(sums, 1.0) for sums in found]
    return {"sums": [(s[:, 0] + s[:, 1].log(), *s[:, 2:].T) for s in found],
            "weights": make.weights(x, b, scale, *items, *known),
            "sigmoids": make.sigmoids(x, b, scale, -scale / 2, *items, 1.0)}


def _slices(places: range, size: int) -> list[slice]:
    return [slice(start, min(start + size, places.stop))
            for start in range(places.start, places.stop, size)]


def _summed(gradient: Tensor, wide: torch.dtype) -> Tensor:
    """The place itself, or one of zeros where its type is too narrow to add up in."""
    return gradient if gradient.dtype == wide else torch.zeros_like(gradient, dtype=wide)


def _add_product(total: Tensor, weight: Tensor, x: Tensor) -> None:
    """total += weight @ x, added up in the type of `total`."""
    if weight.dtype != total.dtype:
        torch.addmm(total, weight, x, total.dtype, out=total)
    else:
        total += product(weight, x.to(total.dtype).T)


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, scale, bias, item, tile, group) -> Tensor:
        problem = _Problem(a, b, scale, item, tile, group)
        mine, theirs = (plain.nothing(len(x), problem.wide, x.device) for x in (a, b))
        for block, items, (sums,) in problem.blocks(theirs):
            for rows, x, places in problem.strips(range(len(block)), False):
                for columns in places:
                    by_row, by_column = problem.make.sums(
                        x, block[columns], scale, problem.item[rows], items[columns])
                    plain.merge(mine[rows], by_row)
                    plain.merge(sums[columns], by_column)
        ctx.save_for_backward(a, b, scale, problem.item, mine, theirs)
        ctx.tile, ctx.group = tile, group
        value = _cross_entropies(mine).sum() + _cross_entropies(theirs).sum()
        return problem.total(value) / (2 * problem.n)

    @staticmethod
    @torch.no_grad()
    def backward(ctx, gradient: Tensor):
        a, b, scale, item, mine, theirs = ctx.saved_tensors
        problem = _Problem(a, b, scale, item, ctx.tile, ctx.group)
        lift = problem.lift(problem.n)
        mine, theirs = (problem.make.factors(x, 0.5 / problem.n * lift) for x in (mine, theirs))

        def weigh(rows, columns, x, block, items, known):
            return problem.make.weights(x, block[columns], scale, item[rows], items[columns],
                                        mine[rows], known[columns])

        with torch.autocast(a.device.type, enabled=False):
            found = problem.gradients(weigh, theirs, times=gradient * problem.world / lift)
        return *found, *[None] * 4


def _cross_entropies(sums: Tensor) -> Tensor:
    largest, total, own, number = sums.unbind(1)
    return (largest - own / number) + total.log()


class _Sigmoid(torch.autograd.Function):
    """Keeps the gradients that `forward` has made but for 1 / N, which `backward` adds:
    in 16 bits they would else be too small for a large batch. So its weights are up to 1,
    those of the softmax up to 1 / N, and each loss has a lift of its own."""

    @staticmethod
    def forward(ctx, a, b, scale, bias, item, tile, group) -> Tensor:
        problem = _Problem(a, b, scale, item, tile, group)
        value, grad_bias = torch.zeros(2, dtype=problem.wide, device=a.device)
        lift = problem.lift(1)

        def weigh(rows, columns, x, block, items):
            found, slope, weight = problem.make.sigmoids(
                x, block[columns], scale, bias, problem.item[rows], items[columns], lift)
            value.add_(found)
            grad_bias.add_(slope / lift)
            return weight

        gradients = problem.gradients(weigh, times=1 / lift)
        ctx.save_for_backward(*gradients, grad_bias.to(bias.dtype))
        ctx.times = problem.world / problem.n
        return problem.total(value) / problem.n

    @staticmethod
    def backward(ctx, gradient: Tensor):
        times = gradient * ctx.times
        return *(times * saved for saved in ctx.saved_tensors), None, None, None
