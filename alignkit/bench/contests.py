"""What is measured: for each contest the contestants, ours first, as functions that make
their inputs and give the work to be timed. Peers are imported when they are asked for."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignkit.data import Pairs, Tokens
from alignkit.parts import DualEncoder, Method, Settings, TransformerEncoder, info_nce, mean_pool
from alignkit.parts import positives_of, sigmoid_loss, unit
from alignkit.parts.large_batch import cached_backward, tiled_info_nce, tiled_sigmoid

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPEN_CLIP, SENTENCE = "open_clip_torch", "sentence-transformers"
METRIC_LEARNING = "pytorch-metric-learning"


@dataclass(frozen=True)
class Contest:
    """what: one line, with {n} for the size. size, warm: published, and to warm up.
    contestants: name -> size -> work. needs: contestant -> package, where it is a peer's."""

    what: str
    size: int
    warm: int
    contestants: dict[str, Callable[[int], Callable]]
    needs: dict[str, str] = field(default_factory=dict)


def seeded(*shape: int) -> Tensor:
    """The same rows for every contestant."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(DEVICE)


# Losses: forward and backward of n pairs of width 512 -----------------------------------
def loss(make: Callable) -> Callable:
    """A contestant from `make() -> loss of (a, b)`."""
    def prepare(n: int) -> Callable:
        a, b = (unit(x).requires_grad_() for x in seeded(2, n, 512))
        for x in (a, b):
            x.grad = torch.zeros_like(x)
        of = make()

        def work() -> None:
            torch.autograd.backward(of(a, b))
        return work
    return prepare


def scalar(value: float) -> Tensor:
    return torch.tensor(value, device=DEVICE, requires_grad=True)


def open_clip(name: str, *numbers: float) -> Callable:
    def make():
        from open_clip import loss as losses

        of, values = getattr(losses, name)(), [scalar(x) for x in numbers]
        return lambda a, b: of(a, b, *values)
    return make


def metric_learning():
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    of = SelfSupervisedLoss(NTXentLoss(temperature=0.05))
    return lambda a, b: of(a, b)


def pairs_only(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.bool, device=DEVICE)


INFO_NCE = Contest(
    "InfoNCE of {n} pairs of width 512, value and gradient", 16384, 256,
    {"alignkit, in tiles": loss(lambda: lambda a, b, s=scalar(20.0): tiled_info_nce(a, b, s)),
     "alignkit, whole": loss(lambda: lambda a, b, s=scalar(20.0): info_nce(a, b, s)),
     "open_clip ClipLoss": loss(open_clip("ClipLoss", 20.0))},
    {"open_clip ClipLoss": OPEN_CLIP})
SMALL_INFO_NCE = Contest(
    "InfoNCE of {n} pairs of width 512, value and gradient", 2048, 128,
    {"alignkit, in tiles": INFO_NCE.contestants["alignkit, in tiles"],
     "open_clip ClipLoss": INFO_NCE.contestants["open_clip ClipLoss"],
     "pytorch-metric-learning NTXentLoss": loss(metric_learning)},
    {"open_clip ClipLoss": OPEN_CLIP, "pytorch-metric-learning NTXentLoss": METRIC_LEARNING})
SIGMOID = Contest(
    "the sigmoid loss of {n} pairs of width 512, value and gradient", 16384, 256,
    {"alignkit, in tiles": loss(lambda: lambda a, b, s=scalar(10.0), c=scalar(-10.0):
                                tiled_sigmoid(a, b, s, c)),
     "alignkit, whole": loss(lambda: lambda a, b, s=scalar(10.0), c=scalar(-10.0):
                             sigmoid_loss(a, b, s, c)),
     "open_clip SigLipLoss": loss(open_clip("SigLipLoss", 10.0, -10.0))},
    {"open_clip SigLipLoss": OPEN_CLIP})


# Cached gradients: a transformer tower, n rows and an eighth of them ---------------------
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
    torch.manual_seed(0)
    method = Towers(None, None).to(DEVICE).train()
    for parameter in method.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return method


def direct(share: int) -> Callable:
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


# Retrieval ------------------------------------------------------------------------------
def galleries(n: int) -> tuple[Tensor, Tensor, Tensor]:
    a, b = seeded(2, n, 512)
    return unit(a), unit(a + 4 * b), torch.arange(n, device=DEVICE)


def ours(n: int) -> Callable:
    from alignkit.evaluation import retrieve

    a, b, item = galleries(n)
    return lambda: retrieve(a, b, item, item)


def faiss_twice(n: int) -> Callable:
    import faiss

    a, b, _ = galleries(n)

    def work() -> None:
        for query, gallery in ((a, b), (b, a)):
            index = faiss.IndexFlatIP(512)
            index.add(gallery.cpu().numpy())
            index.search(query.cpu().numpy(), 10)
    return work


def torchmetrics_hits(n: int) -> Callable:
    from torchmetrics.retrieval import RetrievalHitRate

    a, b, _ = galleries(n)

    def work() -> None:
        for scores in (a @ b.T, b @ a.T):
            right, query = pairs_only(n), torch.arange(n, device=DEVICE)
            for k in (1, 5, 10):
                metric = RetrievalHitRate(top_k=k)
                metric(scores.flatten(), right.flatten(), query.repeat_interleave(n))
    return work


RETRIEVAL = Contest(
    "hit@1, 5, 10 of {n} against {n} rows of width 512, both directions", 32768, 1024,
    {"alignkit retrieve": ours, "two faiss flat searches": faiss_twice},
    {"two faiss flat searches": "faiss-cpu"})
SMALL_RETRIEVAL = Contest(
    "hit@1, 5, 10 of {n} against {n} rows of width 512, both directions", 5000, 100,
    {"alignkit retrieve": ours, "torchmetrics RetrievalHitRate": torchmetrics_hits},
    {"torchmetrics RetrievalHitRate": "torchmetrics"})


# Features and training ------------------------------------------------------------------
def sentences(n: int) -> list[str]:
    return [f"picture {k} of a small dog left of {k % 7} red balloons" for k in range(n)]


def our_features(warm: bool) -> Callable:
    def prepare(n: int) -> Callable:
        from alignkit.encoders import add_features, load

        # Its own words, so that nothing is found in the cache.
        mark = torch.randint(10**9, (1,)).item() if not warm else "seen"
        pairs = Pairs.make({"text": [f"{mark} {text}" for text in sentences(n)]})
        encoder = load("text:minilm")
        encoder.start()
        if warm:
            add_features(pairs, "text", encoder)
        return lambda: add_features(pairs, "text", encoder)
    return prepare


def sentence_features(n: int) -> Callable:
    from sentence_transformers import SentenceTransformer

    from alignkit.data.fetch import asset

    model, texts = SentenceTransformer(str(asset("minilm"))), sentences(n)
    return lambda: model.encode(texts, batch_size=64)


FEATURES = Contest(
    "{n} captions through MiniLM", 1024, 64,
    {"alignkit add_features": our_features(False),
     "alignkit add_features, in the cache": our_features(True),
     "sentence-transformers encode": sentence_features},
    {"sentence-transformers encode": SENTENCE})


def feature_pairs() -> Pairs:
    return Pairs.from_features({"image_features": seeded(2000, 1280).cpu(),
                                "text_features": seeded(2000, 384).cpu()})


def our_training(steps: int) -> Callable:
    from alignkit.training import Budget, fit

    pairs = feature_pairs()
    method = DualEncoder(Settings(), pairs)
    return lambda: fit(method, pairs, Budget(steps=steps, batch_size=512))


def plain_training(steps: int) -> Callable:
    pairs = feature_pairs()
    heads = nn.ModuleList([nn.Linear(1280, 128), nn.Linear(384, 128)]).to(DEVICE)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-3, weight_decay=1e-4)

    def work() -> None:
        for _ in range(steps):
            rows = torch.randperm(len(pairs))[:512]
            a, b = (F.normalize(head(pairs[name][rows].to(DEVICE))) for head, name in
                    zip(heads, ("image_features", "text_features"), strict=True))
            logits, right = 20 * a @ b.T, torch.arange(512, device=DEVICE)
            loss = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return work


TRAIN = Contest(
    "{n} steps of two linear heads on 512 pairs", 300, 5,
    {"alignkit fit": our_training, "a plain PyTorch loop": plain_training})

CONTESTS = {"loss": INFO_NCE, "loss-small": SMALL_INFO_NCE, "loss-sigmoid": SIGMOID,
            "cache": CACHE, "retrieval": RETRIEVAL, "retrieval-small": SMALL_RETRIEVAL,
            "features": FEATURES, "train": TRAIN}
