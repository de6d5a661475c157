"""The k nearest rows of a gallery: exactly, or by an index that looks at fewer rows."""

from typing import NamedTuple

import torch
from torch import Tensor

from alignkit.evaluation.checks import one_space
from alignkit.evaluation.retrieval import TIE
from alignkit.parts.product import product

INDEXES = ("exact", "hnsw", "ivf")


class Found(NamedTuple):
    """What :func:`search` found, best first.

    scores: [n_query, k], -inf where an index gave fewer than k rows. places: row
    numbers of the gallery, LongTensor [n_query, k], -1 there. recall: share of the
    exact answer that was found, 1.0 for the exact search itself.
    """

    scores: Tensor
    places: Tensor
    recall: float


@torch.no_grad()
def search(
    query: Tensor,
    gallery: Tensor,
    k: int = 10,
    *,
    index: str = "exact",
    effort: int = 64,
    chunk: int = 1024,
    sample: int = 256,
) -> Found:
    """The ``k`` gallery rows with the largest dot product with each query.

    Rows with equal scores come in any order, and any of them may be cut off at k.

    Args:
        query, gallery: [n_query, d] and [n_gallery, d]; unit rows for the cosine. Half
            precision is widened to float32; the gallery takes the query's type.
        k: 1 to n_gallery.
        index: 'exact' scores all rows, by torch, on the device of the rows; 'hnsw'
            walks a graph of neighbours (Malkov & Yashunin 2018) and suits unit rows;
            'ivf' scores the rows of the nearest clusters (Sivic & Zisserman 2003).
            The latter two are built by faiss, in float32 on the CPU.
        effort: candidates that 'hnsw' keeps, or clusters of the 4 * sqrt(n_gallery)
            that 'ivf' looks at: more is slower, with higher recall.
        chunk: chunk x chunk scores of the exact search exist at once.
        sample: queries, evenly spread, whose exact answer the recall is measured with:
            mean share of k places whose row scores as much as the exact k-th.

    Raises:
        ImportError: an index is asked for and faiss is not installed.
    """
    query, gallery = one_space(query, gallery)
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k is {k}; it must lie between 1 and {len(gallery)} rows")
    if index not in INDEXES or min(effort, chunk, sample) < 1:
        raise ValueError(
            f"index is {index!r}, effort {effort}, chunk {chunk}, sample {sample}; "
            f"index must be one of {INDEXES}, and the numbers be above 0"
        )
    if index == "exact":
        return Found(*_exact(query, gallery, k, chunk), 1.0)
    scores, places = _by_faiss(query, gallery, k, index, effort)
    sample = min(sample, len(query))
    some = torch.arange(sample, device=query.device) * len(query) // sample
    kth = _exact(query[some], gallery, k, chunk)[0][:, -1:]
    right = scores[some] >= kth - TIE * kth.abs().clamp_min(1)
    return Found(scores, places, float(right.double().mean()))


def _exact(query: Tensor, gallery: Tensor, k: int, chunk: int) -> tuple[Tensor, Tensor]:
    """The best k so far, and the rows of one more block, give the next best k."""
    scores = query.new_full((len(query), k), -torch.inf)
    places = torch.full((len(query), k), -1, device=query.device)
    with torch.autocast(query.device.type, enabled=False):
        for i in range(0, len(query), chunk):
            best, where = scores[i : i + chunk], places[i : i + chunk]
            for j in range(0, len(gallery), chunk):
                block = product(query[i : i + chunk], gallery[j : j + chunk])
                new, at = block.topk(min(k, block.shape[1]), dim=1)
                both = torch.cat([best, new], dim=1)
                best[:], order = both.topk(k, dim=1)
                where[:] = torch.cat([where, at + j], dim=1).gather(1, order)
    return scores, places


def _by_faiss(
    query: Tensor, gallery: Tensor, k: int, index: str, effort: int
) -> tuple[Tensor, Tensor]:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            f"index={index!r} needs faiss: pip install faiss-cpu (or 'alignkit[bench]'"
            "); index='exact' needs nothing"
        ) from error
    n, d = gallery.shape
    if index == "hnsw":
        built = faiss.IndexHNSWFlat(d, 32, faiss.METRIC_INNER_PRODUCT)
        built.hnsw.efConstruction = 200  # as 32 neighbours a row: for high recall
        built.hnsw.efSearch = max(effort, k)
    else:
        lists = min(n, max(1, round(4 * n**0.5)))
        built = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(d), d, lists, faiss.METRIC_INNER_PRODUCT
        )
        built.cp.min_points_per_centroid = 1  # a small gallery is no reason to warn
        built.nprobe = min(effort, lists)
    rows = gallery.float().cpu().contiguous().numpy()
    if index == "ivf":
        built.train(rows)
    built.add(rows)
    scores, places = built.search(query.float().cpu().contiguous().numpy(), k)
    scores, places = torch.from_numpy(scores).to(query), torch.from_numpy(places)
    places = places.to(query.device)
    return scores.masked_fill(places < 0, -torch.inf), places
