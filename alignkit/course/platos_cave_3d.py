"""Exercises of the notebook on Plato's cave: point clouds and texts."""

from collections.abc import Callable

import torch

from .exercises import Exercise, Mistake, random_rows, random_size


# Exercise 1, build: the distance of two clouds --------------------------------------------
def _squares(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a[:, None] - b[None]).square().sum(2)


def _both_ways(square: torch.Tensor) -> torch.Tensor:
    return square.amin(1).mean() + square.amin(0).mean()


def _cloud_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[p, 3], [r, 3] -> the Chamfer distance, a number."""
    return _both_ways(_squares(a, b))


def _two_clouds(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return (random_rows(generator, random_size(generator, 5, 12), 3),
            random_rows(generator, random_size(generator, 13, 20), 3))


cloud_distance = Exercise(
    name="cloud_distance",
    task="mean squared distance of a point to the other cloud's nearest, both ways added",
    reference=_cloud_distance,
    cases=_two_clouds,
    mistakes={
        "one way": Mistake(
            lambda a, b: _squares(a, b).amin(1).mean(),
            "ask in one direction only. A cloud that is a part of the other would be at "
            "distance zero: let the other cloud's points ask, too, and add both.",
        ),
        "the other way": Mistake(
            lambda a, b: _squares(a, b).amin(0).mean(),
            "let only the points of the second cloud ask. Those of the first ask, too; "
            "then add both.",
        ),
        "one way twice": Mistake(
            lambda a, b: 2 * _squares(a, b).amin(1).mean(),
            "count one direction twice. The two differ: the second takes the minimum over "
            "the other dimension.",
        ),
        "not squared": Mistake(
            lambda a, b: _both_ways(_squares(a, b).sqrt()),
            "take distances. The task asks for squared ones.",
        ),
        "halved": Mistake(
            lambda a, b: _cloud_distance(a, b) / 2,
            "take the mean of the two directions. They are added.",
        ),
        "summed": Mistake(
            lambda a, b: _squares(a, b).amin(1).sum() + _squares(a, b).amin(0).sum(),
            "add up over the points: a cloud of more points would be farther away. Take "
            "the mean over the points of each cloud.",
        ),
        "one mean": Mistake(
            lambda a, b: 2 * torch.cat([_squares(a, b).amin(d) for d in (0, 1)]).mean(),
            "take one mean over the points of both clouds, so that the larger cloud counts "
            "for more. Each direction has a mean of its own.",
        ),
        "the largest": Mistake(
            lambda a, b: _squares(a, b).amin(1).amax() + _squares(a, b).amin(0).amax(),
            "take the point that is farthest off (Hausdorff's distance). Take the mean over "
            "the points.",
        ),
        "squared too late": Mistake(
            lambda a, b: sum(_squares(a, b).sqrt().amin(d).mean() ** 2 for d in (0, 1)),
            "square the mean. Each point's distance is squared, then the mean is taken.",
        ),
        "all points": Mistake(
            lambda a, b: 2 * _squares(a, b).mean(),
            "average over all pairs of points. Each point looks at its nearest one alone.",
        ),
        "coordinates averaged": Mistake(
            lambda a, b: _both_ways((a[:, None] - b[None]).square().mean(2)),
            "take the mean over x, y and z. A squared distance is their sum.",
        ),
    },
)


# Exercise 2, transfer: a leak ---------------------------------------------------------------
def _whiten(rows: torch.Tensor, fitted: torch.Tensor, ridge: float,
            power: float = -0.5) -> torch.Tensor:
    """Centred rows times C^power, C the covariance of the rows `fitted`, with its ridge."""
    mean = fitted.mean(0)
    c = (fitted - mean).T @ (fitted - mean) / (len(fitted) - 1)
    c = c + ridge * c.diagonal().mean() * torch.eye(len(c), dtype=c.dtype)
    values, vectors = torch.linalg.eigh(c)
    return (rows - mean) @ vectors @ torch.diag(values ** power) @ vectors.T


def _whitened(anchors, queries, ridge):
    return _whiten(queries, anchors, ridge)


def _absolute(anchors, queries, ridge):
    c = anchors.T.cov()
    return _whiten(queries, anchors, float(ridge / c.diagonal().mean()))


def _mended(covariance_of, mean_of=None, relative=True) -> Callable:
    """The colleague's code with a part of it mended: whose covariance and mean (default:
    the same rows'), and how the ridge counts."""
    def code(anchors, queries, ridge):
        rows = {"anchors": anchors, "all": torch.cat([anchors, queries])}
        fitted = rows[covariance_of]
        shift = fitted.mean(0) - rows[mean_of or covariance_of].mean(0)
        if not relative:
            ridge = float(ridge / fitted.T.cov().diagonal().mean())
        return _whiten(queries + shift, fitted, ridge)
    return code


