"""Floor 1: frozen backbones behind one function, and their features in a cache."""

from alignkit.encoders.encoder import Encoder
from alignkit.encoders.features import add_features, add_tokens, load
from alignkit.encoders.regions import add_regions

__all__ = ["Encoder", "add_features", "add_regions", "add_tokens", "load"]
