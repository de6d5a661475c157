"""`load` an encoder by name; `add_features` of a column to pairs, through the cache."""

import hashlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from alignkit.data.columns import (
    BY_PROVENANCE, Column, Lazy, Tokens, decided, digest,
)  # fmt: skip
from alignkit.data.pairs import Pairs
from alignkit.encoders import (
    bundles,
    e5,
    fbank,
    frames,
    generic,
    image,
    points,
    text,
    whisper,
    yamnet,
)
from alignkit.encoders.cache import BLOCK, Store
from alignkit.encoders.encoder import BATCH, Encoder, Output, joined, shortened

OFFLINE = {
    "image:efficientnet-lite0": image.efficientnet_lite0,
    "image:mobilenetv2": image.mobilenet_v2,
    "text:minilm": text.minilm,
    "text:e5-multilingual": e5.e5_multilingual,
    "sound:yamnet": yamnet.yamnet,
    "sound:whisper-tiny.en": whisper.whisper_tiny_en,
    "points:grid": points.grid,
}


def load(name: str | nn.Module, *, seed: int = 0) -> Encoder:
    """A frozen encoder by name, or your own module.

    name: `image:efficientnet-lite0`, `image:mobilenetv2`, `text:minilm`,
    `text:e5-multilingual`, `sound:yamnet`, `sound:whisper-tiny.en` (weights from
    packages, offline once fetched), `points:grid` and `fbank:32x30` (no weights; 32 log-mel
    bands, a frame every 30 ms), `timm:<model>`, `torchaudio:<bundle>`, `hf:<id or folder>`
    (of CLIP `hf:<id>#image` or `#text`), `frames:<image encoder>` for videos,
    `random:<any of these>` for the twin of random weights drawn from `seed`, or an nn.Module that maps a batch (a stacked tensor, or a
    list of texts or pictures) to [b, d].

    Raises ValueError for a name that is none of these.

    Example:
        >>> pairs = add_features(emoji(), "image", "image:efficientnet-lite0")
        >>> pairs["image_features"].shape
        torch.Size([1914, 1280])
    """
    if isinstance(name, nn.Module):
        return generic.module(name)
    plain = name.removeprefix("random:")
    kind, _, what = plain.partition(":")
    twin = seed if name.startswith("random:") else None
    if plain in OFFLINE:
        return OFFLINE[plain](twin)
    if kind == "timm" and what:
        return image.timm_model(what, twin)
    if kind == "torchaudio" and what:
        return bundles.torchaudio_bundle(what, twin)
    if kind == "hf" and what:
        return generic.hugging_face(what, twin)
    if kind == "fbank" and twin is None:
        return fbank.fbank(what)
    if kind == "frames" and what:
        inner = what if twin is None else f"random:{what}"
        return frames.frame_by_frame(load(inner, seed=seed))
    raise ValueError(
        f"name: {name!r} is no encoder; use {', '.join(OFFLINE)}, "
        "fbank:<bands>x<milliseconds>, timm:<model>, "
        "torchaudio:<bundle>, hf:<id or folder>, frames:<image encoder>, random:<one of "
        "these>, or pass an nn.Module"
    )


def add_features(
    pairs: Pairs,
    column: str,
    encoder: str | nn.Module | Encoder,
    *,
    layers: Sequence[int] | Literal["all"] = (-1,),
    tokens: bool | int = False,
) -> Pairs:
    """`pairs` with features of `column`, float32, taken from the cache where it can.

    Layer −1 becomes `<column>_features` [n, d]; a layer k ≥ 0 `<column>_layer<k>`
    ("all": every layer); tokens=True adds the last layer's `<column>_tokens`, and
    tokens=n keeps at most n a row: the means of n stretches of its tokens (`shortened`).
    Rows of equal source are encoded once. Missing rows are zeros and stay missing.

    Features are kept under all that decides them: the encoder and the rows' content, of a
    `Lazy` column the files' bytes and the code that reads them. Where that cannot be told
    (the reader holds a data base, say) they are made anew, and a warning says so.

    Raises KeyError for an unknown column, ValueError for one that cannot be encoded, or
    for tokens below 1.
    """
    if tokens is not True and tokens is not False and tokens < 1:
        raise ValueError(f"tokens must be True, False or how many a row, at least 1, got "
                         f"{tokens}")
    encoder = encoder if isinstance(encoder, Encoder) else load(encoder)
    _check_column(pairs, column, encoder)
    layers = sorted(encoder.widths) if layers == "all" else list(layers)
    first, at = _distinct(pairs, column)
    wanted = {f"{column}_features" if k == -1 else f"{column}_layer{k}": (k, False)
              for k in layers}
    if tokens is not False:
        wanted[f"{column}_tokens"] = (-1, tokens)
    content, untold = _content(pairs[column], encoder.untold)
    ids = json.dumps([pairs.ids[i] for i in first])
    fields = {
        "corpus": pairs.provenance.hash,
        "column": column,
        "rows": hashlib.sha256(ids.encode()).hexdigest(),
        "content": content,
        "encoder": [encoder.name, encoder.weights_hash, encoder.preprocessing],
    }
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory()) if untold else None
        # Keyed by what is computed, so that layer −1 and its number share one store.
        stores = {
            (k, kept): Store(fields | {"layer": k, "tokens": kept}, len(first), folder)
            for k, kept in {(encoder.layer(k), t) for k, t in wanted.values()}
        }
        _fill(stores, encoder, lambda i: pairs[column][first[i]], len(first))
        _say(stores, encoder, column, len(first))
        return pairs.with_features(**{
            name: stores[encoder.layer(k), kept].read(at)
            for name, (k, kept) in wanted.items()
        })


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
                          f"seen. {mend}", stacklevel=3)
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


def _distinct(pairs: Pairs, column: str) -> tuple[list[int], Tensor]:
    """First row of each distinct present source; place [n] of each row among them."""
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
            source = source, _kinds(source)
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
          source: Callable[[int], object], n: int) -> None:
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
            _encode(stores, lacking, blocks, encoder, source, n)


def _encode(stores: dict[tuple[int, bool | int], Store], lacking: dict[tuple, set[int]],
            blocks: list[int], encoder: Encoder, source: Callable[[int], object],
            n: int) -> None:
    encoder.start()
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
                found = encoder.outputs(inputs, layers, tokens)
                for (k, kept), part in parts.items():
                    part.append(_kept(found[k], kept))
                bar.update(len(inputs))
                done += len(inputs)
                if done == len(inputs):  # the first batch tells how long it takes
                    _announce(encoder, total, (time.perf_counter() - began) / done)
            for key, part in parts.items():
                stores[key].write(block, joined(part), dict(encoder.notes))


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
                      stacklevel=3)


def _announce(encoder: Encoder, total: int, seconds_a_row: float) -> None:
    if total * seconds_a_row > 20:
        where = "a GPU" if torch.cuda.is_available() else "CPU"
        tqdm.write(f"{encoder.name}: {total:,} rows on {where}, about "
                   f"{total * seconds_a_row:.0f} s, once: the features are kept",
                   file=sys.stderr)
