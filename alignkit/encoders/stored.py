"""Features that are asked for, from the cache or made now: what `add_features` and its kin
share."""

import hashlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from tqdm.auto import tqdm

from alignkit.data.columns import BY_PROVENANCE, Column, Lazy, Tokens, decided, digest
from alignkit.data.pairs import Pairs
from alignkit.encoders.cache import BLOCK, Store
from alignkit.encoders.encoder import BATCH, Encoder, Output, joined, shortened


def read_or_make(pairs: Pairs, column: str, encoder: Encoder,
                 wanted: dict[str, tuple[int, bool | int]],
                 beside: Sequence | None = None) -> dict[str, Tensor | Tokens]:
    """The features `wanted`, name -> (layer, tokens as in `add_features`), from the cache
    where they are there.

    beside: what a row's input has besides the column, hashable, a row each (boxes, say);
    the encoder then takes pairs (entry, beside), and both decide the key.

    Raises ValueError for a column that the encoder does not take.
    """
    _check_column(pairs, column, encoder)
    first, at = _distinct(pairs, column, beside)
    content, untold = _content(pairs[column], encoder.untold)
    names = [pairs.ids[i] for i in first]
    fields = {
        "corpus": pairs.provenance.hash,
        "column": column,
        "rows": hashlib.sha256(json.dumps(names).encode()).hexdigest(),
        "content": content,
        "encoder": [encoder.name, encoder.weights_hash, encoder.preprocessing],
    }
    if beside is not None:
        kept = repr([beside[i] for i in first])
        fields["beside"] = hashlib.sha256(kept.encode()).hexdigest()

    def source(i: int):
        row = first[i]
        return pairs[column][row] if beside is None else (pairs[column][row], beside[row])

    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory()) if untold else None
        # Keyed by what is computed, so that layer −1 and its number share one store.
        stores = {
            (k, kept): Store(fields | {"layer": k, "tokens": kept}, len(first), folder)
            for k, kept in {(encoder.layer(k), t) for k, t in wanted.values()}
        }
        _fill(stores, encoder, source, names)
        _say(stores, encoder, column, len(first))
        return {name: stores[encoder.layer(k), kept].read(at)
                for name, (k, kept) in wanted.items()}


def _content(column: Column, of_encoder: list[str]) -> tuple[str | None, bool]:
    """(what tells the content from other content under the same provenance, and whether
    something that decides the features could not be told: then with a warning)."""
    if not isinstance(column, Lazy):  # cheap, and a provenance may be of the user's own
        content, untold = digest(column), []
    elif column.version == BY_PROVENANCE:
        content, untold = None, []
    else:
        content, untold = decided(column)
    for found, mend in ((untold, "Give Lazy(…, version='1') and another version whenever "
                         "the rows change"),
                        (of_encoder, "Make it in the module's forward, not before")):
        if found:
            warnings.warn(f"these features are not kept: they depend on "
                          f"{', '.join(found[:3])}, and a change of that would not be "
                          f"seen. {mend}", stacklevel=4)
    return content, bool(untold or of_encoder)


def _check_column(pairs: Pairs, column: str, encoder: Encoder) -> None:
    found = pairs[column]
    kind = ("text" if isinstance(found, list) else "tensor" if isinstance(found, Tensor)
            else "tokens" if isinstance(found, Tokens)
            else "image" if found.kind == "picture" else found.kind)
    fits = {"any", kind} | ({"points", "video"} if kind == "tensor" else set())
    if kind == "tokens" or encoder.modality not in fits:
        raise ValueError(f"column {column!r} holds {kind}; {encoder.name} encodes "
                         f"{encoder.modality}")
    if not pairs.present[column].any():
        raise ValueError(f"column {column!r}: every row is missing, nothing to encode")


def _distinct(pairs: Pairs, column: str,
              beside: Sequence | None = None) -> tuple[list[int], Tensor]:
    """First row of each distinct present source, with what stands beside it; place [n] of
    each row among them."""
    found = pairs[column]
    sources = found.sources if isinstance(found, Lazy) else found
    places: dict[object, int] = {}
    first, at = [], []
    for row, here in enumerate(pairs.present[column].tolist()):
        if not here:
            at.append(-1)
            continue
        try:
            source = object() if isinstance(found, Tensor) else sources[row]
            source = source, _kinds(source), beside and beside[row]
            hash(source)
        except TypeError:
            source = object()  # what cannot be compared stands for itself
        if source not in places:
            places[source] = len(first)
            first.append(row)
        at.append(places[source])
    return first, torch.tensor(at)


