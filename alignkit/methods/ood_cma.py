"""CMA: keep pulling pairs together after they are told apart, to see strangers better.

Paper: Enhanced OoD Detection through Cross-Modal Alignment of Multi-Modal
Representations. Kim, Hwang, CVPR 2025, arXiv 2503.18817.

Claim: fine-tuned with the contrastive loss alone, pictures of the known classes and
their prompts stay apart (a modality gap), so that words which name no known class help
little to recognise pictures of unknown ones. One more term a direction closes the gap,
and detection with such negative labels gets better, at the same accuracy.

Use it when: you fine-tune on labelled pictures and the model must say later "this is
none of my classes", with a word list at hand. Not when retrieval by rank is all you
need (a gap does not change ranks), or when you cannot afford to check that nothing collapses.

Equations, u_i and w_i the unit rows of picture i and of its class's prompt:
    s_ij = scale · u_i · w_j
    L_img = mean_i (lse_j s_ij − s_ii),   R_img = −mean_i lse_j s_ij,   lse = log Σ exp
    loss = ½ (L_img + weight · R_img) + ½ (the same of the transpose)
         = (1 − weight) · InfoNCE + weight · (−mean_i s_ii)
    d loss / d s_ij = (1 − weight) (p_img_ij + p_txt_ij) / 2n − [i = j] / n
`weight` is the paper's λ. A pair that is told apart already has p = 1: InfoNCE leaves
it alone, here weight / n still pulls. Scores of a picture u, high = of a known class:
    negative_label_score = Σ_known exp(cos / temperature) / Σ_known and negative of it
    MCM (`maximum_concept_matching`) = max of softmax(cos) over the known classes

Frozen: both encoders (the paper trains all weights); linear heads without bias and the
scale learn.
Exact property: weight = 0 is InfoNCE, weight = 1 minus the mean positive logit, and the
second line of the loss equals the first for every weight. Without negative labels the
score is 1 for every picture; the order of classes does not matter.
Deviations: frozen encoders and heads that start from nothing; the paper's weight is
0.001 over about 25,000 steps, so a short run needs a larger one (`weight · steps` is
kept); 1 / temperature is clamped at 100. Equal prompts in a batch stay different
columns, as in the authors' code: removing them would be another loss. `fpr_at_95` takes
the threshold at a known picture; theirs (`metrics.py:61`) interpolates between two, and
where exactly 95 % of the known are accepted also counts the unknown down to the next one.
Reconstructed: how negative labels are mined. The authors ship a finished list; `mined`
follows a second-hand description of the NegLabel paper: keep the words that are least
similar to the known class names, by a high quantile over the classes.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from alignkit.data import Pairs
from alignkit.parts import Method, Settings, Temperature, logits_of, unit


@dataclass(frozen=True)
class CmaSettings(Settings):
    """Settings of a dual encoder, and: weight, the paper's λ (0: InfoNCE alone)."""

    temperature: float = 0.07
    learn_temperature: bool = True
    weight: float = 0.001

    def __post_init__(self):
        if self.weight < 0:
            raise ValueError(f"weight must be 0 or more, got {self.weight}: below 0 "
                             "pairs would be pushed apart")


def cma_loss(a: Tensor, b: Tensor, scale: Tensor | float, weight: float) -> Tensor:
    """The card's loss of paired unit rows [n, d]; scale is 1 / temperature.

    Raises ValueError if the shapes differ.
    """
    if a.dim() != 2 or a.shape != b.shape:
        raise ValueError(f"a and b must be paired rows [n, d], got {tuple(a.shape)} "
                         f"and {tuple(b.shape)}")
    logits = logits_of(a, b, scale)
    total = 0.0
    for side in (logits, logits.T):
        every = side.logsumexp(1)
        contrast = (every - side.diagonal()).mean()
        total = total + contrast + weight * -every.mean()
    return total / 2


def negative_label_odds(z: Tensor, class_z: Tensor, negative_z: Tensor,
                        temperature: float = 0.01) -> Tensor:
    """Log odds [n] of the known classes against the negative labels, in float64.

    log Σ_c exp(z·class_c / temperature) − log Σ_m exp(z·negative_m / temperature): the
    same order as `negative_label_score`, without ties where that is 1 to rounding.

    Args:
        z: unit rows [n, d]. class_z: [n_classes, d]. negative_z: [m, d], m may be 0.
    """
    known, negative = (logits_of(z.double(), x.double(), 1 / temperature).logsumexp(1)
                       for x in (class_z, negative_z))
    return known - negative


def negative_label_score(z: Tensor, class_z: Tensor, negative_z: Tensor,
                         temperature: float = 0.01) -> Tensor:
    """The share [n] of the softmax that falls on known classes; 1 without negatives."""
    return negative_label_odds(z, class_z, negative_z, temperature).sigmoid()


def mined(word_z: Tensor, class_z: Tensor, n: int, quantile: float = 0.95) -> Tensor:
    """Row numbers [n] of the words least similar to the known class names.

    A word's similarity is the `quantile` over the classes of its cosines (0.95: nearly
    the nearest class decides). Nothing but names of known classes is looked at.

    Args:
        word_z: text features [n_words, d]. class_z: of the class names [n_classes, d].
    """
    if not 1 <= n <= len(word_z):
        raise ValueError(f"n must lie between 1 and {len(word_z)}, the number of "
                         f"words, got {n}")
    near = (unit(word_z) @ unit(class_z).T).quantile(quantile, dim=1)
    return near.argsort()[:n]


class Cma(Method):
    """Linear heads without bias, trained by `cma_loss`; row i's pair is row i alone."""

    settings: CmaSettings

    def build(self, settings: CmaSettings, pairs: Pairs) -> None:
        self.heads = nn.ModuleDict({
            name: nn.Linear(pairs[column].shape[-1], settings.width, bias=False)
            for name, column in settings.towers.items()})
        self.temperature = Temperature(settings.temperature, settings.learn_temperature)

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        first, second = (outputs[name] for name in self.settings.towers)
        return {"contrastive_loss": cma_loss(first, second, self.temperature(),
                                             self.settings.weight)}
