"""One process of several: its rows' losses and gradients against those of all rows in one
process, and a training run against the same run in one process. Started by
test_large_batch.py with torch.distributed's variables set."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from alignkit.data import Pairs
from alignkit.parts import (
    DualEncoder, Settings, info_nce, positives_of, sigmoid_loss, unit,
)  # fmt: skip
from alignkit.parts.large_batch import gather_rows, plain, tiled_info_nce, tiled_sigmoid, tiles
from alignkit.training import Budget, fit, seed_all


def multiply_16_bits_here(put=setattr) -> None:
    """Rows of 16 bits take the path that they take on a GPU; the two products that only a
    GPU has are made in float32."""
    put(plain, "_narrow", lambda a: a.element_size() == 2)
    put(plain, "_wide_product", lambda x, b: x.float() @ b.float().T)
    put(tiles, "_add_product", lambda total, weight, x:
        total.add_(weight.to(total.dtype) @ x.to(total.dtype)))


def trained(chunk: int, path: Path | None = None) -> dict[str, torch.Tensor]:
    """The weights after six steps on batches of 17 rows, saved if there is a path."""
    g = torch.Generator().manual_seed(0)
    pairs = Pairs.from_features({f"{m}_features": torch.randn(40, 6, generator=g)
                                 for m in ("image", "text")})
    seed_all(0)
    method = DualEncoder(Settings(width=4, learn_temperature=True), pairs)
    fit(method, pairs, Budget(steps=6, batch_size=17, lr=1e-2, chunk=chunk))
    if path:
        save_file(method.state_dict(), path)
    return method.state_dict()


def main() -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()

    # Uneven last batches: 11, 4, 9 rows; items that stand in several processes.
    counts = [11, 4, 9][:world]
    n, mine = sum(counts), slice(sum(counts[:rank]), sum(counts[:rank + 1]))
    generator = torch.Generator().manual_seed(0)
    a, b = (unit(x) for x in torch.randn(2, n, 8, generator=generator, dtype=torch.float64))
    a[1] = a[n - 1]
    item = torch.randperm(n, generator=generator) // 2

    DENSE = {"info_nce": lambda a, b, s, c, i: info_nce(a, b, s, positives_of(i)),
             "sigmoid": lambda a, b, s, c, i: sigmoid_loss(a, b, s, c, positives_of(i))}
    SPREAD = {
        "info_nce": lambda a, b, s, c, i: tiled_info_nce(a, b, s, i, tile=3),
        "sigmoid": lambda a, b, s, c, i: tiled_sigmoid(a, b, s, c, i, tile=3),
    }
    GATHERED = {name: lambda a, b, s, c, i, dense=dense:
                dense(*(gather_rows(x) for x in (a, b)), s, c, gather_rows(i))
                for name, dense in DENSE.items()}

    def run(loss, a, b, item, scale, dtype):
        inputs = [torch.as_tensor(x).to(dtype).clone().requires_grad_()
                  for x in (a, b, scale, -3.0)]
        value = loss(*inputs, item)
        value.backward()
        return value, [torch.zeros(()) if x.grad is None else x.grad.double() for x in inputs]

    for name, dense in DENSE.items():
        for scale in (5.0, 40.0, 100.0):
            value, whole = run(dense, a, b, item, scale, torch.float64)
            size = max(scale / n ** 0.5, whole[0].norm().item() if name == "sigmoid" else 0)
            for way in (SPREAD, GATHERED):
                for dtype, within in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
                    here, found = run(way[name], a[mine], b[mine], item[mine], scale, dtype)
                    assert abs(here - value) <= 10 * within * (1 + abs(value)), (name, here)
                    for side in (0, 1):  # DDP divides by the number of processes
                        off = (found[side] / world - whole[side][mine]).norm()
                        assert off <= within * size, (name, scale, dtype, off)
                    for number in (2, 3):
                        dist.all_reduce(found[number])
                        off = abs(found[number] / world - whole[number])
                        assert off <= 10 * within * (1 + abs(whole[number])), (name, off)
    for chunk in (0, 2):  # a whole training run: DDP's average, and the cached gradients'
        end, alone = trained(chunk), load_file(Path(sys.argv[1]) / "alone.safetensors")
        for name in alone:
            assert torch.allclose(end[name], alone[name], rtol=1e-4, atol=1e-5), (chunk, name)
    dist.barrier()
    print("agree", flush=True)
    os._exit(0)  # gloo's threads may still run, and then the end of Python aborts


if __name__ == "__main__":
    main()