def _half_a_root(anchors, queries, ridge):
    c = anchors.T.cov()
    c = c + ridge * c.diagonal().mean() * torch.eye(len(c))
    values, vectors = torch.linalg.eigh(c)
    return (queries - anchors.mean(0)) @ vectors @ torch.diag(values ** -0.5)


def _own_mean(anchors, queries, ridge):
    return _whiten(queries - queries.mean(0) + anchors.mean(0), anchors, ridge)


def _anchors_and_queries(generator: torch.Generator) -> tuple:
    d = random_size(generator, 3, 6)
    mix = torch.randn(d, d, generator=generator) + 2 * torch.eye(d)
    anchors = random_rows(generator, random_size(generator, 20, 30), d) @ mix + 1
    return anchors, random_rows(generator, random_size(generator, 5, 9), d) @ mix, 0.5


whitened = Exercise(
    name="whitened",
    task="queries less the anchors' mean, times C^(−½) of the anchors, with a relative ridge",
    reference=_whitened,
    cases=_anchors_and_queries,
    mistakes={
        "nothing mended": Mistake(
            _mended("all", relative=False),
            "return what the colleague does. Ask of every line which rows it has seen, and "
            "compare the ridge with section 3.",
        ),
        "mean of all rows": Mistake(
            _mended("anchors", "all"),
            "fit C on the anchors, but still subtract the mean of all rows. The queries "
            "must not be in the mean either.",
        ),
        "mean of all rows, absolute ridge": Mistake(
            _mended("anchors", "all", relative=False),
            "fit C on the anchors and leave two things: the mean is still that of all rows, "
            "and the ridge is no multiple of the mean variance.",
        ),
        "covariance of all rows": Mistake(
            _mended("all", "anchors"),
            "subtract the anchors' mean, but still take the covariance of all rows. The "
            "queries must not be in C either.",
        ),
        "half a root": Mistake(
            _half_a_root,
            "stop at the axes of C. The symmetric root turns back: vectors, values to the "
            "power of minus one half, and the transposed vectors.",
        ),
        "all rows": Mistake(
            lambda a, q, r: _whiten(q, torch.cat([a, q]), r),
            "still fit on anchors and queries together. What is fitted must not see the "
            "queries: mean and covariance of the anchors alone.",
        ),
        "queries' mean": Mistake(
            _own_mean,
            "centre the queries by their own mean. A single query would always lie at "
            "zero: subtract the anchors' mean.",
        ),
        "not centred": Mistake(
            lambda a, q, r: _whiten(q + a.mean(0), a, r),
            "forget to subtract the anchors' mean from the queries.",
        ),
        "queries' covariance": Mistake(
            lambda a, q, r: _whiten(q - a.mean(0) + q.mean(0), q, r),
            "take the covariance of the queries. It is that of the anchors.",
        ),
        "absolute ridge": Mistake(
            _absolute,
            "add the ridge as it is. It is a multiple of the mean variance, the mean of "
            "the diagonal of C, so that it means the same in every space.",
        ),
        "inverse": Mistake(
            lambda a, q, r: _whiten(q, a, r, power=-1),
            "divide by the variances. Rows of variance one are divided by standard "
            "deviations: the power is minus one half.",
        ),
    },
)


