"""Exercises of the notebook on dynamic reflections: views that count, a search that peeks,
which score a second caption really earned."""

import torch
from torch.nn.functional import normalize

from .exercises import Exercise, Mistake, random_rows, random_size


def _nearest(x: torch.Tensor, k: int, itself: bool = False) -> torch.Tensor:
    """[n, n]: 1 where j is among the k nearest of i by cosine."""
    cosines = normalize(x) @ normalize(x).T
    if not itself:
        cosines = cosines.fill_diagonal_(-torch.inf)
    return torch.zeros_like(cosines).scatter_(1, cosines.topk(k, dim=1).indices, 1)


def _agree(x: torch.Tensor, y: torch.Tensor, k: int) -> torch.Tensor:
    """Mutual k-NN of paired rows."""
    return (_nearest(x, k) * _nearest(y, k)).sum(1).mean() / k


# Exercise 1, build: which things gained from more views -----------------------------------
def _gained(views: torch.Tensor, texts: torch.Tensor, k: int) -> torch.Tensor:
    """[n]: common neighbours of the mean view minus those of the first one."""
    told = _nearest(texts, k)
    return ((_nearest(views.mean(1), k) - _nearest(views[:, 0], k)) * told).sum(1)


def _scores_averaged(views, texts, k):
    told = _nearest(texts, k)
    each = torch.stack([(_nearest(views[:, v], k) * told).sum(1)
                        for v in range(views.shape[1])])
    return each.mean(0) - each[0]


def _units_averaged(views, texts, k):
    return _gained(normalize(views, dim=2), texts, k)


def _lengths_left(views, texts, k):
    def near(x):
        dots = (x @ x.T).fill_diagonal_(-torch.inf)
        return torch.zeros_like(dots).scatter_(1, dots.topk(k, dim=1).indices, 1)
    return ((near(views.mean(1)) - near(views[:, 0])) * near(texts)).sum(1)


def _itself_counted(views, texts, k):
    told = _nearest(texts, k, True)
    rich, poor = (_nearest(x, k, True) for x in (views.mean(1), views[:, 0]))
    return ((rich - poor) * told).sum(1)


def _view_cases(generator):
    n, d = random_size(generator, 16, 24), random_size(generator, 4, 7)
    hidden = random_rows(generator, n, d)
    views = torch.stack([hidden + 1.5 * random_rows(generator, n, d) for _ in range(4)], 1)
    texts = hidden @ torch.randn(d, d + 1, generator=generator)
    return views, texts, random_size(generator, 4, 7)


gained = Exercise(
    name="gained",
    task="for each thing how many more neighbours the mean view shares with its text",
    reference=_gained,
    cases=_view_cases,
    mistakes={
        "scores averaged": Mistake(
            _scores_averaged,
            "average the counts of the single views. The encoder's rows are averaged "
            "first, and neighbours are looked for once, in the mean.",
        ),
        "units averaged": Mistake(
            _units_averaged,
            "bring each view to length one before the mean. Average the encoder's rows as "
            "they are; the cosine takes lengths out afterwards.",
        ),
        "lengths left in": Mistake(
            _lengths_left,
            "look for the largest dot products. A cosine divides by both lengths: bring rows "
            "to length one before you multiply them.",
        ),
        "itself counted": Mistake(
            _itself_counted,
            "count each thing as its own neighbour. Leave it out: fill the diagonal "
            "with minus infinity before topk.",
        ),
        "a share": Mistake(
            lambda views, texts, k: _gained(views, texts, k) / k,
            "divide by k. Here the number of neighbours is asked for, not their share.",
        ),
        "poor minus rich": Mistake(
            lambda views, texts, k: -_gained(views, texts, k),
            "subtract the other way round: several views minus the first one.",
        ),
        "not compared": Mistake(
            lambda views, texts, k: (_nearest(views.mean(1), k) * _nearest(texts, k)).sum(1),
            "count what the mean view shares with the text, and take off nothing. Subtract "
            "what the first view alone shares.",
        ),
    },
)


# Exercise 2, transfer: a search that does not peek -----------------------------------------
def _scored(images, texts, chosen_on, k, scored_on=None):
    """The best pair of layers on some rows, its score on others (default: all the rest)."""
    choose = {(i, j): float(_agree(x[chosen_on], y[chosen_on], k))
              for i, x in enumerate(images) for j, y in enumerate(texts)}
    i, j = max(choose, key=choose.get)
    left = torch.ones(len(images[0]), dtype=torch.bool)
    left[chosen_on] = False
    rows = left if scored_on is None else scored_on
    return _agree(images[i][rows], texts[j][rows], k)


def _honest(images, texts, train, k):
    return _scored(images, texts, train, k)


def _peeked(images, texts, train, k):
    left = torch.ones(len(images[0]), dtype=torch.bool)
    left[train] = False
    return _scored(images, texts, left.nonzero()[:, 0], k, left)


