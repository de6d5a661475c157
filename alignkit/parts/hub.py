"""Several kinds of material in one space, of which some meet and others do not."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignkit.parts.losses import info_nce, positives_of
from alignkit.parts.method import Method, Settings


@dataclass(frozen=True)
class HubSettings(Settings):
    """Settings of a dual encoder with two towers or more, and `meets`: the pairs of towers
    that the loss compares (default: the first tower, the hub, with each of the others)."""

    temperature: float = 0.07
    learn_temperature: bool = True
    meets: Sequence[tuple[str, str]] = ()


class Hub(Method):
    """A head for each tower; InfoNCE of every two that meet, on the rows that have both.

    loss = the mean over the pairs of towers that meet of their InfoNCE, rows of one item
    being right answers; a pair that no two rows of the batch have is left out (Girdhar et
    al. 2023, ImageBind: pictures are the hub). Two towers that do not meet send each other
    no gradient: what they have in common they have through the hub.
    """

    settings: HubSettings

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        """Raises ValueError if no two rows of the batch have a pair that meets."""
        towers = self.settings.towers
        hub, *others = towers
        found = []
        for a, b in self.settings.meets or [(hub, other) for other in others]:
            here = batch["present"][towers[a]] & batch["present"][towers[b]]
            if here.sum() > 1:
                found.append(info_nce(outputs[a][here], outputs[b][here], self.temperature(),
                                      positives_of(batch["item"][here])))
        if not found:
            raise ValueError(f"no two of {len(batch['item'])} rows have both of two towers "
                             f"that meet, of {list(towers)}: look at `present`")
        return {"contrastive_loss": torch.stack(found).mean()}
