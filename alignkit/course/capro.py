"""Exercises of the notebook on web labels: neighbours that both sides call so, labels that
cleaning changes, and whether a class's anchors may be trusted."""

from collections.abc import Callable

import torch

from .exercises import Exercise, Mistake, random_rows, random_size


# Exercise 1, build: mutual neighbours --------------------------------------------------
def _nearest(d: torch.Tensor, k: int) -> torch.Tensor:
    """[n, n], k -> bool [n, n]: j is one of the k nearest to i, i itself left out."""
    far = d.clone().fill_diagonal_(torch.inf)
    place = far.argsort(dim=1).argsort(dim=1)
    return place < k


def _mutual(d: torch.Tensor, k: int) -> torch.Tensor:
    near = _nearest(d, k)
    return (near & near.T).float()


def _with_itself(d: torch.Tensor, k: int) -> torch.Tensor:
    near = d.argsort(dim=1).argsort(dim=1) < k
    return (near & near.T).float()


def _both_and_itself(d: torch.Tensor, k: int) -> torch.Tensor:
    return _mutual(d, k) + torch.eye(len(d))


def _ranks_by_one_sort(d: torch.Tensor, k: int) -> torch.Tensor:
    far = d.clone().fill_diagonal_(torch.inf)
    near = far.argsort(dim=1) < k
    return (near & near.T).float()


def _distances(generator: torch.Generator) -> tuple[torch.Tensor, int]:
    n = random_size(generator, 8, 14)
    x = random_rows(generator, n, 3)
    return torch.cdist(x, x), random_size(generator, 2, 4)


mutual = Exercise(
    name="mutual",
    task="1 where i and j are each among the k nearest of the other, 0 elsewhere and on "
         "the diagonal",
    reference=_mutual,
    cases=_distances,
    mistakes={
        "one side": Mistake(
            lambda d, k: _nearest(d, k).float(),
            "ask one side only. A row in a crowd is near to many that are not near to it: "
            "j must be among the k nearest of i, and i among those of j.",
        ),
        "either side": Mistake(
            lambda d, k: (_nearest(d, k) | _nearest(d, k).T).float(),
            "take a pair if either side calls it near. Both must.",
        ),
        "itself among the k": Mistake(
            _with_itself,
            "count a row among its own k nearest: its distance 0 takes the first place. Put "
            "infinity on the diagonal before you sort.",
        ),
        "itself taken out afterwards": Mistake(
            lambda d, k: _with_itself(d, k).fill_diagonal_(0),
            "clear the diagonal after a row has taken a place among its own k nearest, so that "
            "k − 1 others are left. Put infinity on the diagonal before you sort.",
        ),
        "ones on the diagonal": Mistake(
            _both_and_itself,
            "leave ones on the diagonal. A row is not its own neighbour here.",
        ),
        "the farthest": Mistake(
            lambda d, k: _mutual(-d.clone(), k),
            "take the farthest rows: small distances are near.",
        ),
        "numbers for places": Mistake(
            _ranks_by_one_sort,
            "read argsort as places. It gives the number of the row that comes first, "
            "second, …; sort once more to have the place of each row.",
        ),
    },
)


# Exercise 2, transfer: find the bug in cleaning -----------------------------------------
def _clean(r: torch.Tensor, y: torch.Tensor, anchor: torch.Tensor, gamma: float,
           ) -> torch.Tensor:
    """Shares [n, C], labels [n], bool [n], γ -> labels [n], −1: dropped."""
    sure, guess = r.max(dim=1)
    own = r.gather(1, y[:, None])[:, 0]
    found = torch.where(own >= 1 / r.shape[1], y, -1)
    found = torch.where(sure >= gamma, guess, found)
    return torch.where(anchor, y, found)


def _kept_first(r, y, anchor, gamma):
    sure, guess = r.max(dim=1)
    own = r.gather(1, y[:, None])[:, 0]
    found = torch.where(sure >= gamma, guess, -1)
    return torch.where(anchor | (own >= 1 / r.shape[1]), y, found)


def _no_anchors(r, y, anchor, gamma):
    return _clean(r, y, torch.zeros_like(anchor), gamma)


def _kept_by_the_best(r, y, anchor, gamma):
    sure, guess = r.max(dim=1)
    found = torch.where(sure >= 1 / r.shape[1], y, -1)
    found = torch.where(sure >= gamma, guess, found)
    return torch.where(anchor, y, found)


