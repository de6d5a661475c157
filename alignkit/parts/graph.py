"""Attention between the nodes of a graph."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def with_loops(edges: Tensor, n: int) -> Tensor:
    """Edges [2, e] of n nodes, and one from each node to itself; sorted by where they end.

    Raises ValueError for edges of another shape, or that name no node.
    """
    if edges.dim() != 2 or len(edges) != 2 or edges.numel() and not (
            0 <= int(edges.min()) and int(edges.max()) < n):
        raise ValueError(f"edges must be [2, e] with nodes 0 to {n - 1}, got "
                         f"{tuple(edges.shape)}" + (f" with {int(edges.min())} to "
                         f"{int(edges.max())}" if edges.numel() else ""))
    edges = torch.cat([edges, torch.arange(n, device=edges.device).expand(2, -1)], 1)
    return edges[:, edges[1].sort(stable=True).indices]


class GraphAttention(nn.Module):
    """Each node becomes a mean of those with an edge to it, weighed by attention.

    For each head, of edges j -> i (from `with_loops`), with s = LeakyReLU(a · [h_i, h_j]):
        h = w ∘ x;   out_i = Σ_j softmax_j(−s_ij) h_j;   the heads are averaged
    That is Veličković et al. 2018, Graph attention networks, with two changes that code for
    entity alignment makes: a weight for each channel in the place of a matrix, and the sign
    of s turned. w starts at 1: untrained nodes become all but even means of neighbours.
    """

    def __init__(self, width: int, heads: int = 2):
        super().__init__()
        self.w = nn.Parameter(torch.ones(heads, width))
        bound = (2 * width) ** -0.5
        self.ends = nn.Parameter(torch.empty(2, heads, width).uniform_(-bound, bound))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """x [n, width] -> the same shape; edges [2, e], from and to, sorted by the second,
        at least one to each node."""
        source, to = edges
        at, of = torch.einsum("nd,ehd->enh", x, self.ends * self.w)  # [n, heads] of each end
        score = -F.leaky_relu(at.index_select(0, to) + of.index_select(0, source), 0.2)
        place = to[:, None].expand_as(score)
        top = score.new_full(at.shape, -torch.inf).scatter_reduce(0, place, score.detach(), "amax")
        share = (score - top[to]).exp()
        total = torch.zeros_like(at, dtype=share.dtype).index_add(0, to, share)
        share = share / total.index_select(0, to)
        first = torch.searchsorted(to, torch.arange(len(x), device=x.device))
        heads = [w * F.embedding_bag(source, x, first, mode="sum", per_sample_weights=part)
                 for w, part in zip(self.w, share.T.to(x).contiguous(), strict=True)]
        return torch.stack(heads).mean(0)
