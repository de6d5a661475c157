"""A tile of logits on a GPU, in Triton: the logits never leave the multiprocessor.

For rows of 16 bits, multiplied in 16 and summed in 32; those of float32, which have no
fast product without TF32, take torch's operations. What stands for a tile, and the
functions' names, are those of `plain.py`; torch merges what the blocks of a tile have
found, so that nothing depends on their order.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

# (rows, columns) of a tile that is only summed up, of which a few numbers a block are kept,
# and of one whose gradient in the logits is written out: 128 MiB.
SUMMED, WRITTEN = (16384, 32768), (8192, 8192)
GROUP = 16384  # as in `plain`: 32 MiB of sums at width 512
# Of eight tried on an H200 the best for the sums and for the sigmoids. The weights ran with
# the sums' (324 and 273 TFLOP/s in the profiler); which is theirs the trial could not tell,
# for the host's work took as long. Up to 144 KiB of shared memory; SMALL: for GPUs that have
# less (compute capability 8.6, 8.9, 12.0).
SHAPES = {"sums": dict(BM=256, BN=128, BK=64, num_warps=8, num_stages=3),
          "weights": dict(BM=256, BN=128, BK=64, num_warps=8, num_stages=3),
          "sigmoids": dict(BM=128, BN=128, BK=64, num_warps=8, num_stages=4)}
SMALL, ROOM = dict(BM=128, BN=128, BK=64, num_warps=8, num_stages=2), 160 * 2**10
TYPES = torch.float16, torch.bfloat16
SPREAD = tl.constexpr(60.0)  # as in `plain`: so far below a reference digits would be lost


def fits(a: Tensor) -> bool:
    """These rows can be given to the kernels: they move 16 bytes at a time."""
    return (a.is_cuda and a.dtype in TYPES and a.shape[1] * a.element_size() % 16 == 0
            and torch.cuda.get_device_capability(a.device) >= (8, 0))


@triton.jit
def _tile(a, b, scale, n, m, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
          BK: tl.constexpr):
    """This program's place, its rows and columns, and their logits."""
    across = tl.cdiv(m, BN)
    group = tl.program_id(0) // (8 * across)  # eight blocks of rows share columns in L2
    height = min(tl.cdiv(n, BM) - group * 8, 8)
    inner = tl.program_id(0) % (8 * across)
    i, j = group * 8 + inner % height, inner // height
    products = tl.zeros([BM, BN], tl.float32)
    for k in range(0, D, BK):
        products = tl.dot(a.load([i * BM, k]), b.load([j * BN, k]).T, products)
    rows, columns = i * BM + tl.arange(0, BM), j * BN + tl.arange(0, BN)
    return i, j, rows, columns, products * tl.load(scale)


@triton.jit
def _inside(rows, columns, n, m):
    return (rows < n)[:, None] & (columns < m)[None, :]


@triton.jit
def _may_meet(item_a, item_b, rows, columns, n, m):
    """Whether an item of the rows may be one of the columns': their ranges overlap."""
    x, y = tl.load(item_a + tl.minimum(rows, n - 1)), tl.load(item_b + tl.minimum(columns, m - 1))
    return (tl.min(x, 0) <= tl.max(y, 0)) & (tl.min(y, 0) <= tl.max(x, 0))


@triton.jit
def _same(item_a, item_b, rows, columns, n, m):
    """Which logits are of one item, outside the tile none."""
    x, y = tl.load(item_a + tl.minimum(rows, n - 1)), tl.load(item_b + tl.minimum(columns, m - 1))
    return (x[:, None] == y[None, :]) & _inside(rows, columns, n, m)


