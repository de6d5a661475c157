"""Exercises of the notebook on projectors: balanced captions, a text side to mend, and
whether a rank correlation leans on one bad encoder."""

import torch
from torch.nn import functional as F

from .exercises import Exercise, Mistake, random_rows, random_size


# Exercise 1, build: balanced captions --------------------------------------------------
def _taker(scores, per_class, depth, order=None, again=False):
    """The class that takes each caption, −1 if none: long [n]."""
    best, rows = scores.topk(depth, dim=0)
    taker = torch.full((len(scores),), -1)
    for c in (best[-1].argsort().tolist() if order is None else order):
        left = [row for row in rows[:, c].tolist() if again or taker[row] < 0]
        taker[left[:per_class]] = c
    return taker


def _choose(scores, per_class, depth):
    return _taker(scores, per_class, depth)


def _in_file_order(scores, per_class, depth):
    return _taker(scores, per_class, depth, order=range(scores.shape[1]))


def _richest_first(scores, per_class, depth):
    last = scores.topk(depth, dim=0).values[-1]
    return _taker(scores, per_class, depth, order=last.argsort(descending=True).tolist())


def _by_mean(scores, per_class, depth):
    mean = scores.topk(depth, dim=0).values.mean(0)
    return _taker(scores, per_class, depth, order=mean.argsort().tolist())


def _taken_twice(scores, per_class, depth):
    return _taker(scores, per_class, depth, again=True)


def _scores_case(generator):
    n, c = random_size(generator, 14, 20), random_size(generator, 3, 5)
    common = torch.randn(n, 1, generator=generator)  # classes want the same captions
    # A class of much spread has a high mean and a low last score.
    spread = 0.3 + 1.7 * torch.rand(c, generator=generator)
    own = spread * (torch.randn(n, c, generator=generator) - 0.7)
    return common + own + 0.3 * torch.randn(c, generator=generator), 3, 6


choose = Exercise(
    name="choose",
    task="the scarcest class (lowest score at place depth) first; each takes its per_class "
         "best of its list that are left; return the taker of each caption, -1 for none",
    reference=_choose,
    cases=_scores_case,
    mistakes={
        "in the order of the file": Mistake(
            _in_file_order,
            "let classes choose in the order in which they stand. The scarcest one "
            "chooses first, or a common class takes what a rare one has.",
        ),
        "richest first": Mistake(
            _richest_first,
            "let the class with the most good captions choose first: sort ascending.",
        ),
        "by the mean": Mistake(
            _by_mean,
            "order the classes by the mean of their lists. The scarcest class is the one "
            "whose LAST score, at place depth, is lowest.",
        ),
        "taken twice": Mistake(
            _taken_twice,
            "let a class take captions that are taken. It goes on in its list to those "
            "that are left, so that each caption belongs to one class.",
        ),
    },
)

# Exercise 2, transfer: a text side with three faults ------------------------------------
def _tokens(x, w1, w2, w3, over=1, bend=F.gelu):
    """W1 y + W3 bend(W2 y), y the layer norm of x over its last `over` dimensions."""
    y = F.layer_norm(x, x.shape[-over:])
    return y @ w1.T + bend(y @ w2.T) @ w3.T


def _mean_of_real(z, real):
    return (z * real[:, :, None]).sum(1) / real.sum(1, keepdim=True)


def _word_side(x, real, *weights):
    """The mean of the projected real words, [n, d]."""
    return _mean_of_real(_tokens(x, *weights), real)


def _colleague(x, real, *weights):
    return _tokens(x, *weights, over=2, bend=F.relu).mean(1)


def _over_the_length(x, real, *weights):
    return (_tokens(x, *weights) * real[:, :, None]).mean(1)


def _over_the_batch(x, real, *weights):
    z = (_tokens(x, *weights) * real[:, :, None]).sum((0, 1)) / real.sum()
    return z.expand(len(x), -1)


def _words_case(generator):
    n, length, d, width = (random_size(generator, low, low + 4) for low in (3, 4, 4, 3))
    x = random_rows(generator, n * length, d).view(n, length, d)
    words = torch.randint(1, length, (n, 1), generator=generator)  # at least one padding
    w1, w2 = torch.randn(2, width, d, generator=generator)
    w3 = torch.randn(width, width, generator=generator)
    return x, torch.arange(length) < words, w1, w2, w3


