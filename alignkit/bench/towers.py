"""Cached gradients: two transformer towers, n rows and an eighth of them."""

from collections.abc import Callable

import torch
from torch import nn

from alignkit.bench.contest import DEVICE, Contest, seeded
from alignkit.data import Tokens
from alignkit.parts import Method, TransformerEncoder, mean_pool, unit
from alignkit.parts.large_batch import cached_backward, tiled_info_nce

SENTENCE = "sentence-transformers"


class Towers(Method):
    """Two transformers of four layers on 16 tokens of width 128, with dropout."""

    def build(self, settings, pairs):
        self.a, self.b = (TransformerEncoder(128, layers=4, heads=4, dropout=0.1)
                          for _ in range(2))

    def encode(self, batch):
        return {name: unit(mean_pool(getattr(self, name)(batch[name]))) for name in "ab"}

    def losses(self, outputs, batch, progress):
        return {"pull_loss": tiled_info_nce(outputs["a"], outputs["b"], 20.0)}


def token_batch(n: int) -> dict:
    mask = torch.ones(n, 16, dtype=torch.bool, device=DEVICE)
    return {**{name: Tokens(x, mask) for name, x in zip("ab", seeded(2, n, 16, 128))},
            "item": torch.arange(n, device=DEVICE)}


def towers() -> Towers:
    """The towers, with places for their gradients."""
    torch.manual_seed(0)
    method = Towers(None, None).to(DEVICE).train()
    for parameter in method.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return method


def direct(share: int) -> Callable:
    """All rows at once, or a share of them."""
    def prepare(n: int) -> Callable:
        method, batch = towers(), token_batch(n // share)
        return lambda: torch.autograd.backward(method(batch)["pull_loss"])
    return prepare


def cached(n: int) -> Callable:
    method, batch = towers(), token_batch(n)
    return lambda: cached_backward(method, batch, chunk=n // 8)


class AsSentences(nn.Sequential):
    """The towers, called as sentence-transformers calls a model."""

    def __init__(self, method: Towers):
        super().__init__(nn.Identity())  # it asks for model[0]
        self.method = method

    def forward(self, features: dict, **_) -> dict:
        tower = self.method.a if features["side"] == "a" else self.method.b
        tokens = Tokens(features["input"], features["attention_mask"].bool())
        return {"sentence_embedding": unit(mean_pool(tower(tokens)))}


def sentence_cached(n: int) -> Callable:
    """sentence-transformers' cached loss, in both directions as ours."""
    from sentence_transformers.sentence_transformer import losses

    method, batch = towers(), token_batch(n)
    of = losses.CachedMultipleNegativesRankingLoss(
        AsSentences(method), mini_batch_size=n // 8, partition_mode="per_direction",
        directions=("query_to_doc", "doc_to_query"))
    features = [{"input": batch[side].values, "side": side,
                 "attention_mask": batch[side].mask} for side in "ab"]
    return lambda: torch.autograd.backward(of(features, None))


CACHE = Contest(
    "{n} rows through two towers of 4 layers, value and gradient", 2048, 64,
    {"alignkit, cached, 8 chunks": cached, "direct": direct(1),
     "direct, an eighth of the rows": direct(8),
     "sentence-transformers, cached, 8 chunks": sentence_cached},
    {"sentence-transformers, cached, 8 chunks": SENTENCE})
