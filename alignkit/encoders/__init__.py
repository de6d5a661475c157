"""Floor 1: frozen backbones behind one function, and their features in a cache."""

from alignkit.encoders.encoder import Encoder
from alignkit.encoders.features import add_features, load

__all__ = ["Encoder", "add_features", "load"]