def _neighbours_of_all(images, texts, train, k):
    """Neighbours are looked for among all rows, then the others are averaged."""
    found = {(i, j): float(_agree(x[train], y[train], k))
             for i, x in enumerate(images) for j, y in enumerate(texts)}
    i, j = max(found, key=found.get)
    left = torch.ones(len(images[0]), dtype=torch.bool)
    left[train] = False
    return (_nearest(images[i], k) * _nearest(texts[j], k)).sum(1)[left].mean() / k


def _chosen_on_all(images, texts, train, k):
    every = torch.arange(len(images[0]))
    left = torch.ones(len(every), dtype=torch.bool)
    left[train] = False
    return _scored(images, texts, every, k, left)


def _with_itself(images, texts, train, k):
    def agree(x, y):
        return (_nearest(x, k, True) * _nearest(y, k, True)).sum(1).mean() / k
    left = torch.ones(len(images[0]), dtype=torch.bool)
    left[train] = False
    x, y = max(((x, y) for x in images for y in texts),
               key=lambda pair: float(agree(pair[0][train], pair[1][train])))
    return agree(x[left], y[left])


def _search_cases(generator):
    n = 2 * random_size(generator, 14, 18)
    hidden = random_rows(generator, n, 3)

    def layers(count):
        return [0.6 * hidden @ torch.randn(3, 5, generator=generator)
                + random_rows(generator, n, 5) for _ in range(count)]

    train = torch.randperm(n, generator=generator)[:n // 2]
    return layers(3), layers(4), train, random_size(generator, 3, 5)


honest = Exercise(
    name="honest",
    task="choose the pair of layers on the rows `train`, score it on the others",
    reference=_honest,
    cases=_search_cases,
    mistakes={
        "still peeks": Mistake(
            _peeked,
            "still choose the layers on the rows that you score. Choose on `train` alone.",
        ),
        "scored on train": Mistake(
            lambda images, texts, train, k: _scored(images, texts, train, k, train),
            "choose on `train` and score there, too: the highest of many flatters itself. "
            "Score the other rows.",
        ),
        "everything": Mistake(
            lambda images, texts, train, k: max(
                _agree(x, y, k) for x in images for y in texts),
            "give the highest score on all rows, as before. Rows that choose the layers must "
            "not be scored.",
        ),
        "strangers as neighbours": Mistake(
            _neighbours_of_all,
            "look for neighbours among all rows. Take the rows that are scored first: their "
            "neighbours must be scored rows, too, or n and chance change.",
        ),
        "chosen on all": Mistake(
            _chosen_on_all,
            "choose the layers on all rows. The scored ones are among them, so you still "
            "peek: choose on `train` alone.",
        ),
        "itself counted": Mistake(
            _with_itself,
            "count each thing as its own neighbour: fill the diagonal with minus infinity "
            "before topk, as section 3 does.",
        ),
    },
)


# Exercise 3, judge: compared with what? ------------------------------------------------------
def _earned(scores: torch.Tensor, n: torch.Tensor, k: int) -> torch.Tensor:
    """[m, 3] scores of one caption, of several, of one repeated; n [m] things: 1 where the
    gain over the repeated one and the score over chance say that words brought something."""
    one, several, repeated = scores.T
    return ((several > repeated + 0.03) & (several > 2 * k / (n - 1))).float()


def _judged_cases(generator):
    m = random_size(generator, 9, 14)
    n = torch.tensor([50, 100, 250, 1000])[torch.randint(4, (m,), generator=generator)]
    one = 0.04 + 0.15 * torch.rand(m, generator=generator)
    several = one + 0.2 * torch.rand(m, generator=generator) - 0.02
    repeated = one + 0.15 * torch.rand(m, generator=generator) - 0.02
    return torch.stack([one, several, repeated], 1), n, 10


earned = Exercise(
    name="earned",
    task="1 where several captions earned their gain by what they say, else 0",
    reference=_earned,
    cases=_judged_cases,
    trials=24,  # chance stands in the way of some
    mistakes={
        "against one caption": Mistake(
            lambda scores, n, k: ((scores[:, 1] > scores[:, 0] + 0.03)
                                  & (scores[:, 1] > 2 * k / (n - 1))).float(),
            "compare with one caption that is read once. A longer text is another text: the "
            "control reads one caption as often, so that only what is said differs.",
        ),
        "no chance": Mistake(
            lambda scores, n, k: (scores[:, 1] > scores[:, 2] + 0.03).float(),
            "forget chance. With 50 things and k = 10 unrelated spaces share a fifth of "
            "their neighbours: ask for twice k / (n - 1).",
        ),
        "chance once": Mistake(
            lambda scores, n, k: ((scores[:, 1] > scores[:, 2] + 0.03)
                                  & (scores[:, 1] > k / (n - 1))).float(),
            "ask for chance once. Twice is asked for, 2k / (n - 1).",
        ),
        "no margin": Mistake(
            lambda scores, n, k: ((scores[:, 1] > scores[:, 2])
                                  & (scores[:, 1] > 2 * k / (n - 1))).float(),
            "leave out the margin: a gain must be above it, not above zero.",
        ),
    },
)
