"""The contests by name; in each the first contestant is ours. Peers are imported when they
are asked for."""

from alignkit.bench.feeds import FEED
from alignkit.bench.galleries import RETRIEVAL, SMALL_RETRIEVAL
from alignkit.bench.loops import LOOP, WIDE_LOOP
from alignkit.bench.losses import INFO_NCE, LARGE_INFO_NCE, SIGMOID, SMALL_INFO_NCE
from alignkit.bench.towers import CACHE
from alignkit.bench.work import FEATURES

CONTESTS = {"loss": INFO_NCE, "loss-small": SMALL_INFO_NCE, "loss-sigmoid": SIGMOID,
            "loss-large": LARGE_INFO_NCE,
            "cache": CACHE, "retrieval": RETRIEVAL, "retrieval-small": SMALL_RETRIEVAL,
            "features": FEATURES, "loop": LOOP, "loop-wide": WIDE_LOOP,
            "feed": FEED}
