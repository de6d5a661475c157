"""Retrieval between two sets of rows, with ties counted against the model.

Two names for two things: ``hit@k`` is 1 for a query with any relevant row in the top
k (what CLIP's papers call R@K); ``recall@k`` is the share of its relevant rows found in
the top k (what retrieval's textbooks call recall).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Outputs = Tensor | tuple | dict[str, Tensor]  # rows first in every tensor
TIE = 1e-6  # of max(1, |score|): float32 products of equal rows differ by less


def _finite(scores: Tensor) -> Tensor:
    if not scores.isfinite().all():
        bad = int((~scores.isfinite()).sum())
        raise ValueError(
            f"{bad} of {scores.numel()} scores are NaN or infinite; "
            "mend the encoder or the score before measuring retrieval"
        )
    return scores if scores.dtype == torch.float64 else scores.float()


def _threshold(score: Tensor, tie: float) -> Tensor:
    """The score from which an irrelevant row counts as ranked above."""
    return score - tie * score.abs().clamp_min(1)


def ranks(scores: Tensor, relevant: Tensor, *, tie: float = 0.0) -> Tensor:
    """Rank of each query's best relevant row: 1 + irrelevant rows scoring at least it.

    Counting ties against the model gives a collapsed model, whose scores are all
    equal, the last rank; counting strictly larger scores would give it rank 1.

    Args:
        scores: [n_query, n_gallery], finite. relevant: bool, same shape, at least one
            True a row.
        tie: scores closer than ``tie * max(1, |score|)`` count as equal.

    Returns:
        LongTensor [n_query], 1 is best.
    """
    if scores.ndim != 2 or relevant.shape != scores.shape:
        raise ValueError(
            f"scores has shape {tuple(scores.shape)} and relevant "
            f"{tuple(relevant.shape)}; both must be [n_query, n_gallery]"
        )
    if relevant.dtype != torch.bool:
        raise ValueError(f"relevant is {relevant.dtype}; it must be bool")
    if not relevant.any(1).all():
        lost = int((~relevant.any(1)).sum())
        raise ValueError(f"{lost} queries have no relevant row in the gallery")
    scores = _finite(scores)
    best = scores.masked_fill(~relevant, -torch.inf).amax(1, keepdim=True)
    return 1 + (~relevant & (scores >= _threshold(best, tie))).sum(1)


def each_tensor(function: Callable, *outputs: Outputs) -> Outputs:
    """``function`` applied to the tensors that stand in the same place."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return function(*outputs)
    if isinstance(first, dict):
        return {key: function(*(part[key] for part in outputs)) for key in first}
    done = [function(*parts) for parts in zip(*outputs, strict=True)]
    return type(first)(*done) if hasattr(first, "_fields") else tuple(done)


def take(outputs: Outputs, rows: Tensor | slice) -> Outputs:
    """The same rows of every tensor of ``outputs``."""
    return each_tensor(lambda tensor: tensor[rows], outputs)


def _check_items(outputs: Outputs, item: Tensor, name: str) -> None:
    sizes: set[int] = set()
    each_tensor(lambda tensor: sizes.add(len(tensor)), outputs)
    if len(sizes) != 1 or sizes == {0} or item.shape != (*sizes,):
        raise ValueError(
            f"{name} has {sorted(sizes)} rows and {name}_item shape "
            f"{tuple(item.shape)}; one item a row, and at least one row, are needed"
        )


def dot(query: Outputs, gallery: Outputs) -> Tensor:
    """``query @ gallery.T``: the cosine when rows have unit length."""
    if not (isinstance(query, Tensor) and isinstance(gallery, Tensor)):
        raise TypeError(
            "the default score needs one tensor [n, d] a side; "
            "pass score=(a function of query rows and gallery rows) for other outputs"
        )
    return query @ gallery.T


