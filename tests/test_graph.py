"""Graph attention: the plain loop, its gradient, and what must not change it."""

import pytest
import torch
from torch.nn.functional import leaky_relu

from alignkit.parts.graph import GraphAttention, with_loops


def some(n: int = 6, width: int = 4, heads: int = 3):
    """(layer off its start, nodes, edges with loops), in double precision."""
    torch.manual_seed(0)
    layer = GraphAttention(width, heads).double()
    with torch.no_grad():
        layer.w += 0.3 * torch.randn(heads, width, dtype=torch.float64)
    edges = with_loops(torch.tensor([[0, 1, 2, 0, 5, 3], [1, 0, 0, 2, 3, 5]]), n)
    return layer, torch.randn(n, width, dtype=torch.float64, requires_grad=True), edges


def loop(layer, x, edges):
    rows = []
    for i in range(len(x)):
        total = 0
        for head in range(len(layer.w)):
            h = [layer.w[head] * row for row in x]
            near = [int(j) for j, to in edges.T if to == i]
            e = [torch.exp(-leaky_relu((layer.ends[0, head] * h[i]).sum()
                                       + (layer.ends[1, head] * h[j]).sum(), 0.2)) for j in near]
            total = total + sum(a * h[j] for a, j in zip(e, near)) / sum(e) / len(layer.w)
        rows.append(total)
    return torch.stack(rows)


def test_it_is_the_loop_in_value_and_gradient():
    layer, x, edges = some()
    found, want = layer(x, edges), loop(layer, x, edges)
    assert torch.allclose(found, want, rtol=0, atol=1e-12)
    for f, w in zip(*(torch.autograd.grad(y.pow(3).sum(), [x, *layer.parameters()])
                      for y in (found, want)), strict=True):
        assert torch.allclose(f, w, rtol=0, atol=1e-9)


def test_a_node_alone_stays_and_nodes_may_change_places():
    layer, x, edges = some()
    alone = 4  # no edge but its own
    assert torch.allclose(layer(x, edges)[alone], layer.w.mean(0) * x[alone])
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    place = order.argsort()
    turned = place[edges]
    turned = turned[:, turned[1].sort(stable=True).indices]
    assert torch.allclose(layer(x[order], turned), layer(x, edges)[order], rtol=0, atol=1e-12)


def test_large_scores_stay_finite():
    layer, x, edges = some()
    with torch.no_grad():
        layer.ends *= 1e5
    assert layer(x, edges).isfinite().all()


def test_every_node_gets_one_loop_and_wrong_edges_are_refused():
    edges = with_loops(torch.tensor([[2, 0], [0, 2]]), 3)
    assert edges.tolist() == [[2, 0, 1, 0, 2], [0, 0, 1, 2, 2]]
    assert with_loops(torch.zeros(2, 0, dtype=torch.long), 2).tolist() == [[0, 1], [0, 1]]
    for wrong in (torch.zeros(3, 2, dtype=torch.long), torch.tensor([[0], [3]]),
                  torch.tensor([[-1], [0]])):
        with pytest.raises(ValueError, match="edges must be"):
            with_loops(wrong, 3)