# Exercise 3, judge: which way round? ---------------------------------------------------------
def _verdict_of(differences: torch.Tensor, t: float, margin: float) -> torch.Tensor:
    """[m, n] -> [m]: 1 above the margin, −1 below minus the margin, else 0."""
    low, high = _ends(differences, t)
    return (low > margin).float() - (high < -margin).float()


def _ends(differences: torch.Tensor, t: float) -> tuple[torch.Tensor, torch.Tensor]:
    """[m, n] -> low and high end of each interval, [m]"""
    half = t * differences.std(1) / differences.shape[1] ** 0.5
    return differences.mean(1) - half, differences.mean(1) + half


def _opposite_below(differences, t, margin, below: float):
    low, high = _ends(differences, t)
    return (low > margin).float() - (high < below).float()


def _touching(shapes, icons, t, margin):
    low, high = _ends(shapes - icons, t)
    return (high > margin).float() - (low < -margin).float()


def _weak_gains_more(shapes, icons, t, margin):
    return _verdict_of(shapes - icons, t, margin)


def _unpaired(shapes, icons, t, margin):
    n = shapes.shape[1]
    half = t * ((shapes.var(1) + icons.var(1)) / n).sqrt()
    mean = (shapes - icons).mean(1)
    return (mean - half > margin).float() - (mean + half < -margin).float()


def _gains(generator: torch.Generator) -> tuple:
    """Gains of shapes and icons on the same splits: a split moves both."""
    m, n = 24, 8
    split = 0.06 * torch.randn(m, n, generator=generator)
    effect = 0.24 * torch.rand(m, 1, generator=generator) - 0.12
    own = 0.02 * torch.randn(2, m, n, generator=generator)
    return split + effect + own[0], split + own[1], 2.365, 0.03


weak_gains_more = Exercise(
    name="weak_gains_more",
    task="for each corpus 1 'holds', −1 'opposite', 0 all else, of shapes' gains less icons'",
    reference=_weak_gains_more,
    cases=_gains,
    mistakes={
        "turned round": Mistake(
            lambda s, i, t, margin: _verdict_of(i - s, t, margin),
            "subtract the shapes' gains from the icons'. The sentence says that shapes "
            "gain more: shapes less icons.",
        ),
        "by the mean": Mistake(
            lambda s, i, t, margin: _verdict_of(s - i, 0.0, margin),
            "judge by the mean alone. The whole interval must lie beyond the margin.",
        ),
        "zero as margin": Mistake(
            lambda s, i, t, margin: _verdict_of(s - i, t, 0.0),
            "ask only that the interval leaves out zero. It must lie beyond the margin.",
        ),
        "opposite below zero": Mistake(
            lambda s, i, t, margin: _opposite_below(s - i, t, margin, 0.0),
            "call it the opposite as soon as the interval is below zero. All of it must lie "
            "below minus the margin.",
        ),
        "opposite below the margin": Mistake(
            lambda s, i, t, margin: _opposite_below(s - i, t, margin, margin),
            "call it the opposite where the interval is below the margin. That is only no "
            "gain worth having; the opposite lies below *minus* the margin.",
        ),
        "no opposite": Mistake(
            lambda s, i, t, margin: _opposite_below(s - i, t, margin, -torch.inf),
            "never answer −1. Where the whole interval lies below minus the margin, the "
            "opposite holds.",
        ),
        "the nearer end": Mistake(
            _touching,
            "let one end of the interval beyond the margin suffice. The whole interval must "
            "lie beyond: ask its low end for 1 and its high end for −1.",
        ),
        "divided by n": Mistake(
            lambda s, i, t, margin: _verdict_of(s - i, t / s.shape[1] ** 0.5, margin),
            "divide the spread by n. It is divided by the square root of n.",
        ),
        "not by the root of n": Mistake(
            lambda s, i, t, margin: _verdict_of(s - i, t * s.shape[1] ** 0.5, margin),
            "use the spread of single seeds. Of their mean it is smaller by the square "
            "root of their number.",
        ),
        "unpaired": Mistake(
            _unpaired,
            "add the variances of the two gains, as if they came from different splits. "
            "Both stand on the same splits: take differences first, then their spread.",
        ),
    },
)
