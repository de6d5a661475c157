"""Tokens of any modality as mixtures of one fixed basis, gated with themselves (Li et al. 2023,
arXiv 2303.15932)."""

import torch
from torch import Tensor, nn

from alignkit.data import Tokens

BASES = ("orthonormal", "gaussian", "uniform")


def made_basis(rows: int, width: int, kind: str) -> Tensor:
    """B [rows, width] with ‖B‖² = width: orthonormal columns (more rows than the width
    cannot be orthonormal), or normal or uniform numbers scaled to the same norm."""
    drawn = torch.rand(rows, width) * 2 - 1 if kind == "uniform" else torch.randn(rows, width)
    if kind == "orthonormal":
        return torch.linalg.qr(drawn)[0]
    return drawn * width**0.5 / drawn.norm()


class Unifier(nn.Module):
    """Each token as a mixture of a fixed basis, gated with itself; which modality it is
    of, the block is not told."""

    def __init__(self, width: int, rows: int, heads: int, kind: str = "orthonormal",
                 gamma: float = 1.0):
        super().__init__()
        self.register_buffer("basis", made_basis(rows, width, kind))
        self.gamma = nn.Parameter(torch.full((rows, width), gamma))
        self.beta = nn.Parameter(torch.zeros(rows, width))
        self.attention = nn.MultiheadAttention(width, heads, bias=False, batch_first=True)
        self.enter, self.keep = (nn.ModuleList(nn.Linear(width, width, bias=False)
                                               for _ in range(2)) for _ in range(2))

    def mixed(self, x: Tensor) -> Tensor:
        """F~ of tokens [m, width]."""
        rows = (self.gamma * self.basis + self.beta)[None]
        return self.attention(x[None], rows, rows, need_weights=False)[0][0]

    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens [n, t, width] -> the same, each by itself."""
        x = tokens.values.flatten(0, 1)
        mixed = self.mixed(x)
        enter, keep = (torch.sigmoid(a(x) + b(mixed)) for a, b in (self.enter, self.keep))
        unified = enter * torch.tanh(x + mixed) + keep * x + mixed
        return Tokens(unified.view_as(tokens.values), tokens.mask)
