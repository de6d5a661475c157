"""Floor 2: losses, layers and the method contract."""

from alignkit.parts.dual_encoder import DualEncoder
from alignkit.parts.layers import Temperature, projector
from alignkit.parts.losses import info_nce, logits_of, positives_of
from alignkit.parts.method import Method, Settings, Stage
from alignkit.parts.optimise import optimise_inputs
from alignkit.parts.similarity import cosine, unit

__all__ = ["DualEncoder", "Method", "Settings", "Stage", "Temperature", "cosine",
           "info_nce", "logits_of", "optimise_inputs", "positives_of", "projector",
           "unit"]
