"""A method measured on pairs: encoded in chunks, then retrieval both ways."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from alignkit.data import Pairs
from alignkit.evaluation.retrieval import (
    TIE,
    Outputs,
    each_tensor,
    retrieval,
    retrieve,
    take,
)
from alignkit.parts.method import Method
from alignkit.parts.similarity import unit


def _to(value: object, device: torch.device) -> object:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _to(inner, device) for key, inner in value.items()}
    if isinstance(value, tuple):
        moved = [_to(inner, device) for inner in value]
        return type(value)(*moved) if hasattr(value, "_fields") else tuple(moved)
    return value


def _join(parts: list[Outputs]) -> Outputs:
    """One output from those of the chunks, in float32 at least.

    Tokens that were padded to each chunk's longest row are padded to the longest of
    all: safe only where a mask says which are real.
    """
    masked = hasattr(parts[0], "mask") or (
        isinstance(parts[0], dict) and "mask" in parts[0]
    )

    def join(*tensors: Tensor) -> Tensor:
        if tensors[0].is_floating_point() and tensors[0].element_size() < 4:
            tensors = tuple(tensor.float() for tensor in tensors)
        if not masked or tensors[0].ndim == 1:
            return torch.cat(tensors)
        n, longest = sum(map(len, tensors)), max(t.shape[1] for t in tensors)
        joined = tensors[0].new_zeros(n, longest, *tensors[0].shape[2:])
        start = 0
        for tensor in tensors:
            joined[start : start + len(tensor), : tensor.shape[1]] = tensor
            start += len(tensor)
        return joined

    return each_tensor(join, *parts)


@torch.no_grad()
def encode_pairs(
    method: nn.Module, pairs: Pairs, columns: Sequence[str], chunk: int = 1024
) -> dict[str, Outputs]:
    """Outputs of ``method`` for every row of ``pairs``, on the method's device.

    In eval mode and without gradients, ``chunk`` rows at a time; every module gets
    its own mode back. Each column's output must depend on that column alone, or
    the partner would give the answer away.

    Raises:
        KeyError: ``method.encode`` does not give a column. ValueError: no pairs.
    """
    if len(pairs) == 0 or chunk < 1:
        raise ValueError(f"{len(pairs)} pairs and chunk {chunk}: both must be above 0")
    tensor = next(iter((*method.parameters(), *method.buffers())), torch.empty(0))
    modes = [(module, module.training) for module in method.modules()]
    generator = torch.Generator().manual_seed(0)
    parts: dict[str, list] = {column: [] for column in columns}
    method.eval()
    try:
        for rows in torch.arange(len(pairs)).split(chunk):
            batch = method.collate(pairs.select(rows), generator)
            outputs = method.encode(_to(batch, tensor.device))
            for column in columns:
                if column not in outputs:
                    raise KeyError(
                        f"method.encode gave {sorted(outputs)}, not {column!r}; "
                        "choose query and gallery among those"
                    )
                parts[column].append(outputs[column])
    finally:
        for module, training in modes:
            module.training = training
    return {column: _join(chunks) for column, chunks in parts.items()}


def _rows(pairs: Pairs, column: str, once: bool) -> Tensor:
    """Rows where ``column``, or features made of it, are present; or one an item."""
    named = {n: m for n, m in pairs.present.items() if n.startswith(f"{column}_")}
    masks = [pairs.present[column]] if column in pairs.present else [*named.values()]
    rows = torch.ones(len(pairs), dtype=torch.bool)
    for mask in masks:
        rows &= mask
    rows = rows.nonzero().flatten()
    return rows[pairs.select(rows).first_of_item()] if once else rows


@torch.no_grad()
def evaluate_retrieval(
    method: nn.Module,
    pairs: Pairs,
    query: str = "image",
    gallery: str = "text",
    *,
    ks: Sequence[int] = (1, 5, 10),
    chunk: int = 1024,
    once: Sequence[str] | None = None,
) -> dict[str, dict]:
    """Retrieval in both directions on all of ``pairs``, scored by ``method.score``.

    Never holds all scores: a method that keeps the default score, the cosine of pooled
    rows, is measured by :func:`retrieve`, any other by blocks of chunk x chunk.

    With many captions an item, the picture stands in the gallery once and every
    caption is a query and a gallery row: the columns in ``once`` keep the first row of
    each item. Rows whose column is missing (``pairs.present``) are left out, and an
    item without a partner on the other side stays in the gallery but asks nothing.

    Args:
        once: columns with one row an item; default ``(query,)``.

    Returns:
        ``"image->text"``, ``"text->image"`` (see :func:`retrieval`), ``"mean"`` of
        the two, and ``"protocol"``: which rows each side holds, and the tie policy.
    """
    once = (query,) if once is None else tuple(once)
    if query == gallery or not {*once} <= {query, gallery}:
        raise ValueError(
            f"query {query!r}, gallery {gallery!r}, once {once}: two different columns "
            "are needed, and once must name one or both of them"
        )
    outputs = encode_pairs(method, pairs, (query, gallery), chunk)
    rows = {column: _rows(pairs, column, column in once) for column in outputs}
    shared = torch.isin(pairs.item[rows[query]], pairs.item[rows[gallery]])
    if not shared.any():
        raise ValueError(f"no item of the pairs has both {query!r} and {gallery!r}")
    rowwise = all(isinstance(z, Tensor) and z.ndim == 2 for z in outputs.values())
    if rowwise and getattr(method.score, "__func__", None) is Method.score:
        report = _by_cosine(outputs, pairs.item, rows, ks, chunk)
    else:
        report = _by_score(outputs, pairs.item, rows, method.score, ks, chunk)
    there, back = report.values()
    names = [name for name in there if not name.startswith("n_")]
    report["mean"] = {name: (there[name] + back[name]) / 2 for name in names}
    report["protocol"] = {"ties": f"against the model (within {TIE:g})"} | {
        column: f"{'first row of each item' if column in once else 'every row'}: "
        f"{len(rows[column])} of {len(pairs)}"
        for column in outputs
    }
    return report


def _by_cosine(outputs, item, rows, ks, chunk) -> dict[str, dict]:
    """Both directions at once; ``rows`` are those of each side, in its order."""
    names = [*rows]
    found = retrieve(
        *(unit(outputs[name][rows[name]]) for name in names),
        *(item[rows[name]] for name in names),
        ks=ks,
        chunk=chunk,
        distractors=True,
    )
    ways = "->".join(names), "->".join(names[::-1])
    return dict(zip(ways, found.values(), strict=True))


def _by_score(outputs, item, rows, score, ks, chunk) -> dict[str, dict]:
    """One direction, then the other: a score need not be the same both ways."""
    report = {}
    for asker, asked in (names := [*rows], names[::-1]):
        asking = rows[asker][torch.isin(item[rows[asker]], item[rows[asked]])]
        report[f"{asker}->{asked}"] = retrieval(
            take(outputs[asker], asking),
            take(outputs[asked], rows[asked]),
            item[asking],
            item[rows[asked]],
            score=score,
            ks=ks,
            chunk=chunk,
        )
    return report
