"""A classifier on features, trained on labels as they are: the usual baseline where labels
are wrong."""

from torch import Tensor, nn
from torch.nn import functional as F

from alignkit.data import Pairs
from alignkit.parts.method import Method, Stage


class Classifier(Method):
    """An MLP e with one hidden layer, v = e(x), and the scores W v of the classes.

    settings: anything with `image`, the feature column, `label`, the name of the label
    (its classes are those of `label_names`), and `hidden`, the width of v.
    """

    traits = frozenset({"no pairs"})

    def build(self, settings, pairs: Pairs) -> None:
        width, classes = pairs[settings.image].shape[1], len(pairs.label_names[settings.label])
        self.encoder = nn.Sequential(nn.LayerNorm(width, elementwise_affine=False),
                                     nn.Linear(width, settings.hidden), nn.ReLU())
        self.classifier = nn.Linear(settings.hidden, classes, bias=False)

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """`image`: scores of the classes [b, C]; `label`: the row's label, one-hot, if it
        has one; v [b, hidden]."""
        v = self.encoder(batch[self.settings.image])
        logits = self.classifier(v)
        return {"image": logits, **self.labels_of(batch, logits), "v": v}

    def labels_of(self, batch: dict, logits: Tensor) -> dict[str, Tensor]:
        y = batch["labels"].get(self.settings.label)
        return {} if y is None else {"label": F.one_hot(y, logits.shape[1]).to(logits)}

    def stages(self) -> list[Stage]:
        trained = [*self.encoder.parameters(), *self.classifier.parameters()]
        return [Stage("labels", parameters=[{"params": trained}])]

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        y = batch["labels"][self.settings.label]
        return {"class_loss": F.cross_entropy(outputs["image"], y)}

    def score(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Scores of pictures (`image`) for the classes of rows (`label`), or back."""
        return query @ gallery.T
