"""The usual baseline."""

from alignkit.parts.method import Method, Settings

__all__ = ["DualEncoder", "Settings"]


class DualEncoder(Method):
    """Two heads on frozen features and symmetric InfoNCE: CLIP's loss, locked towers.

    z = unit(W_m x_m + b_m) for each modality m; loss = `info_nce` on rows of one item as
    right answers; score = cosine (Radford et al. 2021; locked towers: Zhai et al. 2022).
    Frozen: both encoders. Exact property: the loss of n rows that all look the same is
    ln n, and a common rotation of both heads' outputs changes nothing.
    """
