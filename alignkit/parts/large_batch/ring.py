"""Rows of several processes: gathered with their gradient, or passed round a ring."""

import torch
import torch.distributed as dist
from torch import Tensor


def processes(group=None) -> tuple[int, int]:
    """(rank, number of processes) of `group`; (0, 1) where nothing is distributed."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def row_counts(n: int, group=None) -> list[int]:
    """How many rows each process holds, `n` being this one's."""
    rank, world = processes(group)
    if world == 1:
        return [n]
    device = torch.device("cuda") if dist.get_backend(group) == "nccl" else "cpu"
    counts = torch.zeros(world, dtype=torch.long, device=device)
    counts[rank] = n
    dist.all_reduce(counts, group=group)
    return counts.tolist()


def pass_on(block: list[Tensor], counts: list[int], step: int, group=None) -> list[Tensor]:
    """This process's block goes to the process before it, the next one's comes.

    After `step` passes process r holds what began at process r + step, so after as many
    passes as there are processes every block is at home again.

    Args:
        block: tensors [rows, …] of one process's rows.
        counts: `row_counts`, because processes may hold different numbers of rows.
    """
    rank, world = processes(group)
    if world == 1:
        return block
    rows = counts[(rank + step + 1) % world]
    coming = [torch.empty(rows, *x.shape[1:], dtype=x.dtype, device=x.device)
              for x in block]
    before, after = ((rank + change) % world for change in (-1, 1))
    if group is not None:
        before, after = (dist.get_global_rank(group, r) for r in (before, after))
    moves = [dist.P2POp(dist.isend, x.contiguous(), before, group) for x in block]
    moves += [dist.P2POp(dist.irecv, x, after, group) for x in coming]
    for move in dist.batch_isend_irecv(moves):
        move.wait()
    return coming


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group) -> Tensor:
        rank, _ = processes(group)
        counts = row_counts(len(x), group)
        ctx.group, ctx.rows, ctx.before = group, len(x), sum(counts[:rank])
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[:len(x)] = x
        everyone = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(everyone, padded, group=group)
        return torch.cat([rows[:n] for rows, n in zip(everyone, counts, strict=True)])

    @staticmethod
    def backward(ctx, gradient: Tensor):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient[ctx.before:ctx.before + ctx.rows], None


def gather_rows(x: Tensor, group=None) -> Tensor:
    """The rows [N, …] of all processes, in their order, from this one's x [n, …].

    The gradient comes back from all processes and is summed. If each of them computes
    the same loss of the gathered rows, the average over processes of the parameters'
    gradients (what DistributedDataParallel takes) is the gradient of that loss in a
    single process. Processes may hold different numbers of rows. Without several
    processes it is x itself.
    """
    return x if processes(group)[1] == 1 else _Gather.apply(x, group)
