"""Features of captions."""

from collections.abc import Callable

import torch

from alignkit.bench.contest import Contest
from alignkit.data import Pairs


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
