"""Cached gradients: the gradient of a large batch in the memory of a small one."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from alignkit.data import Tokens


def cached_backward(method: nn.Module, batch: dict, progress: float = 0.0, *, chunk: int,
                    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
                    ) -> dict[str, Tensor]:
    """Add the gradients of `method(batch, progress)` to the parameters, keeping what the
    encoders need for a backward pass of `chunk` rows at a time only; gives the losses.

    All rows are encoded without a gradient, the losses of all outputs give the gradient
    of each output, then every chunk is encoded once more, in the same random state, and
    takes back the gradient of its rows (Gao et al. 2021, GradCache, section 3.2). This
    is the direct gradient if rows are encoded independently (no batch normalisation in
    training mode), for the price of one more encoding. Dropout is drawn chunk by chunk.

    Args:
        method: a `Method`.
        batch: from `method.collate`; its tensors, `Tokens` and lists as long as
            `batch["item"]` are rows, also inside dicts, the rest goes to every chunk.
        scale: of the summed loss, before its backward pass (a gradient scaler's).
    Raises:
        ValueError: chunk is below 1, or an output of `encode` has other rows than its
            chunk of the batch.
    """
    n = len(batch["item"])
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    places = [slice(start, start + chunk) for start in range(0, n, chunk)]
    parts = [{name: _rows(x, n, place) for name, x in batch.items()} for place in places]
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
        rows, gradients = [], []

        def pair(x: Tensor, whole: Tensor) -> None:
            if x.requires_grad and whole.grad is not None:
                rows.append(x)
                gradients.append(whole.grad[place])

        _map(pair, method.encode(part), outputs)
        if rows:
            torch.autograd.backward(rows, gradients)
    _set_random_state(after, device)
    return {name: value.detach() for name, value in losses.items()}


def _rows(x, n: int, place: slice):
    """The rows `place` of whatever has n rows."""
    if isinstance(x, Tokens):
        return Tokens(x.values[place], x.mask[place])
    if isinstance(x, dict):
        return {name: _rows(value, n, place) for name, value in x.items()}
    is_rows = isinstance(x, list) or isinstance(x, Tensor) and x.dim() > 0
    return x[place] if is_rows and len(x) == n else x


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
                         "gradients every output needs one row a row of the batch")


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return states + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
