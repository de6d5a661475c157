"""`Encoder`: a frozen backbone behind one function."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import NamedTuple

import torch
from torch import Tensor, nn

from alignkit.data.columns import Tokens
from alignkit.versions import explained


class Output(NamedTuple):
    """One layer: `pooled` [b, d]; `tokens` with values [b, t, d], or None."""

    pooled: Tensor
    tokens: Tokens | None


BATCH = 64  # rows that go through a model together
# With one thread, torch convolves fewer pictures by another kernel, and multiplies fewer rows
# in another order: other last bits.
LEAST = 16

Run = Callable[[list, Sequence[int]], dict[int, Output]]


@dataclass
class Encoder:
    """A frozen backbone: a list of inputs in, features of the asked layers out.

    widths: layer -> d; -1 stands for the last layer. weights_hash and preprocessing
    tell two encoders apart in the cache. The weights are read by `build` at the first
    call of `encode`, so that features that are in the cache cost no model. untold: what
    decides the features and is not told by these; they are then not cached. notes: what
    was seen of the inputs, texts that were cut, say: words -> [how many, the first];
    `add_features` says so.

    The same inputs give the same bits with any number of threads. Rows go through the model
    `BATCH` at a time; fewer than `LEAST` are filled up with copies (`fills`; not where rows
    go one by one), so that a row gives the same bits among any others, except a text: it
    is padded to the longest of the texts it goes with.
    """

    name: str
    modality: str  # "image", "text", "sound", "points", "video" or "any"
    widths: dict[int, int | None]  # None: known after the first call
    weights_hash: str
    preprocessing: str
    build: Callable[[], Run] = field(repr=False)
    untold: list[str] = field(default_factory=list, repr=False)
    notes: dict[str, list] = field(default_factory=dict, repr=False)
    fills: bool = field(default=True, repr=False)
    _run: Run | None = field(default=None, init=False, repr=False)

    def layer(self, k: int) -> int:
        """The layer number that `k` (≥ 0, or −1 for the last) stands for."""
        if k != -1 and k not in self.widths:
            raise ValueError(
                f"layers: {self.name} has layers 0 … {max(self.widths)} (or -1 for the "
                f"last), got {k}"
            )
        return max(self.widths) if k == -1 else k

    def start(self) -> None:
        """Read the weights now rather than at the first call.

        Raises ImportError in one sentence if torchvision does not work beside this torch:
        its own message would name a missing operator.
        """
        if self._run is None:
            with explained():
                self._run = self.build()

    def outputs(
        self, inputs: list, layers: Sequence[int] = (-1,), tokens: bool = False
    ) -> dict[int, Output]:
        """Asked layer -> pooled features and (tokens=True) tokens, float32 on the CPU.

        Raises ValueError for no inputs, a layer that is not there or an encoder without
        tokens, TypeError for a text that is given alone: its letters would be the inputs.
        """
        if isinstance(inputs, str):
            raise TypeError(f"inputs must be a list, got the text {inputs[:60]!r}: write "
                            f"[{inputs[:20]!r}]")
        if not len(inputs):
            raise ValueError("inputs is empty: give at least one")
        wanted = {k: self.layer(k) for k in layers}
        self.start()
        real = sorted(set(wanted.values()))
        parts = [self._batch(inputs[start:start + BATCH], real, tokens)
                 for start in range(0, len(inputs), BATCH)]
        found = {k: Output(joined([part[k].pooled for part in parts]),
                           joined([part[k].tokens for part in parts]) if tokens else None)
                 for k in real}
        self.widths.update({k: out.pooled.shape[1] for k, out in found.items()})
        return {k: found[number] for k, number in wanted.items()}

    def _batch(self, rows: list, layers: list[int], tokens: bool) -> dict[int, Output]:
        n = len(rows)
        with torch.inference_mode():
            found = self._run(filled(rows) if self.fills else rows, layers)
        if tokens and any(output.tokens is None for output in found.values()):
            raise ValueError(f"tokens: {self.name} gives pooled features only")
        return {k: Output(_plain(out.pooled[:n]), Tokens(*(_plain(x[:n]) for x in out.tokens))
                          if tokens else None) for k, out in found.items()}

    def encode(
        self, inputs: list, layers: Sequence[int] = (-1,), tokens: bool = False
    ) -> dict[int, Tensor | Tokens]:
        """Asked layer -> pooled features [b, d], or its `Tokens` when tokens=True.

        Raises as `outputs` does.
        """
        found = self.outputs(inputs, layers, tokens)
        return {k: out.tokens if tokens else out.pooled for k, out in found.items()}


def around(inner: Encoder, word: str, modality: str, then: str, run: Run) -> Encoder:
    """An encoder `<word>:<inner>` whose `run` asks `inner` for rows of its own kind, and has
    its layers and weights. then: what it does with them, which tells it apart in the cache
    (with a version, as `preprocessing` is)."""
    def build() -> Run:
        inner.start()
        return run

    plain = inner.name.removeprefix("random:")
    return Encoder(
        name="random:" * (plain != inner.name) + f"{word}:{plain}", modality=modality,
        widths=dict(inner.widths), weights_hash=inner.weights_hash,
        preprocessing=f"{inner.preprocessing}; {then}", build=build,
        fills=False)  # inner does, and what it gets differs from row to row


def _plain(x: Tensor) -> Tensor:
    # Copied outside inference mode: autograd refuses inference tensors.
    return (x if x.dtype == torch.bool else x.float()).cpu().clone()


def filled(rows: list | Tensor) -> list | Tensor:
    """`rows`, with copies of the last one where they are fewer than `LEAST`."""
    missing = max(0, LEAST - len(rows))
    if isinstance(rows, Tensor):
        return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])
    return [*rows, *rows[-1:] * missing]


def joined(parts: list) -> Tensor | Tokens:
    """Rows of several batches as one, tokens padded to the longest of them."""
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    longest = max(part.mask.shape[1] for part in parts)
    pad = nn.functional.pad
    return Tokens(
        torch.cat([pad(p.values, (0, 0, 0, longest - p.mask.shape[1])) for p in parts]),
        torch.cat([pad(p.mask, (0, longest - p.mask.shape[1])) for p in parts]))


def shortened(tokens: Tokens, n: int) -> Tokens:
    """At most n tokens a row: the means of n stretches, equal but for one token, of its
    real tokens in their order. A row of n or fewer keeps them as they are.

    Places of a picture come row by row, so that a stretch is a strip of it.
    Raises ValueError for n below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 token a row, got {n}")
    rows = []
    for values, mask in zip(*tokens, strict=True):
        real = values[mask]
        stretches = real.tensor_split(n) if len(real) > n else real.split(1)
        rows.append(torch.stack([x.mean(0) for x in stretches]) if len(real) else real)
    lengths = torch.tensor([len(row) for row in rows])
    values = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return Tokens(values, torch.arange(values.shape[1]) < lengths[:, None])


@contextmanager
def one_thread() -> Iterator[None]:
    """For sums over a batch and `interpolate`: their last bits depend on the threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw initial weights from `seed`; the caller's generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed or 0)
        yield


def random_hash(seed: int, library: str) -> str:
    """What fixes the weights of a random twin, without building it."""
    return f"seed {seed}, torch {torch.__version__}, {library} {version(library)}"


def device() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of values [b, t, d] over the tokens where mask [b, t] is True -> [b, d]."""
    weight = mask[..., None].to(values.dtype)
    return (values * weight).sum(1) / weight.sum(1).clamp(min=1)


def as_tokens(values: Tensor, mask: Tensor | None = None) -> Tokens:
    """Tokens of a feature map [b, d, h, w] (row by row) or of states [b, t, d].

    Padding (mask False) is set to 0.
    """
    if values.dim() == 4:
        values = values.flatten(2).transpose(1, 2)
    if mask is None:
        mask = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        return Tokens(values, mask)
    return Tokens(values * mask[..., None], mask)


def hash_weights(model: nn.Module) -> str:
    """sha256 (hex) over the names, types and bytes of a model's weights."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        sha.update(raw.numpy())
    return sha.hexdigest()
