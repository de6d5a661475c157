"""Retrieval between two sets of rows, with ties counted against the model.

Two names for two things: ``hit@k`` is 1 for a query with any relevant row in the top
k (what CLIP's papers call R@K); ``recall@k`` is the share of its relevant rows found in
the top k (what retrieval's textbooks call recall).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from alignkit.evaluation.checks import one_space
from alignkit.parts.product import product

Outputs = Tensor | tuple | dict[str, Tensor]  # rows first in every tensor
TIE = 1e-6  # of max(1, |score|): float32 products of equal rows differ by less


def _finite(scores: Tensor) -> Tensor:
    if not torch.stack(scores.aminmax()).isfinite().all():  # NaN is kept by both
        bad = int((~scores.isfinite()).sum())
        raise ValueError(
            f"{bad} of {scores.numel()} scores are NaN or infinite; "
            "mend the encoder or the score before retrieval is measured"
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


def dot(query: Outputs, gallery: Outputs) -> Tensor:
    """``query @ gallery.T``: the cosine when rows have unit length."""
    if not (isinstance(query, Tensor) and isinstance(gallery, Tensor)):
        raise TypeError(
            "the default score needs one tensor [n, d] a side; "
            "pass score=(a function of query rows and gallery rows) for other outputs"
        )
    return product(query, gallery)


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
    may hold relevant rows is scored twice, but for the last of them.

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
    asker = _Side(query, query_item, "query")
    asked = _Side(gallery, gallery_item, "gallery")
    asker.ask(asked, ks)
    _score_blocks(asker, asked, lambda x, y: _finite(score(x, y)), chunk, tie)
    return asker.report(ks, len(asked.item))


@torch.no_grad()
def retrieve(
    query: Tensor,
    gallery: Tensor,
    query_item: Tensor,
    gallery_item: Tensor,
    *,
    ks: Sequence[int] = (1, 5, 10),
    chunk: int | None = None,
    tie: float = TIE,
    distractors: bool = False,
) -> dict[str, dict[str, float]]:
    """:func:`retrieval` of embeddings by dot product, in both directions at once.

    Each block of chunk x chunk products serves both directions, and only a few blocks
    are in memory beside the rows, however many there are.

    Args:
        query, gallery: [n_query, d] and [n_gallery, d]; unit rows for the cosine. Half
            precision is widened to float32; the gallery takes the query's type.
        query_item, gallery_item: LongTensor [n_query], [n_gallery]; rows of one item
            are relevant to each other, many on either side.
        ks, tie: as for :func:`retrieval`. chunk: None: 2,048, on a GPU 8,192.
        distractors: rows whose item the other side lacks may be found and ask nothing;
            without it they are refused.

    Returns:
        ``"query->gallery"`` and ``"gallery->query"``, each as of :func:`retrieval`.
    """
    query, gallery = one_space(query, gallery)
    largest = [torch.linalg.vector_norm(x, torch.inf) for x in (query, gallery)]
    if not (largest[0] * largest[1].to(query) * query.shape[1]).isfinite():
        raise ValueError(
            f"entries of up to {largest[0]:.3g} and {largest[1]:.3g} have products "
            f"beyond {query.dtype}; give unit rows"
        )
    there = _Side(query, query_item, "query")
    back = _Side(gallery, gallery_item, "gallery")
    there.ask(back, ks, distractors)
    back.ask(there, ks, distractors)
    with torch.autocast(query.device.type, enabled=False):
        if chunk is None:
            chunk = 8192 if query.is_cuda else 2048
        _score_blocks(there, back, dot, chunk, tie)
    return {
        "query->gallery": there.report(ks, len(gallery)),
        "gallery->query": back.report(ks, len(query)),
    }


class _Side:
    """The rows of one side, in order of their items so that relevant blocks lie near
    the diagonal, and for those that ask what is known of their relevant rows."""

    def __init__(self, outputs: Outputs, item: Tensor, name: str):
        sizes: set[int] = set()
        devices: set[torch.device] = set()
        each_tensor(lambda x: (sizes.add(len(x)), devices.add(x.device)), outputs)
        if len(sizes) != 1 or sizes == {0} or item.shape != (*sizes,):
            raise ValueError(
                f"{name} has {sorted(sizes)} rows and {name}_item shape "
                f"{tuple(item.shape)}; one item a row, and at least one row, are needed"
            )
        self.outputs, self.name, self.asks = outputs, name, False
        # On a GPU what is counted stays there: nothing waits for it until the report.
        self.device = next((x for x in devices if x.type == "cuda"), torch.device("cpu"))
        self.item_there, order = item.to(self.device).sort()
        self.item = self.item_there.cpu()
        self.order = order if len(devices) == 1 else order.cpu()  # an index for any device

    def ask(self, other: "_Side", ks: Sequence[int], distractors: bool = False) -> None:
        """Prepare the search in ``other`` for as many relevant rows as ``ks`` need."""
        if not ks or min(ks) < 1:
            raise ValueError(f"ks is {tuple(ks)}; every cut-off must be 1 or more")
        there = other.item_there.to(self.device)
        upto = torch.searchsorted(there, self.item_there, right=True)
        self.n_relevant = (upto - torch.searchsorted(there, self.item_there)).cpu()
        lone = int((self.n_relevant == 0).sum())
        if lone == len(self.item) or (lone and not distractors):
            who = "queries" if self.name == "query" else "gallery rows"
            raise ValueError(
                f"{lone} {who} have no relevant row on the other side; leave them out, "
                "or let them be found only: retrieve(..., distractors=True)"
            )
        most = min(max(ks), int(self.n_relevant.max()))
        self.asks = True
        shape, kind = (len(self.item), most), {"dtype": torch.float64, "device": self.device}
        self.best, self.above = torch.full(shape, -torch.inf, **kind), torch.zeros(shape, **kind)

    def relevant(self, start: int, own: Tensor) -> None:
        """Keep the best relevant rows; ``own`` [rows, n] is -inf where irrelevant."""
        rows = slice(start, start + len(own))
        best = self.best[rows].to(own)
        if best.shape[1] == 1:
            self.best[rows] = torch.maximum(best, own.amax(1, keepdim=True)).to(self.best)
            return
        both = torch.cat([best, own], dim=1)
        self.best[rows] = both.topk(self.best.shape[1], dim=1).values.to(self.best)

    def irrelevant(self, start: int, wrong: Tensor, tie: float) -> None:
        """Count what scores as much as each; ``wrong`` [rows, n] is -inf elsewhere."""
        rows = slice(start, start + len(wrong))
        best = self.best[rows].to(wrong)
        threshold = _threshold(best, tie).masked_fill(best.isinf(), torch.inf)
        # 0 and 1: on a CPU floats are several times as fast, on a GPU the bytes count.
        hits = torch.empty_like(wrong, dtype=torch.bool if wrong.is_cuda else None)
        above = [torch.ge(wrong, t[:, None], out=hits).sum(1) for t in threshold.T]
        self.above[rows] += torch.stack(above, dim=1).to(self.above)

    def report(self, ks: Sequence[int], n_gallery: int) -> dict[str, float]:
        """The j-th best relevant row stands at j + irrelevant rows scoring as much."""
        place = self.above.cpu() + torch.arange(1, self.above.shape[1] + 1)
        place = place.masked_fill(self.best.cpu().isinf(), torch.inf)[self.n_relevant > 0]
        n_relevant, best = self.n_relevant[self.n_relevant > 0], place[:, 0]
        report = {f"hit@{k}": float((best <= k).double().mean()) for k in ks}
        for k in ks:
            share = (place <= k).sum(1) / n_relevant.double()
            report[f"recall@{k}"] = float(share.mean())
        report["mrr"] = float((1 / best).mean())
        report["median_rank"] = float(best.quantile(0.5))
        return report | {"n_query": len(best), "n_gallery": n_gallery}


def _score_blocks(
    query: _Side, gallery: _Side, score: Callable, chunk: int, tie: float
) -> None:
    """Fill in the sides that ask: first the relevant rows, then what stands above."""
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be 1 or more")
    starts = [
        (i, j)
        for i in range(0, len(query.item), chunk)
        for j in range(0, len(gallery.item), chunk)
    ]

    @lru_cache(maxsize=1)
    def rows(i: int) -> Outputs:
        return take(query.outputs, query.order[i : i + chunk])

    @lru_cache(maxsize=1)
    def block(i: int, j: int) -> Tensor:
        columns = gallery.order[j : j + chunk]
        scores = score(rows(i), take(gallery.outputs, columns))
        if scores.shape != (len(query.order[i : i + chunk]), len(columns)):
            raise ValueError(
                f"score gave shape {tuple(scores.shape)} for {len(query.order[i : i + chunk])} "
                f"query rows and {len(columns)} gallery rows"
            )
        return scores

    def same(i: int, j: int) -> Tensor | None:
        """Which scores of the block are of one item; None if the items lie apart."""
        x, y = query.item[i : i + chunk], gallery.item[j : j + chunk]
        if x[0] > y[-1] or y[0] > x[-1]:
            return None
        return (query.item_there[i : i + chunk, None]
                == gallery.item_there[j : j + chunk].to(query.device))

    for i, j in starts:
        if (right := same(i, j)) is not None:
            scores = block(i, j)
            own = scores.masked_fill(~right.to(scores.device), -torch.inf)
            for side, start, x in ((query, i, own), (gallery, j, own.T)):
                if side.asks:
                    side.relevant(start, x)
    # Back from the end, whose block may still be there. A relevant score was read from
    # the very block that is counted now, so nothing is parted by how it was computed.
    for i, j in reversed(starts):
        wrong = block(i, j)
        if (right := same(i, j)) is not None:
            wrong = wrong.masked_fill(right.to(wrong.device), -torch.inf)
        for side, start, x in ((query, i, wrong), (gallery, j, wrong.T)):
            if side.asks:
                side.irrelevant(start, x, tie)
