"""Cached gradients: the gradient of a large batch in the memory of a small one."""

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor, nn

from alignkit.data import Pairs, Tokens

Path = tuple[str, ...]  # names from a batch down to a tensor, ("present", "image")


def cached_backward(method: nn.Module, batch: dict, progress: float = 0.0, *, chunk: int,
                    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
                    rows: Collection[Path] | None = None) -> dict[str, Tensor]:
    """Add the gradients of `method(batch, progress)` to the parameters, keeping what the
    encoders need for a backward pass of `chunk` rows at a time only; gives the losses.

    All rows are encoded without a gradient, the losses of all outputs give the gradient
    of each output, then every chunk is encoded once more, in the same random state, and
    takes back the gradient of its rows (Gao et al. 2021, GradCache, section 3.2). This
    is the direct gradient if rows are encoded independently (no batch normalisation in
    training mode), for the price of one more encoding. Dropout is drawn chunk by chunk.

    Args:
        method: a `Method`.
        batch: from `method.collate`; what has an entry a row is cut into chunks, the rest
            goes to every chunk, be it as long as the batch or not.
        scale: of the summed loss, before its backward pass (a gradient scaler's).
        rows: what has an entry a row: `row_paths(method, pairs)`, which `fit` gives. None:
            what `Pairs.batch` gives; of a batch made by hand (without `present`)
            everything that is as long as `batch["item"]`.
    Raises:
        ValueError: chunk is below 1, or an output of `encode` has other rows than its
            chunk of the batch.
    """
    n = len(batch["item"])
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    places = [slice(start, start + chunk) for start in range(0, n, chunk)]
    cut = set(_given(batch) if rows is None else rows)
    parts = [_cut(batch, cut, place) for place in places]
    device = batch["item"].device
    states, found = [], []
    with torch.no_grad():
        for part in parts:
            states.append(_random_state(device))
            found.append(method.encode(part))
            _map(lambda x, rows=len(part["item"]): _check(x, rows), found[-1])
    # Before torch 2.11 autocast keeps the weights that it has cast without a gradient.
    torch.clear_autocast_cache()
    outputs = _map(lambda *rows: torch.cat(rows), *found)
    outputs = _map(lambda x: x.requires_grad_() if x.is_floating_point() else x, outputs)
    del found
    losses = method.losses(outputs, batch, progress)
    scale(sum(losses.values())).backward()
    after = _random_state(device)
    for part, place, state in zip(parts, places, states, strict=True):
        _set_random_state(state, device)
        again, gradients = [], []

        def pair(x: Tensor, whole: Tensor) -> None:
            if x.requires_grad and whole.grad is not None:
                again.append(x)
                gradients.append(whole.grad[place])

        _map(pair, method.encode(part), outputs)
        if again:
            torch.autograd.backward(again, gradients)
    _set_random_state(after, device)
    return {name: value.detach() for name, value in losses.items()}


def row_paths(method: nn.Module, pairs: Pairs) -> set[Path]:
    """What of a batch of `method` has an entry a row: what becomes shorter by one where
    the batch does. A tensor that only happens to be as long as the batch does not."""
    draw, n = torch.Generator().manual_seed(0), len(pairs)
    whole, less = (dict(_lengths(method.collate(pairs.select(range(k)), draw)))
                   for k in (n, n - 1))
    return {path for path, size in whole.items()
            if size == n and less.get(path) == n - 1}


def _given(batch: dict) -> set[Path]:
    """The rows of a batch that nothing more is known of."""
    n, columns = len(batch["item"]), batch.get("present")
    known = {"ids", "item", "labels", "present", *(columns or ())}
    return {path for path, size in _lengths(batch)
            if size == n and (columns is None or path[0] in known)}


def _lengths(x, path: Path = ()) -> Iterator[tuple[Path, int]]:
    """The length of every list, tensor and `Tokens` of a batch, by its path."""
    if isinstance(x, dict):
        for name, value in x.items():
            yield from _lengths(value, (*path, name))
    elif isinstance(x, Tokens):
        yield path, len(x.values)
    elif isinstance(x, list) or isinstance(x, Tensor) and x.dim() > 0:
        yield path, len(x)


def _cut(x, rows: set[Path], place: slice, path: Path = ()):
    """The part `place` of whatever stands in `rows`."""
    if isinstance(x, dict):
        return {name: _cut(value, rows, place, (*path, name)) for name, value in x.items()}
    if path not in rows:
        return x
    return Tokens(x.values[place], x.mask[place]) if isinstance(x, Tokens) else x[place]


def _map(function: Callable, *outputs):
    """`function` of the tensors at the same place of each of `outputs`."""
    first = outputs[0]
    if isinstance(first, dict):
        return {name: _map(function, *(x[name] for x in outputs)) for name in first}
    if isinstance(first, Tokens):
        return Tokens(*(_map(function, *parts) for parts in zip(*outputs, strict=True)))
    return function(*outputs)


def _check(x: Tensor, rows: int) -> None:
    if x.dim() == 0 or len(x) != rows:
        raise ValueError(f"encode gave {tuple(x.shape)} for {rows} rows: with cached "
                         "gradients every output needs one row a row of the batch, and "
                         "what `collate` adds is cut only with rows=row_paths(method, pairs)")


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return states + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
