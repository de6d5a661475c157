"""Floor 2: losses, layers and the method contract."""

from alignkit.parts.attention import (
    AttentionPooling, CrossAttention, TokenEmbedding, TransformerDecoder,
    TransformerEncoder,
)  # fmt: skip
from alignkit.parts.dual_encoder import DualEncoder
from alignkit.parts.layers import Experts, LowRank, Temperature, projector
from alignkit.parts.losses import (
    alignment_loss, distillation_loss, info_nce, logits_of, positives_of, shares,
    sigmoid_loss, triplet_loss, two_way_cross_entropy, uniformity_loss,
)  # fmt: skip
from alignkit.parts.method import Method, Settings, Stage
from alignkit.parts.momentum import FeatureQueue, Momentum
from alignkit.parts.optimise import optimise_inputs, pgd
from alignkit.parts.similarity import (
    cosine, gramian_volume, gramian_volumes, late_interaction, unit,
)  # fmt: skip
from alignkit.parts.sparse import sparsemax
from alignkit.parts.text import WordPieces, mask_words
from alignkit.parts.tokens import leading_directions, mean_pool
from alignkit.parts.transport import sinkhorn

__all__ = ["AttentionPooling", "CrossAttention", "DualEncoder", "Experts",
           "FeatureQueue", "LowRank", "Method", "Momentum", "Settings", "Stage", "Temperature",
           "TokenEmbedding", "TransformerDecoder", "TransformerEncoder", "WordPieces",
           "alignment_loss", "cosine", "distillation_loss", "gramian_volume",
           "gramian_volumes", "info_nce", "late_interaction", "leading_directions",
           "logits_of", "mask_words", "mean_pool", "optimise_inputs", "pgd", "positives_of",
           "projector", "shares", "sigmoid_loss", "sinkhorn", "sparsemax",
           "triplet_loss", "two_way_cross_entropy", "uniformity_loss", "unit"]
