"""Retrieval: n rows against n rows, both directions."""

from collections.abc import Callable

import torch
from torch import Tensor

from alignkit.bench.contest import DEVICE, Contest, seeded
from alignkit.parts import unit
from alignkit.parts.product import product


def galleries(n: int) -> tuple[Tensor, Tensor, Tensor]:
    a, b = seeded(2, n, 512)
    return unit(a), unit(a + 4 * b), torch.arange(n, device=DEVICE)


def ours(n: int) -> Callable:
    """Both directions of retrieval in one pass."""
    from alignkit.evaluation import retrieve

    a, b, item = galleries(n)
    return lambda: retrieve(a, b, item, item)


def products(n: int) -> Callable:
    """The products alone, in blocks, without ranks: the least that it can take."""
    a, b, _ = galleries(n)

    def work() -> None:
        with torch.no_grad():
            for x in a.split(8192 if a.is_cuda else 2048):
                for y in b.split(8192 if a.is_cuda else 2048):
                    product(x, y)
    return work


def faiss_twice(n: int) -> Callable:
    """An exact index for each direction."""
    import faiss

    a, b, _ = galleries(n)

    def work() -> None:
        for query, gallery in ((a, b), (b, a)):
            index = faiss.IndexFlatIP(512)
            index.add(gallery.cpu().numpy())
            index.search(query.cpu().numpy(), 10)
    return work


def torchmetrics_hits(n: int) -> Callable:
    """The six figures, each from the whole matrix."""
    from torchmetrics.retrieval import RetrievalHitRate

    a, b, _ = galleries(n)

    def work() -> None:
        for scores in (a @ b.T, b @ a.T):
            right, query = torch.eye(n, device=DEVICE) > 0, torch.arange(n, device=DEVICE)
            for k in (1, 5, 10):
                metric = RetrievalHitRate(top_k=k)
                metric(scores.flatten(), right.flatten(), query.repeat_interleave(n))
    return work


RETRIEVAL = Contest(
    "hit@1, 5, 10 of {n} against {n} rows of width 512, both directions", 32768, 1024,
    {"alignkit retrieve": ours, "the products alone": products,
     "two faiss flat searches": faiss_twice},
    {"two faiss flat searches": "faiss-cpu"})
SMALL_RETRIEVAL = Contest(
    "hit@1, 5, 10 of {n} against {n} rows of width 512, both directions", 5000, 100,
    {"alignkit retrieve": ours, "torchmetrics RetrievalHitRate": torchmetrics_hits},
    {"torchmetrics RetrievalHitRate": "torchmetrics"})