word_side = Exercise(
    name="word_side",
    task="y = layer norm of each token; W1 y + W3 gelu(W2 y); the mean of the real words",
    reference=_word_side,
    cases=_words_case,
    mistakes={
        "as it was": Mistake(
            _colleague,
            "hand back the colleague's code. Look at the layer norm, the bend and the mean.",
        ),
        "relu": Mistake(
            lambda x, real, *w: _mean_of_real(_tokens(x, *w, bend=F.relu), real),
            "bend with ReLU. The bend is a GELU, which lets small negative values "
            "through: F.gelu.",
        ),
        "norm of the caption": Mistake(
            lambda x, real, *w: _mean_of_real(_tokens(x, *w, over=2), real),
            "normalise a caption as a whole: one mean and one spread for all its words, "
            "padding included. Each token has its own: x.shape[-1:].",
        ),
        "padding counted": Mistake(
            lambda x, real, *w: _tokens(x, *w).mean(1),
            "average over padding, too: a caption's vector then hangs on how long the "
            "others in its batch are.",
        ),
        "full length below": Mistake(
            _over_the_length,
            "leave padding out of the sum, but divide by the full length. Divide by the "
            "number of real words.",
        ),
        "one mean for all": Mistake(
            _over_the_batch,
            "take one mean over all words of all captions. Each caption has a mean of its "
            "own: dim=1.",
        ),
        "mean first": Mistake(
            lambda x, real, *w: _tokens(_mean_of_real(x, real), *w),
            "average the words before the projection. The bend then sees nothing but the "
            "mean (section 5): project, then average.",
        ),
    },
)


# Exercise 3, judge: does the claim lean on the random network? --------------------------
def _places(x):
    return x.argsort(1).argsort(1).double()


def _correlation(a, b):
    """Pearson's, row by row, [m]."""
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def _rho(a, b):
    return _correlation(_places(a), _places(b))


def _graded(alike, hits, measure=_rho, kept=slice(6)):
    """2: at least one half with all columns and with the kept ones; 1: with all alone."""
    whole = measure(alike, hits) >= 0.5
    rest = measure(alike[:, kept], hits[:, kept]) >= 0.5
    return whole.float() + (whole & rest).float()


def _places_once(alike, hits):
    return _graded(alike, hits, lambda a, b: _correlation(a.argsort(1).double(),
                                                          b.argsort(1).double()))


def _tables_case(generator):
    """Tables in which trained encoders agree more or less, and untrained ones are poor;
    none whose rho is one half to rounding."""
    draw = lambda k: torch.randn(60, k, generator=generator, dtype=torch.float64)
    good, strength = draw(6), torch.rand(60, 1, generator=generator)
    alike = torch.cat([0.25 + 0.04 * good, 0.02 + 0.05 * draw(2).abs()], 1)
    hits = torch.cat([0.5 + 0.1 * (strength * good + (1 - strength) * draw(6)),
                      0.1 + 0.3 * draw(2).abs()], 1)
    clear = (_rho(alike, hits) - 0.5).abs() > 1e-3
    m = random_size(generator, 10, 16)
    return alike[clear][:m], hits[clear][:m]


stands = Exercise(
    name="stands",
    task="2 where rho reaches one half with all eight pairs and with the first six, "
         "1 where with all eight alone, else 0",
    reference=_graded,
    cases=_tables_case,
    mistakes={
        "Pearson": Mistake(
            lambda alike, hits: _graded(alike, hits, _correlation),
            "correlate the numbers themselves. Two points far from the rest then decide "
            "everything; rho correlates places.",
        ),
        "argsort once": Mistake(
            _places_once,
            "take argsort once. It lists who stands at each place; the place of each is "
            "argsort of argsort.",
        ),
        "never without": Mistake(
            lambda alike, hits: 2 * (_rho(alike, hits) >= 0.5).float(),
            "look at all eight pairs alone. The question is what is left without the "
            "random network.",
        ),
        "six alone": Mistake(
            lambda alike, hits: (_rho(alike, hits) >= 0.5).float()
            + (_rho(alike[:, :6], hits[:, :6]) >= 0.5).float(),
            "add the two answers up. Where all eight do not reach one half there is "
            "nothing to lose, and the grade is 0.",
        ),
        "the other two": Mistake(
            lambda alike, hits: _graded(alike, hits, kept=slice(2, 8)),
            "leave out the first two pairs. The random network's are the last two.",
        ),
    },
)
