"""The contract of a method. The defaults serve a dual encoder on pooled features."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from alignkit.data import Pairs
from alignkit.parts.large_batch import processes, tiled_info_nce
from alignkit.parts.layers import Temperature, projector
from alignkit.parts.losses import info_nce, positives_of
from alignkit.parts.similarity import cosine, unit

# Rows whose logits are made whole, which is simpler and equal; more, or rows of several
# processes, go tile by tile.
WHOLE = 2048


@dataclass(frozen=True)
class Stage:
    """One stretch of training.

    name: shown and logged. view: the rows this stage trains on. parameters: groups for
    the optimiser, `[{"params": [...], "lr": 1e-4}]` (None: every parameter that wants a
    gradient, at the budget's rate). steps, select_by (the validation figure whose
    highest value picks the weights to keep): None takes the budget's. solve: a closed
    form, `solve(pairs)`, instead of steps.
    """

    name: str = "train"
    view: Callable[[Pairs], Pairs] = lambda pairs: pairs
    parameters: Sequence[Mapping] | None = None
    steps: int | None = None
    select_by: str | None = None
    solve: Callable[[Pairs], None] | None = None


@dataclass(frozen=True)
class Settings:
    """Settings of a dual encoder.

    towers: modality -> its feature column. width: of the shared space. head: see
    `projector`. temperature: of the softmax; learned if learn_temperature.
    """

    towers: Mapping[str, str] = field(
        default_factory=lambda: {"image": "image_features", "text": "text_features"})
    width: int = 128
    head: str = "linear"
    temperature: float = 0.05
    learn_temperature: bool = False


class Method(nn.Module):
    """A method: what is learned, from what, and how rows are compared.

    Override what differs; two of these are usual. `traits` names the exceptions a
    shared test must know: 'untrained' (fit takes no gradient step), 'ordered' (the loss
    changes if rows are permuted), 'no pairs' (the pairing of rows is not used), 'stopped'
    (the gradient is not the slope of the loss: part of it is held still).
    """

    traits: frozenset[str] = frozenset()

    def __init__(self, settings, pairs: Pairs):
        super().__init__()
        self.settings = settings
        self.build(settings, pairs)

    def build(self, settings, pairs: Pairs) -> None:
        """Make the parameters; what comes from data (vocabulary, adjacency, class
        centres) becomes a buffer here."""
        self.heads = nn.ModuleDict({
            name: projector(pairs[column].shape[-1], settings.width, settings.head)
            for name, column in settings.towers.items()})
        self.temperature = Temperature(settings.temperature, settings.learn_temperature)

    def collate(self, rows: Pairs, generator: torch.Generator) -> dict:
        """The batch of `rows`: decode, tokenise, mask, draw views or negatives here, with
        `generator` alone. Tensors in it are moved to the device by the trainer.

        It may run ahead of training, in a worker (`fit(…, workers=8)`), on a copy of the
        method without weights: it reads nothing that training changes, and what it writes
        on the method is lost."""
        return rows.batch()

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """Outputs by modality, unit rows [b, width]; a column that the batch lacks is
        left out."""
        return {name: unit(self.heads[name](batch[column]))
                for name, column in self.settings.towers.items() if column in batch}

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        """Scalars named `…_loss`, summed by the trainer; progress in [0, 1] carries
        ramps. The default takes the rows of all processes for its softmax."""
        first, second = (outputs[name] for name in self.settings.towers)
        scale, item = self.temperature(), batch["item"]
        if len(first) > WHOLE or processes()[1] > 1:
            return {"contrastive_loss": tiled_info_nce(first, second, scale, item)}
        return {"contrastive_loss": info_nce(first, second, scale, positives_of(item))}

    def forward(self, batch: dict, progress: float = 0.0) -> dict[str, Tensor]:
        return self.losses(self.encode(batch), batch, progress)

    def after_step(self) -> None:
        """Called once after each optimiser step: moving averages, queues."""

    def stages(self) -> Sequence[Stage]:
        """What `fit` does, in order."""
        return [Stage()]

    def score(self, query, gallery) -> Tensor:
        """Scores [n_query, n_gallery] of outputs of `encode`; higher is closer."""
        return cosine(query, gallery)

    def generate(self, batch: dict, **options):
        """Rows made from other rows (captions, images)."""
        raise NotImplementedError(f"{type(self).__name__} does not generate")
