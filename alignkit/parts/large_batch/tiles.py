"""Contrastive losses of batches whose logits [n, n] do not fit in memory.

The logits are made tile by tile, twice: for the sums of each row and column, then for
the gradient, which is ready when the loss is; so nothing but the gradients is kept for
the backward pass. With several processes each keeps its rows of a, and the rows of b
with all that is summed for them travel round a ring. Values and gradients are those of
`parts.info_nce` and `parts.sigmoid_loss` on the rows of all processes.

Sources: the softmax over tiles is that of online softmax (Milakov & Gimelshein 2018);
that contrastive losses need no more memory than a tile is in Cheng et al. 2024 (Inf-CL,
section 4), the sigmoid loss round a ring in Zhai et al. 2023 (section 3.3).
"""

import math
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from alignkit.parts.product import product
from alignkit.parts.large_batch.ring import pass_on, processes, row_counts

TILE = 1536
SPREAD = 60.0  # exp(-60) = 1e-26, which float32 still holds with all its digits


def tiled_info_nce(a: Tensor, b: Tensor, scale: Tensor | float,
                   item: Tensor | None = None, *, tile: int = TILE, group=None) -> Tensor:
    """`info_nce(a, b, scale, positives_of(item))` in the memory of a tile.

    L = 1/(2N) Σ_i [ log Σ_j exp(l_ij) − 1/|P_i| Σ_{j∈P_i} l_ij ] + the same over
    columns, l = scale · a bᵀ over the N rows of all processes; P_i: rows of its item.

    Every process of `group` must call it and gets the same value. The gradient is that
    of the whole loss times the number of processes: DistributedDataParallel takes the
    average over processes.

    Args:
        a, b: unit rows [n, d]; row i of both is a pair. Any floating type; logits and
            sums are float32 at least.
        scale: 1 / temperature, a number or a scalar tensor.
        item: long [n], equal for rows that are right answers to each other, in all
            processes; None: only pairs are.
        tile: rows of a and of b whose logits exist at once.
    Raises:
        ValueError: shapes do not fit, or tile is below 1.
    """
    return _call(_InfoNCE, a, b, scale, 0.0, item, tile, group)


def tiled_sigmoid(a: Tensor, b: Tensor, scale: Tensor | float, bias: Tensor | float,
                  item: Tensor | None = None, *, tile: int = TILE, group=None) -> Tensor:
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
    if tile < 1:
        raise ValueError(f"tile must be at least 1, got {tile}")
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    scale, bias = (x.to(a.device) if isinstance(x, Tensor)
                   else torch.tensor(x, dtype=wide, device=a.device) for x in (scale, bias))
    with torch.autocast(a.device.type, enabled=False):
        return loss.apply(a, b, scale, bias, item, tile, group)


class _Problem:
    """What both losses share: the rows, in tiles, of this process and of the ring."""

    def __init__(self, a, b, scale, item, tile, group):
        self.scale, self.tile, self.group = scale, tile, group
        self.wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype),
                                        torch.float32)
        self.counts = row_counts(len(a), group)
        rank, self.world = processes(group)
        if item is None:
            start = sum(self.counts[:rank])
            item = torch.arange(start, start + len(a), device=a.device)
        self.a, self.b, self.item, self.n = a, b, item.to(a.device), sum(self.counts)

    def tiles(self, *travelling: Tensor) -> Iterator[tuple]:
        """(rows, columns, x, y, l, right, block) of every tile, block after block: the
        slices of this process's rows and of the block's, their values in the wide type,
        l = scale · x yᵀ, the places in l where both are of one item, and the block of
        `travelling`. What is written into a block comes home: `travelling` has it in
        the end.
        """
        block = [self.b, self.item, *travelling]
        for step in range(self.world):
            for rows in _slices(len(self.a), self.tile):
                x = self.a[rows].to(self.wide)
                scaled = self.scale * x
                for columns in _slices(len(block[0]), self.tile):
                    y = block[0][columns].to(self.wide)
                    yield (rows, columns, x, y, product(scaled, y),
                           _same(self.item[rows], block[1][columns]), block[2:])
            block = pass_on(block, self.counts, step, self.group)
        for mine, home in zip(travelling, block[2:], strict=True):
            if mine is not home:
                mine.copy_(home)

    def total(self, value: Tensor) -> Tensor:
        """The sum of `value` over the processes."""
        if self.world > 1:
            dist.all_reduce(value, group=self.group)
        return value


