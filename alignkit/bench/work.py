"""Features of captions, and a training run of two heads."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from alignkit.bench.contest import DEVICE, Contest, seeded
from alignkit.data import Pairs
from alignkit.parts import DualEncoder, Settings


def sentences(n: int) -> list[str]:
    return [f"picture {k} of a small dog left of {k % 7} red balloons" for k in range(n)]


def our_features(warm: bool) -> Callable:
    """New captions, or captions that the cache holds."""
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
    """The same weights through sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    from alignkit.data.fetch import asset

    model, texts = SentenceTransformer(str(asset("minilm"))), sentences(n)
    return lambda: model.encode(texts, batch_size=64)


FEATURES = Contest(
    "{n} captions through MiniLM", 1024, 64,
    {"alignkit add_features": our_features(False),
     "alignkit add_features, in the cache": our_features(True),
     "sentence-transformers encode": sentence_features},
    {"sentence-transformers encode": "sentence-transformers"})


def feature_pairs() -> Pairs:
    return Pairs.from_features({"image_features": seeded(2000, 1280).cpu(),
                                "text_features": seeded(2000, 384).cpu()})


def our_training(steps: int) -> Callable:
    """`fit` with its checks and its history."""
    from alignkit.training import Budget, fit

    pairs = feature_pairs()
    method = DualEncoder(Settings(), pairs)
    return lambda: fit(method, pairs, Budget(steps=steps, batch_size=512))


def plain_training(steps: int) -> Callable:
    """The shortest loop that does the same."""
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
