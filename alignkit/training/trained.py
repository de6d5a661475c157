"""What the loop trains: the whole method, or a copy of it in shards.

Both give the same to the loop: `optimizer`, `losses`, `update`, `gather` and `close`.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from alignkit.data import Pairs
from alignkit.parts import Method
from alignkit.parts.large_batch import cached_backward, row_paths
from alignkit.training import distributed
from alignkit.training.budget import Budget


def _adamw(groups: Sequence[dict], budget: Budget) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=budget.lr, betas=budget.betas,
                             weight_decay=budget.weight_decay)


class Whole:
    """The method in one process, or copied to each (DistributedDataParallel)."""

    def __init__(self, method: Method, groups: Sequence[dict], budget: Budget, accelerator):
        self.method, self.budget, self.accelerator = method, budget, accelerator
        self.model, self.optimizer = accelerator.prepare(method), _adamw(groups, budget)
        self.parameters = list(method.parameters())
        self.rows = None

    def see(self, pairs: Pairs) -> None:
        """Learn from the rows of a batch what it has an entry a row of, for `chunk`."""
        if 0 < self.budget.chunk < len(pairs):
            self.rows = row_paths(self.method.train(), pairs)

    def losses(self, batch: dict, progress: float) -> dict[str, Tensor]:
        """The losses of a batch; with `chunk` their gradients are there already."""
        self.cached = 0 < self.budget.chunk < len(batch["item"])
        return self._cached(batch, progress) if self.cached else self.model(batch, progress)

    def _cached(self, batch: dict, progress: float) -> dict[str, Tensor]:
        from accelerate.utils import AutocastKwargs

        several = self.accelerator.num_processes > 1
        if several:
            distributed.same_buffers(self.method)
        scaler = self.accelerator.scaler
        # Before torch 2.11 autocast keeps weights that it has cast in the pass without
        # gradients, and the next pass then gives them none.
        with self.accelerator.autocast(AutocastKwargs(cache_enabled=False)):
            losses = cached_backward(self.method, batch, progress, chunk=self.budget.chunk,
                                     rows=self.rows, **({"scale": scaler.scale} if scaler else {}))
        if several:  # this passed DistributedDataParallel by
            distributed.average_gradients(
                [p for p in self.method.parameters() if p.requires_grad])
        return losses

    def update(self, loss: Tensor) -> None:
        """A step of the optimiser with the gradient of `loss`.

        Plain torch: the same calls through accelerate take half as long as a small step.
        """
        scaler = self.accelerator.scaler  # of fp16, else None
        if not self.cached:
            (scaler.scale(loss) if scaler else loss).backward()
        if self.budget.clip:
            if scaler:
                scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.budget.clip)
        if scaler:
            scaler.step(self.optimizer)
            scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.method.after_step()

    def gather(self) -> None:
        """The weights are in the method."""

    def close(self) -> None:
        """Accelerate leaves its autocast on the method."""
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)


class Sharded:
    """A copy of the method in shards (FSDP2): the blocks of its ModuleLists are units, the
    rest is one; scalars (a learned temperature) stay whole, `fully_shard` takes none.

    The method itself gets the weights when they are asked for, by `gather`. Buffers are
    those of the first process, as with DistributedDataParallel.
    """

    def __init__(self, method: Method, groups: Sequence[dict], budget: Budget, accelerator):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.method, self.budget, self.accelerator = method, budget, accelerator
        self.model = copy.deepcopy(method)
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        scalars = {p for p in self.model.parameters() if p.dim() == 0}
        for module in reversed(list(self.model.modules())):  # inner ones first
            for block in module if isinstance(module, nn.ModuleList) else ():
                if any(p.dim() for p in block.parameters()):
                    fully_shard(block, mesh=mesh, ignored_params=scalars)
        fully_shard(self.model, mesh=mesh, ignored_params=scalars)
        names = {id(p): name for name, p in method.named_parameters()}
        mine = dict(self.model.named_parameters())
        self.optimizer = _adamw([
            {**group, "params": [mine[names[id(p)]] for p in group["params"]]}
            for group in groups], budget)

    def see(self, pairs: Pairs) -> None:
        """Batches are not cut here."""

    def losses(self, batch: dict, progress: float) -> dict[str, Tensor]:
        """The losses of a batch."""
        self.model.train()
        distributed.same_buffers(self.model)
        with self.accelerator.autocast():
            return self.model(batch, progress)

    def update(self, loss: Tensor) -> None:
        """A step of the optimiser with the gradient of `loss`."""
        self.accelerator.backward(loss)
        weights = [p for p in self.model.parameters() if p.requires_grad]
        distributed.average_gradients([p for p in weights if p.dim() == 0])
        if self.budget.clip:
            self._clip([p.grad for p in weights if p.grad is not None])
        self.optimizer.step()
        self.optimizer.zero_grad()
        if getattr(self.model.after_step, "__func__", None) is not Method.after_step:
            self._after_step()

    def _clip(self, gradients: list[Tensor]) -> None:
        norms = [distributed.whole(gradient.norm()) for gradient in gradients]
        norm = torch.stack(norms).norm().item()
        for gradient in gradients if norm > self.budget.clip else ():
            gradient *= self.budget.clip / (norm + 1e-6)

    def _after_step(self) -> None:
        """The method's `after_step` sees whole weights, and may change buffers only."""
        from torch.distributed.fsdp import FSDPModule

        units = [module for module in self.model.modules() if isinstance(module, FSDPModule)]
        for unit in units:
            unit.unshard()
        weights = [p for p in self.model.parameters() if p.dim()]
        before = [p._version for p in weights]
        self.model.after_step()
        if before != [p._version for p in weights]:
            raise ValueError(f"{type(self.method).__name__}.after_step changes weights, and "
                             "with FSDP2 the change would be lost: use DDP")
        for unit in units:
            unit.reshard()

    def gather(self) -> None:
        """The whole weights into the method; every process must call."""
        self.method.load_state_dict({k: distributed.whole(v) for k, v
                                     in self.model.state_dict().items()})

    def close(self) -> None:
        """Nothing was left on the method."""