def _half(r, y, anchor, gamma):
    sure, guess = r.max(dim=1)
    found = torch.where(r.gather(1, y[:, None])[:, 0] >= 0.5, y, -1)
    found = torch.where(sure >= gamma, guess, found)
    return torch.where(anchor, y, found)


def _predictions(generator: torch.Generator) -> tuple:
    """Every case once, then some at random."""
    n, classes = random_size(generator, 14, 20), 4
    r = (2 * random_rows(generator, n, classes)).softmax(dim=1)
    r[:4] = torch.tensor([[0.65, 0.30, 0.03, 0.02], [0.40, 0.35, 0.20, 0.05],
                          [0.90, 0.05, 0.03, 0.02], [0.45, 0.30, 0.23, 0.02]])
    y = torch.randint(classes, (n,), generator=generator)
    y[:4] = torch.tensor([1, 3, 2, 1])
    anchor = torch.rand(n, generator=generator) < 0.25
    anchor[:4] = torch.tensor([False, False, True, False])
    return r, y, anchor, 0.6


cleaned = Exercise(
    name="cleaned",
    task="the label of each row after cleaning, −1 where it is dropped",
    reference=_clean,
    cases=_predictions,
    mistakes={
        "kept before relabelled": Mistake(
            _kept_first,
            "keep a label first and relabel only the rest. A row whose best class is as "
            "sure as gamma gets that class, also where its own label passes 1/C: "
            "relabelling has the last word, but for anchors.",
        ),
        "anchors relabelled": Mistake(
            _no_anchors,
            "treat anchors as all others. Their texts vouch for them: they keep their "
            "label whatever the network says.",
        ),
        "kept by the best class": Mistake(
            _kept_by_the_best,
            "ask whether the BEST class reaches 1/C, which it always does, so that nothing "
            "is dropped. Ask for the share of the row's own label.",
        ),
        "a half": Mistake(
            _half,
            "ask for half of the shares. A label stays if it has what an even guess among "
            "C classes would give it, 1/C.",
        ),
    },
)


# Exercise 3, judge: may the anchors be trusted -------------------------------------------
def _trust(right: torch.Tensor, looked: torch.Tensor) -> torch.Tensor:
    """Counts [n], [n] -> 2 trust, 0 do not, 1 look at more."""
    n = looked + 4
    p = (right + 2) / n
    return _verdict(p, 2 * (p * (1 - p) / n).sqrt())


def _verdict(p: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
    return 2.0 * (p - half > 0.5) + 1.0 * ((p - half <= 0.5) & (p + half >= 0.5))


def _plain(right: torch.Tensor, looked: torch.Tensor) -> torch.Tensor:
    p = right / looked
    return _verdict(p, 2 * (p * (1 - p) / looked).sqrt())


def _by(half: Callable) -> Callable:
    def judge(right: torch.Tensor, looked: torch.Tensor) -> torch.Tensor:
        n = looked + 4
        p = (right + 2) / n
        return _verdict(p, half(p, n))
    return judge


def _looks(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Every case once, then some at random."""
    n = random_size(generator, 14, 20)
    looked = torch.randint(4, 60, (n,), generator=generator).float()
    right = (looked * torch.rand(n, generator=generator)).round()
    looked[:6] = torch.tensor([3.0, 12, 40, 40, 8, 30])
    right[:6] = torch.tensor([3.0, 8, 25, 8, 3, 17])
    return right, looked


trusted = Exercise(
    name="trusted",
    task="for each class 2 to trust its anchors, 0 not to, 1 to look at more of them",
    reference=_trust,
    cases=_looks,
    mistakes={
        "by the middle": Mistake(
            _by(lambda p, n: torch.zeros_like(p)),
            "judge by the share alone. Eight of twelve may be luck: the whole interval must "
            "lie above a half.",
        ),
        "two and two left out": Mistake(
            _plain,
            "leave out the two right and two wrong ones that are added. Without them three "
            "of three has an interval of no width, and is trusted.",
        ),
        "one deviation": Mistake(
            _by(lambda p, n: (p * (1 - p) / n).sqrt()),
            "take one standard deviation. The task's interval is two on each side: one "
            "leaves out a third of what chance does.",
        ),
        "the rows' spread": Mistake(
            _by(lambda p, n: 2 * (p * (1 - p)).sqrt()),
            "take the spread of one look. That of a share of n looks is smaller by the root "
            "of n.",
        ),
        "never sure of harm": Mistake(
            lambda right, looked: _trust(right, looked).clamp(min=1),
            "never say 0. Where the whole interval lies below a half the wrong sense has "
            "won: more looks will not help.",
        ),
    },
)
