"""Exercises of the notebook on CWCL: the control, a sharper weight, what explains a gain."""

import torch
from torch import Tensor

from .exercises import Exercise, Mistake, random_size, unit_rows


# Exercise 1, build: the control -------------------------------------------------------
def _targets(q: Tensor) -> Tensor:
    """½ + ½ q qᵀ, each row divided by its sum."""
    weights = 0.5 + 0.5 * q @ q.T
    return weights / weights.sum(1, keepdim=True)


def _spread(own: Tensor, others: Tensor) -> Tensor:
    """[n], [n]: what a row gives to its pair, and to each of the others."""
    return torch.diag(own) + others[:, None] * (1 - torch.eye(len(own)))


def _control(q: Tensor) -> Tensor:
    """Each pair keeps its share, the others get equal parts of the rest."""
    own = _targets(q).diagonal()
    return _spread(own, (1 - own) / (len(q) - 1))


def _spread_over_all(q):
    own = _targets(q).diagonal()
    return torch.diag(own) + ((1 - own) / len(q))[:, None]


def _not_divided(q):
    weights = 0.5 + 0.5 * q @ q.T
    return _spread(weights.diagonal(), (weights.sum(1) - 1) / (len(q) - 1))


def _divided_by_n(q):
    own = _targets(q).diagonal()
    return _spread(own, (1 - own) / len(q))


control = Exercise(
    name="control",
    task="targets [n, n]: the pair keeps A_ii, the other n − 1 share the rest evenly",
    reference=_control,
    cases=lambda generator: (unit_rows(
        generator, random_size(generator, 3, 8), random_size(generator, 4, 9)),),
    mistakes={
        "spread over all": Mistake(
            _spread_over_all,
            "share the rest out among all n rows. The pair has its share already: the rest "
            "goes to the other n − 1.",
        ),
        "divided by n": Mistake(
            _divided_by_n,
            "divide the rest by n. It goes to n − 1 rows, or the row does not sum to one.",
        ),
        "not divided": Mistake(
            _not_divided,
            "spread the weights but do not divide a row by its sum. Targets are a "
            "distribution.",
        ),
        "uniform": Mistake(
            lambda q: torch.full((len(q), len(q)), 1 / len(q)),
            "give the pair no more than the others. It keeps the share that CWCL gives "
            "it: only the structure of the rest is taken away.",
        ),
        "structure left": Mistake(
            _targets,
            "return CWCL's own targets. In the control all rows but the pair get the "
            "same.",
        ),
    },
)


# Exercise 2, transfer: a sharper weight -----------------------------------------------
def _power(c: Tensor, tau: float, gap: float) -> Tensor:
    """γ with τ · log(1 / w^γ) = gap."""
    return gap / (-tau * (0.5 + 0.5 * c).log())


def _power_case(generator):
    n = random_size(generator, 3, 8)
    c = 1.6 * torch.rand(n, generator=generator) - 0.8
    tau = (0.05, 0.1, 0.5)[random_size(generator, 0, 3)]
    return c, tau, (0.1, 0.3, 0.6)[random_size(generator, 0, 3)]


power = Exercise(
    name="power",
    task="the power of w at which the weighted term asks for this gap of cosines",
    reference=_power,
    cases=_power_case,
    mistakes={
        "the sign": Mistake(
            lambda c, tau, gap: gap / (tau * (0.5 + 0.5 * c).log()),
            "forget that the logarithm of a weight below one is negative: the pair's "
            "is 0, and the difference is minus the candidate's.",
        ),
        "times the temperature": Mistake(
            lambda c, tau, gap: -gap * tau / (0.5 + 0.5 * c).log(),
            "multiply by the temperature. The gap is temperature times a difference of "
            "logarithms: a small temperature needs a LARGE power.",
        ),
        "no temperature": Mistake(
            lambda c, tau, gap: -gap / (0.5 + 0.5 * c).log(),
            "leave the temperature out. It is the logits, cosine / τ, that match the "
            "logarithms of the weights.",
        ),
        "cosine and weight": Mistake(
            lambda c, tau, gap: gap / (tau * (1 - (0.5 + 0.5 * c))),
            "take the difference of the weights themselves. The softmax equals the "
            "target where the logits equal their LOGARITHMS.",
        ),
        "powers of two": Mistake(
            lambda c, tau, gap: gap / (-tau * (0.5 + 0.5 * c).log2()),
            "take the logarithm to base 2. A softmax is made of e: the natural one.",
        ),
    },
)


# Exercise 3, judge: what explains a gain ----------------------------------------------
def _explained(lit: Tensor, smoothed: Tensor, margin: float) -> Tensor:
    """Intervals [n, 2] against both baselines -> 2, 1 or 0."""
    return _graded(lit[:, 0] > margin, smoothed[:, 0] > margin)


def _graded(gain: Tensor, structure: Tensor) -> Tensor:
    return gain.float() + (gain & structure).float()


def _interval_cases(generator):
    """Every kind at least once, then some by chance."""
    n, margin = random_size(generator, 8, 14), 0.02
    low = 0.12 * torch.rand(2, n, generator=generator) - 0.06
    low[:, :6] = torch.tensor([[0.03, 0.03, 0.01, -0.003, 0.03, 0.01],
                               [0.03, 0.01, 0.03, 0.04, -0.04, 0.01]])
    lit, smoothed = torch.stack([low, low + 0.05], dim=2)
    return lit, smoothed, margin


explained = Exercise(
    name="explained",
    task="2 where both differences hold, 1 where only that to lit does, else 0",
    reference=_explained,
    cases=_interval_cases,
    mistakes={
        "counted": Mistake(
            lambda lit, smoothed, margin: (
                (lit[:, 0] > margin).float() + (smoothed[:, 0] > margin).float()
            ),
            "count the differences that hold. Where nothing is gained over lit, being "
            "better than smoothing explains no gain: 0.",
        ),
        "above zero": Mistake(
            lambda lit, smoothed, margin: _explained(lit, smoothed, 0.0),
            "ask for intervals above zero. That is 'some gain'; 'holds' needs the whole "
            "interval above the margin.",
        ),
        "by the middle": Mistake(
            lambda lit, smoothed, margin: _graded(
                lit.mean(1) > margin, smoothed.mean(1) > margin
            ),
            "judge by the middles of the intervals. All of each must lie above the "
            "margin.",
        ),
        "arms swapped": Mistake(
            lambda lit, smoothed, margin: _explained(smoothed, lit, margin),
            "swap the two comparisons. The gain is against lit; smoothed is the other "
            "explanation.",
        ),
    },
)
