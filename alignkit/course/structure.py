"""Exercises of the notebook on the STRUCTURE regulariser."""

import torch
from torch.nn.functional import normalize

from .exercises import Exercise, Mistake, random_rows, random_size


def _scores(unit: torch.Tensor, temperature: float) -> torch.Tensor:
    return unit @ unit.T / temperature


def _centre(rows: torch.Tensor) -> torch.Tensor:
    return rows - rows.mean(0)


# Exercise 1, build: mutual nearest neighbours ------------------------------------------
def _nearest(closeness: torch.Tensor, k: int, itself: bool = False) -> torch.Tensor:
    """[n, n] bool: j is among the k nearest of i."""
    if not itself:
        closeness = closeness.clone().fill_diagonal_(-torch.inf)
    chosen = torch.zeros_like(closeness, dtype=torch.bool)
    return chosen.scatter_(1, closeness.topk(k, dim=1).indices, True)


def _cosines(x: torch.Tensor) -> torch.Tensor:
    return normalize(x) @ normalize(x).T


def _overlap(x: torch.Tensor, y: torch.Tensor, k: int) -> torch.Tensor:
    """Mean share of the k cosine neighbours that a sample has in both spaces."""
    both = _nearest(_cosines(x), k) & _nearest(_cosines(y), k)
    return both.sum(1).float().mean() / k


def _self_counted(x, y, k):
    both = _nearest(_cosines(x), k, True) & _nearest(_cosines(y), k, True)
    return both.sum(1).float().mean() / k


def _euclidean(x, y, k):
    both = _nearest(-torch.cdist(x, x), k) & _nearest(-torch.cdist(y, y), k)
    return both.sum(1).float().mean() / k


def _over_union(x, y, k):
    a, b = _nearest(_cosines(x), k), _nearest(_cosines(y), k)
    return ((a & b).sum(1) / (a | b).sum(1)).mean()


def _overlap_cases(generator):
    n, d = random_size(generator, 14, 24), random_size(generator, 4, 8)
    x = random_rows(generator, n, d)
    mix = torch.randn(d, d + 2, generator=generator)
    y = x @ mix + random_rows(generator, n, d + 2)
    return x, y, random_size(generator, 3, 6)


overlap = Exercise(
    name="overlap",
    task="mean over samples of |kNN in x ∩ kNN in y| / k, by cosine, without itself",
    reference=_overlap,
    cases=_overlap_cases,
    mistakes={
        "itself counted": Mistake(
            _self_counted,
            "count each sample as its own neighbour. It is one in every space, so "
            "even unrelated spaces would agree: fill the diagonal with −inf first.",
        ),
        "Euclidean": Mistake(
            _euclidean,
            "compare raw rows by Euclidean distance. Neighbours are asked for by "
            "cosine: normalise the rows, or long rows are far from everything.",
        ),
        "over the union": Mistake(
            _over_union,
            "divide by the size of the union (the Jaccard index). Here the number of "
            "common neighbours is divided by k.",
        ),
    },
)


# Exercise 2, transfer: the textbook's divergence made the paper's -----------------------
def _kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """KL(a || b) of each row, [n]."""
    return (a * (a / b).log()).sum(1)


def _divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """½ [KL(M || Q) + KL(M || P)], M = (P + Q) / 2; mean over rows."""
    m = (p + q) / 2
    return (_kl(m, q) + _kl(m, p)).mean() / 2


def _textbook(p, q):
    m = (p + q) / 2
    return (_kl(p, m) + _kl(q, m)).mean() / 2


def _divergence_cases(generator):
    n = random_size(generator, 3, 10)
    p, q = torch.randn(2, n, n, generator=generator).mul(1.5).softmax(-1)
    return p, q


divergence = Exercise(
    name="divergence",
    task="½ [KL(M‖Q) + KL(M‖P)], M = (P + Q) / 2: sum over columns, mean over rows",
    reference=_divergence,
    cases=_divergence_cases,
    mistakes={
        "textbook direction": Mistake(
            _textbook,
            "wrote the textbook Jensen–Shannon divergence, KL(P‖M) and KL(Q‖M). The "
            "authors' code has M first; the size differs, so λ would not carry over.",
        ),
        "sum over rows": Mistake(
            lambda p, q: _divergence(p, q) * len(p),
            "sum over the rows. Take their mean, or the loss grows with the batch.",
        ),
        "mean over all": Mistake(
            lambda p, q: _divergence(p, q) / p.shape[1],
            "take the mean over all entries (reduction='mean'). A divergence is a sum "
            "over columns; only the rows are averaged (reduction='batchmean').",
        ),
        "log2": Mistake(
            lambda p, q: _divergence(p, q) / torch.log(torch.tensor(2.0)),
            "use the logarithm of base 2. The loss is in nats: torch.log.",
        ),
        "not halved": Mistake(
            lambda p, q: _divergence(p, q) * 2,
            "forgot the factor one half before the two divergences.",
        ),
    },
)


# Exercise 3, judge: is the condition there? ---------------------------------------------
def _usual(features: torch.Tensor) -> torch.Tensor:
    return _centre(normalize(features))


def _masses(rows: torch.Tensor, taus: list[float], dim: int = 1) -> torch.Tensor:
    """Mean of the softmax's diagonal for each tau, [m]."""
    return torch.stack([_scores(rows, tau).softmax(dim).diagonal().mean() for tau in taus])


def _inside(masses: torch.Tensor, low: float = 0.1, high: float = 0.7) -> torch.Tensor:
    return ((masses >= low) & (masses <= high)).float()


def _awake(features: torch.Tensor, taus: list[float]) -> torch.Tensor:
    """[n, d] -> [m], 1 where the mean of p_ii lies in [0.1, 0.7]."""
    return _inside(_masses(_usual(features), taus))


def _awake_cases(generator):
    n, d = random_size(generator, 9, 16), random_size(generator, 3, 7)
    taus = [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0]
    return random_rows(generator, n, d), taus[random_size(generator, 0, 3):]


awake = Exercise(
    name="awake",
    task="for each τ 1 where the mean of p_ii is one that the condition wants, else 0",
    reference=_awake,
    cases=_awake_cases,
    trials=48,  # rows that are centred already tell little apart
    mistakes={
        "not silent alone": Mistake(
            lambda x, taus: _inside(_masses(_usual(x), taus), low=0.0),
            "ask only for at most 0.7. Where everyone sees everyone alike, the mass is near "
            "1/n and nothing is told apart either: at least 0.1, too.",
        ),
        "turned round": Mistake(
            lambda x, taus: 1 - _inside(_masses(_usual(x), taus)),
            "give 1 where the regulariser is silent. 1 is for the temperatures that you "
            "would register.",
        ),
        "not centred": Mistake(
            lambda x, taus: _inside(_masses(normalize(x), taus)),
            "forgot to subtract the mean of the normalised rows.",
        ),
        "centred first": Mistake(
            lambda x, taus: _inside(_masses(normalize(_centre(x)), taus)),
            "subtract the mean before you normalise the rows: a long row then pulls the "
            "mean towards itself. Normalise first, then centre.",
        ),
        "times the temperature": Mistake(
            lambda x, taus: _inside(_masses(_usual(x), [1 / tau for tau in taus])),
            "multiply by τ. The similarities are divided by it.",
        ),
    },
)
