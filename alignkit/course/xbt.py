"""Exercises of the notebook on backward compatibility: an orthogonal map for new queries,
answers that an upgrade breaks, and whether to switch."""

from collections.abc import Callable

import torch
from torch.nn.functional import normalize

from .exercises import Exercise, Mistake, random_rows, random_size


# Exercise 1, build: Procrustes ---------------------------------------------------------
def _turn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The orthogonal matrix that brings the rows of x nearest to those of y."""
    u, _, v = torch.linalg.svd(x.T @ y)
    return u @ v


def _query(q: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """[m, d], [n, d], [n, d] -> unit rows [m, d] in the old space."""
    a, b = x.mean(0), y.mean(0)
    return normalize((q - a) @ _turn(x - a, y - b) + b, dim=1)


def _transposed(q: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    a, b = x.mean(0), y.mean(0)
    return normalize((q - a) @ _turn(x - a, y - b).T + b, dim=1)


def _not_transposed(q: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    a, b = x.mean(0), y.mean(0)
    u, _, vt = torch.linalg.svd((x - a).T @ (y - b))
    return normalize((q - a) @ u @ vt.T + b, dim=1)


def _from(start: str) -> Callable:
    """The map, used on queries less their own mean, or on queries as they are."""
    def query(q: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        a, b = x.mean(0), y.mean(0)
        left = q - q.mean(0) if start == "own mean" else q
        return normalize(left @ _turn(x - a, y - b) + b, dim=1)
    return query


def _longer(q: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    a, b = x.mean(0), y.mean(0)
    return (q - a) @ _turn(x - a, y - b) + b


def _least_squares(q: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    a, b = x.mean(0), y.mean(0)
    return normalize((q - a) @ torch.linalg.lstsq(x - a, y - b).solution + b, dim=1)


def _not_back(q: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    a, b = x.mean(0), y.mean(0)
    return normalize((q - a) @ _turn(x - a, y - b), dim=1)


def _texts(generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Queries, and a text corpus of both models: a noisy turn of each other, off centre."""
    n, d = random_size(generator, 12, 18), random_size(generator, 3, 5)
    x = random_rows(generator, n, d) + random_rows(generator, 1, d)
    turn = torch.linalg.qr(random_rows(generator, d, d)).Q
    y = x @ turn + 0.3 * random_rows(generator, n, d) + random_rows(generator, 1, d)
    queries = random_rows(generator, random_size(generator, 3, 6), d)
    return tuple(normalize(rows, dim=1) for rows in (queries, x, y))


queried = Exercise(
    name="queried",
    task="unit rows of (q − x̄) R + ȳ, R the orthogonal matrix fitted on centred x and y",
    reference=_query,
    cases=_texts,
    mistakes={
        "as they are": Mistake(
            lambda q, x, y: normalize(q @ _turn(x, y), dim=1),
            "fit and use the map on rows as they are. Subtract the mean of x from x and q, "
            "that of y from y, and add the mean of y in the end.",
        ),
        "transposed": Mistake(
            _transposed,
            "turn the wrong way round: with rows on the left, R = U Vᵀ, where U S Vᵀ is "
            "xᵀ y, and not yᵀ x.",
        ),
        "V for Vᵀ": Mistake(
            _not_transposed,
            "transpose V once too often: torch.linalg.svd gives Vᵀ already (torch.svd "
            "gives V).",
        ),
        "the queries' own mean": Mistake(
            _from("own mean"),
            "subtract the queries' own mean. They may be one or many, of another kind: the "
            "map was fitted about the mean of x, so subtract that.",
        ),
        "queries not moved": Mistake(
            _from("as they are"),
            "fit on centred rows and then turn q as it is: subtract the mean of x from q too.",
        ),
        "not of length one": Mistake(
            _longer,
            "leave the rows at any length: divide each by its own.",
        ),
        "least squares": Mistake(
            _least_squares,
            "take any linear map. This one may turn and mirror, and not stretch: leave out "
            "the singular values.",
        ),
        "not moved back": Mistake(
            _not_back,
            "leave queries about the origin. The old gallery lies about its own mean: add "
            "it before you divide by the length.",
        ),
    },
)


