"""Products of matrices, as fast as the machine has them."""

import torch
from torch import Tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ [m, n] of [m, k] and [n, k].

    On CPUs in float32, where no gradient is wanted, by the operation that torch.compile
    takes there: it gives the product to oneDNN, `@` gives it to MKL, which is half as
    fast on some CPUs.
    """
    if (a.device.type == b.device.type == "cpu" and a.dtype == b.dtype == torch.float32
            and a.shape[1:] == b.shape[1:] and a.numel() and b.numel()
            and not torch.is_grad_enabled() and torch.backends.mkldnn.is_available()):
        return torch.ops.mkldnn._linear_pointwise(a.contiguous(), b.contiguous(), None,
                                                  "none", [], "")
    return a @ b.T