def _same(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Places (in a, in b) of equal items. Only rows of a that have any are compared: in
    most tiles there are few."""
    rows = torch.isin(a, b).nonzero()[:, 0]
    places, columns = (a[rows, None] == b).nonzero(as_tuple=True)
    return rows[places], columns


def _slices(n: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, n, size)]


class _Loss(torch.autograd.Function):
    """Keeps the gradients that `forward` has made and scales them in `backward`."""

    @staticmethod
    def keep(ctx, problem: _Problem, *gradients: Tensor) -> None:
        ctx.save_for_backward(*gradients)
        ctx.world = problem.world

    @staticmethod
    def backward(ctx, gradient: Tensor):
        times = gradient * ctx.world
        found = [times * saved if needs else None for saved, needs
                 in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)]
        return *found, *[None] * (7 - len(found))


class _InfoNCE(_Loss):
    @staticmethod
    def forward(ctx, a, b, scale, bias, item, tile, group) -> Tensor:
        problem = _Problem(a, b, scale, item, tile, group)
        mine, theirs = _sums(a, problem.wide), _sums(b, problem.wide)
        for rows, columns, _, _, logits, right, (sums,) in problem.tiles(theirs):
            own = logits[right]
            top, by_row, tops, by_column = _powers(logits)
            _add(mine[rows], top, by_row.sum(1), own, right[0])
            _add(sums[columns], tops, by_column.sum(0), own, right[1])
        value = _cross_entropies(mine).sum() + _cross_entropies(theirs).sum()
        if any(ctx.needs_input_grad):
            _Loss.keep(ctx, problem, *_info_nce_gradients(problem, mine, theirs))
        return problem.total(value) / (2 * problem.n)


def _sums(x: Tensor, wide: torch.dtype) -> Tensor:
    """[n, 4] for no column yet: a reference not far above the row's largest logit, the
    sum of exp(logit − reference), the sum of the right answers' logits, their number."""
    sums = torch.zeros(len(x), 4, dtype=wide, device=x.device)
    sums[:, 0] = -math.inf
    return sums


def _powers(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """References of the rows and exp(logits − reference), the same of the columns. The
    tile's largest logit serves all where no other is so far below it that its exponential
    would lose digits: half of the exponentials are saved."""
    low, high = logits.aminmax()
    if high - low < SPREAD:
        powers = (logits - high).exp_()
        return high.expand(len(logits)), powers, high.expand(logits.shape[1]), powers
    top, tops = logits.amax(1), logits.amax(0)
    return top, (logits - top[:, None]).exp_(), tops, (logits - tops).exp_()


def _add(sums: Tensor, top: Tensor, powers: Tensor, own: Tensor, right: Tensor) -> None:
    """More columns for the rows of `sums`: their references, their sums of exponentials,
    and the logits of right answers with their rows."""
    reference, total, logits, number = sums.unbind(1)
    larger = torch.maximum(reference, top)
    total.mul_((reference - larger).exp_()).add_(powers * (top - larger).exp())
    reference.copy_(larger)
    logits.index_add_(0, right, own)
    number.index_add_(0, right, torch.ones_like(own))


def _cross_entropies(sums: Tensor) -> Tensor:
    largest, total, own, number = sums.unbind(1)
    return (largest - own / number) + total.log()


def _info_nce_gradients(problem: _Problem, mine: Tensor, theirs: Tensor) -> tuple:
    """Gradients of the loss to a, b and scale. The softmax is exp(l − largest) / sum and
    not exp(l − log sum), which at scale 100 would round to 1e-5."""
    grad_a = torch.zeros_like(problem.a, dtype=problem.wide)
    grad_b = torch.zeros_like(problem.b, dtype=problem.wide)
    share = 0.5 / problem.n
    for rows, columns, x, y, logits, right, (sums, grad) in problem.tiles(theirs, grad_b):
        reference, total, _, number = mine[rows].unbind(1)
        references, totals, _, numbers = sums[columns].unbind(1)
        top, by_row, tops, by_column = _powers(logits)
        weight = by_row * ((top - reference).exp_() * share / total)[:, None]
        weight.addcmul_(by_column, (tops - references).exp_() * share / totals)
        weight[right] -= share / number[right[0]] + share / numbers[right[1]]
        grad_a[rows] += product(weight, y.T)
        grad[columns] += product(weight.T, x.T)
    return _to_inputs(problem, grad_a, grad_b)


def _to_inputs(problem: _Problem, grad_a: Tensor, grad_b: Tensor) -> tuple:
    """From the gradients divided by scale, in the wide type, to those of a, b, scale."""
    grad_scale = torch.linalg.vecdot(grad_a, problem.a.to(problem.wide)).sum()
    return (grad_a.mul_(problem.scale).to(problem.a.dtype),
            grad_b.mul_(problem.scale).to(problem.b.dtype),
            grad_scale.to(problem.scale.dtype))


class _Sigmoid(_Loss):
    @staticmethod
    def forward(ctx, a, b, scale, bias, item, tile, group) -> Tensor:
        problem = _Problem(a, b, scale, item, tile, group)
        wanted = any(ctx.needs_input_grad)
        value = torch.zeros((), dtype=problem.wide, device=a.device)
        grad_bias = torch.zeros_like(value)
        grad_a = torch.zeros_like(a, dtype=problem.wide) if wanted else value
        grad_b = torch.zeros_like(b, dtype=problem.wide) if wanted else b[:, :0]
        for rows, columns, x, y, logits, right, (grad,) in problem.tiles(grad_b):
            logits += bias
            logits[right] *= -1  # now every logit should be low
            value += F.softplus(logits).sum()
            if wanted:
                weight = logits.sigmoid_().div_(problem.n)
                weight[right] *= -1
                grad_bias += weight.sum()
                grad_a[rows] += product(weight, y.T)
                grad[columns] += product(weight.T, x.T)
        if wanted:
            _Loss.keep(ctx, problem, *_to_inputs(problem, grad_a, grad_b),
                       grad_bias.to(bias.dtype))
        return problem.total(value) / problem.n
