"""k-reciprocal re-ranking against loops over sets, as the paper writes it; the graph and the
smoothing made with it against loops over rows."""

import math

import pytest
import torch

from alignkit.parts import unit
from alignkit.parts.reranking import distances, neighbour_graph, rerank, smoothed


def loop(distances: list, k1: int, k2: int, share: float) -> list:
    """R*, V, the mean over neighbours and Jaccard's distance, row by row."""
    n = len(distances)
    largest = [max(distances[i][j] for i in range(n)) for j in range(n)]
    d = [[distances[j][i] / largest[i] for j in range(n)] for i in range(n)]
    order = [sorted(range(n), key=lambda j: d[i][j]) for i in range(n)]

    def mutual(i: int, k: int) -> set:
        return {j for j in order[i][:k + 1] if i in order[j][:k + 1]}

    v = []
    for i in range(n):
        here, wide = mutual(i, k1), set(mutual(i, k1))
        for j in here:
            its = mutual(j, round(k1 / 2))
            if len(its & here) > 2 / 3 * len(its):
                wide |= its
        weights = [math.exp(-d[i][j]) if j in wide else 0.0 for j in range(n)]
        v.append([w / sum(weights) for w in weights])
    v = [[sum(v[j][m] for j in order[i][:k2]) / len(order[i][:k2]) for m in range(n)]
         for i in range(n)]
    found = []
    for i in range(n):
        common = [sum(min(a, b) for a, b in zip(v[i], v[j])) for j in range(n)]
        found.append([(1 - share) * (1 - m / (2 - m)) + share * d[i][j]
                      for j, m in enumerate(common)])
    return found


def cloud(n: int, seed: int = 0, d: int = 3) -> torch.Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cdist(x, x) ** 2


@pytest.mark.parametrize(("n", "k1", "k2"), [(14, 5, 3), (14, 4, 1), (9, 20, 6), (2, 1, 1)])
def test_it_is_the_loop_over_sets(n, k1, k2):
    d = cloud(n)
    expected = torch.tensor(loop(d.tolist(), k1, k2, 0.3), dtype=torch.float64)
    assert torch.allclose(rerank(d, k1, k2, 0.3), expected, rtol=0, atol=1e-12)


def test_a_stack_is_ranked_one_by_one():
    stack = torch.stack([cloud(8, seed) for seed in range(3)])
    each = torch.stack([rerank(d, 3, 2) for d in stack])
    assert torch.allclose(rerank(stack, 3, 2), each, rtol=0, atol=1e-12)


def test_the_share_alone_gives_the_old_distance():
    d = cloud(6)
    assert torch.allclose(rerank(d, 3, 2, 1.0), (d / d.amax(0)).T)


def test_a_row_is_nearest_to_itself_and_neighbours_in_common_bring_rows_closer():
    """Six rows on a line in two groups: within a group all are closer than across."""
    at = torch.tensor([0.0, 0.1, 0.2, 1.0, 1.1, 1.2], dtype=torch.float64)
    found = rerank((at[:, None] - at) ** 2, k1=2, k2=2)
    assert torch.allclose(found.diagonal(), torch.zeros(6, dtype=torch.float64))
    assert found[:3, :3].max() < found[:3, 3:].min()


def test_the_order_of_rows_decides_nothing_where_distances_tie():
    at = torch.tensor([0.0, 1, 1, 1, 1, 2, 2, 0])  # more equal rows than k1 + 1
    d, order = (at[:, None] - at) ** 2, torch.tensor([3, 7, 0, 6, 1, 5, 2, 4])
    assert torch.allclose(rerank(d[order][:, order], 2, 2), rerank(d, 2, 2)[order][:, order])


def test_equal_rows_are_at_distance_zero_and_nothing_is_divided_by_zero():
    assert torch.equal(rerank(torch.zeros(4, 4), 2, 1), torch.zeros(4, 4))


@pytest.mark.parametrize(("changes", "word"), [
    ({"distances": torch.zeros(3, 4)}, r"\(3, 4\)"), ({"k1": 0}, "k1"),
    ({"k2": 0}, "k2"), ({"share": 1.5}, "share")])
def test_bad_input_is_named(changes, word):
    with pytest.raises(ValueError, match=word):
        rerank(**{"distances": torch.zeros(3, 3), **changes})


# The graph ----------------------------------------------------------------------------
def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def dense(edges: torch.Tensor, w: torch.Tensor, n: int) -> torch.Tensor:
    found = torch.zeros(n, n, dtype=torch.float64)
    found[edges[0], edges[1]] = w
    return found


@pytest.mark.parametrize("by_distance", [False, True])
def test_the_graph_is_the_loop_over_rows(by_distance):
    x, A = rows(9, 5), torch.zeros(9, 9, dtype=torch.float64)
    cos = [[float(a @ b / a.norm() / b.norm()) for b in x] for a in x]
    for i in range(9):
        near = sorted((j for j in range(9) if j != i), key=lambda j: -cos[i][j])[:4]
        few = [i, *near]
        d = torch.tensor([[0.0 if a == b else 2 - 2 * cos[a][b] for b in few] for a in few],
                         dtype=torch.float64)
        again = rerank(d, 3, 2, 0.3)[0, 1:].tolist()
        for far, j in sorted(zip(again, near))[:2]:
            w = far if by_distance else 1 - far
            A[i, j] = A[j, i] = max(A[i, j], A[j, i], w)
    A /= A.sum(1, keepdim=True)
    edges, w = neighbour_graph(x, 4, 2, (3, 2, 0.3), by_distance)
    assert torch.allclose(dense(edges, w, 9), A, rtol=0, atol=1e-9)
    assert not A.diagonal().any() and torch.equal(A > 0, (A > 0).T)


def test_rows_become_the_weighted_mean_of_their_neighbours_and_zero_stays_zero():
    edges, w = neighbour_graph(rows(9, 5), 4, 2, (3, 2, 0.3))
    texts = unit(rows(9, 6, 3))
    assert torch.allclose(smoothed(texts, (edges, w)), unit(dense(edges, w, 9) @ texts))
    texts[edges[1][edges[0] == 0]] = 0  # none of the first row's neighbours has one
    assert not smoothed(texts, (edges, w))[0].any()


def test_a_row_of_zeros_is_far_from_all():
    x = unit(rows(3, 4))
    x[1] = 0
    assert torch.equal(distances(x)[1], torch.tensor([2.0, 0, 2], dtype=torch.float64))
