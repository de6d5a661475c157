"""Products of matrices, as fast as the machine has them."""

import torch
from torch import Tensor
from torch.nn import functional as F


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of [m, k] and [k, n].

    On CPUs in float32 as a convolution of width 1, which is the same sum: torch gives
    convolutions to oneDNN and products to MKL, and MKL is half as fast on some CPUs.
    """
    if (a.device.type == "cpu" and a.dtype == b.dtype == torch.float32
            and torch.backends.mkldnn.is_available()):
        return F.conv1d(b.contiguous()[None], a.contiguous()[:, :, None])[0]
    return a @ b
