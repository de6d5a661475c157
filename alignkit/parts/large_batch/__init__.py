"""Large batches: exact losses in little memory, cached gradients, several processes."""

from alignkit.parts.large_batch.cached import cached_backward, row_paths
from alignkit.parts.large_batch.ring import gather_rows, processes
from alignkit.parts.large_batch.tiles import tiled_info_nce, tiled_sigmoid

__all__ = ["cached_backward", "gather_rows", "processes", "row_paths", "tiled_info_nce",
           "tiled_sigmoid"]
