"""Several processes, joined by accelerate: whole copies (DDP) or shards (FSDP2).

With FSDP2 (`accelerate launch --use_fsdp --fsdp_version 2`) weights, gradients and AdamW's
averages are in shards; each process also holds one whole copy of the weights, on which it
validates. Of accelerate's FSDP settings only these two are read. It needs torch 2.7.

Mixed precision is `Budget.precision`, not accelerate's `--mixed_precision`.
"""

import atexit
import os
import time
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alignkit.training.budget import Budget

# The others wait for as long as one process makes the features or measures alone.
PATIENCE = timedelta(hours=6)


def accelerator(precision: str = "no"):
    """A new `accelerate.Accelerator`, which joins the processes if there are several.

    Raises ValueError: fp16 without a GPU, or gradient accumulation by accelerate.
    """
    from accelerate import (
        Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs,
    )  # fmt: skip
    from accelerate.state import AcceleratorState
    from accelerate.utils import patch_environment

    if os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") != "1":
        raise ValueError("gradient accumulation changes a contrastive loss, whose rows "
                         "would meet fewer others: leave it at 1 and give chunk=… for the "
                         "exact gradient of a large batch")
    # A notebook may train in float32 and then in bfloat16: the shared state would object.
    AcceleratorState._reset_state(reset_partial_state=False)
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True),
                InitProcessGroupKwargs(timeout=PATIENCE)]
    with patch_environment(accelerate_use_fsdp="false"):  # `trained.Sharded` does it
        # Without cpu=True accelerate joins no processes where there is no accelerator.
        made = Accelerator(mixed_precision=precision, kwargs_handlers=handlers,
                           cpu=not torch.accelerator.is_available())
    atexit.unregister(leave)
    atexit.register(leave)
    if precision == "fp16" and made.device.type == "cpu":
        raise ValueError("precision 'fp16' needs a GPU: take 'bf16' or 'no' on a CPU")
    return made


def leave() -> None:
    """Leave the process group, at the program's end.

    A thread of gloo may still be dropping its last tensor, for which it needs Python's lock:
    where Python is already ending, that aborts the process and torchrun calls the run failed.
    Destroying the group does not wait for it (a DDP model's reducer keeps the group alive)."""
    if dist.is_available() and dist.is_initialized():
        time.sleep(0.2)  # gives the lock away
        dist.destroy_process_group()


def wants_shards(accelerator, budget: Budget) -> bool:
    """Whether FSDP2 was asked for. Raises ValueError for FSDP 1, and for what does not go
    with FSDP2: fp16 and `chunk`."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1")
    if not asked or accelerator.num_processes == 1:
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError("FSDP is used in its second version: add --fsdp_version 2")
    if budget.precision == "fp16":
        raise ValueError("precision 'fp16' does not go with FSDP2: take 'bf16'")
    if budget.chunk:
        raise ValueError("chunk does not go with FSDP2, whose weights are whole in a forward "
                         "pass only: use DDP, or chunk=0")
    return True


def whole(x: Tensor) -> Tensor:
    """x, or all of it if this process holds a shard (every process must call)."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def as_shard(x: Tensor, like: Tensor) -> Tensor:
    """This process's shard of x where `like`, of the same shape, is in shards, else x."""
    if not hasattr(like, "full_tensor") or x.shape != like.shape:
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x.to(like.device), like.device_mesh, like.placements)


def average_gradients(parameters: Sequence[Tensor]) -> None:
    """The mean over processes of gradients that no wrapper averages."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()


def same_buffers(model: nn.Module) -> None:
    """The first process's buffers for all, as DistributedDataParallel does it."""
    for buffer in model.buffers():
        dist.broadcast(buffer, 0)


def all_say(message: str | None, accelerator) -> list[str]:
    """The messages of all processes, the same list for each; a number travels first,
    because nearly always there is none."""
    if accelerator.num_processes == 1:
        return [message] if message else []
    count = torch.tensor(int(message is not None), device=accelerator.device)
    dist.all_reduce(count)
    if not count:
        return []
    said = [None] * accelerator.num_processes
    dist.all_gather_object(said, message)
    return [message for message in said if message]


def of_first(value, accelerator):
    """The first process's value for all: figures may differ in their last bits."""
    if accelerator.num_processes == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]
