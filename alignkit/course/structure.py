"""Exercises of the notebook on the STRUCTURE regulariser."""

import torch
from torch.nn.functional import normalize

from .exercises import Exercise, Mistake, random_rows, random_size


def _scores(unit: torch.Tensor, temperature: float) -> torch.Tensor:
    return unit @ unit.T / temperature


def _centre(rows: torch.Tensor) -> torch.Tensor:
    return rows - rows.mean(0)


# Exercise 1: the similarity matrix P ------------------------------------------------
def _similarities(features: torch.Tensor, temperature: float) -> torch.Tensor:
    """[n, d] -> P [n, n]: rows normalised, then centred; softmax over each row."""
    return _scores(_centre(normalize(features)), temperature).softmax(1)


def _centred_first(features, temperature):
    return _scores(normalize(_centre(features)), temperature).softmax(1)


def _normalised_again(features, temperature):
    unit = normalize(_centre(normalize(features)))
    return _scores(unit, temperature).softmax(1)


def _diagonal_masked(features, temperature):
    scores = _scores(_centre(normalize(features)), temperature)
    return scores.fill_diagonal_(-torch.inf).softmax(1)


def _over_columns(features, temperature):
    return _scores(_centre(normalize(features)), temperature).softmax(0)


def _not_centred(features, temperature):
    return _scores(normalize(features), temperature).softmax(1)


def _similarity_cases(generator):
    n, d = random_size(generator, 6, 12), random_size(generator, 3, 7)
    return random_rows(generator, n, d), (0.2, 0.5, 1.0)[random_size(generator, 0, 3)]


similarities = Exercise(
    name="similarities",
    task="normalise the rows, subtract their mean, softmax of the inner products / τ",
    reference=_similarities,
    cases=_similarity_cases,
    mistakes={
        "centred first": Mistake(
            _centred_first,
            "subtract the mean before you normalise the rows: a long row then pulls "
            "the mean towards itself. Normalise first, then centre.",
        ),
        "normalised again": Mistake(
            _normalised_again,
            "normalise a second time after centring. The paper leaves the centred "
            "rows as they are, so a row near the mean keeps small similarities.",
        ),
        "diagonal masked": Mistake(
            _diagonal_masked,
            "leave out the diagonal. Here every sample counts as its own neighbour; "
            "that is why the diagonal can take nearly all of the mass.",
        ),
        "softmax over columns": Mistake(
            _over_columns,
            "take the softmax over dim=0. Each ROW of P must sum to one: dim=1.",
        ),
        "not centred": Mistake(
            _not_centred,
            "forgot to subtract the mean of the normalised rows.",
        ),
    },
)


# Exercise 2: the divergence D_1 -----------------------------------------------------
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


# Exercise 3: mutual nearest neighbours ----------------------------------------------
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