@triton.jit
def _sums(a, b, item_a, item_b, scale, by_row, by_column, n, m, D: tl.constexpr,
          WHOLE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    i, j, rows, columns, logits = _tile(a, b, scale, n, m, D, BM, BN, BK)
    across, down = tl.cdiv(m, BN), tl.cdiv(n, BM)
    place, places = by_row + j * n + rows, by_column + i * m + columns
    own, number = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    owns, numbers = tl.zeros([BN], tl.float32), tl.zeros([BN], tl.float32)
    if _may_meet(item_a, item_b, rows, columns, n, m):
        same = _same(item_a, item_b, rows, columns, n, m)
        right, one = tl.where(same, logits, 0.0), tl.where(same, 1.0, 0.0)
        own, number, owns, numbers = tl.sum(right, 1), tl.sum(one, 1), tl.sum(right, 0), tl.sum(one, 0)
    tl.store(place + 2 * across * n, own, rows < n)
    tl.store(place + 3 * across * n, number, rows < n)
    tl.store(places + 2 * down * m, owns, columns < m)
    tl.store(places + 3 * down * m, numbers, columns < m)
    low = tl.min(tl.min(logits, 1), 0)
    if not WHOLE:
        logits = tl.where(_inside(rows, columns, n, m), logits, float("-inf"))
    high = tl.max(tl.max(logits, 1), 0)
    if high - low < SPREAD:
        logits = tl.exp(logits - high)
        tl.store(place, tl.zeros([BM], tl.float32) + high, rows < n)
        tl.store(places, tl.zeros([BN], tl.float32) + high, columns < m)
        tl.store(place + across * n, tl.sum(logits, 1), rows < n)
        tl.store(places + down * m, tl.sum(logits, 0), columns < m)
    else:
        top, tops = tl.max(logits, 1), tl.max(logits, 0)
        tl.store(place, top, rows < n)
        tl.store(places, tops, columns < m)
        tl.store(place + across * n, tl.sum(tl.exp(logits - top[:, None]), 1), rows < n)
        tl.store(places + down * m, tl.sum(tl.exp(logits - tops[None, :]), 0), columns < m)


@triton.jit
def _store(weight, value, rows, columns, n, m, WHOLE: tl.constexpr):
    place = weight + rows.to(tl.int64)[:, None] * m + columns[None, :]
    if WHOLE:
        tl.store(place, value.to(weight.dtype.element_ty))
    else:
        tl.store(place, value.to(weight.dtype.element_ty), _inside(rows, columns, n, m))


@triton.jit
def _weights(a, b, item_a, item_b, scale, of_rows, row, in_row, of_columns, column, in_column,
             weight, n, m, D: tl.constexpr, WHOLE: tl.constexpr, BM: tl.constexpr,
             BN: tl.constexpr, BK: tl.constexpr):
    i, j, rows, columns, logits = _tile(a, b, scale, n, m, D, BM, BN, BK)
    r, c = of_rows + rows * row, of_columns + columns * column
    reference = tl.load(r, rows < n, other=0.0)
    factor = tl.load(r + in_row, rows < n, other=0.0)
    references = tl.load(c, columns < m, other=0.0)
    factors = tl.load(c + in_column, columns < m, other=0.0)
    high, low = tl.max(tl.max(logits, 1), 0), tl.min(tl.min(logits, 1), 0)
    if high - low < SPREAD:
        across = factor * tl.exp(tl.minimum(high - reference, SPREAD))
        down = factors * tl.exp(tl.minimum(high - references, SPREAD))
        value = tl.exp(logits - high) * (across[:, None] + down[None, :])
    else:
        value = tl.exp(logits - reference[:, None]) * factor[:, None]
        value += tl.exp(logits - references[None, :]) * factors[None, :]
    if _may_meet(item_a, item_b, rows, columns, n, m):
        targets = tl.load(r + 2 * in_row, rows < n, other=0.0)[:, None] + tl.load(
            c + 2 * in_column, columns < m, other=0.0)[None, :]
        value -= tl.where(_same(item_a, item_b, rows, columns, n, m), targets, 0.0)
    _store(weight, value, rows, columns, n, m, WHOLE)


@triton.jit
def _sigmoids(a, b, item_a, item_b, scale, bias, value, total, weight, share, n, m,
              D: tl.constexpr, WHOLE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
              BK: tl.constexpr):
    i, j, rows, columns, logits = _tile(a, b, scale, n, m, D, BM, BN, BK)
    logits += tl.load(bias)
    some = _may_meet(item_a, item_b, rows, columns, n, m)
    if some:
        logits = tl.where(_same(item_a, item_b, rows, columns, n, m), -logits, logits)
    small = tl.exp(-tl.abs(logits))
    loss = tl.maximum(logits, 0.0) + tl.log(1 + small)
    if not WHOLE:
        loss = tl.where(_inside(rows, columns, n, m), loss, 0.0)
    tl.store(value + tl.program_id(0), tl.sum(tl.sum(loss, 1), 0))
    found = share * tl.where(logits >= 0, 1.0, small) / (1 + small)
    if some:
        found = tl.where(_same(item_a, item_b, rows, columns, n, m), -found, found)
    if not WHOLE:
        found = tl.where(_inside(rows, columns, n, m), found, 0.0)
    tl.store(total + tl.program_id(0), tl.sum(tl.sum(found, 1), 0))
    _store(weight, found, rows, columns, n, m, WHOLE)


class _Launch:
    """A kernel's shape on the device of these rows, the blocks of their tile, and its run."""

    def __init__(self, name: str, a: Tensor, b: Tensor):
        self.a, self.b, self.shape = a, b, SHAPES[name] if _room(a.device) >= ROOM else SMALL
        self.down = triton.cdiv(len(a), self.shape["BM"])
        self.across = triton.cdiv(len(b), self.shape["BN"])

    def __call__(self, kernel, *rest) -> None:
        a, b, shape = self.a.contiguous(), self.b.contiguous(), self.shape
        whole = len(a) % shape["BM"] == len(b) % shape["BN"] == 0
        with torch.cuda.device_of(a):
            kernel[(self.down * self.across,)](
                TensorDescriptor.from_tensor(a, [shape["BM"], shape["BK"]]),
                TensorDescriptor.from_tensor(b, [shape["BN"], shape["BK"]]),
                *rest, len(a), len(b), a.shape[1], WHOLE=whole, **shape)


@lru_cache
def _room(device: torch.device) -> int:
    """Bytes of shared memory that a block may have; Triton's interpreter has no bound."""
    if device.type == "cpu":
        return ROOM
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def tile_of(a: Tensor, written: bool) -> tuple[int, int]:
    """As `plain.tile_of`."""
    return WRITTEN if written else SUMMED


def left(a: Tensor, scale: Tensor) -> Tensor:
    """a: the kernels multiply by the scale."""
    return a


def sums(a: Tensor, b: Tensor, scale: Tensor, item_a: Tensor, item_b: Tensor) -> tuple:
    """As `plain.sums`."""
    run = _Launch("sums", a, b)
    by_row = torch.empty(4, run.across, len(a), device=a.device)
    by_column = torch.empty(4, run.down, len(b), device=a.device)
    run(_sums, item_a, item_b, scale.float(), by_row, by_column)
    return _merged(by_row), _merged(by_column)


def _merged(parts: Tensor) -> Tensor:
    """[n, 4] of [4, blocks, n]."""
    top = parts[0].amax(0)
    total = parts[1].mul_(parts[0].sub_(top).exp_()).sum(0)
    return torch.stack([top, total, *parts[2:].sum(1)], dim=1)


def factors(found: Tensor, share: float) -> Tensor:
    """[n, 3]: reference, share / sum of powers, share / number of right answers; the numbers
    of a kind lie together, as the kernel reads them."""
    reference, total, _, number = found.unbind(1)
    return torch.stack([reference, share / total, share / number]).T


def weights(a: Tensor, b: Tensor, scale: Tensor, item_a: Tensor, item_b: Tensor,
            by_row: Tensor, by_column: Tensor) -> Tensor:
    """As `plain.weights`."""
    weight = torch.empty(len(a), len(b), dtype=a.dtype, device=a.device)
    _Launch("weights", a, b)(_weights, item_a, item_b, scale.float(), by_row, *by_row.stride(),
                             by_column, *by_column.stride(), weight)
    return weight


def sigmoids(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, item_a: Tensor,
             item_b: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `plain.sigmoids`."""
    run = _Launch("sigmoids", a, b)
    weight = torch.empty(len(a), len(b), dtype=a.dtype, device=a.device)
    value, total = torch.empty(2, run.down * run.across, device=a.device)
    run(_sigmoids, item_a, item_b, scale.float(), bias.float(), value, total, weight, share)
    return value.sum(), total.sum(), weight
