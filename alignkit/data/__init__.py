"""Floor 0: pairs, corpora, corruptions and the files they come from."""

from alignkit.data.columns import Lazy, Tokens
from alignkit.data.corruptions import (
    drop_modality, few_pairs, label_noise, shuffle_pairs,
)  # fmt: skip
from alignkit.data.pairs import Pairs, Provenance, Splits
from alignkit.data.shards import official_splits, open_shards, read_shards, write_shards

__all__ = ["Lazy", "Pairs", "Provenance", "Splits", "Tokens", "drop_modality",
           "few_pairs", "label_noise", "official_splits", "open_shards", "read_shards",
           "shuffle_pairs", "write_shards"]