@torch.no_grad()
def retrieval(
    query: Outputs,
    gallery: Outputs,
    query_item: Tensor,
    gallery_item: Tensor,
    *,
    score: Callable[[Outputs, Outputs], Tensor] = dot,
    ks: Sequence[int] = (1, 5, 10),
    chunk: int = 1024,
    tie: float = TIE,
) -> dict[str, float]:
    """Retrieval figures; a gallery row is relevant when its item is the query's.

    Scores are made in blocks of at most chunk x chunk, never as a whole. A block that
    holds relevant rows may be scored twice.

    Args:
        query, gallery: tensor [n, d], or a tuple or dict of tensors with n rows each.
        query_item, gallery_item: LongTensor [n_query], [n_gallery]; every query's item
            stands in the gallery at least once.
        score: (query rows, gallery rows) -> [rows, rows], larger is more alike.
        ks: cut-offs; one that is not below n_gallery gives 1 by definition.
        tie: as in :func:`ranks`.

    Returns:
        ``hit@k``, ``recall@k`` for each k, ``mrr`` (mean of 1 / rank of the best
        relevant row), ``median_rank``, ``n_query``, ``n_gallery``.
    """
    query_item, gallery_item = query_item.cpu(), gallery_item.cpu()
    _check_items(query, query_item, "query")
    _check_items(gallery, gallery_item, "gallery")
    if not ks or min(ks) < 1 or chunk < 1:
        raise ValueError(f"ks {tuple(ks)} and chunk {chunk} must be 1 or more")
    missing = int((~torch.isin(query_item, gallery_item)).sum())
    if missing:
        raise ValueError(f"{missing} queries have no relevant row in the gallery")
    items, counts = gallery_item.unique(return_counts=True)
    # In order of items, relevant blocks lie near the diagonal: few are scored twice.
    order, gallery_order = query_item.argsort(), gallery_item.argsort()
    gallery, gallery_item = take(gallery, gallery_order), gallery_item[gallery_order]
    places = [
        _places(
            (take(query, rows), query_item[rows]),
            (gallery, gallery_item),
            score,
            min(max(ks), int(counts.max())),
            chunk,
            tie,
        )
        for rows in order.split(chunk)
    ]
    place, best = torch.cat(places), torch.cat(places)[:, 0]
    n_relevant = counts[torch.searchsorted(items, query_item[order])]
    report = {f"hit@{k}": float((best <= k).double().mean()) for k in ks}
    for k in ks:
        share = (place <= k).sum(1) / n_relevant.double()
        report[f"recall@{k}"] = float(share.mean())
    report["mrr"] = float((1 / best).mean())
    report["median_rank"] = float(best.quantile(0.5))
    return report | {"n_query": len(query_item), "n_gallery": len(gallery_item)}


def _places(
    query: tuple[Outputs, Tensor],
    gallery: tuple[Outputs, Tensor],
    score: Callable,
    most: int,
    chunk: int,
    tie: float,
) -> Tensor:
    """Places [n, most] of the ``most`` best relevant rows; infinite where none is.

    The j-th best relevant row stands at j + (irrelevant rows scoring at least it).
    ``query`` and ``gallery`` are (outputs, items).
    """
    starts = range(0, len(gallery[1]), chunk)
    scored: dict[int, tuple[Tensor, Tensor]] = {}  # the last block only

    def block(at: int) -> tuple[Tensor, Tensor]:
        if at not in scored:
            scored.clear()
            scores = score(query[0], take(gallery[0], slice(at, at + chunk)))
            same = query[1][:, None] == gallery[1][None, at : at + chunk]
            if scores.shape != same.shape:
                raise ValueError(
                    f"score gave shape {tuple(scores.shape)} for {same.shape[0]} "
                    f"query rows and {same.shape[1]} gallery rows"
                )
            scored[at] = _finite(scores), same.to(scores.device)
        return scored[at]

    best = torch.full((len(query[1]), most), -torch.inf)
    for at in starts:
        if torch.isin(gallery[1][at : at + chunk], query[1]).any():
            scores, same = block(at)
            own = scores.masked_fill(~same, -torch.inf)
            best = torch.cat([best.to(own), own], dim=1).topk(most, dim=1).values
    place = torch.arange(1.0, most + 1, dtype=torch.float64).repeat(len(best), 1)
    threshold = _threshold(best, tie).masked_fill(best.isinf(), torch.inf)
    for at in starts:
        scores, same = block(at)
        wrong = scores.masked_fill(same, -torch.inf)
        above = [(wrong >= threshold[:, j : j + 1]).sum(1) for j in range(most)]
        place += torch.stack(above, dim=1).cpu()
    return place.masked_fill(best.isinf().cpu(), torch.inf)