# Exercise 2, transfer: a colleague's report --------------------------------------------
def _shares(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.stack([one.double().mean(), other.double().mean()]).float()


def _changed(before: torch.Tensor, after: torch.Tensor, k: int) -> torch.Tensor:
    """Ranks [n], [n], k -> shares [mended, broken]."""
    old, new = before <= k, after <= k
    return _shares(~old & new, old & ~new)


def _net(before: torch.Tensor, after: torch.Tensor, k: int) -> torch.Tensor:
    gain = (after <= k).float().mean() - (before <= k).float().mean()
    return torch.stack([gain.clamp(min=0), (-gain).clamp(min=0)])


def _of_those(before: torch.Tensor, after: torch.Tensor, k: int) -> torch.Tensor:
    old, new = before <= k, after <= k
    return torch.stack([(~old & new).sum() / (~old).sum().clamp(min=1),
                        (old & ~new).sum() / old.sum().clamp(min=1)])


def _ranks(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, int]:
    n, k = random_size(generator, 30, 50), random_size(generator, 4, 7)
    before, after = (1 + (16 * torch.rand(n, generator=generator)).long() for _ in range(2))
    before[:2], after[:2] = torch.tensor([k, k + 1]), torch.tensor([k + 1, k])
    return before, after, k


changed = Exercise(
    name="changed",
    task="the shares of all queries that were mended and that were broken, [2]",
    reference=_changed,
    cases=_ranks,
    mistakes={
        "the net change": Mistake(
            _net,
            "give the change of the score. A query that is mended hides one that is broken "
            "there: compare query by query before you take a mean.",
        ),
        "any better rank": Mistake(
            lambda before, after, k: _shares(after < before, after > before),
            "count every change of the rank. An answer is mended only where it comes in "
            "among the first k.",
        ),
        "below k": Mistake(
            lambda before, after, k: _changed(before, after, k - 1),
            "leave out rank k itself: among the first k is rank <= k.",
        ),
        "swapped": Mistake(
            lambda before, after, k: _changed(after, before, k),
            "swap the two: mended is wrong before and right after, and stands first.",
        ),
        "counts": Mistake(
            lambda before, after, k: len(before) * _changed(before, after, k),
            "count the queries. Shares are wanted: divide by all of them.",
        ),
        "of those that could": Mistake(
            _of_those,
            "divide by the queries that were wrong (or right) before. Both are shares of "
            "all queries; only then is their difference the change of hit@k.",
        ),
    },
)


# Exercise 3, judge: switch, switch in part, or wait ------------------------------------
def _judge(above: torch.Tensor, harmed: torch.Tensor) -> torch.Tensor:
    both = above.all(1)
    one = above.any(1) & ~both & ~harmed.any(1)
    return 2.0 * both.float() + one.float()


def _judged(ends: torch.Tensor, margin: float) -> torch.Tensor:
    """Intervals [n, 2 directions, 2 ends] -> 2 compatible, 1 in one direction, 0 wait."""
    return _judge(ends[:, :, 0] > margin, ends[:, :, 0] < -margin)


def _mean_of_both(ends: torch.Tensor, margin: float) -> torch.Tensor:
    return _judged(ends.mean(1, keepdim=True).expand(-1, 2, -1), margin)


def _upgrades(generator: torch.Generator) -> tuple[torch.Tensor, float]:
    """Every case once, then some at random."""
    n = random_size(generator, 14, 20)
    low = 0.12 * torch.rand(n, 2, generator=generator) - 0.05
    width = 0.005 + 0.05 * torch.rand(n, 2, generator=generator)
    low[:6] = torch.tensor([[0.02, 0.03], [0.05, -0.005], [0.06, -0.04], [0.005, 0.004],
                            [-0.002, 0.05], [0.09, -0.03]])
    width[:6] = torch.tensor([[0.02, 0.02], [0.02, 0.01], [0.02, 0.01], [0.03, 0.03],
                              [0.02, 0.01], [0.02, 0.05]])
    return torch.stack([low, low + width], 2), 0.01


judged = Exercise(
    name="judged",
    task="for each upgrade 2 to switch, 1 to switch in one direction, 0 to wait",
    reference=_judged,
    cases=_upgrades,
    mistakes={
        "the mean of both": Mistake(
            _mean_of_both,
            "judge the mean of both directions. A large gain for pictures hides a loss for "
            "texts: each direction must pass by itself.",
        ),
        "by the middle": Mistake(
            lambda ends, margin: _judged(ends.mean(2, keepdim=True).expand(-1, -1, 2), margin),
            "judge by the middles. The whole interval must lie above the margin.",
        ),
        "above zero": Mistake(
            lambda ends, margin: _judge(ends[:, :, 0] > 0, ends[:, :, 0] < -margin),
            "ask for a gain above zero. Switching costs something: the interval must lie "
            "above the margin.",
        ),
        "harm is not asked": Mistake(
            lambda ends, margin: _judge(ends[:, :, 0] > margin, ends[:, :, 0] < -torch.inf),
            "switch in one direction without a look at the other. Wait where its interval "
            "reaches below −margin: the loss may be a real one.",
        ),
        "harm must be sure": Mistake(
            lambda ends, margin: _judge(ends[:, :, 0] > margin, ends[:, :, 1] < -margin),
            "wait only where the whole interval lies below −margin. It is enough that its "
            "low end does: then a loss worth minding is not ruled out.",
        ),
        "any loss": Mistake(
            lambda ends, margin: _judge(ends[:, :, 0] > margin, ends[:, :, 0] < 0),
            "wait for every interval that reaches below zero. A loss smaller than the "
            "margin is not worth minding: ask whether it reaches below −margin.",
        ),
    },
)
