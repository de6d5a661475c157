"""Floor 3: the training loop, checkpoints, estimates and diagnosis.

Several processes: `distributed`. A batch that does not fit in memory: `Budget.chunk`.
"""

from alignkit.training.budget import Budget
from alignkit.training.diagnose import diagnose, gradient_cosines
from alignkit.training.estimate import Estimate, estimate, logits_memory, memory_of
from alignkit.training.loop import History, NonFiniteLoss, fit, to_device
from alignkit.training.randomness import batch_rows, seed_all, seed_of

__all__ = ["Budget", "Estimate", "History", "NonFiniteLoss", "batch_rows", "diagnose",
           "estimate", "fit", "gradient_cosines", "logits_memory", "memory_of", "seed_all", "seed_of",
           "to_device"]