def _kinds(source) -> tuple:
    """The types within: 1, 1.0 and True are equal, what is read of them need not be."""
    inner = source if isinstance(source, tuple) else ()
    return type(source), *map(_kinds, inner)


def _fill(stores: dict[tuple[int, bool | int], Store], encoder: Encoder,
          source: Callable[[int], object], names: list[str]) -> None:
    """Encode every block that a store lacks; one process at a time."""
    if not any(store.missing() for store in stores.values()):
        return
    with ExitStack() as locks:
        for store in sorted(stores.values(), key=lambda s: s.folder):
            locks.enter_context(store.locked())  # in one order: no two can cross
        # Looked up again: another process may have written while this one waited.
        lacking = {key: set(store.missing()) for key, store in stores.items()}
        blocks = sorted(set().union(*lacking.values()))
        if blocks:
            _encode(stores, lacking, blocks, encoder, source, names)


def _encode(stores: dict[tuple[int, bool | int], Store], lacking: dict[tuple, set[int]],
            blocks: list[int], encoder: Encoder, source: Callable[[int], object],
            names: list[str]) -> None:
    encoder.start()
    n = len(names)
    total = sum(min(n, (block + 1) * BLOCK) - block * BLOCK for block in blocks)
    began, done = time.perf_counter(), 0
    with tqdm(total=total, desc=encoder.name, unit="row", delay=2) as bar:
        for block in blocks:
            parts = {key: [] for key in stores if block in lacking[key]}
            layers = sorted({k for k, _ in parts})
            encoder.notes.clear()
            tokens = any(kept is not False for _, kept in parts)
            rows = range(block * BLOCK, min(n, (block + 1) * BLOCK))
            for start in range(0, len(rows), BATCH):
                inputs = [source(i) for i in rows[start:start + BATCH]]
                try:
                    found = encoder.outputs(inputs, layers, tokens)
                except Exception as error:
                    _name_the_row(error, encoder, inputs, names[rows[start]:])
                    raise
                for (k, kept), part in parts.items():
                    part.append(_kept(found[k], kept))
                bar.update(len(inputs))
                done += len(inputs)
                if done == len(inputs):  # the first batch tells how long it takes
                    _announce(encoder, total, (time.perf_counter() - began) / done)
            for key, part in parts.items():
                stores[key].write(block, joined(part), dict(encoder.notes))


def _name_the_row(error: Exception, encoder: Encoder, inputs: list,
                  names: list[str]) -> None:
    """Add to an error of a batch which of its rows fails alone, if one does."""
    for name, row in zip(names, inputs, strict=False):
        try:
            encoder.outputs([row])
        except Exception:
            return error.add_note(f"at the row of id {name!r}")


def _kept(output: Output, kept: bool | int) -> Tensor | Tokens:
    """What is stored of a layer: pooled (False), its tokens (True), or at most so many."""
    if kept is False:
        return output.pooled
    return output.tokens if kept is True else shortened(output.tokens, kept)


def _say(stores: dict[tuple[int, bool | int], Store], encoder: Encoder, column: str,
         n: int) -> None:
    """Warn of texts that were cut or not understood, cached features included."""
    blocks: dict[str, dict] = {}
    for store in stores.values():
        blocks |= store.notes()
    for words in sorted({words for notes in blocks.values() for words in notes}):
        found = [notes[words] for notes in blocks.values() if words in notes]
        warnings.warn(f"{encoder.name}: {sum(count for count, _ in found)} of {n} distinct "
                      f"rows of {column!r} are {words}, such as {found[0][1]!r}",
                      stacklevel=4)


def _announce(encoder: Encoder, total: int, seconds_a_row: float) -> None:
    if total * seconds_a_row > 20:
        where = "a GPU" if torch.cuda.is_available() else "CPU"
        tqdm.write(f"{encoder.name}: {total:,} rows on {where}, about "
                   f"{total * seconds_a_row:.0f} s, once: the features are kept",
                   file=sys.stderr)
